"""`digits`: the handwritten digits of scikit-learn, 8x8 in 10 classes."""

from __future__ import annotations

import numpy as np

from tf_efsgd.data import parts


def read(dataset: str, wanted: parts.Wanted) -> parts.Source:
    """Reads the data set.

    Args:
      dataset: its name.
      wanted: what was asked for.

    Raises:
      DataError: if other classes, or persons, are asked for.
    """
    from sklearn import datasets

    parts.refuse_persons(dataset, wanted)
    names = parts.check_names(dataset, tuple('0123456789'), wanted)
    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return parts.Source(parts.part_of_arrays(images, digits.target, wanted.image_size), None, names)
