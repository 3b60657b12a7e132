"""The features of the second release, learned from the first.

A generator that was fitted to the first release makes images of each class, and a small classifier
learns to tell them apart (`training.learn_features`). The second release sums random Fourier
features of its layers by class over the records, as in `class_sums`. Then the generator is fitted
to both releases. These features see what kernels on pixels hardly see, as in DP-MEPF (Harder et al.
2023), but without public images.

Formal guarantees:
  - phi_2 is a function of public constants and of the first release: the classifier and the scales
    of its layers come from generated images only. It is fixed before it sees a record.
  - One record moves the second sums by at most 1, like the first ones: `class_sums.release`.
  - The two are Gaussian mechanisms, the second chosen after the first. With sigma_1 and sigma_2
    such that 1/sigma_1^2 + 1/sigma_2^2 = 1/sigma_w^2 they are together as private as
    `GaussianDpEvent(sigma_w)` (Dong, Roth and Su 2022, Gaussian Differential Privacy, corollary
    3.3); the ledger charges that before the first release is written. The grid costs all three the
    same factor (`grid.effective_noise_multiplier`), so the equation holds for the accounted noise
    too.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy.features.grouped import GROUPS, GroupedFeatures
from tf_efsgd.privacy.features.kernels import fourier_features

# The version of phi_2, like `pixels.VERSION`.
VERSION = 2
_SEED = (2601, 15062)
# The kernels: which layer of the classifier they look at, the part of its height and width that one
# window has (windows are half of that apart), and the number of random frequencies in a group.
_KERNELS = (('low', 1 / 4, 100), ('high', 1 / 2, 300), ('high', 1.0, 1000), ('vector', 1.0, 500))
LAYERS = ('low', 'high', 'vector')
# The standard deviation of the kernels, divided by the root mean square distance of two images of a
# class.
_BANDWIDTH = 0.5


class LearnedFeatures(GroupedFeatures):
    """Random Fourier features of a classifier's layers: those of the second release.

    The Gaussian kernels look at windows of the first layer, at windows of the second layer and at
    the whole of it, and at the vector.

    Args:
      classifier: maps images to a dict, as `models.classifier.build_classifier` makes it; its
        weights are public and stay as they are.
      distances: for each of 'low', 'high' and 'vector' the root mean square distance of two images
        of a class in one number of that layer, > 0.
      image_shape: (H, W, C).
    """

    def __init__(
        self,
        classifier: tf.keras.Model,
        distances: Sequence[float],
        image_shape: tuple[int, int, int],
    ):
        super().__init__(name='learned_features')
        self._classifier = classifier
        scales = dict(zip(LAYERS, distances))
        seeds = tf.unstack(tf.random.experimental.stateless_split(_SEED, len(_KERNELS)))
        self._frequencies = []
        for (layer, part, count), seed in zip(_KERNELS, seeds):
            *height_and_width, channels = classifier.output[layer].shape[1:]
            window = [math.ceil(part * size) for size in height_and_width] or [1, 1]
            shape = [GROUPS, *window, channels, count]
            normal = tf.random.stateless_normal(shape, seed)
            size = math.prod(window) * channels
            self._frequencies.append(normal / (_BANDWIDTH * scales[layer] * size**0.5))
        self._measure(image_shape)

    def group(self, images: tf.Tensor, group: tf.Tensor | int) -> tf.Tensor:
        """Computes the features of one group, like `pixels.FeatureMap.group`."""
        outputs = self._classifier(images, training=False)
        outputs['vector'] = outputs['vector'][:, tf.newaxis, tf.newaxis]
        inputs = [outputs[layer] for layer, _, _ in _KERNELS]
        return fourier_features(inputs, [f[group] for f in self._frequencies])


@dataclasses.dataclass(frozen=True, eq=False)
class Release:
    """The second release, and the features that it is a release of. All of it is public.

    Attributes:
      sums: int64 [num_classes, size], as `class_sums.release` returns them.
      distances: see `LearnedFeatures`.
      classifier: the weights of the classifier.
      generator: the weights of the generator that was fitted to the first release.
    """

    sums: np.ndarray
    distances: Sequence[float]
    classifier: Sequence[np.ndarray]
    generator: Sequence[np.ndarray]

    def to_bytes(self) -> bytes:
        """The release as the content of an .npz file; `from_bytes` reads it back."""
        arrays = {'sums': self.sums, 'distances': np.asarray(self.distances)}
        for name in ('classifier', 'generator'):
            weights = getattr(self, name)
            arrays |= {f'{name}_{number:03}': value for number, value in enumerate(weights)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Release:
        """Reads what `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            weights = {
                name: [arrays[key] for key in sorted(arrays) if key.startswith(f'{name}_')]
                for name in ('classifier', 'generator')
            }
            return cls(arrays['sums'], tuple(map(float, arrays['distances'])), **weights)
