"""A small classifier of generated images; its layers are features for a second release."""

from __future__ import annotations

import math

import tensorflow as tf

LOW, HIGH, VECTOR, LOGITS = 'low', 'high', 'vector', 'logits'

# Larger images are first pooled to this size.
_MAX_SIZE = 32


def build_classifier(
    image_shape: tuple[int, int, int], num_classes: int, *, width: int = 32
) -> tf.keras.Model:
    """Builds two convolutions and a dense layer: a hundred images take a few milliseconds.

    Args:
      image_shape: (H, W, C).
      num_classes: number of labels.
      width: channels of the first convolution; the second has twice as many.

    Returns:
      A model from images, float32 [n, H, W, C] in [-1, 1], to a dict: LOW float32 [n, h, w, width],
      with half the height and width of the image (of one that is pooled to 32 pixels, if it is
      larger), HIGH float32 [n, h / 2, w / 2, 2 width], VECTOR float32 [n, 4 width] and LOGITS
      float32 [n, num_classes].
    """
    layers = tf.keras.layers
    images = tf.keras.Input(image_shape)
    x, pooling = images, math.ceil(max(image_shape[:2]) / _MAX_SIZE)
    if pooling > 1:
        x = layers.AveragePooling2D(pooling, padding='same')(x)
    low = layers.Conv2D(width, 5, strides=2, padding='same', activation='relu')(x)
    high = layers.Conv2D(2 * width, 5, strides=2, padding='same', activation='relu')(low)
    x = layers.Dropout(0.3)(layers.Flatten()(high))
    vector = layers.Dense(4 * width, activation='relu')(x)
    logits = layers.Dense(num_classes)(layers.Dropout(0.3)(vector))
    outputs = {LOW: low, HIGH: high, VECTOR: vector, LOGITS: logits}
    return tf.keras.Model(images, outputs, name='classifier')
