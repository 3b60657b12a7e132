"""Whether the loss of a record is its own: found out by trying, before a record is touched.

Clipping bounds what one record does to the sum only if its loss depends on that record, the
variables, and randomness of its own. Nothing here proves that. The loss is traced and searched for
what it must not hold, and then tried on made-up records: alone and in batches of several sizes, in
several places, with the weights as they are and with random ones, so that a part that is zero at
first hides nothing.

What is compared is the loss and the whole gradient, before anything is clipped: in a clipped sum a
difference may be gone.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

# Of made-up records: three are in use at a time, and three others confirm what they show. One may
# lie so close to the kink of an activation that it falls on the other side of it in a batch.
NUM_RECORDS = 6
_IN_USE = 3
# Batches of these records, and the rows of each that are looked at.
_BATCHES = (
    ((0,), (0,)),
    ((0, 1), (0, 1)),
    ((1, 0, 2), (0, 1, 2)),
    ((0, 0, 1, 2), (1, 3)),
    ((2, 1, 0, 2, 1, 1, 0, 2, 0, 1, 1, 2, 0, 0, 2, 1, 0), (0, 16)),
)
# For `why_not_alike`: two sizes of batches.
_TWO_BATCHES = (((0, 1), (0, 1)), ((1, 0, 2), (0, 2)))

# Rounding differs from batch to batch by about 1e-6 of a gradient.
_RELATIVE = 1e-3
_OF_WHOLE_GRADIENT = 1e-5
_OF_LOSS = 1e-6

# Ops that TensorFlow calls stateful although they only read, hand on, or stop.
_HARMLESS = re.compile(
    r'VarHandleOp|ReadVariableOp|ResourceGather(Nd)?|Assert|NoOp|'
    r'(Stateful)?PartitionedCall|(Stateless)?(If|While|Case)|TensorArray\w*|'
    r'(Mutable)?HashTable(V2|OfTensorsV2)?|LookupTable(Find|Size)(V2)?|CudnnRNN(V2|V3)?'
)
_RANDOM = re.compile(r'Random|Rng|Multinomial|Truncated|Sampler|Stateful(Uniform|Standard)|Shuffle')
_WRITES = re.compile(r'Assign|ResourceApply|ResourceScatter|ResourceSparseApply|Insert|Import')

LossesOf = Callable[[Any], tf.Tensor]


def why_not_alone(
    losses_of: LossesOf,
    variables: Sequence[tf.Variable],
    records: Any,
    run_eagerly: bool = False,
) -> str | None:
    """Why the loss of a record is not its own; None if nothing shows that.

    Call it outside of replica contexts. It leaves the variables as they were.

    Args:
      losses_of: maps records [batch, ...], as `records`, to the WHOLE loss of each, float32
        [batch].
      variables: what the private step updates, float32.
      records: made up, a tensor or structure of tensors [n, ...], all n different: `NUM_RECORDS`,
        at least 3.
      run_eagerly: try it without a graph, as it will be run.

    Returns:
      What is wrong, as the rest of a sentence.
    """
    trial = _Trial(losses_of, variables, records, run_eagerly)
    found = _once(trial.refused_op)
    return found or _by_trying(
        variables,
        lambda first: _why_different(trial.alone(first), trial.row, first, _BATCHES),
    )


def why_not_alike(
    gradient_of_row: Callable[[Any, tf.Tensor], tuple[tf.Tensor, list[tf.Tensor]]],
    losses_of: LossesOf,
    variables: Sequence[tf.Variable],
    records: Any,
) -> str | None:
    """Why gradients that are made another way are not those of the losses; None if they are.

    Args:
      gradient_of_row: maps (records [batch, ...], int32 []) to the gradient of the loss of the
        record in that row, alone among the others: (its norm as it is used for clipping, float32
        []; per variable float32 [*variable.shape]). It is traced for batches of any size.
      losses_of: as in `why_not_alone`, as the next ones.
      variables: what the private step updates.
      records: made up.

    Returns:
      What is wrong, as the rest of a sentence.
    """
    trial = _Trial(losses_of, variables, records, run_eagerly=True)
    other = trial.function(gradient_of_row, is_eager=False)

    # First: what it says of a layer is more to the point than what the layer says.
    _once(other.compiled.get_concrete_function)

    def row_of(batch, row):
        norm, gradients = other(trial.take(batch), tf.constant(row))
        return _Found(None, float(norm), _arrays(gradients))

    return _by_trying(
        variables,
        lambda first: _why_different(trial.alone(first), row_of, first, _TWO_BATCHES),
    )


class _Found:
    """Of one row of a batch.

    Args:
      loss: None where it is not known.
      norm: of the gradient, None where that is to be computed.
      gradients: per variable float64.
    """

    def __init__(self, loss: float | None, norm: float | None, gradients: list[np.ndarray]):
        self.loss = loss
        self.gradients = gradients
        self.norms = [float(np.linalg.norm(g)) for g in gradients]
        self.norm = math.hypot(*self.norms) if norm is None else norm

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.norm) and (self.loss is None or math.isfinite(self.loss))


class _Trial:
    """The plain gradients of a loss, row by row."""

    def __init__(self, losses_of, variables, records, run_eagerly):
        self._losses_of = losses_of
        self._variables = list(variables)
        self._records = tf.nest.map_structure(tf.convert_to_tensor, records)
        self._number = int(tf.nest.flatten(self._records)[0].shape[0])
        self._traced = self.function(self._loss_and_gradient, is_eager=False)
        self._plain = self._loss_and_gradient if run_eagerly else self._traced

    def function(self, body, is_eager: bool):
        """`body(records, row)` for batches of any size, which its graph does not know."""
        if is_eager:
            return body
        flat = tf.nest.flatten(self._records)
        compiled = tf.function(
            lambda parts, row: body(tf.nest.pack_sequence_as(self._records, parts), row),
            input_signature=[
                [tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in flat],
                tf.TensorSpec([], tf.int32),
            ],
            autograph=False,
        )

        def call(records, row):
            return compiled(tf.nest.flatten(records), row)

        call.compiled = compiled
        return call

    def _loss_and_gradient(self, records, row):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._variables)
            losses = self._losses_of(records)
            if losses.shape.rank != 1:
                raise _Refused(
                    'it is not one number for every record, shape [batch], but of shape '
                    f'{losses.shape}'
                )
            loss = losses[row]
        gradients = tape.gradient(loss, self._variables, unconnected_gradients='zero')
        return tf.shape(losses)[0], loss, [tf.convert_to_tensor(g) for g in gradients]

    def take(self, batch: Sequence[int]):
        """These records, by their numbers."""
        numbers = [number % self._number for number in batch]
        return tf.nest.map_structure(lambda part: tf.gather(part, numbers), self._records)

    def row(self, batch: Sequence[int], row: int) -> _Found:
        """Of one row of a batch of these records."""
        count, loss, gradients = self._plain(self.take(batch), tf.constant(row))
        if int(count) != len(batch):
            raise _Refused(f'there are {int(count)} losses for {len(batch)} records')
        return _Found(float(loss), None, _arrays(gradients))

    def alone(self, first: int) -> list[_Found]:
        """Of the records that are in use, each in a batch of its own."""
        return [self.row([first + i], 0) for i in range(_IN_USE)]

    def refused_op(self) -> str | None:
        """What is in the graph of the loss that must not be there."""
        graph = self._traced.compiled.get_concrete_function().graph.as_graph_def()
        functions = [function.node_def for function in graph.library.function]
        for node in (node for nodes in [graph.node, *functions] for node in nodes):
            reason = _why_refused(node)
            if reason:
                return reason
        return None


class _Refused(Exception):
    """The loss itself says what is wrong."""


def _why_refused(node) -> str | None:
    definition = op_def_registry.get(node.op)
    if definition is None:  # A function: its nodes are looked at themselves.
        return None
    if _RANDOM.search(node.op):
        return (
            f'it draws random numbers of its own ({node.op} in {node.name!r}), which go by a '
            "record's place in the batch and not by the record; leave that layer out"
        )
    if 'PyFunc' in node.op:
        return f'it calls Python ({node.op} in {node.name!r}), which may do anything'
    if not definition.is_stateful or _HARMLESS.fullmatch(node.op):
        return None
    if _WRITES.search(node.op):
        return (
            f'it writes a variable ({node.op} in {node.name!r}), which keeps something of the '
            'records that no clipping bounds'
        )
    return f'it does something besides computing a number ({node.op} in {node.name!r})'


def _by_trying(variables, why_different: Callable[[int], str | None]) -> str | None:
    """Tries with the weights as they are, and with random ones."""

    def attempt():
        # A difference is one only if other records show it too.
        return why_different(0) and why_different(_IN_USE)

    for weights in (contextlib.nullcontext(), _random_weights(variables)):
        with weights:
            reason = _once(attempt)
        if reason:
            return reason
    return None


def _once(function):
    """Runs it in a replica context, where variables have a value, on one replica."""
    results = []

    def run():
        if not results:  # The replicas of a process take turns.
            results.append(_caught(function))

    tf.distribute.get_strategy().run(run)
    return results[0]


def _caught(function):
    try:
        return function()
    except _Refused as error:
        return str(error)


def _why_different(alone: list[_Found], row_of, first: int, batches) -> str | None:
    if not all(found.is_finite for found in alone):
        return 'it is not finite on random records, so that nothing can be said of it'
    for batch, rows in batches:
        for row in rows:
            found = row_of([first + i for i in batch], row)
            reason = _difference(found, alone[batch[row]], len(batch))
            if reason:
                return reason
    return None


def _difference(found: _Found, alone: _Found, size: int) -> str | None:
    among = f'in a batch of {size}' if size > 1 else 'when it is computed again'
    if found.loss is not None:
        if not abs(found.loss - alone.loss) <= _OF_LOSS + _RELATIVE * abs(alone.loss):
            return f'the loss of a record is {alone.loss:.4g} alone and {found.loss:.4g} {among}'
    slack = _OF_WHOLE_GRADIENT * alone.norm
    for one, other, norm in zip(found.gradients, alone.gradients, alone.norms):
        if not np.linalg.norm(one - other) <= slack + _RELATIVE * norm:
            return (
                f'the gradient of a record, of norm {alone.norm:.4g} alone, is another one {among},'
                f' of norm {math.hypot(*found.norms):.4g}'
            )
    if not abs(found.norm - alone.norm) <= _RELATIVE * alone.norm:
        return (
            f'the norm of the gradient of a record is {alone.norm:.4g} alone and is taken to be '
            f'{found.norm:.4g} {among}'
        )
    return None


def _arrays(gradients) -> list[np.ndarray]:
    return [np.asarray(gradient, np.float64) for gradient in gradients]


@contextlib.contextmanager
def _random_weights(variables: Sequence[tf.Variable]) -> Iterator[None]:
    """Gives the variables random values, and then back what they had, to the last bit.

    What is zero at first, as many a last kernel is, hides what lies before it.
    """
    draws = np.random.default_rng(0)
    before = [variable.numpy() for variable in variables]
    try:
        for variable, value in zip(variables, before):
            noise = draws.normal(size=value.shape)
            if value.ndim > 1:
                new = noise / math.sqrt(math.prod(value.shape[:-1]))
            else:
                new = value + 0.1 * noise
            variable.assign(new.astype(value.dtype))
        yield
    finally:
        for variable, value in zip(variables, before):
            variable.assign(value)
