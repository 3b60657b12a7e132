"""Times are of one step, and ratios are taken within a round."""

import pytest

from tf_efsgd.benchmark import timing


def test_times_are_of_one_step_in_alternating_order(monkeypatch):
    now, order = [0.0], []

    def runs(name, seconds):
        def run(steps):
            order.append((name, steps))
            now[0] += steps * seconds

        return run

    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])
    found = timing.measure_times({'a': runs('a', 0.03), 'b': runs('b', 0.7)}, rounds=2)
    assert found == {'a': pytest.approx([0.03] * 2), 'b': pytest.approx([0.7] * 2)}
    assert order[:4] == [('a', 1), ('a', 1), ('b', 1), ('b', 1)]
    assert order[4:] == [('a', 7), ('b', 1), ('b', 1), ('a', 7)]


def test_ratios_are_taken_within_a_round():
    # The machine is three times slower in the second round.
    assert timing.spread_of_ratios([2.2, 6.0, 2.0], [1.0, 3.0, 1.0]) == timing.Spread(2.0, 2.0, 2.2)
