"""Which records are tested on, and which ones a limit keeps: each is decided by itself.

Formal guarantees:
  - The hash of a record is of its decoded pixels alone, before any crop or resize: neither its
    place, nor its label, nor the list of classes, nor any other record plays a part in it. Two
    encodings of one picture, and one picture under two labels, fall on the same side.
  - Grey pixels hash alike whether they come with one channel or with three equal ones.
  - The hash of a person is of the person's name alone, and all images of a person follow it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np

# What is hashed goes to the test set when its split hash, uniform over 64 bits, is below this:
# 10.48 %. Changing it moves records between the splits of every data set without a test set.
_TEST_THRESHOLD = 1_933_000_000_000_000_000
_SPLIT, _LIMIT = 0, 1  # The columns of the digests: which of the two hashes decides what.

# These prefixes keep the hashes of records and persons apart. The number is the first with which
# the embedded MNIST is split 9,000 to 1,000 and the digits 1,602 to 195, as by an earlier hash.
_RECORD, _PERSON = b'tf_efsgd record 368\0', b'tf_efsgd person\0'


def digest(image: np.ndarray) -> np.ndarray:
    """Two independent hashes of an image, uniform over 64 bits.

    Args:
      image: the decoded pixels, uint8 [H, W, C], C is 1 (grey) or 3 (RGB).

    Returns:
      uint64 [2]: the first 16 bytes of the SHA-256 of a constant, the shape and the pixels.
    """
    if image.shape[-1] == 3:
        grey = image[..., :1]
        image = grey if (image == grey).all() else image
    shape = struct.pack('<3I', *image.shape)
    return _words(hashlib.sha256(_RECORD + shape + image.tobytes()).digest())


def digests_of(images: Iterable[np.ndarray]) -> np.ndarray:
    """`digest` of each image, uint64 [N, 2]."""
    return _stack([digest(image) for image in images])


def digests_of_persons(persons: Iterable[str]) -> np.ndarray:
    """Two such hashes of each person's name, uint64 [N, 2]."""
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
    """Which ones a limit keeps, each with probability limit / declared: bool [N].

    Args:
      digests: uint64 [N, 2].
      limit: how many to keep, about; below `declared`.
      declared: how many there are, a public number: with that of the records that there are, one
        more of them could move others.
    """
    return digests[:, _LIMIT] < np.uint64(limit * 2**64 // declared)


def _words(sha256: bytes) -> np.ndarray:
    return np.frombuffer(sha256[:16], '>u8').astype(np.uint64)


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.empty([0, 2], np.uint64)
