"""What a run released, and statistics of it that distinguish the two worlds.

No statistic does that better than the likelihood ratio of the two worlds (Neyman and Pearson). It
is computed here from the definition of the private step and not with the code under audit, so that
code which adds less noise than it claims does not pass its mistake on to the auditor. If there is a
bug, the ratio is no longer the best statistic, so there are others beside it. A bound from any of
them holds.
"""

from __future__ import annotations

import dataclasses
import math

import dp_accounting
import numpy as np

from tf_efsgd.privacy import grid
from tf_efsgd.privacy.mechanism import Mechanism

# Keeps the measured covariance of repeated noise invertible; a share of the variances.
_RIDGE = 1e-6


@dataclasses.dataclass(frozen=True)
class Observations:
    """What was released in the runs of one world, reduced to what can reveal the record.

    Attributes:
      releases: float32 [T, runs, F]. These are A and, if it is released, R, less the sums of the
        other records. Of each variable only the component along the record's gradient is kept.
      shifts: float32 [T, runs, F] or [T, 1, F]: what the record adds to them if it is sampled.
    """

    releases: np.ndarray
    shifts: np.ndarray

    def __len__(self) -> int:
        """Number of runs."""
        return self.releases.shape[1]

    def select(self, runs: slice) -> Observations:
        """Returns the observations of some of the runs."""
        shifts = self.shifts if self.shifts.shape[1] == 1 else self.shifts[:, runs]
        return Observations(self.releases[:, runs], shifts)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the definition says of a mechanism about one record, if all else is known.

    Attributes:
      mechanism: the numbers of the mechanism.
      sampling_probability: q in (0, 1].
      parameters: how many parameters a step updates; None for a sum over all records, which is
        exact.
    """

    mechanism: Mechanism
    sampling_probability: float
    parameters: int | None

    @property
    def event(self) -> dp_accounting.DpEvent:
        """The event that the accountant counts for one release."""
        if self.parameters is not None:
            return self.mechanism.step_event(self.sampling_probability, self.parameters)
        return dp_accounting.GaussianDpEvent(
            grid.effective_noise_multiplier(self.mechanism.noise_multiplier, None)
        )

    def draws(self, steps: int) -> int:
        """Returns how many random numbers one run of so many releases draws for its noise."""
        return steps * self.mechanism.coordinates(self.parameters or grid.LARGEST_FEATURES)

    @property
    def feeds_back(self) -> bool:
        """Whether a noisy residual R is released beside A."""
        return self.mechanism.error_feedback == 'private' and self.mechanism.residual_share > 0

    @property
    def noise_stddevs(self) -> list[float]:
        """The standard deviations of the noise on A and, if it is released, on R."""
        first, second = self.mechanism.l2_norm_clip, self.mechanism.residual_l2_norm_clip
        sigma, share = self.mechanism.noise_multiplier, self.mechanism.residual_share
        if not self.feeds_back:
            return [first * sigma]
        return [first * sigma / math.sqrt(1.0 - share), second * sigma / math.sqrt(share)]

    def recover(
        self,
        gradient: np.ndarray,
        buffer_before: np.ndarray | None,
        buffer_after: np.ndarray | None,
        divisor: float,
    ) -> list[np.ndarray]:
        """Recovers the noisy sums from a released gradient and the public buffer.

        It inverts u = E + R/B, d = clip((1 - beta) u, Ce), E' = u - d, v = A/B + d. The vectors u
        and E' have the same direction, and the norm of d is (1 - beta) |E'| / beta as long as Ce
        does not bind.

        Args:
          gradient: v, [runs, size].
          buffer_before: E, [runs, size]; not used if no noisy residual is fed back.
          buffer_after: E', [runs, size].
          divisor: B.

        Returns:
          [A] or [A, R], each [runs, size].
        """
        if not self.feeds_back:
            return [gradient * divisor]
        decay, clip = self.mechanism.feedback_decay, self.mechanism.feedback_l2_norm_clip
        stretch: float | np.ndarray = 1.0 / decay
        if clip is not None:
            norm = np.linalg.norm(buffer_after, axis=-1, keepdims=True)
            binds = (stretch - 1.0) * norm > clip
            stretch = np.where(binds, 1.0 + clip / np.maximum(norm, 1e-30), stretch)
        owed = stretch * buffer_after
        delivered = owed - buffer_after
        return [(gradient - delivered) * divisor, (owed - buffer_before) * divisor]

    def observe(
        self,
        noisy_sums: list[np.ndarray],
        others: list[np.ndarray],
        record_gradient: np.ndarray,
        sizes: list[int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes the part of one step in `Observations`.

        Args:
          noisy_sums: the result of `recover`.
          others: sums of the other records' clipped gradients and residuals, each [size].
          record_gradient: the gradient of the record under audit, [size].
          sizes: sizes of the variables; their sum is `size`.

        Returns:
          (releases [runs, F], shifts [F]).
        """
        starts = np.cumsum([0, *sizes[:-1]])
        norms = np.sqrt(np.add.reduceat(np.square(record_gradient), starts))
        along = record_gradient / np.maximum(np.repeat(norms, sizes), 1e-30)
        releases = [
            np.add.reduceat((noisy - other) * along, starts, axis=-1)
            for noisy, other in zip(noisy_sums, others)
        ]
        norm = max(float(np.linalg.norm(norms)), 1e-30)
        clipped = min(norm, self.mechanism.l2_norm_clip)
        residual = min(norm - clipped, self.mechanism.residual_l2_norm_clip)
        shifts = [length * norms / norm for length in (clipped, residual)][: len(noisy_sums)]
        return np.concatenate(releases, axis=-1), np.concatenate(shifts)

    def statistics(
        self, observations: Observations, noise_covariance: np.ndarray
    ) -> list[np.ndarray]:
        """Computes statistics that are large if the record was in.

        Args:
          observations: the observations of runs in either world.
          noise_covariance: the covariance [F, F] measured on other runs, without the record.

        Returns:
          The statistics, each [runs]:
            - the log likelihood ratio of the documented mechanism, which is the best statistic if
              that mechanism runs, and the only one for 'hidden';
            - the same with the measured noise, which shows more clearly if a part of the release
              has less noise, or if parts share their noise;
            - how far apart the steps of a run are: if they share their noise, only the record
              moves them.
          A run that released something that is not a number counts as in, since no noise hides
          that.
        """
        features = observations.releases.shape[-1]
        variances = np.repeat(np.square(self.noise_stddevs), features // len(self.noise_stddevs))
        if self.mechanism.error_feedback == 'hidden':
            found = [self._hidden_log_likelihood_ratio(observations)]
        else:
            exponent = _log_density_ratio(observations, np.diag(variances))
            measured = noise_covariance + _RIDGE * np.diag(np.diag(noise_covariance) + variances)
            found = [
                self._log_likelihood_ratio(exponent),
                self._log_likelihood_ratio(_log_density_ratio(observations, measured)),
                np.ptp(exponent, axis=0),
            ]
        return [np.where(np.isnan(statistic), np.inf, statistic) for statistic in found]

    def _log_likelihood_ratio(self, exponent):
        """Sums over the steps, each of which is a Gaussian mechanism on its own Poisson sample."""
        return np.sum(self._sampled(exponent, 0.0), axis=0)

    def _hidden_log_likelihood_ratio(self, observations):
        """Computes the ratio for a record far beyond C1 + T C2, the only one that is clipped.

        The step that samples it first moves by C1. From then on the buffer never runs dry, and
        every step moves by C2, or by C1 + C2 if it samples the record again. The step of the first
        sample is summed out: `unseen` and `seen` are the likelihoods of the releases so far and of
        the record not yet, or already, being sampled, each over the likelihood without the record.
        """
        first, second = self.mechanism.l2_norm_clip, self.mechanism.residual_l2_norm_clip
        along = observations.shifts / first
        (stddev,) = self.noise_stddevs
        unseen, seen = np.zeros(len(observations)), np.full(len(observations), -np.inf)
        log_in, log_out = _log(self.sampling_probability), _log(1.0 - self.sampling_probability)
        for noisy in np.sum(observations.releases * along, axis=-1):
            again = self._sampled(
                _gaussian(noisy, first + second, stddev), _gaussian(noisy, second, stddev)
            )
            now = unseen + log_in + _gaussian(noisy, first, stddev)
            seen = _log_sum(seen + again, now)
            unseen = unseen + log_out
        return _log_sum(unseen, seen)

    def _sampled(self, exponent, otherwise):
        """Returns the log of the mixture q exp(exponent) + (1 - q) exp(otherwise)."""
        q = self.sampling_probability
        return _log_sum(_log(q) + exponent, _log(1.0 - q) + otherwise)


def measured_covariance(without_record: Observations) -> np.ndarray:
    """Measures the covariance [F, F] of the noise, over all steps and runs without the record."""
    features = without_record.releases.shape[-1]
    return np.atleast_2d(np.cov(without_record.releases.reshape(-1, features), rowvar=False))


def _log_density_ratio(observations: Observations, covariance: np.ndarray) -> np.ndarray:
    """The log of N(shift, covariance) over N(0, covariance) at every release, [T, runs]."""
    shifts = observations.shifts
    weights = np.linalg.solve(covariance, shifts[..., np.newaxis])[..., 0]
    return np.sum((observations.releases - shifts / 2.0) * weights, axis=-1)


def _gaussian(value, shift, stddev):
    """The log of N(shift, stddev^2) over N(0, stddev^2)."""
    return (value - shift / 2.0) * shift / stddev**2


def _log_sum(first, second):
    """Returns the log of the sum of two exponentials; NaN stays NaN."""
    with np.errstate(invalid='ignore'):
        return np.logaddexp(first, second)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
