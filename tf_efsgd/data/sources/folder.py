"""`folder:PATH`: PNG and JPEG files, one folder for each class."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable

import tensorflow as tf
from absl import logging

from tf_efsgd.data import parts, persons
from tf_efsgd.data.records import DataError

_IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
_KINDS = ', '.join(_IMAGE_SUFFIXES)
# Images that `usual_side` looks at.
_PROBED = 25


def read(dataset: str, root: pathlib.Path, wanted: parts.Wanted) -> parts.Source:
    """Reads the images in class folders.

    Args:
      dataset: the name of the data set.
      root: holds the class folders, or `train` and perhaps `test` with class folders in them.
      wanted: what was asked for.

    Raises:
      DataError: there are no images, one cannot be read, or one is of no declared class or of no
        person.
    """
    del dataset
    train_root, test_root = root / 'train', root / 'test'
    has_parts = train_root.is_dir() and bool(_subfolders(train_root))
    train_root = train_root if has_parts else root
    names = wanted.classes or tuple(path.name for path in _subfolders(train_root))
    if not names:
        raise DataError(f'{train_root} has no class folders; put images into {train_root}/<class>/')
    person_of, identity = None, None
    if wanted.rule is not None:
        person_of, identity = persons.of_files(wanted.rule, root)
    read_off: tuple[str, ...] = ('channels',) if wanted.channels is None else ()
    read_off += ('image_size',) if wanted.image_size is None else ()

    def read_part(folder: pathlib.Path) -> parts.Part:
        files = _list_files(folder, names, wanted)
        return _part_of_files(folder, files, wanted, person_of)

    return parts.Source(
        read_part(train_root),
        read_part(test_root) if has_parts and test_root.is_dir() else None,
        names,
        found=() if wanted.classes else ('classes',),
        read_off=read_off,
        person_rule=identity,
    )


def usual_side(root: pathlib.Path) -> int | None:
    """About how large the images are: the middle of the shorter sides of some of them, in pixels.

    Args:
      root: as for `read`.

    Returns:
      None where there is no image that can be decoded.
    """
    files = sorted(_images_below(root)) if root.is_dir() else []
    sides = []
    for path in files[:: max(1, len(files) // _PROBED)][:_PROBED]:
        try:
            image = tf.io.decode_image(tf.io.read_file(os.fsencode(path)), expand_animations=False)
        except tf.errors.OpError:  # Reading all of them names it.
            continue
        sides.append(min(image.shape[:2]))
    return sorted(sides)[len(sides) // 2] if sides else None


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))


def _list_files(
    folder: pathlib.Path, names: tuple[str, ...], wanted: parts.Wanted
) -> list[tuple[str, int, str]]:
    """The image files below the class folders, sorted: path, label and path in the class folder.

    An empty class folder is a class. A folder that is no class may hold no image.
    """
    with_persons = wanted.rule is not None and wanted.rule.kind == 'folder'
    found = []
    for path in _subfolders(folder):
        files = _images_in(path)
        if with_persons:
            files += [file for person in _subfolders(path) for file in _images_below(person)]
        elif not files and _subfolders(path):
            raise DataError(
                f'{path} has folders in it and no {_KINDS} images of its own; put images into '
                '<class>/, or with --person=folder into <class>/<person>/'
            )
        if files and path.name not in names:
            declared = ', '.join(names[:20])
            raise DataError(
                f'{files[0]} has the class {path.name!r}, which is not '
                + (
                    f'declared by --classes, {declared}; declare the class or remove the image'
                    if wanted.classes
                    else f'a folder of the training images, {declared}; every class of the test '
                    'images must be one of the training images'
                )
            )
        found += [(file, names.index(path.name), os.path.relpath(file, path)) for file in files]
    if not found:
        raise DataError(f'{folder} has no {_KINDS} images in its class folders; put some there')
    return found


def _images_in(folder: pathlib.Path | str) -> list[str]:
    return sorted(
        entry.path
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(_IMAGE_SUFFIXES) and not entry.name.startswith('.')
    )


def _images_below(folder: pathlib.Path) -> Iterable[str]:
    """The images of a person, also those in folders within the person's folder."""
    for path, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        yield from _images_in(path)


def _part_of_files(
    folder: pathlib.Path,
    files: list[tuple[str, int, str]],
    wanted: parts.Wanted,
    person_of: Callable[[str, str], str] | None,
) -> parts.Part:
    logging.info('Reading the images in %s', folder)
    paths, labels, below = (list(column) for column in zip(*files))
    names = ['' if person_of is None else person_of(*pair) for pair in zip(paths, below)]
    # Bytes, for names that are no UTF-8.
    columns = ([os.fsencode(path) for path in paths], labels, [os.fsencode(name) for name in names])
    stream = tf.data.Dataset.from_tensor_slices(columns).map(
        lambda file, *of_record: (tf.io.read_file(file), *of_record),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return parts.part_of_stream(
        stream, len(paths), wanted.image_size, wanted.channels, paths.__getitem__
    )
