"""Per-example losses, of shape [batch]: nothing is averaged over examples here.

They are the non-saturating GAN losses of Goodfellow et al. 2014 on logits, the squared error of a
reconstruction, and the divergence that a variational one adds (Kingma and Welling 2014).
"""

from __future__ import annotations

import tensorflow as tf

# The limit of log-variances: standard deviations of a latent are between 0.05 and 20.
_LARGEST_LOG_VARIANCE = 6.0


class NonSaturatingLosses:
    """The losses of a private GAN; every method is per example."""

    @staticmethod
    def realness(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The logit of each example's own class.

        Args:
          logits: float32 [batch, classes].
          labels: int32 [batch].

        Returns:
          float32 [batch], above 0 where the discriminator says real.
        """
        return tf.reduce_sum(logits * tf.one_hot(labels, logits.shape[-1]), axis=-1)

    @staticmethod
    def real(realness: tf.Tensor) -> tf.Tensor:
        """The discriminator's loss on records, -log D(x); float32 [batch] from [batch]."""
        return tf.nn.softplus(-realness)

    @staticmethod
    def fake(realness: tf.Tensor) -> tf.Tensor:
        """The discriminator's loss on generated images, -log(1 - D(x)); [batch] from [batch]."""
        return tf.nn.softplus(realness)

    @staticmethod
    def generator(realness: tf.Tensor) -> tf.Tensor:
        """The generator's loss on its images, -log D(x); float32 [batch] from [batch]."""
        return tf.nn.softplus(-realness)

    @staticmethod
    def reconstruction(images: tf.Tensor, reconstructions: tf.Tensor) -> tf.Tensor:
        """The squared L2 distance |x - R(x)|^2.

        Args:
          images: float32 [batch, H, W, C] in [-1, 1].
          reconstructions: float32 [batch, H, W, C] in [-1, 1].

        Returns:
          float32 [batch], summed over pixels and channels.
        """
        return tf.reduce_sum(tf.math.squared_difference(images, reconstructions), axis=[1, 2, 3])

    @staticmethod
    def posterior(parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The moments of the normal law that the discriminator predicts for a latent vector.

        Args:
          parameters: float32 [batch, 2 latent_dim], of any size.

        Returns:
          (mean, log-variance in [-6, 6]), float32 [batch, latent_dim]. The bound is smooth, because
          a log-variance that is cut off would have no gradient that leads it back.
        """
        mean, log_variance = tf.split(parameters, 2, axis=-1)
        bounded = _LARGEST_LOG_VARIANCE * tf.tanh(log_variance / _LARGEST_LOG_VARIANCE)
        return mean, bounded

    @staticmethod
    def divergence(mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
        """The divergence KL(N(mean, exp(log_variance)) || N(0, I)), in nats.

        Together with `reconstruction` it is the negative evidence lower bound of a decoder with
        pixel variance 1/2 (Kingma and Welling 2014, equation 10 and appendix B), up to a constant.

        Args:
          mean: float32 [batch, latent_dim].
          log_variance: float32 [batch, latent_dim].

        Returns:
          float32 [batch], summed over the latent vector, >= 0.
        """
        terms = tf.square(mean) + tf.exp(log_variance) - 1.0 - log_variance
        return 0.5 * tf.reduce_sum(terms, axis=-1)
