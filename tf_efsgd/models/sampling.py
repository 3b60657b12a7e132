"""Generates images from labels, in batches."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_efsgd.data.images import to_uint8
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.progress import progress_bar

_BATCH_SIZE = 500


def generate(
    generator: tf.keras.Model, labels: np.ndarray, seed: int, progress: str | None = None
) -> np.ndarray:
    """Generates one image per label; the same seed and weights give the same images.

    Args:
      generator: from `build_generator`.
      labels: int32 [n].
      seed: of latents and injected noise.
      progress: the name of the progress bar; None draws none.

    Returns:
      uint8 [n, H, W, C].
    """
    parts = []
    with progress_bar(progress, len(labels)) as bar:
        for start in range(0, len(labels), _BATCH_SIZE):
            part = tf.constant(labels[start : start + _BATCH_SIZE])
            inputs = draw_inputs(generator, part, tf.constant([seed, start], tf.int32))
            parts.append(to_uint8(generator(inputs)).numpy())
            bar.update(len(part))
    return np.concatenate(parts)
