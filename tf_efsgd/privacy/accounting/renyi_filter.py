"""The privacy budget of a run whose mechanism is changed after its start."""

from __future__ import annotations

import dataclasses
import fractions
import math
from collections.abc import Sequence

import dp_accounting

from tf_efsgd.privacy.accounting.accountants import RdpAccountant, parts_of


@dataclasses.dataclass(frozen=True)
class RenyiFilter:
    """A privacy filter: a budget of Renyi divergence at one order, both fixed at the start.

    Whoever chooses the next event after seeing earlier outputs stays within `epsilon`, as long as
    the divergences of all events at this order add up to at most the budget (Feldman and Zrnic
    2021, Individual Privacy Accounting via a Renyi Filter). PLD has no such theorem here, and a
    minimum over orders chosen later has none either.

    The budget is that of all planned steps, which may be above a target that was calibrated by PLD.
    A budget at that target would not do: a run that is not changed spends its PLD-calibrated steps,
    so a strategy that changes or not, as it sees fit, is covered by the larger budget alone.

    Attributes:
      order: alpha > 1.
      budget: the divergence that may be spent at this order, an exact fraction.
      epsilon: of the guarantee (epsilon, delta) that this budget gives.
    """

    order: float
    budget: fractions.Fraction
    epsilon: float

    @classmethod
    def of_plan(
        cls,
        event: dp_accounting.DpEvent,
        steps: int,
        delta: float,
        warm_start: dp_accounting.DpEvent | None = None,
    ) -> RenyiFilter:
        """Makes the filter whose budget is the divergence of the plan, at the plan's best order.

        Args:
          event: the event of one step.
          steps: the planned number of steps, >= 0.
          delta: in (0, 1).
          warm_start: the event of the planned release before the first step, if any.
        """
        parts, accountant = parts_of(event, steps, warm_start), RdpAccountant()
        for one, count in parts:
            accountant.compose(one, count)
        epsilon, order = accountant.get_epsilon_and_optimal_order(delta)
        budget = sum(
            (count * _exact_divergence(one, order) for one, count in parts), fractions.Fraction(0)
        )
        return cls(float(order), budget, float(epsilon))

    def steps_left(
        self, events: Sequence[tuple[dp_accounting.DpEvent, int]], event: dp_accounting.DpEvent
    ) -> int:
        """How many steps of `event` the budget still allows after what was spent."""
        # Fractions are exact. Rounding must not cost an unchanged event the last planned step, and
        # an allowance for rounding must not give another event a step that passes the budget.
        used = sum(count * _exact_divergence(one, self.order) for one, count in events)
        return max(0, math.floor((self.budget - used) / _exact_divergence(event, self.order)))


def _exact_divergence(event: dp_accounting.DpEvent, order: float) -> fractions.Fraction:
    return fractions.Fraction(_divergence(event, order))


def _divergence(event: dp_accounting.DpEvent, order: float) -> float:
    return float(RdpAccountant(orders=[order]).compose(event)._rdp[0])
