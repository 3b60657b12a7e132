"""Learns the features of the second release from generated images: post-processing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy.features.learned import LAYERS

# The classifier learns from so many generated images, as many of each class; fewer large ones.
_IMAGES, _EPOCHS, BATCH = 20_000, 4, 128
_MOST_NUMBERS, _LEAST_IMAGES = 2**26, 1000
_CLASSIFIER_LEARNING_RATE = 1e-3
# The scales are measured on so many of these images, and on at least so many of each class.
_MEASURED, _MEASURED_OF_CLASS = 1000, 4
# A distance counts as at least this part of the length of a layer's output: if all images look
# alike to a layer, its distance would be nothing but rounding.
_LEAST_DISTANCE = 0.05


def learn(
    classifier: tf.keras.Model,
    generate: Callable[[np.ndarray], np.ndarray],
    num_classes: int,
    *,
    seed: int = 0,
    callbacks: Sequence[tf.keras.callbacks.Callback] = (),
) -> tuple[float, ...]:
    """Trains the classifier on generated images, and measures its layers: post-processing.

    Args:
      classifier: see `privacy.features.learned.LearnedFeatures`; its 'logits' are trained.
      generate: maps labels int32 [n] to images uint8 [n, H, W, C]; it sees no record.
      num_classes: number of labels.
      seed: of the order of the images; public.
      callbacks: of Keras, e.g. a progress bar.

    Returns:
      The distances for `LearnedFeatures`; they are not finite if learning has failed.
    """
    count = _count(classifier.input.shape[1:], num_classes)
    measured = _count_of_measured(num_classes)
    labels = np.random.default_rng(seed).permutation(count).astype(np.int32) % num_classes
    images = generate(labels)
    pixels = tf.keras.Input(images.shape[1:])
    logits = classifier(tf.keras.layers.Rescaling(1 / 127.5, -1.0)(pixels))['logits']
    trained = tf.keras.Model(pixels, logits)
    trained.compile(
        tf.keras.optimizers.legacy.Adam(_CLASSIFIER_LEARNING_RATE),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    trained.fit(
        images, labels, BATCH, epochs=_EPOCHS, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    labels = labels[:measured]
    outputs = classifier(images[:measured] / np.float32(127.5) - 1.0, training=False)
    return tuple(_distance(outputs[name].numpy(), labels) for name in LAYERS)


def steps(image_shape: tuple[int, int, int], num_classes: int) -> int:
    """How many steps, each of `BATCH` images, `learn` makes.

    Args:
      image_shape: (H, W, C).
      num_classes: number of labels.
    """
    return _EPOCHS * math.ceil(_count(image_shape, num_classes) / BATCH)


def _count(image_shape, num_classes: int) -> int:
    """From how many images the classifier learns."""
    count = min(_IMAGES, max(_LEAST_IMAGES, _MOST_NUMBERS // math.prod(image_shape)))
    return max(count, _count_of_measured(num_classes))


def _count_of_measured(num_classes: int) -> int:
    return max(_MEASURED, _MEASURED_OF_CLASS * num_classes)


def _distance(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The root mean square distance of two outputs of the same class, in one number of them."""
    outputs = outputs.reshape(len(outputs), -1).astype(np.float64)
    classes = np.unique(labels)
    means = np.stack([outputs[labels == k].mean(axis=0) for k in classes])
    squares = np.mean((outputs - means[np.searchsorted(classes, labels)]) ** 2, axis=1)
    within = squares.sum() / max(1, len(outputs) - len(classes))
    least = _LEAST_DISTANCE * np.sqrt(np.mean(outputs**2))
    return float(np.max([np.sqrt(2.0 * within), least, 1e-6]))
