"""Trains a Keras classifier privately with the error-feedback optimizer, and prints a true epsilon.

  python examples/private_classifier.py

It learns scikit-learn's 8x8 digits. Four things make the printed epsilon true: the batches are
Poisson samples, the optimizer knows their expected size, the loss is one value per example, and the
model has no layer that mixes examples. The number of steps was fixed in advance.
"""

from __future__ import annotations

import argparse

import numpy as np
import sklearn.datasets
import tensorflow as tf

import tf_efsgd
from tf_efsgd.data import split

EXPECTED_BATCH_SIZE = 128


class Classifier(tf_efsgd.PoissonTraining, tf.keras.Sequential):
    """A Poisson sample may be empty; with `PoissonTraining` that is a step like every other."""


def load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Loads (images, labels) to train on, uint8 [N, 8, 8, 1], and the same to test on."""
    digits = sklearn.datasets.load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    # Each image decides by itself: one more image must not move others to the other part.
    is_test = split.is_tested_on(split.digests_of(images))
    labels = digits.target
    return images[~is_test], labels[~is_test], images[is_test], labels[is_test]


def build_classifier() -> tf.keras.Model:
    """Builds a small network; a deeper one would use GroupNormalization, not BatchNormalization."""
    return Classifier(
        [
            tf.keras.Input([8, 8, 1]),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(32, activation='relu'),
            tf.keras.layers.Dense(10),
        ]
    )


def train(steps: int, noise_multiplier: float, target_delta: float) -> tuple[float, float]:
    """Trains and tests.

    Returns:
      (epsilon, accuracy on the test images, which training never saw).
    """
    images, labels, test_images, test_labels = load_digits()
    model = build_classifier()
    optimizer = tf_efsgd.ErrorFeedbackDPKerasSGDOptimizer(
        l2_norm_clip=1.0,
        noise_multiplier=noise_multiplier,
        expected_batch_size=EXPECTED_BATCH_SIZE,
        residual_l2_norm_clip=0.5,
        residual_share=0.1,
        feedback_decay=0.9,
        learning_rate=0.2,
        momentum=0.9,
    )
    loss = tf.keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=tf.keras.losses.Reduction.NONE
    )
    model.compile(optimizer=optimizer, loss=loss, metrics=['accuracy'])
    batches = tf_efsgd.poisson_batches(images, labels, expected_batch_size=EXPECTED_BATCH_SIZE)
    batches = batches.map(lambda x, y: (tf.cast(x, tf.float32) / 255.0, y))
    # Keras' own progress shows loss and accuracy on the records, which epsilon does not cover.
    model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
    _, accuracy = model.evaluate(test_images / 255.0, test_labels, verbose=0)
    epsilon = tf_efsgd.epsilon(optimizer, dataset_size=len(images), target_delta=target_delta)
    return epsilon, accuracy


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=300, help='fixed in advance')
    parser.add_argument('--noise_multiplier', type=float, default=2.0)
    parser.add_argument('--target_delta', type=float, default=1e-4)
    given = parser.parse_args()
    epsilon, accuracy = train(given.steps, given.noise_multiplier, given.target_delta)
    print(f'right on {accuracy:.1%} of the test images, whose score is not covered by epsilon')
    print(f'epsilon = {epsilon:.3f} at delta = {given.target_delta:g}')


if __name__ == '__main__':
    main()
