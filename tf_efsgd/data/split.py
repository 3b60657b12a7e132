"""Decides which records are tested on and which ones a limit keeps, each record by itself.

Formal guarantees:
  - The hash of a record depends on its decoded pixels alone, before any crop or resize. Its place,
    its label, the list of classes and other records play no part in it. Two encodings of one
    picture, and one picture under two labels, fall on the same side.
  - Gray pixels have the same hash whether they come with one channel or with three equal ones.
  - The hash of a person depends on the person's name alone, and decides for all images of a person.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np

# A record goes to the test set if its split hash, uniform over 64 bits, is below this: 10.48 %.
# Another threshold would move records between the splits of every data set without a test set.
_TEST_THRESHOLD = 1_933_000_000_000_000_000
_SPLIT, _LIMIT = 0, 1  # The columns of the digests: the hash that splits, and the one that limits.

# These prefixes keep the hashes of records and persons apart. The number is the first one that
# splits the embedded MNIST 9,000 to 1,000 and the digits 1,602 to 195, as an earlier hash did.
_RECORD, _PERSON = b'tf_efsgd record 368\0', b'tf_efsgd person\0'


def digest(image: np.ndarray) -> np.ndarray:
    """Computes two independent hashes of an image, each uniform over 64 bits.

    Args:
      image: the decoded pixels, uint8 [H, W, C], C is 1 (gray) or 3 (RGB).

    Returns:
      uint64 [2]: the first 16 bytes of the SHA-256 of a constant, the shape and the pixels.
    """
    if image.shape[-1] == 3:
        gray = image[..., :1]
        image = gray if (image == gray).all() else image
    shape = struct.pack('<3I', *image.shape)
    return _words(hashlib.sha256(_RECORD + shape + image.tobytes()).digest())


def digests_of(images: Iterable[np.ndarray]) -> np.ndarray:
    """The `digest` of each image, uint64 [N, 2]."""
    return _stack([digest(image) for image in images])


def digests_of_persons(persons: Iterable[str]) -> np.ndarray:
    """Two independent hashes of each person's name, uint64 [N, 2]."""
    return _stack(
        [
            _words(hashlib.sha256(_PERSON + name.encode('utf-8', 'surrogatepass')).digest())
            for name in persons
        ]
    )


def is_tested_on(digests: np.ndarray) -> np.ndarray:
    """Which of these records, or persons, are set aside for the test: bool [N]."""
    return digests[:, _SPLIT] < np.uint64(_TEST_THRESHOLD)


def is_within_limit(digests: np.ndarray, limit: int, declared: int) -> np.ndarray:
    """Which records, or persons, a limit keeps, each with probability limit / declared.

    Args:
      digests: uint64 [N, 2].
      limit: about how many to keep; below `declared`.
      declared: how many there are, as a public number: with the exact number, one more record could
        move others.

    Returns:
      bool [N].
    """
    return digests[:, _LIMIT] < np.uint64(limit * 2**64 // declared)


def _words(sha256: bytes) -> np.ndarray:
    return np.frombuffer(sha256[:16], '>u8').astype(np.uint64)


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.empty([0, 2], np.uint64)
