"""The epsilon of a user's own model that an error-feedback optimizer trained. No TensorFlow."""

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
    warm_start: Any = None,
) -> float:
    """The epsilon of training with an error-feedback optimizer, at a delta; takes seconds.

    It holds if every step used its own fresh Poisson sample (`tf_efsgd.poisson_batches` with the
    same `expected_batch_size` and `dataset_size`), if the number of steps was fixed in advance, and
    if the loss of a record depends on no other record (docs/optimizer.md says what breaks that).
    Steps count whether or not their result was kept: if weights were restored, or if another
    optimizer trained the same model before, let `steps` count every step that ever ran.
    Neighbouring data sets differ by one added or removed record.

    Args:
      optimizer: made by a class of `make_error_feedback_optimizer_class`, with
        `expected_batch_size`.
      dataset_size: declared number of records, N.
      target_delta: delta of the guarantee, in (0, 1); it should be below 1 / N.
      steps: number of steps, at least those that the optimizer has made; None means exactly those.
      variables: all variables that a step updates; needed before the first step, to count them.
      warm_start: if these steps came after warm starts on the same records, what
        `tf_efsgd.warm_start` returned, or a list of that; the result then includes their epsilon.

    Returns:
      An upper bound. It is infinite where none exists: without noise, with error_feedback='hidden',
      or if it is too large to be proven for noise that is drawn with 128 bits.

    Raises:
      ValueError: if a number is out of range, if there are fewer steps than the optimizer has made,
        if nothing says how many variables there are, or if the optimizer has no
        `expected_batch_size`.
    """
    made = int(optimizer.iterations)
    steps = made if steps is None else steps
    _check(optimizer, dataset_size, target_delta, steps, made, variables)
    event = optimizer.dp_event if variables is None else optimizer.dp_event_of(variables)
    starts = [] if warm_start is None else warm_start
    starts = list(starts) if isinstance(starts, Sequence) else [starts]
    events = [start.dp_event for start in starts]
    if any(isinstance(one, dp_accounting.NonPrivateDpEvent) for one in (event, *events)):
        return math.inf
    probability = accounting.sampling_probability(optimizer.expected_batch_size, dataset_size)
    found = accounting.compute_epsilon(
        dp_accounting.PoissonSampledDpEvent(probability, event),
        steps,
        grid.accounted_delta(target_delta),
        _together(events),
    )
    parameters = optimizer.counted_parameters
    if variables is not None:
        parameters = max(parameters, sum(math.prod(v.shape) for v in variables))
    draws = steps * optimizer.mechanism.coordinates(parameters)
    draws += sum(start.draws for start in starts)
    is_proven = grid.is_negligible(found.smallest_bound, target_delta, draws)
    return found.headline if is_proven else math.inf


def _together(events: list[Any]) -> dp_accounting.DpEvent | None:
    """Composes Gaussian mechanisms into one (Dong, Roth and Su 2022, corollary 3.3)."""
    if len(events) <= 1:
        return events[0] if events else None
    precision = sum(event.noise_multiplier**-2 for event in events)
    return dp_accounting.GaussianDpEvent(precision**-0.5)


def _check(optimizer, dataset_size, target_delta, steps, made, variables) -> None:
    if optimizer.expected_batch_size is None:
        raise ValueError(
            'The optimizer has no expected_batch_size, so it divides by the size of each batch, '
            'which is private, and no epsilon holds. Create it with expected_batch_size=...'
        )
    if not dataset_size >= 1:
        raise ValueError(f'dataset_size must be at least 1. Received: {dataset_size}.')
    if not 0 < target_delta < 1:
        raise ValueError(f'target_delta must be in (0, 1). Received: {target_delta}.')
    if steps < made:
        raise ValueError(
            f'steps must be at least the {made} steps that the optimizer has made. Received: '
            f'{steps}.'
        )
    if variables is None and not made:
        raise ValueError(
            'Before the first step the number of parameters that a step updates is not known: give '
            'variables=model.trainable_variables. Received: variables=None.'
        )
    if target_delta >= 1 / dataset_size:
        warnings.warn(
            'A mechanism that gives away one whole record would satisfy a guarantee with a delta '
            f'of 1 / dataset_size or more. Received: target_delta={target_delta:g}, '
            f'dataset_size={dataset_size}.',
            stacklevel=3,
        )
