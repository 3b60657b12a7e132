"""GANs so small that a test can train several, the same at each call."""

import numpy as np
import tensorflow as tf

from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.privacy.noise import NoiseKey
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasSGDOptimizer
from tf_efsgd.training.gan import EFSGDGan

SHAPE, CLASSES = (8, 8, 1), 3
BATCH = 4  # Expected; samples differ from it.


def private(cls=ErrorFeedbackDPKerasSGDOptimizer, **settings):
    """Makes an optimizer that cuts some gradients and does not give back all that it cuts."""
    defaults = {
        'l2_norm_clip': 0.3,
        'noise_multiplier': 0.7,
        'expected_batch_size': BATCH,
        'residual_l2_norm_clip': 0.2,
        'learning_rate': 0.05,
    }
    return cls(**{**defaults, **settings})


def build(discriminator=None, generator=None, reconstruction='head', shape=SHAPE):
    """Builds one that is not compiled."""
    if discriminator is None:
        discriminator = build_discriminator(
            SHAPE, CLASSES, width=8, reconstruction=reconstruction, latent_dim=4
        )
    return EFSGDGan(
        generator or build_generator(shape, CLASSES, latent_dim=4, width=8),
        discriminator,
        draw_inputs,
        seed=3,
    )


def make(optimizer=None, reconstruction='head', *, weights_seed=5, networks=None, **settings):
    """Builds one with weights of this seed and compiles it; `networks` are those of `build`."""
    tf.keras.utils.set_random_seed(weights_seed)
    gan = build(reconstruction=reconstruction, **(networks or {}))
    defaults = {
        'generator_optimizer': tf.keras.optimizers.legacy.Adam(0.01),
        'discriminator_optimizer': optimizer or private(),
        'losses': NonSaturatingLosses(),
        'discriminator_steps': 2,
        'adaptive_discriminator_steps': False,
        'noise': NoiseKey(7),
    }
    gan.compile(**{**defaults, **settings})
    return gan


def samples(sizes=(5, 0, 3, 4, 1), seed=1, shape=SHAPE):
    """Draws images and labels of Poisson samples of given sizes."""
    draws = np.random.default_rng(seed)
    return [
        (
            draws.integers(0, 256, (size, *shape)).astype(np.uint8),
            draws.integers(0, CLASSES, size).astype(np.int32),
        )
        for size in sizes
    ]
