"""Images as arrays."""

from __future__ import annotations

import tensorflow as tf


def to_float(images: tf.Tensor) -> tf.Tensor:
    """Maps images uint8 in [0, 255] to float32 in [-1, 1]."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """Maps images float32 in [-1, 1] to uint8 in [0, 255]."""
    return tf.cast(tf.round(tf.clip_by_value(images, -1.0, 1.0) * 127.5 + 127.5), tf.uint8)
