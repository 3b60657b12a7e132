"""What a run may spend and what it has spent: its plan, a change of the plan, its statement."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import dp_accounting

from tf_efsgd.config import ConfigError, PrivacyConfig, RunConfig
from tf_efsgd.privacy import accounting, ledger
from tf_efsgd.privacy.optimizer import Mechanism

# Where things are, what computes them and what is shown; never what is computed. The data set's
# place is compared by its records.
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

# Above this no budget is called private, whatever was asked for: e^100 bounds nothing.
LARGEST_EPSILON = 100.0

NOT_COVERED = (
    'anything in the folder nonprivate/ (evaluation against real images)',
    'the choice of settings after looking at other runs on the same records',
    'other runs on the same records, and copies of this run folder that were trained further: '
    'their epsilons add up',
    'the declared number of records, the image size, the classes and all settings, which are '
    'public',
    'the time that steps take',
    'several records of one person: the guarantee is per record (one image with its label)',
)


def make_plan(config: RunConfig, public_facts: dict) -> ledger.Plan:
    """The plan of a new run: calibrates the noise when a target is given.

    Args:
      config: the settings.
      public_facts: of the records, the fields of `Plan` from 'dataset' to 'num_classes'.

    Returns:
      What is fixed before the first step.

    Raises:
      ConfigError: if the settings do not fit the number of records, or no noise fits the target.
    """
    privacy, size = config.privacy, public_facts['dataset_size']
    _check_batch(privacy, size)
    plan = ledger.Plan(
        **public_facts,
        event=None,
        unproven_event=None,
        expected_batch_size=privacy.expected_batch_size,
        mechanism={},
        warm_start_event=None,
        learned_features_share=privacy.learned_features_share if privacy.has_warm_start else 0.0,
        train_steps=_train_steps(privacy),
        target_delta=None,
        target_epsilon=None,
        steps_per_entry=config.run.log_steps,
        settings_sha256=settings_hash(config),
    )
    if not privacy.private:
        return plan
    if privacy.target_delta >= 1 / size:
        print(
            f'WARNING: --target_delta={privacy.target_delta:g} is not below 1 / number of '
            f'records = {1 / size:.1e}; such a guarantee says little.'
        )
    plan = dataclasses.replace(
        plan, target_delta=privacy.target_delta, warm_start_event=_warm_start_event(privacy)
    )
    noise_multiplier = privacy.noise_multiplier
    if noise_multiplier is None:
        # What is wrong besides the noise is told at once. Without steps no noise is needed.
        without_steps = _with_mechanism(plan, privacy, 1.0, is_real=False)
        if not without_steps.train_steps:
            return without_steps
        noise_multiplier = _calibrate(privacy, size, warm_start_of(plan))
    return _with_mechanism(plan, privacy, noise_multiplier)


def _train_steps(privacy: PrivacyConfig) -> int:
    return 0 if privacy.warm_start_share == 1 else privacy.train_steps


def _warm_start_event(privacy: PrivacyConfig) -> dict | None:
    try:
        event = accounting.warm_start_event(
            privacy.target_epsilon,
            privacy.target_delta,
            privacy.warm_start_share,
            privacy.warm_start_noise_multiplier,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return None if event is None else accounting.event_to_dict(event)


def _check_batch(privacy, dataset_size: int) -> None:
    if privacy.expected_batch_size > dataset_size:
        raise ConfigError(
            f'--expected_batch_size must be at most the number of records, {dataset_size}. '
            f'Received: {privacy.expected_batch_size}.'
        )


def _calibrate(privacy, dataset_size: int, warm_start) -> float:
    print('Calibrating the noise ...', flush=True)
    try:
        if privacy.error_feedback == 'hidden':
            return accounting.calibrate_hidden_noise_multiplier(
                privacy.target_epsilon,
                privacy.target_delta,
                privacy.train_steps,
                privacy.l2_norm_clip,
                privacy.residual_l2_norm_clip,
                warm_start,
            )
        return accounting.calibrate_noise_multiplier(
            privacy.target_epsilon,
            privacy.target_delta,
            accounting.sampling_probability(privacy.expected_batch_size, dataset_size),
            privacy.train_steps,
            warm_start,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _with_mechanism(
    plan: ledger.Plan, privacy, noise_multiplier: float, *, is_real: bool = True
) -> ledger.Plan:
    """The plan with the steps that the settings ask for, at this noise.

    Where it is not real, no step will have it: it stands in for one that is not known yet, or for
    that of no steps.

    Raises:
      ConfigError: if there are fewer records than in a batch, or too little noise.
    """
    _check_batch(privacy, plan.dataset_size)
    mechanism = Mechanism(
        noise_multiplier=noise_multiplier,
        **{
            field.name: getattr(privacy, field.name)
            for field in dataclasses.fields(Mechanism)
            if field.name != 'noise_multiplier'
        },
    )
    sampled = accounting.sampling_probability(privacy.expected_batch_size, plan.dataset_size)
    event = mechanism.step_event(sampled)
    effective = event.noise_multiplier if mechanism.hides_buffer else noise_multiplier
    if is_real and effective < accounting.SMALLEST_NOISE:
        raise ConfigError(
            f'The noise must be at least {accounting.SMALLEST_NOISE:g} times what one record moves '
            f'a step by; less protects nothing, and its tails end too early. Received: '
            f'{effective:.3g}. Raise --noise_multiplier.'
        )
    unproven = None
    if mechanism.hides_buffer:
        unproven = accounting.event_to_dict(accounting.step_event(sampled, noise_multiplier))
    return dataclasses.replace(
        plan,
        event=accounting.event_to_dict(event),
        unproven_event=unproven,
        expected_batch_size=privacy.expected_batch_size,
        mechanism=dataclasses.asdict(mechanism),
        train_steps=_train_steps(privacy),
        target_epsilon=privacy.target_epsilon,
    )


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
    budget = accounting.RenyiFilter.of_plan(*_planned(spent), new.target_delta, warm_start)
    if new.target_epsilon is not None and budget.epsilon > new.target_epsilon:
        raise ConfigError(
            'After a change of the mechanism PLD no longer holds and the budget is the RDP filter '
            f'of the plan at the start, epsilon = {budget.epsilon:.4g}: accept it with '
            f'--target_epsilon={math.ceil(budget.epsilon * 100) / 100:g}, or start a new run '
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


def _planned(spent: ledger.Ledger):
    return accounting.event_from_dict(spent.first_plan.event), spent.first_plan.train_steps


def _spent(spent: ledger.Ledger):
    return [(accounting.event_from_dict(event), count) for event, count in spent.spent]


def warm_start_of(plan: ledger.Plan) -> dp_accounting.DpEvent | None:
    """The event of the planned warm start, of all it releases; None without one."""
    event = plan.warm_start_event
    return None if event is None else accounting.event_from_dict(event)


def noise_of_releases(plan: ledger.Plan) -> list[float]:
    """Noise multipliers of what a private plan's warm start releases, in order."""
    warm_start, share = warm_start_of(plan), plan.learned_features_share
    if warm_start is None:
        return []
    if not share:
        return [warm_start.noise_multiplier]
    return list(accounting.split_release(warm_start.noise_multiplier, share))


def mechanism_of(plan: ledger.Plan) -> Mechanism:
    """The mechanism that a private plan describes."""
    return Mechanism(**plan.mechanism)


def planned_epsilon(plan: ledger.Plan) -> accounting.Epsilon:
    """Epsilon of a private plan: its warm start and all its steps, as if they were the first."""
    event, warm_start = accounting.event_from_dict(plan.event), warm_start_of(plan)
    return accounting.compute_epsilon(event, plan.train_steps, plan.target_delta, warm_start)


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
    warm_start = warm_start_of(spent.first_plan)
    budget = accounting.RenyiFilter.of_plan(*_planned(spent), plan.target_delta, warm_start)
    return accounting.Epsilon(pld=math.inf, rdp=math.inf, rdp_filter=budget.epsilon)


def unproven_epsilon(plan: ledger.Plan, steps: int) -> float | None:
    """What plain DP-SGD accounting would print for a hidden buffer; None for other plans."""
    if plan.unproven_event is None:
        return None
    event, warm_start = accounting.event_from_dict(plan.unproven_event), warm_start_of(plan)
    return accounting.compute_epsilon(event, steps, plan.target_delta, warm_start).headline


def spent_epsilon(spent: ledger.Ledger) -> accounting.Epsilon:
    """Epsilon of everything that a private run's ledger has reserved."""
    return accounting.compute_spent(
        _spent(spent),
        spent.plan.target_delta,
        planned=_planned(spent),
        changed=spent.changes > 0,
        warm_start=warm_start_of(spent.first_plan),
        warm_start_spent=spent.warm_start_reserved,
    )


def settings_hash(config: RunConfig) -> str:
    """Of the settings that a resumed run must share with its first start."""
    changes = {
        field.name: None
        for group in (config.data, config.privacy, config.model, config.training, config.run)
        for field in dataclasses.fields(group)
        if group is config.run or field.name in MAY_CHANGE | MECHANISM
    }
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
        self._meter = None
        if spent.changes:
            self._filter = spent_epsilon(spent).headline
        else:
            event, steps = _planned(spent)
            warm_start = warm_start_of(spent.first_plan) if spent.warm_start_reserved else None
            delta = spent.plan.target_delta
            # A run of the warm start alone has no steps, and is asked for those of 0 only.
            self._meter = accounting.EpsilonMeter(event, max(1, steps), delta, warm_start)

    def __call__(self, applied_steps: int) -> float:
        """Returns the bound when so many steps are applied."""
        if self._meter is None:
            return self._filter
        return self._meter(applied_steps + self._lost)


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
        'private': plan.event is not None,
        'dataset': plan.dataset,
        'dataset_size': plan.dataset_size,
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
        'target_epsilon': plan.target_epsilon,
        f'epsilon_pld{suffix}': _or_none(epsilon.pld),
        f'epsilon_rdp{suffix}': _or_none(epsilon.rdp),
        'accountant': epsilon.accountant,
        'warm_start': _warm_start_statement(spent),
        'events': [{'event': event, 'steps': count} for event, count in spent.spent],
        'unverified_resumes': spent.unverified_resumes,
        'neighboring_relation': 'ADD_OR_REMOVE_ONE',
        'steps': spent.reserved_steps,
        'changes_of_mechanism': spent.changes,
        **_mechanism_statement(plan, mechanism, config),
        'randomness': 'operating system'
        if config.privacy.secure_noise
        else 'Philox under secret keys from the operating system',
        'not_covered': list(NOT_COVERED),
    }


def _mechanism_statement(plan: ledger.Plan, mechanism: Mechanism, config: RunConfig) -> dict:
    """How the private steps work; nothing of it where none is planned."""
    if not plan.train_steps:
        return {'mechanism': 'the warm start alone: no private steps'}
    return {
        'mechanism': f'Gaussian on clipped per-example gradients, {_kind(mechanism)}',
        'private_step_updates': _learns_of_records(config),
        'sampling': 'Poisson',
        'sampling_probability': accounting.sampling_probability(
            plan.expected_batch_size, plan.dataset_size
        ),
        'expected_batch_size': plan.expected_batch_size,
        **dataclasses.asdict(mechanism),
    }


def _warm_start_statement(spent: ledger.Ledger) -> dict | None:
    warm_start = warm_start_of(spent.first_plan)
    if warm_start is None or not spent.warm_start_reserved:
        return None
    alone = accounting.compute_epsilon(None, 0, spent.first_plan.target_delta, warm_start)
    noise_multipliers = noise_of_releases(spent.first_plan)
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
        'event': spent.first_plan.warm_start_event,
        'noise_multipliers': noise_multipliers,
        # Lost in a crash before they were written down: charged all the same.
        'never_released': [
            name
            for name, entry in (('first', spent.warm_start), ('second', spent.learned_features))
            if entry is not None and entry['sha256'] is None
        ],
        'epsilon_alone': alone.headline,
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
