"""Reads a data set into memory: uint8 images with int32 labels, split record by record.

Which records are tested on, and which ones `limit_records` keeps, is decided for each record alone,
by a hash of its pixels (`split`), or for each person alone, by a hash of the name (`persons`).
Adding or removing a record therefore moves no other: without that, one record more or less would
change many, and the privacy guarantee speaks of one.

What a data set declares of itself (the folders' names, the schema of a TFDS data set) or the caller
declares is taken from there. The rest is read off the records, and `Dataset.read_off` says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gzip
import itertools
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Union

import numpy as np
import tensorflow as tf
from absl import logging

from tf_efsgd.data import persons as persons_
from tf_efsgd.data import split as split_
from tf_efsgd.data.errors import DataError

_PathLike = Union[str, 'os.PathLike[str]']

_EMBEDDED = pathlib.Path(__file__).parent / 'embedded'
_OWN_NAMES = ('digits', 'mnist_10k')
_OWN_SCHEMES = ('folder', 'idx')
_IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
_KINDS = ', '.join(_IMAGE_SUFFIXES)
_IDX_IMAGES, _IDX_LABELS = 2051, 2049  # Magic numbers: uint8 with 3 dimensions, uint8 with 1.

# Records decoded at a time: native images of this many are held beside the result.
_DECODE_BATCH = 64
_RESIZE_BATCH = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Images with their labels.

    Attributes:
      images: uint8 [N, H, W, C] in [0, 255], C is 1 (grey) or 3 (RGB); N may be 0.
      labels: int32 [N] in [0, num_classes).
      num_classes: how many classes there are, public, whether or not each has a record.
      class_names: a name for each class.

    Raises:
      DataError: a dtype, shape, label or the number of names is not as above.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.labels.dtype != np.int32:
            raise DataError(
                'images must be uint8 and labels int32. '
                f'Received: {self.images.dtype} and {self.labels.dtype}'
            )
        if self.images.ndim != 4 or self.images.shape[-1] not in (1, 3):
            raise DataError(
                f'images must be [N, H, W, C] with C 1 or 3. Received: {self.images.shape}'
            )
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f'there must be one label for each of the {len(self.images)} images. '
                f'Received: labels of shape {self.labels.shape}'
            )
        if self.num_classes < 1 or len(self.class_names) != self.num_classes:
            raise DataError(
                f'there must be at least one class, and a name for each of the {self.num_classes}. '
                f'Received: {len(self.class_names)} names'
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise DataError(
                f'labels must be in [0, {self.num_classes}). '
                f'Received: {self.labels.min()} to {self.labels.max()}'
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return tuple(self.images.shape[1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """What to train on, and what to evaluate against.

    Attributes:
      name: the data set as it was asked for.
      train: the records to train on, at least one.
      test: records that training never sees; None when there are none.
      declared_size: number of training records as declared, public; about len(train).
      digests: of the training records, uint64 [N, 2]: `split.digest` of each image as it was
        decoded, before it was cropped or resized. Private, and in memory only.
      images_per_person: at most so many records are of one person; None where a record is not
        given to a person.
      persons: number of persons among the training records as declared, public; None like that.
      person_rule: what decides whose a record is; None like that.
      person_digests: of the name of each training record's person, uint64 [N, 2]; None like that.
        Private, and in memory only.
      found: what the caller left open and the data set, or its records, said: values by the name of
        the argument of `load` that declares it. With them the same data set is read again without
        reading anything public off its records.
      read_off: the names among them that were read off the records, in the order of `READ_OFF`.
    """

    name: str
    train: Records
    test: Records | None
    declared_size: int
    digests: np.ndarray | None = None
    images_per_person: int | None = None
    persons: int | None = None
    person_rule: persons_.Identity | None = None
    person_digests: np.ndarray | None = None
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    read_off: tuple[str, ...] = ()


class _Part(NamedTuple):
    """Records on their way into a split. Images and labels are as in Records."""

    images: np.ndarray
    labels: np.ndarray
    digests: np.ndarray  # uint64 [N, 2], see `split`.
    persons: np.ndarray  # Names [N]; '' where no image is given to a person.

    def select(self, mask: np.ndarray) -> _Part:
        return _Part(*(column[mask] for column in self))


class _Source(NamedTuple):
    """A data set as it was read. Without a test part, the train part is still to be split.

    `found`, `read_off` and `person_rule` are as in Dataset.
    """

    train: _Part
    test: _Part | None
    class_names: tuple[str, ...]
    found: tuple[str, ...] = ()
    read_off: tuple[str, ...] = ()
    person_rule: persons_.Identity | None = None


class _Wanted(NamedTuple):
    """What was asked for, of the arguments of `load`."""

    image_size: int | None
    channels: int | None
    classes: tuple[str, ...] | None
    rule: persons_.Rule | None


# What may be read off the records, by the argument of `load` that declares it.
READ_OFF = ('classes', 'channels', 'image_size', 'dataset_size', 'dataset_persons')


def load(
    dataset: str,
    *,
    data_dir: _PathLike | None = None,
    manual_dir: _PathLike | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    label: str = 'Male',
    limit_records: int | None = None,
    dataset_size: int | None = None,
    person: str | None = None,
    images_per_person: int | None = None,
    dataset_persons: int | None = None,
) -> Dataset:
    """Loads a data set into memory.

    A test set that the data set brings along is used as it is. Without one, about a tenth of the
    records is set aside, each chosen by a hash of its decoded pixels. Identical pictures share
    their fate. Images that are not square are cropped to their central square. Number of records,
    image shape and classes count as public: what of them is not declared is read off the records.

    With `images_per_person`, persons take the place of records: each keeps so many images, and all
    of them are tested on, or kept by a limit, or none. Of a person in both parts of a data set that
    brings a test set along, the images in the test part are left out: what is trained on must not
    depend on what is tested on.

    Args:
      dataset: one of
        `mnist_10k` (comes with the package: 9,000 + 1,000 images 28x28);
        `digits` (scikit-learn's, 8x8);
        `folder:PATH` with `PATH/<class>/*.png|jpg|jpeg`, or `PATH/train/<class>/...` and perhaps
        `PATH/test/<class>/...`; an empty class folder is a class; transparent pixels turn white;
        `idx:PATH` with MNIST's four files, plain or .gz; those named t10k may be absent;
        or the name of a TFDS data set with an image and a class label, e.g. `mnist`, `celeb_a`.
      data_dir: where TFDS keeps its data sets; None for TFDS's own default.
      manual_dir: where files for TFDS lie that were downloaded by hand; it looks there first.
      image_size: height and width in pixels to resize to; None keeps the native size.
      channels: 1 turns colours to grey, 3 repeats grey; None is 3 if an image has colours, but for
        data sets whose kind or schema says it.
      classes: names of the classes, in the order of their labels; None takes the class folders, the
        names of the data set, or of idx: as many as there are labels.
      label: for a TFDS data set with yes-no attributes (celeb_a): the attribute to use as class.
      limit_records: train on about this many records. Each is kept with probability
        limit_records / dataset_size, decided by a hash of its content, so the number that stays
        varies a little. None, or the full size or more, keeps all.
      dataset_size: declared number of training records, before the limit and of what persons keep:
        a public number that no record changes. None declares the number there are.
      person: whose an image is, see `persons.Rule`; goes with `images_per_person`.
      images_per_person: how many images of a person are kept, at least 1.
      dataset_persons: declared number of persons in the training records, before the limit. None
        declares the number there are.

    Returns:
      The data set; train and test have the same image shape and classes.

    Raises:
      DataError: the data set is unknown, missing, damaged, empty or not of a usable kind, an image
        is of no declared class, or of no person.
    """
    for name, value in (
        ('image_size', image_size),
        ('limit_records', limit_records),
        ('dataset_size', dataset_size),
        ('images_per_person', images_per_person),
        ('dataset_persons', dataset_persons),
    ):
        if value is not None and value < 1:
            raise DataError(f'{name} must be at least 1. Received: {value}')
    if channels not in (None, 1, 3):
        raise DataError(f'channels must be 1 or 3. Received: {channels}')
    if (person is None) != (images_per_person is None):
        raise DataError(
            'person and images_per_person go together. Received: '
            f'person={person}, images_per_person={images_per_person}'
        )
    wanted = _Wanted(
        image_size,
        channels,
        None if classes is None else tuple(classes),
        None if person is None else persons_.Rule.parse(person),
    )
    source = _read(dataset, data_dir, manual_dir, wanted, label)
    train, test = _split(source, images_per_person)
    declared, declared_persons = dataset_size or len(train.labels), None
    if images_per_person is not None:
        declared_persons = dataset_persons or len(np.unique(train.persons))
    counts = {'dataset_size': declared, 'dataset_persons': declared_persons}
    if limit_records is not None and limit_records < declared:
        train = train.select(
            split_.is_within_limit(_deciding(train, images_per_person), limit_records, declared)
        )
        if declared_persons is not None:
            declared_persons = -(-declared_persons * limit_records // declared)
        declared = limit_records
    if not len(train.labels):
        raise DataError(
            f'{dataset} has no training records left; use more images or a larger limit_records'
        )
    train_records, test_records = _make_records(dataset, train, test, source.class_names, channels)
    facts = {
        **counts,
        'classes': source.class_names,
        'channels': train_records.image_shape[-1],
        'image_size': train_records.image_shape[0],
    }
    given = {'dataset_size': dataset_size, 'dataset_persons': dataset_persons}
    counted = [name for name in given if given[name] is None and counts[name] is not None]
    return Dataset(
        dataset,
        train_records,
        test_records if len(test_records) else None,
        declared,
        digests=train.digests,
        images_per_person=images_per_person,
        persons=declared_persons,
        person_rule=source.person_rule,
        person_digests=None if images_per_person is None else _deciding(train, images_per_person),
        found={name: facts[name] for name in (*source.found, *source.read_off, *counted)},
        read_off=tuple(name for name in READ_OFF if name in (*source.read_off, *counted)),
    )


def _split(source: _Source, images_per_person: int | None) -> tuple[_Part, _Part]:
    """What to train on and what to test on, of persons what they keep."""
    train, test = source.train, source.test
    if images_per_person is not None:
        train, test = (
            None
            if part is None
            else part.select(
                persons_.first_images(part.persons, part.digests, part.labels, images_per_person)
            )
            for part in (train, test)
        )
        if test is not None:
            test = test.select(~np.isin(test.persons, np.unique(train.persons)))
    if test is None:
        is_test = split_.is_tested_on(_deciding(train, images_per_person))
        train, test = train.select(~is_test), train.select(is_test)
    return train, test


def _deciding(part: _Part, images_per_person: int | None) -> np.ndarray:
    """The hashes that decide what becomes of a record: its own, or its person's."""
    if images_per_person is None:
        return part.digests
    names, codes = np.unique(part.persons, return_inverse=True)
    return split_.digests_of_persons(names)[codes]


def _make_records(
    name: str, train: _Part, test: _Part, class_names: tuple[str, ...], channels: int | None
) -> list[Records]:
    if train.images.shape[1:3] != test.images.shape[1:3]:
        raise DataError(
            f'training images of {name} are {_size_text(train.images.shape[1:])}, test images are '
            f'{_size_text(test.images.shape[1:])}; set --image_size to resize them'
        )
    channels = channels or max(train.images.shape[-1], test.images.shape[-1])
    return [
        Records(_with_channels(part.images, channels), part.labels, len(class_names), class_names)
        for part in (train, test)
    ]


def _read(
    dataset: str,
    data_dir: _PathLike | None,
    manual_dir: _PathLike | None,
    wanted: _Wanted,
    label: str,
) -> _Source:
    """Finds the reader for a data set's name and lets it read."""
    scheme, has_scheme, path = dataset.partition(':')
    if has_scheme and scheme in _OWN_SCHEMES:
        folder = pathlib.Path(path).expanduser()
        if not path or not folder.is_dir():
            raise DataError(f'there is no folder {path!r}; {scheme}: needs the path of a folder')
        if scheme == 'folder':
            return _read_folder(folder, wanted)
        _refuse_persons(dataset, wanted)
        return _read_idx(folder, wanted)
    if dataset in _OWN_NAMES:
        _refuse_persons(dataset, wanted)
        names = _check_names(dataset, _digit_names(10), wanted)
        reader = _read_mnist_10k if dataset == 'mnist_10k' else _read_digits
        return _Source(_part_of_arrays(*reader(), wanted.image_size), None, names)
    return _read_tfds(dataset, data_dir, manual_dir, wanted, label)


def _refuse_persons(dataset: str, wanted: _Wanted) -> None:
    if wanted.rule is not None:
        raise DataError(
            f'{dataset} does not say whose an image is: --images_per_person is for folder: and '
            f'TFDS data sets. Received: --person={wanted.rule}'
        )


def _check_names(dataset: str, names: tuple[str, ...], wanted: _Wanted) -> tuple[str, ...]:
    """The names of the classes of a data set that says them itself."""
    if wanted.classes not in (None, names):
        raise DataError(
            f'{dataset} has classes of its own, {", ".join(names[:20])}: leave --classes out. '
            f'Received: {", ".join(wanted.classes[:20])}'
        )
    return names


# Pixels.


def _size_text(shape: Any) -> str:
    return f'{shape[0]}x{shape[1]}'


def _with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey images as RGB, where that is asked for; the others as they are."""
    return images if images.shape[-1] == channels else np.repeat(images, channels, axis=-1)


def _centre(height: Any, width: Any, side: Any) -> tuple[slice, slice]:
    """Where the central square of this side lies, as slices of rows and columns."""
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def _resize(images: tf.Tensor, image_size: int) -> tf.Tensor:
    """Square images uint8 [..., S, S, C] to uint8 [..., image_size, image_size, C]."""
    resized = tf.image.resize(images, [image_size, image_size], antialias=True)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def _to_grey(rgb: tf.Tensor) -> tf.Tensor:
    """Luma of Rec. 601, in integers, so that grey stays as it is: uint8 [..., 3] to [..., 1]."""
    weighted = tf.cast(rgb, tf.int32) * [299, 587, 114]
    return tf.cast((tf.reduce_sum(weighted, axis=-1, keepdims=True) + 500) // 1000, tf.uint8)


def _part_of_arrays(images: np.ndarray, labels: np.ndarray, image_size: int | None) -> _Part:
    """A part from images uint8 [N, H, W] that are in memory already."""
    digests = split_.digests_of(np.ascontiguousarray(images)[..., np.newaxis])
    height, width = images.shape[1:]
    side = min(height, width)
    rows, columns = _centre(height, width, side)
    images = images[:, rows, columns, np.newaxis]
    if image_size is not None and image_size != side:
        with tf.device('CPU:0'):  # Loading data shall take no memory of a GPU.
            chunks = [
                _resize(images[start : start + _RESIZE_BATCH], image_size).numpy()
                for start in range(0, len(images), _RESIZE_BATCH)
            ]
        images = np.concatenate(chunks)
    persons = np.full(len(labels), '', object)
    return _Part(np.ascontiguousarray(images), labels.astype(np.int32), digests, persons)


def _decode(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes one image.

    Args:
      encoded: string [], a PNG or JPEG of any kind.

    Returns:
      Pixels uint8 [H, W, 3], and whether it is a grey image, bool [].
    """
    # Palettes come out as RGB, of 16 bits the upper 8.
    image = tf.io.decode_image(encoded, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, None])
    channels = tf.shape(image)[-1]
    is_grey = channels <= 2
    rgb = tf.gather(image, tf.where(is_grey, [0, 0, 0], [0, 1, 2]), axis=-1)
    rgb = tf.cond(channels % 2 == 0, lambda: _on_white(rgb, image[..., -1:]), lambda: rgb)
    return rgb, is_grey


def _on_white(rgb: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """Lays pixels of this opacity on white, as a viewer does. All are uint8."""
    opacity = tf.cast(alpha, tf.float32) / 255.0
    blended = tf.cast(rgb, tf.float32) * opacity + 255.0 * (1.0 - opacity)
    return tf.saturate_cast(tf.round(blended), tf.uint8)


def _decode_square(
    encoded: tf.Tensor, image_size: int | None, channels: int | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes one image, crops it to its central square and resizes it.

    Args:
      encoded: string [], a PNG or JPEG of any kind.
      image_size: as in `load`.
      channels: 1 turns colours to grey.

    Returns:
      Pixels uint8 [S, S, 1 or 3], whether it is a grey image, bool [], and its digest as decoded,
      uint64 [2].
    """
    image, is_grey = _decode(encoded)
    digest = tf.ensure_shape(tf.numpy_function(split_.digest, [image], tf.uint64), [2])
    if channels == 1:
        image = _to_grey(image)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.minimum(height, width)
    rows, columns = _centre(height, width, side)
    image = image[rows, columns]
    if image_size is not None:
        # As it is where it has the size already: a run whose size was read off its records declares
        # it when it is resumed, and must see the same pixels.
        image = tf.cond(side == image_size, lambda: image, lambda: _resize(image, image_size))
        image = tf.ensure_shape(image, [image_size, image_size, 1 if channels == 1 else 3])
    return image, is_grey, digest


def _part_of_stream(
    stream: tf.data.Dataset,
    count: int,
    image_size: int | None,
    channels: int | None,
    describe: Callable[[int], str],
) -> _Part:
    """A part from encoded images, decoded and resized one by one in a tf.data pipeline.

    Args:
      stream: elements (encoded image, label, person): string [], integer [] and string [].
      count: how many there are.
      image_size: as in `load`.
      channels: 1, 3, or None for what the images have.
      describe: names the record at a position, for messages.

    Returns:
      The part; with channels None, C is 1 when all of its images are grey, otherwise 3.

    Raises:
      DataError: an image cannot be read, or has another size than the first.
    """
    batches = (
        stream.map(
            lambda encoded, *of_record: (
                *_decode_square(encoded, image_size, channels),
                *of_record,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(_DECODE_BATCH)
        .prefetch(2)
        .as_numpy_iterator()
    )
    images, labels = None, np.empty([count], np.int32)
    digests, persons = np.empty([count, 2], np.uint64), np.full([count], '', object)
    done = 0
    while done < count:
        try:
            decoded, is_grey, batch_digests, batch_labels, names = next(batches)
        except StopIteration:
            break
        except tf.errors.OpError as error:
            shape = None if images is None else images.shape[1:3]
            raise _blame(stream, done, image_size, shape, describe, error) from error
        if images is None:
            images = np.empty([count, *decoded.shape[1:3], channels or 1], np.uint8)
        if decoded.shape[1:3] != images.shape[1:3]:
            raise _blame(stream, done, image_size, images.shape[1:3], describe)
        if channels is None and not is_grey.all():
            images = _with_channels(images, 3)
        end = done + len(decoded)
        images[done:end] = decoded[..., : images.shape[-1]]
        labels[done:end], digests[done:end] = batch_labels, batch_digests
        persons[done:end] = [name.decode('utf-8', 'surrogateescape') for name in names]
        done = end
    if images is None:
        raise DataError(f'there is no {describe(0)}: the data set is empty; use another one')
    return _Part(images[:done], labels[:done], digests[:done], persons[:done])


def _blame(
    stream: tf.data.Dataset,
    start: int,
    image_size: int | None,
    shape: tuple[int, int] | None,
    describe: Callable[[int], str],
    error: Exception | None = None,
) -> DataError:
    """Finds the record that broke the batch at `start`, for the pipeline does not tell."""
    elements = stream.skip(start).take(_DECODE_BATCH).as_numpy_iterator()
    for position in itertools.count(start):
        try:
            found = _decode_square(next(elements)[0], image_size, None)[0].shape[:2]
        except StopIteration:
            break
        except tf.errors.OpError as cause:
            return DataError(
                f'cannot read {describe(position)}: {_cause_text(cause)}; repair or remove it'
            )
        shape = shape or found
        if tuple(found) != tuple(shape):
            return DataError(
                f'{describe(position)} is {_size_text(found)} as a square, the images before it '
                f'{_size_text(shape)}; set --image_size to resize all'
            )
    return DataError(f'cannot read the images from {describe(start)} on: {_cause_text(error)}')


def _cause_text(error: BaseException | None) -> str:
    """An error of a library in one short line."""
    text = getattr(error, 'message', None) or str(error)
    # TensorFlow names the node of the graph, which helps nobody here.
    text = re.sub(r'\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*?\]', '', text)
    text = ' '.join(text.split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + '...'


# digits, idx: and mnist_10k.


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    digits = datasets.load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def _digit_names(num_classes: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(num_classes))


def _read_mnist_10k() -> tuple[np.ndarray, np.ndarray]:
    return _read_idx_pair(_EMBEDDED, 't10k')


def _read_idx(folder: pathlib.Path, wanted: _Wanted) -> _Source:
    # Images of this format are grey, and its header declares their size.
    images, labels = _read_idx_pair(folder, 'train')
    train = _part_of_arrays(images, labels, wanted.image_size)
    names = wanted.classes or _digit_names(int(labels.max()) + 1)
    _check_labels(folder, 'train', labels, wanted)
    test = None
    if any(_find_idx(folder, f't10k-{kind}') for kind in ('images-idx3', 'labels-idx1')):
        images, labels = _read_idx_pair(folder, 't10k')
        _check_labels(folder, 't10k', labels, wanted)
        if labels.max() >= len(names):
            raise DataError(
                f'the test labels in {folder} go up to {labels.max()}, the training labels to '
                f'{len(names) - 1}; a class to test must be among those to train, or declared by '
                '--classes'
            )
        test = _part_of_arrays(images, labels, wanted.image_size)
    return _Source(train, test, names, read_off=() if wanted.classes else ('classes',))


def _check_labels(folder: pathlib.Path, split: str, labels: np.ndarray, wanted: _Wanted) -> None:
    """Raises DataError for the first record whose class is not declared."""
    if wanted.classes is None:
        return
    unknown = np.flatnonzero(labels >= len(wanted.classes))
    if len(unknown):
        raise DataError(
            f'record {unknown[0]} of {_find_idx(folder, f"{split}-labels-idx1")} has the label '
            f'{labels[unknown[0]]}, and --classes declares {len(wanted.classes)} classes: labels '
            f'are 0 to {len(wanted.classes) - 1}; declare the class or remove the record'
        )


def _find_idx(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
    for name in (f'{stem}-ubyte', f'{stem}-ubyte.gz'):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_idx_pair(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W] and labels uint8 [N], N at least 1."""
    images = _read_idx_file(folder, f'{split}-images-idx3', _IDX_IMAGES)
    labels = _read_idx_file(folder, f'{split}-labels-idx1', _IDX_LABELS)
    if len(images) != len(labels):
        raise DataError(
            f'{folder} has {len(images)} {split} images and {len(labels)} labels; '
            'images and labels must be of the same set'
        )
    if not images.size:
        raise DataError(f'the {split} images in {folder} are empty; there must be at least one')
    return images, labels


def _read_idx_file(folder: pathlib.Path, stem: str, magic: int) -> np.ndarray:
    """One file in the format of yann.lecun.com/exdb/mnist, as uint8."""
    path = _find_idx(folder, stem)
    if path is None:
        raise DataError(f'{folder} has neither {stem}-ubyte nor {stem}-ubyte.gz; put one there')
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'cannot read {path}: {_cause_text(error)}; fetch it again') from error
    if len(data) < 4 or int.from_bytes(data[:4], 'big') != magic:
        raise DataError(
            f'{path} is not the IDX file its name says: it must start with the number {magic}. '
            f'Received: {int.from_bytes(data[:4], "big")}'
        )
    header = 4 + 4 * (magic & 0xFF)  # The last byte of the magic number counts the dimensions.
    shape = [int.from_bytes(data[at : at + 4], 'big') for at in range(4, header, 4)]
    wanted = header + int(np.prod(shape, dtype=object))
    if len(data) != wanted:
        fault = 'truncated' if len(data) < wanted else 'too long'
        raise DataError(f'{path} is {fault}: {len(data)} bytes, not {wanted}; fetch it again')
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


# folder:


def _read_folder(root: pathlib.Path, wanted: _Wanted) -> _Source:
    train_root, test_root = root / 'train', root / 'test'
    has_parts = train_root.is_dir() and bool(_subfolders(train_root))
    train_root = train_root if has_parts else root
    names = wanted.classes or tuple(path.name for path in _subfolders(train_root))
    if not names:
        raise DataError(f'{train_root} has no class folders; put images into {train_root}/<class>/')
    person_of, identity = None, None
    if wanted.rule is not None:
        person_of, identity = persons_.of_files(wanted.rule, root)
    read_off = ('channels',) if wanted.channels is None else ()
    read_off += ('image_size',) if wanted.image_size is None else ()

    def read(folder: pathlib.Path) -> _Part:
        files = _list_files(folder, names, wanted)
        return _part_of_files(folder, files, wanted, person_of)

    return _Source(
        read(train_root),
        read(test_root) if has_parts and test_root.is_dir() else None,
        names,
        found=() if wanted.classes else ('classes',),
        read_off=read_off,
        person_rule=identity,
    )


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))


def _list_files(
    folder: pathlib.Path, names: tuple[str, ...], wanted: _Wanted
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
                f'{path} has folders in it and no {_KINDS} images of its own; images lie in '
                '<class>/, or with --person=folder in <class>/<person>/'
            )
        if files and path.name not in names:
            declared = ', '.join(names[:20])
            raise DataError(
                f'{files[0]} is of the class {path.name!r}, which is not '
                + (
                    f'declared by --classes, {declared}; declare the class or remove the image'
                    if wanted.classes
                    else f'a folder of the training images, {declared}; a class to test must be '
                    'among those to train'
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
    """The images of a person, in folders of the person's own too."""
    for path, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        yield from _images_in(path)


def _part_of_files(
    folder: pathlib.Path,
    files: list[tuple[str, int, str]],
    wanted: _Wanted,
    person_of: Callable[[str, str], str] | None,
) -> _Part:
    logging.info('Reading the images in %s', folder)
    paths, labels, below = (list(column) for column in zip(*files))
    persons = ['' if person_of is None else person_of(*pair) for pair in zip(paths, below)]
    # Bytes, for names that are no UTF-8.
    columns = ([os.fsencode(path) for path in paths], labels, [os.fsencode(p) for p in persons])
    stream = tf.data.Dataset.from_tensor_slices(columns).map(
        lambda file, *of_record: (tf.io.read_file(file), *of_record),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return _part_of_stream(
        stream, len(paths), wanted.image_size, wanted.channels, paths.__getitem__
    )


# TensorFlow Datasets.


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Silences what TFDS logs about each step it takes, and its warnings about its own code."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _read_tfds(
    name: str,
    data_dir: _PathLike | None,
    manual_dir: _PathLike | None,
    wanted: _Wanted,
    label: str,
) -> _Source:
    with _quiet_absl():
        builder = _tfds_builder(name, data_dir)
    if not builder.data_path.exists():
        _prepare(builder, name, manual_dir)
    with _quiet_absl():
        return _read_prepared(builder, name, wanted, label)


def _read_prepared(builder: Any, name: str, wanted: _Wanted, label: str) -> _Source:
    features, splits = builder.info.features, builder.info.splits
    names, partial, get_label = _find_label(features, name, label)
    names = _check_names(name, names, wanted)
    get_person = None
    if wanted.rule is not None:
        of_person, get_person = persons_.find_feature(wanted.rule, features, name)
        partial = _both(partial, of_person)
    if 'train' not in splits:
        raise DataError(f'{name} has no split train, only {", ".join(splits)}; use another one')
    # The schema is public; where it leaves something open, the records say it.
    height, width, depth = features['image'].shape
    channels = wanted.channels or {1: 1, 3: 3, 4: 3}.get(depth)
    read_off = () if channels else ('channels',)
    read_off += () if wanted.image_size or (height and width) else ('image_size',)

    def read(split: str) -> _Part:
        def describe(position: int) -> str:
            return f'record {position} of {name}, split {split}'

        stream = _tfds_stream(builder, split, partial, get_label, get_person)
        count = splits[split].num_examples
        part = _part_of_stream(stream, count, wanted.image_size, channels, describe)
        if get_person is not None and not all(part.persons):
            position = list(part.persons).index('')
            raise DataError(
                f'{describe(position)} has no person by --person={wanted.rule}; every image needs '
                'one: use another feature'
            )
        return part

    held_out = next((split for split in ('test', 'validation') if split in splits), None)
    test = read(held_out) if held_out else None
    identity = None if wanted.rule is None else persons_.Identity.of(wanted.rule)
    return _Source(read('train'), test, names, read_off=read_off, person_rule=identity)


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What two selections of nested features select together."""
    merged = {**one, **other}
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            merged[key] = _both(one[key], other[key])
    return merged


def _tfds_builder(name: str, data_dir: _PathLike | None) -> Any:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    unknown = (
        f'unknown data set {name!r}; {_closest(name, [*_OWN_NAMES, *known])} '
        'For images of your own use folder:PATH'
    )
    if not re.match(r'[A-Za-z_]', name):  # TFDS would explain the grammar of its names.
        raise DataError(unknown)
    scheme, has_scheme, _ = name.partition(':')
    if has_scheme and scheme.split('/')[0] not in known:
        schemes = ' and '.join(f'{own}:PATH' for own in _OWN_SCHEMES)
        raise DataError(f'unknown scheme in the data set {name!r}; there are {schemes}')
    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(unknown) from error
    except Exception as error:  # Builders run code of their own, which may raise anything.
        raise DataError(f'cannot open the data set {name!r}: {_cause_text(error)}') from error


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if close:
        return f'did you mean {" or ".join(close)}?'
    return f'there are {", ".join(known[:4])} and others.'


def _prepare(builder: Any, name: str, manual_dir: _PathLike | None) -> None:
    """Lets TFDS download, or take from manual_dir, and convert. It shows its own progress."""
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig()
    if manual_dir is not None:
        manual_dir = os.path.abspath(os.path.expanduser(manual_dir))
        if not os.path.isdir(manual_dir):
            raise DataError(f'there is no folder {manual_dir!r} to use as --tfds_manual_dir')
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # Builders run code of their own, which may raise anything.
        raise DataError(
            f'{name} is not in {builder.data_dir} and cannot be downloaded '
            f'({type(error).__name__}: {_cause_text(error)}); point --data_dir at a folder where '
            'TFDS has prepared it, or --tfds_manual_dir at its downloaded files'
        ) from error


def _find_label(
    features: Any, name: str, attribute: str
) -> tuple[tuple[str, ...], dict[str, Any], Callable[[Any], tf.Tensor]]:
    """Finds what to use as image and label in the features of a TFDS data set.

    Returns:
      Class names, the features to read, and how to take the label from a record.

    Raises:
      DataError: the data set has no such thing.
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
        f'Received: {", ".join(features) or "other features"}'
    )


def _find_attribute(
    attributes: Any, name: str, attribute: str
) -> tuple[tuple[str, ...], dict[str, Any], Callable[[Any], tf.Tensor]]:
    """Like _find_label, for a data set with yes-no attributes."""
    known = [key for key in attributes if attributes[key].np_dtype == np.bool_]
    if attribute not in known:
        close = difflib.get_close_matches(attribute.title(), known, n=3, cutoff=0.4) or known[:5]
        raise DataError(
            f'{name} has no attribute {attribute!r} among its {len(known)}; '
            f'set --label to one, e.g. {", ".join(close)}'
        )
    partial = {'image': True, 'attributes': {attribute: True}}
    names = (f'not {attribute}', attribute)
    return names, partial, lambda record: record['attributes'][attribute]


def _tfds_stream(
    builder: Any,
    split: str,
    partial: dict[str, Any],
    get_label: Callable[[Any], tf.Tensor],
    get_person: Callable[[Any], tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """A split as (encoded image, label, person), in the order of the files."""
    import tensorflow_datasets as tfds

    # Encoded images: decoding them is our pipeline's.
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
