"""What a source of records is asked for and what it returns, and the decoding of image files.

A source gets a `Wanted` and returns a `Source`, which holds a `Part` for each split that the data
set has of its own.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import errno
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np
import PIL
import tensorflow as tf

from tf_efsgd import machine, progress
from tf_efsgd.data import cache, decoding, dicom, pictures
from tf_efsgd.data import images as images_
from tf_efsgd.data import split as hashes
from tf_efsgd.data.records import DataError

if TYPE_CHECKING:
    from tf_efsgd.data.persons import Identity, Rule

PathLike = Union[str, 'os.PathLike[str]']

# How many decoded images are written at a time, how many images a thread takes at a time, and how
# many such chunks wait for each thread.
_BATCH, _CHUNK, _AHEAD = 64, 16, 3
# How many unreadable files one line names.
_NAMED = 10
# A progress bar appears after so many seconds.
_QUIET = 2.0
# The version of how a file becomes pixels: another version makes caches stale.
_READER = 3
# Errors of a machine that is short of something, which may hit any file. No file is left out for
# them: otherwise one more large image could decide whether another image is read.
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ENOSPC)
_SHORT_OF = 'Images cannot be read now. Free what is missing and start again:'


class Wanted(NamedTuple):
    """What was asked for; the fields are those arguments of `load.load`."""

    image_size: int | None = None
    channels: int | None = None
    classes: tuple[str, ...] | None = None
    rule: Rule | None = None
    label: str = ''
    data_dir: PathLike | None = None
    manual_dir: PathLike | None = None
    bits: int | None = None
    skip_unreadable: bool = False
    cache_dir: PathLike | None = None


class Item(NamedTuple):
    """A record that is still to be decoded.

    Attributes:
      read: returns the content of its image file.
      label: its label.
      person: the name of its person, '' if images are not assigned to persons.
    """

    read: Callable[[], bytes]
    label: int
    person: str


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a data set that is still to be decoded.

    Attributes:
      what: the data set, its place and its part, in words for the user; it names the cache.
      items: gives the records, in an order that stays the same.
      count: how many records there are.
      describe: names the record at a position, for messages.
      made_by: a JSON value on which the records depend: the same value gives the same records.
      has_own_test: whether the data set has a test part of its own.
      area: as in `images.resize`.
      root: the folder that the data set is in; lists of files leave it out.
    """

    what: str
    items: Callable[[], Iterable[Item]]
    count: int
    describe: Callable[[int], str]
    made_by: Any
    has_own_test: bool = True
    area: bool = False
    root: str = ''

    @property
    def title(self) -> str:
        """`what` without the place on this machine."""
        return self.what.replace(self.root, os.path.basename(self.root)) if self.root else self.what


class Part(NamedTuple):
    """Records that are to become a split. Images and labels are as in `Records`."""

    images: np.ndarray
    labels: np.ndarray
    digests: np.ndarray  # uint64 [N, 2], see `split`.
    persons: np.ndarray  # Names [N]; all '' if images are not assigned to persons.

    def select(self, mask: np.ndarray, cache_dir: PathLike | None = None) -> Part:
        """Takes the records where the mask, bool [N], is true, as `cache.take` does."""
        images, *columns = self
        return Part(cache.take(images, mask, cache_dir), *(column[mask] for column in columns))


class Source(NamedTuple):
    """A data set as it was read. Without a test part, the train part is still to be split.

    `found`, `read_off`, `person_rule` and `notes` are as in Dataset.
    """

    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    found: tuple[str, ...] = ()
    read_off: tuple[str, ...] = ()
    person_rule: Identity | None = None
    notes: tuple[str, ...] = ()


def refuse_persons(dataset: str, wanted: Wanted) -> None:
    """Raises DataError if persons are asked for in a data set that does not tell them apart."""
    if wanted.rule is not None:
        raise DataError(
            f'{dataset} does not say which person an image belongs to. --images_per_person is for '
            f'folder: and TFDS data sets. Received: --person={wanted.rule}.'
        )


def check_names(dataset: str, names: tuple[str, ...], wanted: Wanted) -> tuple[str, ...]:
    """Returns the names of a data set's own classes; raises DataError if others are declared."""
    if wanted.classes not in (None, names):
        raise DataError(
            f'{dataset} has classes of its own, {", ".join(names[:20])}. Leave --classes out. '
            f'Received: {", ".join(wanted.classes[:20])}.'
        )
    return names


# A part is made from arrays, or from image files.


def part_of_arrays(images: np.ndarray, labels: np.ndarray, image_size: int | None) -> Part:
    """Makes a part from images that are in memory already.

    Args:
      images: uint8 [N, H, W] or [N, H, W, C].
      labels: integers [N].
      image_size: as in `load.load`.
    """
    images = np.ascontiguousarray(images)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    persons = np.full(len(labels), '', object)
    return Part(
        images_.crop_and_resize_all(images, image_size),
        labels.astype(np.int32),
        hashes.digests_of(images),
        persons,
    )


def part_of_split(split: Split, wanted: Wanted) -> tuple[Part, tuple[str, ...]]:
    """Makes a part from image files: from the cache, or by decoding them on all cores.

    Args:
      split: the part.
      wanted: what was asked for.

    Returns:
      The part, and lines about it, see `Dataset.notes`. With channels None, C is 1 when all of its
      images are gray, otherwise 3.

    Raises:
      DataError: if an image cannot be read, or has another size than the first.
    """
    if wanted.cache_dir is None:
        return _decode(split, wanted, cache.Rows(split.count))
    place = _place(split, wanted)
    known = cache.read(place) or _before_it_was_declared(split, wanted)
    if known is not None:
        said = f'Decoded images are taken from {place.folder}, which holds PRIVATE images.'
        return Part(known.images, known.labels, known.digests, known.persons), (*known.notes, said)
    try:
        rows = cache.FileRows(place)
        try:
            part, notes = _decode(split, wanted, rows)
            rows.commit(cache.Columns(*part, notes))
        finally:
            rows.close()
    except OSError as error:
        raise DataError(
            f'{wanted.cache_dir} cannot be written to: {error.strerror}. Decoded images are kept '
            'there. Give another --cache_dir, or --nocache to keep them in memory.'
        ) from error
    said = (
        f'Decoded images are kept in {place.folder}. They are PRIVATE: only you can read them. '
        'tf-efsgd cache lists and removes them; --nocache keeps none.'
    )
    return part, (*notes, said)


def _before_it_was_declared(split: Split, wanted: Wanted) -> cache.Columns | None:
    """Finds the cache of a start that read the same number of channels off the images.

    A resumed run declares what its first start read off the records.
    """
    if wanted.channels is None:
        return None
    known = cache.read(_place(split, wanted._replace(channels=None)))
    return known if known is not None and known.images.shape[-1] == wanted.channels else None


def _place(split: Split, wanted: Wanted) -> cache.Place:
    settings = {
        'image_size': wanted.image_size,
        'channels': wanted.channels,
        'bits': wanted.bits,
        'skip_unreadable': wanted.skip_unreadable,
        'person': str(wanted.rule or ''),
    }
    given = ', '.join(f'{name}={value}' for name, value in settings.items() if value)
    made_by = [
        [_READER, tf.__version__, PIL.__version__, dicom.version(), pictures.heif_version()],
        [split.area, split.has_own_test],
        split.made_by,
    ]
    what = f'{split.what} ({given})' if given else split.what
    return cache.Place.of(wanted.cache_dir, what, made_by)


class _Decoded(NamedTuple):
    """One decoded record: pixels uint8 [S, S, 1 or 3], or the reason why it cannot be read."""

    pixels: np.ndarray | None
    digest: np.ndarray | None
    bits: int
    has_more: bool
    fault: str = ''


def _decode_item(item: Item, wanted: Wanted, area: bool) -> _Decoded:
    """Decodes one image, hashes it as it is then, crops it to its central square and resizes it."""
    try:
        picture = decoding.decode(item.read(), wanted.bits)
    except decoding.Unreadable as error:
        return _Decoded(None, None, 0, False, str(error))
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise DataError(f'{_SHORT_OF} {error.strerror}.') from error
        return _Decoded(None, None, 0, False, error.strerror or type(error).__name__)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise DataError(f'{_SHORT_OF} not enough memory.') from error
    pixels = picture.pixels
    digest = hashes.digest(pixels)
    if wanted.channels == 1 and pixels.shape[-1] == 3:
        pixels = images_.to_gray(pixels)
    pixels = images_.crop_and_resize(pixels, wanted.image_size, area)
    return _Decoded(pixels, digest, picture.bits, picture.has_more)


def _decode(split: Split, wanted: Wanted, rows: cache.Rows) -> tuple[Part, tuple[str, ...]]:
    """Decodes a part into rows, in order, by as many threads as there are cores."""
    labels: list[int] = []
    persons: list[str] = []
    digests: list[np.ndarray] = []
    found = _Found(split, wanted)
    batch: list[np.ndarray] = []

    def flush():
        if batch:
            channels = wanted.channels or max(
                [pixels.shape[-1] for pixels in batch] + [found.channels]
            )
            found.channels = channels
            stack = np.stack([np.broadcast_to(p, (*p.shape[:2], channels)) for p in batch])
            # Records that the split will set aside for the test may come last: then both parts are
            # slices.
            own = hashes.is_tested_on(np.stack(digests[-len(batch) :]))
            is_split_by_image = not split.has_own_test and wanted.rule is None
            rows.append(stack, own & is_split_by_image)
            batch.clear()

    bar = progress.progress_bar(f'Reading {split.title}', split.count, delay=_QUIET)
    with bar, concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
        for position, (item, decoded) in enumerate(_in_order(pool, split, wanted)):
            bar.update(1)
            if not found.is_usable(position, decoded):
                continue
            labels.append(item.label)
            persons.append(item.person)
            digests.append(decoded.digest)
            batch.append(decoded.pixels)
            if len(batch) == _BATCH:
                flush()
        flush()
    if not labels:
        raise DataError(found.nothing())
    images, order = rows.finish()
    names = np.full(len(persons), '', object)
    names[:] = persons
    part = Part(images, np.array(labels, np.int32)[order], np.stack(digests)[order], names[order])
    return part, found.notes()


def _in_order(
    pool: concurrent.futures.Executor, split: Split, wanted: Wanted
) -> Iterator[tuple[Item, _Decoded]]:
    """Yields the records with what was decoded of them; a few are decoded ahead."""
    waiting: collections.deque = collections.deque()
    items = iter(split.items())
    try:
        while waiting or items is not None:
            while items is not None and len(waiting) < _AHEAD * machine.cores():
                chunk = list(itertools.islice(items, _CHUNK))
                if not chunk:
                    items = None
                    break
                work = pool.submit(
                    lambda c: [_decode_item(i, wanted, split.area) for i in c], chunk
                )
                waiting.append((chunk, work))
            if waiting:
                chunk, work = waiting.popleft()
                yield from zip(chunk, work.result())
    finally:
        for _, work in waiting:
            work.cancel()


class _Found:
    """What decoding finds out beside the pixels, for the terminal or for a DataError."""

    def __init__(self, split: Split, wanted: Wanted):
        self.channels = 1
        self._split, self._wanted = split, wanted
        self._shape: tuple[int, ...] | None = None
        self._faults: list[str] = []
        self._bits: collections.Counter[int] = collections.Counter()
        self._animated = 0

    def is_usable(self, position: int, decoded: _Decoded) -> bool:
        """Whether the record can be trained on; raises DataError if loading must stop."""
        describe = self._split.describe
        if decoded.pixels is None:
            fault = f'{describe(position)}: {decoded.fault}'
            if not self._wanted.skip_unreadable:
                raise DataError(
                    f'An image cannot be read, {fault}. Repair or remove it, or give '
                    '--skip_unreadable to leave such files out.'
                )
            self._faults.append(fault.removeprefix(f'{self._split.root}{os.sep}'))
            return False
        shape = decoded.pixels.shape[:2]
        self._shape = self._shape or shape
        if shape != self._shape:
            raise DataError(
                f'As a square, {describe(position)} is {images_.size_text(shape)}, and the images '
                f'before it are {images_.size_text(self._shape)}. Set --image_size to resize all.'
            )
        self._bits[decoded.bits] += 1
        self._animated += decoded.has_more
        return True

    def nothing(self) -> str:
        """Says why there is no record."""
        if self._faults:
            return (
                f'No image of {self._split.title} can be read. The first fault is '
                f'{self._faults[0]}.'
            )
        return f'There is no {self._split.describe(0)}: the data set is empty. Use another one.'

    def notes(self) -> tuple[str, ...]:
        """What was found, in whole sentences."""
        notes, what = [], self._split.title
        if self._faults:
            more = len(self._faults) - _NAMED
            listed = '; '.join(self._faults[:_NAMED]) + (f'; and {more:,} more' if more > 0 else '')
            notes.append(f'{what}: {len(self._faults):,} unreadable, left out: {listed}.')
        deep = {bits: n for bits, n in sorted(self._bits.items()) if bits}
        if self._wanted.bits is None and set(deep) - {16}:
            counts = ', '.join(f'{n:,} of {bits} bits' for bits, n in deep.items())
            notes.append(
                f'{what}: images in 16-bit files, by the largest value of each: {counts}. If all '
                'are of one device, give --bits, so that one is not shown brighter than another.'
            )
        if self._animated:
            notes.append(
                f'{what}: of {self._animated:,} files with several frames or pages the first is '
                'used.'
            )
        return tuple(notes)


def cause_text(error: BaseException | None) -> str:
    """The text of a library's error in one short line."""
    text = getattr(error, 'message', None) or str(error)
    # TensorFlow names nodes of the graph, which does not help here.
    text = re.sub(r'\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*?\]', '', text)
    text = ' '.join(text.split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + '...'
