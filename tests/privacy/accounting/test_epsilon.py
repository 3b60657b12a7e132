"""Epsilon: golden values, roundings, warm starts and the meter."""

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from helpers.events import DELTA, Q, epsilon_of, exact_pld, hidden_event

from tf_efsgd.privacy import accounting


@pytest.mark.parametrize(
    'sigma, steps, by_pld, by_rdp', [(1.0, 450_000, 9.279, 9.970), (0.5, 8_000, 8.582, 10.048)]
)
def test_golden_values(sigma, steps, by_pld, by_rdp):
    epsilon = epsilon_of(Q, sigma, steps)
    assert epsilon.pld == pytest.approx(by_pld, abs=6e-4)
    assert epsilon.rdp == pytest.approx(by_rdp, abs=6e-4)
    assert (epsilon.headline, epsilon.accountant) == (epsilon.pld, 'PLD')


def test_headline_is_the_smaller_bound():
    smaller_rdp = accounting.Epsilon(pld=math.inf, rdp=3.0)
    assert (smaller_rdp.headline, smaller_rdp.accountant) == (3.0, 'RDP')


def test_no_headline_where_nothing_is_proven():
    unproven = accounting.Epsilon(pld=44.0, rdp=47.0, is_proven=False)
    assert (unproven.headline, unproven.accountant) == (math.inf, 'none')
    assert unproven.smallest_bound == 44.0
    filtered = accounting.Epsilon(pld=44.0, rdp=47.0, rdp_filter=50.0, is_proven=False)
    assert (filtered.headline, filtered.accountant) == (math.inf, 'none')
    assert filtered.smallest_bound == 50.0


def test_unsampled_gaussian_equals_its_closed_form():
    # Balle and Wang 2018: delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s), T steps: s/sqrt(T).
    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    sigma, steps = 3.0, 7
    epsilon = epsilon_of(1.0, sigma, steps).headline
    s = sigma / math.sqrt(steps)

    def delta(e):
        return phi(1 / (2 * s) - e * s) - math.exp(e) * phi(-1 / (2 * s) - e * s)

    assert delta(epsilon) <= DELTA < delta(0.99 * epsilon)


def test_no_steps_cost_nothing_and_no_noise_costs_everything():
    assert epsilon_of(Q, 0.7, 0) == accounting.Epsilon(pld=0.0, rdp=0.0)
    assert accounting.compute_epsilon(dp_accounting.NonPrivateDpEvent(), 1, DELTA).headline == (
        math.inf
    )


def test_meter_is_an_upper_bound_that_ends_at_the_headline():
    steps, event = 100, accounting.step_event(Q, 2.0)
    meter = accounting.EpsilonMeter(event, steps, DELTA, grid_points=4)
    assert meter(0) == 0.0
    shown = {t: meter(t) for t in (1, 25, 26, 99, 100)}
    for t, epsilon in shown.items():
        composed = dp_accounting.SelfComposedDpEvent(event, t)
        by_rdp = rdp.RdpAccountant().compose(composed).get_epsilon(DELTA)
        assert min(by_rdp, exact_pld(composed)) <= epsilon <= by_rdp
    assert list(shown.values()) == sorted(shown.values())
    assert shown[100] == accounting.compute_epsilon(event, steps, DELTA).headline
    assert len(meter._pld_at) <= 4
    # Beyond the plan there is no grid point; RDP still holds.
    beyond = accounting.compute_epsilon(event, 130, DELTA)
    assert meter(130) == beyond.rdp >= beyond.headline


def test_hidden_steps_are_a_gaussian_mechanism_without_sampling():
    event = hidden_event(2.0, 0.7, 0.3)
    assert event.noise_multiplier == pytest.approx(2.0 * 0.7 / (0.7 + 2 * 0.3), rel=1e-12)
    epsilon = accounting.compute_epsilon(event, 50, DELTA)
    mu = math.sqrt(50) * 1.3 / (2.0 * 0.7)
    assert epsilon.headline == epsilon.closed_form
    assert epsilon.headline == pytest.approx(accounting.gaussian_epsilon(mu, DELTA), rel=1e-12)
    assert epsilon.accountant == 'closed form'
    assert epsilon.closed_form < epsilon.rdp and math.isinf(epsilon.pld)
    # At the settings of the audit: what sampling would have made of it is 4.77.
    audit = accounting.compute_epsilon(hidden_event(1.0, 1.0, 1.0), 200, DELTA)
    assert audit.headline == pytest.approx(1079.99, abs=0.01)
    assert epsilon_of(0.05, 1.0, 200).headline == pytest.approx(4.766, abs=1e-3)


def test_without_a_change_what_was_spent_is_the_planned_event():
    event = accounting.step_event(0.3, 2.0)
    spent = accounting.compute_spent([(event, 7)], DELTA, planned=(event, 20), changed=False)
    assert spent == accounting.compute_epsilon(event, 7, DELTA)
    other = accounting.step_event(0.3, 2.1)
    with pytest.raises(ValueError, match='not planned'):
        accounting.compute_spent([(other, 7)], DELTA, planned=(event, 20), changed=False)


def test_rounding_below_zero_is_no_error():
    # dp_accounting's divergence comes out at -1e-13 there, and it refuses that.
    event = accounting.step_event(1e-6, 50.0)
    epsilon = accounting.compute_epsilon(event, 1000, 1e-5)
    assert 0 <= epsilon.headline <= epsilon.rdp < 0.1


@pytest.mark.parametrize('q, sigma, steps', [(1e-5, 50.0, 10**6), (1e-5, 50.0, 10**7)])
def test_rounding_does_not_make_an_epsilon_of_zero(q, sigma, steps):
    # By the central limit theorem T steps are a Gaussian mechanism with mu = q sqrt(T (e^(1/s^2) -
    # 1)) (Bu et al. 2020), here 2.0e-4 and 6.3e-4; without rounding up, RDP says 0.
    delta = 1e-8
    true = accounting.gaussian_epsilon(q * math.sqrt(steps * math.expm1(sigma**-2)), delta)
    epsilon = accounting.compute_epsilon(accounting.step_event(q, sigma), steps, delta)
    raw = dp_accounting.SelfComposedDpEvent(accounting.step_event(q, sigma), steps)
    assert rdp.RdpAccountant().compose(raw).get_epsilon(delta) == 0.0 < 1e-4 < true
    assert true <= epsilon.rdp and true <= epsilon.pld


def test_no_time_is_lost_on_what_is_not_private():
    sigma = accounting.calibrate_noise_multiplier(200.0, 1e-5, 0.01, 10)
    epsilon = accounting.compute_epsilon(accounting.step_event(0.01, 0.05), 10_000, 1e-5)
    assert sigma == accounting.SMALLEST_NOISE
    assert epsilon.rdp > 500 and math.isinf(epsilon.pld) and epsilon.accountant == 'RDP'


def test_a_warm_start_composes_with_the_steps():
    warm_start, event = dp_accounting.GaussianDpEvent(5.3), accounting.step_event(0.05, 2.0)
    both = accounting.compute_epsilon(event, 40, DELTA, warm_start)
    composed = dp_accounting.ComposedDpEvent(
        [warm_start, dp_accounting.SelfComposedDpEvent(event, 40)]
    )
    # With room for the rounding of its transforms.
    by_pld = pld.PLDAccountant().compose(composed).get_epsilon(DELTA - 1e-11)
    by_rdp = rdp.RdpAccountant().compose(composed).get_epsilon(DELTA)
    assert both.pld == pytest.approx(by_pld, rel=1e-9)
    assert both.rdp == pytest.approx(by_rdp, rel=1e-6)
    alone = accounting.compute_epsilon(event, 40, DELTA)
    warm = accounting.compute_epsilon(event, 0, DELTA, warm_start)
    assert max(alone.pld, warm.headline) < 0.9 * both.pld
    assert both.pld < alone.pld + warm.headline


@pytest.mark.parametrize('delta', [1e-5, 1e-8, 1e-9, 1e-12])
def test_rounding_of_transforms_does_not_reach_the_headline(delta):
    # Steps with q = 1 have a closed form, which the PLD of dp_accounting falls below.
    sigma, steps = 300.0, 10**5
    event = dp_accounting.PoissonSampledDpEvent(1.0, dp_accounting.GaussianDpEvent(sigma))
    exact = accounting.gaussian_epsilon(math.sqrt(steps) / sigma, delta)
    assert accounting.compute_epsilon(event, steps, delta).headline >= exact
    theirs = pld.PLDAccountant().compose(dp_accounting.SelfComposedDpEvent(event, steps))
    if delta == 1e-12:
        assert theirs.get_epsilon(delta) < exact


def test_a_warm_start_and_unsampled_steps_are_one_gaussian():
    warm_start, event = dp_accounting.GaussianDpEvent(3.0), dp_accounting.GaussianDpEvent(4.0)
    epsilon = accounting.compute_epsilon(event, 7, DELTA, warm_start)
    assert epsilon.accountant == 'closed form'
    mu = math.sqrt(1 / 9 + 7 / 16)
    assert epsilon.headline == pytest.approx(accounting.gaussian_epsilon(mu, DELTA), rel=1e-9)


def test_the_meter_and_a_ledger_count_the_warm_start():
    warm_start, event = dp_accounting.GaussianDpEvent(5.3), accounting.step_event(0.05, 2.0)
    meter = accounting.EpsilonMeter(event, 40, DELTA, warm_start, grid_points=2)
    warm = accounting.compute_epsilon(event, 0, DELTA, warm_start).headline
    assert meter(0) == pytest.approx(warm)
    whole = accounting.compute_epsilon(event, 40, DELTA, warm_start)
    assert meter(40) == pytest.approx(whole.headline)
    exact = accounting.compute_epsilon(event, 13, DELTA, warm_start)
    assert exact.headline <= meter(13) <= whole.headline

    def spent(steps, **more):
        return accounting.compute_spent(
            [(event, steps)] if steps else [],
            DELTA,
            planned=(event, 40),
            warm_start=warm_start,
            **{'changed': False, **more},
        )

    assert spent(13) == exact
    assert spent(0).headline == pytest.approx(warm)
    assert spent(0, warm_start_spent=False).headline == 0
    # After a change: the filter's budget is all that was planned, and what is used counts it too.
    changed = spent(40, changed=True)
    assert changed.headline == pytest.approx(whole.rdp, rel=1e-6)
    assert changed.pld == pytest.approx(whole.pld, rel=1e-6)
    assert spent(41, changed=True).headline == math.inf
    # Before the first step of a changed run the warm start is spent all the same.
    assert spent(0, changed=True).closed_form == pytest.approx(warm)
    assert spent(0, changed=True, warm_start_spent=False).rdp == 0
