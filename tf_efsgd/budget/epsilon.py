"""The epsilon of a plan, of a ledger, and of a run while it trains. No TensorFlow."""

from __future__ import annotations

import dataclasses
import math

import dp_accounting

from tf_efsgd.budget.events import accounted_delta, draws, event_of
from tf_efsgd.privacy import accounting, grid
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.privacy.plan import Plan

# A statement whose unit is one image also gives the epsilon for persons with so many images.
IMAGES_PER_PERSON = (2, 5, 10)


def filter_of(ledger: Ledger) -> accounting.RenyiFilter:
    """The privacy filter that a private run must respect after a change of its mechanism."""
    plan = ledger.first_plan
    return accounting.RenyiFilter.of_plan(
        *_planned(ledger), accounted_delta(plan), plan.warm_start_event
    )


def _planned(ledger: Ledger) -> tuple[dp_accounting.DpEvent, int]:
    return ledger.first_plan.event, ledger.first_plan.train_steps


def _proven(epsilon: accounting.Epsilon, *plans: Plan) -> accounting.Epsilon:
    """Marks an epsilon of the ideal mechanism as proven, if it is, for the noise really drawn."""
    drawn, delta = sum(map(draws, plans)), plans[-1].target_delta
    is_proven = grid.is_negligible(epsilon.smallest_bound, delta, drawn)
    return dataclasses.replace(epsilon, is_proven=is_proven)


def planned_epsilon(plan: Plan) -> accounting.Epsilon:
    """The epsilon of a private plan alone: its warm start and all of its steps."""
    event, delta = plan.event, accounted_delta(plan)
    epsilon = accounting.compute_epsilon(event, plan.train_steps, delta, plan.warm_start_event)
    return _proven(epsilon, plan)


def warm_start_epsilon(plan: Plan) -> accounting.Epsilon:
    """The epsilon of a private plan's warm start alone."""
    delta = accounted_delta(plan)
    return _proven(accounting.compute_epsilon(None, 0, delta, plan.warm_start_event), plan)


def rdp_epsilon(plan: Plan, steps: int, noise_multiplier: float) -> float:
    """Bounds the epsilon of a private plan with other steps and noise; takes milliseconds.

    Args:
      plan: the private plan.
      steps: number of private steps, at least 1.
      noise_multiplier: sigma > 0.

    Returns:
      The bound by RDP, or by the closed form if the steps are not sampled. Infinite where none is
      proven.
    """
    event, warm_start = event_of(plan, noise_multiplier), plan.warm_start_event
    delta = accounted_delta(plan)
    if isinstance(event, dp_accounting.GaussianDpEvent):
        epsilon = accounting.compute_epsilon(event, steps, delta, warm_start)
    else:
        before = [] if warm_start is None else [(warm_start, 1)]
        by_rdp = accounting.rdp_epsilon_of([*before, (event, steps)], delta)
        epsilon = accounting.Epsilon(pld=math.inf, rdp=by_rdp)
    return _proven(epsilon, dataclasses.replace(plan, train_steps=steps)).headline


def promised_epsilon(plan: Plan, ledger: Ledger | None) -> accounting.Epsilon:
    """The epsilon of the whole run if its next steps follow a plan.

    Args:
      plan: a private plan: the last one of the ledger, or one that would follow it.
      ledger: the ledger; None for a new run.

    Returns:
      `planned_epsilon` if the mechanism never changes, and the filter of the first plan otherwise.
    """
    if ledger is None or (not ledger.changes and plan == ledger.first_plan):
        return planned_epsilon(plan)
    filtered = accounting.Epsilon(pld=math.inf, rdp=math.inf, rdp_filter=filter_of(ledger).epsilon)
    return _proven(filtered, *ledger.plans, plan)


def unproven_epsilon(plan: Plan, steps: int) -> float | None:
    """The epsilon that plain DP-SGD accounting would print for a hidden buffer; no bound.

    Args:
      plan: any plan.
      steps: number of private steps.

    Returns:
      That number; None for plans without a hidden buffer.
    """
    if plan.unproven_event is None:
        return None
    event, warm_start = plan.unproven_event, plan.warm_start_event
    return accounting.compute_epsilon(event, steps, plan.target_delta, warm_start).smallest_bound


def spent_epsilon(ledger: Ledger) -> accounting.Epsilon:
    """The epsilon of everything that a private run's ledger has reserved."""
    epsilon = accounting.compute_spent(
        ledger.events,
        accounted_delta(ledger.plan),
        planned=_planned(ledger),
        changed=ledger.changes > 0,
        warm_start=ledger.first_plan.warm_start_event,
        warm_start_spent=ledger.warm_start_reserved,
    )
    return _proven(epsilon, *ledger.plans)


def has_more_planned(ledger: Ledger) -> bool:
    """Whether less was reserved than the first plan says, by a run that never changed it."""
    plan = ledger.first_plan
    has_release_left = plan.warm_start_event is not None and not ledger.warm_start_reserved
    is_left = has_release_left or ledger.reserved_steps < plan.train_steps
    return not ledger.changes and is_left


def claimed_epsilon(ledger: Ledger) -> accounting.Epsilon:
    """The epsilon that a private run may claim, whatever made it stop where it is.

    Whoever stops a run early may do so because of what it showed. The epsilon of the steps so far
    holds only if the stop was decided before the run; that of the whole plan holds for any stop.
    """
    if has_more_planned(ledger):
        return planned_epsilon(ledger.first_plan)
    return spent_epsilon(ledger)


def epsilon_by_images_per_person(ledger: Ledger) -> dict[int, float | None] | None:
    """What `claimed_epsilon` is for persons with several images, if the unit is one image.

    Args:
      ledger: the ledger of a private run.

    Returns:
      The epsilon at the same delta by number of images, with None where none is proven. None
      instead of all of them if the unit is already a person, or if the mechanism was changed.
    """
    plan = ledger.first_plan
    if plan.images_per_person is not None or ledger.changes:
        return None
    found: dict[int, float | None] = {}
    delta = accounted_delta(plan)
    has_release = ledger.warm_start_reserved or has_more_planned(ledger)
    steps = plan.train_steps if has_more_planned(ledger) else ledger.reserved_steps
    largest = grid.largest_epsilon(plan.target_delta, draws(plan))
    for images in IMAGES_PER_PERSON:
        warm_start = None
        if has_release and plan.warm_start_event is not None:
            unit = plan.warm_start_noise_multiplier / images
            warm_start = dp_accounting.GaussianDpEvent(grid.effective_noise_multiplier(unit, None))
        event = event_of(plan, plan.mechanism['noise_multiplier'], images)
        parts = [(warm_start, 1)] if warm_start else []
        parts += [(event, steps)] if steps else []
        if accounting.rdp_epsilon_of(parts, delta) > 2 * largest:  # PLD would take minutes.
            found[images] = None
            continue
        epsilon = accounting.compute_epsilon(event, steps, delta, warm_start)
        found[images] = or_none(_proven(epsilon, plan).headline)
    return found


class EpsilonSoFar:
    """An upper bound on the epsilon of a running run, cheap enough for a progress bar.

    Args:
      ledger: the ledger of a private run.
      applied_steps: number of steps that training had applied when this process started.
    """

    def __init__(self, ledger: Ledger, applied_steps: int):
        # Interruptions lost these steps, which stay charged.
        self._lost = ledger.reserved_steps - applied_steps
        self._plans = ledger.plans
        self._meter = None
        if ledger.changes:
            self._filter = spent_epsilon(ledger).headline
        else:
            event, steps = _planned(ledger)
            warm_start = ledger.first_plan.warm_start_event if ledger.warm_start_reserved else None
            delta = accounted_delta(ledger.plan)
            # A run of the warm start alone has no steps; the meter is then only asked for 0 steps.
            self._meter = accounting.EpsilonMeter(event, max(1, steps), delta, warm_start)

    def __call__(self, applied_steps: int) -> float:
        """Returns the bound after so many applied steps; infinite where none is proven."""
        if self._meter is None:
            return self._filter
        bound = self._meter(applied_steps + self._lost)
        return _proven(accounting.Epsilon(pld=bound, rdp=bound), *self._plans).headline


def or_none(bound: float | None) -> float | None:
    """Returns None for an infinite bound: JSON has no infinity, and null says that none exists."""
    return bound if bound is not None and math.isfinite(bound) else None
