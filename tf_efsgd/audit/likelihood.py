"""The likelihood ratio of what a run released, under the mechanism as it is DOCUMENTED.

No statistic tells two worlds apart better than their likelihood ratio (Neyman and Pearson). The
numbers in here are worked out from the definition of the private step and not taken from the code
under audit: code that adds less noise than it claims must not lend the auditor its mistake. Then
the ratio is no longer the best statistic, but the bound it gives still holds.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tf_efsgd.privacy.optimizer import Mechanism


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the definition says of a mechanism, for one record of which all else is known.

    Attributes:
      mechanism: its numbers.
      sampling_probability: q in (0, 1].
    """

    mechanism: Mechanism
    sampling_probability: float

    @property
    def feeds_back(self) -> bool:
        """Whether a noised residual R is released beside A."""
        return self.mechanism.error_feedback == 'private' and self.mechanism.residual_share > 0

    def recover(
        self,
        gradient: np.ndarray,
        buffer_before: np.ndarray | None,
        buffer_after: np.ndarray | None,
        divisor: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The noisy sums A and R behind a released gradient and the public buffer.

        Inverts u = E + R/B, d = clip((1 - beta) u, Ce), E' = u - d, v = A/B + d. u and E' point
        the same way, and (1 - beta) |E'| / beta is the norm of d as long as Ce does not bind.

        Args:
          gradient: v, [runs, size].
          buffer_before: E, [runs, size]; None where no noised residual is fed back.
          buffer_after: E', [runs, size].
          divisor: B.

        Returns:
          (A, R), [runs, size]; R zero where there is none.
        """
        if not self.feeds_back:
            return gradient * divisor, np.zeros_like(gradient)
        decay, clip = self.mechanism.feedback_decay, self.mechanism.feedback_l2_norm_clip
        stretch = 1.0 / decay
        if clip is not None:
            norm = np.linalg.norm(buffer_after, axis=-1, keepdims=True)
            binds = (stretch - 1.0) * norm > clip
            stretch = np.where(binds, 1.0 + clip / np.maximum(norm, 1e-30), stretch)
        owed = stretch * buffer_after
        delivered = owed - buffer_after
        return (gradient - delivered) * divisor, (owed - buffer_before) * divisor

    def log_likelihood_ratio(
        self, clipped: np.ndarray, residual: np.ndarray, gradient_norm: np.ndarray
    ) -> np.ndarray:
        """Log likelihood ratio, record in over record out, of the releases of T steps.

        Args:
          clipped: [T, runs], A without the other records' sum, along the record's gradient.
          residual: [T, runs], the same of R.
          gradient_norm: norm of the record's gradient, [T, runs] or anything that broadcasts.

        Returns:
          [runs]. A run that released anything but numbers counts as certainly in: no noise
          hides that.
        """
        if self.mechanism.error_feedback == 'hidden':
            ratio = self._hidden(clipped)
        else:
            ratio = self._noised(clipped, residual, gradient_norm)
        return np.where(np.isnan(ratio), np.inf, ratio)

    def _noised(self, clipped, residual, gradient_norm):
        """Every step is a Gaussian mechanism of its own, on a Poisson sample."""
        first, second = self.mechanism.l2_norm_clip, self.mechanism.residual_l2_norm_clip
        sigma, share = self.mechanism.noise_multiplier, self.mechanism.residual_share
        if not self.feeds_back:
            share = 0.0
        clipped_norm = np.minimum(gradient_norm, first)
        stddev = first * sigma / math.sqrt(1.0 - share)
        exponent = _gaussian(clipped, clipped_norm, stddev)
        if self.feeds_back:
            residual_norm = np.minimum(gradient_norm - clipped_norm, second)
            stddev = second * sigma / math.sqrt(share)
            exponent = exponent + _gaussian(residual, residual_norm, stddev)
        return np.sum(self._sampled(exponent, 0.0), axis=0)

    def _hidden(self, clipped):
        """A record far beyond C1 + T C2, the only one whose gradient clipping cuts.

        The step that samples it first moves by C1. From then on the buffer never runs dry, and
        every step moves by C2, and by C1 + C2 when it samples the record again. When that was is
        summed out: `unseen` and `seen` are the likelihoods, over that of no record, of the
        releases so far together with the record not yet, or already, sampled.
        """
        first, second = self.mechanism.l2_norm_clip, self.mechanism.residual_l2_norm_clip
        stddev = first * self.mechanism.noise_multiplier
        runs = clipped.shape[1]
        unseen, seen = np.zeros(runs), np.full(runs, -np.inf)
        log_in, log_out = _log(self.sampling_probability), _log(1.0 - self.sampling_probability)
        for noisy in clipped:
            again = self._sampled(
                _gaussian(noisy, first + second, stddev), _gaussian(noisy, second, stddev)
            )
            now = unseen + log_in + _gaussian(noisy, first, stddev)
            seen = np.logaddexp(seen + again, now)
            unseen = unseen + log_out
        return np.logaddexp(unseen, seen)

    def _sampled(self, exponent, otherwise):
        """Log of the mixture q exp(exponent) + (1 - q) exp(otherwise)."""
        q = self.sampling_probability
        return np.logaddexp(_log(q) + exponent, _log(1.0 - q) + otherwise)


def _gaussian(value, shift, stddev):
    """Log density ratio of N(shift, stddev^2) over N(0, stddev^2)."""
    return (value - shift / 2.0) * shift / stddev**2


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
