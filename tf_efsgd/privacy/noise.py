"""The only file that draws DP noise and whatever else a private step must draw in secret.

Formal guarantees:
  - Noise comes from Philox with an explicit 64-bit key from the operating system; `--seed` and
    TensorFlow's global seeds play no part in it.
  - No two draws under one key share a counter: the high word of the 128-bit counter names (step,
    purpose, variable), the low word counts inside one draw.
  - A key lives in one process and its step counter only ever grows: nothing here is saved or
    restored, so a step that is run again after a crash gets fresh noise. Taking a step is atomic:
    no two threads get the same one.
  - DP noise consists of integers with exactly the law that `grid` proves, from 128 uniform bits for
    each of the three parts of a number. The last 64 bits are drawn only where the first 64 do not
    decide, about once in 10^15 draws. No floating-point number takes part.
  - The random inputs of records (`normals_of_records`) are secret, used once, and independent from
    record to record, whatever the split of a batch over replicas and microbatches.

Philox is not a cryptographic generator: the guarantee is computational. `SecureNoise` takes every
bit from the operating system's generator instead.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy import grid

# The purposes of draws: each has counters of its own within a step.
CLIPPED_GRAD_SUM = 0
RESIDUAL_GRAD_SUM = 1
INPUTS_OF_RECORDS = 2
# Where a draw's first words do not decide, its second ones are drawn at its purpose plus this.
_SECOND_WORDS = 8

# Bits of the counter's high word: step | purpose | variable.
VARIABLE_BITS = 20
PURPOSE_BITS = 4
STEP_BITS = 64 - PURPOSE_BITS - VARIABLE_BITS

# Bits of the low word where every replica draws for itself: replica (16) | block of four (48).
BLOCK_BITS = 48

_PHILOX = 1
# The words of a generator's state: two of the counter and the key. One step skips 2^8 counts.
_PHILOX_STATE = 3
_SKIPPED_BITS = 8
_BLOCK = 4
# How many normals are added up for one random input of a record.
_NORMALS = 4
# A number on the grid beyond this would leave int64; no clipped sum comes near it.
_LARGEST_INTEGER = 2.0**62

# The randomness of one step, an argument of the `tf.function` that uses it: {'key': uint64 [1],
# 'step': uint64 []}, or {'draws': per purpose and variable int64, as `integers` gives them}.
StepNoise = Mapping[str, Any]


class NoiseKey:
    """A Philox key from the operating system, and the steps already drawn under it.

    Hand `next()` to a `tf.function` as an argument: a tensor that a function captures becomes a
    constant of its graph, and graphs are written to disk. The object itself refuses to be pickled
    or copied, because a copy would repeat the noise.

    Args:
      key: for tests only: a fixed key, an integer in [0, 2^64). None draws a fresh one.
    """

    def __init__(self, key: int | None = None):
        value = secrets.randbits(64) if key is None else key
        self._key = tf.constant([value], tf.uint64)
        self._next_step = 0
        self._lock = threading.Lock()
        self._process = os.getpid()

    @property
    def key(self) -> tf.Tensor:
        """The key, uint64 [1]."""
        return self._key

    def next(self, shapes: Sequence[tf.TensorShape] = ()) -> StepNoise:
        """Takes a step that this key has not used yet.

        Args:
          shapes: ignored; `SecureNoise` needs them.

        Returns:
          {'key': uint64 [1], 'step': uint64 []}.

        Raises:
          RuntimeError: in another process than the one that made the key.
          OverflowError: after 2^40 steps.
        """
        del shapes
        if self._process != os.getpid():
            raise RuntimeError('A NoiseKey belongs to one process: a fork would repeat the noise.')
        with self._lock:  # Two threads would read the same number.
            taken = self._next_step
            self._next_step = taken + 1
        if taken >= 2**STEP_BITS:
            raise OverflowError('This noise key has no unused steps left: make a new one.')
        return {'key': self._key, 'step': tf.constant(taken, tf.uint64)}

    def __repr__(self) -> str:
        return '<NoiseKey: secret>'

    def __reduce__(self):
        raise TypeError('A NoiseKey is never pickled or copied: a copy would repeat the noise.')


class SecureNoise:
    """Noise whose every bit comes from the operating system's generator, step by step."""

    def next(self, shapes: Sequence[tf.TensorShape]) -> StepNoise:
        """Draws one step's noise.

        Args:
          shapes: of the variables that the step updates, in their order.

        Returns:
          {'draws': [purpose][variable] int64 `shape`}.
        """
        purposes = (CLIPPED_GRAD_SUM, RESIDUAL_GRAD_SUM)
        return {'draws': [[_secure_integers(shape) for shape in shapes] for _ in purposes]}


def _secure_integers(shape: tf.TensorShape) -> tf.Tensor:
    """Draws what `integers` draws, from the operating system's bits and outside any graph."""
    size = int(np.prod(shape, dtype=np.int64))

    def words():
        bits = np.frombuffer(os.urandom(8 * len(grid.SCALES) * size), np.uint64)
        return tf.constant(bits.reshape(len(grid.SCALES), size))

    return tf.reshape(_discrete_gaussian(words(), words), shape)


def _secure_normals(shape: tf.TensorShape) -> np.ndarray:
    """Standard normals, float64 `shape`: Box-Muller on 53 random bits, four of them summed."""
    size = int(np.prod(shape, dtype=np.int64))
    bits = np.frombuffer(os.urandom(2 * _NORMALS * size * 8), np.uint64).reshape(2, _NORMALS, size)
    uniform = ((bits >> np.uint64(11)) + 1.0) * 2.0**-53  # in (0, 1]
    normal = np.sqrt(-2.0 * np.log(uniform[0])) * np.cos(2.0 * np.pi * uniform[1])
    return normal.sum(axis=0).reshape(shape) / _NORMALS**0.5


class NoiseKeyVariables:
    """A key and its step counter in variables, for callers that cannot pass arguments.

    Keras' own training function takes an iterator and nothing else. A graph holds a variable's
    handle, not its value, and nothing tracks these two variables, so no checkpoint or export has
    them. Make the object in the scope of the strategy that will use it.
    """

    def __init__(self):
        # int64, as in tf.random.Generator: GPUs lack some uint64 kernels. The counter has the form
        # of that generator's state, because its op takes a step and counts it under one lock.
        # Reading a variable and then adding to it could give two threads the same step.
        self._key, self._step = (
            tf.Variable(
                initial,
                trainable=False,
                name=name,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for name, initial in (
                ('secret', tf.bitcast(NoiseKey().next()['key'], tf.int64)),
                ('secret_step', tf.zeros([_PHILOX_STATE], tf.int64)),
            )
        )

    def next(self) -> StepNoise:
        """Takes an unused step, as `NoiseKey.next` does; it is the same on every replica.

        Raises:
          ValueError: under a strategy of several replicas, if this was not made in its scope: each
            replica would count for itself and add a noise of its own.
        """
        strategy = tf.distribute.get_strategy()
        if strategy.num_replicas_in_sync > 1 and not strategy.extended.variable_created_in_scope(
            self._step
        ):
            raise ValueError(
                'The optimizer was made outside the scope of the strategy that it runs under, so '
                'every replica would add a noise of its own. Make it inside '
                '`with strategy.scope():`.'
            )
        # In a replica context the handle is that of the replica's own copy; all count alike.
        state = tf.raw_ops.RngReadAndSkip(
            resource=self._step.handle,
            alg=tf.constant(_PHILOX),
            delta=tf.constant(1, tf.uint64),
        )
        step = tf.bitwise.right_shift(
            tf.bitcast(state[0], tf.uint64), tf.constant(_SKIPPED_BITS, tf.uint64)
        )
        return {'key': tf.bitcast(tf.identity(self._key), tf.uint64), 'step': step}

    def __repr__(self) -> str:
        return '<NoiseKeyVariables: secret>'

    def __reduce__(self):
        raise TypeError('A noise key is never pickled or copied: a copy would repeat the noise.')


def counter(step: tf.Tensor, purpose: int, variable: int) -> tf.Tensor:
    """The Philox counter at which the draw of (step, purpose, variable) starts.

    Args:
      step: uint64 [], in [0, 2^40).
      purpose: in [0, 2^4), e.g. `CLIPPED_GRAD_SUM`.
      variable: position in the update of the variable, or of the first of those drawn together, in
        [0, 2^20).

    Returns:
      uint64 [2], low word first. Draws advance the low word, one per four numbers, so a variable
      may have 2^64 numbers.

    Raises:
      ValueError: if `purpose` or `variable` is out of range.
    """
    if not (0 <= purpose < 2**PURPOSE_BITS and 0 <= variable < 2**VARIABLE_BITS):
        raise ValueError(
            f'purpose must be below 2^{PURPOSE_BITS} and variable below 2^{VARIABLE_BITS}. '
            f'Received: purpose={purpose}, variable={variable}.'
        )
    within_step = tf.constant((purpose << VARIABLE_BITS) | variable, tf.uint64)
    high = tf.bitwise.left_shift(
        tf.cast(step, tf.uint64), tf.constant(PURPOSE_BITS + VARIABLE_BITS, tf.uint64)
    )
    return tf.stack([tf.zeros([], tf.uint64), tf.bitwise.bitwise_or(high, within_step)])


def integers(
    shape: tf.TensorShape | list[int], *, step_noise: StepNoise, purpose: int, variable: int
) -> tf.Tensor:
    """One draw of the noise on the grid: the same arguments give the same integers anywhere.

    Args:
      shape: static shape of the draw.
      step_noise: of this step, from `next` of a key or of a `SecureNoise`; never used twice.
      purpose: in [0, 8), see `counter`.
      variable: see `counter`.

    Returns:
      int64 `shape`, in steps of the grid: discrete Gaussians of standard deviation `grid.STDDEV`.
    """
    if 'draws' in step_noise:
        return step_noise['draws'][purpose][variable]
    shape = tf.TensorShape(shape).as_list()

    def words(of_purpose):
        return tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[len(grid.SCALES), int(np.prod(shape, dtype=np.int64))],
            key=step_noise['key'],
            counter=counter(step_noise['step'], of_purpose, variable),
            alg=_PHILOX,
            dtype=tf.uint64,
        )

    drawn = _discrete_gaussian(words(purpose), lambda: words(purpose + _SECOND_WORDS))
    return tf.reshape(drawn, shape)


def _discrete_gaussian(words: tf.Tensor, second_words: Callable[[], tf.Tensor]) -> tf.Tensor:
    """Turns uniform bits into integers with the law of `grid`.

    Args:
      words: uint64 [3, size], uniform.
      second_words: draws as many independent words; called only if one of them is needed.

    Returns:
      int64 [size].
    """
    thresholds, second_thresholds, others = grid.alias_table()
    column = tf.cast(
        tf.bitwise.right_shift(words, tf.constant(grid.FIRST_BITS, tf.uint64)), tf.int32
    )
    first = tf.bitwise.bitwise_and(words, tf.constant(2**grid.FIRST_BITS - 1, tf.uint64))
    first = tf.bitcast(first, tf.int64)
    threshold = tf.gather(tf.constant(thresholds), column)
    keeps = first < threshold
    undecided = tf.equal(first, threshold)

    def decided():
        second = tf.gather(tf.constant(second_thresholds), column)
        return tf.where(undecided, second_words() < second, keeps)

    keeps = tf.cond(tf.reduce_any(undecided), decided, lambda: keeps)
    parts = tf.where(keeps, column - grid.LARGEST_PART, tf.gather(tf.constant(others), column))
    # Its size is at most 1,664 (1 + 64 + 4,096), far within int32.
    total = tf.add_n([scale * part for scale, part in zip(grid.SCALES, tf.unstack(parts))])
    return tf.cast(total, tf.int64)


def to_grid(total: tf.Tensor, step: float) -> tf.Tensor:
    """Rounds a sum over all parts and replicas to the grid, once.

    Args:
      total: float64. PRIVATE.
      step: gamma > 0, see `grid.step`.

    Returns:
      int64, in steps. Rounding moves two sums at most 1 step further apart in each coordinate.
      What would leave int64 is cut off there, which moves no two sums further apart. NaN is 0.
    """
    total = tf.where(tf.math.is_nan(total), tf.zeros_like(total), total)
    scaled = tf.clip_by_value(total / step, -_LARGEST_INTEGER, _LARGEST_INTEGER)
    return tf.cast(tf.round(scaled), tf.int64)


def from_grid(noisy: tf.Tensor, step: float) -> tf.Tensor:
    """Turns released integers into float32 numbers: post-processing.

    Args:
      noisy: int64, from `to_grid`, with noise added.
      step: gamma > 0, see `grid.step`.
    """
    return tf.cast(tf.cast(noisy, tf.float64) * step, tf.float32)


def normals_of_records(
    num_rows: tf.Tensor,
    shape: tf.TensorShape | list[int],
    *,
    step_noise: StepNoise,
    variable: int,
    replica: tf.Tensor | int = 0,
    first_row: tf.Tensor | int = 0,
) -> tf.Tensor:
    """Draws the random inputs of a batch of records, one row each: standard normals, not DP noise.

    A record's loss may use its row, and the step keeps its sensitivity. Let r_i be the row of
    record i. Which row that is depends on the record's place in the batch, and so on which other
    records there are. But rows are independent of one another, of the sample and of the noise, so
    (r_i) has the same law as if each record had had a row of its own from the start, whatever
    other records there are. Suppose it has, in both of two neighbouring data sets. Then, for every
    value of all r_i, each record's clipped gradient is the same in both, the sums differ by that
    of one record, and the release obeys the bound of the Gaussian mechanism. So does the mixture
    over (r_i), since the divergences that define the bound are jointly convex. The mixture may be
    taken because the rows are fresh and SECRET: for somebody who knew them by their place, one more
    record would shift the rows of all records behind it, and each could move the sums by 2 C1.

    Args:
      num_rows: int32 [], records in this part of the batch.
      shape: static shape of one row.
      step_noise: of this step, as for `integers`.
      variable: position of this input among those of a record, see `counter`.
      replica: int32 [], which replica's records these are, in [0, 2^16).
      first_row: int32 [], how many of the replica's records came before in this step; a row does
        not depend on how the batch is split.

    Returns:
      float32 [num_rows, *shape].
    """
    shape = tf.TensorShape(shape).as_list()
    if 'draws' in step_noise:
        rows = tf.numpy_function(
            lambda count: _secure_normals([count, *shape]).astype(np.float32),
            [num_rows],
            tf.float32,
        )
        return tf.ensure_shape(rows, [None, *shape])
    size = int(np.prod(shape, dtype=np.int64))
    blocks = -(-size // _BLOCK)
    start = tf.cast(replica, tf.int64) * 2**BLOCK_BITS + tf.cast(first_row, tf.int64) * blocks
    high = counter(step_noise['step'], INPUTS_OF_RECORDS, variable)[1]
    rows = tf.raw_ops.StatelessRandomNormalV2(
        shape=tf.stack([num_rows, blocks * _BLOCK]),
        key=step_noise['key'],
        counter=tf.stack([tf.bitcast(start, tf.uint64), high]),
        alg=_PHILOX,
    )
    return tf.reshape(rows[:, :size], [-1, *shape])
