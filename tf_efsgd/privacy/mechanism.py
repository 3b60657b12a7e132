"""The numbers that define a private step, and its privacy event. No TensorFlow.

`private_step` has the same step as tensors. Plan, ledger, statement and optimizer all take the
event of a step from `Mechanism.step_event`.

Formal guarantees:
  - Scaled by their noise, the two sums of a step move by at most 1 / sigma when one record is added
    or removed, whatever rho, C1 and C2 are (by K / sigma for the K images of one person): one step
    is one Gaussian mechanism on the sampled records.
  - The event counts what releases on a grid cost (`grid.effective_noise_multiplier`).
"""

from __future__ import annotations

import dataclasses
import math

import dp_accounting

from tf_efsgd.privacy import accounting, grid

ERROR_FEEDBACK_MODES = ('private', 'none', 'hidden')

# The number of parameters that is accounted for where nobody says how many a step updates.
ASSUMED_PARAMETERS = 2**20
# Clipping squares lengths in float32: beyond these they would underflow or overflow.
_SMALLEST_NORM, _LARGEST_NORM = 1e-9, 1e9
# With a smaller share the noise on the residual leaves the range of float32.
_SMALLEST_SHARE = 1e-9
# The hidden buffer takes the whole part that clipping cut, up to where sums could overflow.
_WHOLE_RESIDUAL = 1e12


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """The numbers that define a private step; validated, public.

    Attributes:
      l2_norm_clip: C1, the length to which every record's gradient is clipped; all norms here are
        between 1e-9 and 1e9.
      noise_multiplier: sigma >= 0; 0 adds no noise and claims no epsilon.
      error_feedback: 'private'; 'none' for plain DP-SGD; 'hidden' for the published variant with a
        buffer that is not noised.
      residual_l2_norm_clip: C2 > 0, the length to which the part that clipping cut from one
        gradient is clipped; hidden: the largest norm given back in one step, in units of the sum,
        like C1.
      residual_share: rho in [0, 1), share of the budget (in 1/sigma^2) spent on the residual.
      feedback_decay: beta in [0, 1), part of the buffer kept back at each step.
      feedback_l2_norm_clip: Ce > 0, largest norm given back in one step; None: no limit.
    """

    l2_norm_clip: float
    noise_multiplier: float
    error_feedback: str = 'private'
    residual_l2_norm_clip: float = 1.0
    residual_share: float = 0.1
    feedback_decay: float = 0.9
    feedback_l2_norm_clip: float | None = None

    def __post_init__(self):
        def require(ok, name, allowed):
            if not ok:
                raise ValueError(f'{name} must be {allowed}. Received: {getattr(self, name)!r}.')

        def is_norm(value):
            return _SMALLEST_NORM <= value <= _LARGEST_NORM

        norms = f'between {_SMALLEST_NORM:g} and {_LARGEST_NORM:g}'
        require(is_norm(self.l2_norm_clip), 'l2_norm_clip', norms)
        require(
            math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0,
            'noise_multiplier',
            'finite and not negative (0: no noise, no privacy)',
        )
        require(
            self.error_feedback in ERROR_FEEDBACK_MODES,
            'error_feedback',
            'one of ' + ', '.join(ERROR_FEEDBACK_MODES),
        )
        require(is_norm(self.residual_l2_norm_clip), 'residual_l2_norm_clip', norms)
        require(
            self.residual_share == 0 or _SMALLEST_SHARE <= self.residual_share < 1,
            'residual_share',
            f'0, or at least {_SMALLEST_SHARE:g} and below 1',
        )
        require(0 <= self.feedback_decay < 1, 'feedback_decay', 'in [0, 1)')
        require(
            self.feedback_l2_norm_clip is None or is_norm(self.feedback_l2_norm_clip),
            'feedback_l2_norm_clip',
            f'None, or {norms}',
        )

    @property
    def feeds_back(self) -> bool:
        """Whether a residual is released at all; without one the step is plain DP-SGD."""
        return self.error_feedback == 'private' and self.residual_share > 0

    @property
    def hides_buffer(self) -> bool:
        """Whether the error buffer is private state: the published variant."""
        return self.error_feedback == 'hidden'

    @property
    def has_buffer(self) -> bool:
        """Whether there is an error buffer at all."""
        return self.feeds_back or self.hides_buffer

    @property
    def clips(self) -> tuple[float, float]:
        """The largest norms of the two parts of a record's gradient, see `clipping.clip_and_sum`.

        C1 and C2; a hidden buffer takes the second part whole.
        """
        return (
            self.l2_norm_clip,
            _WHOLE_RESIDUAL if self.hides_buffer else self.residual_l2_norm_clip,
        )

    @property
    def clipped_noise_stddev(self) -> float:
        """Standard deviation of the noise on `clipped_grad_sum`: C1 sigma / sqrt(1 - rho)."""
        share = self.residual_share if self.feeds_back else 0.0
        return self.l2_norm_clip * self.noise_multiplier / math.sqrt(1.0 - share)

    @property
    def residual_noise_stddev(self) -> float:
        """Standard deviation of the noise on `residual_grad_sum`: C2 sigma / sqrt(rho)."""
        if not self.residual_share:
            return math.inf
        return self.residual_l2_norm_clip * self.noise_multiplier / math.sqrt(self.residual_share)

    @property
    def clipped_step(self) -> float:
        """The size of a step of the grid of the released `clipped_grad_sum`."""
        return grid.step(self.clipped_noise_stddev, self.l2_norm_clip)

    @property
    def residual_step(self) -> float:
        """The size of a step of the grid of the released `residual_grad_sum`."""
        return grid.step(self.residual_noise_stddev, self.residual_l2_norm_clip)

    def coordinates(self, parameters: int) -> int:
        """How many numbers a step releases if it updates this many parameters."""
        return parameters * (2 if self.feeds_back else 1)

    def unit_noise_multiplier(self, images_per_person: int = 1) -> float:
        """The noise divided by how far one unit of privacy moves a release; no cost of the grid.

        Args:
          images_per_person: K >= 1, how many records one unit of privacy has.

        Returns:
          sigma / K; with a hidden buffer sigma C1 / (K C1 + 2 C2), see
          `accounting.hidden_sensitivity`.
        """
        if not self.hides_buffer:
            return self.noise_multiplier / images_per_person
        sensitivity = accounting.hidden_sensitivity(
            self.l2_norm_clip, self.residual_l2_norm_clip, images_per_person
        )
        return self.noise_multiplier * self.l2_norm_clip / sensitivity

    def noise_multiplier_for(
        self, effective: float, parameters: int, images_per_person: int = 1
    ) -> float:
        """The smallest sigma with which `step_event` has at least this noise multiplier.

        Args:
          effective: sigma_eff > 0 of the event's Gaussian.
          parameters: how many parameters the step updates.
          images_per_person: K >= 1.

        Returns:
          sigma, rounded up; the mechanism's own noise multiplier plays no part.
        """
        unit = dataclasses.replace(self, noise_multiplier=1.0).unit_noise_multiplier(
            images_per_person
        )
        return grid.noise_multiplier_for(effective, self.coordinates(parameters)) / unit

    def dp_event(self, parameters: int, images_per_person: int = 1) -> dp_accounting.DpEvent:
        """The event of one step on the sampled records, without the sampling.

        Args:
          parameters: how many parameters the step updates.
          images_per_person: K >= 1, how many records one unit of privacy has.

        Returns:
          `GaussianDpEvent`; `NonPrivateDpEvent` without noise, and with a hidden buffer: its leak
          does not depend on whether a step samples a record, so no sampling may be accounted for;
          see `step_event`.
        """
        if self.noise_multiplier == 0 or self.hides_buffer:
            return dp_accounting.NonPrivateDpEvent()
        return self._gaussian_event(parameters, images_per_person)

    def _gaussian_event(self, parameters, images_per_person):
        return dp_accounting.GaussianDpEvent(
            grid.effective_noise_multiplier(
                self.unit_noise_multiplier(images_per_person), self.coordinates(parameters)
            )
        )

    def step_event(
        self, sampling_probability: float, parameters: int, images_per_person: int = 1
    ) -> dp_accounting.DpEvent:
        """The event of one step with its Poisson sampling, for the ledger.

        Args:
          sampling_probability: q in (0, 1], of every record.
          parameters: how many parameters the step updates.
          images_per_person: K >= 1, how many records one unit of privacy has.

        Returns:
          `PoissonSampledDpEvent(p, dp_event)`, p the probability that any of the K records is
          sampled; hidden: a Gaussian, not sampled, since sampling does not amplify it.
        """
        if self.hides_buffer and self.noise_multiplier:
            return self._gaussian_event(parameters, images_per_person)
        return dp_accounting.PoissonSampledDpEvent(
            accounting.person_sampling_probability(sampling_probability, images_per_person),
            self.dp_event(parameters, images_per_person),
        )
