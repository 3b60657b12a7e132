"""Pads the records of a step to parts of one size, so that each record is computed alike.

How many records a batch holds is private. If the networks saw all of them at once, that number
would decide how a matrix product is divided, and so the last bit of what a layer puts out for any
record; where a layer has a kink, that bit decides about a whole gradient. Moreover, XLA writes the
shapes that it compiles for to its logs. So there is ONE size, a public constant.

Formal guarantee: a row that is no record adds exactly nothing. Its loss is a constant by selection
(`tf.where`), so its gradient is zero. If a derivative behind it is not finite, the gradient is NaN,
and clipping counts that as zero, by selection too.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tf_efsgd.privacy.features import alone

# With this, all but one in a thousand batches fit into a part that is meant for a whole batch.
# More rows would cost time in every step.
_STANDARD_DEVIATIONS = 3.0
_MULTIPLE = 8


def padded_size(expected: float, largest: int | None = None) -> int:
    """How many rows a padded batch has; it depends on public numbers alone.

    Args:
      expected: mean number of records of a Poisson sample, > 0.
      largest: the largest number of records that come at a time; None: any number.

    Returns:
      The mean plus three standard deviations, rounded up to a multiple of 8; or `largest` if that
      is less; at least 1.
    """
    size = expected + _STANDARD_DEVIATIONS * math.sqrt(expected)
    size = _MULTIPLE * math.ceil(size / _MULTIPLE)
    return size if largest is None else min(size, largest)


def part_sizes(whole: int, largest: int | None = None, *, in_one: bool = False) -> list[int]:
    """How many rows a part may have, the first choice first; it depends on public numbers alone.

    Args:
      whole: rows for a whole batch, from `padded_size`.
      largest: the largest number of records that go through the networks at a time; None: any.
      in_one: whether the first choice has room for a whole batch, as suits a GPU.

    Returns:
      Numbers of rows to try, in this order: the smallest of `alone.ROWS` that suffices for a whole
      batch, or else the largest; then larger ones, then smaller ones. None is above `largest`, and
      1 is the last.
    """
    sizes = [rows for rows in alone.ROWS if largest is None or rows <= largest]
    if largest is not None and largest not in sizes and largest < alone.ROWS[0]:
        sizes.insert(0, largest)
    suffices = [rows for rows in sizes[:-1] if rows >= whole]
    sizes = [*reversed(suffices), *(rows for rows in sizes if rows not in suffices)]
    if in_one and whole > alone.ROWS[0]:
        in_rows = alone.ROWS[0] * -(-whole // alone.ROWS[0])
        sizes.insert(0, in_rows if largest is None else min(in_rows, largest))
    return sizes


def pad(records: Any, size: int) -> tuple[Any, tf.Tensor]:
    """Fills a batch up with rows of zeros.

    Args:
      records: a structure of tensors [n, ...], n <= `size`.
      size: how many rows the padded batch has.

    Returns:
      (the structure, its tensors [size, ...]; bool [size], whether a row is a record).
    """
    n = tf.shape(tf.nest.flatten(records)[0])[0]

    def fill(values):
        rest = [[0, 0]] * (values.shape.rank - 1)
        filled = tf.pad(values, [[0, size - n], *rest])
        return tf.ensure_shape(filled, [size, *values.shape[1:]])

    return tf.nest.map_structure(fill, records), tf.range(size) < n
