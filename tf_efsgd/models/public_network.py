"""A frozen network that learned from public photographs: features for colour.

The first five stages of EfficientNet-Lite0 (Tan and Le 2019), with Google's weights, which learned
from ImageNet; they come with the package, so nothing is downloaded. Nothing in it mixes examples
(its batch norms are folded into the convolutions), nothing is trainable and nothing has state.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np
import tensorflow as tf

# What the statement, the report and every table say about results that used it.
LEARNED_FROM = 'ImageNet'
NAME = 'efficientnet_lite0'

STAGES = ('stage_1', 'stage_2', 'stage_3', 'stage_4', 'stage_5')

_WEIGHTS = pathlib.Path(__file__).parent / 'embedded' / f'{NAME}.npz'
# Repeats, kernel, stride, expansion, channels of each stage.
_BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
)
_STEM_CHANNELS = 32


@functools.lru_cache(maxsize=1)
def _weights() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(kernel, bias) of each layer in order, float32."""
    with np.load(_WEIGHTS, allow_pickle=False) as arrays:
        values = [arrays[name].astype(np.float32) for name in sorted(arrays)]
    return tuple(zip(values[::2], values[1::2]))


def build_public_network(
    image_shape: tuple[int, int, int], *, enlarge: int = 1, last_stage: int = 5
) -> tf.keras.Model:
    """Builds the frozen network for images of a size.

    Args:
      image_shape: (H, W, C); C is 3, or 1 for gray, which is repeated to three channels.
      enlarge: by how much images are enlarged first (bilinear), at least 1: the network learned
        from photographs of 224 pixels and tells little from a face of 32.
      last_stage: the stage to end with, 1 to 5.

    Returns:
      A model from images, float32 [n, H, W, C] in [-1, 1], to a dict of feature maps, float32
      [n, h, w, channels] by the names in `STAGES`. Its weights are not trainable, and an image's
      features do not depend on the others of its batch.

    Raises:
      ValueError: if there are neither 1 nor 3 channels, or `last_stage` or `enlarge` are out of
        their ranges.
    """
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(
            'The public network sees gray images or RGB: give 1 or 3 channels, or use '
            f"public_features='none'. Received: image_shape={tuple(image_shape)}."
        )
    if enlarge < 1 or not 1 <= last_stage <= len(STAGES):
        raise ValueError(
            f'enlarge must be at least 1 and last_stage in 1 to {len(STAGES)}. Received: '
            f'enlarge={enlarge}, last_stage={last_stage}.'
        )
    layers, made = tf.keras.layers, []

    def add(layer, x):
        made.append(layer)
        return layer(x)

    def convolution(x, filters, kernel=1, stride=1, activation=True):
        layer = layers.Conv2D(
            filters,
            kernel,
            stride,
            'same',
            activation=tf.nn.relu6 if activation else None,
            trainable=False,
        )
        return add(layer, x)

    def depthwise(x, kernel, stride):
        layer = layers.DepthwiseConv2D(
            kernel, stride, 'same', activation=tf.nn.relu6, trainable=False
        )
        return add(layer, x)

    images = tf.keras.Input(image_shape, name='images')
    x = images
    if channels == 1:
        x = layers.Concatenate(name='gray_to_rgb')([x, x, x])
    if enlarge > 1:
        x = layers.Resizing(height * enlarge, width * enlarge, name='enlarge')(x)
    x = convolution(x, _STEM_CHANNELS, 3, 2)
    outputs = {}
    for name, (repeats, kernel, stride, expansion, filters) in zip(STAGES, _BLOCKS[:last_stage]):
        for repeat in range(repeats):
            shortcut = x
            if expansion > 1:
                x = convolution(x, expansion * x.shape[-1])
            x = depthwise(x, kernel, stride if repeat == 0 else 1)
            x = convolution(x, filters, activation=False)
            if repeat > 0:
                x = layers.Add()([x, shortcut])
        outputs[name] = x
    model = tf.keras.Model(images, outputs, name=NAME, trainable=False)
    for layer, weights in zip(made, _weights()):
        layer.set_weights(weights)
    return model
