"""Features of images whose sum over records can be released: bounded, and in groups.

Formal guarantees, for every record, whatever it holds:
  - Its features have norm at most 1; where they are not finite, it counts as zero, by selection.
  - What it adds to a sum is rounded to integers in steps of gamma before it is added (`on_grid`),
    and its squared norm, computed exactly, is at most (1 / gamma)^2.

Tested, not proven: that a record's features, which are float32, do not depend on which other
records are computed beside them, nor on its place among them.
"""

from __future__ import annotations

import math

import tensorflow as tf

# Groups of features that all stand for the same kernels.
GROUPS = 8
# Of the constant feature that counts the records of a class.
COUNT = 0.1
# Leaves room for rounding to the grid, so that a usual record stays within norm 1.
BOUND = 1.0 - 1e-5
# A contribution that is too long after rounding is scaled down by this factor, again and again.
_SHRINK = 1.0 - 2.0**-20


class GroupedFeatures(tf.Module):
    """Bounded random features of images, phi, in groups.

    All groups stand for the same kernels, so a step of `training.fit` can make do with one of
    them. Beside them there is a constant, which counts. A subclass gives `group`, and calls
    `_measure` when that can be called.
    """

    # How many; a subclass may have another number.
    groups = GROUPS

    def _measure(self, image_shape: tuple[int, int, int]) -> None:
        self.group_size = self.group(tf.zeros([1, *image_shape]), 0).shape[-1]
        self.size = self.groups * self.group_size + 1

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Computes phi.

        Args:
          images: float32 [n, H, W, C] in [-1, 1].

        Returns:
          float32 [n, size]: all groups, then the constant; every row has norm at most 1, or is 0
          where it would not be finite.
        """
        share = math.sqrt((1.0 - COUNT**2) / self.groups)
        groups = [share * self.group(images, group) for group in range(self.groups)]
        count = tf.fill([tf.shape(images)[0], 1], COUNT)
        return _bounded(tf.concat([*groups, count], axis=-1))

    @tf.function(reduce_retracing=True, autograph=False)
    def class_sums(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        num_classes: int,
        step: tf.Tensor,
        largest_squared_norm: tf.Tensor,
    ) -> tf.Tensor:
        """Sums by class of what the records contribute, PRIVATE.

        Args:
          images: uint8 [n, H, W, C].
          labels: int32 [n]; negative ones count nowhere.
          num_classes: number of labels.
          step: float64 [], gamma.
          largest_squared_norm: int64 [], of one record's contribution, in steps.

        Returns:
          int64 [num_classes, size], in steps.
        """
        phi = self(tf.cast(images, tf.float32) / 127.5 - 1.0)
        # Not a matrix product: that has no integers.
        contributions = on_grid(phi, step, largest_squared_norm)
        return tf.math.unsorted_segment_sum(contributions, labels, num_classes)


def on_grid(phi: tf.Tensor, step: tf.Tensor, largest_squared_norm: tf.Tensor) -> tf.Tensor:
    """Rounds records' features to the grid and holds their norms to the bound, exactly.

    Args:
      phi: float32 [n, size], rows of norm about 1 at most, finite.
      step: float64 [], gamma > 0.
      largest_squared_norm: int64 [], floor(1 / gamma^2).

    Returns:
      int64 [n, size], in steps: round(phi / gamma), scaled down and rounded again for as long as
      the sum of squares, an integer, is above the bound.
    """
    # No number of a row may be longer than the whole row: so their squares fit into int64.
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
