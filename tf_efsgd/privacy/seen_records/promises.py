"""What a run may spend, and what several may spend together."""

from __future__ import annotations

import dataclasses
import fractions
import math
from collections.abc import Iterable, Sequence
from typing import Any

from tf_efsgd import rounding

# Units of privacy: what one data set has and its neighbour lacks.
IMAGE, PERSON = 'image', 'person'


@dataclasses.dataclass(frozen=True)
class Promise:
    """What a run may spend in all.

    Attributes:
      epsilon: at least 0; infinite where none is proven, e.g. without noise.
      delta: in [0, 1).
      unit: of privacy, IMAGE or PERSON.
    """

    epsilon: float
    delta: float
    unit: str

    def in_unit(self, unit: str) -> Promise:
        """What is promised to another unit of privacy, as far as that follows in general.

        To remove one image, remove its person and add the person again without that image: these
        are two steps between neighbours, so (2ε, (1 + e^ε)δ) holds. In a run that counts images a
        person may have any number of them: nothing is proven for persons.
        """
        if unit == self.unit:
            return self
        if unit == PERSON or self.epsilon > 700:  # Above it e^ε leaves float64.
            return Promise(math.inf, 0.0, unit)
        delta = sum_up([self.delta, (1 + 2**-50) * math.exp(self.epsilon) * self.delta])
        return Promise(2 * self.epsilon, delta, unit)

    def __str__(self) -> str:
        if not self.is_proven:
            return 'no proven ε'
        return f'ε = {rounded_up(self.epsilon)}, δ = {rounded_up(self.delta)}'

    @property
    def is_proven(self) -> bool:
        """Whether it promises anything."""
        return math.isfinite(self.epsilon) and self.delta < 1

    def to_json(self) -> dict[str, Any]:
        """JSON values by name; JSON has no infinity, so a bound that does not exist is null."""
        epsilon, delta = (self.epsilon, self.delta) if self.is_proven else (None, None)
        return {'epsilon': epsilon, 'delta': delta, 'record': self.unit}


def sum_of(promises: Sequence[Promise], unit: str) -> Promise:
    """What promises, all in one unit of privacy, promise together."""
    if not all(promise.is_proven for promise in promises):
        return Promise(math.inf, 0.0, unit)
    epsilon = sum_up(promise.epsilon for promise in promises)
    return Promise(epsilon, sum_up(promise.delta for promise in promises), unit)


def sum_up(values: Iterable[float]) -> float:
    """The sum of finite floats, rounded up."""
    exact = sum(map(fractions.Fraction, values), fractions.Fraction())
    rounded = float(exact)
    return rounded if fractions.Fraction(rounded) >= exact else math.nextafter(rounded, math.inf)


def rounded_up(value: float) -> str:
    """The text of a sum, rounded up and never below its first 15 digits."""
    return rounding.up(float(f'{value:.15g}'))  # A sum of three floats 1e-5 is shown as 3e-5.
