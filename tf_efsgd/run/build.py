"""The networks of a run and its optimizers, from the settings and the plan."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_efsgd.config import (
    ConfigError,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    TrainingConfig,
    recipes,
)
from tf_efsgd.data.records import Records
from tf_efsgd.models import generator as generators
from tf_efsgd.models import public_network
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.models.public_heads import (
    RECORDS_PER_PART,
    HeadInputs,
    HingeLosses,
    build_public_heads,
)
from tf_efsgd.privacy import ledger
from tf_efsgd.privacy.features import alone, public
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer
from tf_efsgd.run.errors import as_config_error
from tf_efsgd.training.gan import EFSGDGan
from tf_efsgd.training.public_heads_gan import PublicHeadsGan

# Standard deviation of the labels' embedding before heads on a public network: with many classes
# the latents must not drown in it.
_FEW, _EMBEDDING_OF_FEW, _EMBEDDING_OF_MANY = 2, 1.0, 0.5
# Of the generator's learning rate there, what is left at the end.
_LAST_LEARNING_RATE = 0.05
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
    if model.discriminator == 'public_heads':
        embedding_stddev = _EMBEDDING_OF_FEW if train.num_classes <= _FEW else _EMBEDDING_OF_MANY
    elif config.privacy.has_warm_start:
        embedding_stddev = generators.EMBEDDING_STDDEV_FOR_WARM_START
    else:
        embedding_stddev = generators.EMBEDDING_STDDEV
    tf.keras.utils.set_random_seed(config.training.seed)  # initial weights: public
    return generators.build_generator(
        train.image_shape,
        train.num_classes,
        latent_dim=model.latent_dim,
        width=model.generator_width,
        noise_injection=model.noise_injection,
        embedding_stddev=embedding_stddev,
        architecture=model.generator,
    )


def build_public_network(config: RunConfig, train: Records) -> tf.keras.Model | None:
    """The frozen network that learned from public images; None where none is used.

    Args:
      config: the settings of the run, none of them 'auto'.
      train: its records, for the shape of the images and the number of classes.

    Raises:
      ConfigError: if there is no such network, or it does not go with these images.
    """
    if not recipes.uses_public_features(config.privacy):
        return None
    enlarge = public_network.choose_enlargement(train.image_shape[0], train.num_classes)
    return as_config_error(
        lambda: public_network.load_public_network(
            config.privacy.public_features, train.image_shape, enlarge=enlarge
        ),
        (ValueError, OSError),
    )


def check_alone(function, photographs: np.ndarray, rows: int) -> None:
    """Tries on this machine that features of a record are its own, see `features.alone`.

    Raises:
      ConfigError: if they are not.
    """
    reason = alone.why_not_alone(function, photographs, rows)
    if reason is not None:
        raise ConfigError(
            f'The features of --public_features cannot be released here: {reason}. Give another '
            'network, or --public_features=none.'
        )


def build_gan(
    config: RunConfig, train: Records, network: tf.keras.Model | None = None
) -> tuple[EFSGDGan, HeadInputs | None]:
    """Builds the GAN; call it in the strategy's scope.

    Args:
      config: the settings of the run.
      train: its records, for the shape of the images and the number of classes.
      network: from `build_public_network`.

    Returns:
      (the GAN, what its heads see of an image or None where it sees images).

    Raises:
      ConfigError: if the networks do not go with images of this shape.
    """
    if config.model.discriminator != 'public_heads':

        def build_networks():
            return untrained_generator(config, train), _build_discriminator(config.model, train)

        generator, discriminator = as_config_error(build_networks, ValueError)
        return EFSGDGan(generator, discriminator, draw_inputs, seed=config.training.seed), None
    if network is None:
        raise ConfigError(
            '--discriminator=public_heads needs the network of --public_features and a warm start: '
            'give --warm_start_share, or --discriminator=pixels. Received: '
            f'--public_features={config.privacy.public_features}.'
        )
    generator = as_config_error(lambda: untrained_generator(config, train), ValueError)
    photographs = public.public_photographs(train.image_shape)
    inputs = HeadInputs(network, photographs, pixels=True)
    check_alone(inputs, photographs, RECORDS_PER_PART)
    heads = build_public_heads(inputs.shapes, train.num_classes)
    gan = PublicHeadsGan(generator, heads, draw_inputs, inputs, seed=config.training.seed)
    return gan, inputs


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
            **_optimizers(config, plan),
            **_how_to_train(config.model, config.training, config.privacy),
            losses=HingeLosses() if isinstance(gan, PublicHeadsGan) else NonSaturatingLosses(),
            noise=noise,
        ),
        ValueError,
    )


def _optimizers(config: RunConfig, plan: ledger.Plan) -> dict:
    training = config.training
    adam, rate = tf.keras.optimizers.legacy.Adam, training.discriminator_learning_rate
    of_generator = training.generator_learning_rate
    if config.model.discriminator == 'public_heads' and plan.train_steps:
        steps = max(1, plan.train_steps // training.discriminator_steps)
        of_generator = tf.keras.optimizers.schedules.CosineDecay(
            of_generator, steps, _LAST_LEARNING_RATE
        )
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
        'generator_optimizer': adam(of_generator, beta_1=_ADAM_BETA_1),
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
