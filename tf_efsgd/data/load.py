"""Reads a data set and splits it record by record: the one door to the data.

Which records are tested on, and which ones `limit_records` keeps, is decided for each record alone,
by a hash of its pixels (`split`), or for each person alone, by a hash of the name (`persons`).
Adding or removing a record therefore moves no other. Otherwise one record more or less would change
many, and the privacy guarantee is about one.

What a data set declares of itself (the folders' names, the schema of a TFDS data set) or the caller
declares is taken from there. The rest is read off the records, and `Dataset.read_off` says so.

To add a data set, write its reader in `sources/` and name it in a table below.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_efsgd import files
from tf_efsgd.data import images, parts, persons, split
from tf_efsgd.data.records import READ_OFF, DataError, Dataset, Records, check_declared_size
from tf_efsgd.data.sources import digits, folder, idx, tfds

# Readers by the name of the data set, and by what stands before the colon of its name. Any other
# name is one of TFDS.
_BY_NAME: dict[str, Callable[[str, parts.Wanted], parts.Source]] = {
    'digits': digits.read,
    'mnist_10k': idx.read_mnist_10k,
}
# What comes with the package.
EMBEDDED = tuple(_BY_NAME)
_BY_SCHEME: dict[str, Callable[[str, pathlib.Path, parts.Wanted], parts.Source]] = {
    'folder': folder.read,
    'idx': idx.read,
}


class _Sizes(NamedTuple):
    """Declared numbers of training records and of their persons.

    The number of persons is None if records are not assigned to persons.
    """

    records: int
    persons: int | None


def load(
    dataset: str,
    *,
    data_dir: parts.PathLike | None = None,
    manual_dir: parts.PathLike | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    label: str = 'Male',
    limit_records: int | None = None,
    dataset_size: int | None = None,
    size_was_counted: bool = False,
    person: str | None = None,
    images_per_person: int | None = None,
    dataset_persons: int | None = None,
    bits: int | None = None,
    skip_unreadable: bool = False,
    cache_dir: parts.PathLike | None = None,
) -> Dataset:
    """Loads a data set: into memory, or into files that are mapped into memory.

    A test set that the data set brings along is used as it is. Without one, about a tenth of the
    records is set aside, each chosen by a hash of its decoded pixels. Identical pictures always
    end up on the same side. Images that are not square are cropped to their central square. The
    number of records, the image shape and the classes count as public: whatever is not declared is
    read off the records.

    With `images_per_person`, each person keeps at most that many images, and the split and the
    limit take all of them or none. If a data set brings a test set along and a person is in both
    parts, that person's images in the test part are left out: what is trained on must not depend on
    what is tested on.

    Args:
      dataset: one of
        `mnist_10k` (comes with the package: 9,000 + 1,000 images 28x28);
        `digits` (scikit-learn's, 8x8);
        `folder:PATH` with images in `PATH/<class>/`, or in `PATH/train/<class>/` and perhaps
        `PATH/test/<class>/` or `PATH/val/<class>/`, or all in PATH (one class), see `listing.find`;
        an empty class folder is a class; transparent pixels turn white;
        `idx:PATH` with MNIST's four files, plain or .gz; those named t10k may be absent;
        or the name of a TFDS data set with an image and a class label, e.g. `mnist`, `celeb_a`.
      data_dir: where TFDS keeps its data sets; None for TFDS's own default.
      manual_dir: a folder with files that were downloaded by hand; TFDS looks there first.
      image_size: height and width in pixels to resize to; None keeps the native size.
      channels: 1 turns colours to gray, 3 repeats gray. None takes what the kind or the schema of
        the data set says; where neither says it, 3 if any image has colours.
      classes: names of the classes, in the order of their labels. None takes the class folders or
        the names that the data set has; for idx:, as many classes as its labels show.
      label: for a TFDS data set with yes-no attributes (celeb_a): the attribute to use as class, or
        several with commas, of which each combination is a class; for folder: csv:FILE, a table
        with the columns file and label.
      limit_records: train on about this many records. Each is kept with probability
        limit_records / dataset_size, decided by a hash of its content, so the number that stays
        varies a little. None, or the full size or more, keeps all.
      dataset_size: declared number of training records, before the limit, counting only what
        persons keep: a public number that no record changes. None declares the number found.
      size_was_counted: whether `dataset_size` was found, not declared, by an earlier start; then
        the caller compares it with the records.
      person: how to tell which person an image belongs to, see `persons.Rule`; goes with
        `images_per_person`.
      images_per_person: how many images of a person are kept, at least 1.
      dataset_persons: declared number of persons in the training records, before the limit. None
        declares the number found.
      bits: how many bits the values of 16-bit files have, 8 to 16; None: see `pictures.decode`.
      skip_unreadable: leave out files that cannot be read, and say which in `Dataset.notes`.
      cache_dir: where decoded images of folder: and TFDS data sets are kept and found again, see
        `cache`; it must not be in a run folder. None keeps them in memory, for this time only.

    Returns:
      The data set; train and test have the same image shape and classes.

    Raises:
      DataError: the data set is unknown, missing, damaged, empty or not of a usable kind, or an
        image has no declared class or no person.
    """
    _check_numbers(
        image_size=image_size,
        limit_records=limit_records,
        dataset_size=dataset_size,
        images_per_person=images_per_person,
        dataset_persons=dataset_persons,
    )
    if channels not in (None, 1, 3):
        raise DataError(f'channels must be 1 or 3. Received: {channels}.')
    if (person is None) != (images_per_person is None):
        raise DataError(
            'person and images_per_person go together. Received: '
            f'person={person}, images_per_person={images_per_person}.'
        )
    wanted = parts.Wanted(
        image_size,
        channels,
        None if classes is None else tuple(classes),
        None if person is None else persons.Rule.parse(person),
        label,
        data_dir,
        manual_dir,
        bits,
        skip_unreadable,
        cache_dir,
    )
    source = _read(dataset, wanted)
    train, test = _split(source, images_per_person, cache_dir)
    whole = _Sizes(
        dataset_size or len(train.labels),
        None if images_per_person is None else dataset_persons or len(np.unique(train.persons)),
    )
    if not size_was_counted:
        check_declared_size(len(train.labels), whole.records)
    train, kept = _limit(train, limit_records, whole, images_per_person, cache_dir)
    if not len(train.labels):
        raise DataError(
            f'{dataset} has no training records left. Use more images or a larger limit_records.'
        )
    train_records, test_records = _make_records(dataset, train, test, source.class_names, channels)
    found, read_off = _findings(source, whole, train_records, dataset_size, dataset_persons)
    return Dataset(
        dataset,
        train_records,
        test_records if len(test_records) else None,
        kept.records,
        digests=train.digests,
        images_per_person=images_per_person,
        persons=kept.persons,
        person_rule=source.person_rule,
        person_digests=None if images_per_person is None else _deciding(train, images_per_person),
        found=found,
        read_off=read_off,
        notes=tuple(dict.fromkeys(source.notes)),
    )


def _check_numbers(**numbers: int | None) -> None:
    """Raises DataError for a number that is given and below 1."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise DataError(f'{name} must be at least 1. Received: {value}.')


def _read(dataset: str, wanted: parts.Wanted) -> parts.Source:
    """Finds the reader for the name of a data set and lets it read."""
    scheme, has_scheme, path = dataset.partition(':')
    if has_scheme and scheme in _BY_SCHEME:
        place = files.expanded(path)
        if not path or not place.is_dir():
            raise DataError(f'There is no folder {path!r}. {scheme}: needs the path of a folder.')
        return _BY_SCHEME[scheme](dataset, place, wanted)
    if dataset in _BY_NAME:
        return _BY_NAME[dataset](dataset, wanted)
    return tfds.read(dataset, wanted, other_names=tuple(_BY_NAME), schemes=tuple(_BY_SCHEME))


def _split(
    source: parts.Source, images_per_person: int | None, cache_dir: parts.PathLike | None
) -> tuple[parts.Part, parts.Part]:
    """What to train on and what to test on, once each person keeps only so many images."""
    train, test = source.train, source.test
    if images_per_person is not None:
        train, test = (
            None
            if part is None
            else part.select(
                persons.first_images(part.persons, part.digests, part.labels, images_per_person),
                cache_dir,
            )
            for part in (train, test)
        )
        if test is not None:
            test = test.select(~np.isin(test.persons, np.unique(train.persons)), cache_dir)
    if test is None:
        is_test = split.is_tested_on(_deciding(train, images_per_person))
        train, test = train.select(~is_test, cache_dir), train.select(is_test, cache_dir)
    return train, test


def _limit(
    train: parts.Part,
    limit_records: int | None,
    whole: _Sizes,
    images_per_person: int | None,
    cache_dir: parts.PathLike | None,
) -> tuple[parts.Part, _Sizes]:
    """What a limit keeps of the training records, and the declared sizes of that."""
    if limit_records is None or limit_records >= whole.records:
        return train, whole
    kept = split.is_within_limit(_deciding(train, images_per_person), limit_records, whole.records)
    declared_persons = whole.persons
    if declared_persons is not None:
        declared_persons = -(-declared_persons * limit_records // whole.records)
    return train.select(kept, cache_dir), _Sizes(limit_records, declared_persons)


def _deciding(part: parts.Part, images_per_person: int | None) -> np.ndarray:
    """The hashes that decide what becomes of a record: its own, or its person's."""
    if images_per_person is None:
        return part.digests
    names, codes = np.unique(part.persons, return_inverse=True)
    return split.digests_of_persons(names)[codes]


def _make_records(
    name: str,
    train: parts.Part,
    test: parts.Part,
    class_names: tuple[str, ...],
    channels: int | None,
) -> list[Records]:
    if train.images.shape[1:3] != test.images.shape[1:3]:
        of_train, of_test = (images.size_text(part.images.shape[1:]) for part in (train, test))
        raise DataError(
            f'The training images of {name} are {of_train}, its test images are {of_test}. Set '
            '--image_size to resize them.'
        )
    channels = channels or max(train.images.shape[-1], test.images.shape[-1])
    return [
        Records(
            images.with_channels(part.images, channels), part.labels, len(class_names), class_names
        )
        for part in (train, test)
    ]


def _findings(
    source: parts.Source,
    whole: _Sizes,
    train: Records,
    dataset_size: int | None,
    dataset_persons: int | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the caller left open, and what of that was read off the records; as in Dataset."""
    facts = {
        'classes': source.class_names,
        'channels': train.image_shape[-1],
        'image_size': train.image_shape[0],
        'dataset_size': whole.records,
        'dataset_persons': whole.persons,
    }
    counted = ['dataset_size'] if dataset_size is None else []
    if dataset_persons is None and whole.persons is not None:
        counted.append('dataset_persons')
    read_off = (*source.read_off, *counted)
    return (
        {name: facts[name] for name in (*source.found, *read_off)},
        tuple(name for name in READ_OFF if name in read_off),
    )
