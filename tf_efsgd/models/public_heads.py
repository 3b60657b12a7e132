"""A discriminator of small heads on a frozen public network.

Projected GANs (Sauer et al. 2021) are similar. A record's features, a function of that record and
public constants, are computed once (`record_features`). A private step sees only these and never
runs the network on a record. Generated images go through the network.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd import replicas
from tf_efsgd.data.images import to_float
from tf_efsgd.models.losses import NonSaturatingLosses

LOGITS, RECONSTRUCTION = 'logits', 'reconstruction'

STAGES = ('stage_2', 'stage_3', 'stage_4', 'stage_5')
_POOLED_SIZE = 8
_LARGEST_ACTIVATION = 5.0
_LEAST_DEVIATION = 1e-2


Maps = Mapping[str, tf.Tensor]


class HeadInputs(tf.Module):
    """Computes what the heads see of an image: pooled, standardized feature maps, as one vector.

    Args:
      network: frozen; maps images, float32 [n, H, W, C] in [-1, 1], to a dict of feature maps with
        the names in `STAGES`.
      photographs: public photographs, float32 [m, H, W, C] in [-1, 1], by which channels are
        standardized.
      pixels: whether the vector also has patches of the image itself. A network with strides does
        not see patterns as small as its strides, and generators learn to draw them.

    Attributes:
      shapes: (height, width, channels) of each part, in order.
      size: of the vector.
      rows: how many records `record_features` computes at a time: 1, by which each is alone, until
        somebody has found that more leave the features of each its own.
    """

    rows = 1

    def __init__(self, network: tf.keras.Model, photographs: np.ndarray, *, pixels: bool = False):
        super().__init__(name='head_inputs')
        # The module must not track the network: `on` makes a copy with another one.
        self._get_network = lambda: network
        self._patch = _patch_size(photographs.shape[1]) if pixels else None
        pooled = [
            np.concatenate(parts)
            for parts in zip(
                *(
                    [value.numpy() for value in self._parts(tf.constant(part), self.maps(part))]
                    for part in np.array_split(photographs, max(1, len(photographs) // 64))
                )
            )
        ]
        self.shapes = [values.shape[1:] for values in pooled]
        self.size = sum(math.prod(shape) for shape in self.shapes)
        self._means = [values.mean(axis=(0, 1, 2)) for values in pooled]
        self._deviations = [values.std(axis=(0, 1, 2)) + _LEAST_DEVIATION for values in pooled]

    def maps(self, images: tf.Tensor) -> Maps:
        """The network's feature maps of images, float32 [n, H, W, C] in [-1, 1]."""
        return self._get_network()(images, training=False)

    def on(self, network: tf.keras.Model) -> HeadInputs:
        """Makes a copy that uses another network, with the same scales.

        Args:
          network: nearly the same function, e.g. a copy in another precision for generated images.
        """
        other = copy.copy(self)
        other._get_network = lambda: network
        return other

    def of_maps(self, images: tf.Tensor, maps: Maps) -> tf.Tensor:
        """The heads' input, float32 [n, size] in [-5, 5], of images whose maps are known."""
        parts = zip(self._parts(images, maps), self._means, self._deviations, self.shapes)
        flat = [
            tf.reshape((values - mean) / deviation, [-1, math.prod(shape)])
            for values, mean, deviation, shape in parts
        ]
        values = tf.concat(flat, axis=1)
        return tf.clip_by_value(values, -_LARGEST_ACTIVATION, _LARGEST_ACTIVATION)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """The heads' input of images, float32 [n, H, W, C] in [-1, 1]: float32 [n, size]."""
        return self.of_maps(images, self.maps(images))

    def patches(self, values: tf.Tensor) -> tf.Tensor:
        """Reads the pixels off the heads' input, which must have been made with `pixels`.

        Args:
          values: float32 [n, size], from `of_maps`.

        Returns:
          float32 [n, h, w, patch * patch * C] in [-1, 1], as `tf.nn.space_to_depth` gives it.
        """
        shape = self.shapes[-1]
        flat = values[:, -math.prod(shape) :]
        return tf.reshape(flat, [-1, *shape]) * self._deviations[-1] + self._means[-1]

    def _parts(self, images: tf.Tensor, maps: Maps) -> list[tf.Tensor]:
        pooled = []
        for stage in STAGES:
            pooling = -(-maps[stage].shape[1] // _POOLED_SIZE)
            values = maps[stage]
            if pooling > 1:
                values = tf.nn.avg_pool2d(values, pooling, pooling, 'SAME')
            pooled.append(values)
        if self._patch is not None:
            pooled.append(tf.nn.space_to_depth(images, self._patch) if self._patch > 1 else images)
        return pooled


def _patch_size(height: int) -> int:
    """The smallest size of patches with at most 8 patches to a side."""
    return next(p for p in range(1, height + 1) if height % p == 0 and height // p <= _POOLED_SIZE)


def record_features(
    inputs: HeadInputs,
    images: np.ndarray,
    path: str | os.PathLike | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> np.ndarray:
    """Computes what the heads see of all records. It is PRIVATE, as the records are.

    Every part has `inputs.rows` images: the last one is filled up with images that count
    nowhere, so that a record's features do not depend on how many other records there are.

    Args:
      inputs: of the heads.
      images: uint8 [N, H, W, C].
      path: of a file to keep the features in, outside the run folder. It is mapped into memory and
        loses its name before anything is written, so nothing is left of it when the process ends,
        however it ends. None keeps the features in memory.
      strategy: each of its replicas takes a part of the records; None: one device.

    Returns:
      float16 [N, inputs.size].

    Raises:
      OSError: if there is no room for the file.
    """
    all_features = (len(images), inputs.size)
    if path is None:
        features = np.zeros(all_features, np.float16)
    else:
        features = _map_without_name(path, all_features)
    compute = tf.function(lambda part: tf.cast(inputs(to_float(part)), tf.float16))
    rows = inputs.rows
    starts = range(0, len(images), rows)

    def part_at(start):
        part = images[start : start + rows]
        return (np.pad(part, [(0, rows - len(part)), (0, 0), (0, 0), (0, 0)]),)

    shape = (rows, *images.shape[1:])
    made_up = (np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8),)
    of_parts = replicas.map_parts(
        compute,
        map(part_at, starts),
        made_up,
        strategy,
        tried=lambda part: inputs(to_float(part)),
    )
    for start, made in zip(starts, of_parts):
        part = features[start : start + rows]
        part[:] = made[: len(part)]
    return features


def _map_without_name(path: str | os.PathLike, shape: tuple[int, int]) -> np.ndarray:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        # A file with holes would end the process with a signal when the disk is full.
        os.posix_fallocate(handle, 0, max(1, math.prod(shape) * np.dtype(np.float16).itemsize))
        with os.fdopen(handle, 'r+b', closefd=False) as file:
            return np.memmap(file, np.float16, 'r+', shape=shape)
    finally:
        os.unlink(path)
        os.close(handle)


def build_public_heads(
    shapes: Sequence[tuple[int, int, int]],
    num_classes: int,
    *,
    channels: int = 32,
    reconstruction: bool = False,
) -> tf.keras.Model:
    """Builds the heads: for each part a 1x1 convolution and one logit per class.

    Args:
      shapes: `HeadInputs.shapes`.
      num_classes: number of labels.
      channels: of each head.
      reconstruction: whether to decode the last part, which must be the pixels, from the channels
        of the other heads, position by position.

    Returns:
      A model from float32 [n, size], as `HeadInputs` makes it, to a dict: 'logits' float32 [n,
      heads, num_classes], above 0 for real; with `reconstruction` also 'reconstruction' float32
      [n, h, w, patch * patch * C], like `HeadInputs.patches`.
    """
    sizes = [math.prod(shape) for shape in shapes]
    inputs = tf.keras.Input([sum(sizes)], name='features')
    logits, seen, start = [], [], 0
    for shape, size in zip(shapes, sizes):
        x = tf.keras.layers.Reshape(shape)(inputs[:, start : start + size])
        x = tf.keras.layers.LeakyReLU(0.2)(tf.keras.layers.Conv2D(channels, 1)(x))
        seen.append(x)
        x = tf.keras.layers.Flatten()(x)
        x = tf.keras.layers.Dense(num_classes)(x)
        logits.append(tf.keras.layers.Reshape([1, num_classes])(x))
        start += size
    outputs = {LOGITS: tf.keras.layers.Concatenate(axis=1, name=LOGITS)(logits)}
    if reconstruction:
        height, width, values = shapes[-1]
        at_each = [
            tf.keras.layers.Resizing(height, width, interpolation='nearest')(x) for x in seen[:-1]
        ]
        decode = tf.keras.layers.Conv2D(values, 1, name=RECONSTRUCTION)
        outputs[RECONSTRUCTION] = decode(tf.keras.layers.Concatenate()(at_each))
    return tf.keras.Model(inputs, outputs, name='public_heads')


class HingeLosses:
    """Hinge losses of several heads (Lim and Ye 2017): per example, averaged over heads."""

    @staticmethod
    def realness(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Each head's logit for the example's own class: float32 [n, heads] from [n, heads, K]."""
        return tf.reduce_sum(logits * tf.one_hot(labels, logits.shape[-1])[:, tf.newaxis], axis=-1)

    @staticmethod
    def real(realness: tf.Tensor) -> tf.Tensor:
        """The heads' loss on records; float32 [n] from [n, heads]."""
        return tf.reduce_mean(tf.nn.relu(1.0 - realness), axis=1)

    @staticmethod
    def wrong_class(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The heads' loss on records under wrong labels (Reed et al. 2016, section 4.2).

        Args:
          logits: float32 [n, heads, K].
          labels: int32 [n], the right ones.

        Returns:
          float32 [n], the mean over heads and wrong labels.
        """
        num_classes = logits.shape[-1]
        others = 1.0 - tf.one_hot(labels, num_classes)
        of_class = tf.reduce_mean(tf.nn.relu(1.0 + logits), axis=1)
        return tf.reduce_sum(of_class * others, axis=1) / max(1, num_classes - 1)

    # |x - R(x)|^2, as for a discriminator on pixels.
    reconstruction = staticmethod(NonSaturatingLosses.reconstruction)

    @staticmethod
    def fake(realness: tf.Tensor) -> tf.Tensor:
        """The heads' loss on generated images; float32 [n] from [n, heads]."""
        return tf.reduce_mean(tf.nn.relu(1.0 + realness), axis=1)

    @staticmethod
    def generator(realness: tf.Tensor) -> tf.Tensor:
        """The generator's loss on its images; float32 [n] from [n, heads]."""
        return -tf.reduce_mean(realness, axis=1)
