"""What a generator is fitted to: released class means, and how far images are from them.

The images of each class shall have mean features near the released ones, so that their maximum mean
discrepancy (MMD) falls. It sees no record: all here is post-processing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

_IMAGES_PER_STEP = 100
_LEAST_IMAGES_PER_CLASS = 4
# Of the moving average of differences, per step that a group and class have part in.
_MEMORY = 0.8


def mmd_loss(features: tf.Tensor, means: tf.Tensor) -> tf.Tensor:
    """Squared distance of mean features from given ones, without the bias of few images.

    |m - F|^2 - (sample variance) / n, whose expectation is |E phi - F|^2: for F without noise the
    squared MMD (Gretton et al. 2012, section 2.2).

    Args:
      features: float32 [classes, n, d], n >= 2.
      means: float32 [classes, d].

    Returns:
      float32 [], summed over classes.
    """
    mean, variance = _mean_and_its_variance(features)
    return tf.reduce_sum(tf.reduce_sum((mean - means) ** 2, axis=1) - variance)


def _mean_and_its_variance(features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of [classes, n, d]: means, [classes, d], and how far off they are in square, [classes]."""
    n = tf.cast(tf.shape(features)[1], tf.float32)
    mean = tf.reduce_mean(features, axis=1)
    squares = tf.reduce_sum((features - mean[:, tf.newaxis]) ** 2, axis=[1, 2])
    return mean, squares / (n * (n - 1.0))


class Grouped(Protocol):
    """What a target asks of features."""

    def group(self, images: Any, group: tf.Tensor | int) -> tf.Tensor:
        """As `GroupedFeatures.group`, of images or of what stands for them."""


class Target:
    """What a generator is fitted to: the released means, and which images are held against them.

    A step makes about 100 images: few of each class, or of some of very many classes.

    Args:
      features: phi, the one of the release.
      means: float32 [groups, classes, size of a group], from `class_means`.
    """

    def __init__(self, features: Grouped, means: tf.Tensor | np.ndarray):
        self.features = features
        self.means = tf.constant(means)
        num_classes = self.means.shape[1]
        self._images_per_class = max(_LEAST_IMAGES_PER_CLASS, _IMAGES_PER_STEP // num_classes)

    def draw_labels(self, seed: tf.Tensor) -> tf.Tensor:
        """Draws the classes of a step.

        Args:
          seed: int32 [2]; public.

        Returns:
          int32 [n]: some classes, or all of them, each repeated as often as it gets images.
        """
        num_classes = self.means.shape[1]
        count = min(num_classes, _IMAGES_PER_STEP // self._images_per_class)
        classes = tf.range(num_classes)
        classes = tf.random.experimental.stateless_shuffle(classes, seed)[:count]
        return tf.repeat(classes, self._images_per_class)

    def distance(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """How far images are from the released means, by one group of features.

        Args:
          images: float32 [n, H, W, C] in [-1, 1].
          labels: int32 [n], from `draw_labels`.
          seed: int32 [2], which chooses the group; public.

        Returns:
          float32 [], `mmd_loss`.
        """
        groups, _, size = self.means.shape
        group = tf.random.stateless_uniform([], seed, 0, groups, tf.int32)
        made = self.features.group(images, group)
        made = tf.reshape(made, [-1, self._images_per_class, size])
        classes = labels[:: self._images_per_class]
        return mmd_loss(made, tf.gather(self.means[group], classes))


class SumOfTargets:
    """Several targets of the same classes held against the same images, as one target.

    Args:
      targets: at least one.
    """

    def __init__(self, targets: Sequence[Target]):
        self._targets = targets
        self.draw_labels = targets[0].draw_labels

    def distance(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The sum of the distances, as `Target.distance`."""
        return tf.add_n([target.distance(images, labels, seed) for target in self._targets])


class AveragedTarget:
    """A target whose distance looks back: what a generator is fitted to, many steps in a row.

    The gradient of |E phi - F|^2 is 2 (E phi - F) . grad E phi, and the few images of one step say
    little of the first factor: its noise is larger than itself. Here a moving average over steps
    stands for it (stochastic compositional gradient descent, Wang, Fang and Liu 2017).

    Args:
      target: whose means and labels these are.
    """

    def __init__(self, target: Target):
        self.draw_labels = target.draw_labels
        self._features = target.features
        self._means = target.means
        # By group and class. A moving average from 0 is divided by the sum of its weights.
        self._difference = tf.Variable(tf.zeros_like(self._means), trainable=False)
        self._weight = tf.Variable(tf.zeros([*self._means.shape[:2], 1]), trainable=False)
        self.variables = (self._difference, self._weight)

    def distance_so_far(self) -> tf.Tensor:
        """The distance of the averaged features to the released means, float32 []: public."""
        return tf.norm(tf.math.divide_no_nan(self._difference, self._weight))

    def loss(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A loss whose gradient is that of the distance, its value is not. Moves the average.

        Args:
          images: float32 [n, H, W, C] in [-1, 1].
          labels: int32 [n], from `draw_labels`.
          seed: int32 [2], which chooses the group; public.

        Returns:
          float32 [].
        """
        groups, num_classes, size = self._means.shape
        group = tf.random.stateless_uniform([], seed, 0, groups, tf.int32)
        classes, _, counts = tf.unique_with_counts(labels)
        made = tf.reshape(self._features.group(images, group), [-1, counts[0], size])
        made, variance = _mean_and_its_variance(made)
        # The fewer classes of all have part in a step, the longer ago was the last time.
        memory = _MEMORY ** (num_classes / tf.cast(tf.size(classes), tf.float32))
        at = tf.stack([tf.fill(tf.shape(classes), group), classes], axis=1)

        def average(variable, new):
            moved = memory * tf.gather_nd(variable, at) + (1.0 - memory) * new
            variable.scatter_nd_update(at, moved)
            return moved

        difference = average(self._difference, made - tf.gather_nd(self._means, at))
        weight = average(self._weight, tf.ones([tf.shape(classes)[0], 1]))
        loss = 2.0 * tf.reduce_sum(tf.stop_gradient(difference / weight) * made)
        # These images have part in both factors, which pays for a larger mean: as in `mmd_loss`.
        return loss - tf.reduce_sum((1.0 - memory) / weight[:, 0] * variance)
