"""Ranges: what they hold, and what is said of them."""

import math

import pytest

from tf_efsgd.config import fields


@pytest.mark.parametrize(
    ('bounds', 'inside', 'outside', 'said'),
    [
        ({'at_least': 2}, [2, 3, 10**9], [1, -2], 'at least 2'),
        ({'above': 0.0}, [1e-300, 7.5], [0.0, -1.0], 'above 0'),
        ({'at_least': 0, 'below': 1.0}, [0, 0.999], [1.0, -0.1], 'at least 0 and below 1'),
        ({'at_least': 1, 'at_most': 64}, [1, 64], [0, 65], 'at least 1 and at most 64'),
        ({'above': 0.0, 'below': 1.0}, [0.3], [0.0, 1.0], 'above 0 and below 1'),
        ({'at_least': 1e-9, 'at_most': 1e9}, [1e-9, 1e9], [9e-10, 1.1e9], 'at least 1e-09 and at'),
    ],
)
def test_a_bound_is_included_or_not_by_its_name(bounds, inside, outside, said):
    allowed = fields.Range(**bounds)
    for value in inside:
        assert allowed.holds(value), value
    for value in [*outside, math.nan, math.inf, -math.inf]:
        assert not allowed.holds(value), value
    assert str(allowed).startswith(said)
