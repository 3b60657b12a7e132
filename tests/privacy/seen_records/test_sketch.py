"""Common records are found, or estimated as well as documented."""

import json
import math

import numpy as np
import pytest
from helpers.seen import counts_of, digests_of, start_run

from tf_efsgd.privacy import seen_records


def test_up_to_ten_thousand_records_a_single_common_one_is_found(folder):
    start_run(folder, 'one', digests_of(0, 10_000))
    others = start_run(folder, 'two', digests_of(9999, 70_000))
    assert counts_of(others) == [('one', 1, True)]
    assert others.lines()[0].startswith('1 of these records was used by run one')


def test_one_record_above_is_no_longer_exact(folder):
    start_run(folder, 'one', digests_of(0, 10_001))
    others = start_run(folder, 'two', digests_of(0, 10_001))
    assert counts_of(others) == [('one', 10_000, False)]
    assert others.lines()[0].startswith('about 10,000 of these records were used')


@pytest.mark.parametrize(
    ('common', 'size'), [(600, 60_000), (600, 700), (54_321, 60_000), (60_000, 60_000)]
)
def test_the_number_of_common_records_of_large_sets_is_estimated(folder, common, size):
    """Also when one set is much smaller than the other; to five standard deviations."""
    start_run(folder, 'one', digests_of(0, 60_000))
    others = start_run(folder, 'two', digests_of(60_000 - common, 60_000 - common + size))
    ((_, count, is_exact),) = counts_of(others)
    rate = 10_000 / 60_000
    # And half of the second digit.
    margin = 5 * math.sqrt(common * (1 - rate) / rate) + 0.05 * common
    assert not is_exact and abs(count - common) < margin
    assert margin < common, 'the test must be able to fail'


def test_the_estimate_is_not_biased_and_misses_as_often_as_documented():
    """600 of 60,000 have a mean of 600 and a deviation of 55; 10 of them are missed 1 time in 6."""
    rng, means, missed = np.random.default_rng(3), [], 0
    for _ in range(60):
        hashes = rng.integers(0, 2**56, 60_000).astype(np.uint64)
        sketch = seen_records.Sketch.of(hashes)
        others = rng.integers(0, 2**56, 5000).astype(np.uint64)
        means.append(sketch.count(np.concatenate([hashes[:600], others])))
        missed += sum(not sketch.count(hashes[i : i + 10]) for i in range(600, 1600, 10))
    assert abs(np.mean(means) - 600) < 5 * 55 / math.sqrt(60)
    assert 40 < np.std(means) < 75
    assert 0.13 < missed / 6000 < 0.19


def test_a_whole_sketch_within_another_makes_that_no_whole_one():
    hashes = np.random.default_rng(1).integers(0, 2**56, 60_000).astype(np.uint64)
    large = seen_records.Sketch.of(hashes)
    small = seen_records.Sketch.of(large.kept[:100])
    assert small.is_whole
    for union in (large.union(small), small.union(large)):
        assert union.below == large.below and union.count(hashes) == 60_000


def test_a_sketch_is_read_as_it_was_written():
    hashes = np.unique(np.random.default_rng(1).integers(0, 2**56, 12_000).astype(np.uint64))
    hashes[0], hashes[-1] = 0, 2**56 - 1
    for part in (hashes, hashes[:1], hashes[[0, -1]]):
        sketch = seen_records.Sketch.of(part)
        again = seen_records.Sketch.from_json(json.loads(json.dumps(sketch.to_json())))
        np.testing.assert_array_equal(again.kept, part[:10_000])
        assert again.kept.dtype == np.uint64 and again.below == sketch.below
    assert not seen_records.Sketch.of(hashes).is_whole
