"""Tries whether the loss of a record is its own, before a real record is touched.

Clipping bounds what one record does to the sum only if its loss depends on that record, the
variables, and randomness of its own, and on nothing else. Nothing here proves that. The loss is
traced and its graph is searched for what it must not hold. Then it is tried on made-up records:
alone, in batches of several sizes and in several places, and in a crowd as large as the batches of
the run. All variables that the loss reads, also frozen ones and those of no layer, have their own
values first and then random ones, so that a part that is zero at first hides nothing.

For single records the loss and the whole gradient are compared, before anything is clipped: a
difference may vanish in a clipped sum. For a crowd the sums are compared: there many small
differences add up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy import grid, loss_graph
from tf_efsgd.privacy.random_weights import ROUNDS, handles_of, random_weights

# The number of made-up records. Three are in use at a time, and three others confirm what they
# show: one may lie so close to the kink of an activation that a batch moves it across.
NUM_RECORDS = 6
_IN_USE = 3
# Batches of these records, and which rows of each are compared.
_BATCHES = (
    ((0,), (0,)),
    ((0, 1), (0, 1)),
    ((1, 0, 2), (0, 1, 2)),
    ((0, 0, 1, 2), (1, 3)),
    ((2, 1, 0, 2, 1, 1, 0, 2, 0, 1, 1, 2, 0, 0, 2, 1, 0), (0, 16)),
)
# The batches of `why_not_alike`, of two sizes.
_TWO_BATCHES = (((0, 1), (0, 1)), ((1, 0, 2), (0, 2)))

# Rounding differs from batch to batch by about 1e-6 of a gradient.
_RELATIVE = 1e-3
_OF_WHOLE_GRADIENT = 1e-5
_OF_LOSS = 1e-6
# How far two more records may move what the others of a crowd add to the sum, in clipping norms: an
# eighth of the allowance in the account, which rounding in clipping and adding up needs too. The
# networks of this package are at about 1e-6.
_OF_SUM = grid.SLACK / 8
# The norms of so many records of a crowd say what a gradient's usual norm is.
_OF_USUAL_NORM = 4

# Every crowd is tried in one round only, because each costs as much as steps of the run.
# The weights of a crowd's gradients, crowd by crowd: (factor of 1 / their usual norm, whether signs
# are random). Many small differences may have the same sign, or differ in it.
_SIGNED = ((1.0, False), (1.0, True))
# Clipping to a far shorter norm, as may happen to all gradients, and to the usual one.
_CLIPPED = ((1e3, False), (1.0, False))

_NOT_FINITE = 'it is not finite on random records, so that nothing can be said of it'

# The number of the row that is compared.
_ROW = tf.TensorSpec([], tf.int32)

LossesOf = Callable[[Any], tf.Tensor]


def why_not_alone(
    losses_of: LossesOf,
    variables: Sequence[tf.Variable],
    records: Any,
    run_eagerly: bool = False,
    crowds: Sequence[Any] = (),
) -> str | None:
    """Says why the loss of a record is not its own; None if nothing shows that.

    Call it outside of replica contexts. It leaves all variables as they were.

    Args:
      losses_of: maps records [batch, ...], as `records`, to the WHOLE loss of each, float32
        [batch].
      variables: what the private step updates, float32.
      records: made up, a tensor or structure of tensors [n, ...], all n different: `NUM_RECORDS`,
        at least 3.
      run_eagerly: whether to try it without a graph, because it will run without one.
      crowds: made up like `records`, [n, ...] each, n at least 6 and as large as a batch of the run
        may be. What the others add to a sum must not depend on the last four: put unusual records
        there.

    Returns:
      What is wrong, as the rest of a sentence.
    """
    trial = _Trial(losses_of, variables, records, run_eagerly)
    found = _once(lambda: loss_graph.why_refused(trial.graph))
    return found or _by_trying(
        _once(lambda: handles_of(trial.graph)),
        lambda first: _why_different(trial.alone(first), trial.row, first, _BATCHES),
        lambda i: _why_sums_move(trial.weighted_sum, trial.gradient_norm, crowds[i:], _SIGNED[i:]),
    )


def why_not_alike(
    clipped_sum: Callable[
        [Any, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]
    ],
    losses_of: LossesOf,
    variables: Sequence[tf.Variable],
    records: Any,
    crowds: Sequence[Any] = (),
) -> str | None:
    """Says why gradients that are made another way are not those of the losses.

    Args:
      clipped_sum: maps (records [batch, ...], weights, lengths) to what `layer_norms.clipped_sum`
        gives. It is traced for batches of any size.
      losses_of: as in `why_not_alone`.
      variables: what the private step updates.
      records: made up, as in `why_not_alone`.
      crowds: made up, as in `why_not_alone`.

    Returns:
      What is wrong, as the rest of a sentence; None if nothing shows a difference.
    """
    trial = _Trial(losses_of, variables, records, run_eagerly=True)
    other = trial.function(
        lambda batch, limits: clipped_sum(batch, *tf.unstack(limits)),
        is_eager=False,
        second=tf.TensorSpec([2, None], tf.float32),
    )

    # It is traced first, because its message about a layer is clearer than the layer's own.
    _once(other.compiled.get_concrete_function)

    def row_of(batch, row):
        limits = [np.eye(len(batch))[row], np.full(len(batch), np.inf)]
        norms, exact, gradients = other(trial.take(batch), tf.constant(limits, tf.float32))
        # Where positions cancel, clipping uses the norm of the gradient itself.
        norm = float(norms[row]) if exact[row] else None
        return _Found(None, norm, _arrays(gradients))

    def sum_of(crowd, weights):
        limits = tf.constant([weights, np.ones(len(weights))], tf.float32)
        return _arrays(other(crowd, limits)[-1])

    return _by_trying(
        _once(lambda: handles_of(other.compiled.get_concrete_function().graph)),
        lambda first: _why_different(trial.alone(first), row_of, first, _TWO_BATCHES),
        lambda i: _why_sums_move(sum_of, trial.gradient_norm, crowds[i:], _CLIPPED[i:]),
    )


class _Found:
    """What was found of one row of a batch.

    Args:
      loss: of the row; None where it is not known.
      norm: of the gradient; None computes it from `gradients`.
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


class _OfAnySize:
    """A function of (records, second) whose graph does not know how many records there are.

    Args:
      compiled: the `tf.function`; it takes the records as a flat list of tensors.
    """

    def __init__(self, compiled):
        self.compiled = compiled

    def __call__(self, records, second):
        return self.compiled(tf.nest.flatten(records), second)


class _Trial:
    """The plain gradients of a loss, row by row."""

    def __init__(self, losses_of, variables, records, run_eagerly):
        self._losses_of = losses_of
        self._variables = list(variables)
        self._records = tf.nest.map_structure(tf.convert_to_tensor, records)
        self._number = int(tf.nest.flatten(self._records)[0].shape[0])
        self._traced = self.function(self._loss_and_gradient, is_eager=False)
        self._plain = self._loss_and_gradient if run_eagerly else self._traced
        self._weighted = self.function(
            self._weighted_gradient, run_eagerly, second=tf.TensorSpec([None], tf.float32)
        )

    def function(self, body, is_eager: bool, second=_ROW):
        """Makes `body(records, second)` a function whose graph fits batches of any size."""
        if is_eager:
            return body
        flat = tf.nest.flatten(self._records)
        compiled = tf.function(
            lambda parts, second: body(tf.nest.pack_sequence_as(self._records, parts), second),
            input_signature=[
                [tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in flat],
                second,
            ],
            autograph=False,
        )

        return _OfAnySize(compiled)

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

    def _weighted_gradient(self, records, weights):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._variables)
            total = tf.tensordot(weights, self._losses_of(records), 1)
        gradients = tape.gradient(total, self._variables, unconnected_gradients='zero')
        return [tf.convert_to_tensor(g) for g in gradients]

    def weighted_sum(self, records, weights: np.ndarray) -> list[np.ndarray]:
        """The weighted sum of the gradients of the losses of a batch."""
        return _arrays(self._weighted(records, tf.constant(weights, tf.float32)))

    def gradient_norm(self, record) -> float:
        """The norm of the gradient of a record in a batch of its own."""
        return _norm(_arrays(self._plain(record, tf.constant(0))[-1]))

    @property
    def graph(self) -> tf.Graph:
        """The graph of one row's loss and gradient."""
        return self._traced.compiled.get_concrete_function().graph

    def take(self, batch: Sequence[int]):
        """These records, by their numbers."""
        numbers = [number % self._number for number in batch]
        return tf.nest.map_structure(lambda part: tf.gather(part, numbers), self._records)

    def row(self, batch: Sequence[int], row: int) -> _Found:
        """What is found of one row of a batch of these records."""
        count, loss, gradients = self._plain(self.take(batch), tf.constant(row))
        if int(count) != len(batch):
            raise _Refused(f'there are {int(count)} losses for {len(batch)} records')
        return _Found(float(loss), None, _arrays(gradients))

    def alone(self, first: int) -> list[_Found]:
        """What is found of the records in use, each in a batch of its own."""
        return [self.row([first + i], 0) for i in range(_IN_USE)]


class _Refused(Exception):
    """The loss itself says what is wrong."""


def _by_trying(
    handles: Sequence[tf.Tensor],
    why_different: Callable[[int], str | None],
    why_sums_move: Callable[[int], str | None],
) -> str | None:
    """Tries with the variables as they are, in round 0, and then with random values."""

    def rows():
        first = why_different(0)
        # A difference counts only if other records show it too.
        return first and (why_different(_IN_USE) if first != _NOT_FINITE else first)

    reason = _once(rows) or _once(lambda: why_sums_move(0))
    if reason:
        return reason
    is_finite = False
    for number in range(1, 1 + len(ROUNDS)):

        def attempt(number=number):
            return rows() or why_sums_move(number)

        reason = _in_round(number, handles, attempt)
        if reason and reason != _NOT_FINITE:
            return reason
        is_finite |= reason is None
    return None if is_finite else _NOT_FINITE


def _in_round(number, handles, function):
    with random_weights(handles, number) as moved_integers:
        try:
            return _once(function)
        except tf.errors.OpError:
            if not moved_integers:
                raise
    # An integer variable may be an index into a table, and the random value out of its range.
    with random_weights(handles, number, integers=False):
        return _once(function)


def _once(function):
    """Runs it once, in a replica context, where variables have a value."""
    results: list[Any] = []

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
        return _NOT_FINITE
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


def _why_sums_move(sum_of, norm_of, crowds, weights) -> str | None:
    """Says whether records move what the others of the first crowd add to a sum."""
    for crowd, (factor, has_signs) in list(zip(crowds, weights))[:1]:
        # Two pairs of records come and go: what one pair shows, the other must show too.
        first, second = (
            functools.partial(_why_sum_moves, sum_of, norm_of, crowd, factor, has_signs, pair)
            for pair in (0, 1)
        )
        reason = first()
        return reason and (second() if reason != _NOT_FINITE else reason)
    return None


def _why_sum_moves(sum_of, norm_of, crowd, factor, has_signs, pair) -> str | None:
    others = np.arange(int(tf.nest.flatten(crowd)[0].shape[0]) - 4)
    first, last = len(others) + 2 * pair, len(others) + 2 * pair + 1

    def take(numbers):
        return tf.nest.map_structure(lambda part: tf.gather(part, numbers), crowd)

    usual = max(norm_of(take([number])) for number in others[:_OF_USUAL_NORM])
    if not math.isfinite(usual):
        return _NOT_FINITE
    if not usual:  # Nothing is learned, so nothing moves.
        return None
    signs = np.random.default_rng(0).choice([-1.0, 1.0] if has_signs else [1.0], len(others))
    weights = signs * factor / usual
    without = sum_of(take(others), weights)
    # The two records themselves have weight 0.
    among = sum_of(take([first, *others, last]), np.pad(weights, 1))
    moved = _norm([a - b for a, b in zip(among, without)])
    if moved <= _OF_SUM:
        return None
    return (
        f'two records more move what {len(others)} others add to the sum by {moved:.3g} clipping '
        'norms'
    )


def _norm(gradients) -> float:
    return math.hypot(*[float(np.linalg.norm(gradient)) for gradient in gradients])
