"""Random features of pixels: those of the first release, fixed by public constants."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_efsgd.privacy.features.grouped import GROUPS, GroupedFeatures
from tf_efsgd.privacy.features.kernels import fourier_features

# The version of phi and of the form of its release: a release of another version is refused.
VERSION = 3
# The public seed of the random features, the same for all runs.
_SEED = (2601, 15061)
# Larger images are first pooled to this size: fine detail would drown in the noise.
_MAX_SIZE = 32
# The features approximate a kernel on whole images and one on windows of half their size, a quarter
# of the size apart. Each group has so many random frequencies for them.
_WHOLE, _HALF = 1000, 300
# The standard deviation of the Gaussian kernels, divided by the root of the number of pixels, for
# pixels in [0, 1].
_BANDWIDTH = 0.18


class FeatureMap(GroupedFeatures):
    """Random Fourier features (Rahimi and Recht 2007) of pixels, for the first release.

    They approximate two Gaussian kernels: one on the whole image, which sees what belongs together
    in it, and one on windows, averaged over positions, which sees strokes.

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
        """Computes the features of one group.

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
