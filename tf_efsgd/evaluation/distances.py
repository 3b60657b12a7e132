"""Computes distances between two sets of features, and scores from class probabilities.

Nothing here knows where features or probabilities come from. Everything is NumPy, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg
from sklearn import metrics, neighbors

_MEGABYTES = 256  # The memory for the distances that are computed at a time.


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1] of the generated images that look real, and of the real ones covered."""

    precision: float
    recall: float


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of two Gaussians fitted to features; the FID if the network is Inception.

    It is |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), see Heusel et al. 2017, section 3. The trace of
    the root is computed as that of (C^(1/2) C' C^(1/2))^(1/2), which is the same number but belongs
    to a symmetric matrix without negative eigenvalues. So nothing becomes complex, even if there
    are fewer images than features and C is singular. Few images bias the distance upwards: compare
    equal numbers.

    Args:
      one: features [n, d] of any float dtype, n >= 2.
      other: features [m, d], m >= 2.

    Returns:
      The distance, at least 0.

    Raises:
      ValueError: if a shape is not as above, or a feature is not finite.
    """
    one, other = _check_features(one, other, at_least=2)
    root, squared = _root(_covariance(one)), _covariance(other)
    middle = scipy.linalg.eigvalsh(_symmetric(root @ squared @ root))
    cross = np.sqrt(_without_rounding(middle)).sum()
    means = np.square(one.mean(0) - other.mean(0)).sum()
    # The trace of C is computed from its root, so that equal rounding on both sides cancels.
    distance = means + np.square(root).sum() + np.trace(squared) - 2 * cross
    return max(0.0, float(distance))


def kernel_distance(
    one: np.ndarray,
    other: np.ndarray,
    *,
    subset_size: int = 1000,
    subsets: int = 20,
    seed: int = 0,
) -> float:
    """Kernel distance; the KID if the network is Inception (Bińkowski et al. 2018, section 4).

    It is the mean, over random subsets, of the unbiased squared MMD under (x·y/d + 1)^3. For two
    samples of one distribution, however small, it is therefore about 0 and may be below.

    Args:
      one: features [n, d], n >= 2.
      other: features [m, d], m >= 2.
      subset_size: number of features of each set in a subset, at least 2; at most all are taken.
      subsets: number of subsets, at least 1.
      seed: seed of the subsets.

    Returns:
      The distance.

    Raises:
      ValueError: if an argument is not as above, or a feature is not finite.
    """
    one, other = _check_features(one, other, at_least=2)
    if subset_size < 2 or subsets < 1:
        raise ValueError(
            'subset_size must be at least 2 and subsets at least 1. '
            f'Received: subset_size={subset_size}, subsets={subsets}.'
        )
    rng = np.random.default_rng(seed)
    size = min(subset_size, len(one), len(other))
    values = [
        _squared_mmd(
            one[rng.choice(len(one), size, replace=False)],
            other[rng.choice(len(other), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values))


def precision_recall(real: np.ndarray, generated: np.ndarray, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A set covers all points that are no farther from one of its members than that member's k-th
    nearest neighbour in the set. Compare equal numbers of both.

    Args:
      real: features [n, d], n > k.
      generated: features [m, d], m > k.
      k: which nearest neighbour to take, at least 1; 3 in the paper.

    Returns:
      Both shares.

    Raises:
      ValueError: if an argument is not as above, or a feature is not finite.
    """
    if k < 1:
        raise ValueError(f'k must be at least 1. Received: {k}.')
    real, generated = _check_features(real, generated, at_least=k + 1)
    return PrecisionRecall(_share_covered(real, generated, k), _share_covered(generated, real, k))


def inception_score(probabilities: np.ndarray) -> float:
    """Inception score: exp of the mean KL divergence of p(y|x) from p(y), Salimans et al. 2016.

    Args:
      probabilities: probabilities of the classes, float [n, classes], n >= 1; each row sums to 1.

    Returns:
      A number between 1 (all images have the same probabilities) and the number of classes (each
      image certainly has one class, and every class is equally frequent).

    Raises:
      ValueError: if a row is not a distribution.
    """
    p = np.asarray(probabilities, np.float64)
    ok = p.ndim == 2 and p.size and np.isfinite(p).all() and (p >= 0).all()
    if not ok or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError(
            'probabilities must be [n, classes] with rows that sum to 1. '
            f'Received: shape {p.shape}.'
        )
    with np.errstate(divide='ignore', invalid='ignore'):
        terms = np.where(p > 0, p * (np.log(p) - np.log(p.mean(0))), 0.0)
    return float(np.exp(terms.sum(1).mean()))


def nearest(references: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest reference of each query.

    Args:
      references: features [n, d], n >= 1.
      queries: features [m, d], m >= 1.

    Returns:
      Euclidean distances, float [m], and the indices of the references, int [m].

    Raises:
      ValueError: if an argument is not as above, or a feature is not finite.
    """
    references, queries = _check_features(references, queries, at_least=1)
    distances, indices = _neighbours(references, 1).kneighbors(queries)
    return distances[:, 0], indices[:, 0]


def _check_features(
    one: np.ndarray, other: np.ndarray, *, at_least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets as float64, or raises ValueError."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    ok = one.ndim == other.ndim == 2 and one.shape[1] == other.shape[1] >= 1
    if not ok or min(len(one), len(other)) < at_least:
        raise ValueError(
            f'Features must be [n, d] and [m, d], with at least {at_least} rows each. '
            f'Received: shapes {one.shape} and {other.shape}.'
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError('Features must be finite. Received: some that are not.')
    return one, other


def _covariance(features: np.ndarray) -> np.ndarray:
    return np.atleast_2d(np.cov(features, rowvar=False))


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _without_rounding(eigenvalues: np.ndarray) -> np.ndarray:
    """Sets eigenvalues that are mere rounding of the largest to 0; none should be below 0."""
    smallest = np.finfo(np.float64).eps * len(eigenvalues) * np.abs(eigenvalues).max()
    return np.where(eigenvalues > smallest, eigenvalues, 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Returns the symmetric square root."""
    values, vectors = scipy.linalg.eigh(covariance)
    return (vectors * np.sqrt(_without_rounding(values))) @ vectors.T


def _squared_mmd(one: np.ndarray, other: np.ndarray) -> float:
    """The squared MMD of Gretton et al. 2012, eq. 3, for two sets of the same size."""
    size, dimensions = one.shape

    def kernel(a, b):
        return (a @ b.T / dimensions + 1) ** 3

    def mean_of_pairs(a):
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (size * (size - 1))

    return float(mean_of_pairs(one) + mean_of_pairs(other) - 2 * kernel(one, other).mean())


def _neighbours(features: np.ndarray, k: int) -> neighbors.NearestNeighbors:
    # In so many dimensions a tree is slower than comparing all pairs.
    return neighbors.NearestNeighbors(n_neighbors=k, algorithm='brute').fit(features)


def _share_covered(members: np.ndarray, points: np.ndarray, k: int) -> float:
    """Returns the share of points that the set of members covers."""
    distances, _ = _neighbours(members, k).kneighbors()  # From each member to the others.
    # The margin is needed because distances are computed in two ways that differ in last digits.
    radii = distances[:, -1] * (1 + 1e-9)

    def covered(chunk: np.ndarray, start: int) -> np.ndarray:
        del start
        return (chunk <= radii).any(axis=1)

    chunks: Iterator[np.ndarray] = metrics.pairwise_distances_chunked(
        points, members, reduce_func=covered, working_memory=_MEGABYTES
    )
    return float(np.concatenate(list(chunks)).mean())
