"""The one look at all records: sums of their features by class, released with noise.

F = sum_i phi(x_i) (x) onehot(y_i) + N(0, sigma_w^2 I) over ALL records, in the line of DP-MERF
(Harder et al. 2021). What is made of F afterwards is post-processing: `class_means` here, and the
fit of a generator to them (`training.fit`).

Formal guarantees:
  - F is released on a grid with steps of gamma = sigma_w / s (`grid`). Every record's contribution
    is rounded to integers before it is added, and its squared norm, computed exactly, is at most
    (1 / gamma)^2: so one record moves F by at most 1, its class block alone, whatever it holds. The
    sum of integers is exact in any order, over any parts.
  - The noise is integers (`noise.integers`): `release` is
    `GaussianDpEvent(grid.effective_noise_multiplier(sigma_w, None))`, without sampling.
  - phi is fixed before it sees a record. That of `features.pixels` follows from public constants
    and the image shape; that of `features.learned` also from what an earlier release showed.
  - A record whose features are not finite counts as zero, by selection.
  - No number that depends on the records leaves `release` but the noisy F: class means are F
    divided by a noisy count, which is a coordinate of F itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_efsgd import replicas
from tf_efsgd.privacy import grid, noise
from tf_efsgd.privacy.features.grouped import BOUND, COUNT, GROUPS, GroupedFeatures

# A class is never taken for smaller than this part of an even share.
_SMALLEST_CLASS = 0.01


def release(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    features: GroupedFeatures,
    noise_multiplier: float,
    noise_source: noise.NoiseKey | noise.SecureNoise,
    strategy: tf.distribute.Strategy | None = None,
    all_reduce: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
) -> np.ndarray:
    """Releases F, once: the only look at the records.

    Every part of the records has the same size, `features.rows()`: the last one is filled up with
    rows that count nowhere. So a record's features are computed alike, however many other records
    there are.

    Args:
      images: uint8 [N, H, W, C], all records.
      labels: int32 [N] in [0, num_classes).
      num_classes: number of labels.
      features: phi.
      noise_multiplier: sigma_w >= 0; 0 releases F as it is, without privacy.
      noise_source: from `optimizer.new_noise`, used for nothing else.
      strategy: each of its replicas looks at a part of the records; their sums are added before
        the one noise is. None: one device.
      all_reduce: maps the sums of these records to those of all records, where other processes have
        the rest; exact, since the sums are integers.

    Returns:
      Noisy sums, int64 [num_classes, features.size], in steps of
      `grid.class_sum_step(noise_multiplier)`.

    Raises:
      ValueError: if there are more features than are accounted for.
      alone.NotAlone: if a record's contribution is not its own on this machine, see
        `GroupedFeatures.rows`. No record has been looked at then.
    """
    if features.size > grid.LARGEST_FEATURES:
        raise ValueError(
            f'A release has at most {grid.LARGEST_FEATURES} features for each class: no more draws '
            f'are accounted for. Received: {features.size}.'
        )
    sums = sum_over_records(images, labels, num_classes, features, noise_multiplier, strategy)
    sums = all_reduce(sums)
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
    strategy: tf.distribute.Strategy | None = None,
) -> np.ndarray:
    """F without its noise, exact, in steps of its grid. PRIVATE: only `release` and audits see it.

    Args:
      images: as in `release`.
      labels: as in `release`.
      num_classes: number of labels.
      features: phi.
      noise_multiplier: of the release; the grid depends on it.
      strategy: as in `release`; the sum is the same number on any number of replicas.

    Returns:
      int64 [num_classes, features.size].
    """
    bounds = (
        tf.constant(grid.class_sum_step(noise_multiplier), tf.float64),
        tf.constant(grid.largest_squared_norm(noise_multiplier), tf.int64),
    )

    rows = features.rows()

    def part_at(start):
        part = images[start : start + rows]
        missing = rows - len(part)
        padded = np.pad(part, [(0, missing), (0, 0), (0, 0), (0, 0)])
        of_part = np.pad(labels[start : start + len(part)], (0, missing), constant_values=-1)
        return padded, of_part

    def sums_of_part(images, labels):
        return features.class_sums(images, labels, num_classes, *bounds)

    parts = map(part_at, range(0, len(images), rows))
    shape = (rows, *images.shape[1:])
    made_up = (
        np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8),
        np.arange(rows, dtype=np.int32) % num_classes,
    )
    sums = np.zeros([num_classes, features.size], np.int64)
    of_parts = replicas.map_parts(
        sums_of_part, parts, made_up, strategy, tried=lambda images, _: features.of_records(images)
    )
    for of_part in of_parts:
        sums += of_part
    return sums


@tf.function(autograph=False)
def _integers(shape, step_noise):
    """The noise, drawn in a graph whose key is an argument and never a constant."""
    # The source is used for nothing else, so there are no purposes to tell apart.
    return noise.integers(shape, step_noise=step_noise, purpose=noise.CLIPPED_GRAD_SUM, variable=0)


def class_means(
    sums: np.ndarray, noise_multiplier: float, dataset_size: int, groups: int = GROUPS
) -> np.ndarray:
    """Mean features of each class and group: post-processing of a release.

    Args:
      sums: F, int64 [classes, features], as `release` returns it; the last feature is the constant
        that counts the records.
      noise_multiplier: of the release.
      dataset_size: declared number of records.
      groups: of the features, `GroupedFeatures.groups`.

    Returns:
      float32 [groups, classes, group_size], in units of `GroupedFeatures.group`, each class divided
      by its noisy count.
    """
    sums = sums * grid.class_sum_step(noise_multiplier)
    even = dataset_size / len(sums)
    counts = np.maximum(sums[:, -1:] / (COUNT * BOUND), _SMALLEST_CLASS * even)
    share = BOUND * math.sqrt((1.0 - COUNT**2) / groups)
    means = (sums[:, :-1] / (share * counts)).astype(np.float32)
    return np.moveaxis(means.reshape(len(sums), groups, -1), 1, 0)


def class_counts(sums: np.ndarray, noise_multiplier: float) -> np.ndarray:
    """The noisy numbers of records of the classes: post-processing of a release.

    Args:
      sums: as in `class_means`.
      noise_multiplier: of the release.

    Returns:
      float64 [classes]; noise can make one negative.
    """
    return sums[:, -1] * grid.class_sum_step(noise_multiplier) / (COUNT * BOUND)
