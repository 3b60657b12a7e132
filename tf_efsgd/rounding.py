"""Upper bounds as text: rounded up, in one way everywhere."""

from __future__ import annotations

import decimal
import math


def up(value: float, digits: int = 4) -> str:
    """An upper bound at so many significant digits, never below what it is.

    Args:
      value: >= 0; an infinite bound says nothing.
      digits: significant digits at most, >= 1; zeros at the end are left out.

    Returns:
      '1.1' for 1.1, '9.28' for 9.27911, '4,798' for 4797.2, '1.001e+9' for 1000000001, 'none' for
      infinity.
    """
    if math.isinf(value) or math.isnan(value):
        return 'none'
    context = decimal.Context(prec=digits, rounding=decimal.ROUND_CEILING)
    rounded = context.create_decimal(decimal.Decimal(repr(float(value))))
    if rounded and not 1e-4 <= rounded < 10**9:
        return f'{rounded.normalize():e}'
    return f'{rounded.normalize():,f}'
