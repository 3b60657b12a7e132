"""`idx:PATH` reads MNIST's four files; `mnist_10k` are two of them, which come with the package."""

from __future__ import annotations

import gzip
import pathlib
import zlib

import numpy as np

from tf_efsgd.data import parts
from tf_efsgd.data.records import DataError

_EMBEDDED = pathlib.Path(__file__).parents[1] / 'embedded'
_IMAGES, _LABELS = 2051, 2049  # Magic numbers: uint8 with 3 dimensions, uint8 with 1.


def read_mnist_10k(dataset: str, wanted: parts.Wanted) -> parts.Source:
    """Reads the test images of MNIST that come with the package.

    Args:
      dataset: its name.
      wanted: what was asked for.

    Raises:
      DataError: if other classes, or persons, are asked for.
    """
    parts.refuse_persons(dataset, wanted)
    names = parts.check_names(dataset, _names(10), wanted)
    images, labels = _read_pair(_EMBEDDED, 't10k')
    return parts.Source(parts.part_of_arrays(images, labels, wanted.image_size), None, names)


def read(dataset: str, folder: pathlib.Path, wanted: parts.Wanted) -> parts.Source:
    """Reads MNIST's four files; those named t10k may be absent.

    Args:
      dataset: the name of the data set.
      folder: where the files are, plain or .gz.
      wanted: what was asked for.

    Raises:
      DataError: if a file is missing or damaged, a label has no declared class, or persons are
        asked for.
    """
    parts.refuse_persons(dataset, wanted)
    # Images in this format are gray, and its header declares their size.
    images, labels = _read_pair(folder, 'train')
    train = parts.part_of_arrays(images, labels, wanted.image_size)
    names = wanted.classes or _names(int(labels.max()) + 1)
    _check_labels(folder, 'train', labels, wanted)
    test = None
    if any(_find(folder, f't10k-{kind}') for kind in ('images-idx3', 'labels-idx1')):
        images, labels = _read_pair(folder, 't10k')
        _check_labels(folder, 't10k', labels, wanted)
        if labels.max() >= len(names):
            raise DataError(
                f'The test labels in {folder} go up to {labels.max()}, the training labels to '
                f'{len(names) - 1}. Every class of the test images must be one of the training '
                'images, or be declared by --classes.'
            )
        test = parts.part_of_arrays(images, labels, wanted.image_size)
    return parts.Source(train, test, names, read_off=() if wanted.classes else ('classes',))


def _names(num_classes: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(num_classes))


def _check_labels(
    folder: pathlib.Path, split: str, labels: np.ndarray, wanted: parts.Wanted
) -> None:
    """Raises DataError for the first record whose class is not declared."""
    if wanted.classes is None:
        return
    unknown = np.flatnonzero(labels >= len(wanted.classes))
    if len(unknown):
        raise DataError(
            f'Record {unknown[0]} of {_find(folder, f"{split}-labels-idx1")} has the label '
            f'{labels[unknown[0]]}, and --classes declares {len(wanted.classes)} classes with the '
            f'labels 0 to {len(wanted.classes) - 1}. Declare the class or remove the record.'
        )


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    for name in (f'{stem}-ubyte', f'{stem}-ubyte.gz'):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_pair(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads images uint8 [N, H, W] and labels uint8 [N], N at least 1."""
    images = _read_file(folder, f'{split}-images-idx3', _IMAGES)
    labels = _read_file(folder, f'{split}-labels-idx1', _LABELS)
    if len(images) != len(labels):
        raise DataError(
            f'{folder} has {len(images)} {split} images and {len(labels)} labels. '
            'Images and labels must be of the same set.'
        )
    if not images.size:
        raise DataError(f'The {split} images in {folder} are empty. There must be at least one.')
    return images, labels


def _read_file(folder: pathlib.Path, stem: str, magic: int) -> np.ndarray:
    """Reads one file in the format of yann.lecun.com/exdb/mnist, as uint8."""
    path = _find(folder, stem)
    if path is None:
        raise DataError(f'{folder} has neither {stem}-ubyte nor {stem}-ubyte.gz. Put one there.')
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
    except (OSError, EOFError, zlib.error) as error:
        cause = parts.cause_text(error).rstrip('.')
        raise DataError(f'{path} cannot be read: {cause}. Fetch it again.') from error
    if len(data) < 4 or int.from_bytes(data[:4], 'big') != magic:
        raise DataError(
            f'{path} is not the IDX file its name says: it must start with the number {magic}. '
            f'Received: {int.from_bytes(data[:4], "big")}.'
        )
    header = 4 + 4 * (magic & 0xFF)  # The last byte of the magic number counts the dimensions.
    shape = [int.from_bytes(data[at : at + 4], 'big') for at in range(4, header, 4)]
    wanted = header + int(np.prod(shape, dtype=object))
    if len(data) != wanted:
        fault = 'truncated' if len(data) < wanted else 'too long'
        raise DataError(f'{path} is {fault}: {len(data)} bytes, not {wanted}. Fetch it again.')
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
