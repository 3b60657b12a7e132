"""What a generator is fitted to: released class means, and how far images are from them.

The mean features of each class of images are to come near the released ones, so that their maximum
mean discrepancy (MMD) falls. Nothing here sees a record: all of it is post-processing.

With several replicas each makes a share of a step's images. Means and variances are those of all
images, the same everywhere. Their gradient is that of the replica's own images, so that the
gradients of all replicas add up to that of a single device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tf_efsgd import replicas

_IMAGES_PER_STEP = 100
_LEAST_IMAGES_PER_CLASS = 4
# The decay of the moving average of differences, per step in which a group and class take part.
_MEMORY = 0.8


def mmd_loss(features: tf.Tensor, means: tf.Tensor) -> tf.Tensor:
    """The squared distance of mean features from given ones, without the bias of few images.

    It is |m - F|^2 - (sample variance) / n, whose expectation is |E phi - F|^2: for F without noise
    that is the squared MMD (Gretton et al. 2012, section 2.2).

    Args:
      features: float32 [classes, n, d], n >= 2.
      means: float32 [classes, d].

    Returns:
      float32 [], summed over classes.
    """
    return _distance(*_mean_and_its_variance(features), means)


def _distance(mean: tf.Tensor, variance: tf.Tensor, means: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.reduce_sum((mean - means) ** 2, axis=1) - variance)


def _mean_and_its_variance(features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The means [classes, d] of [classes, n, d], and their expected squared errors [classes]."""
    n = tf.cast(tf.shape(features)[1], tf.float32)
    mean = tf.reduce_mean(features, axis=1)
    squares = tf.reduce_sum((features - mean[:, tf.newaxis]) ** 2, axis=[1, 2])
    return mean, squares / (n * (n - 1.0))


def _moments(
    features: tf.Tensor, images_per_class: tf.Tensor | int, share: replicas.Share | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """`_mean_and_its_variance` of all images of a step; this replica made a share of them.

    Args:
      features: float32 [m, d], of the share; the images of a step are in the order of classes.
      images_per_class: n.
      share: of the step's images; None if all were made here.

    Returns:
      (means, their variances), the same on every replica; gradients differ, see the head of this
      file.
    """
    if share is None:
        return _mean_and_its_variance(
            tf.reshape(features, [-1, images_per_class, features.shape[-1]])
        )
    n = tf.cast(images_per_class, tf.float32)
    at, classes = share.rows // images_per_class, share.total // images_per_class

    def class_sums(values):
        values *= tf.reshape(share.weights, [-1] + [1] * (len(values.shape) - 1))
        return tf.math.unsorted_segment_sum(values, at, classes)

    own = class_sums(features) / n
    squares = class_sums(tf.reduce_sum(features**2, axis=1))
    packed = tf.concat([own, squares[:, tf.newaxis]], axis=1)
    whole = replicas.all_reduce(tf.stop_gradient(packed))
    mean, squares = whole[:, :-1], whole[:, -1]
    variance = (squares - n * tf.reduce_sum(mean**2, axis=1)) / (n * (n - 1.0))
    away = tf.reduce_sum((features - tf.gather(mean, at)) ** 2, axis=1)
    return (
        _with_gradient_of(own, mean),
        _with_gradient_of(class_sums(away) / (n * (n - 1.0)), variance),
    )


def _with_gradient_of(own: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    return own + tf.stop_gradient(value - own)


class Grouped(Protocol):
    """What a target asks of features."""

    def group(self, images: Any, group: tf.Tensor | int) -> tf.Tensor:
        """Computes what `GroupedFeatures.group` does, of images or of what stands for them."""


class Made(NamedTuple):
    """This replica's images of a step that are compared with a target.

    Attributes:
      images: float32 [m, H, W, C] in [-1, 1].
      own_labels: int32 [m], of these images.
      labels: int32 [n], of all images of the step.
      seed: int32 [2], for the target; public.
      share: which of the step's images these are; None if they are all.
    """

    images: tf.Tensor
    own_labels: tf.Tensor
    labels: tf.Tensor
    seed: tf.Tensor
    share: replicas.Share | None


def generate_for_target(
    target: Any, generator: tf.keras.Model, draw_inputs: Callable[..., dict], seed: tf.Tensor
) -> Made:
    """Makes this replica's share of the images that a target asks for, in a replica context.

    All replicas draw the inputs of all images, so that images do not depend on the number of
    replicas.

    Args:
      target: has the method `draw_labels` of `Target`.
      generator: as for `EFSGDGan`.
      draw_inputs: as for `EFSGDGan`.
      seed: int32 [2], of this step; public.
    """
    of_labels, of_inputs, of_target = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    labels = target.draw_labels(of_labels)
    share = replicas.Share.of(tf.shape(labels)[0])
    rows = None if share is None else share.rows
    images = generator(draw_inputs(generator, labels, of_inputs, rows), training=True)
    return Made(images, replicas.own_rows(share, labels), labels, of_target, share)


class Target:
    """What a generator is fitted to: the released means, and which images are compared with them.

    A step makes about 100 images: a few of each class, or of some classes if there are very many.

    Args:
      features: phi, that of the release.
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

    def distance(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        share: replicas.Share | None = None,
    ) -> tf.Tensor:
        """How far images are from the released means, by one group of features.

        Args:
          images: float32 [n, H, W, C] in [-1, 1], or [m, H, W, C] of a share.
          labels: int32 [n], from `draw_labels`.
          seed: int32 [2], which chooses the group; public.
          share: which of the step's images these are; None: all.

        Returns:
          float32 [], `mmd_loss`.
        """
        group = tf.random.stateless_uniform([], seed, 0, len(self.means), tf.int32)
        moments = _moments(self.features.group(images, group), self._images_per_class, share)
        classes = labels[:: self._images_per_class]
        return _distance(*moments, tf.gather(self.means[group], classes))


class SumOfTargets:
    """Several targets of the same classes as one target; all are compared with the same images.

    Args:
      targets: at least one.
    """

    def __init__(self, targets: Sequence[Target]):
        self._targets = targets
        self.draw_labels = targets[0].draw_labels

    def distance(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        share: replicas.Share | None = None,
    ) -> tf.Tensor:
        """The sum of the distances; the arguments are those of `Target.distance`."""
        return tf.add_n([target.distance(images, labels, seed, share) for target in self._targets])


class AveragedTarget:
    """A target whose distance averages over past steps, for a fit of many steps.

    The gradient of |E phi - F|^2 is 2 (E phi - F) . grad E phi. The few images of one step say
    little about the first factor, whose noise is larger than the factor. Here a moving average over
    steps takes its place (stochastic compositional gradient descent, Wang, Fang and Liu 2017).

    Make it in the scope of the strategy under which it is used.

    Args:
      target: gives the means, the features and the labels.
    """

    def __init__(self, target: Target):
        self.draw_labels = target.draw_labels
        self._features = target.features
        self._means = target.means
        # One for each group and class. An average that starts at 0 is divided by its weights' sum.
        self._difference = tf.Variable(tf.zeros_like(self._means), trainable=False)
        self._weight = tf.Variable(tf.zeros([*self._means.shape[:2], 1]), trainable=False)
        self.variables = (self._difference, self._weight)

    def distance_so_far(self) -> tf.Tensor:
        """The distance of the averaged features from the released means, float32 []: public."""
        return tf.norm(tf.math.divide_no_nan(self._difference, self._weight))

    def loss(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        share: replicas.Share | None = None,
    ) -> tf.Tensor:
        """A loss whose gradient, not its value, is that of the distance. It moves the average.

        Args:
          images: float32 [n, H, W, C] in [-1, 1], or [m, H, W, C] of a share.
          labels: int32 [n], from `draw_labels`.
          seed: int32 [2], which chooses the group; public.
          share: which of the step's images these are; None: all.

        Returns:
          float32 [].
        """
        groups, num_classes, _ = self._means.shape
        group = tf.random.stateless_uniform([], seed, 0, groups, tf.int32)
        classes, _, counts = tf.unique_with_counts(labels)
        made, variance = _moments(self._features.group(images, group), counts[0], share)
        # The fewer classes take part in a step, the longer ago each of them last took part.
        memory = _MEMORY ** (num_classes / tf.cast(tf.size(classes), tf.float32))
        at = tf.stack([tf.fill(tf.shape(classes), group), classes], axis=1)

        def average(variable, new):
            moved = memory * tf.gather_nd(variable, at) + (1.0 - memory) * new
            replicas.scatter_update(variable, at, moved)
            return moved

        difference = average(self._difference, made - tf.gather_nd(self._means, at))
        weight = average(self._weight, tf.ones([tf.shape(classes)[0], 1]))
        loss = 2.0 * tf.reduce_sum(tf.stop_gradient(difference / weight) * made)
        # These images are in both factors, which adds their variance: subtracted as in `mmd_loss`.
        return loss - tf.reduce_sum((1.0 - memory) / weight[:, 0] * variance)
