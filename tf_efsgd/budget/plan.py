"""What a run may spend and what it has spent: its plan, a change of the plan, its statement.

The one path from settings to events to epsilon: the planner, the launcher, the ledger's reader, the
tables and the statement all take it. No TensorFlow.
"""

from __future__ import annotations

import dataclasses
import decimal
import hashlib
import math

import dp_accounting

from tf_efsgd import rounding
from tf_efsgd.config import ConfigError, PrivacyConfig, RunConfig
from tf_efsgd.privacy import accounting, grid, ledger
from tf_efsgd.privacy.mechanism import Mechanism

# Where things are, what computes them and what is shown; never what is computed. Of the data set
# only the place may change, and so may that of a table of persons, see `without_place`: what is in
# them is compared.
MAY_CHANGE = frozenset(
    {
        'dataset',
        'data_dir',
        'tfds_manual_dir',
        'strategy',
        'logical_devices',
        'clipping',
        'microbatch_size',
        'log_nonprivate_diagnostics',
        'dataset_budget',
    }
)
# With --change_mechanism: the privacy settings, but for what the whole run has in common.
MECHANISM = frozenset(field.name for field in dataclasses.fields(PrivacyConfig)) - {
    'private',
    'target_delta',
    'secure_noise',
    'warm_start_share',
    'warm_start_noise_multiplier',
    'learned_features_share',
    *MAY_CHANGE,
}

_PLACED_DATASETS = ('folder:', 'idx:')

# Above this no budget is called private, whatever was asked for: e^100 bounds nothing.
LARGEST_EPSILON = 100.0

# Classes that are counted where nobody says how many, for what the noise of the releases before the
# first step adds to delta.
_ASSUMED_CLASSES = 1000
# Numbers of images of one person that the statement has an epsilon for, where it is per image.
IMAGES_PER_PERSON = (2, 5, 10)

NOT_COVERED = (
    'anything in the folder nonprivate/ (evaluation against real images)',
    'the choice of settings after looking at other runs on the same records',
    'other runs on the same records, and copies of this run folder that were trained further: '
    'their epsilons and deltas add up',
    'the declared number of records, the image size, the channels, the classes and all settings, '
    'which are public',
    'the time that steps take',
)
# Where they were not declared; what it was stands behind it.
NOT_COVERED_READ_OFF = (
    'what was read off the records once, before the start, and is published with all settings'
)
NOT_COVERED_PER_IMAGE = (
    'several records of one person: the guarantee is per record (one image with its label); '
    'epsilon_by_images_per_person, where it is given, says what it is for more',
)
NOT_COVERED_PER_PERSON = (
    'an image that was ascribed to another person than the one it shows',
    'the declared number of persons, which is public',
)
PROVEN = (
    'every record adds at most its clipping norms to a step, and at most norm 1, held in integers, '
    'to a release before the first step',
    'what is released are integers on a public grid, their noise has the exact law of a discrete '
    'Gaussian, and both together are post-processing of the Gaussian mechanism that is accounted',
    'adding up the clipped gradients of a step in floating point moves neighbours apart by less '
    f'than half of an allowance of {grid.SLACK:g} of the clipping norm, in steps of up to 1,024 '
    'records or twice the expected number; more of them come with a probability below 1e-80',
    'the noise multipliers that are accounted are lowered by what rounding to the grid costs, and '
    'delta by what the noise is off its law',
)
TESTED = (
    'the norm by which a gradient is clipped is off by its float32 arithmetic; adversarial batches '
    'hold that to the other half of the allowance, and the whole allowance is accounted',
    'the features of one record do not depend on the other records that are computed beside it',
)


# Plans.


def make_plan(
    config: RunConfig, public_facts: dict, private_parameters: int, *, say=print
) -> ledger.Plan:
    """The plan of a new run: calibrates the noise when a target is given.

    Args:
      config: the settings.
      public_facts: of the records, by name the fields of `Plan` that are about them.
      private_parameters: how many parameters a private step updates.
      say: is told what takes a while.

    Returns:
      What is fixed before the first step.

    Raises:
      ConfigError: if the settings do not fit the number of records, no noise fits the target, or
        no epsilon can be proven at it.
    """
    privacy = config.privacy
    plan = ledger.Plan(
        **public_facts,
        event=None,
        unproven_event=None,
        expected_batch_size=privacy.expected_batch_size,
        mechanism={},
        private_parameters=private_parameters,
        warm_start_event=None,
        warm_start_noise_multiplier=None,
        learned_features_share=privacy.learned_features_share if privacy.has_warm_start else 0.0,
        train_steps=_train_steps(privacy),
        target_delta=None,
        target_epsilon=None,
        steps_per_entry=config.run.log_steps,
        settings_sha256=settings_hash(config),
    )
    _check_batch(privacy, plan)
    if not privacy.private:
        return plan
    _check_delta(privacy, plan)
    plan = _with_warm_start(dataclasses.replace(plan, target_delta=privacy.target_delta), privacy)
    if privacy.noise_multiplier is not None:
        return _with_mechanism(plan, privacy, privacy.noise_multiplier)
    # What is wrong besides the noise is said at once. Without steps no noise is needed.
    without_steps = _with_mechanism(plan, privacy, 1.0, is_real=False)
    if not without_steps.train_steps:
        _check_proven(without_steps)
        return without_steps
    say('Calibrating the noise ...', flush=True)
    return _calibrated(plan, privacy)


def _train_steps(privacy: PrivacyConfig) -> int:
    return 0 if privacy.warm_start_share == 1 else privacy.train_steps


def _check_batch(privacy: PrivacyConfig, plan: ledger.Plan) -> None:
    if privacy.expected_batch_size > plan.dataset_size:
        raise ConfigError(
            '--expected_batch_size must be at most the number of records, '
            f'{plan.dataset_size}. Received: {privacy.expected_batch_size}.'
        )


def _check_delta(privacy: PrivacyConfig, plan: ledger.Plan) -> None:
    if privacy.target_delta >= 1 / plan.units and not privacy.allow_large_delta:
        raise ConfigError(
            f'--target_delta={privacy.target_delta:g} must be below 1 / number of '
            f'{plan.name_of_units} = {1 / plan.units:.2g}: giving away {plan.one_unit} whole would '
            'pass it. Lower --target_delta, or say --allow_large_delta.'
        )


def _with_warm_start(plan: ledger.Plan, privacy: PrivacyConfig) -> ledger.Plan:
    """The plan with the releases before the first step."""
    images, noise_multiplier = plan.images_per_unit, privacy.warm_start_noise_multiplier
    if privacy.warm_start_share:
        mu = accounting.gaussian_mu(privacy.target_epsilon, _accounted_delta(plan))
        effective = 1.0 / (mu * math.sqrt(privacy.warm_start_share))
        noise_multiplier = images * grid.noise_multiplier_for(effective, None)
    if noise_multiplier is None:
        return plan
    return dataclasses.replace(
        plan,
        warm_start_noise_multiplier=noise_multiplier,
        warm_start_event=accounting.event_to_dict(_warm_start_event(noise_multiplier, images)),
    )


def _warm_start_event(noise_multiplier: float, images: int) -> dp_accounting.DpEvent:
    unit = noise_multiplier / images
    if unit < accounting.SMALLEST_NOISE:
        raise ConfigError(
            f'The noise of the warm start must be at least {accounting.SMALLEST_NOISE:g} times '
            f'what one unit of privacy moves it by. Received: {unit:.3g}. Lower the share or the '
            'target, or raise the noise.'
        )
    return dp_accounting.GaussianDpEvent(grid.effective_noise_multiplier(unit, None))


def _calibrated(plan: ledger.Plan, privacy: PrivacyConfig) -> ledger.Plan:
    """The plan with the least noise that keeps to the target."""
    mechanism = _mechanism(privacy, 1.0)
    target = (privacy.target_epsilon, _accounted_delta(plan))
    warm_start, images = warm_start_of(plan), plan.images_per_unit
    try:
        if mechanism.hides_buffer:
            effective = accounting.calibrate_unsampled_noise_multiplier(
                *target, privacy.train_steps, warm_start
            )
        else:
            sampled = accounting.person_sampling_probability(_sampling_probability(plan), images)
            effective = accounting.calibrate_noise_multiplier(
                *target, sampled, privacy.train_steps, warm_start
            )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    noise_multiplier = mechanism.noise_multiplier_for(effective, plan.private_parameters, images)
    if not math.isfinite(noise_multiplier):
        raise ConfigError(
            'The target needs more noise than the grid of the releases allows for so many '
            'parameters: raise --target_epsilon, or lower --train_steps or the width of the '
            f'networks. Received: --target_epsilon={privacy.target_epsilon:g}.'
        )
    while True:  # The last digit of an accountant must not pass the target.
        calibrated = _with_mechanism(plan, privacy, noise_multiplier)
        epsilon = planned_epsilon(calibrated)
        if epsilon.smallest_bound <= privacy.target_epsilon:
            break
        noise_multiplier *= 1.0001
    _check_proven(calibrated)
    return calibrated


def _check_proven(plan: ledger.Plan) -> None:
    """Raises ConfigError where a target is so large that no epsilon could be stated for it."""
    if not planned_epsilon(plan).is_proven:
        largest = rounding.down(grid.largest_epsilon(plan.target_delta, _draws(plan)), 2)
        raise ConfigError(
            'No ε as large as that can be proven, since the noise is drawn with 128 bits: choose '
            f'--target_epsilon={largest} or less. Received: {plan.target_epsilon:g}.'
        )


def _mechanism(privacy: PrivacyConfig, noise_multiplier: float) -> Mechanism:
    settings = {
        field.name: getattr(privacy, field.name)
        for field in dataclasses.fields(Mechanism)
        if field.name != 'noise_multiplier'
    }
    try:
        return Mechanism(noise_multiplier=noise_multiplier, **settings)
    except ValueError as error:
        raise ConfigError(f'--{error}') from error


def _with_mechanism(
    plan: ledger.Plan, privacy: PrivacyConfig, noise_multiplier: float, *, is_real: bool = True
) -> ledger.Plan:
    """The plan with the steps that the settings ask for, at this noise.

    Where it is not real, no step will have it: it stands in for one that is not known yet, or for
    that of no steps.

    Raises:
      ConfigError: if there are fewer records than in a batch, or too little noise.
    """
    _check_batch(privacy, plan)
    mechanism = _mechanism(privacy, noise_multiplier)
    unit = mechanism.unit_noise_multiplier(plan.images_per_unit)
    if is_real and unit < accounting.SMALLEST_NOISE:
        raise ConfigError(
            f'The noise must be at least {accounting.SMALLEST_NOISE:g} times what one unit of '
            f'privacy moves a step by; less protects nothing. Received: {unit:.3g}. Raise '
            '--noise_multiplier.'
        )
    plan = dataclasses.replace(
        plan,
        expected_batch_size=privacy.expected_batch_size,
        mechanism=dataclasses.asdict(mechanism),
        train_steps=_train_steps(privacy),
        target_epsilon=privacy.target_epsilon,
    )
    unproven = None
    if mechanism.hides_buffer:
        sampled = _sampling_probability(plan)
        unproven = accounting.event_to_dict(accounting.step_event(sampled, noise_multiplier))
    event = accounting.event_to_dict(event_of(plan, noise_multiplier))
    return dataclasses.replace(plan, event=event, unproven_event=unproven)


def event_of(
    plan: ledger.Plan, noise_multiplier: float, images_per_unit: int | None = None
) -> dp_accounting.DpEvent:
    """The event of one step of a private plan, at another noise or for another unit of privacy.

    Args:
      plan: private.
      noise_multiplier: sigma > 0, the noise over one record's sensitivity.
      images_per_unit: how many images one unit of privacy has; None: as in the plan.

    Returns:
      As `Mechanism.step_event`.
    """
    mechanism = dataclasses.replace(mechanism_of(plan), noise_multiplier=noise_multiplier)
    return mechanism.step_event(
        _sampling_probability(plan),
        plan.private_parameters,
        images_per_unit or plan.images_per_unit,
    )


def _sampling_probability(plan: ledger.Plan) -> float:
    return accounting.sampling_probability(plan.expected_batch_size, plan.dataset_size)


def _accounted_delta(plan: ledger.Plan) -> float:
    return grid.accounted_delta(plan.target_delta)


def changed_plan(config: RunConfig, spent: ledger.Ledger) -> ledger.Plan | None:
    """The plan of a resumed run whose settings ask for other steps than its ledger's plan.

    The noise stays what it was unless `noise_multiplier` is given.

    Args:
      config: the settings.
      spent: the ledger of the run, which is not written to.

    Returns:
      The new plan; None when the settings are the ledger's.

    Raises:
      ConfigError: if the change was not asked for, or does not fit what is left of the budget.
    """
    old, privacy = spent.plan, config.privacy
    if old.event is None:
        return None
    noise_multiplier = privacy.noise_multiplier or old.mechanism['noise_multiplier']
    new = _with_mechanism(old, privacy, noise_multiplier, is_real=bool(_train_steps(privacy)))
    if new == old:
        return None
    if not config.run.change_mechanism:
        raise ConfigError(
            'The privacy settings are not those of the last plan in the ledger. Resume with the '
            'same settings, or see --change_mechanism.'
        )
    if 'hidden' in (old.mechanism['error_feedback'], privacy.error_feedback):
        raise ConfigError(
            'A run cannot change to or from --error_feedback=hidden: its buffer is private state. '
            'Start a new run folder.'
        )
    _check_filter(new, spent)
    return new


def _check_filter(new: ledger.Plan, spent: ledger.Ledger) -> None:
    """Raises ConfigError unless the privacy filter of the first plan allows the new one."""
    if new.target_epsilon is None and spent.first_plan.target_epsilon is not None:
        raise ConfigError(
            'A run that was started with --target_epsilon='
            f'{spent.first_plan.target_epsilon:g} needs one after a change too.'
        )
    warm_start = warm_start_of(spent.first_plan)
    budget = _filter_of(spent)
    if new.target_epsilon is not None and budget.epsilon > new.target_epsilon:
        raise ConfigError(
            'After a change of the mechanism PLD no longer holds and the budget is the RDP filter '
            f'of the plan at the start, epsilon = {rounding.up(budget.epsilon)}: accept it with '
            f'--target_epsilon={rounding.up(budget.epsilon)}, or start a new run '
            f'folder. Received: --target_epsilon={new.target_epsilon:g}.'
        )
    # Also when it is not charged yet: it will be released all the same.
    used = _spent(spent) + ([(warm_start, 1)] if warm_start else [])
    left = budget.steps_left(used, accounting.event_from_dict(new.event))
    most = spent.reserved_steps + left
    if not spent.reserved_steps < new.train_steps <= most:
        allowed = f'--train_steps={most} or less' if left else 'nothing: start a new run folder'
        raise ConfigError(
            f'{spent.reserved_steps} steps are spent; with these settings the budget allows '
            f'{allowed}. Received: --train_steps={new.train_steps}.'
        )


# Epsilons.


def _filter_of(spent: ledger.Ledger) -> accounting.RenyiFilter:
    plan = spent.first_plan
    return accounting.RenyiFilter.of_plan(
        *_planned(spent), _accounted_delta(plan), warm_start_of(plan)
    )


def _planned(spent: ledger.Ledger):
    return accounting.event_from_dict(spent.first_plan.event), spent.first_plan.train_steps


def _spent(spent: ledger.Ledger):
    return [(accounting.event_from_dict(event), count) for event, count in spent.spent]


def _draws(plan: ledger.Plan) -> int:
    """How many numbers of noise a run of this plan draws at most."""
    of_steps = plan.train_steps * mechanism_of(plan).coordinates(plan.private_parameters)
    if plan.warm_start_event is None:
        return of_steps
    # Of either release.
    return of_steps + 2 * grid.LARGEST_FEATURES * (plan.num_classes or _ASSUMED_CLASSES)


def _proven(epsilon: accounting.Epsilon, *plans: ledger.Plan) -> accounting.Epsilon:
    """An epsilon of the ideal mechanism as one of what is really drawn, or none where that ends."""
    draws = sum(map(_draws, plans))
    delta = plans[-1].target_delta
    is_proven = grid.is_negligible(epsilon.smallest_bound, delta, draws)
    return dataclasses.replace(epsilon, is_proven=is_proven)


def warm_start_of(plan: ledger.Plan) -> dp_accounting.DpEvent | None:
    """The event of the planned warm start, of all it releases; None without one."""
    event = plan.warm_start_event
    return None if event is None else accounting.event_from_dict(event)


def noise_of_releases(plan: ledger.Plan) -> list[float]:
    """Noise multipliers of what a private plan's warm start releases, in order."""
    noise_multiplier, share = plan.warm_start_noise_multiplier, plan.learned_features_share
    if noise_multiplier is None:
        return []
    if not share:
        return [noise_multiplier]
    return list(accounting.split_release(noise_multiplier, share))


def delta_times_units(plan: ledger.Plan) -> float:
    """The delta of a private plan times the number of images or persons, as by hand.

    In binary 1e-5 * 60,000 is a little above 0.6, and rounded up it would be shown as 0.61.
    """
    return float(decimal.Decimal(repr(plan.target_delta)) * plan.units)


def mechanism_of(plan: ledger.Plan) -> Mechanism:
    """The mechanism that a private plan describes."""
    return Mechanism(**plan.mechanism)


def planned_epsilon(plan: ledger.Plan) -> accounting.Epsilon:
    """Epsilon of a private plan: its warm start and all its steps, as if they were the first."""
    event, delta = accounting.event_from_dict(plan.event), _accounted_delta(plan)
    epsilon = accounting.compute_epsilon(event, plan.train_steps, delta, warm_start_of(plan))
    return _proven(epsilon, plan)


def warm_start_epsilon(plan: ledger.Plan) -> accounting.Epsilon:
    """Epsilon of a private plan's warm start alone."""
    delta = _accounted_delta(plan)
    return _proven(accounting.compute_epsilon(None, 0, delta, warm_start_of(plan)), plan)


def rdp_epsilon(plan: ledger.Plan, steps: int, noise_multiplier: float) -> float:
    """A bound on epsilon at other steps and noise than a private plan's, in milliseconds.

    Returns:
      By RDP; for steps that are not sampled by the closed form. Infinite where none is proven.
    """
    event, warm_start = event_of(plan, noise_multiplier), warm_start_of(plan)
    delta = _accounted_delta(plan)
    if isinstance(event, dp_accounting.GaussianDpEvent):
        epsilon = accounting.compute_epsilon(event, steps, delta, warm_start)
    else:
        before = [] if warm_start is None else [(warm_start, 1)]
        by_rdp = accounting.rdp_epsilon_of([*before, (event, steps)], delta)
        epsilon = accounting.Epsilon(pld=math.inf, rdp=by_rdp)
    return _proven(epsilon, dataclasses.replace(plan, train_steps=steps)).headline


def promised_epsilon(plan: ledger.Plan, spent: ledger.Ledger | None) -> accounting.Epsilon:
    """Epsilon of the whole run when its next steps follow a plan.

    Args:
      plan: private; the ledger's last or one that will be.
      spent: the ledger; None for a new run.

    Returns:
      `planned_epsilon` without a change of the mechanism, after one the filter of the first plan.
    """
    if spent is None or (not spent.changes and plan == spent.first_plan):
        return planned_epsilon(plan)
    filtered = accounting.Epsilon(pld=math.inf, rdp=math.inf, rdp_filter=_filter_of(spent).epsilon)
    return _proven(filtered, *spent.plans, plan)


def unproven_epsilon(plan: ledger.Plan, steps: int) -> float | None:
    """What plain DP-SGD accounting would print for a hidden buffer; None for other plans."""
    if plan.unproven_event is None:
        return None
    event, warm_start = accounting.event_from_dict(plan.unproven_event), warm_start_of(plan)
    return accounting.compute_epsilon(event, steps, plan.target_delta, warm_start).smallest_bound


def spent_epsilon(spent: ledger.Ledger) -> accounting.Epsilon:
    """Epsilon of everything that a private run's ledger has reserved."""
    epsilon = accounting.compute_spent(
        _spent(spent),
        _accounted_delta(spent.plan),
        planned=_planned(spent),
        changed=spent.changes > 0,
        warm_start=warm_start_of(spent.first_plan),
        warm_start_spent=spent.warm_start_reserved,
    )
    return _proven(epsilon, *spent.plans)


def epsilon_by_images_per_person(spent: ledger.Ledger) -> dict[int, float | None] | None:
    """What a run whose unit of privacy is one image has spent for persons with several.

    Args:
      spent: the ledger of a private run.

    Returns:
      By number of images the epsilon at the same delta, None where none is proven; None for a run
      whose unit is a person already, or whose mechanism was changed.
    """
    plan = spent.first_plan
    if plan.images_per_person is not None or spent.changes:
        return None
    found, delta = {}, _accounted_delta(plan)
    largest = grid.largest_epsilon(plan.target_delta, _draws(plan))
    for images in IMAGES_PER_PERSON:
        warm_start = None
        if spent.warm_start_reserved:
            unit = plan.warm_start_noise_multiplier / images
            warm_start = dp_accounting.GaussianDpEvent(grid.effective_noise_multiplier(unit, None))
        event = event_of(plan, plan.mechanism['noise_multiplier'], images)
        parts = [(warm_start, 1)] if warm_start else []
        parts += [(event, spent.reserved_steps)] if spent.reserved_steps else []
        if accounting.rdp_epsilon_of(parts, delta) > 2 * largest:  # PLD would take its time.
            found[images] = None
            continue
        epsilon = accounting.compute_epsilon(event, spent.reserved_steps, delta, warm_start)
        found[images] = _or_none(_proven(epsilon, plan).headline)
    return found


def without_place(value: object, name: str) -> object:
    """A setting without where things are on this machine.

    Args:
      value: of the setting.
      name: of the setting; `folder:PATH` and `idx:PATH` of `dataset`, and `csv:FILE` of `person`,
        lose what stands behind the colon.
    """
    if (name, value is None) == ('dataset', False) and value.startswith(_PLACED_DATASETS):
        return value.partition(':')[0]
    if (name, value is None) == ('person', False) and value.startswith('csv:'):
        return 'csv'
    return value


def settings_hash(config: RunConfig, *, has_place: bool = False) -> str:
    """Of the settings that a resumed run must share with its first start.

    Args:
      config: the settings.
      has_place: with the path of a table of persons, as earlier versions did.
    """
    changes = {
        field.name: None
        for group in (config.data, config.privacy, config.model, config.training, config.run)
        for field in dataclasses.fields(group)
        if group is config.run or field.name in MAY_CHANGE | MECHANISM
    }
    if not has_place:
        changes['person'] = without_place(config.data.person, 'person')
    return hashlib.sha256(config.to_flags(**changes).encode()).hexdigest()


class EpsilonSoFar:
    """An upper bound on the epsilon spent, cheap enough for a progress bar.

    Args:
      spent: the ledger of a private run.
      applied_steps: steps that training has applied at the start of this process.
    """

    def __init__(self, spent: ledger.Ledger, applied_steps: int):
        # Lost in interruptions; charged all the same.
        self._lost = spent.reserved_steps - applied_steps
        self._plans = spent.plans
        self._meter = None
        if spent.changes:
            self._filter = spent_epsilon(spent).headline
        else:
            event, steps = _planned(spent)
            warm_start = warm_start_of(spent.first_plan) if spent.warm_start_reserved else None
            delta = _accounted_delta(spent.plan)
            # A run of the warm start alone has no steps, and is asked for those of 0 only.
            self._meter = accounting.EpsilonMeter(event, max(1, steps), delta, warm_start)

    def __call__(self, applied_steps: int) -> float:
        """Returns the bound when so many steps are applied; infinite where none is proven."""
        if self._meter is None:
            return self._filter
        bound = self._meter(applied_steps + self._lost)
        return _proven(accounting.Epsilon(pld=bound, rdp=bound), *self._plans).headline


# The statement.


def make_statement(
    config: RunConfig, spent: ledger.Ledger, applied_steps: int, software: dict[str, str]
) -> dict:
    """The privacy statement: what was promised, computed from the ledger.

    Args:
      config: the settings.
      spent: the ledger.
      applied_steps: steps that training has applied.
      software: versions by name.

    Returns:
      JSON values by name.
    """
    plan = spent.plan
    statement = {
        'unit_of_privacy': plan.unit_of_privacy,
        'private': plan.event is not None,
        'dataset': plan.dataset,
        'dataset_size': plan.dataset_size,
        'persons': plan.persons,
        'record': 'one image with its label',
        'applied_steps': applied_steps,
        'software': software,
    }
    if plan.event is None:
        return {**statement, 'mechanism': 'none: trained without clipping and noise'}
    mechanism, epsilon = mechanism_of(plan), spent_epsilon(spent)
    statement['private'] = epsilon.headline <= LARGEST_EPSILON
    if mechanism.hides_buffer:
        unproven = unproven_epsilon(plan, spent.reserved_steps)
        statement['private'] &= (
            plan.target_epsilon is not None and epsilon.headline <= plan.target_epsilon
        )
        statement['epsilon_unproven'] = _or_none(unproven)
    # After a change these two hold for a sequence fixed in advance only, which this one was not.
    suffix = '_fixed_in_advance_only' if spent.changes else ''
    return {
        **statement,
        'epsilon': _or_none(epsilon.headline),
        'delta': plan.target_delta,
        'delta_times_units': delta_times_units(plan),
        'target_epsilon': plan.target_epsilon,
        'epsilon_of_the_ideal_mechanism': _or_none(epsilon.smallest_bound),
        f'epsilon_pld{suffix}': _or_none(epsilon.pld),
        f'epsilon_rdp{suffix}': _or_none(epsilon.rdp),
        'accountant': epsilon.accountant,
        'epsilon_by_images_per_person': epsilon_by_images_per_person(spent),
        'warm_start': _warm_start_statement(spent),
        'events': [{'event': event, 'steps': count} for event, count in spent.spent],
        'unverified_resumes': spent.unverified_resumes,
        'neighboring_relation': 'ADD_OR_REMOVE_ONE',
        'steps': spent.reserved_steps,
        'changes_of_mechanism': spent.changes,
        **_mechanism_statement(plan, mechanism, config),
        'randomness': 'operating system'
        if config.privacy.secure_noise
        else 'Philox under secret keys from the operating system; the guarantee is computational',
        'noise': _noise_statement(spent, epsilon),
        'proven': list(PROVEN),
        'tested_not_proven': list(TESTED),
        'not_covered': [
            *NOT_COVERED,
            *_read_off(config),
            *(NOT_COVERED_PER_IMAGE if plan.images_per_person is None else NOT_COVERED_PER_PERSON),
        ],
    }


def _read_off(config: RunConfig) -> list[str]:
    """What of the public facts was not declared but read off the records."""
    names = [name.replace('_', ' ') for name in config.data.read_off]
    return [f'{NOT_COVERED_READ_OFF}: {", ".join(names)}'] if names else []


def _noise_statement(spent: ledger.Ledger, epsilon: accounting.Epsilon) -> dict:
    """How the noise is drawn, and what that costs."""
    draws = sum(map(_draws, spent.plans))
    return {
        'law': 'discrete Gaussian of integers, exact within 13 standard deviations of its parts',
        'standard_deviation_in_steps_of_the_grid': grid.STDDEV,
        'numbers_drawn_at_most': draws,
        'log2_of_what_that_adds_to_delta': _or_none(
            grid.log2_delta_of_draws(epsilon.smallest_bound, draws)
        ),
        'delta_accounted_for_the_ideal_mechanism': _accounted_delta(spent.plan),
        'allowance_for_float32': grid.SLACK,
    }


def _mechanism_statement(plan: ledger.Plan, mechanism: Mechanism, config: RunConfig) -> dict:
    """How the private steps work; nothing of it where none is planned."""
    if not plan.train_steps:
        return {'mechanism': 'the warm start alone: no private steps'}
    event = accounting.event_from_dict(plan.event)
    gaussian = event if mechanism.hides_buffer else event.event
    return {
        'mechanism': f'Gaussian on clipped per-example gradients, {_kind(mechanism)}',
        'private_step_updates': _learns_of_records(config),
        'private_parameters': plan.private_parameters,
        'sampling': 'Poisson',
        'sampling_probability': _sampling_probability(plan),
        'expected_batch_size': plan.expected_batch_size,
        **dataclasses.asdict(mechanism),
        'noise_multiplier_accounted': gaussian.noise_multiplier,
    }


def _warm_start_statement(spent: ledger.Ledger) -> dict | None:
    plan = spent.first_plan
    if plan.warm_start_event is None or not spent.warm_start_reserved:
        return None
    noise_multipliers = noise_of_releases(plan)
    if len(noise_multipliers) == 1:
        mechanism = (
            'one Gaussian release of the per-class sums of bounded features of all records, not '
            'sampled, before the first step'
        )
    else:
        mechanism = (
            'two Gaussian releases of the per-class sums of bounded features of all records, not '
            'sampled, before the first step; the second of features chosen after the first; '
            'together they are the one Gaussian of the event'
        )
    return {
        'mechanism': mechanism,
        'event': plan.warm_start_event,
        'noise_multipliers': noise_multipliers,
        # Lost in a crash before they were written down: charged all the same.
        'never_released': [
            name
            for name, entry in (('first', spent.warm_start), ('second', spent.learned_features))
            if entry is not None and entry['sha256'] is None
        ],
        'epsilon_alone': _or_none(warm_start_epsilon(plan).headline),
    }


def _kind(mechanism: Mechanism) -> str:
    if mechanism.hides_buffer:
        return (
            'error feedback from a hidden buffer that is not noised (DiceSGD): every step is '
            'counted unsampled, with sensitivity l2_norm_clip + 2 residual_l2_norm_clip'
        )
    return 'error feedback from noised residuals' if mechanism.feeds_back else 'DP-SGD'


def _learns_of_records(config: RunConfig) -> str:
    """Which networks a private step updates: one norm and one release for all of their gradient."""
    if config.model.reconstruction == 'generator':
        return 'discriminator and generator'
    return 'discriminator'


def _or_none(bound: float | None) -> float | None:
    """JSON has no infinity: a bound that does not exist is null."""
    return bound if bound is not None and math.isfinite(bound) else None
