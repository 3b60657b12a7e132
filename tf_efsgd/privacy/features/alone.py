"""Whether what is computed of a record depends on that record alone, to the last bit.

A release promises that a record moves its own numbers and nobody else's. Features that add up in
another order at another place of a batch break that by rounding, and over thousands of records
rounding adds up. So every feature map is tried on this machine before it sees a record.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf


def why_not_alone(
    function: Callable[[tf.Tensor], tf.Tensor], photographs: np.ndarray, rows: int
) -> str | None:
    """Tries a function of images on public photographs: every row, at other places, among others.

    Args:
      function: from float32 [rows, H, W, C] in [-1, 1] to [rows, ...].
      photographs: public ones, float32 [m, H, W, C].
      rows: how many images the function gets at a time when it sees records.

    Returns:
      Why a row's result is not its own; None if all of them are equal to the last bit.
    """
    draws = np.random.default_rng(0)
    images = np.resize(photographs, [rows, *photographs.shape[1:]]).astype(np.float32)
    images = np.clip(images + draws.normal(scale=0.05, size=images.shape), -1, 1)
    images = images.astype(np.float32)
    compute = tf.function(function)

    def made(of):
        return compute(tf.constant(of)).numpy()

    alone = made(images)
    for shift in (1, 3):
        moved = made(np.roll(images, shift, axis=0))
        if not np.array_equal(np.roll(moved, -shift, axis=0), alone):
            return 'a record at another place of a batch gets other features'
    strange = np.sign(draws.normal(size=images.shape)).astype(np.float32)
    for kept in (slice(0, None, 2), slice(1, None, 2), slice(0, rows // 2)):
        others = strange.copy()
        others[kept] = images[kept]
        if not np.array_equal(made(others)[kept], alone[kept]):
            return 'the features of a record depend on the others beside it'
    return None
