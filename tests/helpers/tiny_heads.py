"""A GAN of heads on a public network, so small that a test can train several."""

import numpy as np
import tensorflow as tf

import tf_efsgd
from tf_efsgd.models import public_heads
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.privacy import class_sums
from tf_efsgd.privacy.features import alone, public
from tf_efsgd.training import public_heads_gan, targets

SHAPE = (16, 16, 3)
SMALL_SHAPE = (8, 8, 3)
CLASSES = 2
BATCH = 24  # Expected.


def small_network():
    """Builds four strided convolutions, to use where the size of the public one is in the way."""
    tf.keras.utils.set_random_seed(2)
    x = images = tf.keras.Input(SMALL_SHAPE)
    maps = {}
    for stage in public_heads.STAGES:
        x = maps[stage] = tf.keras.layers.Conv2D(4, 3, 2, 'same', activation='relu')(x)
    return tf.keras.Model(images, maps, trainable=False)


class SmallFeatures:
    """Of images and the maps of a small network, for a target."""

    def of_maps(self, images, maps):
        parts = [tf.reduce_mean(images, axis=3), maps['stage_2']]
        return tf.concat([tf.reshape(part, [tf.shape(images)[0], -1]) for part in parts], axis=1)

    size = 64 + 4 * 4 * 4


def head_inputs(network):
    shape = network.input_shape[1:]
    photographs = public.public_photographs(shape)[:64]
    inputs = public_heads.HeadInputs(network, photographs, pixels=True)
    inputs.rows = alone.choose_rows(inputs, photographs)
    return inputs


def records(n, seed=0, shape=SHAPE):
    """Draws dark noise for one class and bright noise for the other."""
    draws = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int32) % CLASSES
    images = draws.integers(0, 100, [n, *shape]) + 150 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def build(inputs, *, shape=SHAPE, reconstruction=False):
    """Builds one that is not compiled; all are the same."""
    tf.keras.utils.set_random_seed(5)
    return public_heads_gan.PublicHeadsGan(
        build_generator(
            shape, CLASSES, latent_dim=4, width=16, noise_injection=False, embedding_stddev=2.0
        ),
        public_heads.build_public_heads(
            inputs.shapes, CLASSES, channels=4, reconstruction=reconstruction
        ),
        draw_inputs,
        inputs,
        seed=1,
    )


def make(
    inputs,
    noise_multiplier=0.0,
    error_feedback='none',
    *,
    wrong_class_weight=0.7,
    generated=8,
    generator_optimizer=None,
    shape=SHAPE,
    reconstruction=False,
    **settings,
):
    """Builds one and compiles it."""
    gan = build(inputs, shape=shape, reconstruction=reconstruction)
    gan.compile(
        generator_optimizer=generator_optimizer
        or tf.keras.optimizers.legacy.Adam(0.01, beta_1=0.5),
        discriminator_optimizer=tf_efsgd.ErrorFeedbackDPKerasAdamOptimizer(
            l2_norm_clip=0.3,
            noise_multiplier=noise_multiplier,
            expected_batch_size=BATCH,
            error_feedback=error_feedback,
            residual_l2_norm_clip=0.7,
            learning_rate=0.01,
            beta_1=0.5,
        ),
        losses=public_heads.HingeLosses(),
        wrong_class_weight=wrong_class_weight,
        generated=generated,
        reconstruction_weight=0.02,
        **settings,
    )
    return gan


def class_means(network, images, labels):
    """Returns (features, their exact class means) of records."""
    features = public.PublicFeatures(network, SHAPE, 0.02)
    sums = class_sums.release(images, labels, CLASSES, features, 0.0, None)
    return features, class_sums.class_means(sums, 0.0, len(images), groups=features.groups)


def averaged_target(features, means):
    """Makes what such a GAN follows; call it in the scope of its strategy."""
    return targets.AveragedTarget(targets.Target(public_heads_gan.OfMaps(features), means))
