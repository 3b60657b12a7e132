"""The only file that draws DP noise, and what else of a private step must be secret.

Formal guarantees:
  - Noise comes from Philox with an explicit 64-bit key from the operating system; `--seed` and
    TensorFlow's global seeds have no part in it.
  - No two draws under one key share a counter: the high word of the 128-bit counter names (step,
    purpose, variable), the low word counts inside one draw.
  - A key lives in one process and its step counter only ever grows: nothing here is saved or
    restored, so a step that is run again after a crash gets fresh noise. To take a step is atomic:
    no two threads get the same one.
  - Every draw is the sum of four independent ones, scaled by 1/2: TensorFlow's Box-Muller stops at
    5.678 standard deviations, which alone would cost delta about 1e-3 in a long run (Holohan and
    Braghin 2021); the sum stops where the normal tail is below 1e-19.
  - The random inputs of records (`normals_of_records`) are secret, used once, and independent from
    record to record, whatever the split of a batch over replicas and microbatches.

Philox is not a cryptographic generator: the guarantee is computational. `SecureNoise` takes every
bit from the operating system's generator instead.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

# Purposes share a step's counters without meeting.
CLIPPED_GRAD_SUM = 0
RESIDUAL_GRAD_SUM = 1
INPUTS_OF_RECORDS = 2

# Bits of the counter's high word: step | purpose | variable.
VARIABLE_BITS = 20
PURPOSE_BITS = 4
STEP_BITS = 64 - PURPOSE_BITS - VARIABLE_BITS

# Bits of the low word where every replica draws for itself: replica (16) | block of four numbers.
BLOCK_BITS = 48

_PHILOX = 1
# A generator's state: counter (two words) and key. One step skips 2^8 counts of it.
_PHILOX_STATE = 3
_SKIPPED_BITS = 8
_DRAWS = 4
_BLOCK = 4

# The randomness of one step, an argument of the `tf.function` that uses it: {'key': uint64 [1],
# 'step': uint64 []}, or {'draws': per purpose and variable float32 standard normals}.
StepNoise = Mapping[str, object]


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
        """Takes a step that this key has not used yet: {'key': uint64 [1], 'step': uint64 []}."""
        del shapes
        if self._process != os.getpid():
            raise RuntimeError('A NoiseKey is of one process: a fork would repeat the noise.')
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
        """Draws one step's standard normals for variables of these shapes.

        Returns:
          {'draws': [purpose][variable] float32 `shape`}.
        """
        purposes = (CLIPPED_GRAD_SUM, RESIDUAL_GRAD_SUM)
        return {
            'draws': [
                [tf.constant(_secure_normals(shape), tf.float32) for shape in shapes]
                for _ in purposes
            ]
        }


def _secure_normals(shape: tf.TensorShape) -> np.ndarray:
    """Standard normals, float64 `shape`: Box-Muller on 53 random bits, four of them summed."""
    size = int(np.prod(shape, dtype=np.int64))
    bits = np.frombuffer(os.urandom(2 * _DRAWS * size * 8), np.uint64).reshape(2, _DRAWS, size)
    uniform = ((bits >> np.uint64(11)) + 1.0) * 2.0**-53  # in (0, 1]
    normal = np.sqrt(-2.0 * np.log(uniform[0])) * np.cos(2.0 * np.pi * uniform[1])
    return normal.sum(axis=0).reshape(shape) / _DRAWS**0.5


class NoiseKeyVariables:
    """A key and its step counter in variables, for callers that cannot pass arguments along.

    Keras' own training function takes an iterator and nothing else. A graph holds a variable's
    handle, not its value, and nothing tracks these two, so no checkpoint or export has them. Make
    it in the scope of the strategy that will use it.
    """

    def __init__(self):
        # int64, as in tf.random.Generator: GPUs lack some uint64 kernels. The counter has the form
        # of that generator's state, whose op takes a step and counts it under one lock: to read a
        # variable and then to add to it would give two threads the same step.
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
        """Takes an unused step, as `NoiseKey.next`, the same on every replica.

        Raises:
          ValueError: under a strategy of several replicas in whose scope this was not made: each
            replica would count for itself and add a noise of its own.
        """
        strategy = tf.distribute.get_strategy()
        if strategy.num_replicas_in_sync > 1 and not strategy.extended.variable_created_in_scope(
            self._step
        ):
            raise ValueError(
                'The optimizer was made outside the scope of the strategy it runs under, so every '
                'replica would add another noise. Make it inside `with strategy.scope():`.'
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
      variable: position of the variable in the update, in [0, 2^20).

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


def gaussian(
    shape: tf.TensorShape | list[int],
    stddev: tf.Tensor | float,
    *,
    step_noise: StepNoise,
    purpose: int,
    variable: int,
) -> tf.Tensor:
    """One draw of N(0, stddev^2 I), the same wherever it is computed with the same arguments.

    Args:
      shape: static shape of the draw.
      stddev: float32 [], >= 0.
      step_noise: of this step, from `next` of a key or of a `SecureNoise`; never used twice.
      purpose: see `counter`.
      variable: see `counter`.

    Returns:
      float32 `shape`.
    """
    if 'draws' in step_noise:
        return step_noise['draws'][purpose][variable] * stddev
    draws = tf.raw_ops.StatelessRandomNormalV2(
        shape=[_DRAWS, *shape],
        key=step_noise['key'],
        counter=counter(step_noise['step'], purpose, variable),
        alg=_PHILOX,
    )
    return tf.reduce_sum(draws, axis=0) * (stddev / _DRAWS**0.5)


def normals_of_records(
    num_rows: tf.Tensor,
    shape: tf.TensorShape | list[int],
    *,
    step_noise: StepNoise,
    variable: int,
    replica: tf.Tensor | int = 0,
    first_row: tf.Tensor | int = 0,
) -> tf.Tensor:
    """Random inputs of a batch of records, one row each: standard normals, no DP noise.

    A record's loss may use its row and keeps the sensitivity of a step. Let r_i be the row of
    record i. Which row that is depends on its place in the batch, and so on which other records
    there are; but rows are independent of one another, of the sample and of the noise, so (r_i)
    has the same law as if each record had a row of its own from the start, whoever else is there.
    Give it so to both of two neighbouring data sets. For every value of all r_i, each record's
    clipped gradient is then the same in both, the sums differ by that of one record, and the
    release obeys the bound of the Gaussian mechanism; so does its mean over (r_i), since the
    divergences that define the bound are jointly convex. The mean may be taken because the rows
    are fresh and SECRET: to one who knew them by their place, a record more would shift the rows
    of all records behind it, and move the sums by 2 C1 for each.

    Args:
      num_rows: int32 [], records in this part of the batch.
      shape: static shape of one row.
      step_noise: of this step, as for `gaussian`.
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
