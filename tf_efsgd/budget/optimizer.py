"""Epsilon of a model of one's own that an optimizer of ours trained. No TensorFlow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import dp_accounting

from tf_efsgd.privacy import accounting, grid


def epsilon(
    optimizer: Any,
    *,
    dataset_size: int,
    target_delta: float,
    steps: int | None = None,
    variables: Sequence[Any] | None = None,
) -> float:
    """The epsilon of training with an error-feedback optimizer, at a delta; it takes seconds.

    It holds if every batch was a Poisson sample (`tf_efsgd.poisson_batches` with the same
    `expected_batch_size` and `dataset_size`), the number of steps was fixed in advance, and the
    loss of a record is its own (docs/optimizer.md says what breaks that). Neighbours: one data set
    has one record more.

    Args:
      optimizer: made by `make_error_feedback_optimizer_class`, with `expected_batch_size`.
      dataset_size: declared number of records, N.
      target_delta: delta of the guarantee, in (0, 1), below 1 / N.
      steps: how many steps, at least those that the optimizer has made; None: as many as those.
      variables: all that a step updates; needed before the first step, to count them.

    Returns:
      An upper bound, infinite where there is none: without noise, with error_feedback='hidden', or
      where it is too large to be proven for noise that is drawn with 128 bits.

    Raises:
      ValueError: if a number is out of range, steps are fewer than were made, nothing says how many
        variables there are, or the optimizer has no `expected_batch_size`.
    """
    made = int(optimizer.iterations)
    steps = made if steps is None else steps
    _check(optimizer, dataset_size, target_delta, steps, made, variables)
    event = optimizer.dp_event if variables is None else optimizer.dp_event_of(variables)
    if isinstance(event, dp_accounting.NonPrivateDpEvent):
        return math.inf
    probability = accounting.sampling_probability(optimizer.expected_batch_size, dataset_size)
    found = accounting.compute_epsilon(
        dp_accounting.PoissonSampledDpEvent(probability, event),
        steps,
        grid.accounted_delta(target_delta),
    )
    parameters = optimizer.counted_parameters
    if variables is not None:
        parameters = max(parameters, sum(math.prod(v.shape) for v in variables))
    draws = steps * optimizer.mechanism.coordinates(parameters)
    is_proven = grid.is_negligible(found.smallest_bound, target_delta, draws)
    return found.headline if is_proven else math.inf


def _check(optimizer, dataset_size, target_delta, steps, made, variables) -> None:
    if optimizer.expected_batch_size is None:
        raise ValueError(
            'The optimizer has no expected_batch_size: it divides by the size of each batch, which '
            'is private, and no epsilon holds. Make it with expected_batch_size=...'
        )
    if not 0 < target_delta < 1:
        raise ValueError(f'target_delta must be in (0, 1). Received: {target_delta}.')
    if steps < made:
        raise ValueError(
            f'steps must be at least the {made} that the optimizer has made. Received: {steps}.'
        )
    if variables is None and not made:
        raise ValueError(
            'Before the first step nothing says how many parameters a step updates: give '
            'variables=model.trainable_variables. Received: variables=None.'
        )
    if target_delta >= 1 / dataset_size:
        warnings.warn(
            'A mechanism that gives one whole record away would fulfil a guarantee with a delta of '
            f'1 / dataset_size or more. Received: target_delta={target_delta:g}, '
            f'dataset_size={dataset_size}.',
            stacklevel=3,
        )
