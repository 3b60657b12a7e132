"""Builds the networks and optimizers of a run from its settings and its plan."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_efsgd import budget
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
from tf_efsgd.models import precision, public_network
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.models.public_heads import HeadInputs, HingeLosses, build_public_heads
from tf_efsgd.privacy.features import alone, pixels, public
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer
from tf_efsgd.privacy.plan import Plan
from tf_efsgd.run.errors import as_config_error
from tf_efsgd.training.gan import EFSGDGan
from tf_efsgd.training.public_heads_gan import PublicHeadsGan

# The standard deviation of the labels' embedding where heads on a public network are trained: with
# more than two classes it is smaller, so that it does not drown the latents.
_FEW, _EMBEDDING_OF_FEW, _EMBEDDING_OF_MANY = 2, 1.0, 0.5
# There the generator's learning rate falls to this share of what it was.
_LAST_LEARNING_RATE = 0.05
_ADAM_BETA_1 = 0.5  # Usual for GANs: with the default 0.9 the two players overshoot.


def untrained_generator(config: RunConfig, train: Records) -> tf.keras.Model:
    """Builds the generator of a run before its first step; the seed fixes its initial weights.

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
    tf.keras.utils.set_random_seed(config.training.seed)  # Initial weights are public.
    return generators.build_generator(
        train.image_shape,
        train.num_classes,
        latent_dim=model.latent_dim,
        width=model.generator_width,
        noise_injection=model.noise_injection,
        embedding_stddev=embedding_stddev,
        architecture=model.generator,
    )


def build_public_network(privacy: PrivacyConfig, train: Records) -> tf.keras.Model | None:
    """Builds the frozen network that learned from public images.

    Args:
      privacy: the run's settings of privacy, none of them 'auto'.
      train: its records, for the shape of the images and the number of classes.

    Returns:
      The network; None if the run uses none.

    Raises:
      ConfigError: if there is no such network, or it does not go with these images.
    """
    if not recipes.uses_public_features(privacy):
        return None
    enlarge = public_network.choose_enlargement(train.image_shape[0], train.num_classes)
    return as_config_error(
        lambda: public_network.load_public_network(
            privacy.public_features, train.image_shape, enlarge=enlarge
        ),
        (ValueError, OSError),
    )


def for_generated_images(model: tf.keras.Model, training: TrainingConfig) -> tf.keras.Model:
    """Makes a network for generated images, in the precision of the settings.

    Args:
      model: in float32, which is kept for whatever sees a record.
      training: the run's settings of training.

    Returns:
      The model, or a copy in another precision.

    Raises:
      ConfigError: if Keras cannot copy it.
    """
    if training.mixed_precision == 'none':
        return model
    policy = f'mixed_{training.mixed_precision}'
    try:
        return precision.copy_in(model, policy)
    except (ValueError, TypeError, NotImplementedError) as error:
        why = ' '.join(str(error).split())[:200]
        raise ConfigError(
            'Keras cannot copy the network of --public_features to another precision: give '
            f'--mixed_precision=none, or another network. Received: {model.name!r} ({why}).'
        ) from error


def try_head_inputs(inputs: HeadInputs, image_shape: tuple[int, int, int]) -> None:
    """Tries on this machine how many records the heads' inputs may be computed for at a time.

    Args:
      inputs: of the heads; its `rows` are set.
      image_shape: (H, W, C).

    Raises:
      ConfigError: if there is no such number.
    """
    photographs = public.public_photographs(image_shape)
    inputs.rows = try_rows(lambda: alone.choose_rows(inputs, photographs))


def build_features(
    plan: Plan, network: tf.keras.Model | None
) -> pixels.FeatureMap | public.PublicFeatures:
    """Builds the features of the first release.

    Args:
      plan: the first plan of the run.
      network: that learned from public images; None: features of pixels alone.
    """
    if network is None:
        return pixels.FeatureMap(plan.image_shape)
    noise_multiplier = 0.0 if plan.event is None else budget.noise_of_releases(plan)[0]
    size = public.choose_size(plan.dataset_size, plan.num_classes, noise_multiplier)
    return public.PublicFeatures(network, plan.image_shape, size)


def try_rows(choose: Callable[[], int]) -> int:
    """Tries on this machine how many records may be computed at a time, see `features.alone`.

    Args:
      choose: the trial.

    Raises:
      ConfigError: if there is no such number.
    """
    try:
        return choose()
    except alone.NotAlone as error:
        raise ConfigError(
            f'The features of records cannot be released here: {error}. Train on another device, '
            'or give another --public_features.'
        ) from error


def check_network(
    model: ModelConfig, privacy: PrivacyConfig, network: tf.keras.Model | None
) -> None:
    """Raises ConfigError if the discriminator needs a public network and there is none."""
    if model.discriminator == 'public_heads' and network is None:
        raise ConfigError(
            '--discriminator=public_heads needs the network of --public_features and a warm start: '
            'give --warm_start_share, or --discriminator=pixels. Received: '
            f'--public_features={privacy.public_features}.'
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
      (the GAN, what its heads see of a record; None if its discriminator sees images).

    Raises:
      ConfigError: if the networks do not go with images of this shape.
    """
    if config.model.discriminator != 'public_heads':

        def build_networks():
            return untrained_generator(config, train), _build_discriminator(config.model, train)

        generator, discriminator = as_config_error(build_networks, ValueError)
        generator = for_generated_images(generator, config.training)
        return EFSGDGan(generator, discriminator, draw_inputs, seed=config.training.seed), None
    check_network(config.model, config.privacy, network)
    generator = as_config_error(lambda: untrained_generator(config, train), ValueError)
    photographs = public.public_photographs(train.image_shape)
    inputs = HeadInputs(network, photographs, pixels=True)
    heads = build_public_heads(
        inputs.shapes,
        train.num_classes,
        reconstruction=config.model.reconstruction == 'head',
    )
    gan = PublicHeadsGan(
        for_generated_images(generator, config.training),
        heads,
        draw_inputs,
        inputs.on(for_generated_images(network, config.training)),
        seed=config.training.seed,
    )
    return gan, inputs


def _build_discriminator(model: ModelConfig, train: Records) -> tf.keras.Model:
    return build_discriminator(
        train.image_shape,
        train.num_classes,
        width=model.discriminator_width,
        reconstruction=model.reconstruction,
        latent_dim=model.latent_dim,
    )


def compile_gan(gan: EFSGDGan, config: RunConfig, plan: Plan, noise) -> None:
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
            **_optimizers(config.model, config.training, plan),
            **_how_to_train(config.model, config.training, config.privacy),
            losses=HingeLosses() if isinstance(gan, PublicHeadsGan) else NonSaturatingLosses(),
            noise=noise,
        ),
        ValueError,
    )


def _optimizers(model: ModelConfig, training: TrainingConfig, plan: Plan) -> dict:
    adam, rate = tf.keras.optimizers.legacy.Adam, training.discriminator_learning_rate
    of_generator = training.generator_learning_rate
    if model.discriminator == 'public_heads' and plan.train_steps:
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
        'jit_compile': training.jit_compile,
    }
