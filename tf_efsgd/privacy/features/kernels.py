"""Random Fourier features of Gaussian kernels on windows (Rahimi and Recht 2007)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

# Windows of at most this many pixels are projected by a convolution.
_SMALL_WINDOW = 25


def fourier_features(inputs: Sequence[tf.Tensor], frequencies: Sequence[tf.Tensor]) -> tf.Tensor:
    """Random Fourier features, of norm 1, of the mean of several kernels on windows.

    Args:
      inputs: for each kernel what it looks at, float32 [n, H, W, C].
      frequencies: for each kernel float32 [h, w, C, count]: it looks at windows of h by w pixels,
        half a window apart.

    Returns:
      float32 [n, size]; the size is the sum of 2 x windows x count over the kernels.
    """
    parts = []
    for values, frequency in zip(inputs, frequencies):
        angles = _flat(_project_windows(values, frequency))
        # cos^2 + sin^2 = 1 in every pair, so the length is a constant.
        scale = (len(inputs) * angles.shape[-1]) ** -0.5
        parts += [scale * tf.cos(angles), scale * tf.sin(angles)]
    return tf.concat(parts, axis=-1)


def _project_windows(values: tf.Tensor, frequency: tf.Tensor) -> tf.Tensor:
    """Products of [h, w, C, count] with windows of [n, H, W, C].

    Returns:
      [n, windows, count], or the same with two axes of windows.
    """
    height, width, _, count = frequency.shape
    strides = [max(1, height // 2), max(1, width // 2)]
    if height * width <= _SMALL_WINDOW:
        return tf.nn.conv2d(values, frequency, strides, 'VALID')
    # The gradient of a convolution with a large kernel is slow, and so is that of many slices.
    windows = _windows(values, height, width, strides)
    angles = tf.reshape(windows, [-1, windows.shape[-1]]) @ tf.reshape(frequency, [-1, count])
    return tf.reshape(angles, [-1, windows.shape[1], count])


def _windows(images: tf.Tensor, height: int, width: int, strides: list[int]) -> tf.Tensor:
    """All windows of a size, as float32 [n, windows, height width C]."""
    rows, columns = (
        range(0, size - window + 1, stride)
        for size, window, stride in zip(images.shape[1:3], (height, width), strides)
    )
    windows = [images[:, r : r + height, c : c + width] for r in rows for c in columns]
    return tf.stack([_flat(window) for window in windows], axis=1)


def _flat(features: tf.Tensor) -> tf.Tensor:
    return tf.reshape(features, [tf.shape(features)[0], math.prod(features.shape[1:])])
