"""The epsilon of a sequence of events: of a plan, of what was spent, and so far."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Sequence

import dp_accounting

from tf_efsgd.privacy.accounting.accountants import (
    PldAccountant,
    RdpAccountant,
    compose,
    is_unsampled,
    parts_of,
)
from tf_efsgd.privacy.accounting.gaussian import gaussian_epsilon
from tf_efsgd.privacy.accounting.renyi_filter import RenyiFilter

# Above this epsilon nobody needs the tighter bound.
NO_PRIVACY = 500.0
# A run asks for the same epsilon for its plan, its progress and its statement; PLD takes a second.
_REMEMBERED = 256


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """Upper bounds on the same epsilon; infinite where one does not apply.

    Attributes:
      pld: by privacy loss distributions.
      rdp: by Renyi differential privacy.
      closed_form: of Gaussian mechanisms without sampling, exact.
      rdp_filter: the bound for a run whose mechanism was changed after its start (see
        `RenyiFilter`); the other bounds presume a sequence fixed in advance and do not hold then.
        None without a change.
      is_proven: whether the bound also holds for the noise as it is drawn, whose law differs a
        little from the ideal one (`grid.is_negligible`).
    """

    pld: float
    rdp: float
    closed_form: float = math.inf
    rdp_filter: float | None = None
    is_proven: bool = True

    @property
    def smallest_bound(self) -> float:
        """The smallest bound for the ideal mechanism: all are upper bounds, so it holds."""
        if self.rdp_filter is not None:
            return self.rdp_filter
        return min(self.pld, self.rdp, self.closed_form)

    @property
    def headline(self) -> float:
        """The smallest bound; infinite where it is not proven for the noise as it is drawn."""
        return self.smallest_bound if self.is_proven else math.inf

    @property
    def accountant(self) -> str:
        """Which bound `headline` is: PLD, RDP, closed form, RDP filter, or none."""
        if not self.is_proven:
            return 'none'
        if self.rdp_filter is not None:
            return 'RDP filter'
        if self.closed_form <= min(self.pld, self.rdp):
            return 'PLD' if math.isinf(self.closed_form) else 'closed form'
        return 'PLD' if self.pld <= self.rdp else 'RDP'


@functools.lru_cache(maxsize=_REMEMBERED)
def compute_epsilon(
    event: dp_accounting.DpEvent,
    steps: int,
    delta: float,
    warm_start: dp_accounting.DpEvent | None = None,
) -> Epsilon:
    """Epsilon of `steps` repetitions of `event`, neighbours ADD_OR_REMOVE_ONE.

    Args:
      event: the event of one step.
      steps: number of repetitions, >= 0, fixed in advance.
      delta: in (0, 1).
      warm_start: the event of one release before the first step, Gaussian without sampling.

    Returns:
      The PLD and the RDP bound, both 0 for 0 steps and no warm start. Gaussian events without
      sampling have the closed form instead of PLD, whose privacy loss would need too much memory.
      There is no PLD bound either where RDP is above 500: it would take minutes, and such an
      epsilon means no privacy anyway.
    """
    parts = parts_of(event, steps, warm_start)
    if not parts:
        return Epsilon(pld=0.0, rdp=0.0)
    by_rdp = _rdp_of_steps(event, steps, delta, warm_start)
    if all(is_unsampled(one) and one.noise_multiplier > 0 for one, _ in parts):
        return Epsilon(pld=math.inf, rdp=by_rdp, closed_form=_closed_form(parts, delta))
    if NO_PRIVACY < by_rdp < math.inf:
        return Epsilon(pld=math.inf, rdp=by_rdp)
    by_pld = float(PldAccountant().compose(compose(parts)).get_epsilon(delta))
    return Epsilon(pld=by_pld, rdp=by_rdp)


@functools.lru_cache(maxsize=_REMEMBERED)
def _rdp_of_steps(event, steps, delta, warm_start) -> float:
    return rdp_epsilon_of(parts_of(event, steps, warm_start), delta)


def _closed_form(parts, delta: float) -> float:
    """The epsilon of Gaussian mechanisms without sampling, which compose to one."""
    mu = math.sqrt(sum(count / one.noise_multiplier**2 for one, count in parts))
    return gaussian_epsilon(mu, delta)


def rdp_epsilon(event: dp_accounting.DpEvent, delta: float) -> float:
    """The RDP bound alone, which takes milliseconds.

    Args:
      event: everything that was done, as one event.
      delta: in (0, 1).

    Returns:
      An upper bound on epsilon, >= 0.
    """
    return rdp_epsilon_of([(event, 1)], delta)


def rdp_epsilon_of(events: Sequence[tuple[dp_accounting.DpEvent, int]], delta: float) -> float:
    """The RDP bound on a sequence of events.

    Args:
      events: (event, number of repetitions), in order.
      delta: in (0, 1).

    Returns:
      An upper bound on epsilon, >= 0.
    """
    accountant = RdpAccountant()
    for event, count in events:
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def compute_spent(
    events: Sequence[tuple[dp_accounting.DpEvent, int]],
    delta: float,
    *,
    planned: tuple[dp_accounting.DpEvent, int],
    changed: bool,
    warm_start: dp_accounting.DpEvent | None = None,
    warm_start_spent: bool = True,
) -> Epsilon:
    """Epsilon of what a ledger says was spent.

    Args:
      events: (event of one step, number of steps), in order.
      delta: in (0, 1).
      planned: the event and the number of steps fixed before the first step.
      changed: whether the mechanism was changed after the first step, even if its event was not.
      warm_start: the event of the planned release before the first step, if one was planned.
      warm_start_spent: whether it was spent.

    Returns:
      Without a change, `compute_epsilon` of the planned event. After a change, the epsilon of the
      `RenyiFilter` of the plan, which is infinite if its budget was passed. The other bounds are
      then those of a sequence fixed in advance: PLD only where all events are sampled, the closed
      form only where none is.

    Raises:
      ValueError: if nothing was changed, but another event or more steps were spent than planned.
    """
    event, steps = planned
    total = sum(count for _, count in events)
    before_steps = [(warm_start, 1)] if warm_start and warm_start_spent else []
    if not changed:
        if any(one != event for one, _ in events) or total > steps:
            raise ValueError('What was spent was not planned: that is a change of the mechanism.')
        return compute_epsilon(event, total, delta, before_steps[0][0] if before_steps else None)
    renyi_filter = RenyiFilter.of_plan(event, steps, delta, warm_start)
    events = [*before_steps, *events]
    if not events:
        return Epsilon(pld=0.0, rdp=0.0, rdp_filter=renyi_filter.epsilon)
    *before, (last, count) = events
    within = renyi_filter.steps_left(before, last) >= count
    unsampled = [is_unsampled(one) for one, _ in events]
    by_pld = closed_form = math.inf
    if all(unsampled):
        closed_form = _closed_form(events, delta)
    # The privacy loss distribution of many unsampled steps outgrows the memory.
    elif not any(unsampled[len(before_steps) :]):
        by_pld = float(PldAccountant().compose(compose(events)).get_epsilon(delta))
    return Epsilon(
        pld=by_pld,
        rdp=rdp_epsilon_of(events, delta),
        closed_form=closed_form,
        rdp_filter=renyi_filter.epsilon if within else math.inf,
    )


class EpsilonMeter:
    """Epsilon so far, cheap enough for a progress bar, never below the truth.

    PLD takes about half a second. Between the points of a grid of step counts this reports the
    smaller of two upper bounds: RDP at the step itself and PLD at the next grid point.

    Args:
      event: the event of one step.
      steps: the planned number of steps, >= 1: the last grid point.
      delta: in (0, 1).
      warm_start: the event of the release that was spent before the first step, if any.
      grid_points: how many times PLD is computed over a whole run.
    """

    def __init__(
        self,
        event: dp_accounting.DpEvent,
        steps: int,
        delta: float,
        warm_start: dp_accounting.DpEvent | None = None,
        grid_points: int = 20,
    ):
        self._event = event
        self._warm_start = warm_start
        self._delta = delta
        self._grid = sorted({math.ceil(steps * (i + 1) / grid_points) for i in range(grid_points)})
        self._pld_at: dict[int, float] = {}

    def __call__(self, steps: int) -> float:
        """Returns an upper bound on the epsilon of `steps` steps (0 to the planned number)."""
        if steps == 0 or is_unsampled(self._event):
            return compute_epsilon(self._event, steps, self._delta, self._warm_start).headline
        by_rdp = _rdp_of_steps(self._event, steps, self._delta, self._warm_start)
        position = bisect.bisect_left(self._grid, steps)
        if position == len(self._grid):
            return float(by_rdp)
        point = self._grid[position]
        if point not in self._pld_at:
            self._pld_at[point] = compute_epsilon(
                self._event, point, self._delta, self._warm_start
            ).pld
        return float(min(by_rdp, self._pld_at[point]))
