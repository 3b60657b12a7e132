"""What to expect of the images, in plain words, before anything is spent.

What matters is how large the noise is compared with what the images of a class have in common. That
falls with the number of images in a class and with epsilon alike, so their product tells the cases
apart. The bounds between the cases come from runs of the recipe, see docs/results.md.
"""

from __future__ import annotations

from tf_efsgd import rounding

_WHOLE, _CLASSES, _COARSE = 10_000, 3_000, 500
# Below this product a run warns before it spends anything.
_TOO_FEW = _COARSE


def expect(*, records: int, classes: int, channels: int, epsilon: float) -> str:
    """Says what images to expect.

    Args:
      records: how many records are trained on.
      classes: how many classes there are.
      channels: 1 (gray) or 3 (colours).
      epsilon: the budget.

    Returns:
      A few words, e.g. 'coarse shapes'.
    """
    product = _product(records, classes, epsilon)
    if product >= _WHOLE:
        return 'classes that are recognised, and many single images that look real'
    if product >= _CLASSES:
        return 'classes that are recognised, and poor single images'
    if product >= _COARSE:
        return 'coarse shapes'
    return 'average colours' if channels == 3 else 'average brightness'


def warning(*, records: int, classes: int, epsilon: float) -> str | None:
    """Warns, before anything is spent, if there are too few images for epsilon.

    Args:
      records: the declared number of records.
      classes: how many classes there are.
      epsilon: of the whole run.

    Returns:
      The warning; None if there are enough images.
    """
    if _product(records, classes, epsilon) >= _TOO_FEW:
        return None
    wanted = int(min(_TOO_FEW / max(epsilon, 1e-300), 1e15)) + 1
    return (
        f'WARNING: {records // max(1, classes)} images of a class are few for ε = '
        f'{rounding.up(epsilon)}: noise will hide what they look like. For classes that can be '
        f'recognised, use about {wanted:,} images each, fewer classes, or a larger ε. Nothing is '
        'spent yet.'
    )


def _product(records: int, classes: int, epsilon: float) -> float:
    return epsilon * records / max(1, classes)
