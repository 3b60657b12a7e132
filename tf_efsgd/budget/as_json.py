"""A forecast, or what a ledger has spent, as JSON values by name. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_efsgd.budget.epsilon import or_none, spent_epsilon, warm_start_epsilon
from tf_efsgd.budget.events import delta_times_units
from tf_efsgd.budget.forecast import Forecast
from tf_efsgd.privacy import accounting
from tf_efsgd.privacy import plan as plans
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.privacy.plan import Plan


def of_forecast(forecast: Forecast) -> dict[str, Any]:
    """The contents of `text.format_forecast` as JSON values by name.

    Args:
      forecast: the forecast of a run that has not started.
    """
    plan = forecast.plan
    warm_start = None if forecast.warm_start is None else warm_start_epsilon(plan)
    return {
        **_of_promise(plan, forecast.epsilon),
        'target_epsilon': plan.target_epsilon,
        'unproven_epsilon': forecast.unproven,
        'warm_start_epsilon': None if warm_start is None else or_none(warm_start.headline),
        'dataset_size': forecast.dataset_size,
        'expected_batch_size': plan.expected_batch_size,
        'sampling_probability': forecast.sampling_probability,
        'train_steps': plan.train_steps,
        'epochs': forecast.epochs,
        'noise_multiplier': forecast.noise_multiplier,
        'warm_start_noise_multiplier': plan.warm_start_noise_multiplier,
        'event': plans.event_to_json(forecast.event),
        'warm_start_event': plans.event_to_json(forecast.warm_start),
        'noise': {name: dataclasses.asdict(noise) for name, noise in forecast.noise.items()},
        'table': None if forecast.table is None else dataclasses.asdict(forecast.table),
    }


def of_ledger(ledger: Ledger) -> dict[str, Any]:
    """The contents of `text.format_ledger` as JSON values by name.

    Args:
      ledger: the ledger of a run; computing its epsilon takes seconds.
    """
    plan = ledger.plan
    spent = None if plan.event is None else spent_epsilon(ledger)
    return {
        'run_id': ledger.run_id,
        **_of_promise(plan, spent),
        'steps': ledger.reserved_steps,
        'warm_start': ledger.warm_start_reserved,
        'changes': ledger.changes,
        'plans': [plans.to_json(one) for one in ledger.plans],
    }


def _of_promise(plan: Plan, epsilon: accounting.Epsilon | None) -> dict[str, Any]:
    if epsilon is None:
        return {'private': False, 'unit_of_privacy': plan.unit_of_privacy, 'epsilon': None}
    return {
        'private': True,
        'unit_of_privacy': plan.unit_of_privacy,
        'epsilon': or_none(epsilon.headline),
        'epsilon_pld': or_none(epsilon.pld),
        'epsilon_rdp': or_none(epsilon.rdp),
        'delta': plan.target_delta,
        'delta_times_units': delta_times_units(plan),
    }
