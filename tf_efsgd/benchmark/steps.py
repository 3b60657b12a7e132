"""Builds the steps to measure, with data, networks and optimizers; one call makes one step."""

from __future__ import annotations

from tf_efsgd.benchmark.timing import Run
from tf_efsgd.benchmark.variants import Networks, Variant

L2_NORM_CLIP, RESIDUAL_L2_NORM_CLIP, NOISE_MULTIPLIER = 1.0, 0.5, 1.0
RECONSTRUCTION_WEIGHT = 0.01
# It is so small that the networks hardly change, and every step does the same work.
LEARNING_RATE = 1e-6
ADAM_BETA_1 = 0.5


def make_data(networks: Networks, records: int):
    """Makes random data for one step.

    Args:
      networks: the shapes of the networks.
      records: number of records.

    Returns:
      (images uint8 [records, H, W, C], labels int32 [records], generated images float32 in [-1, 1]
      like images).
    """
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(1)
    shape = [records, *networks.image_shape]
    images = rng.integers(0, 256, shape, np.uint8)
    labels = rng.integers(0, networks.num_classes, records, np.int32)
    generated = rng.uniform(-1, 1, shape).astype(np.float32)
    return tf.constant(images), tf.constant(labels), tf.constant(generated)


def build_gan(networks: Networks, variant: Variant, generated):
    """Builds and compiles the GAN of one variant, always with the same weights.

    Args:
      networks: the shapes of the networks.
      variant: a variant whose clipping is not 'jacobian'.
      generated: the generated images of `make_data`, for a step without the generator.

    Returns:
      An `EFSGDGan`.
    """
    import tensorflow as tf

    from tf_efsgd.models import discriminator, generator, losses
    from tf_efsgd.training.gan import EFSGDGan

    tf.keras.utils.set_random_seed(1)
    critic = discriminator.build_discriminator(
        networks.image_shape, networks.num_classes, width=networks.width
    )
    maker, draw_inputs = _given_images(generated), _draw_given(generated)
    if variant.with_generator:
        maker = generator.build_generator(
            networks.image_shape,
            networks.num_classes,
            latent_dim=networks.latent_dim,
            width=networks.generator_width,
        )
        draw_inputs = generator.draw_inputs
    gan = EFSGDGan(maker, critic, draw_inputs, seed=1)
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(LEARNING_RATE),
        discriminator_optimizer=build_optimizer(variant),
        losses=losses.NonSaturatingLosses(),
        expected_batch_size=variant.records,
        reconstruction_weight=RECONSTRUCTION_WEIGHT,
        clipping='vectorized' if variant.clipping == 'none' else variant.clipping,
        microbatch_size=variant.microbatch_size,
    )
    return gan


def _given_images(generated):
    """Builds a generator that returns its inputs, to measure a step without a generator."""
    import tensorflow as tf

    images = tf.keras.Input(generated.shape[1:])
    return tf.keras.Model(images, tf.keras.layers.Activation('linear')(images))


def _draw_given(generated):
    import tensorflow as tf

    def draw_inputs(generator, labels, seed=None, rows=None):
        del generator, seed
        return generated[: len(labels)] if rows is None else tf.gather(generated, rows)

    return draw_inputs


def build_optimizer(variant: Variant):
    """The discriminator's optimizer, Adam in every variant."""
    import tensorflow as tf

    adam = {'learning_rate': LEARNING_RATE, 'beta_1': ADAM_BETA_1}
    if variant.optimizer == 'plain':
        return tf.keras.optimizers.legacy.Adam(**adam)
    mechanism = {'l2_norm_clip': L2_NORM_CLIP, 'noise_multiplier': NOISE_MULTIPLIER}
    if variant.optimizer == 'tf_privacy':
        # Imported by its own name, because in Python 3.12 the package itself loads nothing.
        from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras_vectorized as dp_keras

        return dp_keras.VectorizedDPKerasAdamOptimizer(**mechanism, **adam)
    from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer

    # In a drop-in step, generated images are examples of the batch, as records are.
    drop_in = variant.clipping == 'jacobian'
    return ErrorFeedbackDPKerasAdamOptimizer(
        **mechanism,
        error_feedback='private' if variant.optimizer == 'error_feedback' else 'none',
        residual_l2_norm_clip=RESIDUAL_L2_NORM_CLIP,
        expected_batch_size=variant.batch_size if drop_in else variant.records,
        **adam,
    )


def build_run(networks: Networks, variant: Variant, data=None) -> Run:
    """Builds the step of one variant, which is traced at the first call.

    Args:
      networks: the shapes of the networks.
      variant: which step to build.
      data: the data of `make_data`; None makes them.

    Returns:
      A function that makes so many steps and waits until they are done.
    """
    data = make_data(networks, variant.records) if data is None else data
    build = _build_drop_in_step if variant.clipping == 'jacobian' else _build_gan_step
    step, variables = build(networks, variant, data)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        variables[0].numpy()  # Waits for the last update.

    return run


def _build_gan_step(networks, variant, data):
    """Returns (the step as training runs it, the variables that it updates)."""
    import tensorflow as tf

    from tf_efsgd.privacy.optimizer import new_noise

    images, labels, generated = data
    gan = build_gan(networks, variant, generated)
    variables = gan.discriminator.trainable_variables
    shapes = [variable.shape for variable in variables]
    noise = new_noise()
    # Batches are Poisson samples, so training traces them with an unknown size.
    signature = [
        (
            tf.TensorSpec([None, *networks.image_shape], tf.uint8),
            tf.TensorSpec([None], tf.int32),
        ),
        tf.nest.map_structure(tf.TensorSpec.from_tensor, noise.next(shapes)),
    ]

    @tf.function(input_signature=signature)
    def step(records, step_noise):
        return gan.distribute_strategy.run(gan.discriminator_step, args=(records, step_noise))

    return lambda: step((images, labels), noise.next(shapes)), variables


def _build_drop_in_step(networks, variant, data):
    """Returns (a step that minimizes the same loss as a vector, the variables that it updates)."""
    import tensorflow as tf

    from tf_efsgd.models.discriminator import build_discriminator

    tf.keras.utils.set_random_seed(1)
    discriminator = build_discriminator(
        networks.image_shape, networks.num_classes, width=networks.width
    )
    optimizer = build_optimizer(variant)
    variables = discriminator.trainable_variables

    @tf.function
    def step(images, labels, generated):
        with tf.GradientTape(persistent=True) as tape:
            losses = drop_in_losses(discriminator, images, labels, generated)
        optimizer.minimize(losses, variables, tape=tape)

    return lambda: step(*data), variables


def drop_in_losses(discriminator, images, labels, generated):
    """Computes the losses of a step, float32 [2 n]: of n records, then of n generated images."""
    import tensorflow as tf

    from tf_efsgd.data.images import to_float
    from tf_efsgd.models import discriminator as names
    from tf_efsgd.models.losses import NonSaturatingLosses as Losses

    images, count = to_float(images), images.shape[0]
    outputs = discriminator(tf.concat([images, generated], axis=0), training=True)
    realness = Losses.realness(outputs[names.LOGITS], tf.tile(labels, [2]))
    errors = Losses.reconstruction(images, outputs[names.RECONSTRUCTION][:count])
    real = Losses.real(realness[:count]) + RECONSTRUCTION_WEIGHT * errors
    return tf.concat([real, Losses.fake(realness[count:])], axis=0)
