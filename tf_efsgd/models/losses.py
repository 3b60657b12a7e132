"""Per-example losses, shape [batch]: nothing is averaged over examples here.

The non-saturating GAN losses of Goodfellow et al. 2014 on logits, and the squared error of the
reconstruction head.
"""

from __future__ import annotations

import tensorflow as tf


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
        """-log D(x), for the discriminator on records; float32 [batch] from [batch]."""
        return tf.nn.softplus(-realness)

    @staticmethod
    def fake(realness: tf.Tensor) -> tf.Tensor:
        """-log(1 - D(x)), for the discriminator on generated images; [batch] from [batch]."""
        return tf.nn.softplus(realness)

    @staticmethod
    def generator(realness: tf.Tensor) -> tf.Tensor:
        """-log D(x), for the generator on its images; float32 [batch] from [batch]."""
        return tf.nn.softplus(-realness)

    @staticmethod
    def reconstruction(images: tf.Tensor, reconstructions: tf.Tensor) -> tf.Tensor:
        """Squared L2 distance |x - R(x)|^2.

        Args:
          images: float32 [batch, H, W, C] in [-1, 1].
          reconstructions: float32 [batch, H, W, C] in [-1, 1].

        Returns:
          float32 [batch], summed over pixels and channels.
        """
        return tf.reduce_sum(tf.math.squared_difference(images, reconstructions), axis=[1, 2, 3])
