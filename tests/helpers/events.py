"""Events that several tests of the accounting count."""

import math

import dp_accounting
from dp_accounting import pld

from tf_efsgd.privacy import accounting

DELTA = 1e-5
Q = accounting.sampling_probability(128, 60_000)


def epsilon_of(q, sigma, steps):
    return accounting.compute_epsilon(accounting.step_event(q, sigma), steps, DELTA)


def exact_pld(event):
    return pld.PLDAccountant().compose(event).get_epsilon(DELTA)


def hidden_event(sigma, clip, residual_clip):
    """Returns the event of a published step: its noise divided by how far a record moves it."""
    sensitivity = accounting.hidden_sensitivity(clip, residual_clip)
    return dp_accounting.GaussianDpEvent(sigma * clip / sensitivity)


def share_of_all(share):
    """Returns a warm start that has a share of the 1/sigma^2 that spends epsilon 1."""
    sigma = 1 / (accounting.gaussian_mu(1.0, DELTA) * math.sqrt(share))
    return dp_accounting.GaussianDpEvent(sigma)
