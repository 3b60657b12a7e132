"""Looks at a folder: data set before anything is trained: what it has, and what cannot be read.

The result is private and only for the terminal, because it names and counts files. No TensorFlow.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from tf_efsgd import machine, progress
from tf_efsgd.data import listing, persons, pictures

# The share of records to train on if there is no test set, see `split.is_tested_on`.
_TRAINED_ON = 1 - 1_933_000_000_000_000_000 / 2**64
_CHUNK = 16
_AHEAD = 3
_NAMED, _NAMED_CLASSES = 5, 20
# A progress bar appears after so many seconds.
_QUIET = 2.0
# These kinds of files are not mentioned: everybody expects that they are read.
_USUAL = ('.png', '.jpg', '.jpeg')


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is in a folder.

    Attributes:
      class_names: in the order of their labels.
      counts: the number of readable images of each class, including those to test on.
      trained_on: about how many of them are trained on.
      unreadable: 'path: why' of each file that cannot be read.
      kinds: how many readable files there are of each ending, in lower case.
      usual_side: the median of the shorter sides, in pixels.
      channels: 3 if any image has colours, else 1.
      has_patients: whether there are DICOM files.
      notes: as in `listing.Listing`.
    """

    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    trained_on: int
    unreadable: tuple[str, ...]
    kinds: dict[str, int]
    usual_side: int
    channels: int
    has_patients: bool
    notes: tuple[str, ...]

    @property
    def images(self) -> int:
        """How many images can be read."""
        return sum(self.counts)

    def lines(self, skips_unreadable: bool = False) -> list[str]:
        """What was found, in lines for the user.

        Args:
          skips_unreadable: whether the user leaves out files that cannot be read.
        """
        classes = f'{len(self.counts):,} class{"es" if len(self.counts) > 1 else ""}'
        lines = [f'{self.images:,} images, {classes} ({_spread(self)}).']
        if len(self.class_names) > 1 and not _names_all(self):
            named = ', '.join(self.class_names[:_NAMED_CLASSES])
            more = len(self.class_names) - _NAMED_CLASSES
            lines.append(f'Classes: {named}{f" and {more:,} more" if more > 0 else ""}.')
        if self.unreadable:
            listed = '; '.join(self.unreadable[:_NAMED])
            more = len(self.unreadable) - _NAMED
            listed += f'; and {more:,} more' if more > 0 else ''
            how = (
                'They are left out.'
                if skips_unreadable
                else '--skip_unreadable leaves such files out.'
            )
            lines.append(f'{len(self.unreadable):,} unreadable: {listed}. {how}')
        odd = {kind: n for kind, n in sorted(self.kinds.items()) if kind not in _USUAL}
        if odd:
            read = ', '.join(f'{n:,} {kind or "without an ending"}' for kind, n in odd.items())
            lines.append(f'Read too: {read}.')
        return [*lines, *self.notes]


def _names_all(survey: Survey) -> bool:
    """Whether `_spread` names all classes."""
    counts = survey.counts
    return min(counts) != max(counts) and len(counts) <= _NAMED


def _spread(survey: Survey) -> str:
    """How the images are spread over the classes, in a few words."""
    counts = survey.counts
    if min(counts) == max(counts):
        return f'{counts[0]:,} each' if len(counts) > 1 else survey.class_names[0]
    if len(counts) <= _NAMED:
        return ', '.join(f'{name}: {n:,}' for name, n in zip(survey.class_names, counts))
    least, most = int(np.argmin(counts)), int(np.argmax(counts))
    return (
        f'from {counts[least]:,} of {survey.class_names[least]} to {counts[most]:,} of '
        f'{survey.class_names[most]}'
    )


@dataclasses.dataclass(frozen=True)
class _Look:
    """What was seen of one file: its shorter side and channels, or why it cannot be read."""

    side: int = 0
    channels: int = 0
    fault: str = ''


def _look(file: listing.File, bits: int | None) -> _Look:
    try:
        pixels = pictures.decode(pathlib.Path(file.path).read_bytes(), bits).pixels
    except pictures.Unreadable as error:
        return _Look(fault=str(error))
    except OSError as error:
        return _Look(fault=error.strerror or type(error).__name__)
    except MemoryError:
        return _Look(fault='it takes more memory than there is')
    return _Look(min(pixels.shape[:2]), pixels.shape[-1])


def survey(
    root: pathlib.Path,
    classes: Sequence[str] | None = None,
    label: str = '',
    bits: int | None = None,
    *,
    person: persons.Rule | None = None,
    images_per_person: int | None = None,
) -> Survey:
    """Looks at every image of a folder.

    Args:
      root: as in `listing.find`.
      classes: as in `listing.find`.
      label: as in `listing.find`.
      bits: as in `pictures.decode`.
      person: says whose an image is; None if persons are not asked for.
      images_per_person: how many images of a person are trained on; None: all.

    Raises:
      DataError: as in `listing.find`, or if an image has no person.
    """
    of_folders = person is not None and person.kind == 'folder'
    found = listing.find(root, classes, label, has_folders_of_persons=of_folders)
    files = (*found.train, *(found.test or ()))
    whose: list[str] = []
    if person is not None:
        person_of, _ = persons.of_files(person, root)
        whose = [person_of(file.path, file.below) for file in files]
    kept: collections.Counter[str] = collections.Counter()
    counts = np.zeros(len(found.class_names), int)
    kinds: collections.Counter[str] = collections.Counter()
    unreadable, sides, channels, trained_on = [], [], 1, 0
    bar = progress.progress_bar(f'Looking at {listing.shown(root.name)}', len(files), delay=_QUIET)
    with bar, concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
        for position, (file, look) in enumerate(_in_order(pool, files, bits)):
            bar.update(1)
            if look.fault:
                below = os.path.relpath(file.path, root)
                unreadable.append(f'{listing.shown(below)}: {look.fault}')
                continue
            counts[file.label] += 1
            kinds[os.path.splitext(file.path)[1].lower()] += 1
            sides.append(look.side)
            channels = max(channels, look.channels)
            if position < len(found.train):
                trained_on += 1
                if whose:
                    kept[whose[position]] += 1
    if whose and images_per_person is not None:
        trained_on = sum(min(images, images_per_person) for images in kept.values())
    if found.test is None:
        trained_on = round(_TRAINED_ON * trained_on)
    return Survey(
        found.class_names,
        tuple(counts.tolist()),
        trained_on,
        tuple(unreadable),
        dict(kinds),
        sorted(sides)[len(sides) // 2] if sides else 0,
        channels,
        any(kind in ('.dcm', '.dicom', '') for kind in kinds),
        found.notes,
    )


def _in_order(
    pool: concurrent.futures.Executor, files: Sequence[listing.File], bits: int | None
) -> Iterator[tuple[listing.File, _Look]]:
    waiting: collections.deque = collections.deque()
    rest = iter(files)
    while True:
        while len(waiting) < _AHEAD * machine.cores():
            chunk = list(itertools.islice(rest, _CHUNK))
            if not chunk:
                break
            waiting.append((chunk, pool.submit(lambda c: [_look(file, bits) for file in c], chunk)))
        if not waiting:
            return
        chunk, work = waiting.popleft()
        yield from zip(chunk, work.result())
