"""Pixels: decoding, cropping, resizing, channels, and their two ranges.

Images in memory are uint8 in [0, 255]; inside the networks they are float32 in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

# Arrays are resized by so many images at a time.
_RESIZE_BATCH = 1024


def to_float(images: tf.Tensor) -> tf.Tensor:
    """Pixels in [0, 255], of any dtype, as the float32 in [-1, 1] that networks take."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """The inverse of `to_float`: what lies outside of [-1, 1] is clipped, then rounded."""
    return tf.cast(tf.round(tf.clip_by_value(images, -1.0, 1.0) * 127.5 + 127.5), tf.uint8)


def decode(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes one image.

    Args:
      encoded: string [], a PNG or JPEG of any kind.

    Returns:
      Pixels uint8 [H, W, 3], and whether it is a grey image, bool [].
    """
    # Palettes come out as RGB, of 16 bits the upper 8.
    image = tf.io.decode_image(encoded, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, None])
    channels = tf.shape(image)[-1]
    is_grey = channels <= 2
    rgb = tf.gather(image, tf.where(is_grey, [0, 0, 0], [0, 1, 2]), axis=-1)
    rgb = tf.cond(channels % 2 == 0, lambda: _on_white(rgb, image[..., -1:]), lambda: rgb)
    return tf.ensure_shape(rgb, [None, None, 3]), is_grey


def _on_white(rgb: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """Lays pixels of this opacity on white, as a viewer does. All are uint8."""
    opacity = tf.cast(alpha, tf.float32) / 255.0
    blended = tf.cast(rgb, tf.float32) * opacity + 255.0 * (1.0 - opacity)
    return tf.saturate_cast(tf.round(blended), tf.uint8)


def to_grey(rgb: tf.Tensor) -> tf.Tensor:
    """Luma of Rec. 601, in integers, so that grey stays as it is: uint8 [..., 3] to [..., 1]."""
    weighted = tf.cast(rgb, tf.int32) * [299, 587, 114]
    return tf.cast((tf.reduce_sum(weighted, axis=-1, keepdims=True) + 500) // 1000, tf.uint8)


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey images [N, H, W, 1] as RGB where `channels` is 3; others as they are."""
    return images if images.shape[-1] == channels else np.repeat(images, channels, axis=-1)


def crop_and_resize(image: tf.Tensor, image_size: int | None) -> tf.Tensor:
    """Cuts out the central square of one image and resizes it.

    Args:
      image: uint8 [H, W, C].
      image_size: height and width in pixels of the result; None keeps the square as it is.

    Returns:
      uint8 [S, S, C].
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.minimum(height, width)
    rows, columns = _centre(height, width, side)
    square = image[rows, columns]
    if image_size is None:
        return square
    # It stays as it is where it has the size already: a run whose size was read off its records
    # declares it when it is resumed, and must see the same pixels.
    square = tf.cond(side == image_size, lambda: square, lambda: resize(square, image_size))
    return tf.ensure_shape(square, [image_size, image_size, image.shape[-1]])


def crop_and_resize_all(images: np.ndarray, image_size: int | None) -> np.ndarray:
    """The same for images in memory, all of one size: uint8 [N, H, W, C] to [N, S, S, C]."""
    height, width = images.shape[1:3]
    side = min(height, width)
    rows, columns = _centre(height, width, side)
    images = images[:, rows, columns]
    if image_size is not None and image_size != side:
        with tf.device('CPU:0'):  # Loading data shall take no memory of a GPU.
            chunks = [
                resize(images[start : start + _RESIZE_BATCH], image_size).numpy()
                for start in range(0, len(images), _RESIZE_BATCH)
            ]
        images = np.concatenate(chunks)
    return np.ascontiguousarray(images)


def resize(images: tf.Tensor, image_size: int) -> tf.Tensor:
    """Square images uint8 [..., S, S, C] to uint8 [..., image_size, image_size, C]."""
    resized = tf.image.resize(images, [image_size, image_size], antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def _centre(height: Any, width: Any, side: Any) -> tuple[slice, slice]:
    """Where the central square of this side lies, as slices of rows and columns."""
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def size_text(shape: Any) -> str:
    """Height and width for messages, e.g. 28x28."""
    return f'{shape[0]}x{shape[1]}'
