"""The account of a step on the grid, written out from section 5 of the design: no code of ours."""

import math

# In steps of the grid: n = x1 + 64 x2 + 4096 x3, every part of standard deviation 128.
STDDEV = 128 * math.sqrt(1 + 64**2 + 4096**2)
# Allowed for float32 in clipping and adding up.
SLACK = 2**-7


def effective_sum(sigma):
    """Returns the noise multiplier that is accounted for a sum of all records, made at sigma."""
    return sigma * math.sqrt(1 - 16 / STDDEV**2)


def effective_step(sigma, coordinates):
    """Returns the same for a step that releases so many numbers."""
    return effective_sum(sigma) / (1 + sigma * math.sqrt(coordinates) / STDDEV + SLACK)


def noise_for_step(effective, coordinates):
    """Inverts `effective_step`: returns what has to be drawn for so much to be accounted."""
    root = math.sqrt(coordinates) / STDDEV
    return effective * (1 + SLACK) / (math.sqrt(1 - 16 / STDDEV**2) - effective * root)


def accounted_delta(delta):
    """Returns what is left of delta when a part is kept back for the error of the draws."""
    return delta * (1 - 2**-10)


def log2_of_draws(epsilon, draws):
    """Returns log2 of what the draws add to delta: (1 + e^epsilon) draws 2^-108."""
    return math.log2(1 + math.exp(epsilon)) + math.log2(draws) - 108
