"""The lattice attack: is there a guess of the records that no noise value explains?

Floating-point noise has gaps. So a released number, less the sum that follows from a guess of the
records, may be a number that the noise can never be, and the guess is refuted with certainty,
whatever epsilon says (Mironov 2012). Here the releases of the product are made on known records and
compared with three guesses: the truth, the records without one, and the records with a foreign one.
A guess is refuted if the noise that it leaves is beyond what the sampler can draw, or if its
remainders show a lattice. Uniform remainders modulo every power of two up to 64 show none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from scipy import stats

from tf_efsgd.audit.training import load_records
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.privacy import class_sums, clipping, grid, noise
from tf_efsgd.privacy.features import learned, pixels
from tf_efsgd.privacy.mechanism import Mechanism
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasSGDOptimizer

# The largest draw, in steps of the grid.
LARGEST_DRAW = grid.LARGEST_PART * sum(grid.SCALES)
_MODULI = (2, 4, 8, 16, 32, 64)
# The probability that uniform remainders are taken for a lattice.
_LEVEL = 1e-9
# The number of records, and of parameters, of the per-example gradients behind A and R.
_RECORDS, _PARAMETERS = 40, 20_000
# Of the step: dividing by them loses no digit.
_DECAY, _DIVISOR = 0.5, 8


@dataclasses.dataclass(frozen=True)
class Attack:
    """What the attack found on one release.

    Attributes:
      release: the name of the release, such as 'F'.
      source: the source of the noise, 'Philox' or 'secure'.
      coordinates: how many numbers the release has.
      refuted: the number of coordinates without a possible noise value, by guess ('true', 'without
        one', 'with another').
      lattice: the smallest p-value for uniform remainders, by guess.
    """

    release: str
    source: str
    coordinates: int
    refuted: dict[str, int]
    lattice: dict[str, float]

    @property
    def finds(self) -> bool:
        """Whether a guess is refuted, so that the release reveals records."""
        return any(self.refuted.values()) or min(self.lattice.values()) < _LEVEL

    @property
    def verdict(self) -> str:
        """The finding in words."""
        return 'REFUTES a guess: a bug in the noise' if self.finds else 'no guess is refuted'


def left_as_noise(released: np.ndarray, guessed: np.ndarray) -> tuple[int, float]:
    """Compares a guess of the sum before noise with what was released.

    Args:
      released: noisy sums in steps of the grid, int64.
      guessed: guessed sums before noise, int64 of the same shape.

    Returns:
      (number of coordinates that no noise explains, smallest p-value for uniform remainders).
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


def audit(
    noise_multiplier: float = 1.0, strategy: tf.distribute.Strategy | None = None
) -> list[Attack]:
    """Attacks all releases, with both sources of noise.

    Args:
      noise_multiplier: sigma of every release.
      strategy: whose replicas have a share of the records each; None: one device.

    Returns:
      The attacks on F, on the second release, on A and on R, each with Philox and with
      `SecureNoise`.
    """
    sources = {'Philox': noise.NoiseKey, 'secure': noise.SecureNoise}
    return [
        attack
        for source, make in sources.items()
        for attack in [
            *_attack_class_sums(noise_multiplier, source, make, strategy),
            *_attack_step(noise_multiplier, source, make, strategy),
        ]
    ]


def _attack_class_sums(
    noise_multiplier, source, make_noise: Callable, strategy=None
) -> list[Attack]:
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
            images, labels, records.num_classes, features, noise_multiplier, make_noise(), strategy
        )
        found.append(_attack(name, source, released, sums))
    return found


def _attack_step(noise_multiplier, source, make_noise: Callable, strategy=None) -> list[Attack]:
    mechanism = Mechanism(
        0.7,
        noise_multiplier,
        residual_l2_norm_clip=0.4,
        residual_share=0.3,
        feedback_decay=_DECAY,
    )
    draws = np.random.default_rng(8).normal(size=(_RECORDS + 1, _PARAMETERS))
    # Some gradients are shorter than C1; most have a residual.
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
    released = _release(
        mechanism, guesses['true'], step_noise, strategy or tf.distribute.get_strategy()
    )
    steps = {'A': mechanism.clipped_step, 'R': mechanism.residual_step}
    return [
        _attack(
            name,
            source,
            np.rint(of_sum / step).astype(np.int64),
            {guess: noise.to_grid(s[number], step).numpy() for guess, s in sums.items()},
        )
        for number, (of_sum, (name, step)) in enumerate(zip(released, steps.items()))
    ]


def _release(
    mechanism, gradients: np.ndarray, step_noise, strategy
) -> tuple[np.ndarray, np.ndarray]:
    """A and R, float64, as an attacker computes them from the gradient and buffer of one step.

    Each number is less than half a step of the grid away from its integer if its noise is within 8
    standard deviations, because halves and eighths are exact in float32.
    """
    count = strategy.num_replicas_in_sync
    with strategy.scope():
        optimizer = ErrorFeedbackDPKerasSGDOptimizer(
            **dataclasses.asdict(mechanism), expected_batch_size=_DIVISOR
        )
        variable = tf.Variable(tf.zeros([_PARAMETERS]))
        optimizer._create_all_weights([variable])

    def on_replica(gradients, step_noise):
        first = tf.distribute.get_replica_context().replica_id_in_sync_group
        sums = clipping.clip_and_sum([gradients[first::count]], *mechanism.clips)
        return optimizer.release(*sums, [variable], step_noise=step_noise)[0]

    @tf.function(autograph=False)
    def step(gradients, step_noise):
        return strategy.run(on_replica, args=(gradients, step_noise))

    seen = strategy.experimental_local_results(step(tf.constant(gradients), step_noise))
    buffer = strategy.experimental_local_results(optimizer.get_slot(variable, 'error_feedback'))
    # Where replicas release different numbers, their mean is what an attacker would look at.
    seen, buffer = (np.mean([copy.numpy() for copy in of], axis=0) for of in (seen, buffer))
    owed = buffer.astype(float) / _DECAY
    return _DIVISOR * (seen.astype(float) - (owed - buffer)), _DIVISOR * owed


def _sums(mechanism, gradients: np.ndarray) -> Sequence[tf.Tensor]:
    (clipped,), (residual,) = clipping.clip_and_sum([tf.constant(gradients)], *mechanism.clips)
    return clipped, residual
