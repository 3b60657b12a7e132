"""Computes a lower bound on epsilon from the scores of runs in two worlds.

An attack says 'the record was in' if the score of a run reaches a threshold. Under (epsilon,
delta)-differential privacy its hits and its false alarms obey hits <= e^epsilon false alarms +
delta, and so do those of the attack that says 'out' below a threshold (Kairouz et al. 2015). With
Clopper-Pearson intervals for the measured rates, this gives a bound that holds with the stated
confidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

# So many thresholds are tried at each end, and over the whole range, of the scores of each world.
_CANDIDATES = 100


@dataclasses.dataclass(frozen=True)
class Attack:
    """Guesses from a score which world a run is from.

    Attributes:
      statistic: the index of the score.
      threshold: the threshold of that score.
      says_out: if true, a score below the threshold means a run without the record; otherwise, a
        score of at least the threshold means a run with it.
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
        """Computes a lower bound on epsilon from runs that had no part in choosing the attack.

        Args:
          scores_in: the scores of runs with the record, [n] for each statistic.
          scores_out: the same for runs without it.
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
    """Computes ln((hit rate - delta) / false alarm rate) with cautious ends of both intervals.

    Args:
      hits: number of runs that the attack assigns correctly to its world.
      false_alarms: number of runs of the other world that it assigns to its world.
      runs: n, the number of runs in each world.
      delta: in [0, 1).
      confidence: confidence of the bound; each of the two one-sided intervals fails with half of
        the remaining probability.

    Returns:
      The bound, at least 0, with the shape of the counts.
    """
    error = (1.0 - confidence) / 2.0
    hit_rate = lower_rate(hits, runs, error)
    ratio = np.maximum(hit_rate - delta, 0.0) / upper_rate(false_alarms, runs, error)
    return np.log(np.maximum(ratio, 1.0))


def lower_rate(count: npt.ArrayLike, runs: int, error: float) -> np.ndarray:
    """The one-sided Clopper-Pearson lower bound of a binomial rate; 0 without a success."""
    # scipy.stats.binomtest has the same interval, but for one count at a time.
    bound = stats.beta.ppf(error, count, runs - np.asarray(count) + 1)
    return np.where(np.asarray(count) <= 0, 0.0, bound)


def upper_rate(count: npt.ArrayLike, runs: int, error: float) -> np.ndarray:
    """The one-sided Clopper-Pearson upper bound of a binomial rate; 1 for successes only."""
    bound = stats.beta.ppf(1.0 - error, np.asarray(count) + 1, runs - np.asarray(count))
    return np.where(np.asarray(count) >= runs, 1.0, bound)


def ceiling(runs: int, delta: float, confidence: float) -> float:
    """The largest bound that so many runs in each world can give, whatever they show.

    Args:
      runs: n, the number of runs in each world.
      delta: in [0, 1).
      confidence: in (0, 1).

    Returns:
      The bound of an attack that makes no mistake; about ln(n / 3.7) at 95%.
    """
    return float(epsilon_lower_bound(runs, 0, runs, delta, confidence))


def choose_attack(
    scores_in: Sequence[np.ndarray],
    scores_out: Sequence[np.ndarray],
    runs: int,
    delta: float,
    confidence: float,
) -> Attack:
    """Chooses the attack that promises the largest bound, on runs that the bound will not use.

    Args:
      scores_in: the scores of held-out runs with the record, [m] for each statistic.
      scores_out: the same for held-out runs without it.
      runs: n, the number of runs on which the bound will be measured.
      delta: in [0, 1).
      confidence: in (0, 1).

    Returns:
      The attack.
    """
    held_out = len(scores_in[0])

    def promised(hits, false_alarms):
        # Half a run is added, because no false alarm among m does not mean none among n.
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
    """Counts the scores of each world that reach each threshold."""
    return tuple(
        len(scores) - np.searchsorted(np.sort(scores), thresholds, side='left')
        for scores in (scores_in, scores_out)
    )


def _candidates(scores_in, scores_out):
    """Chooses scores of both worlds, most at the ends, where large bounds are."""
    last = len(scores_in) - 1
    ranks = np.geomspace(1, len(scores_in), _CANDIDATES).astype(int) - 1
    ranks = np.unique([*ranks, *(last - ranks), *np.linspace(0, last, _CANDIDATES).astype(int)])
    return np.unique([np.sort(scores)[ranks] for scores in (scores_in, scores_out)])
