"""Formats bounds, in the same way everywhere: rounds an upper bound up and a lower bound down."""

from __future__ import annotations

import decimal
import math


def up(value: float, digits: int = 4) -> str:
    """Formats an upper bound with so many significant digits, never below its value.

    Args:
      value: the bound, >= 0; an infinite one bounds nothing.
      digits: the largest number of significant digits, >= 1; trailing zeros are left out.

    Returns:
      '1.1' for 1.1, '9.28' for 9.27911, '4,798' for 4797.2, '1.001e+9' for 1000000001, 'none' for
      infinity.
    """
    return _rounded(value, digits, decimal.ROUND_CEILING)


def down(value: float, digits: int = 4) -> str:
    """Formats a lower bound, or what is left to spend, as `up` does, never above its value."""
    return _rounded(value, digits, decimal.ROUND_FLOOR)


def _rounded(value, digits, direction):
    if math.isinf(value) or math.isnan(value):
        return 'none'
    context = decimal.Context(prec=digits, rounding=direction)
    rounded = context.create_decimal(decimal.Decimal(repr(float(value))))
    if rounded and not 1e-4 <= rounded < 10**9:
        return f'{rounded.normalize():e}'
    return f'{rounded.normalize():,f}'
