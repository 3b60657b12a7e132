"""Data sets of TensorFlow Datasets, by their names: `mnist`, `celeb_a` and others."""

from __future__ import annotations

import contextlib
import difflib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tf_efsgd.data import parts, persons
from tf_efsgd.data.records import DataError

# The labels of so many records of a split are looked at before all records are decoded.
_LOOKED_AT = 1000
# The most attributes in --label; each combination of them is a class.
_MOST_ATTRIBUTES = 6
# TFDS asks Google Drive for these files; it refuses when many others have asked on the same day.
_BY_HAND = {
    'celeb_a': (
        'img_align_celeba.zip, list_attr_celeba.txt, list_eval_partition.txt, '
        'list_landmarks_align_celeba.txt and identity_CelebA.txt',
        'https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html',
    )
}


def read(
    dataset: str,
    wanted: parts.Wanted,
    *,
    other_names: Sequence[str] = (),
    schemes: Sequence[str] = (),
) -> parts.Source:
    """Reads a data set of TFDS with an image and a class label; prepares it if that is needed.

    Args:
      dataset: its name in TFDS.
      wanted: what was asked for.
      other_names: names of data sets from other sources, for the message about an unknown one.
      schemes: what may come before a colon in a name, for the same message.

    Raises:
      DataError: if the data set is unknown, cannot be obtained, or is not of a usable kind.
    """
    with _quiet_absl():
        builder = _builder(dataset, wanted.data_dir, other_names, schemes)
    if not builder.data_path.exists():
        _prepare(builder, dataset, wanted.manual_dir)
    with _quiet_absl():
        return _read_prepared(builder, dataset, wanted)


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silences what TFDS logs about each step it takes, and its warnings about its own code."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _read_prepared(builder: Any, name: str, wanted: parts.Wanted) -> parts.Source:
    features, splits = builder.info.features, builder.info.splits
    names, partial, get_label = _find_label(features, name, wanted.label)
    names = parts.check_names(name, names, wanted)
    get_person = None
    if wanted.rule is not None:
        of_person, get_person = persons.find_feature(wanted.rule, features, name)
        partial = _both(partial, of_person)
    if 'train' not in splits:
        raise DataError(
            f'{name} has no split train, only {", ".join(splits)}. Use another data set.'
        )
    # The schema is public. What it leaves open is read off the records.
    height, width, depth = features['image'].shape
    channels = wanted.channels or {1: 1, 3: 3, 4: 3}.get(depth)
    read_off: tuple[str, ...] = () if channels else ('channels',)
    read_off += () if wanted.image_size or (height and width) else ('image_size',)

    # These faces are cut to squares of 178 pixels and resized by area, as most work on them does.
    area = builder.name == 'celeb_a'

    def read_part(split: str, has_own_test: bool):
        def describe(position: int) -> str:
            return f'record {position} of {name}, split {split}'

        def items() -> Iterator[parts.Item]:
            stream = _stream(builder, split, partial, get_label, get_person)
            for position, (image, label, person) in enumerate(stream.as_numpy_iterator()):
                if get_person is not None and not person:
                    raise DataError(
                        f'By --person={wanted.rule}, {describe(position)} has no person. Every '
                        'image needs one: use another feature.'
                    )
                if not 0 <= label < len(names):
                    raise DataError(
                        f'There is no label in {describe(position)}. Use another data set.'
                    )
                person = person.decode('utf-8', 'surrogateescape')
                yield parts.Item(functools.partial(bytes, image), label, person)

        labels = f' by {wanted.label}' if 'attributes' in partial else ''
        return parts.part_of_split(
            parts.Split(
                f'{name}{labels}, {split}',
                items,
                splits[split].num_examples,
                describe,
                [_stamps(builder), split],
                has_own_test,
                area,
            ),
            wanted._replace(channels=channels),
        )

    def has_labels(split: str) -> bool:
        stream = _stream(builder, split, partial, get_label).map(lambda image, label, person: label)
        first = stream.take(_LOOKED_AT).as_numpy_iterator()
        return all(0 <= label < len(names) for label in first)

    held_out, notes = _find_held_out(name, splits, has_labels)
    test = None
    if held_out:
        test, more = read_part(held_out, True)
        notes += more
    train, more = read_part('train', held_out is not None)
    identity = None if wanted.rule is None else persons.Identity.of(wanted.rule)
    return parts.Source(
        train, test, names, read_off=read_off, person_rule=identity, notes=(*notes, *more)
    )


def _stamps(builder: Any) -> list:
    """Values that change when a prepared data set does."""
    files = [entry for entry in os.scandir(builder.data_path) if entry.is_file()]
    files.sort(key=lambda entry: entry.name)
    return [
        os.path.abspath(builder.data_path),
        *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files),
    ]


def _find_held_out(
    name: str, splits: Sequence[str], has_labels: Callable[[str], bool]
) -> tuple[str | None, tuple[str, ...]]:
    """Finds the split to test on, and lines about the others.

    Args:
      name: of the data set.
      splits: the names of its splits.
      has_labels: tells whether a split has labels, without decoding an image.

    Raises:
      DataError: if the split to train on has no labels.
    """
    if not has_labels('train'):
        raise DataError(f'The split train of {name} has no labels. Use another data set.')
    notes: tuple[str, ...] = ()
    for split in ('test', 'validation'):
        if split in splits:
            if has_labels(split):
                return split, notes
            notes += (f'{name}: the split {split} has no labels and is not used.',)
    return None, notes


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merges two selections of nested features."""
    merged = {**one, **other}
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            merged[key] = _both(one[key], other[key])
    return merged


def _builder(
    name: str,
    data_dir: parts.PathLike | None,
    other_names: Sequence[str] = (),
    schemes: Sequence[str] = (),
) -> Any:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    unknown = (
        f'There is no data set {name!r}. {_closest(name, [*other_names, *known])} '
        'For images of your own use folder:PATH.'
    )
    if not re.match(r'[A-Za-z_]', name):  # TFDS would explain the grammar of its names.
        raise DataError(unknown)
    scheme, has_scheme, _ = name.partition(':')
    if has_scheme and scheme.split('/')[0] not in known:
        schemes = ' and '.join(f'{own}:PATH' for own in schemes)
        raise DataError(f'A data set is a name without a colon, or {schemes}. Received: {name!r}.')
    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(unknown) from error
    except Exception as error:  # Builders run code of their own, which may raise anything.
        cause = parts.cause_text(error).rstrip('.')
        raise DataError(f'The data set {name!r} cannot be opened: {cause}.') from error


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if close:
        return f'Did you mean {" or ".join(close)}?'
    return f'There are {", ".join(known[:4])} and others.'


def _prepare(builder: Any, name: str, manual_dir: parts.PathLike | None) -> None:
    """Lets TFDS download the files, or take them from manual_dir, and convert them.

    TFDS shows its own progress.
    """
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig()
    if manual_dir is not None:
        manual_dir = os.path.abspath(os.path.expanduser(manual_dir))
        if not os.path.isdir(manual_dir):
            raise DataError(f'--tfds_manual_dir must be a folder. Received: {manual_dir!r}.')
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # Builders run code of their own, which may raise anything.
        if builder.name in _BY_HAND:
            files, where = _BY_HAND[builder.name]
            raise DataError(
                f'{name} cannot be downloaded by TFDS ({parts.cause_text(error)}): its server '
                f'refuses when many ask. Download {files} by hand from {where}, put them into one '
                'folder as they are, and give --tfds_manual_dir=FOLDER.'
            ) from error
        raise DataError(
            f'{name} is not in {builder.data_dir} and cannot be downloaded '
            f'({type(error).__name__}: {parts.cause_text(error)}). Point --data_dir at a folder '
            'where TFDS has prepared it, or --tfds_manual_dir at its downloaded files.'
        ) from error


def _find_label(
    features: Any, name: str, attribute: str
) -> tuple[tuple[str, ...], dict[str, Any], Callable[[Any], tf.Tensor]]:
    """Finds what to use as image and label in the features of a TFDS data set.

    Returns:
      Class names, the features to read, and how to take the label from a record.

    Raises:
      DataError: if the data set has no such features.
    """
    import tensorflow_datasets as tfds

    features = features if isinstance(features, tfds.features.FeaturesDict) else {}
    image = features['image'] if 'image' in features else None
    label = features['label'] if 'label' in features else None
    is_image = isinstance(image, tfds.features.Image)
    if is_image and image.np_dtype in (np.uint8, np.uint16):
        if isinstance(label, tfds.features.ClassLabel) and label.num_classes:
            names = tuple(label.names)
            return names, {'image': True, 'label': True}, lambda record: record['label']
        attributes = features['attributes'] if 'attributes' in features else None
        if isinstance(attributes, tfds.features.FeaturesDict):
            return _find_attribute(attributes, name, attribute)
    raise DataError(
        f'{name} cannot be used: it needs a feature "image" of 8 or 16 bits and a class "label". '
        f'Received: {", ".join(features) or "other features"}.'
    )


def _find_attribute(
    attributes: Any, name: str, wanted: str
) -> tuple[tuple[str, ...], dict[str, Any], Callable[[Any], tf.Tensor]]:
    """Like _find_label, for a data set with yes-no attributes: one, or several with commas."""
    known = [key for key in attributes if attributes[key].np_dtype == np.bool_]
    chosen = [attribute.strip() for attribute in wanted.split(',')]
    for attribute in chosen:
        if attribute not in known:
            close = difflib.get_close_matches(attribute.title(), known, n=3, cutoff=0.4)
            raise DataError(
                f'{name} has no attribute {attribute!r} among its {len(known)}. '
                f'Set --label to one, e.g. {", ".join(close or known[:5])}, or to several with '
                'commas.'
            )
    if len(set(chosen)) < len(chosen) or len(chosen) > _MOST_ATTRIBUTES:
        raise DataError(
            f'--label takes up to {_MOST_ATTRIBUTES} attributes, each once: every combination is a '
            f'class. Received: {wanted}.'
        )
    partial = {'image': True, 'attributes': dict.fromkeys(chosen, True)}
    # The first attribute changes slowest, like the first digit of numbers that count up.
    names = tuple(
        ' + '.join(combination)
        for combination in itertools.product(*((f'not {a}', a) for a in chosen))
    )

    def get_label(record: Any) -> tf.Tensor:
        number = tf.constant(0)
        for attribute in chosen:
            number = 2 * number + tf.cast(record['attributes'][attribute], tf.int32)
        return number

    return names, partial, get_label


def _stream(
    builder: Any,
    split: str,
    partial: dict[str, Any],
    get_label: Callable[[Any], tf.Tensor],
    get_person: Callable[[Any], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Streams a split as (encoded image, label, person), in the order of the files."""
    import tensorflow_datasets as tfds

    # The images stay encoded: our own pipeline decodes them.
    decoders = tfds.decode.PartialDecoding(partial, decoders={'image': tfds.decode.SkipDecoding()})
    stream = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=decoders,
        read_config=tfds.ReadConfig(try_autocache=False, add_tfds_id=False),
    )
    return stream.map(
        lambda record: (
            record['image'],
            tf.cast(get_label(record), tf.int32),
            '' if get_person is None else get_person(record),
        )
    )
