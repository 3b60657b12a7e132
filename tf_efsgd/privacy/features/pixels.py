"""Random features of pixels: those of the first release, fixed by public constants."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_efsgd.privacy.features.grouped import GROUPS, GroupedFeatures
from tf_efsgd.privacy.features.kernels import fourier_features

# Of phi and of the form it is released in: other versions' releases mean nothing to this one.
VERSION = 3
# Public seed of the random features: the same for all runs.
_SEED = (2601, 15061)
# Larger images are pooled to this first: fine detail would drown in the noise.
_MAX_SIZE = 32
# The features stand for a kernel on whole images and one on windows of half their size, a quarter
# of it apart, each the mean of so many groups of so many random frequencies.
_WHOLE, _HALF = 1000, 300
# Standard deviation of the Gaussian kernels over the root of the number of pixels, which are in
# [0, 1].
_BANDWIDTH = 0.18


class FeatureMap(GroupedFeatures):
    """Random features of pixels: those of the first release.

    Random Fourier features (Rahimi and Recht 2007) of two Gaussian kernels: on the whole image,
    for what belongs together in it, and, the mean over positions, on windows, for its strokes.

    Args:
      image_shape: (H, W, C).
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__(name='features')
        height, width, channels = image_shape
        self._pooling = math.ceil(max(height, width) / _MAX_SIZE)
        whole = [math.ceil(size / self._pooling) for size in (height, width)]
        half = [math.ceil(size / 2) for size in whole]
        seeds = tf.random.experimental.stateless_split(_SEED, 2)
        self._frequencies = []
        for window, count, seed in zip((whole, half), (_WHOLE, _HALF), tf.unstack(seeds)):
            pixels = math.prod(window) * channels
            normal = tf.random.stateless_normal([GROUPS, pixels, count], seed)
            normal /= _BANDWIDTH * pixels**0.5
            self._frequencies.append(tf.reshape(normal, [GROUPS, *window, channels, count]))
        self._measure(image_shape)

    def group(self, images: tf.Tensor, group: tf.Tensor | int) -> tf.Tensor:
        """The features of one group alone.

        Args:
          images: float32 [n, H, W, C] in [-1, 1].
          group: int32 [] in [0, number of groups).

        Returns:
          float32 [n, group_size], rows of norm 1.
        """
        images = (images + 1.0) / 2.0
        if self._pooling > 1:
            images = tf.nn.avg_pool2d(images, self._pooling, self._pooling, 'SAME')
        inputs = [images] * len(self._frequencies)
        return fourier_features(inputs, [frequencies[group] for frequencies in self._frequencies])
