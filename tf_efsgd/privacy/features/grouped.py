"""Bounded features of images, in groups: their sum over records can be released.

Formal guarantees, for every record, whatever it holds:
  - Its features have norm at most 1; a record whose features are not finite counts as zero, by
    selection.
  - Its contribution to a sum is rounded to integers in steps of gamma before it is added
    (`on_grid`), and the squared norm of these, computed exactly, is at most (1 / gamma)^2.

One thing is tested, not proven: a record's features, which are float32, depend neither on the other
records that are computed beside it nor on its place among them. Every process tries it before its
first look at records (`GroupedFeatures.rows`).
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy.features import alone

# The number of groups of features; every group approximates the same kernels.
GROUPS = 8
# The value of the constant feature that counts the records of a class.
COUNT = 0.1
# Leaves room for rounding to the grid, so that a usual record stays within norm 1.
BOUND = 1.0 - 1e-5
# A contribution that is too long after rounding is scaled down by this factor, again and again.
_SHRINK = 1.0 - 2.0**-20


class GroupedFeatures(tf.Module):
    """Bounded random features of images, phi, in groups.

    All groups approximate the same kernels, so a step of `training.fit` can make do with one of
    them. Beside them there is a constant feature, which counts. A subclass defines `group`, and
    calls `_measure` as soon as `group` works.
    """

    # The number of groups; a subclass may have another one.
    groups = GROUPS

    def _measure(self, image_shape: tuple[int, int, int]) -> None:
        self._image_shape = tuple(image_shape)
        self._rows: int | None = None
        self.group_size = self.group(tf.zeros([1, *image_shape]), 0).shape[-1]
        self.size = self.groups * self.group_size + 1

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Computes phi.

        Args:
          images: float32 [n, H, W, C] in [-1, 1].

        Returns:
          float32 [n, size]: all groups, then the constant; every row has norm at most 1, and is 0
          if it would not be finite.
        """
        share = math.sqrt((1.0 - COUNT**2) / self.groups)
        groups = [share * self.group(images, group) for group in range(self.groups)]
        count = tf.fill([tf.shape(images)[0], 1], COUNT)
        return _bounded(tf.concat([*groups, count], axis=-1))

    def rows(self) -> int:
        """How many records `class_sums` may get at a time, tried once on made-up images.

        Returns:
          See `alone.choose_rows`.

        Raises:
          alone.NotAlone: if a record's contribution is never its own.
        """
        if self._rows is None:
            shape = [alone.ROWS[0], *self._image_shape]
            made_up = np.random.default_rng(0).uniform(-1.0, 1.0, shape).astype(np.float32)
            self._rows = alone.choose_rows(self._of_made_up, made_up)
        return self._rows

    def _of_made_up(self, images: tf.Tensor) -> tf.Tensor:
        """Phi, as `of_records` computes it, of float32 images in [-1, 1]."""
        return self.of_records(tf.cast(tf.round(127.5 * (images + 1.0)), tf.uint8))

    def of_records(self, images: tf.Tensor) -> tf.Tensor:
        """Phi of uint8 images [n, H, W, C]: float32 [n, size], what `class_sums` adds up."""
        return self(tf.cast(images, tf.float32) / 127.5 - 1.0)

    @tf.function(reduce_retracing=True, autograph=False)
    def class_sums(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        num_classes: int,
        step: tf.Tensor,
        largest_squared_norm: tf.Tensor,
    ) -> tf.Tensor:
        """Sums the contributions of records by class. PRIVATE.

        Args:
          images: uint8 [n, H, W, C].
          labels: int32 [n]; negative ones count nowhere.
          num_classes: number of labels.
          step: float64 [], gamma.
          largest_squared_norm: int64 [], of one record's contribution, in steps.

        Returns:
          int64 [num_classes, size], in steps.
        """
        phi = self.of_records(images)
        # Not a matrix product: TensorFlow has none for these integers.
        contributions = on_grid(phi, step, largest_squared_norm)
        return tf.math.unsorted_segment_sum(contributions, labels, num_classes)


def on_grid(phi: tf.Tensor, step: tf.Tensor, largest_squared_norm: tf.Tensor) -> tf.Tensor:
    """Rounds the features of records to the grid and keeps their norms within the bound, exactly.

    Args:
      phi: float32 [n, size], finite, with rows of norm at most about 1.
      step: float64 [], gamma > 0.
      largest_squared_norm: int64 [], floor(1 / gamma^2).

    Returns:
      int64 [n, size], in steps: round(phi / gamma), scaled down and rounded again for as long as
      the sum of squares, an integer, is above the bound.
    """
    # No number of a row may be larger than the norm of the row may be, so squares fit into int64.
    most = tf.sqrt(tf.cast(largest_squared_norm, tf.float64))
    exact = tf.clip_by_value(tf.cast(phi, tf.float64) / step, -most, most)

    def squared_norms(rounded):
        return tf.reduce_sum(rounded * rounded, axis=1)

    def is_too_long(_, rounded):
        return tf.reduce_any(squared_norms(rounded) > largest_squared_norm)

    def shrink(exact, rounded):
        squares = squared_norms(rounded)
        ratio = tf.cast(largest_squared_norm, tf.float64) / tf.cast(squares, tf.float64)
        factor = tf.where(squares > largest_squared_norm, _SHRINK * tf.sqrt(ratio), 1.0)
        exact *= factor[:, tf.newaxis]
        return exact, tf.cast(tf.round(exact), tf.int64)

    _, rounded = tf.while_loop(
        is_too_long, shrink, (exact, tf.cast(tf.round(exact), tf.int64)), parallel_iterations=1
    )
    return rounded


def _bounded(features: tf.Tensor) -> tf.Tensor:
    """Rows divided by max(1, norm), a little below 1; rows that are not finite are 0."""
    finite = tf.reduce_all(tf.math.is_finite(features), axis=-1, keepdims=True)
    features = tf.where(finite, features, tf.zeros_like(features))
    norms = tf.norm(features, axis=-1, keepdims=True)
    return features * (BOUND / tf.maximum(1.0, norms))
