"""A cache of decoded images on disk: decoded once, mapped into memory at every later start.

A cache is one file for each part of a data set. It is PRIVATE like the images in it: its mode is
0600, and it lies in a folder of the user outside all run folders. It is used only if it is whole
and everything that made it is still the same; otherwise it is made again.

The file holds the images, uint8, then labels, hashes and persons, then a JSON trailer that says
what it is. The trailer is written last, and the file gets its name when all of it is on disk. No
TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import mmap
import os
import pathlib
import struct
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from tf_efsgd import files

SUFFIX = '.images'
_MAGIC = b'tfefsgd1'
_END = struct.Struct('>Q8s')
_TEMPORARY = '.tmp-'
# About so many bytes of a mapping are resident before its pages are given back.
_RESIDENT = 32 * 2**20
_BLOCK = 4 * 2**20
# A copy of some of the mapped records is mapped too if it has at least so many bytes.
_LARGE = 256 * 2**20


def default_folder() -> pathlib.Path:
    """The user's cache folder for this package, by the XDG base directory specification."""
    base = os.environ.get('XDG_CACHE_HOME')
    return (pathlib.Path(base) if base else pathlib.Path.home() / '.cache') / 'tf_efsgd'


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part of a data set is cached.

    Attributes:
      folder: the cache folder.
      what: the data set, its part and the settings, in words for the user; it names the file.
      key: a hash of everything that the content depends on.
    """

    folder: pathlib.Path
    what: str
    key: str

    @classmethod
    def of(cls, folder: str | os.PathLike, what: str, made_by: Any) -> Place:
        """Makes the place of content that depends on `what` and a JSON value."""
        key = hashlib.sha256(json.dumps([what, made_by]).encode('utf-8', 'surrogatepass'))
        return cls(pathlib.Path(folder), what, key.hexdigest())

    @property
    def path(self) -> pathlib.Path:
        """The path of the file."""
        name = hashlib.sha256(self.what.encode('utf-8', 'surrogatepass')).hexdigest()[:16]
        return self.folder / f'{name}{SUFFIX}'


@dataclasses.dataclass(frozen=True)
class Columns:
    """What is cached of a part with N records. All of it is private.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].
      digests: uint64 [N, 2].
      persons: names of persons, object [N].
      notes: what was printed when the images were decoded.
    """

    images: np.ndarray
    labels: np.ndarray
    digests: np.ndarray
    persons: np.ndarray
    notes: tuple[str, ...] = ()


class MappedImages(np.ndarray):
    """Images in a file: an array whose pages do not stay resident.

    Slices, indexed images and single images are read from the file. After a few megabytes the pages
    are given back to the operating system, which keeps them in its own cache.
    """

    @classmethod
    def open(cls, file: IO[bytes], shape: tuple[int, ...]) -> MappedImages:
        """Maps the first bytes of a file."""
        mapping = mmap.mmap(file.fileno(), math.prod(shape), access=mmap.ACCESS_READ)
        array = np.frombuffer(mapping, np.uint8).reshape(shape).view(cls)
        array._mapping, array._taken = mapping, [0]
        return array

    def __array_finalize__(self, parent):
        self._mapping = getattr(parent, '_mapping', None)
        self._taken = getattr(parent, '_taken', [0])

    def __getitem__(self, index):
        taken = super().__getitem__(index)
        if self._mapping is None or not isinstance(taken, np.ndarray):
            return taken
        self._taken[0] += taken.nbytes
        if self._taken[0] > _RESIDENT:
            self.release()
        # A result that is not a view of the file is an ordinary array.
        return taken if np.may_share_memory(taken, self) else taken.view(np.ndarray)

    def __iter__(self) -> Iterator[np.ndarray]:
        rows = max(1, _BLOCK // max(1, self[:1].nbytes))
        for start in range(0, len(self), rows):
            yield from np.array(self[start : start + rows], subok=False)

    def release(self) -> None:
        """Gives the pages back to the operating system."""
        self._taken[0] = 0
        if hasattr(mmap, 'MADV_DONTNEED'):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def __reduce__(self):
        return np.asarray(self).__reduce__()


def take(images: np.ndarray, chosen: np.ndarray, folder: str | os.PathLike | None) -> np.ndarray:
    """Takes some of the images; the copy is in memory only if it is small.

    Args:
      images: uint8 [N, H, W, C].
      chosen: bool [N], which images to take.
      folder: where a file without a name may be made; None copies the images in memory.

    Returns:
      uint8 [n, H, W, C].
    """
    rows = np.flatnonzero(chosen)
    if not len(rows) or rows[-1] - rows[0] + 1 == len(rows):
        start = rows[0] if len(rows) else 0
        return images[start : start + len(rows)]
    size = len(rows) * math.prod(images.shape[1:])
    if folder is None or not isinstance(images, MappedImages) or size < _LARGE:
        return images[rows]
    step = max(1, _BLOCK // math.prod(images.shape[1:]))
    with tempfile.TemporaryFile(dir=os.fspath(folder)) as file:
        for start in range(0, len(rows), step):
            file.write(images[rows[start : start + step]].data)
        file.flush()
        return MappedImages.open(file, (len(rows), *images.shape[1:]))


def read(place: Place) -> Columns | None:
    """Reads a cache; None if there is none, or it is stale or not whole."""
    try:
        with open(place.path, 'rb') as file:
            trailer = _read_trailer(file)
            if trailer['key'] != place.key:
                return None
            return _read_columns(file, trailer)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def _read_trailer(file: IO[bytes]) -> dict:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _END.size))
    size, magic = _END.unpack(file.read())
    if magic != _MAGIC or size > end:
        raise ValueError('no whole cache')
    file.seek(end - _END.size - size)
    trailer = json.loads(file.read(size))
    if not isinstance(trailer, dict) or trailer['end'] != end - _END.size - size:
        raise ValueError('no whole cache')
    return trailer


def _read_columns(file: IO[bytes], trailer: dict) -> Columns:
    shape = tuple(trailer['shape'])
    sum_of_all = 0
    file.seek(0)
    left = trailer['end']
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise ValueError('no whole cache')
        sum_of_all, left = zlib.crc32(block, sum_of_all), left - len(block)
    if sum_of_all != trailer['crc32']:
        raise ValueError('no whole cache')
    count = shape[0]
    file.seek(math.prod(shape))
    labels = np.frombuffer(file.read(4 * count), '<i4').astype(np.int32)
    digests = np.frombuffer(file.read(16 * count), '<u8').astype(np.uint64).reshape(count, 2)
    names = json.loads(file.read(trailer['end'] - file.tell()))
    persons = np.full(count, '', object)
    if names:
        persons[:] = names
    return Columns(
        MappedImages.open(file, shape), labels, digests, persons, tuple(trailer['notes'])
    )


class Rows:
    """Collects decoded images, one batch after the other, in an array in memory.

    Args:
      count: the largest number of images.
    """

    def __init__(self, count: int):
        self._count = count
        self._images: np.ndarray | None = None
        self._done = 0

    def append(self, images: np.ndarray, set_aside: np.ndarray) -> None:
        """Adds images, uint8 [n, H, W, C]; C may grow from 1 to 3.

        Args:
          images: the images.
          set_aside: bool [n], which images `finish` may put last.
        """
        if self._images is None:
            self._images = np.empty([self._count, *images.shape[1:]], np.uint8)
            self._aside = np.zeros(self._count, bool)
        if images.shape[-1] > self._images.shape[-1]:
            self._images = np.repeat(self._images, images.shape[-1], axis=-1)
        end = self._done + len(images)
        self._images[self._done : end], self._aside[self._done : end] = images, set_aside
        self._done = end

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (the images, int64 [N]: the number of each in the order of `append`)."""
        return self._images[: self._done], np.arange(self._done)

    def close(self) -> None:
        """Removes what is not finished."""


class FileRows(Rows):
    """Collects decoded images in a new cache.

    Args:
      place: of the cache.

    Raises:
      OSError: if it cannot be written.
    """

    def __init__(self, place: Place):
        self._place = place
        os.makedirs(place.folder, mode=0o700, exist_ok=True)
        _remove_left_over(place)
        handle, self._path = tempfile.mkstemp(
            prefix=f'.{place.path.name}{_TEMPORARY}', dir=place.folder
        )
        self._file = open(handle, 'r+b')
        # The lock tells others that the file is in use; without locks nobody removes left-overs.
        with contextlib.suppress(OSError):
            files.lock(handle, self._path)
        self._last = tempfile.TemporaryFile(dir=place.folder)
        self._shape: tuple[int, ...] | None = None
        self._counts = [0, 0]
        self._asides: list[np.ndarray] = []

    def append(self, images: np.ndarray, set_aside: np.ndarray) -> None:
        """As `Rows.append`."""
        if self._shape is None:
            self._shape = images.shape[1:]
        if images.shape[-1] > self._shape[-1]:
            self._widen(images.shape[-1])
        for which, file in enumerate((self._file, self._last)):
            part = images[set_aside == bool(which)]
            file.write(np.ascontiguousarray(part).data)
            self._counts[which] += len(part)
        self._asides.append(np.array(set_aside, bool))

    def _widen(self, channels: int) -> None:
        """Repeats the channel of gray images, block by block, beginning at the end."""
        size = math.prod(self._shape)
        step = max(1, _BLOCK // size)
        for count, file in zip(self._counts, (self._file, self._last)):
            for start in reversed(range(0, count, step)):
                file.seek(start * size)
                block = np.frombuffer(file.read(min(step, count - start) * size), np.uint8)
                file.seek(start * size * channels)
                file.write(np.repeat(block, channels).data)
            file.seek(count * size * channels)
        self._shape = (*self._shape[:-1], channels)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """As `Rows.finish`; images that were set aside come last."""
        self._last.seek(0)
        while block := self._last.read(_BLOCK):
            self._file.write(block)
        self._last.close()
        self._file.flush()
        aside = np.concatenate(self._asides)
        order = np.concatenate([np.flatnonzero(~aside), np.flatnonzero(aside)])
        return MappedImages.open(self._file, (sum(self._counts), *self._shape)), order

    def commit(self, columns: Columns) -> None:
        """Writes the other columns, and gives the file its name when all of it is on disk."""
        file = self._file
        file.seek(math.prod(columns.images.shape))
        file.write(columns.labels.astype('<i4').tobytes())
        file.write(columns.digests.astype('<u8').tobytes())
        names = list(columns.persons) if any(columns.persons) else []
        file.write(json.dumps(names).encode())
        end = file.tell()
        file.seek(0)
        sum_of_all, left = 0, end
        while left:
            block = file.read(min(left, _BLOCK))
            sum_of_all, left = zlib.crc32(block, sum_of_all), left - len(block)
        trailer = json.dumps(
            {
                'key': self._place.key,
                'what': self._place.what,
                'shape': columns.images.shape,
                'end': end,
                'crc32': sum_of_all,
                'notes': columns.notes,
                'date': f'{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}',
            }
        ).encode()
        file.write(trailer + _END.pack(len(trailer), _MAGIC))
        file.flush()
        os.fsync(file.fileno())
        os.replace(self._path, self._place.path)
        self._path = None
        self.close()

    def close(self) -> None:
        """Removes what was not committed."""
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._path = None
        self._file.close()
        self._last.close()


def _remove_left_over(place: Place) -> None:
    """Removes what writers of this cache left when they were killed."""
    for path in place.folder.glob(f'.{place.path.name}{_TEMPORARY}*'):
        _remove_unless_written(path)


def _remove_unless_written(path: pathlib.Path) -> bool:
    try:
        with open(path, 'rb') as file:
            files.lock(file, path)
            path.unlink()
    except OSError:
        return False
    return True


# What there is, in words for the user.


@dataclasses.dataclass(frozen=True)
class Item:
    """A file in the cache folder.

    Attributes:
      name: of the file, without its ending.
      what: what it holds, in words.
      date: when it was made, UTC.
      size: in bytes.
      path: of the file.
    """

    name: str
    what: str
    date: str
    size: int
    path: pathlib.Path


def find_items(folder: pathlib.Path) -> list[Item]:
    """Finds the caches in a folder, sorted by what they hold; none if the folder is missing."""
    items = []
    for path in sorted(folder.glob(f'*{SUFFIX}')):
        try:
            with open(path, 'rb') as file:
                trailer = _read_trailer(file)
                what = f'{trailer["what"]}: {trailer["shape"][0]:,} images'
                date = trailer['date']
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            what, date = 'a cache that is not whole', ''
        items.append(Item(path.name[: -len(SUFFIX)], what, date, path.lstat().st_size, path))
    for path in sorted(folder.glob(f'.*{SUFFIX}{_TEMPORARY}*')):
        what = 'is being written, or left over from a crash'
        items.append(Item(path.name, what, '', path.lstat().st_size, path))
    return sorted(items, key=lambda item: item.what)


def remove(items: list[Item]) -> list[Item]:
    """Removes caches, except those that are being written; returns the removed ones."""
    removed = []
    for item in items:
        if _TEMPORARY in item.name:
            if _remove_unless_written(item.path):
                removed.append(item)
        else:
            item.path.unlink(missing_ok=True)
            removed.append(item)
    return removed
