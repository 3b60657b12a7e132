"""Makes the plan of a new run, and the changed plan of a resumed one. No TensorFlow."""

from __future__ import annotations

import dataclasses
import math

import dp_accounting

from tf_efsgd import rounding
from tf_efsgd.budget.epsilon import filter_of, planned_epsilon
from tf_efsgd.budget.events import accounted_delta, draws, event_of, sampling_probability
from tf_efsgd.config import ConfigError, PrivacyConfig
from tf_efsgd.privacy import accounting, grid
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.privacy.mechanism import ASSUMED_PARAMETERS, Mechanism
from tf_efsgd.privacy.plan import Plan


def make_plan(
    privacy: PrivacyConfig,
    public_facts: dict,
    private_parameters: int,
    *,
    steps_per_entry: int,
    settings_sha256: str,
    say=print,
) -> Plan:
    """Makes the plan of a new run; calibrates the noise if a target is given.

    Args:
      privacy: the settings.
      public_facts: the fields of `Plan` that are about the records, by name.
      private_parameters: how many parameters a private step updates.
      steps_per_entry: how many steps an entry of the ledger reserves at most, at least 1.
      settings_sha256: `config.settings_hash` of all settings; '' for a plan that no ledger will
        hold.
      say: called with a line before something takes a while.

    Returns:
      The plan: all that is fixed before the first step.

    Raises:
      ConfigError: if the settings do not fit the number of records, no noise fits the target, or
        no epsilon can be proven at it.
    """
    plan = Plan(
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
        steps_per_entry=steps_per_entry,
        settings_sha256=settings_sha256,
    )
    _check_batch(privacy, plan)
    if not privacy.private:
        return plan
    _check_delta(privacy, plan)
    plan = _with_warm_start(dataclasses.replace(plan, target_delta=privacy.target_delta), privacy)
    if privacy.noise_multiplier is not None:
        return _with_mechanism(plan, privacy, privacy.noise_multiplier)
    # Other mistakes are reported before the noise is calibrated. Without steps no noise is needed.
    without_steps = _with_mechanism(plan, privacy, 1.0, is_real=False)
    if not without_steps.train_steps:
        _check_proven(without_steps)
        return without_steps
    say('Calibrating the noise ...', flush=True)
    return _calibrated(plan, privacy)


def plan_without_run(
    privacy: PrivacyConfig,
    dataset_size: int,
    parameters: int | None = None,
    images_per_person: int | None = None,
    persons: int | None = None,
) -> Plan:
    """Makes the plan that a run with these settings would have; no ledger will hold it.

    Args:
      privacy: the settings.
      dataset_size: declared number of records, at least `privacy.expected_batch_size`.
      parameters: how many parameters private steps update. None means 2^20, which is more than
        the networks of the configs have, so their runs spend no more than this plan.
      images_per_person: K, if the unit of privacy is a person; None otherwise.
      persons: declared number of persons, if the unit of privacy is a person; None otherwise.

    Returns:
      The plan, whose facts about the images are placeholders.

    Raises:
      ConfigError: if the launcher would refuse these settings.
    """
    facts = {
        'dataset': '',
        'dataset_size': dataset_size,
        'image_shape': (0, 0, 0),
        'num_classes': 0,
        'images_per_person': images_per_person,
        'persons': persons,
    }
    return make_plan(
        privacy,
        facts,
        parameters or ASSUMED_PARAMETERS,
        steps_per_entry=1,
        settings_sha256='',
        say=lambda *_, **__: None,
    )


def _train_steps(privacy: PrivacyConfig) -> int:
    return 0 if privacy.warm_start_share == 1 else privacy.train_steps


def _check_batch(privacy: PrivacyConfig, plan: Plan) -> None:
    if privacy.expected_batch_size > plan.dataset_size:
        raise ConfigError(
            '--expected_batch_size must be at most the number of records, '
            f'{plan.dataset_size}. Received: {privacy.expected_batch_size}.'
        )


def _check_delta(privacy: PrivacyConfig, plan: Plan) -> None:
    if privacy.target_delta >= 1 / plan.units and not privacy.allow_large_delta:
        raise ConfigError(
            f'--target_delta must be below 1 / number of {plan.name_of_units} = '
            f'{1 / plan.units:.2g}: a mechanism that gives away {plan.one_unit} whole would '
            'satisfy a larger one. Lower it, or accept it with --allow_large_delta. Received: '
            f'{privacy.target_delta:g}.'
        )


def _with_warm_start(plan: Plan, privacy: PrivacyConfig) -> Plan:
    """Returns the plan with the releases of the warm start, if the settings ask for one."""
    images, noise_multiplier = plan.images_per_unit, privacy.warm_start_noise_multiplier
    if privacy.warm_start_share:
        mu = accounting.gaussian_mu(privacy.target_epsilon, accounted_delta(plan))
        effective = 1.0 / (mu * math.sqrt(privacy.warm_start_share))
        noise_multiplier = images * grid.noise_multiplier_for(effective, None)
    if noise_multiplier is None:
        return plan
    return dataclasses.replace(
        plan,
        warm_start_noise_multiplier=noise_multiplier,
        warm_start_event=_warm_start_event(noise_multiplier, images),
    )


def _warm_start_event(noise_multiplier: float, images: int) -> dp_accounting.DpEvent:
    unit = noise_multiplier / images
    if unit < accounting.SMALLEST_NOISE:
        raise ConfigError(
            f'The noise of the warm start must be at least {accounting.SMALLEST_NOISE:g} times '
            'what one unit of privacy can change: lower the share or the target, or raise the '
            f'noise. Received: {unit:.3g} times.'
        )
    return dp_accounting.GaussianDpEvent(grid.effective_noise_multiplier(unit, None))


def _calibrated(plan: Plan, privacy: PrivacyConfig) -> Plan:
    """Returns the plan with the least noise that meets the target."""
    mechanism = _mechanism(privacy, 1.0)
    target = (privacy.target_epsilon, accounted_delta(plan))
    warm_start, images = plan.warm_start_event, plan.images_per_unit
    try:
        if mechanism.hides_buffer:
            effective = accounting.calibrate_unsampled_noise_multiplier(
                *target, privacy.train_steps, warm_start
            )
        else:
            sampled = accounting.person_sampling_probability(sampling_probability(plan), images)
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
    while True:  # The result must not exceed the target by the last digit of an accountant either.
        calibrated = _with_mechanism(plan, privacy, noise_multiplier)
        epsilon = planned_epsilon(calibrated)
        if epsilon.smallest_bound <= privacy.target_epsilon:
            break
        noise_multiplier *= 1.0001
    _check_proven(calibrated)
    return calibrated


def _check_proven(plan: Plan) -> None:
    """Raises ConfigError if the target is so large that its epsilon cannot be proven."""
    if not planned_epsilon(plan).is_proven:
        largest = rounding.down(grid.largest_epsilon(plan.target_delta, draws(plan)), 2)
        raise ConfigError(
            'An ε this large cannot be proven, because the noise is drawn with 128 bits: choose '
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
    plan: Plan, privacy: PrivacyConfig, noise_multiplier: float, *, is_real: bool = True
) -> Plan:
    """Returns the plan with the steps that the settings ask for, at this noise.

    If the noise is not real, no step will use it: it stands in for a noise that is not known yet,
    or there are no steps.

    Raises:
      ConfigError: if there are fewer records than in a batch, or if the noise is too small.
    """
    _check_batch(privacy, plan)
    mechanism = _mechanism(privacy, noise_multiplier)
    unit = mechanism.unit_noise_multiplier(plan.images_per_unit)
    if is_real and unit < accounting.SMALLEST_NOISE:
        raise ConfigError(
            f'The noise must be at least {accounting.SMALLEST_NOISE:g} times what one unit of '
            'privacy can change in a step, since less protects nothing: raise --noise_multiplier. '
            f'Received: {unit:.3g} times.'
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
        sampled = sampling_probability(plan)
        unproven = accounting.step_event(sampled, noise_multiplier)
    event = event_of(plan, noise_multiplier)
    return dataclasses.replace(plan, event=event, unproven_event=unproven)


def changed_plan(privacy: PrivacyConfig, ledger: Ledger, *, is_allowed: bool) -> Plan | None:
    """Makes the plan of a resumed run whose settings differ from its ledger's plan.

    The noise stays as it was unless `noise_multiplier` is given.

    Args:
      privacy: the settings.
      ledger: the ledger of the run, which is not written to.
      is_allowed: whether the user asked for a change.

    Returns:
      The new plan; None if the settings agree with the ledger.

    Raises:
      ConfigError: if the user did not ask for the change, or if it does not fit what is left of the
        budget.
    """
    old = ledger.plan
    if old.event is None:
        return None
    noise_multiplier = privacy.noise_multiplier or old.mechanism['noise_multiplier']
    new = _with_mechanism(old, privacy, noise_multiplier, is_real=bool(_train_steps(privacy)))
    if new == old:
        return None
    if not is_allowed:
        raise ConfigError(
            'The privacy settings differ from the last plan in the ledger: resume with the same '
            'settings, or allow the change with --change_mechanism.'
        )
    if 'hidden' in (old.mechanism['error_feedback'], privacy.error_feedback):
        raise ConfigError(
            'A run cannot change to or from --error_feedback=hidden: its buffer is private state. '
            'Start a new run folder.'
        )
    _check_filter(new, ledger)
    return new


def _check_filter(new: Plan, ledger: Ledger) -> None:
    """Raises ConfigError unless the privacy filter of the first plan allows the new one."""
    if new.target_epsilon is None and ledger.first_plan.target_epsilon is not None:
        raise ConfigError(
            'A run that was started with --target_epsilon='
            f'{ledger.first_plan.target_epsilon:g} needs a target after a change too.'
        )
    warm_start = ledger.first_plan.warm_start_event
    budget = filter_of(ledger)
    if new.target_epsilon is not None and budget.epsilon > new.target_epsilon:
        raise ConfigError(
            'After a change of the mechanism PLD no longer holds, and the budget is the RDP filter '
            f'of the first plan, epsilon = {rounding.up(budget.epsilon)}: accept it with '
            f'--target_epsilon={rounding.up(budget.epsilon)}, or start a new run '
            f'folder. Received: --target_epsilon={new.target_epsilon:g}.'
        )
    # The warm start counts even if it is not charged yet, since it will be.
    used = ledger.events + ([(warm_start, 1)] if warm_start else [])
    left = budget.steps_left(used, new.event)
    most = ledger.reserved_steps + left
    if not ledger.reserved_steps < new.train_steps <= most:
        allowed = f'--train_steps={most} or less' if left else 'nothing: start a new run folder'
        raise ConfigError(
            f'{ledger.reserved_steps} steps are spent; with these settings the budget allows '
            f'{allowed}. Received: --train_steps={new.train_steps}.'
        )
