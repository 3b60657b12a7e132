"""Features of images that are made here: those a classifier sees, and the pixels themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf

from tf_efsgd.data.images import to_float
from tf_efsgd.evaluation import classifiers
from tf_efsgd.progress import progress_bar

# Pixels as features: averaged to at most this height and width, this many images at a time.
_PIXELS_SIDE = 16
_PIXELS_BATCH_SIZE = 1024


class Seen(NamedTuple):
    """What a classifier makes of n images: float32 [n, d] and float64 [n, classes]."""

    features: np.ndarray
    probabilities: np.ndarray


class Look:
    """What a classifier sees: the features and class probabilities of images.

    Args:
      model: from `classifiers.build_cnn` or `build_mlp`, trained.
    """

    def __init__(self, model: tf.keras.Model):
        features = model.get_layer(classifiers.FEATURES).output
        self._model = tf.keras.Model(model.inputs, [features, model.output])

    def __call__(self, images: np.ndarray, progress: str | None = None) -> Seen:
        """Looks at images.

        Args:
          images: uint8 [n, H, W, C], n >= 1.
          progress: what the progress bar is called; None draws none.
        """
        batches = []
        with progress_bar(progress, len(images)) as bar:
            for batch in classifiers.outputs(self._model, images):
                batches.append(batch)
                bar.update(len(batch[0]))
        features, logits = (np.concatenate(column) for column in zip(*batches))
        return Seen(features, scipy.special.softmax(logits.astype(np.float64), axis=1))


def pixel_features(images: np.ndarray) -> np.ndarray:
    """The pixels themselves, averaged down: features without any network.

    Args:
      images: uint8 [n, H, W, C].

    Returns:
      float32 [n, d] in [-1, 1].
    """
    side = min(_PIXELS_SIDE, images.shape[1])
    parts = [
        tf.image.resize(images[start : start + _PIXELS_BATCH_SIZE], [side, side], method='area')
        for start in range(0, len(images), _PIXELS_BATCH_SIZE)
    ]
    return np.concatenate([to_float(part) for part in parts]).reshape(len(images), -1)
