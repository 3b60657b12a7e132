"""Sums of what runs may spend are never below the exact ones."""

import fractions
import math

import numpy as np
import pytest
from helpers.seen import NONE, digests_of, start_run

from tf_efsgd.privacy import seen_records
from tf_efsgd.privacy.seen_records import IMAGE, PERSON, Promise, promises


def test_sums_are_never_below_the_exact_ones():
    rng = np.random.default_rng(7)
    for values in rng.random((200, 5)) * 10.0 ** rng.integers(-9, 3, (200, 5)):
        total = promises.sum_up(values)
        exact = sum(map(fractions.Fraction, values))
        assert fractions.Fraction(total) >= exact
        assert fractions.Fraction(math.nextafter(total, 0)) < exact


@pytest.mark.parametrize(
    ('value', 'shown'),
    [(9.99983, '10'), (20.0, '20'), (1.10004, '1.101'), (3e-5, '3e-5'), (12345.1, '12,350')],
)
def test_a_bound_is_shown_rounded_up(value, shown):
    assert promises.rounded_up(value) == shown


def test_a_run_without_a_proven_epsilon_leaves_none_together(folder):
    start_run(folder, 'one', digests_of(0, 50), NONE)
    others = start_run(folder, 'two', digests_of(0, 50))
    first, together = others.lines()
    assert 'with no proven ε. If nothing of that run' in first and '--remove=one' in first
    assert together == 'Together with this run: no ε holds.'
    assert others.to_statement()['together']['epsilon'] is None
    with pytest.raises(seen_records.SeenRecordsError, match='no ε holds. Nothing is left'):
        start_run(folder, 'three', digests_of(0, 50), budget=1e9)
    with pytest.raises(seen_records.SeenRecordsError, match='this run alone may spend no proven ε'):
        start_run(folder, 'four', digests_of(50, 60), NONE, budget=1e9)


def test_deltas_that_add_up_to_one_leave_nothing():
    use = seen_records.Use('one', 'x', '', Promise(1.0, 0.6, IMAGE), 1, True)
    others = seen_records.OtherRuns(Promise(1.0, 0.5, IMAGE), (use,))
    assert not others.together.is_proven
    with pytest.raises(seen_records.SeenRecordsError):
        others.check_budget(100.0)


def test_units_of_privacy_are_not_mixed_up(folder):
    """A person's ε says something of one image, by two steps; an image's nothing of a person."""
    digests = digests_of(0, 30)
    start_run(folder, 'people', digests, Promise(2.0, 1e-6, PERSON))
    image = start_run(folder, 'images', digests, Promise(1.0, 1e-5, IMAGE))
    assert image.together.epsilon == 5.0 and image.together.unit == IMAGE
    delta = 1e-5 + (1 + math.exp(2.0)) * 1e-6
    assert delta <= image.together.delta < delta * (1 + 1e-9)
    assert 'for one person; for one image, as in this run: ε = 4, δ = 8.39e-6' in image.lines()[0]
    person = start_run(folder, 'more people', digests, Promise(1.0, 1e-6, PERSON))
    assert not person.together.is_proven
    assert 'for one image; for one person, as in this run: no proven ε' in '\n'.join(person.lines())
    with pytest.raises(seen_records.SeenRecordsError):
        start_run(folder, 'last', digests, Promise(1.0, 1e-6, PERSON), budget=1000.0)
    assert Promise(900.0, 1e-5, PERSON).in_unit(IMAGE).is_proven is False
