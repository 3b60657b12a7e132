"""Features of images: what a classifier or the public network sees, and the pixels themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf

from tf_efsgd.data.images import to_float
from tf_efsgd.evaluation import classifiers
from tf_efsgd.models import public_network
from tf_efsgd.progress import progress_bar

# Pixel features are averaged down to at most this side, for so many images at a time.
_PIXELS_SIDE = 16
_PIXELS_BATCH_SIZE = 1024
_LAST_MAP = 'stage_5'


class Seen(NamedTuple):
    """What a classifier computes for n images.

    Attributes:
      features: float32 [n, d].
      probabilities: of the classes, float64 [n, classes].
    """

    features: np.ndarray
    probabilities: np.ndarray


class Look:
    """Computes the features and class probabilities that a classifier sees in images.

    Args:
      model: a trained model of `classifiers.build_cnn` or `build_mlp`.
    """

    def __init__(self, model: tf.keras.Model):
        features = model.get_layer(classifiers.FEATURES).output
        self._model = tf.keras.Model(model.inputs, [features, model.output])

    def __call__(self, images: np.ndarray, progress: str | None = None) -> Seen:
        """Looks at images.

        Args:
          images: uint8 [n, H, W, C], n >= 1.
          progress: title of the progress bar; None draws none.

        Returns:
          Features and probabilities.
        """
        batches = []
        with progress_bar(progress, len(images)) as bar:
            for batch in classifiers.outputs(self._model, images):
                batches.append(batch)
                bar.update(len(batch[0]))
        features, logits = (np.concatenate(column) for column in zip(*batches))
        return Seen(features, scipy.special.softmax(logits.astype(np.float64), axis=1))


class PublicLook:
    """Computes what the public network of the package sees, averaged over positions.

    The Fréchet distance of these features, "public FID", is the same measure for all data sets of
    one image size. It must not be compared with an FID from Inception's features.

    Args:
      image_shape: (H, W, C) of the images, C is 1 or 3.
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        network = public_network.build_public_network(image_shape)
        last = network.output[_LAST_MAP]
        features = tf.keras.layers.GlobalAveragePooling2D()(last)
        self._model = tf.keras.Model(network.inputs, features)

    def __call__(self, images: np.ndarray, progress: str | None = None) -> np.ndarray:
        """Looks at images.

        Args:
          images: uint8 [n, H, W, C], n >= 1.
          progress: title of the progress bar; None draws none.

        Returns:
          The features, float32 [n, d].
        """
        batches = []
        with progress_bar(progress, len(images)) as bar:
            for batch in classifiers.outputs(self._model, images):
                batches.append(batch)
                bar.update(len(batch))
        return np.concatenate(batches)


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Averages the pixels down to features that need no network.

    Args:
      images: uint8 [n, H, W, C].

    Returns:
      The features, float32 [n, d] in [-1, 1].
    """
    side = min(_PIXELS_SIDE, images.shape[1])
    parts = [
        tf.image.resize(images[start : start + _PIXELS_BATCH_SIZE], [side, side], method='area')
        for start in range(0, len(images), _PIXELS_BATCH_SIZE)
    ]
    return np.concatenate([to_float(part) for part in parts]).reshape(len(images), -1)
