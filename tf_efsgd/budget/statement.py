"""The privacy statement of a run: what was promised, computed from its ledger. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_efsgd.budget import epsilon as epsilons
from tf_efsgd.budget.events import (
    accounted_delta,
    delta_times_units,
    draws,
    mechanism_of,
    noise_of_releases,
    sampling_probability,
)
from tf_efsgd.config import DataConfig, ModelConfig, PrivacyConfig, recipes
from tf_efsgd.privacy import accounting, grid
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.privacy.mechanism import Mechanism
from tf_efsgd.privacy.plan import Plan

# A larger budget is not called private, whatever was asked for: e^100 bounds nothing.
LARGEST_EPSILON = 100.0

NOT_COVERED = (
    'anything in the folder nonprivate/ (evaluation against real images)',
    'the choice of settings after looking at other runs on the same records',
    'other runs on the same records, and copies of this run folder that were trained further: '
    'their epsilons and deltas add up',
    'the declared number of records, the image size, the channels, the classes and all settings, '
    'which are public',
    'the time that steps take',
)
# Stated if public facts were not declared; their names follow.
NOT_COVERED_READ_OFF = (
    'facts that were read off the records once, before the start, and are published with all '
    'settings'
)
NOT_COVERED_PER_IMAGE = (
    'several records of one person: the guarantee is per record (one image with its label); '
    'epsilon_by_images_per_person, where it is given, states it for several',
)
NOT_COVERED_PER_PERSON = (
    'an image that was assigned to a person other than the one it shows',
    'the declared number of persons, which is public',
)
PROVEN = (
    'every record adds at most its clipping norms to a step, and at most norm 1, held in integers, '
    'to a release before the first step',
    'the released numbers are integers on a public grid, their noise has the exact law of a '
    'discrete Gaussian, and the two together are post-processing of the accounted Gaussian '
    'mechanism',
    'adding up the clipped gradients of a step in floating point moves neighbours apart by less '
    f'than half of an allowance of {grid.SLACK:g} of the clipping norm, in steps of up to 1,024 '
    'records or twice the expected number; a larger step has a probability below 1e-40 if the '
    'declared number of records is at least four fifths of the true one',
    'the accounted noise multipliers are lowered by what rounding to the grid costs, and the '
    'accounted delta by how far the noise is from its law',
)
TESTED = (
    'the norm by which a gradient is clipped has an error from float32 arithmetic; tests with '
    'adversarial batches keep it within the other half of the allowance, and the whole allowance '
    'is accounted',
    'the features of one record, and what the layers of a private network put out for it (if they '
    'have no rule of fast clipping: its loss), depend neither on the other records that are '
    'computed beside it nor on its place among them; every process tries this, to the last bit, '
    'before its first look at records, but not the way back through the layers',
)


def make_statement(
    ledger: Ledger,
    applied_steps: int,
    software: dict[str, str],
    *,
    data: DataConfig,
    privacy: PrivacyConfig,
    model: ModelConfig,
) -> dict:
    """Makes the privacy statement: what was promised, computed from the ledger.

    Args:
      ledger: the ledger of the run.
      applied_steps: number of steps that training has applied.
      software: versions of software by name.
      data: the data settings, which say which public facts were read off the records.
      privacy: the privacy settings, which say where randomness comes from and whether public
        images were used.
      model: the model settings, which say which networks learn from records.

    Returns:
      JSON values by name.
    """
    plan = ledger.plan
    statement: dict[str, Any] = {
        'unit_of_privacy': plan.unit_of_privacy,
        'private': plan.event is not None,
        'dataset': plan.dataset,
        'dataset_size': plan.dataset_size,
        'persons': plan.persons,
        'record': 'one image with its label',
        'applied_steps': applied_steps,
        'software': software,
        'public_images': _public_images(privacy),
    }
    if plan.event is None:
        return {**statement, 'mechanism': 'none: trained without clipping and noise'}
    mechanism, epsilon = mechanism_of(plan), epsilons.claimed_epsilon(ledger)
    has_more = epsilons.has_more_planned(ledger)
    statement['private'] = epsilon.headline <= LARGEST_EPSILON
    if mechanism.hides_buffer:
        steps = plan.train_steps if has_more else ledger.reserved_steps
        unproven = epsilons.unproven_epsilon(plan, steps)
        statement['private'] &= (
            plan.target_epsilon is not None and epsilon.headline <= plan.target_epsilon
        )
        statement['epsilon_unproven'] = epsilons.or_none(unproven)
    # After a change these two would hold only for a sequence fixed in advance, which this is not.
    suffix = '_fixed_in_advance_only' if ledger.changes else ''
    return {
        **statement,
        'epsilon': epsilons.or_none(epsilon.headline),
        **(_fixed_stop(ledger) if has_more else {}),
        'delta': plan.target_delta,
        'delta_times_units': delta_times_units(plan),
        'target_epsilon': plan.target_epsilon,
        'epsilon_of_the_ideal_mechanism': epsilons.or_none(epsilon.smallest_bound),
        f'epsilon_pld{suffix}': epsilons.or_none(epsilon.pld),
        f'epsilon_rdp{suffix}': epsilons.or_none(epsilon.rdp),
        'accountant': epsilon.accountant,
        'epsilon_by_images_per_person': epsilons.epsilon_by_images_per_person(ledger),
        'warm_start': _warm_start_statement(ledger),
        'events': [
            {'event': accounting.event_to_dict(event), 'steps': count}
            for event, count in ledger.events
        ],
        'unverified_resumes': ledger.unverified_resumes,
        'neighboring_relation': 'ADD_OR_REMOVE_ONE',
        'steps': ledger.reserved_steps,
        'planned_steps': plan.train_steps,
        'changes_of_mechanism': ledger.changes,
        **_mechanism_statement(plan, mechanism, model),
        'randomness': 'operating system'
        if privacy.secure_noise
        else 'Philox under secret keys from the operating system; the guarantee is computational',
        'noise': _noise_statement(ledger, epsilon),
        'proven': list(PROVEN),
        'tested_not_proven': list(TESTED),
        'not_covered': [
            *NOT_COVERED,
            *_read_off(data),
            *(NOT_COVERED_PER_IMAGE if plan.images_per_person is None else NOT_COVERED_PER_PERSON),
        ],
    }


def _fixed_stop(ledger: Ledger) -> dict:
    """What holds of a run that ended before its plan, if nothing that it showed made it end."""
    spent = epsilons.spent_epsilon(ledger)
    return {'epsilon_if_the_stop_was_fixed_in_advance': epsilons.or_none(spent.headline)}


def _public_images(privacy: PrivacyConfig) -> str | None:
    """Says which other images the result was learned from; no guarantee covers those."""
    if not recipes.uses_public_features(privacy):
        return None
    network = privacy.public_features
    if network == recipes.PUBLIC_NETWORK:
        return f'features of a network that learned from ImageNet ({network})'
    if recipes.is_path(network):
        name = recipes.without_folder(network)
        return f'features of a network ({name}) that, says its user, learned from public images'
    return f'features of a network of Keras that learned from ImageNet ({network})'


def _read_off(data: DataConfig) -> list[str]:
    """Lists the public facts that were not declared but read off the records."""
    names = [name.replace('_', ' ') for name in data.read_off]
    return [f'{NOT_COVERED_READ_OFF}: {", ".join(names)}'] if names else []


def _noise_statement(ledger: Ledger, epsilon: accounting.Epsilon) -> dict:
    """Says how the noise is drawn, and what that costs."""
    drawn = sum(map(draws, ledger.plans))
    return {
        'law': 'discrete Gaussian of integers, exact within 13 standard deviations of its parts',
        'standard_deviation_in_steps_of_the_grid': grid.STDDEV,
        'numbers_drawn_at_most': drawn,
        'log2_of_what_that_adds_to_delta': epsilons.or_none(
            grid.log2_delta_of_draws(epsilon.smallest_bound, drawn)
        ),
        'delta_accounted_for_the_ideal_mechanism': accounted_delta(ledger.plan),
        'allowance_for_float32': grid.SLACK,
    }


def _mechanism_statement(plan: Plan, mechanism: Mechanism, model: ModelConfig) -> dict:
    """Says how the private steps work, or that none is planned."""
    if not plan.train_steps:
        return {'mechanism': 'the warm start alone: no private steps'}
    event = plan.event
    gaussian = event if mechanism.hides_buffer else event.event
    return {
        'mechanism': f'Gaussian on clipped per-example gradients, {_kind(mechanism)}',
        'private_step_updates': _learns_of_records(model),
        'private_parameters': plan.private_parameters,
        'sampling': 'Poisson',
        'sampling_probability': sampling_probability(plan),
        'expected_batch_size': plan.expected_batch_size,
        **dataclasses.asdict(mechanism),
        'noise_multiplier_accounted': gaussian.noise_multiplier,
    }


def _warm_start_statement(ledger: Ledger) -> dict | None:
    plan = ledger.first_plan
    if plan.warm_start_event is None or not ledger.warm_start_reserved:
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
            'sampled, before the first step; the second uses features chosen after the first; '
            'together they are the one Gaussian of the event'
        )
    return {
        'mechanism': mechanism,
        'event': accounting.event_to_dict(plan.warm_start_event),
        'noise_multipliers': noise_multipliers,
        # A crash lost these before they were recorded; they stay charged.
        'never_released': [
            name
            for name, entry in (('first', ledger.warm_start), ('second', ledger.learned_features))
            if entry is not None and entry['sha256'] is None
        ],
        'epsilon_alone': epsilons.or_none(epsilons.warm_start_epsilon(plan).headline),
    }


def _kind(mechanism: Mechanism) -> str:
    if mechanism.hides_buffer:
        return (
            'error feedback from a hidden buffer that is not noised (DiceSGD): every step is '
            'counted unsampled, with sensitivity l2_norm_clip + 2 residual_l2_norm_clip'
        )
    return 'error feedback from noisy residuals' if mechanism.feeds_back else 'DP-SGD'


def _learns_of_records(model: ModelConfig) -> str:
    """Names the networks whose gradient a private step clips, with one norm, and releases."""
    if model.reconstruction == 'generator':
        return 'discriminator and generator'
    if model.discriminator == 'public_heads':
        return 'heads on the frozen public network; a step sees features of records, not images'
    return 'discriminator'
