"""Pairs of as many of one as of the other: `zip(strict=True)`, which Python 3.9 does not have."""


def pairs(ones, others):
    """Returns (first of `ones`, first of `others`), and so on; neither is empty or longer."""
    ones, others = list(ones), list(others)
    assert len(ones) == len(others) > 0
    return list(zip(ones, others))
