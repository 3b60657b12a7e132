"""The findings of an audit: the bound, the account, and what follows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import dp_accounting

from tf_efsgd import rounding
from tf_efsgd.audit import bounds
from tf_efsgd.audit.likelihood import Claim, Observations, measured_covariance
from tf_efsgd.privacy import accounting, grid


@dataclasses.dataclass(frozen=True)
class Finding:
    """A measured lower bound on epsilon, and the account that it must not exceed.

    Attributes:
      audit: 'mechanism', 'warm start' or 'training'.
      error_feedback: the mode of the mechanism.
      replicas: number of replicas that shared the records.
      steps: T.
      sampling_probability: q.
      delta: the delta of the bound and of the accounts.
      runs: number of runs in each world on which the bound was measured.
      ceiling: the largest bound that so many runs can give.
      bound: the lower bound on epsilon.
      account: the upper bound on epsilon by the accountant; infinite where none is proven.
      unproven: with 'hidden', the epsilon of DP-SGD with the same noise, which nothing proves;
        None otherwise.
    """

    audit: str
    error_feedback: str
    replicas: int
    steps: int
    sampling_probability: float
    delta: float
    runs: int
    ceiling: float
    bound: float
    account: float
    unproven: float | None = None

    @property
    def exceeds(self) -> bool:
        """Whether the bound contradicts the account: more is released than is charged."""
        return self.bound > self.account

    @property
    def verdict(self) -> str:
        """The finding in words."""
        if self.exceeds:
            return 'EXCEEDS the account: a bug in the code, or in the accounting'
        claimed = (
            'nothing is claimed' if math.isinf(self.account) else 'consistent with the account'
        )
        if self.unproven is None:
            return claimed
        unproven = rounding.up(self.unproven, 3)
        if self.bound > self.unproven:
            return f'exceeds unproven: the unproven ε = {unproven} is not true'
        return f'{claimed}; unproven ε = {unproven} not refuted'


def findings_of(
    claim: Claim,
    with_record: Observations,
    without: Observations,
    deltas: Sequence[float],
    confidence: float,
    *,
    audit: str,
    replicas: int = 1,
) -> list[Finding]:
    """Computes a bound for each delta from what was released in two worlds.

    Args:
      claim: the documented mechanism of the runs.
      with_record: the observations of `runs_with_held_out(n)` runs with the record.
      without: the observations of as many runs without it.
      deltas: the deltas, each in (0, 1).
      confidence: confidence of each single bound.
      audit: 'mechanism', 'warm start' or 'training'.
      replicas: number of replicas that shared the records.

    Returns:
      A finding for each delta. The first third of the runs chooses the attack, and the rest
      measures it.
    """
    first, rest = slice(len(with_record) // 3), slice(len(with_record) // 3, None)
    covariance = measured_covariance(without.select(first))
    held_in, held_out, scores_in, scores_out = (
        claim.statistics(world.select(part), covariance)
        for part in (first, rest)
        for world in (with_record, without)
    )
    mechanism, runs = claim.mechanism, len(scores_in[0])
    q, steps = claim.sampling_probability, len(with_record.releases)

    def finding(delta):
        attack = bounds.choose_attack(held_in, held_out, runs, delta, confidence)
        unproven = None
        if mechanism.hides_buffer:
            plain = accounting.step_event(q, mechanism.noise_multiplier)
            unproven = _epsilon(plain, steps, delta).smallest_bound
        return Finding(
            audit=audit,
            error_feedback=mechanism.error_feedback,
            replicas=replicas,
            steps=steps,
            sampling_probability=q,
            delta=delta,
            runs=runs,
            ceiling=bounds.ceiling(runs, delta, confidence),
            bound=attack.lower_bound(scores_in, scores_out, delta, confidence),
            account=_account(claim, steps, delta),
            unproven=unproven,
        )

    return [finding(delta) for delta in deltas]


def runs_with_held_out(runs: int) -> int:
    """Returns how many runs in each world are needed to measure a bound on `runs` of them."""
    return runs + runs // 2


def _account(claim: Claim, steps: int, delta: float) -> float:
    """Returns the epsilon that a run of these steps would state; infinite if none is proven."""
    epsilon = _epsilon(claim.event, steps, delta).smallest_bound
    return epsilon if grid.is_negligible(epsilon, delta, claim.draws(steps)) else math.inf


@functools.cache
def _epsilon(event: dp_accounting.DpEvent, steps: int, delta: float) -> accounting.Epsilon:
    return accounting.compute_epsilon(event, steps, grid.accounted_delta(delta))
