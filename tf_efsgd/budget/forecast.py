"""What a run will spend, and how noisy it will be, before it spends anything. No TensorFlow."""

from __future__ import annotations

import dataclasses
import math

import dp_accounting

from tf_efsgd.budget.epsilon import planned_epsilon, rdp_epsilon, unproven_epsilon
from tf_efsgd.budget.plan import plan_without_run
from tf_efsgd.config import PrivacyConfig
from tf_efsgd.privacy import accounting
from tf_efsgd.privacy.plan import Plan

# The table and the picture show these multiples of what was asked for.
_STEP_FACTORS = (0.125, 0.25, 0.5, 1, 2, 4)
_NOISE_FACTORS = (0.5, 0.7, 1, 1.4, 2)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Standard deviation of the noise on one coordinate, in the unit of `l2_norm_clip`.

    Attributes:
      one_step: of one step, after the division by the expected batch size and in the long run.
      accumulated: of the sum over all steps.
    """

    one_step: float
    accumulated: float


@dataclasses.dataclass(frozen=True)
class Table:
    """Upper bounds on epsilon around what was asked for, by RDP, which takes milliseconds.

    Attributes:
      steps: numbers of steps, ascending.
      noise_multipliers: noise multipliers, ascending.
      epsilons: one row for each number of steps, one column for each noise multiplier. With a
        hidden buffer they are exact, by the closed form.
    """

    steps: list[int]
    noise_multipliers: list[float]
    epsilons: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a run will spend, and the noise it gets for it.

    Attributes:
      settings: the mechanism and its budget, as asked for.
      plan: what a run would write into its ledger.
      dataset_size: declared number of records, N.
      sampling_probability: q, the probability that a step samples a given record.
      noise_multiplier: sigma, given or calibrated; None if the warm start takes the whole budget.
      event: the event of one step; None if the warm start takes the whole budget.
      warm_start: the event of the warm start, or None without one.
      epsilon: the epsilon of the whole run, at `settings.target_delta`.
      unproven: what plain DP-SGD accounting would say; with `hidden` only, None otherwise.
      epochs: expected number of times that a record is sampled.
      noise: the noise by a description of what it is added to.
      table: epsilons around what was asked for; None without private steps.
    """

    settings: PrivacyConfig
    plan: Plan
    dataset_size: int
    sampling_probability: float
    noise_multiplier: float | None
    event: dp_accounting.DpEvent | None
    warm_start: dp_accounting.DpEvent | None
    epsilon: accounting.Epsilon
    unproven: float | None
    epochs: float
    noise: dict[str, Noise]
    table: Table | None


def forecast(
    settings: PrivacyConfig,
    dataset_size: int,
    parameters: int | None = None,
    images_per_person: int | None = None,
    persons: int | None = None,
) -> Forecast:
    """Computes what a run spends and how noisy it is; takes seconds.

    Args:
      settings: exactly one of target_epsilon and noise_multiplier is set; error_feedback may be
        'hidden', with residual_l2_norm_clip in units of the sum.
      dataset_size: declared number of records, at least `settings.expected_batch_size`.
      parameters: how many parameters private steps update; None means as in `plan_without_run`.
      images_per_person: K, if the unit of privacy is a person; None otherwise.
      persons: declared number of persons, if the unit of privacy is a person; None otherwise.

    Returns:
      The forecast.

    Raises:
      ConfigError: if the launcher would refuse these settings.
    """
    plan = plan_without_run(settings, dataset_size, parameters, images_per_person, persons)
    has_steps = bool(plan.train_steps)
    noise_multiplier = plan.mechanism['noise_multiplier'] if has_steps else None
    return Forecast(
        settings=settings,
        plan=plan,
        dataset_size=dataset_size,
        sampling_probability=accounting.sampling_probability(
            settings.expected_batch_size, dataset_size
        ),
        noise_multiplier=noise_multiplier,
        event=plan.event if has_steps else None,
        warm_start=plan.warm_start_event,
        epsilon=planned_epsilon(plan),
        unproven=unproven_epsilon(plan, plan.train_steps) if has_steps else None,
        epochs=plan.train_steps * settings.expected_batch_size / dataset_size,
        noise=compute_noise(settings, noise_multiplier) if has_steps else {},
        table=compute_table(plan) if has_steps else None,
    )


def compute_noise(settings: PrivacyConfig, noise_multiplier: float) -> dict[str, Noise]:
    """Computes the noise of one step and of all steps, with plain DP-SGD for comparison.

    Let A and R be the noisy sums of clipped gradients and of residuals. Error feedback keeps a
    buffer E <- feedback_decay (E + R/B), and the update is v = A/B + (1 - feedback_decay)(E + R/B).

    Args:
      settings: the mechanism; `feedback_l2_norm_clip` is not taken into account.
      noise_multiplier: sigma > 0.

    Returns:
      The noise by a description. The accumulated noise includes what is still in E at the end.
    """
    clip, residual_clip = settings.l2_norm_clip, settings.residual_l2_norm_clip
    share, decay = settings.residual_share, settings.feedback_decay
    unit = noise_multiplier / settings.expected_batch_size
    root_steps = math.sqrt(settings.train_steps)

    def noise(one_step, accumulated=None):
        accumulated = one_step if accumulated is None else accumulated
        return Noise(unit * one_step, unit * root_steps * accumulated)

    plain = {f'plain DP-SGD, clipped at {clip:g}': noise(clip)}
    if settings.error_feedback == 'hidden':
        return {'update, hidden error feedback': noise(clip)}
    if settings.error_feedback == 'none':
        return plain
    # In units of sigma: the noise of A, and of what R contributes in the long run.
    gradient = clip / math.sqrt(1 - share)
    residual = residual_clip / math.sqrt(share) if share else 0.0
    slowed = residual * math.sqrt((1 - decay) / (1 + decay))
    both = clip + residual_clip
    return {
        'averaged gradient A/B': noise(gradient),
        'update with error feedback, A/B + d': noise(
            math.hypot(gradient, slowed), math.hypot(gradient, residual)
        ),
        **plain,
        f'plain DP-SGD, clipped at {both:g}': noise(both),
    }


def compute_table(plan: Plan) -> Table:
    """Computes epsilon around what a private plan asks for.

    Args:
      plan: the plan of a run with private steps. Its own noise is kept to the last digit; the
        other noise multipliers are rounded.

    Returns:
      The table; one of its cells is for the plan's own steps and noise.
    """
    noise_multiplier = plan.mechanism['noise_multiplier']
    steps = sorted({max(1, round(factor * plan.train_steps)) for factor in _STEP_FACTORS})
    noise_multipliers = [
        noise_multiplier if factor == 1 else float(f'{factor * noise_multiplier:.3g}')
        for factor in _NOISE_FACTORS
    ]
    epsilons = [[rdp_epsilon(plan, count, value) for value in noise_multipliers] for count in steps]
    return Table(steps, noise_multipliers, epsilons)
