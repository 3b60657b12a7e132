"""A private step as a `DpEvent`: how it samples and what noise it adds."""

from __future__ import annotations

import math

import attr
import dp_accounting

# The sampler compares 32-bit integers with a threshold, so q is a multiple of 1 / this.
SAMPLING_GRAIN = 2**32


def sampling_threshold(expected_batch_size: int, dataset_size: int) -> int:
    """The integer below which a uniform 32-bit draw samples a record.

    Args:
      expected_batch_size: mean number of records in a batch, B >= 1.
      dataset_size: the declared number of records, N >= B.

    Returns:
      ceil(2^32 B / N), in [1, 2^32]: q is rounded up to the grain of the draw, never down.

    Raises:
      ValueError: if not 1 <= B <= N.
    """
    if not 1 <= expected_batch_size <= dataset_size:
        raise ValueError(
            'expected_batch_size must be between 1 and the number of records. '
            f'Received: expected_batch_size={expected_batch_size}, records={dataset_size}.'
        )
    return -(-SAMPLING_GRAIN * expected_batch_size // dataset_size)


def sampling_probability(expected_batch_size: int, dataset_size: int) -> float:
    """The probability with which each record enters a step, exactly as it is sampled.

    Args:
      expected_batch_size: mean number of records in a batch, B >= 1.
      dataset_size: the declared number of records, N >= B.

    Returns:
      B / N rounded up to a multiple of 2^-32, in (0, 1].

    Raises:
      ValueError: if not 1 <= B <= N.
    """
    return sampling_threshold(expected_batch_size, dataset_size) / SAMPLING_GRAIN


def step_event(sampling_probability: float, noise_multiplier: float) -> dp_accounting.DpEvent:
    """The event of one private step.

    Args:
      sampling_probability: q in (0, 1].
      noise_multiplier: sigma > 0: noise over sensitivity of the stacked release.

    Returns:
      `PoissonSampledDpEvent(q, GaussianDpEvent(sigma))`.
    """
    return dp_accounting.PoissonSampledDpEvent(
        sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier)
    )


def person_sampling_probability(sampling_probability: float, images_per_person: int) -> float:
    """The probability that a step samples any of a person's records.

    If it does, the records move the sums by at most K times what one record would. Which of them
    were sampled makes the step a mixture, and the divergences that define the bound are jointly
    convex. So the step is at least as private as a Gaussian with K times the sensitivity on a
    sample of persons.

    Args:
      sampling_probability: q in (0, 1], of every record by itself.
      images_per_person: K >= 1.

    Returns:
      1 - (1 - q)^K, rounded up; q itself for K = 1.
    """
    if images_per_person == 1 or sampling_probability == 1.0:
        return sampling_probability
    exact = -math.expm1(images_per_person * math.log1p(-sampling_probability))
    return min(1.0, exact * (1.0 + 1e-12))


def hidden_sensitivity(
    l2_norm_clip: float, residual_l2_norm_clip: float, images_per_person: int = 1
) -> float:
    """How far one unit of privacy moves a step of the published error feedback.

    Its buffer is not noised. A record that was sampled once stays in it, so it moves every later
    step by up to 2 C2, and a step that samples it by up to C1 + 2 C2: sampling amplifies nothing. T
    steps are the Gaussian mechanism with mu = sqrt(T) (C1 + 2 C2) / (sigma C1) (DiceSGD, arXiv
    2311.14632).

    Args:
      l2_norm_clip: C1 > 0.
      residual_l2_norm_clip: C2 > 0, in units of the sum, like C1.
      images_per_person: K >= 1. What comes out of the buffer is clipped whatever is in it, so K
        multiplies only C1.

    Returns:
      K C1 + 2 C2.
    """
    return images_per_person * l2_norm_clip + 2.0 * residual_l2_norm_clip


def event_to_dict(event: dp_accounting.DpEvent) -> dict:
    """Turns an event into JSON values for the ledger; `event_from_dict` reads it back."""
    fields = attr.asdict(event, recurse=False)
    return {
        'class_name': type(event).__name__,
        **{
            name: event_to_dict(value) if isinstance(value, dp_accounting.DpEvent) else value
            for name, value in fields.items()
        },
    }


def event_from_dict(values: dict) -> dp_accounting.DpEvent:
    """Reads the event that `event_to_dict` wrote.

    Raises:
      ValueError: if it is no event of a private step.
    """
    try:
        fields = dict(values)
        cls = {
            'GaussianDpEvent': dp_accounting.GaussianDpEvent,
            'PoissonSampledDpEvent': dp_accounting.PoissonSampledDpEvent,
        }[fields.pop('class_name')]
        if 'event' in fields:
            fields['event'] = event_from_dict(fields['event'])
        return cls(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'Not an event of a private step. Received: {values}.') from error
