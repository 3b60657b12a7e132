"""What a run of steps spends: events, epsilon, and the noise that fits a budget.

One private step is one Gaussian mechanism on a Poisson sample, under add-or-remove-one-record
neighbours, so T steps are `SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)),
T)` whatever the error feedback does with the releases. A warm start is one Gaussian mechanism on
all records, composed with them. All numerics are dp_accounting's.
"""

from __future__ import annotations

import bisect
import dataclasses
import fractions
import math
from collections.abc import Sequence

import attr
import dp_accounting
import numpy as np
from dp_accounting import mechanism_calibration, pld, rdp
from scipy import optimize, special

# The sampler compares 32-bit integers with a threshold, so this is the grain of q.
SAMPLING_GRAIN = 2**32

# Least noise over what one unit of privacy moves a release by: less protects nothing.
SMALLEST_NOISE = 0.25
# Above this epsilon nobody needs the tighter bound.
_NO_PRIVACY = 500.0

# Between privacy losses; dp_accounting's own is 1e-4.
_COARSE_INTERVAL = 1e-3
# What rounding can take from the Renyi divergence of one event, and more: 1e-13 was seen.
_DIVERGENCE_ROUNDING = 1e-12
# What rounding can add to delta in a privacy loss distribution, and more. Below the least delta,
# where that would count, PLD gives no bound.
_PLD_ROUNDING, _SMALLEST_PLD_DELTA = 1e-11, 0.99e-8
# Share of the target that a calibrated run spends at the least.
_TIGHT = 0.998
# What calibrate_dp_mechanism raises when it gives up; none of them is a ValueError.
_NOT_CALIBRATED = (
    mechanism_calibration.NoBracketIntervalFoundError,
    mechanism_calibration.NoOptimumFoundError,
)


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """Upper bounds on the same epsilon; infinite where one does not apply.

    Attributes:
      pld: by privacy loss distributions.
      rdp: by Renyi differential privacy.
      closed_form: of Gaussian mechanisms without sampling, exact.
      rdp_filter: what a run may spend whose mechanism was changed after its start (see
        `RenyiFilter`); the other bounds presume a sequence fixed in advance and do not hold then.
      is_proven: whether it also holds for the noise as it is drawn, which is off the ideal law by
        a little (`grid.is_negligible`).
    """

    pld: float
    rdp: float
    closed_form: float = math.inf
    rdp_filter: float | None = None
    is_proven: bool = True

    @property
    def smallest_bound(self) -> float:
        """Of the ideal mechanism: all are upper bounds, so the smallest one holds."""
        if self.rdp_filter is not None:
            return self.rdp_filter
        return min(self.pld, self.rdp, self.closed_form)

    @property
    def headline(self) -> float:
        """The smallest bound; infinite where it is not proven for the noise as it is drawn."""
        return self.smallest_bound if self.is_proven else math.inf

    @property
    def accountant(self) -> str:
        """The name of what is behind `headline`: PLD, RDP, closed form, RDP filter, or none."""
        if not self.is_proven:
            return 'none'
        if self.rdp_filter is not None:
            return 'RDP filter'
        if self.closed_form <= min(self.pld, self.rdp):
            return 'PLD' if math.isinf(self.closed_form) else 'closed form'
        return 'PLD' if self.pld <= self.rdp else 'RDP'


def sampling_threshold(expected_batch_size: int, dataset_size: int) -> int:
    """The integer below which a uniform 32-bit draw samples a record.

    Args:
      expected_batch_size: mean number of records in a batch, B >= 1.
      dataset_size: the declared number of records, N >= B.

    Returns:
      ceil(2^32 B / N), in [1, 2^32]: q is rounded up to the grain of the draw, never down.

    Raises:
      ValueError: if not 1 <= B <= N.
    """
    if not 1 <= expected_batch_size <= dataset_size:
        raise ValueError(
            'expected_batch_size must be between 1 and the number of records. '
            f'Received: expected_batch_size={expected_batch_size}, records={dataset_size}.'
        )
    return -(-SAMPLING_GRAIN * expected_batch_size // dataset_size)


def sampling_probability(expected_batch_size: int, dataset_size: int) -> float:
    """The probability with which each record enters a step, exactly as it is sampled.

    Args:
      expected_batch_size: mean number of records in a batch, B >= 1.
      dataset_size: the declared number of records, N >= B.

    Returns:
      B / N rounded up to a multiple of 2^-32, in (0, 1].

    Raises:
      ValueError: if not 1 <= B <= N.
    """
    return sampling_threshold(expected_batch_size, dataset_size) / SAMPLING_GRAIN


def step_event(sampling_probability: float, noise_multiplier: float) -> dp_accounting.DpEvent:
    """The event of one private step.

    Args:
      sampling_probability: q in (0, 1].
      noise_multiplier: sigma > 0: noise over sensitivity of the stacked release.

    Returns:
      `PoissonSampledDpEvent(q, GaussianDpEvent(sigma))`.
    """
    return dp_accounting.PoissonSampledDpEvent(
        sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier)
    )


def person_sampling_probability(sampling_probability: float, images_per_person: int) -> float:
    """The probability that a step samples any of a person's records.

    Given that it does, the records move the sums by at most K times what one would. Which of them
    came is a mixture, and the divergences that define the bound are jointly convex, so the step is
    at least as private as a Gaussian with K times the sensitivity on a sample of persons.

    Args:
      sampling_probability: q in (0, 1], of every record by itself.
      images_per_person: K >= 1.

    Returns:
      1 - (1 - q)^K, rounded up; q itself for K = 1.
    """
    if images_per_person == 1 or sampling_probability == 1.0:
        return sampling_probability
    exact = -math.expm1(images_per_person * math.log1p(-sampling_probability))
    return min(1.0, exact * (1.0 + 1e-12))


def hidden_sensitivity(
    l2_norm_clip: float, residual_l2_norm_clip: float, images_per_person: int = 1
) -> float:
    """What one unit of privacy moves a step of the published error feedback by.

    Its buffer is not noised. A record that was sampled once stays in it, so it moves every later
    step by up to 2 C2 and a step that samples it by up to C1 + 2 C2: sampling amplifies nothing. T
    steps are the Gaussian mechanism with mu = sqrt(T) (C1 + 2 C2) / (sigma C1) (DiceSGD, arXiv
    2311.14632).

    Args:
      l2_norm_clip: C1 > 0.
      residual_l2_norm_clip: C2 > 0, in units of the sum, like C1.
      images_per_person: K >= 1: what comes out of the buffer is clipped whatever is in it, so only
        the first part grows.

    Returns:
      K C1 + 2 C2.
    """
    return images_per_person * l2_norm_clip + 2.0 * residual_l2_norm_clip


def event_to_dict(event: dp_accounting.DpEvent) -> dict:
    """An event as JSON values, for the ledger; `event_from_dict` reads it back."""
    fields = attr.asdict(event, recurse=False)
    return {
        'class_name': type(event).__name__,
        **{
            name: event_to_dict(value) if isinstance(value, dp_accounting.DpEvent) else value
            for name, value in fields.items()
        },
    }


def event_from_dict(values: dict) -> dp_accounting.DpEvent:
    """The event that `event_to_dict` wrote.

    Raises:
      ValueError: if it is no event of a private step.
    """
    try:
        fields = dict(values)
        cls = {
            'GaussianDpEvent': dp_accounting.GaussianDpEvent,
            'PoissonSampledDpEvent': dp_accounting.PoissonSampledDpEvent,
        }[fields.pop('class_name')]
        if 'event' in fields:
            fields['event'] = event_from_dict(fields['event'])
        return cls(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'Not an event of a private step. Received: {values}.') from error


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
      The PLD and the RDP bound, both 0 for 0 steps and no warm start; for Gaussian events without
      sampling the closed form instead of PLD, which would need the memory of a large privacy loss.
      No PLD either where RDP is above 500: it would take minutes to call no privacy another number.
    """
    parts = _parts(event, steps, warm_start)
    if not parts:
        return Epsilon(pld=0.0, rdp=0.0)
    by_rdp = rdp_epsilon_of(parts, delta)
    if all(_is_unsampled(one) and one.noise_multiplier > 0 for one, _ in parts):
        return Epsilon(pld=math.inf, rdp=by_rdp, closed_form=_closed_form(parts, delta))
    if _NO_PRIVACY < by_rdp < math.inf:
        return Epsilon(pld=math.inf, rdp=by_rdp)
    by_pld = float(_PldAccountant().compose(_composed(parts)).get_epsilon(delta))
    return Epsilon(pld=by_pld, rdp=by_rdp)


def _parts(event, steps, warm_start=None) -> list[tuple[dp_accounting.DpEvent, int]]:
    """(event, count) of what is done at all, in order."""
    return [(one, count) for one, count in ((warm_start, 1), (event, steps)) if one and count]


def _composed(parts) -> dp_accounting.DpEvent:
    events = [dp_accounting.SelfComposedDpEvent(one, count) for one, count in parts]
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)


def _is_unsampled(event: dp_accounting.DpEvent) -> bool:
    return isinstance(event, dp_accounting.GaussianDpEvent)


def _closed_form(parts, delta: float) -> float:
    """Of Gaussian mechanisms without sampling, which compose to one."""
    mu = math.sqrt(sum(count / one.noise_multiplier**2 for one, count in parts))
    return gaussian_epsilon(mu, delta)


def rdp_epsilon(event: dp_accounting.DpEvent, delta: float) -> float:
    """The RDP bound alone, in milliseconds.

    Args:
      event: all of what was done.
      delta: in (0, 1).

    Returns:
      The bound.
    """
    return rdp_epsilon_of([(event, 1)], delta)


def rdp_epsilon_of(spent: Sequence[tuple[dp_accounting.DpEvent, int]], delta: float) -> float:
    """The RDP bound on events with their numbers of repetitions, as `rdp_epsilon`."""
    accountant = _RdpAccountant()
    for event, count in spent:
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


class _PldAccountant(pld.PLDAccountant):
    """dp_accounting's, with room for its rounding.

    It composes by Fourier transforms, whose rounding adds to delta: up to 3e-12 was seen, of
    200,000 steps, so that at delta = 1e-12 the true one can be twice what was asked for.
    """

    def get_epsilon(self, target_delta: float) -> float:
        if target_delta < _SMALLEST_PLD_DELTA:
            return math.inf
        return super().get_epsilon(target_delta - _PLD_ROUNDING)


class _RdpAccountant(rdp.RdpAccountant):
    """dp_accounting's, with every divergence rounded up.

    Its own are logarithms of sums near 1. Where the sampling probability is tiny they are far below
    the rounding of those sums, and come out as 0 or negative: no bound, and an epsilon of 0.
    """

    def compose(self, event: dp_accounting.DpEvent, count: int = 1) -> _RdpAccountant:
        super().compose(event, count)
        # tests/test_upstream_semantics.py holds `_rdp` to be the summed divergences.
        rounding = count * _number_of_events(event) * _DIVERGENCE_ROUNDING
        self._rdp = np.maximum(self._rdp, 0.0) + rounding
        return self


def _number_of_events(event: dp_accounting.DpEvent) -> int:
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return sum(_number_of_events(one) for one in event.events)
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return event.count * _number_of_events(event.event)
    return 1


def compute_spent(
    spent: Sequence[tuple[dp_accounting.DpEvent, int]],
    delta: float,
    *,
    planned: tuple[dp_accounting.DpEvent, int],
    changed: bool,
    warm_start: dp_accounting.DpEvent | None = None,
    warm_start_spent: bool = True,
) -> Epsilon:
    """Epsilon of what a ledger says was spent.

    Args:
      spent: (event of one step, number of steps), in order.
      delta: in (0, 1).
      planned: the event and the number of steps fixed before the first step.
      changed: whether the mechanism was changed after the first step, even if its event was not.
      warm_start: the event of the planned release before the first step, if one was planned.
      warm_start_spent: whether it was spent.

    Returns:
      `compute_epsilon` of the planned event without a change. After one, the epsilon of the
      `RenyiFilter` of the plan, infinite when its budget was passed; with the other bounds as if
      the sequence had been fixed in advance, PLD only where all events are sampled and the closed
      form only where none is.

    Raises:
      ValueError: if nothing was changed, but another event or more steps were spent than planned.
    """
    event, steps = planned
    total = sum(count for _, count in spent)
    before_steps = [(warm_start, 1)] if warm_start and warm_start_spent else []
    if not changed:
        if any(one != event for one, _ in spent) or total > steps:
            raise ValueError('What was not planned and is spent is a change of the mechanism.')
        return compute_epsilon(event, total, delta, before_steps[0][0] if before_steps else None)
    renyi_filter = RenyiFilter.of_plan(event, steps, delta, warm_start)
    spent = [*before_steps, *spent]
    if not spent:
        return Epsilon(pld=0.0, rdp=0.0, rdp_filter=renyi_filter.epsilon)
    *before, (last, count) = spent
    within = renyi_filter.steps_left(before, last) >= count
    unsampled = [_is_unsampled(one) for one, _ in spent]
    by_pld = closed_form = math.inf
    if all(unsampled):
        closed_form = _closed_form(spent, delta)
    # The privacy loss of many unsampled steps outgrows the memory.
    elif not any(unsampled[len(before_steps) :]):
        by_pld = float(_PldAccountant().compose(_composed(spent)).get_epsilon(delta))
    return Epsilon(
        pld=by_pld,
        rdp=rdp_epsilon_of(spent, delta),
        closed_form=closed_form,
        rdp_filter=renyi_filter.epsilon if within else math.inf,
    )


@dataclasses.dataclass(frozen=True)
class RenyiFilter:
    """A privacy filter: a budget of Renyi divergence at one order, both fixed at the start.

    Whoever chooses the next event after seeing earlier outputs stays within `epsilon`, as long as
    the divergences of all events at this order add up to at most the budget (Feldman and Zrnic
    2021, Individual Privacy Accounting via a Renyi Filter). PLD has no such theorem here, and a
    minimum over orders chosen later has none either.

    Attributes:
      order: alpha > 1.
      budget: the divergence that may be spent at this order, exactly.
      epsilon: of (epsilon, delta) at that budget.
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
        """The filter with the divergence of what is planned, at the order best for that."""
        parts, accountant = _parts(event, steps, warm_start), _RdpAccountant()
        for one, count in parts:
            accountant.compose(one, count)
        epsilon, order = accountant.get_epsilon_and_optimal_order(delta)
        budget = sum(count * _exact_divergence(one, order) for one, count in parts)
        return cls(float(order), budget, float(epsilon))

    def steps_left(
        self, spent: Sequence[tuple[dp_accounting.DpEvent, int]], event: dp_accounting.DpEvent
    ) -> int:
        """How many steps of `event` the budget still allows after what was spent."""
        # In fractions: rounding must not cost an unchanged event the last of its planned steps, nor
        # an allowance for rounding give another one a step that passes the budget.
        used = sum(count * _exact_divergence(one, self.order) for one, count in spent)
        return max(0, math.floor((self.budget - used) / _exact_divergence(event, self.order)))


def _exact_divergence(event: dp_accounting.DpEvent, order: float) -> fractions.Fraction:
    return fractions.Fraction(_divergence(event, order))


def _divergence(event: dp_accounting.DpEvent, order: float) -> float:
    return float(_RdpAccountant(orders=[order]).compose(event)._rdp[0])


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The exact epsilon of a Gaussian mechanism with sensitivity mu and unit noise.

    Solves delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) (Balle and Wang 2018).

    Args:
      mu: > 0; sqrt(T) / sigma for T steps of a sensitivity of 1 and noise sigma.
      delta: in (0, 1).

    Returns:
      The smallest epsilon >= 0, rounded up by at most 1e-12 of itself.
    """
    if _gaussian_log_delta(mu, 0.0) <= math.log(delta):
        return 0.0
    # Beyond mean plus z standard deviations of the privacy loss, N(mu^2/2, mu^2), lies delta.
    high = mu * (mu / 2 - special.ndtri_exp(math.log(delta)))
    epsilon = optimize.brentq(
        lambda e: _gaussian_log_delta(mu, e) - math.log(delta), 0.0, high, xtol=1e-300, rtol=1e-14
    )
    return float(min(high, epsilon * (1 + 1e-12)))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose `gaussian_epsilon` is at most `epsilon`, from just below.

    Args:
      epsilon: > 0.
      delta: in (0, 1).

    Returns:
      mu > 0.
    """

    def excess(log_mu):
        return _gaussian_log_delta(math.exp(log_mu), epsilon) - math.log(delta)

    low = high = 0.0
    while excess(low) > 0:
        low -= 1.0
    while excess(high) < 0:
        high += 1.0
    return math.exp(optimize.brentq(excess, low, high, xtol=1e-13)) * (1 - 1e-9)


def _gaussian_log_delta(mu: float, epsilon: float) -> float:
    """Log of delta(epsilon) of a Gaussian mechanism; neither overflows nor cancels."""
    near, far = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if near < -1.0:
        # delta is not small: the difference of the two loses little.
        first, second = special.log_ndtr(-near), epsilon + special.log_ndtr(-far)
        return float(first + math.log1p(-math.exp(min(second - first, -1e-300))))
    # e^eps Phi(-far) = erfcx(far / sqrt 2) / 2 exp(-near^2 / 2), since far^2 - near^2 = 2 eps.
    difference = special.erfcx(near / math.sqrt(2)) - special.erfcx(far / math.sqrt(2))
    return float(math.log(difference / 2) - near**2 / 2)


def split_release(noise_multiplier: float, share: float) -> tuple[float, float]:
    """The noise of two releases that together spend what one would.

    Args:
      noise_multiplier: sigma > 0 of the one.
      share: of its 1/sigma^2 that goes to the second, in (0, 1).

    Returns:
      sigma_1 and sigma_2 with 1/sigma_1^2 + 1/sigma_2^2 = 1/sigma^2: two Gaussian mechanisms, the
      second chosen after the first, are as private as the one (Dong, Roth and Su 2022, corollary
      3.3).
    """
    return noise_multiplier / math.sqrt(1.0 - share), noise_multiplier / math.sqrt(share)


def calibrate_unsampled_noise_multiplier(
    target_epsilon: float,
    target_delta: float,
    steps: int,
    warm_start: dp_accounting.DpEvent | None = None,
) -> float:
    """The noise multiplier with which `steps` Gaussians, not sampled, stay just within the target.

    Args:
      target_epsilon: > 0, finite.
      target_delta: in (0, 1).
      steps: number of steps, >= 1.
      warm_start: the event of a release before the first step; spends less than the target.

    Returns:
      sigma of a step's `GaussianDpEvent`.
    """
    mu = gaussian_mu(target_epsilon, target_delta)
    if warm_start is not None:
        mu = math.sqrt(mu**2 - 1.0 / warm_start.noise_multiplier**2)
    return math.sqrt(steps) / mu


def calibrate_noise_multiplier(
    target_epsilon: float,
    target_delta: float,
    sampling_probability: float,
    steps: int,
    warm_start: dp_accounting.DpEvent | None = None,
) -> float:
    """The noise multiplier with which `steps` steps stay just within the target.

    Args:
      target_epsilon: > 0, finite.
      target_delta: in (0, 1).
      sampling_probability: q in (0, 1].
      steps: number of private steps, >= 1.
      warm_start: the event of a release before the first step; spends less than the target.

    Returns:
      sigma such that epsilon, the smaller of the PLD and the RDP bound, is at most
      `target_epsilon` and at least 99.8% of it; or `SMALLEST_NOISE`, if that spends even less.

    Raises:
      ValueError: if dp_accounting finds none: the target is far from anything usual.
    """

    def event(noise_multiplier: float) -> dp_accounting.DpEvent:
        return _composed(
            _parts(step_event(sampling_probability, noise_multiplier), steps, warm_start)
        )

    def calibrate(make_accountant, low, high, tolerance):
        def spends_less(noise_multiplier):
            accountant = make_accountant().compose(event(noise_multiplier))
            return accountant.get_epsilon(target_delta) < target_epsilon

        low = max(low, SMALLEST_NOISE)
        while spends_less(low):
            if low == SMALLEST_NOISE:
                return SMALLEST_NOISE
            low, high = max(0.9 * low, SMALLEST_NOISE), low
        bracket = dp_accounting.LowerEndpointAndGuess(low, high)
        return dp_accounting.calibrate_dp_mechanism(
            make_accountant, event, target_epsilon, target_delta, bracket, tol=tolerance
        )

    def coarse_pld():
        return _PldAccountant(value_discretization_interval=_COARSE_INTERVAL)

    # Each accountant is slower than the one before and starts where that one ended: RDP, PLD on a
    # coarse grid, PLD. All are upper bounds. For few steps the coarse one is tight already, and
    # the fine one would take half a minute; for many steps it is the other way round.
    try:
        if warm_start is not None and rdp_epsilon(warm_start, target_delta) > 0.98 * target_epsilon:
            # By RDP it leaves nothing, or next to nothing, to the steps.
            sigma = calibrate(coarse_pld, 1.0, 4.0, 1e-4)
            return float(calibrate(_PldAccountant, 0.98 * sigma, sigma, 1e-4))
        by_rdp = calibrate(_RdpAccountant, SMALLEST_NOISE, 1.0, 1e-3)
        if target_epsilon > _NO_PRIVACY / 5 or by_rdp <= SMALLEST_NOISE:
            return float(by_rdp)  # PLD takes minutes there.
        if target_delta < _SMALLEST_PLD_DELTA:
            return float(calibrate(_RdpAccountant, 0.99 * by_rdp, by_rdp, 1e-5))
        sigma = calibrate(coarse_pld, 0.9 * by_rdp, 1.01 * by_rdp, 1e-4)
        spent = _PldAccountant().compose(event(sigma)).get_epsilon(target_delta)
        if not _TIGHT * target_epsilon <= spent <= target_epsilon:
            sigma = calibrate(_PldAccountant, 0.98 * sigma, sigma, 1e-4)
        if sigma > by_rdp:  # At an extreme delta PLD can be the looser bound, or have none.
            sigma = calibrate(_RdpAccountant, 0.99 * by_rdp, by_rdp, 1e-5)
        return float(sigma)
    except (ValueError, ArithmeticError, *_NOT_CALIBRATED) as error:
        raise ValueError(
            f'No noise fits target_epsilon={target_epsilon:g}, target_delta={target_delta:g} and '
            f'{steps} steps: choose an epsilon between 0.01 and 100, or give noise_multiplier. '
            f'dp_accounting says: {error}'
        ) from error


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
        self._pld_at = {}

    def __call__(self, steps: int) -> float:
        """Returns an upper bound on the epsilon of `steps` steps (0 to the planned number)."""
        if steps == 0 or _is_unsampled(self._event):
            return compute_epsilon(self._event, steps, self._delta, self._warm_start).headline
        by_rdp = rdp_epsilon_of(_parts(self._event, steps, self._warm_start), self._delta)
        position = bisect.bisect_left(self._grid, steps)
        if position == len(self._grid):
            return float(by_rdp)
        point = self._grid[position]
        if point not in self._pld_at:
            self._pld_at[point] = compute_epsilon(
                self._event, point, self._delta, self._warm_start
            ).pld
        return float(min(by_rdp, self._pld_at[point]))
