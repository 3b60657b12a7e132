"""Tests of Poisson sampling: each record by its own coin, nothing truncated or remembered."""

import contextlib
import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tf_efsgd.data import poisson
from tf_efsgd.data.records import DataError

_KEY = 20_240_601
_RECORDS, _Q, _STEPS = 50, 0.06, 20_000
_THRESHOLD = round(_Q * 2**32)
# With a fixed key the draws are fixed; at this level another key fails one time in a million.
_LEVEL = 1e-6


@pytest.fixture(scope='module')
def taken():
    """bool [_STEPS, _RECORDS]: who is in which step."""
    rows = np.zeros([_STEPS, _RECORDS], bool)
    for row, sampled in zip(rows, poisson.sample_indices(_RECORDS, _THRESHOLD, _KEY)):
        row[sampled] = True
    return rows


def _count_p_value(successes, trials, probability):
    """Smallest two-sided binomial p-value, corrected for how many there are."""
    successes = np.atleast_1d(successes)
    law = stats.binom(trials, probability)
    tails = np.minimum(law.cdf(successes), law.sf(successes - 1))
    return min(1.0, 2 * tails.min() * successes.size)


def _size_p_values(sizes, num_records, q):
    """p-values of the mean and of the variance of batch sizes, were they Binomial(N, q)."""
    mean, variance = num_records * q, num_records * q * (1 - q)
    kurtosis = (1 - 6 * q * (1 - q)) / variance
    of_mean = (sizes.mean() - mean) / np.sqrt(variance / sizes.size)
    deviation = np.mean((sizes - mean) ** 2) - variance
    of_variance = deviation / (variance * np.sqrt((2 + kurtosis) / sizes.size))
    return 2 * stats.norm.sf(np.abs([of_mean, of_variance]))


def test_every_record_has_the_right_frequency(taken):
    counts = taken.sum(axis=0)
    assert _count_p_value(counts, _STEPS, _Q) > _LEVEL
    for wrong in (2 / 3, 3 / 2):
        assert _count_p_value(counts, _STEPS, _Q * wrong) < _LEVEL
        # For every single record, not only for the worst.
        assert max(_count_p_value(c, _STEPS, _Q * wrong) for c in counts) < _LEVEL


def test_pairs_and_consecutive_steps_are_independent(taken):
    first, second = np.triu_indices(_RECORDS, 1)
    together = (taken.T.astype(np.int64) @ taken)[first, second]
    assert _count_p_value(together, _STEPS, _Q**2) > _LEVEL
    assert _count_p_value(together, _STEPS, 2 * _Q**2) < _LEVEL
    again = np.sum(taken[:-1] & taken[1:])
    assert _count_p_value(again, (_STEPS - 1) * _RECORDS, _Q**2) > _LEVEL


def test_batch_sizes_are_binomial(taken):
    sizes = taken.sum(axis=1)
    assert min(_size_p_values(sizes, _RECORDS, _Q)) > _LEVEL
    histogram = np.bincount(sizes, minlength=9)
    law = stats.binom(_RECORDS, _Q)
    expected = np.append(law.pmf(range(8)), law.sf(7)) * _STEPS
    observed = np.append(histogram[:8], histogram[8:].sum())
    assert stats.chisquare(observed, expected).pvalue > _LEVEL


def test_other_ways_to_make_batches_are_recognised():
    # Fixed size 3 has the right mean and no variance.
    of_mean, of_variance = _size_p_values(np.full(_STEPS, 3), _RECORDS, _Q)
    assert of_mean > _LEVEL > of_variance
    for wrong in (2 / 3, 3 / 2):
        sizes = np.random.default_rng(5).binomial(_RECORDS, _Q * wrong, _STEPS)
        assert _size_p_values(sizes, _RECORDS, _Q)[0] < _LEVEL
    # In shuffled epochs no record comes back before the others: never twice in a row.
    assert _count_p_value(0, (_STEPS - 1) * _RECORDS, _Q**2) < _LEVEL


def test_empty_batches_occur_as_often_as_they_should(taken):
    empty = np.sum(~taken.any(axis=1))
    assert _count_p_value(empty, _STEPS, (1 - _Q) ** _RECORDS) > _LEVEL
    assert _count_p_value(0, _STEPS, (1 - _Q) ** _RECORDS) < _LEVEL


def test_the_threshold_is_exclusive_and_2_to_the_32_takes_all():
    everyone = poisson.sample_indices(1000, 2**32, _KEY)
    for _ in range(5):
        np.testing.assert_array_equal(next(everyone), np.arange(1000))
    # The draws themselves: a record with draw u is taken at threshold u + 1 and not at u.
    drawn = np.random.Generator(np.random.Philox(key=_KEY)).integers(
        0, 2**32, size=1000, dtype=np.uint32
    )
    u = int(drawn[123])
    assert 123 not in next(poisson.sample_indices(1000, u, _KEY))
    assert 123 in next(poisson.sample_indices(1000, u + 1, _KEY))


def _dataset(threshold=_THRESHOLD, num_records=_RECORDS, **kwargs):
    """Images whose every pixel is the record's number, labels its double."""
    numbers = np.arange(num_records)
    images = np.broadcast_to(numbers[:, None, None, None], [num_records, 2, 3, 1])
    return poisson.poisson_batches(
        images.astype(np.uint8), (2 * numbers).astype(np.int32), threshold, **kwargs
    )


def _labels(dataset, count):
    return [labels.numpy().tolist() for _, labels in dataset.take(count)]


def test_images_match_their_labels_and_the_spec():
    dataset = _dataset(key=_KEY)
    images_spec, labels_spec = dataset.element_spec
    assert (images_spec.dtype, images_spec.shape.as_list()) == (tf.uint8, [None, 2, 3, 1])
    assert (labels_spec.dtype, labels_spec.shape.as_list()) == (tf.int32, [None])
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    batches = list(dataset.take(200))
    assert 0 in {len(labels) for _, labels in batches} and len(batches) == 200
    for images, labels in batches:
        assert images.shape == [len(labels), 2, 3, 1]
        np.testing.assert_array_equal(2 * images.numpy()[:, 1, 2, 0], labels)
        np.testing.assert_array_equal(2 * images.numpy()[:, 0, 0, 0], labels)


@pytest.mark.parametrize('replicas', [2, 3])
def test_shares_of_replicas_are_disjoint_and_together_one_sample(replicas):
    whole = _labels(_dataset(key=_KEY), 100)
    shares = _labels(_dataset(key=_KEY, num_replicas=replicas), 100 * replicas)
    owner = {}
    for step, sampled in enumerate(whole):
        parts = shares[step * replicas : (step + 1) * replicas]
        assert sorted(itertools.chain(*parts)) == sampled  # disjoint: lists, not sets
        for replica, part in enumerate(parts):
            for label in part:
                assert owner.setdefault(label, replica) == replica
    assert set(owner.values()) == set(range(replicas))


def test_fresh_keys_and_fixed_keys():
    # 40 steps of 50 records: equal by chance with probability (q^2 + (1-q)^2)^2000 < 1e-100.
    dataset = _dataset()
    assert _labels(dataset, 40) != _labels(dataset, 40)  # also when iterated again
    assert _labels(dataset, 40) != _labels(_dataset(), 40)
    fixed = _dataset(key=_KEY)
    assert _labels(fixed, 40) == _labels(fixed, 40)


@pytest.mark.parametrize(
    'images',
    [[[1]], tf.zeros([1, 1], tf.uint8), np.array([[None]])],
    ids=['list', 'tensor', 'object'],
)
def test_what_is_no_array_is_refused_at_once(images):
    with pytest.raises(ValueError, match='images must be one NumPy array.*numpy.stack'):
        poisson.poisson_batches(images, [0], expected_batch_size=1)


@pytest.mark.parametrize('labels', [[-1, 0], [0, 2**31]])
def test_labels_that_no_class_has_are_refused(labels):
    with pytest.raises(ValueError, match='labels must be 0 for the first class'):
        poisson.poisson_batches(np.zeros([2, 1]), np.array(labels), expected_batch_size=1)


@pytest.mark.parametrize(('declared', 'is_refused'), [(80, False), (79, True)])
def test_far_more_records_than_declared_are_refused(declared, is_refused):
    """Steps would be larger than those whose rounding is proven."""
    images, labels = np.zeros([100, 2, 2, 1], np.uint8), np.zeros(100, np.int32)
    refused = pytest.raises(DataError, match='more than 1.25 times the 79 records')
    with refused if is_refused else contextlib.nullcontext():
        poisson.poisson_batches(images, labels, expected_batch_size=5, dataset_size=declared)


@pytest.mark.parametrize('threshold', [0, -1, 2**32 + 1])
def test_impossible_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match=f'threshold .*{threshold}'):
        _dataset(threshold)
