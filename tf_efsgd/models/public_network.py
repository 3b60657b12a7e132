"""A frozen network that learned from public photographs: features for colour images.

It is the first five stages of EfficientNet-Lite0 (Tan and Le 2019) with Google's weights, which
learned from ImageNet; they come with the package, so nothing is downloaded. Nothing in it mixes
examples (its batch norms are folded into the convolutions), is trainable or has state.
"""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

NAME = 'efficientnet_lite0'

STAGES = ('stage_1', 'stage_2', 'stage_3', 'stage_4', 'stage_5')

_WEIGHTS = pathlib.Path(__file__).parent / 'embedded' / f'{NAME}.npz'
# (repeats, kernel, stride, expansion, channels) of each stage.
_BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
)
_STEM_CHANNELS = 32

# The stages that features and heads look at, from fine to coarse.
MAPS = STAGES[1:]
# Images are enlarged to about this height: the network learned from photographs of 224 pixels, and
# its features say little about a face of 32 pixels. Twice the height costs four times as much.
_USUAL_SIZE = 64
_MANY_CLASSES = 5
# The features of one image may differ by this share of their size from batch to batch.
_TOLERANCE = 1e-3


def choose_enlargement(image_size: int, num_classes: int) -> int:
    """Chooses from public facts how many times to enlarge images.

    Args:
      image_size: height and width, in pixels.
      num_classes: number of labels. With many labels a fit is short of time, so the network sees
        images as they are; on CIFAR-10 that was the better use of the time.

    Returns:
      The factor, at least 1.
    """
    if num_classes > _MANY_CLASSES and image_size >= _USUAL_SIZE // 2:
        return 1
    return max(1, _USUAL_SIZE // image_size)


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
      enlarge: the factor by which images are enlarged first (bilinear), at least 1; see
        `choose_enlargement`.
      last_stage: the stage to end with, 1 to 5.

    Returns:
      A model from images, float32 [n, H, W, C] in [-1, 1], to a dict of feature maps, float32
      [n, h, w, channels], with the names in `STAGES`. Its weights are not trainable, and the
      features of an image do not depend on the other images of its batch.

    Raises:
      ValueError: if there are neither 1 nor 3 channels, or `last_stage` or `enlarge` is out of its
        range.
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


def load_public_network(
    name_or_path: str, image_shape: tuple[int, int, int], *, enlarge: int = 1
) -> tf.keras.Model:
    """Builds or loads a frozen network that learned from public images.

    Args:
      name_or_path: 'efficientnet_lite0', which comes with the package; a model of
        `tf.keras.applications`, e.g. 'MobileNetV2', which Keras downloads; or the path of a saved
        Keras model from images, float32 [n, H, W, 3] in [-1, 1], to a dict of feature maps.
      image_shape: (H, W, C), C is 1 or 3.
      enlarge: as in `build_public_network`.

    Returns:
      A model as `build_public_network` makes it, with the names in `MAPS`.

    Raises:
      ValueError: if there is no such network, if it is not as above, or if its features of an image
        depend on the other images of a batch.
    """
    if name_or_path == NAME:
        return build_public_network(image_shape, enlarge=enlarge)
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(
            'The public network sees gray images or RGB: give 1 or 3 channels. '
            f'Received: image_shape={tuple(image_shape)}.'
        )
    images = tf.keras.Input(image_shape, name='images')
    x = images
    if channels == 1:
        x = tf.keras.layers.Concatenate(name='gray_to_rgb')([x, x, x])
    if enlarge > 1:
        x = tf.keras.layers.Resizing(height * enlarge, width * enlarge, name='enlarge')(x)
    if os.path.exists(name_or_path):
        network = tf.keras.models.load_model(name_or_path, compile=False)
        network.trainable = False
        maps = network(x, training=False)
    else:
        maps = _maps_of_application(name_or_path, x)
    outputs = _four_maps(maps, name_or_path)
    model = tf.keras.Model(images, outputs, name='public_network', trainable=False)
    _check_alone(model, image_shape, name_or_path)
    return model


def _maps_of_application(name: str, x: tf.Tensor) -> dict[str, tf.Tensor]:
    """The last output at each size of a Keras application, which scales images as it needs."""
    modules = [
        module
        for module in vars(tf.keras.applications).values()
        if callable(getattr(module, name, None)) and hasattr(module, 'preprocess_input')
    ]
    if not modules:
        raise ValueError(
            f'A public network is {NAME!r}, the name of a model of tf.keras.applications (e.g. '
            f"'MobileNetV2') or the path of a saved Keras model. Received: {name!r}."
        )
    network = getattr(modules[0], name)(
        include_top=False, weights='imagenet', input_shape=tuple(x.shape[1:])
    )
    network.trainable = False
    last = {}
    for layer in network.layers:
        shape: Any = getattr(layer.output, 'shape', ())
        # A padding layer has a size of its own, but no new features.
        if len(shape) == 4 and not isinstance(layer, tf.keras.layers.ZeroPadding2D):
            last[shape[1]] = layer.output
    inner = tf.keras.Model(network.input, {str(size): x for size, x in last.items()})
    return inner(modules[0].preprocess_input(127.5 * (x + 1.0)), training=False)


def _four_maps(maps: dict[str, tf.Tensor], name: str) -> dict[str, tf.Tensor]:
    """The four coarsest feature maps, from fine to coarse, under the usual names."""
    if not isinstance(maps, dict) or len(maps) < len(MAPS):
        raise ValueError(
            f'The output of a public network must be a dict of at least {len(MAPS)} feature maps, '
            f'float32 [n, h, w, channels]. Received: {name!r}, whose output is {maps!r}.'
        )
    if set(MAPS) <= set(maps):
        return {stage: maps[stage] for stage in MAPS}
    # The sort is stable: maps of the same size stay in their order.
    ordered = sorted(maps.values(), key=lambda values: -values.shape[1])[-len(MAPS) :]
    return dict(zip(MAPS, ordered))


def _check_alone(model: tf.keras.Model, image_shape: tuple[int, int, int], name: str) -> None:
    """Raises ValueError if the features of an image depend on the images beside it."""
    draws = np.random.default_rng(0)
    images = draws.uniform(-1.0, 1.0, [3, *image_shape]).astype(np.float32)
    others = np.concatenate([images[:1], 0.1 * images[1:]])
    for one, two in zip(model(images).values(), model(others).values()):
        size = float(tf.reduce_max(tf.abs(one[0])))
        if not float(tf.reduce_max(tf.abs(one[0] - two[0]))) <= _TOLERANCE * size:
            raise ValueError(
                'The features of a record must not depend on other records: leave out layers that '
                f'mix the images of a batch. Received: {name!r}, which mixes them.'
            )
