"""What to expect of the images, in plain words, before anything is trained."""

from __future__ import annotations

# Images of a class for which shapes were seen at epsilon = 10, and the budgets that part the cases.
_FEW_OF_A_CLASS = 300
_SMALL, _LARGE = 2.0, 8.0


def expect(*, records: int, classes: int, channels: int, epsilon: float) -> str:
    """What images to expect.

    Args:
      records: how many are trained on.
      classes: how many there are.
      channels: 1 (grey) or 3 (colours).
      epsilon: the budget.

    Returns:
      A few words, e.g. 'coarse shapes'.
    """
    of_a_class = records / max(1, classes)
    if epsilon <= _SMALL or of_a_class < _FEW_OF_A_CLASS:
        return 'average colours' if channels == 3 else 'average brightness'
    if epsilon >= _LARGE and channels == 1 and of_a_class >= 10 * _FEW_OF_A_CLASS:
        return 'shapes that can be told apart'
    return 'coarse shapes'
