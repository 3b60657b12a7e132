"""A private warm start: one release of per-class feature sums, and a generator fitted to them.

F = sum_i phi(x_i) (x) onehot(y_i) + N(0, sigma_w^2 I) over ALL records; then the generator is
trained so that the mean features of its images of each class come near those of F, that is, so
that their maximum mean discrepancy (MMD) falls. In the line of DP-MERF (Harder et al. 2021), with
random Fourier features of windows beside those of whole images.

Formal guarantees:
  - F is released on a grid with steps of gamma = sigma_w / s (`grid`). Every record's contribution
    is rounded to integers before it is added, and its squared norm, computed exactly, is at most
    (1 / gamma)^2: so one record moves F by at most 1, its class block alone, whatever it holds. The
    sum of integers is exact in any order, over any parts.
  - The noise is integers (`noise.integers`): `release` is
    `GaussianDpEvent(grid.effective_noise_multiplier(sigma_w, None))`, without sampling.
  - phi is fixed before it sees a record: that of `FeatureMap` by public constants and the image
    shape, that of `learned_features` by what an earlier release showed, too.
  - A record whose features are not finite counts as zero, by selection.
  - No number that depends on the records leaves `release` but the noisy F: class means are F
    divided by a noisy count, which is a coordinate of F itself. `fit` sees F alone.

Tested, not proven: that a record's features, which are float32, do not depend on which other
records are computed beside them, nor on its place among them.
"""

from __future__ import annotations

import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd.privacy import grid, noise

# Of phi and of the form it is released in: other versions' releases mean nothing to this one.
VERSION = 3
# Public seed of the random features: the same for all runs.
_SEED = (2601, 15061)
# Larger images are pooled to this first: fine detail would drown in the noise.
_MAX_SIZE = 32
# The features stand for a kernel on whole images and one on windows of half their size, a quarter
# of it apart, each the mean of so many groups of so many random frequencies.
_WHOLE, _HALF = 1000, 300
GROUPS = 8
# Standard deviation of the Gaussian kernels over the root of the number of pixels, which are in
# [0, 1].
_BANDWIDTH = 0.18
# Windows of so many pixels at most are projected by a convolution.
_SMALL_WINDOW = 25
# Of the constant feature that counts the records of a class.
_COUNT = 0.1
# Rounding to the grid shall not carry a usual record beyond norm 1.
_BOUND = 1.0 - 1e-5
_RECORDS_PER_PART = 512
# By so much a record's contribution that is too long is scaled down further, time after time.
_SHRINK = 1.0 - 2.0**-20
# A class is never taken for smaller than this part of an even share.
_SMALLEST_CLASS = 0.01

_IMAGES_PER_STEP = 100
_LEAST_IMAGES_PER_CLASS = 4
LEARNING_RATE = 4e-3
_LAST_LEARNING_RATE = 0.05
_ADAM_BETA_1 = 0.5
_AVERAGE = 0.99
# Of the moving average of differences, per step that a group and class have part in.
_MEMORY = 0.8


class GroupedFeatures(tf.Module):
    """Bounded random features of images, phi, in groups.

    All groups stand for the same kernels, so a step of `fit` can make do with one of them. Beside
    them there is a constant, which counts. A subclass gives `group`, and calls `_measure` when
    that can be called.
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
        share = math.sqrt((1.0 - _COUNT**2) / self.groups)
        groups = [share * self.group(images, group) for group in range(self.groups)]
        count = tf.fill([tf.shape(images)[0], 1], _COUNT)
        return _bounded(tf.concat([*groups, count], axis=-1))

    @tf.function(reduce_retracing=True)
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


class FeatureMap(GroupedFeatures):
    """Random features of pixels: those of the first release.

    Random Fourier features (Rahimi and Recht 2007) of two Gaussian kernels: on the whole image,
    for what belongs together in it, and, the mean over positions, on windows, for its strokes.

    Args:
      image_shape: (H, W, C).
    """

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__(name='features')
        height, width, channels = image_shape
        self._pooling = math.ceil(max(height, width) / _MAX_SIZE)
        whole = [math.ceil(size / self._pooling) for size in (height, width)]
        half = [math.ceil(size / 2) for size in whole]
        seeds = tf.random.experimental.stateless_split(_SEED, 2)
        self._frequencies = []
        for window, count, seed in zip((whole, half), (_WHOLE, _HALF), tf.unstack(seeds)):
            pixels = math.prod(window) * channels
            normal = tf.random.stateless_normal([GROUPS, pixels, count], seed)
            normal /= _BANDWIDTH * pixels**0.5
            self._frequencies.append(tf.reshape(normal, [GROUPS, *window, channels, count]))
        self._measure(image_shape)

    def group(self, images: tf.Tensor, group: tf.Tensor | int) -> tf.Tensor:
        """The features of one group alone.

        Args:
          images: float32 [n, H, W, C] in [-1, 1].
          group: int32 [] in [0, number of groups).

        Returns:
          float32 [n, group_size], rows of norm 1.
        """
        images = (images + 1.0) / 2.0
        if self._pooling > 1:
            images = tf.nn.avg_pool2d(images, self._pooling, self._pooling, 'SAME')
        inputs = [images] * len(self._frequencies)
        return fourier_features(inputs, [frequencies[group] for frequencies in self._frequencies])


def fourier_features(inputs: Sequence[tf.Tensor], frequencies: Sequence[tf.Tensor]) -> tf.Tensor:
    """Random Fourier features of the mean of several kernels on windows, of norm 1.

    Args:
      inputs: for each kernel what it looks at, float32 [n, H, W, C].
      frequencies: for each kernel float32 [h, w, C, count]: it looks at all windows of h times w,
        half of that apart.

    Returns:
      float32 [n, size]; a size is the sum of 2 x windows x count.
    """
    parts = []
    for values, frequency in zip(inputs, frequencies):
        angles = _flat(_project_windows(values, frequency))
        # cos^2 + sin^2 = 1 in every pair, so the length is a constant.
        scale = (len(inputs) * angles.shape[-1]) ** -0.5
        parts += [scale * tf.cos(angles), scale * tf.sin(angles)]
    return tf.concat(parts, axis=-1)


def _project_windows(values: tf.Tensor, frequency: tf.Tensor) -> tf.Tensor:
    """Products of [h, w, C, count] with windows of [n, H, W, C]: [n, windows, count], or in 2-D."""
    height, width, _, count = frequency.shape
    strides = [max(1, height // 2), max(1, width // 2)]
    if height * width <= _SMALL_WINDOW:
        return tf.nn.conv2d(values, frequency, strides, 'VALID')
    # The gradient of a convolution with a large kernel is slow; that of many slices is, too.
    windows = _windows(values, height, width, strides)
    angles = tf.reshape(windows, [-1, windows.shape[-1]]) @ tf.reshape(frequency, [-1, count])
    return tf.reshape(angles, [-1, windows.shape[1], count])


def _windows(images: tf.Tensor, height: int, width: int, strides: list[int]) -> tf.Tensor:
    """All windows of a size, as float32 [n, windows, height width C]."""
    rows, columns = (
        range(0, size - window + 1, stride)
        for size, window, stride in zip(images.shape[1:3], (height, width), strides)
    )
    windows = [images[:, r : r + height, c : c + width] for r in rows for c in columns]
    return tf.stack([_flat(window) for window in windows], axis=1)


def _flat(features: tf.Tensor) -> tf.Tensor:
    return tf.reshape(features, [tf.shape(features)[0], math.prod(features.shape[1:])])


def _bounded(features: tf.Tensor) -> tf.Tensor:
    """Rows divided by max(1, norm), a little below 1; rows that are not finite are 0."""
    finite = tf.reduce_all(tf.math.is_finite(features), axis=-1, keepdims=True)
    features = tf.where(finite, features, tf.zeros_like(features))
    norms = tf.norm(features, axis=-1, keepdims=True)
    return features * (_BOUND / tf.maximum(1.0, norms))


def release(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    features: GroupedFeatures,
    noise_multiplier: float,
    noise_source: noise.NoiseKey | noise.SecureNoise,
) -> np.ndarray:
    """Releases F, once: the only look at the records.

    Every part of the records has the same size, the last one with rows that count nowhere, so that
    a record's features are computed alike however many others there are.

    Args:
      images: uint8 [N, H, W, C], all records.
      labels: int32 [N] in [0, num_classes).
      num_classes: number of labels.
      features: phi.
      noise_multiplier: sigma_w >= 0; 0 releases F as it is, without privacy.
      noise_source: one of its own, as `optimizer.new_noise` makes it.

    Returns:
      Noisy sums, int64 [num_classes, features.size], in steps of
      `grid.class_sum_step(noise_multiplier)`.

    Raises:
      ValueError: if there are more features than are accounted for.
    """
    if features.size > grid.LARGEST_FEATURES:
        raise ValueError(
            f'A release has at most {grid.LARGEST_FEATURES} features for a class: so many draws '
            f'are accounted. Received: {features.size}.'
        )
    sums = sum_over_records(images, labels, num_classes, features, noise_multiplier)
    if noise_multiplier:
        step_noise = noise_source.next([tf.TensorShape(sums.shape)])
        sums += _integers(sums.shape, step_noise).numpy()
    return sums


def sum_over_records(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    features: GroupedFeatures,
    noise_multiplier: float,
) -> np.ndarray:
    """F without its noise, exact, in steps of its grid. PRIVATE: only `release` and audits see it.

    Args:
      images: as in `release`.
      labels: as in `release`.
      num_classes: number of labels.
      features: phi.
      noise_multiplier: of the release, which its grid depends on.

    Returns:
      int64 [num_classes, features.size].
    """
    sums = np.zeros([num_classes, features.size], np.int64)
    bounds = (
        tf.constant(grid.class_sum_step(noise_multiplier), tf.float64),
        tf.constant(grid.largest_squared_norm(noise_multiplier), tf.int64),
    )
    for start in range(0, len(images), _RECORDS_PER_PART):
        part = images[start : start + _RECORDS_PER_PART]
        missing = _RECORDS_PER_PART - len(part)
        padded = np.pad(part, [(0, missing), (0, 0), (0, 0), (0, 0)])
        of_part = np.pad(labels[start : start + len(part)], (0, missing), constant_values=-1)
        sums += features.class_sums(
            tf.constant(padded), tf.constant(of_part), num_classes, *bounds
        ).numpy()
    return sums


@tf.function
def _integers(shape, step_noise):
    """In a graph: the key is an argument there, never a constant."""
    # The source is used for nothing else, so there are no purposes to tell apart.
    return noise.integers(shape, step_noise=step_noise, purpose=noise.CLIPPED_GRAD_SUM, variable=0)


def class_means(
    sums: np.ndarray, noise_multiplier: float, dataset_size: int, groups: int = GROUPS
) -> np.ndarray:
    """Mean features of each class and group: post-processing of a release.

    Args:
      sums: F, int64 [classes, features], as `release` returns it; the last feature is the constant
        that counts.
      noise_multiplier: of the release.
      dataset_size: declared number of records.
      groups: of the features, `GroupedFeatures.groups`.

    Returns:
      float32 [groups, classes, group_size], in units of `GroupedFeatures.group`, each class divided
      by its noisy count.
    """
    sums = sums * grid.class_sum_step(noise_multiplier)
    even = dataset_size / len(sums)
    counts = np.maximum(sums[:, -1:] / (_COUNT * _BOUND), _SMALLEST_CLASS * even)
    share = _BOUND * math.sqrt((1.0 - _COUNT**2) / groups)
    means = (sums[:, :-1] / (share * counts)).astype(np.float32)
    return np.moveaxis(means.reshape(len(sums), groups, -1), 1, 0)


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


class Target:
    """What a generator is fitted to: the released means, and which images are held against them.

    A step makes about 100 images: few of each class, or of some of very many classes.

    Args:
      features: phi, the one of the release.
      means: float32 [groups, classes, features.group_size], from `class_means`.
    """

    def __init__(self, features: GroupedFeatures, means: tf.Tensor | np.ndarray):
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


def fit(
    generator: tf.keras.Model,
    draw_inputs: Callable[..., dict[str, tf.Tensor]],
    targets: Sequence[Target],
    *,
    steps: int,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    first_step: int = 0,
    checkpoint_dir: str | os.PathLike | None = None,
    checkpoint_steps: int = 500,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[np.ndarray]:
    """Fits a generator to released class means: post-processing, it costs no privacy.

    A fit that was cut short goes on from its last checkpoint, as if it had not been.

    Args:
      generator: as for `EFSGDGan`, outside any distribution strategy; it is trained.
      draw_inputs: as for `EFSGDGan`.
      targets: the released class means; the loss is the sum of the distances to them.
      steps: generator steps, >= 1; the learning rate falls over them.
      learning_rate: of Adam in the first step, > 0.
      seed: of latents; public.
      first_step: number of steps before these with this seed: latents of their own.
      checkpoint_dir: of the checkpoints of any fits, made when missing; None for none. They are
        functions of `targets` and public settings, and as public.
      checkpoint_steps: between two checkpoints, >= 1; the last step is followed by one, too.
      progress: wraps the iterable of step numbers, e.g. `tqdm.tqdm`.

    Returns:
      The moving average of the generator's weights over the last steps, as `get_weights`.

    Raises:
      tf.errors.OpError: if a checkpoint cannot be written.
    """
    rate = tf.keras.optimizers.schedules.CosineDecay(learning_rate, steps, _LAST_LEARNING_RATE)
    optimizer = tf.keras.optimizers.legacy.Adam(rate, beta_1=_ADAM_BETA_1)
    # Shorter at first, so that random weights are soon forgotten.
    average = tf.train.ExponentialMovingAverage(_AVERAGE, optimizer.iterations)
    variables = generator.trainable_variables
    averaged = [AveragedTarget(target) for target in targets]

    @tf.function
    def step(number):
        seeds = tf.random.experimental.stateless_split(tf.stack([seed, number]), 3)
        labels = averaged[0].draw_labels(seeds[0])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            images = generator(draw_inputs(generator, labels, seeds[1]), training=True)
            loss = tf.add_n([target.loss(images, labels, seeds[2]) for target in averaged])
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        average.apply(variables)

    average.apply(variables)  # Makes its variables, and so far nothing else.
    checkpoints = None
    if checkpoint_dir is not None:
        checkpoints = tf.train.CheckpointManager(
            tf.train.Checkpoint(
                generator=generator,
                optimizer=optimizer,
                averages=[average.average(v) for v in variables],
                targets=[target.variables for target in averaged],
            ),
            pathlib.Path(checkpoint_dir) / _digest(targets, first_step, steps, learning_rate, seed),
            max_to_keep=1,
            step_counter=optimizer.iterations,
            checkpoint_interval=checkpoint_steps,
        )
        _restore(checkpoints)
    done = int(optimizer.iterations.numpy())
    for number in progress(range(first_step + done, first_step + steps)):
        step(tf.constant(number))
        if checkpoints is not None:
            is_last = number == first_step + steps - 1
            checkpoints.save(optimizer.iterations, check_interval=not is_last)
    averages = {v.ref(): average.average(v).numpy() for v in variables}
    return [averages.get(v.ref(), v.numpy()) for v in generator.weights]


def _digest(targets: Sequence[Target], *settings) -> str:
    """Tells the fit that a checkpoint is of from others."""
    digest = hashlib.sha256(repr(settings).encode())
    for target in targets:
        digest.update(target.means.numpy().tobytes())
    return digest.hexdigest()[:16]


def _restore(checkpoints: tf.train.CheckpointManager) -> None:
    """Goes on from the last checkpoint if there is one and it is whole."""
    path = checkpoints.latest_checkpoint
    if path is None:
        return
    try:  # What a crash or a bad disk damaged must not be found out half way.
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, ValueError, IndexError):  # Of the reader: a file that ends early.
        print(f'WARNING: checkpoint {path} is damaged: the fit starts anew.')
        return
    # A fit that is done takes no step, so Adam never asks for its moments; no warning of that.
    checkpoints.checkpoint.restore(path).expect_partial()
