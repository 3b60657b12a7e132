"""`folder:PATH`: image files of any kind, by class folders or by a table of labels."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence

from tf_efsgd.data import listing, parts, persons, pictures

# `usual_side` looks at so many images.
_PROBED = 25


def read(dataset: str, root: pathlib.Path, wanted: parts.Wanted) -> parts.Source:
    """Reads the images of a folder.

    Args:
      dataset: the name of the data set.
      root: as in `listing.find`.
      wanted: what was asked for.

    Raises:
      DataError: if there are no images, one cannot be read, or one has no declared class or no
        person.
    """
    del dataset
    by_folder = wanted.rule is not None and wanted.rule.kind == 'folder'
    found = listing.find(root, wanted.classes, wanted.label, has_folders_of_persons=by_folder)
    person_of, identity = None, None
    if wanted.rule is not None:
        person_of, identity = persons.of_files(wanted.rule, root)
    read_off: tuple[str, ...] = ('channels',) if wanted.channels is None else ()
    read_off += ('image_size',) if wanted.image_size is None else ()
    read_off += ('classes',) if found.is_read_off else ()
    has_own_test = found.test is not None

    def read_part(name: str, files: Sequence[listing.File]):
        names = ['' if person_of is None else person_of(file.path, file.below) for file in files]
        place = listing.shown(str(root.resolve()))
        what = f'folder:{place}, {name}'
        split = parts.Split(
            what,
            lambda: _items(files, names),
            len(files),
            lambda position: listing.shown(files[position].path),
            [[*_stamp(file.path), file.label, name] for file, name in zip(files, names)],
            has_own_test,
            root=place,
        )
        return parts.part_of_split(split, wanted)

    train, notes = read_part('train' if has_own_test else 'all', found.train)
    test = None
    if found.test is not None:
        test, more = read_part('test', found.test)
        notes += more
    return parts.Source(
        train,
        test,
        found.class_names,
        found=() if wanted.classes or found.is_read_off else ('classes',),
        read_off=read_off,
        person_rule=identity,
        notes=(*found.notes, *notes),
    )


def _items(files: Sequence[listing.File], names: Sequence[str]) -> Iterator[parts.Item]:
    for file, name in zip(files, names):
        yield parts.Item(pathlib.Path(file.path).read_bytes, file.label, name)


def _stamp(path: str) -> list:
    """Values that change when a file does."""
    try:
        status = os.stat(path)
    except OSError:  # Reading the file will report it.
        return [path]
    return [path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def usual_side(root: pathlib.Path) -> int | None:
    """Estimates how large the images are: the median of the shorter sides of some of them.

    Args:
      root: as for `read`.

    Returns:
      The side in pixels; None if there is no image that can be decoded.
    """
    files = listing.images_below(root)
    sides = []
    for path in files[:: max(1, len(files) // _PROBED)][:_PROBED]:
        try:
            sides.append(pictures.probe(pathlib.Path(path).read_bytes()).side)
        except (OSError, pictures.Unreadable):  # Reading all images will report it.
            continue
    return sorted(sides)[len(sides) // 2] if sides else None
