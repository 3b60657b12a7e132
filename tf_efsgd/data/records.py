"""Reads a data set into memory: uint8 images with int32 labels, split record by record.

Which records are tested on, and which ones `limit_records` keeps, is decided for each record alone,
by a hash of its content. Adding or removing a record therefore moves no other: without that, one
record more or less would change many, and the privacy guarantee speaks of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gzip
import hashlib
import itertools
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Union

import numpy as np
import tensorflow as tf
from absl import logging

_PathLike = Union[str, 'os.PathLike[str]']

# A record goes to the test set when its split hash, uniform over 64 bits, is below this: 10.48 %.
# Of the 10,000 embedded MNIST records exactly 1,000 are. Changing it moves records between the
# splits of every data set that comes without a test set.
_TEST_THRESHOLD = 1_933_000_000_000_000_000
_SPLIT, _LIMIT = 0, 1  # The columns of the digests: which of a record's two hashes decides what.

_EMBEDDED = pathlib.Path(__file__).parent / 'embedded'
_OWN_NAMES = ('digits', 'mnist_10k')
_OWN_SCHEMES = ('folder', 'idx')
_IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
_IDX_IMAGES, _IDX_LABELS = 2051, 2049  # Magic numbers: uint8 with 3 dimensions, uint8 with 1.

# Records decoded at a time: native images of this many are held beside the result.
_DECODE_BATCH = 64
_RESIZE_BATCH = 1024


class DataError(ValueError):
    """The data cannot be used as asked; the message is one line that says what to do."""

    def __init__(self, message: str):
        super().__init__(' '.join(message.split()))


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
      digests: uint64 [N, 2], a hash of each training record's picture, before any resizing.
    """

    name: str
    train: Records
    test: Records | None
    declared_size: int
    digests: np.ndarray


class _Part(NamedTuple):
    """Records on their way into a split. Images and labels are as in Records."""

    images: np.ndarray
    labels: np.ndarray
    digests: np.ndarray  # uint64 [N, 2]: the hash that splits and the hash that limits.
    pictures: np.ndarray  # uint64 [N, 2]: a hash of the image alone.

    def select(self, mask: np.ndarray) -> _Part:
        return _Part(*(column[mask] for column in self))


class _Source(NamedTuple):
    """A data set as it was read. Without a test part, the train part is still to be split."""

    train: _Part
    test: _Part | None
    class_names: tuple[str, ...]


def load(
    dataset: str,
    *,
    data_dir: _PathLike | None = None,
    manual_dir: _PathLike | None = None,
    image_size: int | None = None,
    label: str = 'Male',
    limit_records: int | None = None,
    dataset_size: int | None = None,
) -> Dataset:
    """Loads a data set into memory.

    A test set that the data set brings along is used as it is. Without one, about a tenth of the
    records is set aside, each chosen by a hash of its image as stored and its label. Identical
    records share their fate. Images that are not square are cropped to their central square.
    Number of records, image shape and classes count as public.

    Args:
      dataset: one of
        `mnist_10k` (comes with the package: 9,000 + 1,000 images 28x28);
        `digits` (scikit-learn's, 8x8);
        `folder:PATH` with `PATH/<class>/*.png|jpg|jpeg`, or `PATH/train/<class>/...` and perhaps
        `PATH/test/<class>/...`; transparent pixels turn white;
        `idx:PATH` with MNIST's four files, plain or .gz; those named t10k may be absent;
        or the name of a TFDS data set with an image and a class label, e.g. `mnist`, `celeb_a`.
      data_dir: where TFDS keeps its data sets; None for TFDS's own default.
      manual_dir: where files for TFDS lie that were downloaded by hand; it looks there first.
      image_size: height and width in pixels to resize to; None keeps the native size.
      label: for a TFDS data set with yes-no attributes (celeb_a): the attribute to use as class.
      limit_records: train on about this many records. Each is kept with probability
        limit_records / dataset_size, decided by a hash of its content, so the number that stays
        varies a little. None, or the full size or more, keeps all.
      dataset_size: declared number of training records, before the limit: a public number that
        no record changes. None declares the number there are.

    Returns:
      The data set; train and test have the same image shape and classes.

    Raises:
      DataError: the data set is unknown, missing, damaged, empty or not of a usable kind.
    """
    for name, value in (
        ('image_size', image_size),
        ('limit_records', limit_records),
        ('dataset_size', dataset_size),
    ):
        if value is not None and value < 1:
            raise DataError(f'{name} must be at least 1. Received: {value}')
    source = _read(dataset, data_dir, manual_dir, image_size, label)
    train, test = source.train, source.test
    if test is None:
        is_test = train.digests[:, _SPLIT] < np.uint64(_TEST_THRESHOLD)
        train, test = train.select(~is_test), train.select(is_test)
    declared = dataset_size or len(train.labels)
    if limit_records is not None and limit_records < declared:
        # By public numbers alone: with the number of records there are, one more could move others.
        threshold = limit_records * 2**64 // declared
        declared = limit_records
        train = train.select(train.digests[:, _LIMIT] < np.uint64(threshold))
    if not len(train.labels):
        raise DataError(
            f'{dataset} has no training records left; use more images or a larger limit_records'
        )
    return _make_dataset(dataset, train, test, source.class_names, declared)


def _make_dataset(
    name: str, train: _Part, test: _Part, class_names: tuple[str, ...], declared_size: int
) -> Dataset:
    if train.images.shape[1:3] != test.images.shape[1:3]:
        raise DataError(
            f'training images of {name} are {_size_text(train.images.shape[1:])}, test images are '
            f'{_size_text(test.images.shape[1:])}; set --image_size to resize them'
        )
    channels = max(train.images.shape[-1], test.images.shape[-1])
    records = []
    for part in (train, test):
        images = _with_channels(part.images, channels)
        records.append(Records(images, part.labels, len(class_names), class_names))
    test_records = records[1] if len(records[1]) else None
    return Dataset(name, records[0], test_records, declared_size, train.pictures)


def _read(
    dataset: str,
    data_dir: _PathLike | None,
    manual_dir: _PathLike | None,
    image_size: int | None,
    label: str,
) -> _Source:
    """Finds the reader for a data set's name and lets it read."""
    scheme, has_scheme, path = dataset.partition(':')
    if has_scheme and scheme in _OWN_SCHEMES:
        folder = pathlib.Path(path).expanduser()
        if not path or not folder.is_dir():
            raise DataError(f'there is no folder {path!r}; {scheme}: needs the path of a folder')
        reader = _read_folder if scheme == 'folder' else _read_idx
        return reader(folder, image_size)
    if dataset == 'mnist_10k':
        return _read_mnist_10k(image_size)
    if dataset == 'digits':
        return _read_digits(image_size)
    return _read_tfds(dataset, data_dir, manual_dir, image_size, label)


# Content hashes.


def _digest(image: bytes, label: int) -> bytes:
    """The first 16 bytes of a record's SHA-256: eight decide the split, eight the limit."""
    return hashlib.sha256(int(label).to_bytes(4, 'little', signed=True) + image).digest()[:16]


def _digests(images: Any, labels: np.ndarray) -> np.ndarray:
    """Digests of records, uint64 [N, 2].

    Args:
      images: N images as stored: encoded bytes, or C-contiguous uint8 arrays.
      labels: integers [N].

    Returns:
      For each record two independent hashes, uniform over 64 bits.
    """
    raw = b''.join(_digest(bytes(image), label) for image, label in zip(images, labels))
    return np.frombuffer(raw, '>u8').astype(np.uint64).reshape(-1, 2)


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


def _part_of_arrays(images: np.ndarray, labels: np.ndarray, image_size: int | None) -> _Part:
    """A part from images uint8 [N, H, W] that are in memory already."""
    digests = _digests(np.ascontiguousarray(images), labels)
    pictures = _digests(np.ascontiguousarray(images), np.zeros_like(labels))
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
    return _Part(np.ascontiguousarray(images), labels.astype(np.int32), digests, pictures)


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


def _decode_square(encoded: tf.Tensor, image_size: int | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Like _decode, cropped to the central square and resized."""
    rgb, is_grey = _decode(encoded)
    height, width = tf.shape(rgb)[0], tf.shape(rgb)[1]
    rows, columns = _centre(height, width, tf.minimum(height, width))
    rgb = rgb[rows, columns]
    if image_size is not None:
        rgb = tf.ensure_shape(_resize(rgb, image_size), [image_size, image_size, 3])
    return rgb, is_grey


def _part_of_stream(
    stream: tf.data.Dataset,
    count: int,
    image_size: int | None,
    describe: Callable[[int], str],
) -> _Part:
    """A part from encoded images, decoded and resized one by one in a tf.data pipeline.

    Args:
      stream: elements (encoded image, label): string [] and integer [].
      count: how many there are.
      image_size: as in `load`.
      describe: names the record at a position, for messages.

    Returns:
      The part; C is 1 when all of its images are grey, otherwise 3.

    Raises:
      DataError: an image cannot be read, or has another size than the first.
    """
    batches = (
        stream.map(
            lambda encoded, label: (encoded, label, *_decode_square(encoded, image_size)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(_DECODE_BATCH)
        .prefetch(2)
        .as_numpy_iterator()
    )
    images, labels = None, np.empty([count], np.int32)
    digests, pictures, done = *np.empty([2, count, 2], np.uint64), 0
    while done < count:
        try:
            encoded, batch_labels, rgb, is_grey = next(batches)
        except StopIteration:
            break
        except tf.errors.OpError as error:
            shape = None if images is None else images.shape[1:3]
            raise _blame(stream, done, image_size, shape, describe, error) from error
        if images is None:
            images = np.empty([count, *rgb.shape[1:3], 1], np.uint8)
        if rgb.shape[1:3] != images.shape[1:3]:
            raise _blame(stream, done, image_size, images.shape[1:3], describe)
        if not is_grey.all():
            images = _with_channels(images, 3)
        end = done + len(rgb)
        images[done:end] = rgb[..., : images.shape[-1]]
        labels[done:end] = batch_labels
        digests[done:end] = _digests(encoded, batch_labels)
        pictures[done:end] = _digests(encoded, np.zeros_like(batch_labels))
        done = end
    if images is None:
        raise DataError(f'there is no {describe(0)}: the data set is empty; use another one')
    return _Part(images[:done], labels[:done], digests[:done], pictures[:done])


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
            found = _decode_square(next(elements)[0], image_size)[0].shape[:2]
        except StopIteration:
            break
        except tf.errors.OpError as cause:
            return DataError(
                f'cannot read {describe(position)}: {_cause_text(cause)}; mend or remove it'
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


def _read_digits(image_size: int | None) -> _Source:
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return _Source(_part_of_arrays(images, digits.target, image_size), None, _digit_names(10))


def _digit_names(num_classes: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(num_classes))


def _read_mnist_10k(image_size: int | None) -> _Source:
    images, labels = _read_idx_pair(_EMBEDDED, 't10k')
    return _Source(_part_of_arrays(images, labels, image_size), None, _digit_names(10))


def _read_idx(folder: pathlib.Path, image_size: int | None) -> _Source:
    images, labels = _read_idx_pair(folder, 'train')
    train = _part_of_arrays(images, labels, image_size)
    num_classes = int(labels.max()) + 1
    test = None
    if any(_find_idx(folder, f't10k-{kind}') for kind in ('images-idx3', 'labels-idx1')):
        images, labels = _read_idx_pair(folder, 't10k')
        if labels.max() >= num_classes:
            raise DataError(
                f'the test labels in {folder} go up to {labels.max()}, the training labels to '
                f'{num_classes - 1}; a class to test must be among those to train'
            )
        test = _part_of_arrays(images, labels, image_size)
    return _Source(train, test, _digit_names(num_classes))


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


def _read_folder(root: pathlib.Path, image_size: int | None) -> _Source:
    train_root = root / 'train'
    if not (train_root.is_dir() and _subfolders(train_root)):
        train = _list_classes(root)
        return _Source(_part_of_files(train, list(train), image_size), None, tuple(train))
    train = _list_classes(train_root)
    test = None
    if (root / 'test').is_dir():
        files = _list_classes(root / 'test')
        unknown = [name for name in files if name not in train]
        if unknown:
            raise DataError(
                f'{root / "test"} has a class {unknown[0]!r} that {train_root} has not; '
                'a class to test must be among those to train'
            )
        test = _part_of_files(files, list(train), image_size)
    return _Source(_part_of_files(train, list(train), image_size), test, tuple(train))


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))


def _list_classes(folder: pathlib.Path) -> dict[str, list[str]]:
    """The image files of each class, both in sorted order."""
    classes = {}
    for path in _subfolders(folder):
        files = sorted(
            entry.path
            for entry in os.scandir(path)
            if entry.name.lower().endswith(_IMAGE_SUFFIXES) and not entry.name.startswith('.')
        )
        if not files:
            kinds = ', '.join(_IMAGE_SUFFIXES)
            raise DataError(f'{path} has no {kinds} images; put some there or remove it')
        classes[path.name] = files
    if not classes:
        raise DataError(f'{folder} has no class folders; put images into {folder}/<class>/')
    return classes


def _part_of_files(
    classes: dict[str, list[str]], class_names: list[str], image_size: int | None
) -> _Part:
    files = [file for name in classes for file in classes[name]]
    labels = [class_names.index(name) for name in classes for _ in classes[name]]
    logging.info('Reading %d images', len(files))
    stream = tf.data.Dataset.from_tensor_slices((files, labels)).map(
        lambda file, label: (tf.io.read_file(file), label), num_parallel_calls=tf.data.AUTOTUNE
    )
    return _part_of_stream(stream, len(files), image_size, files.__getitem__)


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
    image_size: int | None,
    label: str,
) -> _Source:
    with _quiet_absl():
        builder = _tfds_builder(name, data_dir)
    if not builder.data_path.exists():
        _prepare(builder, name, manual_dir)
    with _quiet_absl():
        return _read_prepared(builder, name, image_size, label)


def _read_prepared(builder: Any, name: str, image_size: int | None, label: str) -> _Source:
    names, partial, get_label = _find_label(builder.info.features, name, label)
    splits = builder.info.splits
    if 'train' not in splits:
        raise DataError(f'{name} has no split train, only {", ".join(splits)}; use another one')

    def read(split: str) -> _Part:
        return _part_of_stream(
            _tfds_stream(builder, split, partial, get_label),
            splits[split].num_examples,
            image_size,
            lambda position: f'record {position} of {name}, split {split}',
        )

    held_out = next((split for split in ('test', 'validation') if split in splits), None)
    return _Source(read('train'), read(held_out) if held_out else None, names)


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
    builder: Any, split: str, partial: dict[str, Any], get_label: Callable[[Any], tf.Tensor]
) -> tf.data.Dataset:
    """A split as (encoded image, label), in the order of the files."""
    import tensorflow_datasets as tfds

    # Encoded images: decoding them is our pipeline's, and their bytes hash alike everywhere,
    # while decoders differ in their rounding.
    decoders = tfds.decode.PartialDecoding(partial, decoders={'image': tfds.decode.SkipDecoding()})
    stream = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=decoders,
        read_config=tfds.ReadConfig(try_autocache=False, add_tfds_id=False),
    )
    return stream.map(lambda record: (record['image'], tf.cast(get_label(record), tf.int32)))
