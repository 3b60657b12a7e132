"""Says in one sentence what an evaluation means for somebody who wants to use the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# A score is better than guessing if it is at least so many standard errors above it.
_CLEAR = 3.0
# What images are good for whose score is below this share of the way from guessing to real images.
_USES = (
    (0.5, 'good for testing code, not for training'),
    (0.8, 'good for prototypes; expect a clearly weaker classifier than from real images'),
    (0.95, 'good for training a first classifier'),
    (math.inf, 'nearly as good for training as real images'),
)


def verdict(metrics: Mapping[str, Any]) -> str:
    """Says in one sentence what the generated images are good for.

    Args:
      metrics: the metrics of `protocol.measure`, of which `gen2real_cnn` is read.

    Returns:
      A sentence with the score, the score of guessing and the score of real images.
    """
    if 'gen2real_cnn' not in metrics:
        return (
            'Whether a classifier can learn from these images was not measured, since that needs '
            'at least two classes and a test split of real images.'
        )
    found = metrics['gen2real_cnn']
    score, real = found['accuracy'], found['real']['accuracy']
    guessing = max(found['guessing'], found.get('largest_class', 0.0))
    error = math.sqrt(guessing * (1.0 - guessing) / found['num_test'])
    figures = (
        f'A classifier that learned from these images is right on {score:.0%} of real ones; always '
        f'guessing the largest class is right on {guessing:.0%}, and a classifier that learned '
        f'from real images is right on {real:.0%}'
    )
    if score < guessing + _CLEAR * error:
        return (
            f'{figures}: these images are NO BETTER THAN GUESSING. Do not train on them; give more '
            'records, a larger ε or more minutes.'
        )
    share = (score - guessing) / max(real - guessing, 1e-9)
    use = next(text for most, text in _USES if share < most)
    return f'{figures}: {use}.'
