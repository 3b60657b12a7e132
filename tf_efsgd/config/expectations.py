"""What to expect of the images, in plain words, before anything is spent.

What matters is how large the noise is compared with what the images of a class have in common. That
falls with the number of images in a class and with epsilon alike, so their product tells the cases
apart. Photographs in colour have less in common than digits, clothes or X-rays, so they need more;
and with many classes of them, as in CIFAR-10, single images stay poor. The runs that the bounds
come from are a table of docs/results.md, and a test compares them with what is said here.
"""

from __future__ import annotations

from tf_efsgd import rounding

# The least products, by the number of channels, for each of the words below.
_BOUNDS = {1: (10_000, 3_000, 500), 3: (50_000, 15_000, 1_500)}
_WORDS = (
    'classes that are recognised, and many single images that look real',
    'classes that are recognised, and poor single images',
    'coarse shapes',
)
# With colours, more classes than these are many.
_FEW_CLASSES = 3


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
    best = 1 if channels == 3 and classes > _FEW_CLASSES else 0
    for level, least in enumerate(_BOUNDS[channels]):
        if product >= least:
            return _WORDS[max(level, best)]
    return 'average colours' if channels == 3 else 'average brightness'


def warning(*, records: int, classes: int, channels: int, epsilon: float) -> str | None:
    """Warns, before anything is spent, if not even coarse shapes can be expected.

    Args:
      records: the declared number of records.
      classes: how many classes there are.
      channels: 1 (gray) or 3 (colours).
      epsilon: of the whole run.

    Returns:
      The warning; None if there are enough images.
    """
    _, recognised, coarse = _BOUNDS[channels]
    if _product(records, classes, epsilon) >= coarse:
        return None
    wanted = int(min(recognised / max(epsilon, 1e-300), 1e15)) + 1
    return (
        f'WARNING: {records // max(1, classes)} images of a class are few for ε = '
        f'{rounding.up(epsilon)}: noise will hide what they look like. For classes that can be '
        f'recognised, use about {wanted:,} images each, fewer classes, or a larger ε. Nothing is '
        'spent yet.'
    )


def _product(records: int, classes: int, epsilon: float) -> float:
    return epsilon * records / max(1, classes)
