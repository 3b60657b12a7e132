"""Plans of runs that are never trained: from settings, and as they stand in a ledger."""

import dataclasses

import dp_accounting

from tf_efsgd import budget, config
from tf_efsgd.privacy.plan import Plan

RECORDS, PARAMETERS = 1602, 1234
FACTS = {
    'dataset': 'digits',
    'dataset_size': RECORDS,
    'image_shape': (8, 8, 1),
    'num_classes': 10,
}
PERSONS = {'images_per_person': 5, 'persons': 700}
HIDDEN = '--error_feedback=hidden\n--residual_l2_norm_clip=2\n--train_steps=100\n'

_PLAN = Plan(
    dataset='mnist',
    dataset_size=60_000,
    image_shape=(28, 28, 1),
    num_classes=10,
    event=dp_accounting.GaussianDpEvent(0.7),
    unproven_event=None,
    expected_batch_size=30,
    mechanism={'noise_multiplier': 0.7, 'l2_norm_clip': 0.3},
    private_parameters=1_234,
    warm_start_event=None,
    warm_start_noise_multiplier=None,
    learned_features_share=0.0,
    train_steps=100,
    target_delta=1e-5,
    target_epsilon=None,
    steps_per_entry=30,
    settings_sha256='abc',
)


def in_ledger(**changes):
    """Returns a plan with nothing special but these changes."""
    return dataclasses.replace(_PLAN, **changes)


def settings(*flags):
    """Reads settings from lines of a flagfile."""
    return config.from_flagfile('\n'.join(flags))


def plan(*flags, **facts):
    """Makes the plan of these settings for the digits, or for other public facts."""
    # Without the line that says that it takes a while.
    said = []
    given = settings(*flags)
    return budget.make_plan(
        given.privacy,
        {**FACTS, **facts},
        PARAMETERS,
        steps_per_entry=given.run.log_steps,
        settings_sha256=config.settings_hash(given),
        say=lambda text, **_: said.append(text),
    )
