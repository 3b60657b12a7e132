"""The lattice attack: is there a guess of the records that no noise value explains?

Floating-point noise has gaps, so a released number less the sum that a guess of the records gives
may be a number that the noise cannot be: the guess is then refuted with certainty, whatever epsilon
says (Mironov 2012). Here the releases of the product are made on known records, and three guesses
are held against them: the truth, the records without one, and the records with a foreign one. A
guess is refuted where what is left as noise is beyond what the sampler can draw, or where its
remainders show a lattice: a uniform remainder modulo every power of two up to 64 shows none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from scipy import stats

from tf_efsgd.audit.training import load_records
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.privacy import class_sums, clipping, grid, noise, private_step
from tf_efsgd.privacy.features import learned, pixels
from tf_efsgd.privacy.mechanism import Mechanism

# Largest number of steps that a draw can be.
LARGEST_DRAW = grid.LARGEST_PART * sum(grid.SCALES)
_MODULI = (2, 4, 8, 16, 32, 64)
# A uniform remainder is called a lattice once in so many audits.
_LEVEL = 1e-9
# Per-example gradients of A and R: so many records, so many numbers.
_RECORDS, _PARAMETERS = 40, 20_000


@dataclasses.dataclass(frozen=True)
class Attack:
    """What the attack found on one release.

    Attributes:
      release: which one, e.g. 'F'.
      source: 'Philox' or 'secure'.
      coordinates: how many numbers it has.
      refuted: by guess ('true', 'without one', 'with another') the number of coordinates without a
        possible noise value.
      lattice: by guess the smallest p-value of a uniform remainder.
    """

    release: str
    source: str
    coordinates: int
    refuted: dict[str, int]
    lattice: dict[str, float]

    @property
    def finds(self) -> bool:
        """Whether a guess is refuted: then what is released betrays records."""
        return any(self.refuted.values()) or min(self.lattice.values()) < _LEVEL

    @property
    def verdict(self) -> str:
        """The finding in words."""
        return 'REFUTES a guess: a bug in the noise' if self.finds else 'no guess is refuted'


def left_as_noise(released: np.ndarray, guessed: np.ndarray) -> tuple[int, float]:
    """Holds a guess of the un-noised sum against what was released.

    Args:
      released: int64, noisy sums in steps of the grid.
      guessed: int64, of the same shape.

    Returns:
      (how many coordinates no noise explains, the smallest p-value of a uniform remainder).
    """
    left = (released - guessed).ravel()
    p_values = [
        stats.chisquare(np.bincount(left % modulus, minlength=modulus)).pvalue
        for modulus in _MODULI
    ]
    return int(np.sum(np.abs(left) > LARGEST_DRAW)), min(p_values)


def _attack(release, source, released, guesses) -> Attack:
    found = {name: left_as_noise(released, sums) for name, sums in guesses.items()}
    return Attack(
        release,
        source,
        released.size,
        {name: refuted for name, (refuted, _) in found.items()},
        {name: p_value for name, (_, p_value) in found.items()},
    )


def audit(noise_multiplier: float = 1.0) -> list[Attack]:
    """Attacks all that is released, from either source of noise.

    Args:
      noise_multiplier: sigma of every release.

    Returns:
      Of F, of the second release, of A and of R, each with Philox and with `SecureNoise`.
    """
    sources = {'Philox': noise.NoiseKey, 'secure': noise.SecureNoise}
    return [
        attack
        for source, make in sources.items()
        for attack in [
            *_attack_class_sums(noise_multiplier, source, make),
            *_attack_step(noise_multiplier, source, make),
        ]
    ]


def _attack_class_sums(noise_multiplier, source, make_noise: Callable) -> list[Attack]:
    records = load_records()
    images, labels, shape = records.images, records.labels, records.image_shape
    foreign = np.random.default_rng(7).integers(256, size=(1, *shape), dtype=np.uint8)
    guesses = {
        'true': (images, labels),
        'without one': (images[:-1], labels[:-1]),
        'with another': (np.concatenate([images, foreign]), np.append(labels, labels[-1])),
    }
    classifier = build_classifier(shape, records.num_classes)
    found = []
    for name, features in (
        ('F', pixels.FeatureMap(shape)),
        ('F, second', learned.LearnedFeatures(classifier, (1.0, 1.0, 1.0), shape)),
    ):
        sums = {
            guess: class_sums.sum_over_records(
                *of_guess, records.num_classes, features, noise_multiplier
            )
            for guess, of_guess in guesses.items()
        }
        released = class_sums.release(
            images, labels, records.num_classes, features, noise_multiplier, make_noise()
        )
        found.append(_attack(name, source, released, sums))
    return found


def _attack_step(noise_multiplier, source, make_noise: Callable) -> list[Attack]:
    mechanism = Mechanism(0.7, noise_multiplier, residual_l2_norm_clip=0.4, residual_share=0.3)
    draws = np.random.default_rng(8).normal(size=(_RECORDS + 1, _PARAMETERS))
    # Some are shorter than C1, most have a residual.
    lengths = np.linspace(0.3, 3.0, len(draws))
    gradients = draws / np.linalg.norm(draws, axis=1, keepdims=True) * lengths[:, np.newaxis]
    gradients = gradients.astype(np.float32)
    guesses = {
        'true': gradients[:_RECORDS],
        'without one': gradients[: _RECORDS - 1],
        'with another': gradients,
    }
    sums = {name: _sums(mechanism, of_guess) for name, of_guess in guesses.items()}
    step_noise = make_noise().next([tf.TensorShape([_PARAMETERS])])
    found = []
    for number, (name, step, purpose) in enumerate(
        (
            ('A', mechanism.clipped_step, noise.CLIPPED_GRAD_SUM),
            ('R', mechanism.residual_step, noise.RESIDUAL_GRAD_SUM),
        )
    ):
        (released,) = private_step.noisy_integers(
            [sums['true'][number]], step, noise_multiplier, step_noise, purpose
        )
        rounded = {guess: noise.to_grid(s[number], step).numpy() for guess, s in sums.items()}
        found.append(_attack(name, source, released.numpy(), rounded))
    return found


def _sums(mechanism, gradients: np.ndarray) -> Sequence[tf.Tensor]:
    (clipped,), (residual,) = clipping.clip_and_sum([tf.constant(gradients)], *mechanism.clips)
    return clipped, residual
