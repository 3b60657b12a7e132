"""Tests of the accounting: golden values, calibration, sampling probability, the meter."""

import dataclasses
import fractions
import json
import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_efsgd.privacy import accounting

_DELTA = 1e-5
_Q = accounting.sampling_probability(128, 60_000)


def _epsilon(q, sigma, steps):
    return accounting.compute_epsilon(accounting.step_event(q, sigma), steps, _DELTA)


@pytest.mark.parametrize(
    'sigma, steps, by_pld, by_rdp', [(1.0, 450_000, 9.279, 9.970), (0.5, 8_000, 8.582, 10.048)]
)
def test_golden_values(sigma, steps, by_pld, by_rdp):
    epsilon = _epsilon(_Q, sigma, steps)
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
    epsilon = _epsilon(1.0, sigma, steps).headline
    s = sigma / math.sqrt(steps)

    def delta(e):
        return phi(1 / (2 * s) - e * s) - math.exp(e) * phi(-1 / (2 * s) - e * s)

    assert delta(epsilon) <= _DELTA < delta(0.99 * epsilon)


def test_one_step_is_a_poisson_sampled_gaussian():
    event = accounting.step_event(0.03, 0.7)
    assert event == dp_accounting.PoissonSampledDpEvent(0.03, dp_accounting.GaussianDpEvent(0.7))


def test_no_steps_cost_nothing_and_no_noise_costs_everything():
    assert _epsilon(_Q, 0.7, 0) == accounting.Epsilon(pld=0.0, rdp=0.0)
    assert accounting.compute_epsilon(dp_accounting.NonPrivateDpEvent(), 1, _DELTA).headline == (
        math.inf
    )


@pytest.mark.parametrize('batch, size', [(1, 1), (1, 3), (128, 60_000), (7, 7), (999, 1_000_003)])
def test_sampling_probability_rounds_up_to_the_grain_of_the_draw(batch, size):
    threshold = accounting.sampling_threshold(batch, size)
    exact = fractions.Fraction(batch, size)
    assert 0 <= fractions.Fraction(threshold, 2**32) - exact < fractions.Fraction(1, 2**32)
    assert fractions.Fraction(accounting.sampling_probability(batch, size)) == (
        fractions.Fraction(threshold, 2**32)
    )


@pytest.mark.parametrize('batch, size', [(0, 10), (-1, 10), (11, 10), (1, 0)])
def test_impossible_batches_are_refused(batch, size):
    for function in (accounting.sampling_threshold, accounting.sampling_probability):
        with pytest.raises(ValueError, match=f'expected_batch_size={batch}, records={size}'):
            function(batch, size)


@pytest.mark.parametrize('q', [3e-7, 1 / 60_000, 0.03, 0.7, 1 - 2**-32, 1.0])
@pytest.mark.parametrize('images', [1, 2, 5, 10])
def test_a_person_is_sampled_when_any_of_the_images_is(q, images):
    exact = 1 - (1 - fractions.Fraction(q)) ** images
    found = fractions.Fraction(accounting.person_sampling_probability(q, images))
    # Never below, and at most a little above.
    assert exact <= found <= exact * (1 + fractions.Fraction(1, 10**11)) and found <= 1


def test_a_person_of_k_images_is_at_least_as_private_as_the_mixture_over_them():
    """K Gaussians that point the same way, each sampled by itself, lie below what is accounted."""
    q, sigma, images = 0.5, 3.0, 3
    sampled = accounting.person_sampling_probability(q, images)
    accounted = accounting.compute_epsilon(accounting.step_event(sampled, sigma / images), 1, 1e-5)
    # The mixture over Binomial(K, q) of what N(k, sigma^2) adds to N(0, sigma^2), by its integral.
    from scipy import integrate, stats

    weights = [math.comb(images, k) * q**k * (1 - q) ** (images - k) for k in range(images + 1)]

    def mixture(x):
        return sum(w * stats.norm.pdf(x, k, sigma) for k, w in enumerate(weights))

    def delta(epsilon):
        def excess(x):
            return max(0.0, mixture(x) - math.exp(epsilon) * stats.norm.pdf(x, 0, sigma))

        return integrate.quad(excess, -12 * sigma, 14 * sigma, limit=500, epsabs=1e-12)[0]

    assert delta(accounted.headline) <= 1e-5
    # One image, a person's sampling with one image's norm, and an image fewer do not cover it.
    for wrong in ((q, sigma), (sampled, sigma), (sampled, sigma / 2)):
        event = accounting.step_event(*wrong)
        assert delta(accounting.compute_epsilon(event, 1, 1e-5).headline) > 1e-5


@pytest.mark.parametrize(
    'target, q, steps',
    [
        (0.1, _Q, 8_000),
        (2.0, 1.0, 300),
        (8.0, 1.0, 3),
        pytest.param(40.0, 1.0, 3, marks=pytest.mark.slow),
        pytest.param(7.0, 0.3, 40, marks=pytest.mark.slow),
        pytest.param(30.0, 0.3, 40, marks=pytest.mark.slow),
        pytest.param(1.0, _Q, 450_000, marks=pytest.mark.slow),
        pytest.param(9.0, _Q, 450_000, marks=pytest.mark.slow),
        pytest.param(50.0, _Q, 2_000, marks=pytest.mark.slow),
    ],
)
def test_calibration_meets_the_target_and_is_tight(target, q, steps):
    sigma = accounting.calibrate_noise_multiplier(target, _DELTA, q, steps)
    assert 0.998 * target <= _epsilon(q, sigma, steps).pld <= target


def test_meter_is_an_upper_bound_that_ends_at_the_headline():
    steps, event = 100, accounting.step_event(_Q, 2.0)
    meter = accounting.EpsilonMeter(event, steps, _DELTA, grid_points=4)
    assert meter(0) == 0.0
    shown = {t: meter(t) for t in (1, 25, 26, 99, 100)}
    for t, epsilon in shown.items():
        composed = dp_accounting.SelfComposedDpEvent(event, t)
        by_rdp = rdp.RdpAccountant().compose(composed).get_epsilon(_DELTA)
        assert min(by_rdp, _exact_pld(composed)) <= epsilon <= by_rdp
    assert list(shown.values()) == sorted(shown.values())
    assert shown[100] == accounting.compute_epsilon(event, steps, _DELTA).headline
    assert len(meter._pld_at) <= 4
    # Beyond the plan there is no grid point; RDP still holds.
    beyond = accounting.compute_epsilon(event, 130, _DELTA)
    assert meter(130) == beyond.rdp >= beyond.headline


def _exact_pld(event):
    return pld.PLDAccountant().compose(event).get_epsilon(_DELTA)


# The closed form of Gaussian mechanisms, and the hidden variant that is counted by it.


def _delta(mu, epsilon):
    """Balle and Wang 2018, straight from its integral: no difference of large numbers."""
    # delta = integral of (1 - e^(eps - L)) over the privacy loss L ~ N(mu^2/2, mu^2) above eps.
    from scipy import integrate, stats

    loss = stats.norm(mu**2 / 2, mu)

    def above(x):
        return -math.expm1(-x) * loss.pdf(epsilon + x)

    return integrate.quad(above, 0, 20 * mu, epsabs=0, epsrel=1e-10, limit=500)[0]


@pytest.mark.parametrize('mu', [0.03, 0.3, 1.0, 3.0, 10.0, 42.0, 300.0])
@pytest.mark.parametrize('delta', [1e-3, 1e-5, 1e-9])
def test_closed_form_against_its_integral(mu, delta):
    epsilon = accounting.gaussian_epsilon(mu, delta)
    assert _delta(mu, epsilon) <= delta * (1 + 1e-6)
    assert _delta(mu, epsilon * 0.999) > delta
    assert accounting.gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-6)
    assert accounting.gaussian_epsilon(accounting.gaussian_mu(epsilon, delta), delta) <= (
        epsilon * (1 + 1e-12) + 2e-12
    )


def test_closed_form_is_zero_where_delta_covers_all():
    # Total variation distance of N(0, 1) and N(mu, 1): 2 Phi(mu/2) - 1, here 0.00399.
    assert accounting.gaussian_epsilon(0.01, 0.004) == 0.0
    assert accounting.gaussian_epsilon(0.01, 0.0039) > 0.0


def _hidden_event(sigma, clip, residual_clip):
    """Of a step of the published variant: noise over what a record moves it by."""
    sensitivity = accounting.hidden_sensitivity(clip, residual_clip)
    return dp_accounting.GaussianDpEvent(sigma * clip / sensitivity)


@pytest.mark.parametrize(('images', 'moved'), [(1, 0.7 + 0.6), (2, 1.4 + 0.6), (5, 3.5 + 0.6)])
def test_what_moves_a_step_of_a_hidden_buffer(images, moved):
    # What comes out of the buffer is clipped, whoever's it is: only the first part grows.
    assert accounting.hidden_sensitivity(0.7, 0.3, images) == pytest.approx(moved, rel=1e-12)


def test_hidden_steps_are_a_gaussian_mechanism_without_sampling():
    event = _hidden_event(2.0, 0.7, 0.3)
    assert event.noise_multiplier == pytest.approx(2.0 * 0.7 / (0.7 + 2 * 0.3), rel=1e-12)
    epsilon = accounting.compute_epsilon(event, 50, _DELTA)
    mu = math.sqrt(50) * 1.3 / (2.0 * 0.7)
    assert epsilon.headline == epsilon.closed_form
    assert epsilon.headline == pytest.approx(accounting.gaussian_epsilon(mu, _DELTA), rel=1e-12)
    assert epsilon.accountant == 'closed form'
    assert epsilon.closed_form < epsilon.rdp and math.isinf(epsilon.pld)
    # At the settings of the audit: what sampling would have made of it is 4.77.
    audit = accounting.compute_epsilon(_hidden_event(1.0, 1.0, 1.0), 200, _DELTA)
    assert audit.headline == pytest.approx(1079.99, abs=0.01)
    assert _epsilon(0.05, 1.0, 200).headline == pytest.approx(4.766, abs=1e-3)


@pytest.mark.parametrize('target', [0.3, 3.0, 30.0])
def test_noise_of_unsampled_steps_is_calibrated_to_the_honest_epsilon(target):
    sigma = accounting.calibrate_unsampled_noise_multiplier(target, _DELTA, 70)
    event = dp_accounting.GaussianDpEvent(sigma)
    spent = accounting.compute_epsilon(event, 70, _DELTA).headline
    assert 0.9999 * target <= spent <= target
    meter = accounting.EpsilonMeter(event, 70, _DELTA)
    assert meter(0) == 0.0 < meter(30) < meter(70) == spent


# Events in a ledger, and a mechanism that was changed.


@pytest.mark.parametrize(
    'event', [accounting.step_event(0.3, 0.7), dp_accounting.GaussianDpEvent(0.3)]
)
def test_events_come_back_from_json(event):
    text = json.dumps(accounting.event_to_dict(event))
    assert accounting.event_from_dict(json.loads(text)) == event


@pytest.mark.parametrize(
    'values',
    [
        {},
        {'class_name': 'NonPrivateDpEvent'},
        {'class_name': 'GaussianDpEvent'},
        {'class_name': 'GaussianDpEvent', 'noise_multiplier': 1.0, 'more': 2},
        {'class_name': 'PoissonSampledDpEvent', 'sampling_probability': 0.3, 'event': {}},
        {'class_name': 'os.system', 'command': 'true'},
    ],
)
def test_what_is_no_event_of_a_step_is_refused(values):
    with pytest.raises(ValueError, match='Not an event of a private step'):
        accounting.event_from_dict(values)


def test_without_a_change_what_was_spent_is_the_planned_event():
    event = accounting.step_event(0.3, 2.0)
    spent = accounting.compute_spent([(event, 7)], _DELTA, planned=(event, 20), changed=False)
    assert spent == accounting.compute_epsilon(event, 7, _DELTA)
    other = accounting.step_event(0.3, 2.1)
    with pytest.raises(ValueError, match='not planned'):
        accounting.compute_spent([(other, 7)], _DELTA, planned=(event, 20), changed=False)


def test_after_a_change_the_budget_of_the_filter_is_the_headline():
    event, other = accounting.step_event(0.3, 2.0), accounting.step_event(0.2, 3.0)
    planned = accounting.compute_epsilon(event, 20, _DELTA)
    for spent in ([(event, 7), (other, 5)], [(event, 12)]):
        epsilon = accounting.compute_spent(spent, _DELTA, planned=(event, 20), changed=True)
        assert epsilon.accountant == 'RDP filter'
        assert epsilon.headline == epsilon.rdp_filter == pytest.approx(planned.rdp, rel=1e-12)
        assert epsilon.pld < epsilon.rdp < epsilon.headline


def test_the_filter_is_at_one_order_fixed_by_the_plan():
    event = accounting.step_event(0.3, 2.0)
    allowed = accounting.RenyiFilter.of_plan(event, 20, _DELTA)
    accountant = rdp.RdpAccountant().compose(dp_accounting.SelfComposedDpEvent(event, 20))
    epsilon, order = accountant.get_epsilon_and_optimal_order(_DELTA)
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
        return at_order.get_epsilon(_DELTA)

    assert epsilon(left) <= allowed.epsilon < epsilon(left + 1)


@pytest.mark.parametrize('missing', [1e-10, 7e-10, 1e-6])
def test_the_filter_never_rounds_up(missing):
    event = accounting.step_event(0.3, 2.0)
    allowed = accounting.RenyiFilter.of_plan(event, 20, _DELTA)
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
    allowed = accounting.RenyiFilter.of_plan(event, steps, _DELTA)
    spent = [int(first * steps)]
    spent.append(int(second * (steps - spent[0])))
    left = allowed.steps_left([(event, count) for count in spent], event)
    assert left == steps - sum(spent)


# Far from usual settings.


def test_calibration_is_tight_at_a_very_small_delta():
    # By PLD alone it would take sigma = 438, 200 times what RDP needs.
    sigma = accounting.calibrate_noise_multiplier(1.0, 1e-15, 0.03, 10)
    spent = accounting.compute_epsilon(accounting.step_event(0.03, sigma), 10, 1e-15)
    assert 0.998 <= spent.headline <= 1.0 and spent.accountant == 'RDP'


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


def test_a_target_that_needs_no_noise_gets_the_least():
    # One step samples a record with probability delta / 2: (0, delta) holds without any noise.
    sigma = accounting.calibrate_noise_multiplier(0.05, 1e-5, 5e-6, 1)
    assert sigma >= accounting.SMALLEST_NOISE
    spent = accounting.compute_epsilon(accounting.step_event(5e-6, sigma), 1, 1e-5)
    assert spent.headline <= 0.05


def test_no_time_is_lost_on_what_is_not_private():
    sigma = accounting.calibrate_noise_multiplier(200.0, 1e-5, 0.01, 10)
    epsilon = accounting.compute_epsilon(accounting.step_event(0.01, 0.05), 10_000, 1e-5)
    assert sigma == accounting.SMALLEST_NOISE
    assert epsilon.rdp > 500 and math.isinf(epsilon.pld) and epsilon.accountant == 'RDP'


def test_a_warm_start_composes_with_the_steps():
    warm_start, event = dp_accounting.GaussianDpEvent(5.3), accounting.step_event(0.05, 2.0)
    both = accounting.compute_epsilon(event, 40, _DELTA, warm_start)
    composed = dp_accounting.ComposedDpEvent(
        [warm_start, dp_accounting.SelfComposedDpEvent(event, 40)]
    )
    # With room for the rounding of its transforms.
    by_pld = pld.PLDAccountant().compose(composed).get_epsilon(_DELTA - 1e-11)
    by_rdp = rdp.RdpAccountant().compose(composed).get_epsilon(_DELTA)
    assert both.pld == pytest.approx(by_pld, rel=1e-9)
    assert both.rdp == pytest.approx(by_rdp, rel=1e-6)
    alone = accounting.compute_epsilon(event, 40, _DELTA)
    warm = accounting.compute_epsilon(event, 0, _DELTA, warm_start)
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


def test_noise_for_a_small_delta_is_calibrated_without_pld():
    sigma = accounting.calibrate_noise_multiplier(1.0, 1e-10, 0.05, 50)
    epsilon = accounting.compute_epsilon(accounting.step_event(0.05, sigma), 50, 1e-10)
    assert epsilon.accountant == 'RDP' and math.isinf(epsilon.pld)
    assert 0.998 <= epsilon.headline <= 1.0


def test_a_warm_start_and_unsampled_steps_are_one_gaussian():
    warm_start, event = dp_accounting.GaussianDpEvent(3.0), dp_accounting.GaussianDpEvent(4.0)
    epsilon = accounting.compute_epsilon(event, 7, _DELTA, warm_start)
    assert epsilon.accountant == 'closed form'
    mu = math.sqrt(1 / 9 + 7 / 16)
    assert epsilon.headline == pytest.approx(accounting.gaussian_epsilon(mu, _DELTA), rel=1e-9)


def test_the_gaussian_that_spends_all_at_once():
    # sigma = 3.7306 spends epsilon 1 at delta 1e-5 (Balle and Wang 2018, by their closed form).
    assert 1 / accounting.gaussian_mu(1.0, _DELTA) == pytest.approx(3.7306, abs=1e-4)


def _share_of_all(share):
    """A warm start with a share of the 1/sigma^2 that spends epsilon 1."""
    sigma = 1 / (accounting.gaussian_mu(1.0, _DELTA) * math.sqrt(share))
    return dp_accounting.GaussianDpEvent(sigma)


@pytest.mark.parametrize('share', [0.2, 0.5, 0.9])
def test_two_releases_spend_what_the_one_would(share):
    first, second = accounting.split_release(0.7, share)
    assert min(first, second) > 0.7 and (first < second) == (share < 0.5 - 1e-9)
    both = dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(sigma) for sigma in (first, second)]
    )
    one = dp_accounting.GaussianDpEvent(0.7)
    assert accounting.rdp_epsilon(both, _DELTA) == pytest.approx(
        accounting.rdp_epsilon(one, _DELTA), rel=1e-9
    )
    accountants = [pld.PLDAccountant().compose(event) for event in (both, one)]
    composed, whole = (accountant.get_epsilon(_DELTA) for accountant in accountants)
    assert composed == pytest.approx(whole, rel=2e-3)
    assert composed != pytest.approx(1.02 * whole, rel=2e-3)
    # The share is that of the second.
    assert (0.7 / second) ** 2 == pytest.approx(share)


def test_a_warm_start_that_leaves_little_by_rdp_leaves_room_by_pld():
    warm_start = _share_of_all(0.95)
    assert accounting.rdp_epsilon(warm_start, _DELTA) > 1.0
    sigma = accounting.calibrate_noise_multiplier(1.0, _DELTA, 0.1, 20, warm_start)
    spent = accounting.compute_epsilon(accounting.step_event(0.1, sigma), 20, _DELTA, warm_start)
    assert 0.998 <= spent.headline <= 1.0


def test_calibration_leaves_room_for_the_warm_start():
    warm_start = _share_of_all(0.5)
    sigma = accounting.calibrate_noise_multiplier(1.0, _DELTA, 0.1, 20, warm_start)
    spent = accounting.compute_epsilon(accounting.step_event(0.1, sigma), 20, _DELTA, warm_start)
    assert 0.998 <= spent.headline <= 1.0
    without = accounting.compute_epsilon(accounting.step_event(0.1, sigma), 20, _DELTA)
    assert without.headline < 0.9

    sigma = accounting.calibrate_unsampled_noise_multiplier(1.0, _DELTA, 20, warm_start)
    event = dp_accounting.GaussianDpEvent(sigma)
    spent = accounting.compute_epsilon(event, 20, _DELTA, warm_start)
    assert spent.headline == pytest.approx(1.0, rel=1e-6)
    assert spent.headline <= 1.0


def test_the_meter_and_a_ledger_count_the_warm_start():
    warm_start, event = dp_accounting.GaussianDpEvent(5.3), accounting.step_event(0.05, 2.0)
    meter = accounting.EpsilonMeter(event, 40, _DELTA, warm_start, grid_points=2)
    warm = accounting.compute_epsilon(event, 0, _DELTA, warm_start).headline
    assert meter(0) == pytest.approx(warm)
    whole = accounting.compute_epsilon(event, 40, _DELTA, warm_start)
    assert meter(40) == pytest.approx(whole.headline)
    exact = accounting.compute_epsilon(event, 13, _DELTA, warm_start)
    assert exact.headline <= meter(13) <= whole.headline

    def spent(steps, **more):
        return accounting.compute_spent(
            [(event, steps)] if steps else [],
            _DELTA,
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
