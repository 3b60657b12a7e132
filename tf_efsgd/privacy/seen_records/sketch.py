"""Keyed hashes of records, and sketches: samples of them with the same records in every run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import math
from typing import Any

import numpy as np

_DIGEST_BYTES = 16
# 10,000 hashes of 56 bits take 93 KB in a file.
_MOST_KEPT, _HASH_BYTES = 10_000, 7
_ALL = 2 ** (8 * _HASH_BYTES)
# In a hash that says whose a record is, so many bits are the person's; the others are the record's.
PERSON_BITS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """A sample of a set of hashes: all of them that are below a threshold.

    Attributes:
      kept: uint64 [K], sorted, each once; K is at most 10,000.
      below: the threshold, at most 2^56; with 2^56 all hashes are kept.
    """

    kept: np.ndarray
    below: int = _ALL

    @classmethod
    def of(cls, hashes: np.ndarray) -> Sketch:
        """Sketches hashes, uint64 [N] below 2^56; some may be equal."""
        return cls(np.unique(hashes))._smallest()

    def union(self, other: Sketch) -> Sketch:
        """The sketch of the records of both sketches together."""
        below = min(self.below, other.below)
        kept = np.union1d(self.kept, other.kept)
        return Sketch(kept[kept < np.uint64(below)], below)._smallest()

    def _smallest(self) -> Sketch:
        if len(self.kept) <= _MOST_KEPT:
            return self
        return Sketch(self.kept[:_MOST_KEPT], int(self.kept[_MOST_KEPT]))

    @property
    def is_whole(self) -> bool:
        """Whether every hash was kept."""
        return self.below == _ALL

    def count(self, hashes: np.ndarray) -> int:
        """Counts, or estimates if the sketch is not whole, how many hashes are in the sketched set.

        Args:
          hashes: uint64 [N].

        Returns:
          A number in [0, N]: 0 if none was found, otherwise at least 1; an estimate has two digits.
        """
        found = int(np.isin(hashes, self.kept).sum())
        if self.is_whole or not found:
            return found
        estimate = found * _ALL / self.below
        digits = 1 - math.floor(math.log10(estimate))
        return min(max(round(round(estimate, digits)), found), len(hashes))

    def to_json(self) -> dict[str, Any]:
        """JSON values by name."""
        raw = self.kept.astype('>u8').view(np.uint8).reshape(-1, 8)[:, 8 - _HASH_BYTES :]
        return {'below': self.below, 'kept': base64.b64encode(raw.tobytes()).decode()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Sketch:
        """Reads back what `to_json` made.

        Raises:
          KeyError, TypeError, ValueError: if it is something else.
        """
        raw = np.frombuffer(base64.b64decode(values['kept'], validate=True), np.uint8)
        raw = np.pad(raw.reshape(-1, _HASH_BYTES), [(0, 0), (8 - _HASH_BYTES, 0)])
        return cls(raw.copy().view('>u8').ravel().astype(np.uint64), int(values['below']))


def hashes_of(key: bytes, digests: np.ndarray) -> np.ndarray:
    """The keyed hashes of records, uint64 [N] below 2^56, from digests uint64 [N, 2]."""
    raw, size = np.ascontiguousarray(digests, '>u8').tobytes(), _DIGEST_BYTES
    padding = bytes(8 - _HASH_BYTES)
    tags = b''.join(
        padding + hmac.digest(key, b'record' + raw[at : at + size], 'sha256')[:_HASH_BYTES]
        for at in range(0, len(raw), size)
    )
    return np.frombuffer(tags, '>u8').astype(np.uint64)


def ownership_of(
    key: bytes, digests: np.ndarray, names: np.ndarray, hashes: np.ndarray
) -> np.ndarray:
    """Makes hashes that say whose each record is, uint64 [N] below 2^56.

    The upper bits are those of the record's own hash, so that the sketches of two runs keep the
    same records. The lower bits are a keyed hash of record and person together.

    Args:
      key: of the state folder.
      digests: of the records, uint64 [N, 2].
      names: of the persons' names, uint64 [N, 2].
      hashes: `hashes_of` of the records, uint64 [N].
    """
    pairs = np.ascontiguousarray(np.concatenate([digests, names], axis=1), '>u8').tobytes()
    size, count = 2 * _DIGEST_BYTES, PERSON_BITS // 8
    tags = b''.join(
        hmac.digest(key, b'person' + pairs[at : at + size], 'sha256')[:count]
        for at in range(0, len(pairs), size)
    )
    low = np.frombuffer(tags, '>u2').astype(np.uint64)
    return (hashes & ~np.uint64(2**PERSON_BITS - 1)) | low


def hash_of_rule(key: bytes, rule: bytes) -> str:
    """The keyed hash of a rule of persons; it shows whether two runs have the same rule."""
    return hmac.new(key, b'rule' + rule, hashlib.sha256).hexdigest()
