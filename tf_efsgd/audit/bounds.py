"""From the scores of two worlds to a lower bound on epsilon.

An attack says 'the record was in' when the score of a run reaches a threshold. Under (epsilon,
delta)-differential privacy its hits and its false alarms obey hits <= e^epsilon false alarms +
delta, and so does the attack that says 'out' below a threshold (Kairouz et al. 2015). Measured
rates with Clopper-Pearson intervals turn that into a bound that holds with stated confidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

# Thresholds that are tried at each end, and all over, of the scores of each world.
_CANDIDATES = 100


@dataclasses.dataclass(frozen=True)
class Attack:
    """Says which world a run is from, by its score.

    Attributes:
      statistic: which of the scores.
      threshold: of the score.
      says_out: whether it looks for runs without the record, with scores below the threshold;
        else for runs with it, with scores of at least the threshold.
    """

    statistic: int
    threshold: float
    says_out: bool

    def lower_bound(
        self,
        scores_in: Sequence[np.ndarray],
        scores_out: Sequence[np.ndarray],
        delta: float,
        confidence: float,
    ) -> float:
        """Lower bound on epsilon from runs that had no part in choosing the attack.

        Args:
          scores_in: of each statistic [n], of runs with the record.
          scores_out: the same of runs without it.
          delta: in [0, 1).
          confidence: in (0, 1).

        Returns:
          A bound >= 0 that exceeds the true epsilon with probability at most 1 - confidence.
        """
        with_record, without = scores_in[self.statistic], scores_out[self.statistic]
        hits, false_alarms = _counts(with_record, without, self.threshold)
        runs = len(with_record)
        if self.says_out:
            hits, false_alarms = runs - false_alarms, runs - hits
        return float(epsilon_lower_bound(hits, false_alarms, runs, delta, confidence))


def epsilon_lower_bound(
    hits: npt.ArrayLike, false_alarms: npt.ArrayLike, runs: int, delta: float, confidence: float
) -> np.ndarray:
    """ln((hit rate - delta) / false alarm rate), each rate at the cautious end of its interval.

    Args:
      hits: number of runs of the one world that the attack points at.
      false_alarms: number of runs of the other world that it points at.
      runs: n, in each world.
      delta: in [0, 1).
      confidence: of the bound; each of the two one-sided intervals fails with half the rest.

    Returns:
      The bound, at least 0; shaped like the counts.
    """
    error = (1.0 - confidence) / 2.0
    hit_rate = lower_rate(hits, runs, error)
    ratio = np.maximum(hit_rate - delta, 0.0) / upper_rate(false_alarms, runs, error)
    return np.log(np.maximum(ratio, 1.0))


def lower_rate(count: npt.ArrayLike, runs: int, error: float) -> np.ndarray:
    """One-sided Clopper-Pearson lower bound of a binomial rate; 0 for no success."""
    # scipy.stats.binomtest has the same interval, one count at a time.
    bound = stats.beta.ppf(error, count, runs - np.asarray(count) + 1)
    return np.where(np.asarray(count) <= 0, 0.0, bound)


def upper_rate(count: npt.ArrayLike, runs: int, error: float) -> np.ndarray:
    """One-sided Clopper-Pearson upper bound of a binomial rate; 1 for successes only."""
    bound = stats.beta.ppf(1.0 - error, np.asarray(count) + 1, runs - np.asarray(count))
    return np.where(np.asarray(count) >= runs, 1.0, bound)


def ceiling(runs: int, delta: float, confidence: float) -> float:
    """The largest bound that so many runs per world can give, whatever they show.

    Args:
      runs: n, in each world.
      delta: in [0, 1).
      confidence: in (0, 1).

    Returns:
      The bound of an attack without a mistake; about ln(n / 3.7) at 95%.
    """
    return float(epsilon_lower_bound(runs, 0, runs, delta, confidence))


def choose_attack(
    scores_in: Sequence[np.ndarray],
    scores_out: Sequence[np.ndarray],
    runs: int,
    delta: float,
    confidence: float,
) -> Attack:
    """The attack that promises the largest bound; on runs that are held out from the bound.

    Args:
      scores_in: of each statistic [m], of held-out runs with the record.
      scores_out: the same of held-out runs without it.
      runs: n, on which the bound will be measured.
      delta: in [0, 1).
      confidence: in (0, 1).

    Returns:
      The attack.
    """
    held_out = len(scores_in[0])

    def promised(hits, false_alarms):
        # Half a run more: none among m is not none among n.
        false_alarms = np.minimum(false_alarms + 0.5, held_out)
        scale = runs / held_out
        return epsilon_lower_bound(hits * scale, false_alarms * scale, runs, delta, confidence)

    best, attack = -1.0, None
    for statistic, (with_record, without) in enumerate(zip(scores_in, scores_out)):
        thresholds = _candidates(with_record, without)
        hits, false_alarms = _counts(with_record, without, thresholds)
        for says_out, promises in (
            (False, promised(hits, false_alarms)),
            (True, promised(held_out - false_alarms, held_out - hits)),
        ):
            if promises.max() > best:
                best = promises.max()
                attack = Attack(statistic, float(thresholds[promises.argmax()]), says_out)
    return attack


def _counts(scores_in, scores_out, thresholds):
    """How many scores of each world reach each threshold."""
    return tuple(
        len(scores) - np.searchsorted(np.sort(scores), thresholds, side='left')
        for scores in (scores_in, scores_out)
    )


def _candidates(scores_in, scores_out):
    """Scores of both worlds, densest at the ends: that is where large bounds are."""
    last = len(scores_in) - 1
    ranks = np.geomspace(1, len(scores_in), _CANDIDATES).astype(int) - 1
    ranks = np.unique([*ranks, *(last - ranks), *np.linspace(0, last, _CANDIDATES).astype(int)])
    return np.unique([np.sort(scores)[ranks] for scores in (scores_in, scores_out)])
