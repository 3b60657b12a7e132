"""Rows of an array that are read when they are asked for."""

import numpy as np
import pytest

from tf_efsgd.data.poisson import poisson_batches
from tf_efsgd.data.rows import Rows


@pytest.fixture
def array():
    return np.arange(7 * 2 * 2 * 1).astype(np.uint8).reshape(7, 2, 2, 1)


def test_rows_are_those_of_the_array(array):
    numbers = np.array([1, 4, 6])
    rows = Rows(array, numbers)
    assert (len(rows), rows.shape, rows.dtype) == (3, (3, 2, 2, 1), np.uint8)
    np.testing.assert_array_equal(rows[:], array[numbers])
    np.testing.assert_array_equal(rows[1:5], array[[4, 6]])
    np.testing.assert_array_equal(rows[np.array([2, 0])], array[[6, 1]])


def test_the_sampler_takes_rows(array):
    rows = Rows(array, np.array([1, 4]))
    batches = poisson_batches(rows, np.array([3, 5]), 2**32)
    images, labels = next(iter(batches))
    np.testing.assert_array_equal(images, array[[1, 4]])
    assert labels.numpy().tolist() == [3, 5]


def test_no_rows_are_no_records(array):
    rows = Rows(array, np.zeros([0], np.int64))
    images, _ = next(iter(poisson_batches(rows, np.zeros([0], np.int32), 2**31)))
    assert images.shape == (0, 2, 2, 1)
