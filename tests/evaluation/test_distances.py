"""Distances between sets of features: golden values, closed forms, and that wrong ones differ."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_efsgd.evaluation import distances


def _normal(seed, count, mean=0.0, scale=1.0, dimensions=4):
    return np.random.default_rng(seed).normal(mean, scale, [count, dimensions])


def _with_moments(features, mean, covariance):
    """The features, moved so that their mean and covariance are exactly these."""
    centred = features - features.mean(0)
    whitened = centred @ np.linalg.inv(scipy.linalg.sqrtm(np.cov(centred, rowvar=False))).real
    return whitened @ scipy.linalg.sqrtm(covariance).real + mean


# Fréchet distance.


@pytest.mark.parametrize('count', [3, 500], ids=['singular', 'full rank'])
def test_frechet_distance_of_a_set_to_itself_is_zero(count):
    features = _normal(1, count, 3.0, 7.0, dimensions=20)
    assert distances.frechet_distance(features, features) == pytest.approx(0, abs=1e-4)
    assert distances.frechet_distance(features, features + 0.3) == pytest.approx(1.8, rel=1e-4)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    # With commuting covariances: |m - m'|^2 + sum (s - s')^2 over standard deviations s.
    one = _with_moments(_normal(1, 50, dimensions=3), [0, 0, 0], np.diag([1.0, 4.0, 0.25]))
    other = _with_moments(_normal(2, 70, dimensions=3), [1, 0, 2], np.diag([9.0, 1.0, 0.25]))
    assert distances.frechet_distance(one, other) == pytest.approx(5 + 4 + 1 + 0)
    # A wrong covariance term would be seen: without roots it is 64 + 9, without any it is 0.
    assert distances.frechet_distance(other, one) == pytest.approx(10)


def test_frechet_distance_is_that_of_the_matrix_root():
    one, other = (_normal(seed, 200, dimensions=6) @ _normal(seed + 9, 6, dimensions=6)
                  for seed in (1, 2))  # fmt: skip
    covariances = [np.cov(features, rowvar=False) for features in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((one.mean(0) - other.mean(0)) ** 2) + np.trace(sum(covariances) - 2 * root)
    assert distances.frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_with_fewer_images_than_features_is_real_and_right():
    # Two points each, on one line: variances 2 and 8, so (sqrt 2 - sqrt 8)^2, at means 0.
    direction = np.eye(40)[:1]
    one, other = ([[1.0], [-1.0]] @ direction, [[2.0], [-2.0]] @ direction)
    assert distances.frechet_distance(one, other) == pytest.approx(2, rel=1e-6)
    dead = np.zeros([5, 40])
    assert distances.frechet_distance(dead, dead) == 0
    assert distances.frechet_distance(dead, one) == pytest.approx(2)


def test_float32_features_of_any_size_lose_nothing():
    features = _normal(3, 300, 1000.0, 0.1).astype(np.float32)
    other = features + np.float32(0.5)
    assert distances.frechet_distance(features, other) == pytest.approx(1, rel=1e-2)


# Kernel distance.


def test_kernel_distance_of_one_distribution_is_zero_on_average_and_not_of_two():
    values = [
        distances.kernel_distance(_normal(2 * i, 60), _normal(2 * i + 1, 60), subsets=1)
        for i in range(200)
    ]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0 < max(values), 'unbiased, so on both sides'
    # The biased estimate would be off by far more.
    biased = np.mean([np.mean((np.sum(_normal(i, 60) ** 2, 1) / 4 + 1) ** 3) for i in range(20)])
    assert biased / 60 > 10 * error
    moved = distances.kernel_distance(_normal(0, 60), _normal(1, 60, mean=0.7), subsets=1)
    assert moved > 10 * np.std(values)


def test_kernel_distance_by_hand():
    # d = 1: k(x, y) = (xy + 1)^3. Pairs within: k(0, 1) = 1, k(1, 2) = 27; across: 1, 1, 8, 27.
    one, other = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    expected = 1 + 27 - 2 * (1 + 1 + 8 + 27) / 4
    assert distances.kernel_distance(one, other) == pytest.approx(expected)


def test_kernel_distance_takes_subsets_of_a_seed():
    one, other = _normal(1, 300), _normal(2, 300)

    def distance(seed):
        return distances.kernel_distance(one, other, subset_size=50, seed=seed)

    assert distance(1) == distance(1) != distance(2)


# Precision and recall.


def test_precision_and_recall_of_identical_and_of_distant_sets():
    features = _normal(1, 100).astype(np.float32)
    assert distances.precision_recall(features, features) == (1, 1)
    assert distances.precision_recall(features, features + 100) == (0, 0)


def test_precision_and_recall_are_not_exchanged():
    real = np.concatenate([_normal(1, 100), _normal(2, 100, mean=50)])
    generated = _normal(3, 200)  # one of two modes: precise, and half is missing
    precision, recall = distances.precision_recall(real, generated)
    assert precision > 0.8
    assert 0.3 < recall <= 0.5
    assert distances.precision_recall(generated, real) == (recall, precision)


def test_radii_are_those_of_the_kth_neighbour():
    real = np.array([[0.0], [1.0], [3.0], [7.0]])
    generated = np.array([[7.9], [9.0], [9.1], [11.1]])
    # Nearest neighbours of the real ones: 1, 1, 2, 4 away, so the last covers 3 to 11.
    assert distances.precision_recall(real, generated, k=1) == (0.75, 0.25)
    # Second ones: 3, 2, 3, 6 away: 1 to 13.
    assert distances.precision_recall(real, generated, k=2).precision == 1.0


# Inception score.


@pytest.mark.parametrize('classes', [2, 7])
def test_inception_score_of_one_hot_is_the_number_of_classes_and_of_uniform_one(classes):
    one_hot = np.tile(np.eye(classes), [3, 1])
    assert distances.inception_score(one_hot) == pytest.approx(classes)
    assert distances.inception_score(np.full([20, classes], 1 / classes)) == pytest.approx(1)
    assert distances.inception_score(one_hot[:1]) == pytest.approx(1)


def test_inception_score_by_hand():
    p = np.array([[0.9, 0.1], [0.5, 0.5]])
    terms = 0.9 * np.log(0.9 / 0.7) + 0.1 * np.log(0.1 / 0.3) + 0.5 * np.log(0.25 / 0.21)
    assert distances.inception_score(p) == pytest.approx(np.exp(terms / 2))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 9))
def test_inception_score_is_between_one_and_the_number_of_classes(count, classes, seed):
    p = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), count)
    assert 1 - 1e-9 <= distances.inception_score(p) <= classes + 1e-9


# Nearest neighbours.


def test_nearest_reference_of_each_query():
    references = np.array([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    found, indices = distances.nearest(references, np.array([[3.0, 4.5], [9.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [0.5, 1, 0], atol=1e-7)
    np.testing.assert_array_equal(indices, [1, 2, 0])


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: distances.frechet_distance(np.zeros([1, 3]), np.zeros([9, 3])), 'at least 2 rows'),
        (lambda: distances.frechet_distance(np.zeros([9, 2]), np.zeros([9, 3])), r'\(9, 2\)'),
        (lambda: distances.frechet_distance(np.full([9, 2], np.nan), np.zeros([9, 2])), 'finite'),
        (lambda: distances.kernel_distance(_normal(1, 9), _normal(2, 9), subsets=0), 'subsets=0'),
        (lambda: distances.precision_recall(_normal(1, 3), _normal(2, 9)), 'at least 4 rows'),
        (lambda: distances.precision_recall(_normal(1, 9), _normal(2, 9), k=0), 'k=?.*0'),
        (lambda: distances.inception_score(np.full([3, 2], 0.6)), 'sum to 1'),
        (lambda: distances.inception_score(np.zeros([0, 2])), r'\(0, 2\)'),
        (lambda: distances.nearest(np.zeros([0, 2]), np.zeros([1, 2])), 'at least 1'),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
