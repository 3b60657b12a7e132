"""What forecasts are compared with: numbers of formulas of their own, and words."""

from helpers import account_by_hand
from tf_efsgd.privacy import accounting

# What is accounted at: a part is kept back for the error of the draws.
DELTA = account_by_hand.accounted_delta(1e-5)


def effective(sigma, parameters=2**20, sums=2):
    """Returns what is accounted for a step of so many parameters that was made at sigma."""
    return account_by_hand.effective_step(sigma, sums * parameters)


def bounds(event, steps, delta=DELTA):
    """Returns the bounds on epsilon of so many of these steps."""
    return accounting.compute_epsilon(event, steps, delta)


def assert_said(printed, *parts):
    """Fails unless every part stands in what was printed."""
    assert parts
    for part in parts:
        assert part in printed, printed
