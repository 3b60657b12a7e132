"""Some rows of an array of records, without a copy of them."""

from __future__ import annotations

import numpy as np


class Rows:
    """Rows of an array, which may be mapped from a file: they are read when they are asked for.

    Args:
      array: [N, ...].
      numbers: the numbers of the rows, int64 [n].

    Attributes:
      shape: [n, ...].
      dtype: of the array.
    """

    def __init__(self, array: np.ndarray, numbers: np.ndarray):
        self._array = array
        self._numbers = numbers
        self.shape = (len(numbers), *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Copies some of the rows: a slice of them, or rows by their numbers here."""
        return self._array[self._numbers[rows]]
