"""Smaller versions, for CPUs, of the three classifiers of the field's benchmark.

DPImageBench (Gong et al. 2025) averages a ResNet, a WideResNet and a ResNeXt that learn from
generated images. The networks here have the same blocks but fewer of them, so their accuracies must
not be compared with published ones. They are shown beside those of the same three networks when
they learn from real images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import tensorflow as tf

from tf_efsgd.evaluation.classifiers import FEATURES

_STAGES = 3
_LEAST_SIZE = 2**_STAGES
_PATHS = 4  # In a block of the ResNeXt; the published network has 8 to 32.


def build_resnet(
    image_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0
) -> tf.keras.Model:
    """Builds a ResNet (He et al. 2016) of three blocks with 16, 32 and 64 channels.

    Args:
      image_shape: (height, width, channels) of the images; height and width at least 8.
      num_classes: number of logits, at least 1.
      seed: seed of the initial weights.

    Returns:
      A model with the inputs and outputs of `classifiers.build_cnn`.

    Raises:
      ValueError: if an image is smaller than 8 x 8, or there is no class.
    """
    return _build('resnet', _residual_block, 16, image_shape, num_classes, seed)


def build_wide_resnet(
    image_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0
) -> tf.keras.Model:
    """Builds a WideResNet (Zagoruyko and Komodakis 2016) of 32, 64 and 128 channels.

    Args:
      image_shape: as for `build_resnet`.
      num_classes: as for `build_resnet`.
      seed: as for `build_resnet`.

    Returns:
      As for `build_resnet`.

    Raises:
      ValueError: as for `build_resnet`.
    """
    return _build('wide_resnet', _residual_block, 32, image_shape, num_classes, seed)


def build_resnext(
    image_shape: tuple[int, int, int], num_classes: int, *, seed: int = 0
) -> tf.keras.Model:
    """Builds a ResNeXt (Xie et al. 2017) of 32, 64 and 128 channels, on four paths each.

    Args:
      image_shape: as for `build_resnet`.
      num_classes: as for `build_resnet`.
      seed: as for `build_resnet`.

    Returns:
      As for `build_resnet`.

    Raises:
      ValueError: as for `build_resnet`.
    """
    return _build('resnext', _block_of_paths, 32, image_shape, num_classes, seed)


BUILDERS = {'resnet': build_resnet, 'wide_resnet': build_wide_resnet, 'resnext': build_resnext}


def _build(name, block, width, image_shape, num_classes, seed) -> tf.keras.Model:
    if min(image_shape[:2]) < _LEAST_SIZE or num_classes < 1:
        raise ValueError(
            f'The classifiers of the benchmark need images of at least {_LEAST_SIZE} x '
            f'{_LEAST_SIZE} pixels and at least 1 class. '
            f'Received: image_shape={tuple(image_shape)}, num_classes={num_classes}.'
        )
    # Every initializer has its own seed: the weights do not depend on the global random state.
    kernels = map(lambda i: tf.keras.initializers.HeNormal(1000 * seed + i), itertools.count())
    images = tf.keras.Input(tuple(image_shape), dtype=tf.float32)
    # Halved at once, because a stage at full size takes as long as all others together.
    x = _convolve(images, width, 3, kernels, strides=2)
    for stage in range(_STAGES):
        x = block(x, width * 2**stage, 1 if stage == 0 else 2, kernels)
    x = tf.keras.layers.ReLU()(tf.keras.layers.BatchNormalization()(x))
    x = tf.keras.layers.GlobalAveragePooling2D(name=FEATURES)(x)
    dense = tf.keras.layers.Dense(num_classes, kernel_initializer=next(kernels), dtype='float32')
    return tf.keras.Model(images, dense(x), name=name)


def _convolve(x, channels: int, size: int, kernels: Iterator, strides: int = 1):
    return tf.keras.layers.Conv2D(
        channels,
        size,
        strides=strides,
        padding='same',
        use_bias=False,
        kernel_initializer=next(kernels),
    )(x)


def _activate(x):
    return tf.keras.layers.ReLU()(tf.keras.layers.BatchNormalization()(x))


def _residual_block(x, channels: int, strides: int, kernels: Iterator):
    """Adds two convolutions of the normalized input to the block's input."""
    shortcut, x = _shortcut(x, channels, strides, kernels)
    x = _activate(_convolve(x, channels, 3, kernels, strides))
    return tf.keras.layers.Add()([shortcut, _convolve(x, channels, 3, kernels)])


def _block_of_paths(x, channels: int, strides: int, kernels: Iterator):
    """Does what `_residual_block` does, on narrow paths.

    These replace a grouped convolution, whose gradient TensorFlow does not have on CPUs.
    """
    shortcut, x = _shortcut(x, channels, strides, kernels)
    paths = []
    for _ in range(_PATHS):
        path = _activate(_convolve(x, channels // (2 * _PATHS), 1, kernels))
        paths.append(_convolve(path, channels // (2 * _PATHS), 3, kernels, strides))
    x = _activate(tf.keras.layers.Concatenate()(paths))
    return tf.keras.layers.Add()([shortcut, _convolve(x, channels, 1, kernels)])


def _shortcut(x, channels: int, strides: int, kernels: Iterator):
    """Returns (the block's input, projected if its shape changes; the same, activated)."""
    activated = _activate(x)
    if strides == 1 and x.shape[-1] == channels:
        return x, activated
    return _convolve(activated, channels, 1, kernels, strides), activated
