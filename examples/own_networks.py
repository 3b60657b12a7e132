"""Your own generator and discriminator in a private GAN, with a warm start and one epsilon.

  python examples/own_networks.py --output=generator.keras

It learns scikit-learn's 8x8 digits. The warm start comes first: one noisy look at all records, to
which the generator is fitted. Private steps follow, in which the generator also follows the
discriminator. The printed epsilon is that of both together.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import sklearn.datasets
import tensorflow as tf

import tf_efsgd

SHAPE, CLASSES, LATENTS = (8, 8, 1), 10, 16
EXPECTED_BATCH_SIZE = 128


def build_generator() -> tf.keras.Model:
    """Builds a generator from inputs by name to images in [-1, 1].

    One input is 'labels'; all others are drawn from a standard normal distribution.
    """
    latents = tf.keras.Input([LATENTS], name='latents')
    labels = tf.keras.Input([], dtype=tf.int32, name='labels')
    # Embeddings that start far apart are fitted faster to sums by class.
    apart = tf.keras.initializers.RandomNormal(stddev=2.0)
    classes = tf.keras.layers.Embedding(CLASSES, 16, embeddings_initializer=apart)(labels)
    x = tf.keras.layers.Concatenate()([latents, classes])
    x = tf.keras.layers.Dense(4 * 4 * 32)(x)
    x = tf.keras.layers.Reshape([4, 4, 32])(x)
    x = tf.keras.layers.LeakyReLU(0.2)(tf.keras.layers.GroupNormalization(4)(x))
    x = tf.keras.layers.Conv2DTranspose(16, 4, strides=2, padding='same')(x)
    x = tf.keras.layers.LeakyReLU(0.2)(tf.keras.layers.GroupNormalization(4)(x))
    images = tf.keras.layers.Conv2D(SHAPE[-1], 3, padding='same', activation='tanh')(x)
    return tf.keras.Model({'latents': latents, 'labels': labels}, images)


def build_discriminator() -> tf.keras.Model:
    """One logit for each class, no activation at the end and no BatchNormalization."""
    return tf.keras.Sequential(
        [
            tf.keras.Input(SHAPE),
            tf.keras.layers.Conv2D(16, 4, strides=2, padding='same'),
            tf.keras.layers.LeakyReLU(0.2),
            tf.keras.layers.Conv2D(32, 4, strides=2, padding='same'),
            tf.keras.layers.LeakyReLU(0.2),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(CLASSES),
        ]
    )


def train(
    fit_steps: int, private_steps: int, target_delta: float
) -> tuple[tf_efsgd.EFSGDGan, float]:
    """Trains; returns the GAN and the epsilon of the warm start and all private steps."""
    digits = sklearn.datasets.load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = digits.target

    generator = build_generator()
    start = tf_efsgd.warm_start(
        generator, images, labels, num_classes=CLASSES, noise_multiplier=2.0, steps=fit_steps
    )
    gan = tf_efsgd.EFSGDGan(generator, build_discriminator(), tf_efsgd.draw_inputs, seed=1)
    optimizer = tf_efsgd.ErrorFeedbackDPKerasAdamOptimizer(
        l2_norm_clip=1.0,
        noise_multiplier=1.2,
        expected_batch_size=EXPECTED_BATCH_SIZE,
        residual_l2_norm_clip=0.5,
        residual_share=0.1,
        learning_rate=5e-4,
        beta_1=0.5,
    )
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(2e-4, beta_1=0.5),
        discriminator_optimizer=optimizer,
        losses=tf_efsgd.NonSaturatingLosses(),
        discriminator_only_steps=private_steps // 3,
    )
    gan.set_target(start.target, weight=10.0)  # The release keeps pulling.
    batches = tf_efsgd.poisson_batches(images, labels, expected_batch_size=EXPECTED_BATCH_SIZE)
    gan.fit(batches, steps_per_epoch=private_steps, verbose=0)
    epsilon = tf_efsgd.epsilon(
        optimizer, dataset_size=len(images), target_delta=target_delta, warm_start=start
    )
    return gan, epsilon


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fit_steps', type=int, default=2000, help='of the warm start')
    parser.add_argument('--private_steps', type=int, default=150, help='fixed in advance')
    parser.add_argument('--target_delta', type=float, default=1e-4)
    parser.add_argument('--output', default='generator.keras', help='where to save the generator')
    parser.add_argument('--picture', help='where to draw ten images of each class, a .png')
    given = parser.parse_args()
    if not pathlib.Path(given.output).absolute().parent.is_dir():
        parser.error(f'--output must be in a folder that exists. Received: {given.output}')
    gan, epsilon = train(given.fit_steps, given.private_steps, given.target_delta)
    gan.save(given.output)
    if given.picture is not None:
        images = gan.predict(np.tile(np.arange(CLASSES), 10), seed=1)
        rows = [np.concatenate(list(images[at : at + CLASSES]), axis=1) for at in range(0, 100, 10)]
        tf.io.write_file(given.picture, tf.io.encode_png(np.concatenate(rows)))
    print(f'{given.output} may be shared')
    print(f'epsilon = {epsilon:.3f} at delta = {given.target_delta:g}')


if __name__ == '__main__':
    main()
