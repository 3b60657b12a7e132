"""The networks of a run and its optimizers, from the settings and the plan."""

from __future__ import annotations

import tensorflow as tf

from tf_efsgd.config import ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from tf_efsgd.data.records import Records
from tf_efsgd.models import generator as generators
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.privacy import ledger
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer
from tf_efsgd.run.errors import as_config_error
from tf_efsgd.training.gan import EFSGDGan

_ADAM_BETA_1 = 0.5  # as usual for GANs; the default 0.9 makes the two players overshoot


def untrained_generator(config: RunConfig, train: Records) -> tf.keras.Model:
    """The generator of a run before its first step: its initial weights follow from the seed.

    Args:
      config: the settings of the run.
      train: its records, for the shape of the images and the number of classes.

    Returns:
      A generator as `build_generator` makes it.

    Raises:
      ValueError: if the networks do not go with images of this shape.
    """
    model = config.model
    tf.keras.utils.set_random_seed(config.training.seed)  # initial weights: public
    return generators.build_generator(
        train.image_shape,
        train.num_classes,
        latent_dim=model.latent_dim,
        width=model.generator_width,
        noise_injection=model.noise_injection,
        embedding_stddev=(
            generators.EMBEDDING_STDDEV_FOR_WARM_START
            if config.privacy.has_warm_start
            else generators.EMBEDDING_STDDEV
        ),
    )


def build_gan(config: RunConfig, train: Records) -> EFSGDGan:
    """Builds the GAN; call it in the strategy's scope.

    Args:
      config: the settings of the run.
      train: its records, for the shape of the images and the number of classes.

    Raises:
      ConfigError: if the networks do not go with images of this shape.
    """

    def build_networks():
        return (
            untrained_generator(config, train),
            _build_discriminator(config.model, train),
        )

    generator, discriminator = as_config_error(build_networks, ValueError)
    return EFSGDGan(generator, discriminator, draw_inputs, seed=config.training.seed)


def _build_discriminator(model: ModelConfig, train: Records) -> tf.keras.Model:
    return build_discriminator(
        train.image_shape,
        train.num_classes,
        width=model.discriminator_width,
        reconstruction=model.reconstruction,
        latent_dim=model.latent_dim,
    )


def compile_gan(gan: EFSGDGan, config: RunConfig, plan: ledger.Plan, noise) -> None:
    """Makes the GAN ready to train by a plan; call it in the strategy's scope.

    Args:
      gan: from `build_gan`.
      config: the settings of the run.
      plan: of the run.
      noise: the source of the DP noise, see `optimizer.new_noise`.

    Raises:
      ConfigError: if its private loss cannot be clipped by record.
    """
    as_config_error(
        lambda: gan.compile(
            **_optimizers(config.training, plan),
            **_how_to_train(config.model, config.training, config.privacy),
            losses=NonSaturatingLosses(),
            noise=noise,
        ),
        ValueError,
    )


def _optimizers(training: TrainingConfig, plan: ledger.Plan) -> dict:
    adam, rate = tf.keras.optimizers.legacy.Adam, training.discriminator_learning_rate
    if plan.event is None:
        discriminator = adam(rate, beta_1=_ADAM_BETA_1)
    else:
        discriminator = ErrorFeedbackDPKerasAdamOptimizer(
            expected_batch_size=plan.expected_batch_size,
            learning_rate=rate,
            beta_1=_ADAM_BETA_1,
            **plan.mechanism,
        )
    return {
        'generator_optimizer': adam(training.generator_learning_rate, beta_1=_ADAM_BETA_1),
        'discriminator_optimizer': discriminator,
    }


def _how_to_train(model: ModelConfig, training: TrainingConfig, privacy: PrivacyConfig) -> dict:
    return {
        'expected_batch_size': privacy.expected_batch_size,
        'reconstruction_weight': model.reconstruction_weight,
        'discriminator_steps': training.discriminator_steps,
        'adaptive_discriminator_steps': training.adaptive_discriminator_steps,
        'discriminator_only_steps': training.discriminator_only_steps,
        'generator_ema': model.generator_ema,
        'clip_fake': privacy.clip_fake,
        'measure_records': privacy.log_nonprivate_diagnostics,
        'clipping': privacy.clipping,
        'microbatch_size': training.microbatch_size,
    }
