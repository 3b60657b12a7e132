"""Several replicas of a `tf.distribute` strategy: their sums, and each one's share of a step.

Formal guarantee: the result of a step is the same for any number of replicas, except for rounding.
Every one of a step's images, and every part of the records, is counted by exactly one replica.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf


def count() -> int:
    """How many replicas there are, in a replica context."""
    return tf.distribute.get_replica_context().num_replicas_in_sync


def all_reduce(values: Any) -> Any:
    """Sums over the replicas, in a replica context: one collective for all tensors of a type.

    Args:
      values: a structure of tensors, of the same shapes on every replica; no gradient may go
        through the sum.

    Returns:
      The sums in the same structure. With one replica the values themselves.
    """
    if count() == 1:
        return values
    flat = [tf.convert_to_tensor(value) for value in tf.nest.flatten(values)]
    sums = list(flat)
    for dtype in dict.fromkeys(tensor.dtype for tensor in flat):
        places = [i for i, tensor in enumerate(flat) if tensor.dtype == dtype]
        packed = tf.concat([tf.reshape(flat[i], [-1]) for i in places], axis=0)
        packed = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, packed)
        parts = tf.split(packed, [tf.size(flat[i]) for i in places])
        for i, part in zip(places, parts):
            sums[i] = tf.reshape(part, tf.shape(flat[i]))
    return tf.nest.pack_sequence_as(values, sums)


def mean(value: tf.Tensor) -> tf.Tensor:
    """The mean over the replicas, in a replica context."""
    return all_reduce(value) / count()


def scatter_update(variable: tf.Variable, indices: tf.Tensor, values: tf.Tensor) -> None:
    """Sets entries of a variable, in a replica context: of every replica's copy alike.

    Args:
      variable: made in the scope of the strategy.
      indices: as of `tf.Variable.scatter_nd_update`.
      values: likewise; the same on every replica, but for rounding. Those of the first one are
        taken, so that the copies never drift apart.
    """
    if not tf.distribute.has_strategy():
        variable.scatter_nd_update(indices, values)
        return

    def update(strategy, variable, *new):
        first = [strategy.experimental_local_results(value)[0] for value in new]
        strategy.extended.update(variable, lambda own, *of: own.scatter_nd_update(*of), args=first)

    tf.distribute.get_replica_context().merge_call(update, args=(variable, indices, values))


@dataclasses.dataclass(frozen=True)
class Share:
    """One replica's part of the images that all replicas make together in a step.

    Attributes:
      rows: int32 [m], which of the step's n images it makes; m is n / replicas, rounded up, the
        same everywhere.
      weights: float32 [m], 1, or 0 for an image that only fills up: on none at all TensorFlow's
        convolutions fail.
      total: int32 [], n.
    """

    rows: tf.Tensor
    weights: tf.Tensor
    total: tf.Tensor

    @classmethod
    def of(cls, total: tf.Tensor) -> Share | None:
        """This replica's share of `total` >= 1 images, in a replica context; None with one."""
        replicas = count()
        if replicas == 1:
            return None
        first = tf.distribute.get_replica_context().replica_id_in_sync_group
        rows = first + replicas * tf.range(-(-total // replicas))
        return cls(
            tf.minimum(rows, total - 1),
            tf.cast(rows < total, tf.float32),
            tf.convert_to_tensor(total),
        )


def own_rows(share: Share | None, values: tf.Tensor) -> tf.Tensor:
    """Takes the values of a share, [m, ...], from those of all images of a step, [n, ...]."""
    return values if share is None else tf.gather(values, share.rows)


def mean_over_images(share: Share | None, values: tf.Tensor) -> tf.Tensor:
    """What a share adds to the mean over all images of a step, [] from float32 [m]."""
    if share is None:
        return tf.reduce_mean(values)
    return tf.reduce_sum(share.weights * values) / tf.cast(share.total, tf.float32)


def map_parts(
    function: Callable[..., tf.Tensor],
    parts: Iterable[tuple[np.ndarray, ...]],
    made_up: tuple[np.ndarray, ...],
    strategy: tf.distribute.Strategy | None = None,
    tried: Callable[..., tf.Tensor] | None = None,
) -> Iterator[np.ndarray]:
    """Applies a function to every part, in order; the replicas take one part each at a time.

    Which device computes a part depends on how many records come before it. So all devices must
    give the same result for the same part, to the last bit; otherwise one more record would change
    the results of others. They are tried on a made-up part; if they differ, the first computes all.

    Args:
      function: from tensors to one tensor; it may not ask other replicas.
      parts: tuples of arrays, of the same shapes each.
      made_up: a public part, of these shapes.
      strategy: whose replicas in this process share the parts; None: one device has them all.
      tried: what must be the same on the made-up part, where `function` rounds it; None: what
        `function` makes.

    Yields:
      One array for each part.
    """
    is_alone = strategy is None or strategy.num_replicas_in_sync == 1
    replicas = 1 if is_alone else len(strategy.extended.worker_devices)
    run = _on_each_replica(function, strategy) if replicas > 1 else None
    trial = run if tried is None or run is None else _on_each_replica(tried, strategy)
    if run is None or not _agree(trial, made_up, replicas):
        for part in parts:
            yield function(*map(tf.constant, part)).numpy()
        return
    remaining = iter(parts)
    while taken := list(itertools.islice(remaining, replicas)):
        yield from run(taken)


def _on_each_replica(function, strategy) -> Callable[[list], list[np.ndarray]]:
    """Returns a function that gives each replica one part and returns their results.

    It takes as many parts as there are replicas, or fewer.
    """
    replicas = len(strategy.extended.worker_devices)
    compiled = tf.function(lambda *part: strategy.run(function, args=part), autograph=False)

    def hand_out(arrays):
        of_replicas = iter(arrays)
        return strategy.experimental_distribute_values_from_function(
            lambda _: tf.constant(next(of_replicas))
        )

    def run(parts):
        # A replica without a part computes the last one again; that result is not used.
        filled = parts + parts[-1:] * (replicas - len(parts))
        made = strategy.experimental_local_results(compiled(*map(hand_out, zip(*filled))))
        return [result.numpy() for result in made[: len(parts)]]

    return run


def _agree(run, made_up, replicas) -> bool:
    first, *others = run([made_up] * replicas)
    return all(first.tobytes() == other.tobytes() for other in others)
