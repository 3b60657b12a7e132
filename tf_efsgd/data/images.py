"""Pixels: cropping, resizing, channels, and the two ranges of their values.

Images in memory are uint8 in [0, 255]; inside the networks they are float32 in [-1, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

# So many images are resized at a time.
_RESIZE_BATCH = 1024


def to_float(images: tf.Tensor) -> tf.Tensor:
    """Turns pixels in [0, 255], of any dtype, into the float32 in [-1, 1] that networks take."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def to_uint8(images: tf.Tensor) -> tf.Tensor:
    """Turns float32 in [-1, 1] into uint8: the inverse of `to_float`; other values are clipped."""
    return tf.cast(tf.round(tf.clip_by_value(images, -1.0, 1.0) * 127.5 + 127.5), tf.uint8)


def to_gray(rgb: np.ndarray) -> np.ndarray:
    """Turns uint8 [..., 3] into [..., 1], the luma of Rec. 601, so that gray stays as it is."""
    weighted = rgb.astype(np.int32) @ np.array([299, 587, 114], np.int32)
    return ((weighted + 500) // 1000).astype(np.uint8)[..., np.newaxis]


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Makes images [N, H, W, C] gray or repeats their one channel; others stay.

    Args:
      images: uint8, C is 1 or 3.
      channels: 1 or 3.
    """
    if images.shape[-1] == channels:
        return images
    return to_gray(images) if channels == 1 else np.repeat(images, channels, axis=-1)


def crop_and_resize(image: np.ndarray, image_size: int | None, area: bool = False) -> np.ndarray:
    """Cuts out the central square of one image and resizes it.

    Args:
      image: uint8 [H, W, C].
      image_size: height and width in pixels of the result; None keeps the square as it is.
      area: whether a pixel of the result is the mean of the area that it covers; as in `resize`.

    Returns:
      uint8 [S, S, C].
    """
    height, width = image.shape[:2]
    side = min(height, width)
    rows, columns = _centre(height, width, side)
    square = image[rows, columns]
    # A square that has the size already stays as it is: a run whose size was read off its records
    # declares it when it is resumed, and must see the same pixels.
    if image_size is None or side == image_size:
        return square
    with tf.device('CPU:0'):
        return resize(tf.constant(square), image_size, area).numpy()


def crop_and_resize_all(images: np.ndarray, image_size: int | None) -> np.ndarray:
    """Crops and resizes images of one size in memory: uint8 [N, H, W, C] to [N, S, S, C]."""
    height, width = images.shape[1:3]
    side = min(height, width)
    rows, columns = _centre(height, width, side)
    images = images[:, rows, columns]
    if image_size is not None and image_size != side:
        with tf.device('CPU:0'):  # Loading data must not use memory of a GPU.
            chunks = [
                resize(images[start : start + _RESIZE_BATCH], image_size).numpy()
                for start in range(0, len(images), _RESIZE_BATCH)
            ]
        images = np.concatenate(chunks)
    return np.ascontiguousarray(images)


def resize(images: tf.Tensor, image_size: int, area: bool = False) -> tf.Tensor:
    """Resizes square images.

    Args:
      images: uint8 [..., S, S, C].
      image_size: height and width of the result, in pixels.
      area: whether a pixel of the result is the mean of the area that it covers; otherwise a
        triangle filter is used.

    Returns:
      uint8 [..., image_size, image_size, C].
    """
    if area:
        stack = images if len(images.shape) == 4 else images[tf.newaxis]
        resized = tf.image.resize(stack, [image_size, image_size], method='area')
        resized = resized if len(images.shape) == 4 else resized[0]
    else:
        resized = tf.image.resize(images, [image_size, image_size], antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def _centre(height: Any, width: Any, side: Any) -> tuple[slice, slice]:
    """The rows and columns of the central square of this side, as slices."""
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def size_text(shape: Any) -> str:
    """The text of height and width for messages, e.g. 28x28."""
    return f'{shape[0]}x{shape[1]}'
