"""What follows from a plan: its mechanism, its events, the noise it draws. No TensorFlow."""

from __future__ import annotations

import dataclasses
import decimal

import dp_accounting

from tf_efsgd.privacy import accounting, grid
from tf_efsgd.privacy.mechanism import Mechanism
from tf_efsgd.privacy.plan import Plan

# The number of classes to assume where none is given, when the draws of the warm start are counted.
_ASSUMED_CLASSES = 1000


def mechanism_of(plan: Plan) -> Mechanism:
    """The mechanism that a private plan describes."""
    return Mechanism(**plan.mechanism)


def event_of(
    plan: Plan, noise_multiplier: float, images_per_unit: int | None = None
) -> dp_accounting.DpEvent:
    """The event of one step of a private plan, with another noise or another unit of privacy.

    Args:
      plan: the private plan.
      noise_multiplier: sigma > 0, the noise over one record's sensitivity.
      images_per_unit: how many images one unit of privacy has; None means as in the plan.

    Returns:
      The event of `Mechanism.step_event`.
    """
    mechanism = dataclasses.replace(mechanism_of(plan), noise_multiplier=noise_multiplier)
    return mechanism.step_event(
        sampling_probability(plan),
        plan.private_parameters,
        images_per_unit or plan.images_per_unit,
    )


def sampling_probability(plan: Plan) -> float:
    """The probability that a step samples a given record, in (0, 1]."""
    return accounting.sampling_probability(plan.expected_batch_size, plan.dataset_size)


def accounted_delta(plan: Plan) -> float:
    """The delta at which epsilon is computed: the plan's, less what inexact noise may cost."""
    return grid.accounted_delta(plan.target_delta)


def draws(plan: Plan) -> int:
    """The largest number of random numbers that a run of this plan draws for its noise."""
    of_steps = plan.train_steps * mechanism_of(plan).coordinates(plan.private_parameters)
    if plan.warm_start_event is None:
        return of_steps
    # The warm start makes at most two releases.
    return of_steps + 2 * grid.LARGEST_FEATURES * (plan.num_classes or _ASSUMED_CLASSES)


def noise_of_releases(plan: Plan) -> list[float]:
    """The noise multipliers of the releases of a private plan's warm start, in order."""
    noise_multiplier, share = plan.warm_start_noise_multiplier, plan.learned_features_share
    if noise_multiplier is None:
        return []
    if not share:
        return [noise_multiplier]
    return list(accounting.split_release(noise_multiplier, share))


def delta_times_units(plan: Plan) -> float:
    """The delta of a private plan times the number of images or persons, in decimal arithmetic.

    In binary, 1e-5 * 60,000 is a little above 0.6 and would be shown, rounded up, as 0.61.
    """
    return float(decimal.Decimal(repr(plan.target_delta)) * plan.units)
