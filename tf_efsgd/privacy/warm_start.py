"""A private warm start: one release of per-class feature sums, and a generator fitted to them.

F = sum_i phi(x_i) (x) onehot(y_i) + N(0, sigma_w^2 I) over ALL records; then the generator is
trained so that the mean features of its images of each class come near those of F, an unbiased
estimate of the squared maximum mean discrepancy (MMD). In the line of DP-MERF (Harder et al.
2021), with random convolution features beside random Fourier features.

Formal guarantees:
  - One record moves F by at most 1: its class block alone, by a vector whose norm is at most 1
    whatever the record holds, so `release` is `GaussianDpEvent(sigma_w)`, without sampling.
  - phi is fixed by public constants and the image shape; it never looks at a record.
  - A record whose features are not finite counts as zero, by selection.
  - No number that depends on the records leaves `release` but the noisy F: class means are F
    divided by a noisy count, which is a coordinate of F itself. `fit` sees F alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy import noise

# Public seed of the random features: the same for all runs.
_SEED = (2601, 15061)
# Larger images are pooled to this first: fine detail would drown in the noise.
_MAX_SIZE = 32
_CHANNELS = (24, 64)
_FOURIER_FEATURES = 600
# Of the Gaussian kernels that the Fourier features stand for, on vectors of length 1.
_BANDWIDTH = 0.5
# Of the constant feature that counts the records of a class.
_COUNT = 0.1
# Rounding must not carry a record beyond norm 1.
_BOUND = 1.0 - 1e-5
_RECORDS_PER_BATCH = 500
# A class is never taken for smaller than this part of an even share.
_SMALLEST_CLASS = 0.01

_IMAGES_PER_STEP = 300
_LEAST_IMAGES_PER_CLASS = 4
_LEARNING_RATE = 4e-3
_LAST_LEARNING_RATE = 0.05
_ADAM_BETA_1 = 0.5
_AVERAGE = 0.99


class FeatureMap(tf.Module):
    """Bounded random features of images, phi.

    Four blocks of equal length: pooled pixels, two layers of random convolutions, and random
    Fourier features (Rahimi and Recht 2007) of each of these three; and a constant.

    Args:
      image_shape: (H, W, C).
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__(name='features')
        height, width, channels = image_shape
        self._pooling = math.ceil(max(height, width) / _MAX_SIZE)
        seeds = iter(tf.unstack(tf.random.experimental.stateless_split(_SEED, 8)))

        def weights(*shape):
            return tf.random.stateless_normal(shape, next(seeds)) / math.prod(shape[:-1]) ** 0.5

        first, second = _CHANNELS
        self._kernels = [weights(5, 5, channels, first), weights(3, 3, first, second)]
        blocks = self._blocks(tf.zeros([1, *image_shape]))
        # Frequencies of the kernel exp(-|a - b|^2 / (2 bandwidth^2)).
        self._frequencies = [
            weights(block.shape[-1], _FOURIER_FEATURES // 2) * (block.shape[-1] ** 0.5 / _BANDWIDTH)
            for block in blocks
        ]
        self.size = self(tf.zeros([1, *image_shape])).shape[-1]

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Computes phi.

        Args:
          images: float32 [n, H, W, C] in [-1, 1].

        Returns:
          float32 [n, size]; every row has norm at most 1, or is 0 where it would not be finite.
        """
        blocks = self._blocks(images)
        angles = [block @ w for block, w in zip(blocks, self._frequencies)]
        # cos^2 + sin^2 = 1 in every pair, so their length is a constant.
        scale = (_FOURIER_FEATURES // 2) ** -0.5
        fourier = [scale * tf.concat([tf.cos(a), tf.sin(a)], axis=-1) for a in angles]
        parts = [*blocks, *fourier]
        share = math.sqrt((1.0 - _COUNT**2) / len(parts))
        count = tf.fill([tf.shape(images)[0], 1], _COUNT)
        features = tf.concat([*[share * part for part in parts], count], axis=-1)
        return _bounded(features)

    @tf.function(reduce_retracing=True)
    def class_sums(self, images: tf.Tensor, labels: tf.Tensor, num_classes: int) -> tf.Tensor:
        """Sums of phi by class, PRIVATE.

        Args:
          images: uint8 [n, H, W, C].
          labels: int32 [n].
          num_classes: number of labels.

        Returns:
          float32 [num_classes, size].
        """
        phi = self(tf.cast(images, tf.float32) / 127.5 - 1.0)
        return tf.matmul(tf.one_hot(labels, num_classes), phi, transpose_a=True)

    def _blocks(self, images: tf.Tensor) -> list[tf.Tensor]:
        """Pixels and convolutions, each float32 [n, ...] of length 1."""
        images = (images + 1.0) / 2.0
        if self._pooling > 1:
            images = tf.nn.avg_pool2d(images, self._pooling, self._pooling, 'SAME')
        first = tf.nn.relu(tf.nn.conv2d(images, self._kernels[0], 2, 'SAME'))
        first = tf.nn.avg_pool2d(first, 2, 2, 'SAME')
        second = tf.nn.relu(tf.nn.conv2d(first, self._kernels[1], 2, 'SAME'))
        return [_unit(images), _unit(first), _unit(second)]


def _flat(features: tf.Tensor) -> tf.Tensor:
    return tf.reshape(features, [tf.shape(features)[0], math.prod(features.shape[1:])])


def _unit(features: tf.Tensor) -> tf.Tensor:
    """Flattened and scaled to length 1; 0 stays 0, also for the gradient."""
    features = _flat(features)
    squared = tf.reduce_sum(features**2, axis=-1, keepdims=True)
    return features * tf.math.rsqrt(tf.maximum(squared, 1e-6))


def _bounded(features: tf.Tensor) -> tf.Tensor:
    """Rows divided by max(1, norm), a little below 1; rows that are not finite are 0."""
    finite = tf.reduce_all(tf.math.is_finite(features), axis=-1, keepdims=True)
    features = tf.where(finite, features, tf.zeros_like(features))
    norms = tf.norm(features, axis=-1, keepdims=True)
    return features * (_BOUND / tf.maximum(1.0, norms))


def release(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    features: FeatureMap,
    noise_multiplier: float,
    noise_source: noise.NoiseKey | noise.SecureNoise,
) -> np.ndarray:
    """Releases F, once: the only look at the records.

    Args:
      images: uint8 [N, H, W, C], all records.
      labels: int32 [N] in [0, num_classes).
      num_classes: number of labels.
      features: phi.
      noise_multiplier: sigma_w >= 0; 0 releases F as it is, without privacy.
      noise_source: one of its own, as `optimizer.new_noise` makes it.

    Returns:
      Noisy sums, float32 [num_classes, features.size].
    """
    sums = np.zeros([num_classes, features.size])
    for start in range(0, len(images), _RECORDS_PER_BATCH):
        part = slice(start, start + _RECORDS_PER_BATCH)
        sums += features.class_sums(
            tf.constant(images[part]), tf.constant(labels[part]), num_classes
        ).numpy()
    if noise_multiplier:
        step_noise = noise_source.next([tf.TensorShape(sums.shape)])
        sums += _gaussian(sums.shape, noise_multiplier, step_noise).numpy()
    return sums.astype(np.float32)


@tf.function
def _gaussian(shape, noise_multiplier, step_noise):
    """In a graph: the key is an argument there, never a constant."""
    # The source is used for nothing else, so there are no purposes to tell apart.
    return noise.gaussian(
        shape,
        noise_multiplier,
        step_noise=step_noise,
        purpose=noise.CLIPPED_GRAD_SUM,
        variable=0,
    )


def class_means(sums: np.ndarray, dataset_size: int) -> np.ndarray:
    """Mean features of each class: post-processing of a release.

    Args:
      sums: F, float32 [classes, features], the last feature the constant that counts.
      dataset_size: declared number of records.

    Returns:
      float32 [classes, features], each class divided by its noisy count.
    """
    even = dataset_size / len(sums)
    counts = np.maximum(sums[:, -1:] / (_COUNT * _BOUND), _SMALLEST_CLASS * even)
    return (sums / counts).astype(np.float32)


def mmd_loss(features: tf.Tensor, means: tf.Tensor) -> tf.Tensor:
    """Squared distance of mean features from given ones, without the bias of few images.

    |m - F|^2 - (sample variance) / n, whose expectation is |E phi - F|^2: for F without noise the
    squared MMD (Gretton et al. 2012, section 2.2).

    Args:
      features: float32 [classes, n, d], n >= 2.
      means: float32 [classes, d].

    Returns:
      float32 [], summed over classes.
    """
    n = features.shape[1]
    mean = tf.reduce_mean(features, axis=1)
    spread = tf.reduce_sum((features - mean[:, tf.newaxis]) ** 2, axis=[1, 2]) / (n * (n - 1))
    return tf.reduce_sum(tf.reduce_sum((mean - means) ** 2, axis=1) - spread)


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a generator is fitted: which images a step makes.

    Attributes:
      classes: classes in a step.
      images_per_class: of each of them, n >= 2.
    """

    classes: int
    images_per_class: int

    @classmethod
    def of(cls, num_classes: int) -> Fit:
        """About 300 images in a step: few of each class, or of some of very many classes."""
        images_per_class = max(_LEAST_IMAGES_PER_CLASS, _IMAGES_PER_STEP // num_classes)
        return cls(min(num_classes, _IMAGES_PER_STEP // images_per_class), images_per_class)


def fit(
    generator: tf.keras.Model,
    draw_inputs: Callable[..., dict[str, tf.Tensor]],
    features: FeatureMap,
    means: np.ndarray,
    *,
    steps: int,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[np.ndarray]:
    """Fits a generator to released class means: post-processing, it costs no privacy.

    Args:
      generator: as for `EFSGDGan`, outside any distribution strategy; it is trained.
      draw_inputs: as for `EFSGDGan`.
      features: phi, the one of the release.
      means: float32 [classes, features.size], from `class_means`.
      steps: generator steps, >= 1; the learning rate falls over them.
      seed: of latents; public.
      progress: wraps the iterable of step numbers, e.g. `tqdm.tqdm`.

    Returns:
      The moving average of the generator's weights over the last steps, as `get_weights`.
    """
    size = Fit.of(len(means))
    rate = tf.keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps, _LAST_LEARNING_RATE)
    optimizer = tf.keras.optimizers.legacy.Adam(rate, beta_1=_ADAM_BETA_1)
    # Shorter at first, so that random weights are soon forgotten.
    average = tf.train.ExponentialMovingAverage(_AVERAGE, optimizer.iterations)
    means = tf.constant(means)
    variables = generator.trainable_variables

    @tf.function
    def step(number):
        seeds = tf.random.experimental.stateless_split(tf.stack([seed, number]), 2)
        classes = tf.random.experimental.stateless_shuffle(tf.range(len(means)), seeds[0])
        classes = classes[: size.classes]
        labels = tf.repeat(classes, size.images_per_class)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            images = generator(draw_inputs(generator, labels, seeds[1]), training=True)
            shape = [size.classes, size.images_per_class, features.size]
            loss = mmd_loss(tf.reshape(features(images), shape), tf.gather(means, classes))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        average.apply(variables)

    for number in progress(range(steps)):
        step(tf.constant(number))
    averages = {v.ref(): average.average(v).numpy() for v in variables}
    return [averages.get(v.ref(), v.numpy()) for v in generator.weights]
