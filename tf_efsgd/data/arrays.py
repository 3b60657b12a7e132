"""Makes a data set of images and labels that are in memory, for callers of the library.

Formal guarantees: those of `load`. A hash of its own pixels decides for each record whether it is
tested on and whether a limit keeps it. Records are sorted by these hashes, so a run recognises its
records in whatever order it is given them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_efsgd.data import images as images_
from tf_efsgd.data import split
from tf_efsgd.data.records import DataError, Dataset, Records, check_declared_size

# The name of such a data set, in the ledger and the statement.
NAME = 'arrays'


def check_images(images: Any) -> np.ndarray:
    """Checks images and brings them to the form that `make_dataset` takes.

    Args:
      images: uint8 [N, H, W, C], C 1 or 3, or [N, H, W].

    Returns:
      uint8 [N, H, W, C], the same memory.

    Raises:
      DataError: if they are something else.
    """
    if not isinstance(images, np.ndarray):
        if not hasattr(images, '__array__'):
            hint = ' Make one of a list with np.stack.' if isinstance(images, (list, tuple)) else ''
            raise DataError(
                f'Images must be a NumPy array, uint8 [N, H, W, C] or [N, H, W].{hint} '
                f'Received: {type(images).__name__}.'
            )
        images = np.asarray(images)
    if images.dtype != np.uint8:
        raise DataError(f'{_advice(images)}. Received: {images.dtype} of shape {images.shape}.')
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or min(images.shape[1:3], default=0) < 1:
        hint = ''
        if images.ndim == 4 and images.shape[1] in (1, 3):
            hint = ' (channels come last: np.moveaxis(images, 1, -1))'
        raise DataError(
            'Images must be [N, H, W, C] with C 1 (gray) or 3 (RGB), or [N, H, W]'
            f'{hint}. Received: {images.shape}.'
        )
    if not len(images):
        raise DataError('There must be at least one image. Received: none.')
    return images


def _advice(images: np.ndarray) -> str:
    """Says what to do with images that are not uint8."""
    must = 'Images must be uint8 in [0, 255]'
    if images.dtype.kind == 'f' and images.size:
        if not np.isfinite(images).all():
            return (
                f'{must}, and some of these numbers are NaN or infinite: repair these images or '
                'leave them out'
            )
        low, high = float(images.min()), float(images.max())
        if 0 <= low and high <= 1:
            return f'{must}, and these are in [0, 1]: use (images * 255).round().astype("uint8")'
        if -1 <= low and high <= 1:
            return (
                f'{must}, and these are in [-1, 1]: use '
                '(images * 127.5 + 127.5).round().astype("uint8")'
            )
        if 0 <= low and high <= 255:
            return f'{must}: use images.round().astype("uint8")'
    if images.dtype.kind in 'iu' and images.size and 0 <= images.min() and images.max() <= 255:
        return f'{must}: use images.astype("uint8")'
    return must


def check_labels(labels: Any, count: int) -> np.ndarray:
    """Checks labels and brings them to the form that `make_dataset` takes.

    Args:
      labels: integers, or names, [N].
      count: N.

    Returns:
      The labels as an array of integers or of texts.

    Raises:
      DataError: if they are something else.
    """
    if labels is None:
        raise DataError(
            'Labels are missing. Give one integer or name for each image, or zeros where all '
            'images are of one class.'
        )
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:  # Keras gives CIFAR-10 like this.
        labels = labels[:, 0]
    if labels.shape != (count,):
        is_one_hot = labels.ndim == 2 and len(labels) == count
        hint = ' (of one-hot labels, labels.argmax(axis=1))' if is_one_hot else ''
        raise DataError(
            f'There must be one label for each of the {count} images{hint}. '
            f'Received: labels of shape {labels.shape}.'
        )
    if labels.dtype.kind == 'O' and all(isinstance(label, str) for label in labels):
        labels = labels.astype(str)
    if labels.dtype.kind == 'O' and all(map(_is_whole, labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in 'iuU':
        hint = ': use labels.astype(int)' if labels.dtype.kind in 'fb' else ''
        raise DataError(f'Labels must be integers or names{hint}. Received: {labels.dtype}.')
    if labels.dtype.kind == 'U' and not all(labels):
        raise DataError('Labels must be names of at least one letter. Received: an empty one.')
    return labels


def _is_whole(label: Any) -> bool:
    return isinstance(label, (int, np.integer)) and not isinstance(label, bool)


def names_of(labels: np.ndarray) -> tuple[str, ...]:
    """The names of the classes of labels, in order: integers by size, names by the alphabet."""
    return tuple(str(label) for label in np.unique(labels))


def make_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    limit_records: int | None = None,
    dataset_size: int | None = None,
    size_was_counted: bool = False,
) -> Dataset:
    """Makes a data set of arrays, like `load.load` does of what it reads.

    Args:
      images: from `check_images`.
      labels: from `check_labels`.
      classes: names of all classes; None reads them off the labels.
      image_size: as in `load.load`.
      channels: as in `load.load`.
      limit_records: as in `load.load`.
      dataset_size: as in `load.load`.
      size_was_counted: as in `load.load`.

    Raises:
      DataError: if a label has none of the classes, or nothing is left to train on.
    """
    names = tuple(classes) if classes is not None else names_of(labels)
    numbers = _numbers(labels, names)
    digests = split.digests_of(images)
    order = np.lexsort([numbers, digests[:, 1], digests[:, 0]])
    height, width = images.shape[1:3]
    if channels == 1 and images.shape[-1] == 3:
        images = np.concatenate(
            [
                np.asarray(images_.to_gray(part))
                for part in np.array_split(images, len(images) // 512 + 1)
            ]
        )
    images = images_.with_channels(images, channels or images.shape[-1])
    images = images_.crop_and_resize_all(images, image_size)
    is_test = split.is_tested_on(digests)[order]
    train, test = order[~is_test], order[is_test]
    size = dataset_size or len(train)
    if not size_was_counted:
        check_declared_size(len(train), size)
    declared = size
    if limit_records is not None and limit_records < size:
        train = train[split.is_within_limit(digests[train], limit_records, size)]
        declared = limit_records
    if not len(train):
        raise DataError('No training records are left. Give more images or a larger limit_records.')
    parts = [Records(images[part], numbers[part], len(names), names) for part in (train, test)]
    facts = {
        'classes': names,
        'channels': images.shape[-1],
        'image_size': images.shape[1],
        'dataset_size': size,
    }
    given = {
        'classes': classes,
        'channels': channels,
        'image_size': image_size,
        'dataset_size': dataset_size,
    }
    found = {name: value for name, value in facts.items() if given[name] is None}
    return Dataset(
        NAME,
        parts[0],
        parts[1] if len(test) else None,
        declared,
        digests=digests[train],
        found=found,
        read_off=tuple(found),
    )


def _numbers(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The position of each label's class, int32 [N]."""
    found, codes = np.unique(labels, return_inverse=True)
    position = {name: i for i, name in enumerate(names)}
    unknown = [str(label) for label in found if str(label) not in position]
    if unknown:
        raise DataError(
            f'Every label must be one of the classes {", ".join(names[:20])}. '
            f'Received: {unknown[0]!r}.'
        )
    return np.array([position[str(label)] for label in found], np.int32)[codes.reshape(-1)]
