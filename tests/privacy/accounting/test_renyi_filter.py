"""The budget of a run whose mechanism was changed after its start."""

import dataclasses
import fractions

import dp_accounting
import pytest
from dp_accounting import rdp
from helpers.events import DELTA
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_efsgd.privacy import accounting


def test_after_a_change_the_budget_of_the_filter_is_the_headline():
    event, other = accounting.step_event(0.3, 2.0), accounting.step_event(0.2, 3.0)
    planned = accounting.compute_epsilon(event, 20, DELTA)
    for spent in ([(event, 7), (other, 5)], [(event, 12)]):
        epsilon = accounting.compute_spent(spent, DELTA, planned=(event, 20), changed=True)
        assert epsilon.accountant == 'RDP filter'
        assert epsilon.headline == epsilon.rdp_filter == pytest.approx(planned.rdp, rel=1e-12)
        assert epsilon.pld < epsilon.rdp < epsilon.headline


def test_the_filter_is_at_one_order_fixed_by_the_plan():
    event = accounting.step_event(0.3, 2.0)
    allowed = accounting.RenyiFilter.of_plan(event, 20, DELTA)
    accountant = rdp.RdpAccountant().compose(dp_accounting.SelfComposedDpEvent(event, 20))
    epsilon, order = accountant.get_epsilon_and_optimal_order(DELTA)
    assert allowed.order == order
    assert epsilon <= allowed.epsilon <= epsilon * (1 + 1e-9)
    assert [allowed.steps_left([(event, n)], event) for n in (0, 7, 20, 21)] == [20, 13, 0, 0]
    # Any mixture of events: as many steps as keep the Renyi divergence within the budget.
    other = accounting.step_event(0.2, 3.0)
    left = allowed.steps_left([(event, 7)], other)
    assert left > 13

    def epsilon(more):
        composed = dp_accounting.ComposedDpEvent(
            [
                dp_accounting.SelfComposedDpEvent(event, 7),
                dp_accounting.SelfComposedDpEvent(other, more),
            ]
        )
        at_order = rdp.RdpAccountant(orders=[allowed.order]).compose(composed)
        return at_order.get_epsilon(DELTA)

    assert epsilon(left) <= allowed.epsilon < epsilon(left + 1)


@pytest.mark.parametrize('missing', [1e-10, 7e-10, 1e-6])
def test_the_filter_never_rounds_up(missing):
    event = accounting.step_event(0.3, 2.0)
    allowed = accounting.RenyiFilter.of_plan(event, 20, DELTA)
    # A budget that is short of 20 steps by a billionth of one.
    short = fractions.Fraction(missing) * allowed.budget / 20
    short = dataclasses.replace(allowed, budget=allowed.budget - short)
    assert short.steps_left([], event) == 19
    assert short.steps_left([(event, 7)], event) == 12


@settings(deadline=None, max_examples=40)
@given(
    st.floats(1e-4, 0.5), st.floats(0.5, 5.0), st.sampled_from([3, 20, 8_000, 450_000]),
    st.floats(0.0, 1.0), st.floats(0.0, 1.0),
)  # fmt: skip
def test_an_unchanged_event_gets_its_planned_steps(q, sigma, steps, first, second):
    event = accounting.step_event(q, sigma)
    allowed = accounting.RenyiFilter.of_plan(event, steps, DELTA)
    spent = [int(first * steps)]
    spent.append(int(second * (steps - spent[0])))
    left = allowed.steps_left([(event, count) for count in spent], event)
    assert left == steps - sum(spent)
