"""Records on their way from where they are stored into a split: what every source makes.

A source is asked with a `Wanted` and answers with a `Source`, which holds a `Part` for each split
that the data set brings along.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Union

import numpy as np
import tensorflow as tf

from tf_efsgd.data import images as images_
from tf_efsgd.data import split
from tf_efsgd.data.records import DataError

if TYPE_CHECKING:
    from tf_efsgd.data.persons import Identity, Rule

PathLike = Union[str, 'os.PathLike[str]']

# Records decoded at a time: native images of this many are held beside the result.
_DECODE_BATCH = 64


class Wanted(NamedTuple):
    """What was asked for; the fields are as the arguments of `load.load`."""

    image_size: int | None = None
    channels: int | None = None
    classes: tuple[str, ...] | None = None
    rule: Rule | None = None
    label: str = ''
    data_dir: PathLike | None = None
    manual_dir: PathLike | None = None


class Part(NamedTuple):
    """Records on their way into a split. Images and labels are as in Records."""

    images: np.ndarray
    labels: np.ndarray
    digests: np.ndarray  # uint64 [N, 2], see `split`.
    persons: np.ndarray  # Names [N]; all '' if images are not assigned to persons.

    def select(self, mask: np.ndarray) -> Part:
        """The records where the mask, bool [N], is true."""
        return Part(*(column[mask] for column in self))


class Source(NamedTuple):
    """A data set as it was read. Without a test part, the train part is still to be split.

    `found`, `read_off` and `person_rule` are as in Dataset.
    """

    train: Part
    test: Part | None
    class_names: tuple[str, ...]
    found: tuple[str, ...] = ()
    read_off: tuple[str, ...] = ()
    person_rule: Identity | None = None


def refuse_persons(dataset: str, wanted: Wanted) -> None:
    """Raises DataError if persons are asked for in a data set that does not tell them apart."""
    if wanted.rule is not None:
        raise DataError(
            f'{dataset} does not say which person an image belongs to: --images_per_person is for '
            f'folder: and TFDS data sets. Received: --person={wanted.rule}'
        )


def check_names(dataset: str, names: tuple[str, ...], wanted: Wanted) -> tuple[str, ...]:
    """The names of the classes of a data set that has its own; refuses other declared ones."""
    if wanted.classes not in (None, names):
        raise DataError(
            f'{dataset} has classes of its own, {", ".join(names[:20])}: leave --classes out. '
            f'Received: {", ".join(wanted.classes[:20])}'
        )
    return names


# What a part is made from.


def part_of_arrays(images: np.ndarray, labels: np.ndarray, image_size: int | None) -> Part:
    """A part from grey images that are in memory already.

    Args:
      images: uint8 [N, H, W].
      labels: integers [N].
      image_size: as in `load.load`.
    """
    images = np.ascontiguousarray(images)[..., np.newaxis]
    persons = np.full(len(labels), '', object)
    return Part(
        images_.crop_and_resize_all(images, image_size),
        labels.astype(np.int32),
        split.digests_of(images),
        persons,
    )


def part_of_stream(
    stream: tf.data.Dataset,
    count: int,
    image_size: int | None,
    channels: int | None,
    describe: Callable[[int], str],
) -> Part:
    """A part from encoded images, decoded and resized one by one in a tf.data pipeline.

    Args:
      stream: elements (encoded image, label, person): string [], integer [] and string [].
      count: how many there are.
      image_size: as in `load.load`.
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
                *_decode_record(encoded, image_size, channels),
                *of_record,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(_DECODE_BATCH)
        .prefetch(2)
        .as_numpy_iterator()
    )
    images: np.ndarray | None = None
    labels = np.empty([count], np.int32)
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
            images = images_.with_channels(images, 3)
        end = done + len(decoded)
        images[done:end] = decoded[..., : images.shape[-1]]
        labels[done:end], digests[done:end] = batch_labels, batch_digests
        persons[done:end] = [name.decode('utf-8', 'surrogateescape') for name in names]
        done = end
    if images is None:
        raise DataError(f'there is no {describe(0)}: the data set is empty; use another one')
    return Part(images[:done], labels[:done], digests[:done], persons[:done])


def _decode_record(
    encoded: tf.Tensor, image_size: int | None, channels: int | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Decodes one image, crops it to its central square and resizes it.

    Args:
      encoded: string [], a PNG or JPEG of any kind.
      image_size: as in `load.load`.
      channels: 1 turns colours to grey.

    Returns:
      Pixels uint8 [S, S, 1 or 3], whether it is a grey image, bool [], and its digest as decoded,
      uint64 [2].
    """
    image, is_grey = images_.decode(encoded)
    digest = tf.ensure_shape(tf.numpy_function(split.digest, [image], tf.uint64), [2])
    if channels == 1:
        image = images_.to_grey(image)
    return images_.crop_and_resize(image, image_size), is_grey, digest


def _blame(
    stream: tf.data.Dataset,
    start: int,
    image_size: int | None,
    shape: tuple[int, ...] | None,
    describe: Callable[[int], str],
    error: Exception | None = None,
) -> DataError:
    """Finds the record that broke the batch at `start`: the pipeline does not say which it was."""
    elements = stream.skip(start).take(_DECODE_BATCH).as_numpy_iterator()
    for position in itertools.count(start):
        try:
            found = _decode_record(next(elements)[0], image_size, None)[0].shape[:2]
        except StopIteration:
            break
        except tf.errors.OpError as cause:
            return DataError(
                f'cannot read {describe(position)}: {cause_text(cause)}; repair or remove it'
            )
        shape = shape or found
        if tuple(found) != tuple(shape):
            return DataError(
                f'{describe(position)} is {images_.size_text(found)} as a square, the images '
                f'before it {images_.size_text(shape)}; set --image_size to resize all'
            )
    return DataError(f'cannot read the images from {describe(start)} on: {cause_text(error)}')


def cause_text(error: BaseException | None) -> str:
    """The text of a library's error in one short line."""
    text = getattr(error, 'message', None) or str(error)
    # TensorFlow names the node of the graph, which helps nobody here.
    text = re.sub(r'\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*?\]', '', text)
    text = ' '.join(text.split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + '...'
