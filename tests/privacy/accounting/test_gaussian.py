"""Gaussian mechanisms without sampling, by their closed form."""

import math

import dp_accounting
import pytest
from dp_accounting import pld
from helpers.events import DELTA

from tf_efsgd.privacy import accounting


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


@pytest.mark.parametrize('mu', [1e-12, 1e-17, 1e-150, 1e-300])
def test_next_to_no_information_costs_next_to_nothing(mu):
    """Where the law's two terms are equal in floating point, too."""
    assert 0.0 <= accounting.gaussian_epsilon(mu, 1e-5) < 1e-9


def test_the_gaussian_that_spends_all_at_once():
    # sigma = 3.7306 spends epsilon 1 at delta 1e-5 (Balle and Wang 2018, by their closed form).
    assert 1 / accounting.gaussian_mu(1.0, DELTA) == pytest.approx(3.7306, abs=1e-4)


@pytest.mark.parametrize('share', [0.2, 0.5, 0.9])
def test_two_releases_spend_what_the_one_would(share):
    first, second = accounting.split_release(0.7, share)
    assert min(first, second) > 0.7 and (first < second) == (share < 0.5 - 1e-9)
    both = dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(sigma) for sigma in (first, second)]
    )
    one = dp_accounting.GaussianDpEvent(0.7)
    assert accounting.rdp_epsilon(both, DELTA) == pytest.approx(
        accounting.rdp_epsilon(one, DELTA), rel=1e-9
    )
    accountants = [pld.PLDAccountant().compose(event) for event in (both, one)]
    composed, whole = (accountant.get_epsilon(DELTA) for accountant in accountants)
    assert composed == pytest.approx(whole, rel=2e-3)
    assert composed != pytest.approx(1.02 * whole, rel=2e-3)
    # The share is that of the second.
    assert (0.7 / second) ** 2 == pytest.approx(share)
