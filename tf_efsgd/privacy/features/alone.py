"""Tries whether what is computed of a record depends on that record alone, to the last bit.

A release promises that a record moves its own numbers and nobody else's. Features that are summed
in another order at another place of a batch break that promise by rounding, and rounding adds up
over thousands of records. So every feature map is tried on this machine before it sees a record.

A matrix product takes several rows at once, 4 to 48 by processor, and sums those that are left over
in another order. So the parts of the records have a number of rows that leaves none over. Where
the trial finds that this is not enough, parts are smaller: in parts of one, a record is alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


class NotAlone(ValueError):
    """Features, computed on this machine, depend on more than the record itself."""


# How many records may be computed at a time, the first choice first.
ROWS = (96, 48, 24, 8, 1)


def choose_rows(
    function: Callable[[tf.Tensor], tf.Tensor],
    made_up: np.ndarray,
    choices: Sequence[int] = ROWS,
) -> int:
    """Chooses how many records to compute at a time, so that the result of each is its own.

    Args:
      function: from float32 [rows, ...] to [rows, ...], for any number of rows.
      made_up: public records, float32 [m, ...] in [-1, 1].
      choices: of rows, the first choice first.

    Returns:
      The first of these with which `why_not_alone` finds nothing.

    Raises:
      NotAlone: if there is none.
    """
    reason = None
    for rows in choices:
        reason = why_not_alone(function, made_up, rows)
        if reason is None:
            return rows
    raise NotAlone(reason)


def why_not_alone(
    function: Callable[[tf.Tensor], tf.Tensor], made_up: np.ndarray, rows: int
) -> str | None:
    """Tries a function of records on made-up ones, at other places and among other ones.

    Args:
      function: from float32 [rows, ...] to [rows, ...].
      made_up: public records, float32 [m, ...] in [-1, 1], e.g. photographs.
      rows: how many records the function gets at a time.

    Returns:
      Why a row's result is not its own; None if all of them are equal to the last bit.
    """
    draws = np.random.default_rng(0)
    images = np.resize(made_up, [rows, *made_up.shape[1:]]).astype(np.float32)
    images = np.clip(images + draws.normal(scale=0.05, size=images.shape), -1, 1)
    images = images.astype(np.float32)
    compute = tf.function(function, autograph=False)

    def made(of):
        return compute(tf.constant(of)).numpy()

    alone = made(images)
    for shift in (1, 3):
        moved = made(np.roll(images, shift, axis=0))
        if not np.array_equal(np.roll(moved, -shift, axis=0), alone):
            return 'a record gets other features at another place of a batch'
    strange = np.sign(draws.normal(size=images.shape)).astype(np.float32)
    for kept in (slice(0, None, 2), slice(1, None, 2), slice(0, rows // 2)):
        others = strange.copy()
        others[kept] = images[kept]
        if not np.array_equal(made(others)[kept], alone[kept]):
            return 'the features of a record depend on the others beside it'
    return None
