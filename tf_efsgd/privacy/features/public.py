"""Features of pixels and of a network that learned from public photographs, under one bound.

They are random Fourier features (Rahimi and Recht 2007) of Gaussian kernels on pixels, on tone, on
texture and on the stages of the frozen network, and the network's pooled activations themselves,
whose sums by class tell the classes apart at any noise. DP-MEPF (Harder et al. 2023) is similar.

Formal guarantees:
  - phi is a function of public constants and of the image shape: random frequencies from a public
    seed, the weights of the network, which learned from public photographs, and scales that are
    measured on the public photographs in this package. It is fixed before it sees a record.
  - All parts lie under ONE bound: the norm of every part is at most the root of its public share,
    and the shares add up to 1. `grouped.on_grid` keeps the whole within the bound in integers, as
    for every release, so the privacy of a release does not rest on anything computed here.

There is one group of features instead of several. The noise on the mean features of a class with n
records is about sigma_w sqrt(size) / n, so there are fewer features where records are few.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy.features.grouped import GroupedFeatures
from tf_efsgd.privacy.features.kernels import fourier_features

# The version of phi: releases of another version, and those of pixels alone, are refused.
VERSION = 102

Maps = Mapping[str, tf.Tensor]

_PHOTOGRAPHS = (
    pathlib.Path(__file__).resolve().parents[2] / 'models' / 'embedded' / 'public_photographs.jpg'
)
_PHOTOGRAPH_SIZE = 64

_SEED = (2601, 15063)
# The standard deviation of the kernels, divided by the root mean square distance of two public
# photographs. The frequencies take turns with the factors: a mixture of narrow and wide kernels.
_BANDWIDTH = 0.5
_FACTORS = (0.25, 0.5, 1.0, 2.0)
# Activations are standardized by means of the photographs and cut off here.
LARGEST_ACTIVATION = 5.0
_LEAST_DEVIATION = 1e-2
# The stages whose activations are released, pooled to 2 by 2, and the share of each.
_POOLED_SHARES = {'stage_2': 0.1, 'stage_3': 0.2, 'stage_4': 0.3, 'stage_5': 0.4}
_POOLED_SIZE = 2
# The bound on the activations' norm is the photographs' median times this: most are within it.
_ROOM = 1.2

# Luma and two doubled opponent colours.
_OPPONENT = ((0.299, 0.587, 0.114), (1.0, -0.5, -0.5), (0.0, 1.0, -1.0))
_TONE_SIZE, _TEXTURE_WINDOW = 8, 4

# The noise on the mean features of a class, sigma_w sqrt(size) / n, is to be about this.
_NOISE = 0.04
_SMALLEST, _LARGEST = 0.2, 2.0


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """A Gaussian kernel.

    Attributes:
      source: maps (images, maps) to what the kernel looks at, [n, h, w, C].
      part: the part of the height and of the width that one window has.
      count: the number of random frequencies, at size 1.
      share: the share of all that is released, before the shares are made to add up to 1.
    """

    source: Callable[[tf.Tensor, Maps], tf.Tensor]
    part: float
    count: int
    share: float


def _stage(name: str) -> Callable[[tf.Tensor, Maps], tf.Tensor]:
    return lambda _, maps: maps[name]


def _pixels(images: tf.Tensor, _: Maps) -> tf.Tensor:
    return images


def _tone(images: tf.Tensor, _: Maps) -> tf.Tensor:
    pooled = pool_to(images, _TONE_SIZE)
    return pooled if images.shape[-1] == 1 else pooled @ tf.transpose(tf.constant(_OPPONENT))


def _meaning(_: tf.Tensor, maps: Maps) -> tf.Tensor:
    means = [_mean(maps[s]) for s in ('stage_4', 'stage_5')]
    return tf.concat(means, axis=-1)


def _mean(values: tf.Tensor) -> tf.Tensor:
    """The mean over height and width, [n, 1, 1, C].

    It does not use `reduce_mean`, which may sum in another order at another row of a batch: by
    rounding, a record's features would depend on its place.
    """
    return tf.nn.avg_pool2d(values, values.shape[1:3], 1, 'VALID')


def _flat_mean(values: tf.Tensor) -> tf.Tensor:
    return _mean(values)[:, 0, 0]


_KERNELS = (
    _Kernel(_pixels, 1.0, 400, 0.1),
    _Kernel(_tone, 1.0, 200, 0.1),
    _Kernel(_pixels, 0.5, 40, 0.05),
    _Kernel(_stage('stage_2'), 0.5, 40, 0.1),
    _Kernel(_stage('stage_3'), 0.5, 60, 0.1),
    _Kernel(_stage('stage_3'), 1.0, 250, 0.1),
    _Kernel(_stage('stage_4'), 1.0, 400, 0.125),
    _Kernel(_stage('stage_5'), 1.0, 500, 0.125),
    _Kernel(_meaning, 1.0, 400, 0.1),
)
_TEXTURE_COUNT, _TEXTURE_SHARE = 24, 0.1
# The share of the pooled activations: as much as all kernels together.
_ACTIVATIONS_SHARE = 0.5


def choose_size(dataset_size: int, num_classes: int, noise_multiplier: float) -> float:
    """Chooses how many features to release, as a multiple of the usual 8,000 or so.

    Args:
      dataset_size: declared number of records.
      num_classes: number of labels.
      noise_multiplier: of the release.

    Returns:
      The `size` of `PublicFeatures`, from public facts alone: smaller for fewer records and for
      more noise.
    """
    if not noise_multiplier:
        return 1.0
    features = (_NOISE * dataset_size / num_classes / noise_multiplier) ** 2
    return min(_LARGEST, max(_SMALLEST, round(features / 8000.0, 2)))


def public_photographs(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Loads the photographs that scales are measured on; they are CC0 or in the public domain.

    Args:
      image_shape: (H, W, C), C is 1 or 3.

    Returns:
      float32 [256, H, W, C] in [-1, 1].
    """
    height, width, channels = image_shape
    sheet = tf.io.decode_jpeg(_PHOTOGRAPHS.read_bytes()).numpy()
    rows, columns = (side // _PHOTOGRAPH_SIZE for side in sheet.shape[:2])
    images = sheet.reshape(rows, _PHOTOGRAPH_SIZE, columns, _PHOTOGRAPH_SIZE, 3).swapaxes(1, 2)
    images = images.reshape(-1, _PHOTOGRAPH_SIZE, _PHOTOGRAPH_SIZE, 3)
    images = tf.image.resize(images, [height, width], 'area').numpy() / np.float32(127.5) - 1.0
    if channels == 1:
        images = images @ np.array(_OPPONENT[0], np.float32)[:, np.newaxis]
    return images.astype(np.float32)


def pool_to(values: tf.Tensor, size: int) -> tf.Tensor:
    """Averages float32 [n, h, w, C] to a height of `size` or a little more; smaller ones stay."""
    pooling = values.shape[1] // size
    return tf.nn.avg_pool2d(values, pooling, pooling, 'VALID') if pooling > 1 else values


def in_parts(function: Callable, images: np.ndarray, part: int = 128) -> list[np.ndarray]:
    """Applies a function to images part by part.

    Args:
      function: from a part of the images, a tensor, to a list of tensors [n, ...].
      images: [N, ...].
      part: how many images the function gets at a time.

    Returns:
      The values of the function for all images, a list of arrays [N, ...].
    """
    parts = [
        [value.numpy() for value in function(tf.constant(images[start : start + part]))]
        for start in range(0, len(images), part)
    ]
    return [np.concatenate(values) for values in zip(*parts)]


class PublicFeatures(GroupedFeatures):
    """Bounded features of pixels and of a public network, in one group.

    Args:
      network: frozen; maps images, float32 [n, H, W, C] in [-1, 1], to a dict of feature maps with
        'stage_2' to 'stage_5', as `models.public_network.build_public_network` makes it.
      image_shape: (H, W, C), H and W at least 8.
      size: multiple of the usual number of features, > 0, see `choose_size`.
    """

    groups = 1

    def __init__(
        self, network: tf.keras.Model, image_shape: tuple[int, int, int], size: float = 1.0
    ):
        super().__init__(name='public_features')
        self._network = network
        photographs = public_photographs(image_shape)
        names = sorted(network.output)
        of_all = in_parts(lambda images: [network(images)[name] for name in names], photographs)
        photographs, maps = tf.constant(photographs), dict(zip(names, map(tf.constant, of_all)))
        self._measure_activations(maps)
        seeds = tf.unstack(tf.random.experimental.stateless_split(_SEED, len(_KERNELS) + 1))
        self._frequencies = []
        for kernel, seed in zip(_KERNELS, seeds):
            values = kernel.source(photographs, maps)
            window = [math.ceil(kernel.part * side) for side in values.shape[1:3]]
            count = max(4, round(size * kernel.count))
            self._frequencies.append(_draw_frequencies(values, window, count, seed))
        window = [_TEXTURE_WINDOW, _TEXTURE_WINDOW]
        count = max(4, round(size * _TEXTURE_COUNT))
        self._texture = _draw_frequencies(photographs, window, count, seeds[-1], centered=True)
        total = sum(kernel.share for kernel in _KERNELS) + _TEXTURE_SHARE
        self._shares = [(1.0 - _ACTIVATIONS_SHARE) * kernel.share / total for kernel in _KERNELS]
        self._texture_share = (1.0 - _ACTIVATIONS_SHARE) * _TEXTURE_SHARE / total
        self._measure(image_shape)

    def _measure_activations(self, maps: Maps) -> None:
        values = _pooled(maps).numpy()
        self._activation_mean = values.mean(axis=0)
        self._activation_deviation = values.std(axis=0) + np.float32(_LEAST_DEVIATION)
        sizes = [math.prod(pool_to(maps[s], _POOLED_SIZE).shape[1:]) for s in _POOLED_SHARES]
        weights = [np.full(n, (w / n) ** 0.5) for n, w in zip(sizes, _POOLED_SHARES.values())]
        self._activation_weights = np.concatenate(weights).astype(np.float32)
        norms = tf.norm(self._standardized(maps) * self._activation_weights, axis=1).numpy()
        self._largest_norm = np.float32(_ROOM * np.median(norms))

    @property
    def version(self) -> int:
        """Tells these features from those of another program, network, size or shape."""
        network = self._network
        # The names of layers are left out: they count what the process has built before.
        about = (
            self.size,
            network.input_shape,
            sorted((name, tuple(maps.shape)) for name, maps in network.output.items()),
            [type(layer).__name__ for layer in network.layers],
        )
        digest = hashlib.sha256(repr(about).encode())
        for weight in network.get_weights():
            digest.update(weight.tobytes())
        return VERSION * 2**48 + int.from_bytes(digest.digest()[:6], 'big')

    def maps(self, images: tf.Tensor) -> Maps:
        """The network's feature maps of images, float32 [n, H, W, C] in [-1, 1]."""
        return self._network(images, training=False)

    def group(self, images: tf.Tensor, group: tf.Tensor | int = 0) -> tf.Tensor:
        """Computes the features, like `pixels.FeatureMap.group`; there is only one group."""
        del group
        return self.of_maps(images, self.maps(images))

    def of_maps(self, images: tf.Tensor, maps: Maps) -> tf.Tensor:
        """Computes the features of images whose feature maps are known already.

        Args:
          images: float32 [n, H, W, C] in [-1, 1].
          maps: from `maps`.

        Returns:
          float32 [n, group_size], rows of norm at most 1: kernels, texture, activations.
        """
        parts = [
            share**0.5 * fourier_features([kernel.source(images, maps)], [frequencies])
            for kernel, frequencies, share in zip(_KERNELS, self._frequencies, self._shares)
        ]
        parts.append(self._texture_share**0.5 * self._texture_features(images))
        parts.append(_ACTIVATIONS_SHARE**0.5 * self.activations(maps))
        return tf.concat(parts, axis=-1)

    def activations(self, maps: Maps) -> tf.Tensor:
        """Pooled, standardized activations, float32 [n, activations_size] of norm at most 1."""
        values = self._standardized(maps) * self._activation_weights / self._largest_norm
        return values / tf.maximum(1.0, tf.norm(values, axis=1, keepdims=True))

    @property
    def activations_size(self) -> int:
        """How many of the features, the last ones of a group, are `activations`."""
        return len(self._activation_weights)

    def activation_means(self, means: np.ndarray) -> np.ndarray:
        """The mean `activations` of each class: post-processing of a release.

        Args:
          means: float32 [1, classes, group_size], from `class_sums.class_means`.

        Returns:
          float32 [classes, activations_size].
        """
        return means[0, :, -self.activations_size :] / np.float32(_ACTIVATIONS_SHARE**0.5)

    def _standardized(self, maps: Maps) -> tf.Tensor:
        values = (_pooled(maps) - self._activation_mean) / self._activation_deviation
        return tf.clip_by_value(values, -LARGEST_ACTIVATION, LARGEST_ACTIVATION)

    def _texture_features(self, images: tf.Tensor) -> tf.Tensor:
        """Cosines and sines of small windows, averaged over quarters of the image; norm <= 1."""
        stride = _TEXTURE_WINDOW // 2
        angles = tf.nn.conv2d(images, self._texture, stride, 'VALID')
        rows, columns, count = angles.shape[1:]
        quarters = [
            (slice(r, r + -(-rows // 2)), slice(c, c + -(-columns // 2)))
            for r in (0, rows // 2)
            for c in (0, columns // 2)
        ]
        values = tf.concat([tf.cos(angles), tf.sin(angles)], axis=-1)
        means = [_flat_mean(values[:, r, c]) for r, c in quarters]
        return tf.concat(means, axis=-1) * (len(quarters) * count) ** -0.5


def _pooled(maps: Maps) -> tf.Tensor:
    values = [pool_to(maps[stage], _POOLED_SIZE) for stage in _POOLED_SHARES]
    return tf.concat([tf.reshape(v, [-1, math.prod(v.shape[1:])]) for v in values], axis=1)


def _draw_frequencies(
    values: tf.Tensor, window: list[int], count: int, seed: tf.Tensor, centered: bool = False
) -> tf.Tensor:
    """Draws the frequencies of a mixture of kernels on windows.

    The kernels are about as wide as two windows of public photographs are apart.

    Args:
      values: what the kernels look at of public photographs, float32 [n, h, w, C].
      window: the height and width of a window.
      count: how many frequencies.
      seed: int32 [2]; public.
      centered: whether the mean colour of a window is subtracted.

    Returns:
      float32 [*window, C, count].
    """
    height, width = window
    strides = [max(1, height // 2), max(1, width // 2)]
    rows, columns = (
        range(0, side - size + 1, stride)
        for side, size, stride in zip(values.shape[1:3], window, strides)
    )
    values = values.numpy()
    # The middle row of windows is enough.
    top = list(rows)[len(rows) // 2]
    windows = np.concatenate([values[:, top : top + height, c : c + width] for c in columns])
    if centered:
        windows = windows - windows.mean(axis=(1, 2), keepdims=True)
    flat = windows.reshape(len(windows), -1)
    # The mean square distance of two windows is twice their variance.
    distance = max(1e-3, float(np.sqrt(2.0 * flat.var(axis=0).sum())))
    factors = np.resize(np.array(_FACTORS, np.float32), count)
    shape = [*window, values.shape[-1], count]
    frequencies = tf.random.stateless_normal(shape, seed) * factors / (_BANDWIDTH * distance)
    if centered:
        frequencies -= tf.reduce_mean(frequencies, axis=[0, 1], keepdims=True)
    return frequencies
