"""The only place that turns settings into a plan, an epsilon and a statement. No TensorFlow."""

from tf_efsgd.budget.epsilon import (
    EpsilonSoFar,
    claimed_epsilon,
    epsilon_by_images_per_person,
    planned_epsilon,
    promised_epsilon,
    rdp_epsilon,
    spent_epsilon,
    unproven_epsilon,
    warm_start_epsilon,
)
from tf_efsgd.budget.events import delta_times_units, event_of, mechanism_of, noise_of_releases
from tf_efsgd.budget.plan import changed_plan, make_plan, plan_without_run
from tf_efsgd.budget.statement import PROVEN, TESTED, make_statement

__all__ = [
    'EpsilonSoFar',
    'PROVEN',
    'TESTED',
    'changed_plan',
    'claimed_epsilon',
    'delta_times_units',
    'epsilon_by_images_per_person',
    'event_of',
    'make_plan',
    'make_statement',
    'mechanism_of',
    'noise_of_releases',
    'plan_without_run',
    'planned_epsilon',
    'promised_epsilon',
    'rdp_epsilon',
    'spent_epsilon',
    'unproven_epsilon',
    'warm_start_epsilon',
]
