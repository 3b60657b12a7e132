"""What a run prints on the terminal."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Collection

from tf_efsgd import budget, rounding
from tf_efsgd.config import RunConfig, expectations, recipes
from tf_efsgd.privacy import accounting
from tf_efsgd.privacy.plan import Plan
from tf_efsgd.training.gan import EFSGDGan


def begin(
    device: str, config: RunConfig, given: Collection[str], warning: str | None = None
) -> None:
    """Prints the first line of every start: what it trains on, and for about how long.

    Args:
      device: from `devices.describe`.
      config: the settings.
      given: names of the settings that somebody gave.
      warning: from `devices.warning`, the second line; None prints none.
    """
    is_given = given != recipes.EVERYTHING and 'minutes' in given
    minutes = config.training.minutes
    more = ', and some more for the evaluation' if config.run.evaluate else ''
    if recipes.is_open(config.privacy, given) and not config.run.resume:
        time = f'for about {minutes} minutes (--minutes){more}'
    elif is_given and not config.run.resume:
        time = f'for the given number of steps: by --minutes, about {minutes} minutes{more}'
    else:
        time = 'for the given number of steps: the bars below say how long that takes'
    print(f'Training on {device}, {time}.', flush=True)
    if warning is not None:
        print(warning, flush=True)


def warn_of_few(plan: Plan, epsilon: accounting.Epsilon | None) -> None:
    """Warns, before anything is spent, if there are too few images for epsilon.

    Args:
      plan: of a new run.
      epsilon: what is promised for the whole run; None without privacy.
    """
    if epsilon is None:
        return
    few = expectations.warning(
        records=plan.dataset_size,
        classes=plan.num_classes,
        channels=plan.image_shape[-1],
        epsilon=epsilon.headline,
    )
    if few is not None:
        print(few)


def describe(
    plan: Plan, gan: EFSGDGan, run_dir: pathlib.Path, epsilon: accounting.Epsilon | None
) -> None:
    """Says what will be trained, and what it will spend.

    Args:
      plan: of the run.
      gan: the compiled model.
      run_dir: the run folder.
      epsilon: what is promised for the whole run; None without privacy.
    """
    height, width, channels = plan.image_shape
    print(
        f'{plan.dataset}: {plan.dataset_size} records, {height}x{width}x{channels}, '
        f'{plan.num_classes} classes. Generator {gan.generator.count_params():,} parameters, '
        f'discriminator {gan.discriminator.count_params():,}. Run folder: {run_dir}'
    )
    if plan.event is None:
        print('NOT PRIVATE: no clipping, no noise.')
        return
    promised, times_units = rounding.up(epsilon.headline), budget.delta_times_units(plan)
    parts = []
    if plan.warm_start_event is not None:
        noise = ' and '.join(f'{value:.4f}' for value in budget.noise_of_releases(plan))
        parts.append(f'warm start with noise multiplier {noise}')
    if plan.train_steps:
        parts.append(
            f'{plan.train_steps} steps of {plan.expected_batch_size} expected records, '
            f'noise multiplier {plan.mechanism["noise_multiplier"]:.4f}'
        )
    print(
        f'{" and ".join(parts)}: ε of the whole run = {promised} '
        f'({epsilon.accountant}) at δ = {plan.target_delta:g}, for {plan.unit_of_privacy}. '
        f'δ times the number of {plan.name_of_units} is {rounding.up(times_units, 2)}.'
    )
    if not epsilon.is_proven:
        print(
            'WARNING: the ε of exact real-valued noise would be '
            f'{rounding.up(epsilon.smallest_bound)}. An ε this large cannot be proven for noise '
            'that is drawn with 128 bits: the run has no ε.'
        )
    unproven = budget.unproven_epsilon(plan, plan.train_steps)
    if unproven is not None:
        print(
            'WARNING: the error buffer of --error_feedback=hidden is not noised. What a record '
            'left there comes out again in every later step, so sampling hides nothing and ε is '
            f'as large as that. Plain DP-SGD accounting would print {rounding.up(unproven)}, which '
            'is unproven; tf-efsgd audit shows that it is false. Checkpoints are '
            'PRIVATE.'
        )
    elif epsilon.accountant == 'RDP':
        print(
            f'WARNING: PLD gives {rounding.up(epsilon.pld)}, more than RDP; the smaller one holds.'
        )


def _shown(epsilon: float | None) -> str:
    return rounding.up(math.inf if epsilon is None else epsilon)


def result(statement: dict, found: dict) -> None:
    """Says what was spent, and where everything is.

    Args:
      statement: from `budget.make_statement`.
      found: the place of each result by name; None leaves one out.
    """
    if 'epsilon' in statement:
        print(
            f'Spent ε = {_shown(statement["epsilon"])} '
            f'at δ = {statement["delta"]:g} ({statement["accountant"]}) '
            f'in {statement["steps"]} steps, for {statement["unit_of_privacy"]}. δ times their '
            f'number is {rounding.up(statement["delta_times_units"], 2)}.'
        )
        lost = statement['steps'] - statement['applied_steps']
        if lost:
            print(f'{lost} of these steps were lost in interruptions; they are charged too.')
    if not statement['private']:
        print('NOT PRIVATE: do not share what this run made.')
    for name, place in found.items():
        if place is not None:
            print(f'  {name + ":":<16}{place}')
