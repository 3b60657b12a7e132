"""Gives random values to the variables that a graph reads, for a while.

A variable that is zero at first, like the last kernel of many networks, hides what lies before it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import resource_variable_ops

# Random weights, round by round: how far and in which direction single numbers and vectors are
# moved, and how far integers are moved (kernels get the same law in each round). A variance that
# becomes negative shows nothing, so only one round needs finite results.
ROUNDS = ((0.1, 'any', 0), (1.0, 'up', 1), (1.0, 'down', 0), (8.0, 'any', 1_000_003))


def handles_of(graph: tf.Graph) -> list[tf.Tensor]:
    """The handle of every variable that a graph reads, on the replica it was traced for.

    Some ops read a variable without naming it in the graph; a handle shows them all.
    """
    resources = [outer for outer, _ in graph.captures if outer.dtype == tf.resource]
    return [handle for handle in resources if _dtype_of(handle) is not None]


def _dtype_of(handle) -> tf.DType | None:
    """The type of the variable behind a handle; None for a table or another resource."""
    data = resource_variable_ops.get_eager_safe_handle_data(handle)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    return tf.dtypes.as_dtype(data.shape_and_type[0].dtype)


@contextlib.contextmanager
def random_weights(
    handles: Sequence[tf.Tensor], number: int, integers: bool = True
) -> Iterator[bool]:
    """Gives variables random values, and afterwards the values they had, to the last bit.

    Args:
      handles: of variables of any type.
      number: of the round, from 1, see `ROUNDS`.
      integers: whether integers and booleans get other values too.

    Yields:
      Whether an integer or boolean has another value.
    """
    draws = np.random.default_rng(number)
    has_moved_integers = False
    with contextlib.ExitStack() as restored:
        for handle in handles:
            dtype = _dtype_of(handle)
            before = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype).numpy()
            if dtype.is_floating or dtype.is_complex:
                new = _random_floats(before, number, draws)
            elif integers and (dtype.is_integer or dtype.is_bool):
                new = _other_integers(before, number)
                has_moved_integers |= not np.array_equal(new, before)
            else:
                continue
            # Registered before the change, so that all are restored even if one of them raises.
            restored.callback(_assign, handle, before, dtype)
            _assign(handle, new, dtype)
        yield has_moved_integers


@contextlib.contextmanager
def all_layers_shown(compute: Any, images: tf.Tensor) -> Iterator[None]:
    """Gives the variables of a function random values with which its results are finite.

    Args:
      compute: a `tf.function` of the images.
      images: float32 [n, ...].

    Yields:
      None. If no round has finite results, the variables keep the values they had.
    """
    handles = handles_of(compute.get_concrete_function(images).graph)
    for number in range(1, 1 + len(ROUNDS)):
        with random_weights(handles, number, integers=False):
            if np.all(np.isfinite(compute(images).numpy())):
                yield
                return
    yield


def _random_floats(before: np.ndarray, number: int, draws: np.random.Generator) -> np.ndarray:
    distance, direction, _ = ROUNDS[number - 1]
    noise = draws.normal(size=before.shape)
    if before.ndim > 1:
        return noise / math.sqrt(math.prod(before.shape[:-1]))
    # At least half the distance: a factor of a difference must not be small by chance.
    lengths = distance * (0.5 + np.abs(noise))
    signs = {'up': 1.0, 'down': -1.0, 'any': np.where(noise < 0, -1.0, 1.0)}[direction]
    return before + signs * lengths


def _other_integers(before: np.ndarray, number: int) -> np.ndarray:
    moved_by = ROUNDS[number - 1][-1]
    if before.dtype == bool:
        return before ^ bool(moved_by)
    return before + np.asarray(moved_by).astype(before.dtype)


def _assign(handle: tf.Tensor, value: np.ndarray, dtype: tf.DType) -> None:
    value = tf.constant(np.asarray(value).astype(dtype.as_numpy_dtype), dtype)
    tf.raw_ops.AssignVariableOp(resource=handle, value=value)
