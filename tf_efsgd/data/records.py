"""The records of a data set, and what is public about them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tf_efsgd.data.persons import Identity

# The number of records may be so many times the declared one. Steps are larger by that factor, and
# the sums of a step are proven for twice its expected size (`privacy.clipping`).
_MOST_PER_DECLARED = 1.25
# What may be read off the records, by the name of the argument of `load.load` that declares it.
READ_OFF = ('classes', 'channels', 'image_size', 'dataset_size', 'dataset_persons')


class DataError(ValueError):
    """The data cannot be used as asked; the message is one line that says what to do."""

    def __init__(self, message: str):
        super().__init__(' '.join(message.split()))


def check_declared_size(count: int, declared: int) -> None:
    """Raises DataError if there are far more records than were declared.

    Args:
      count: the number of records that there are.
      declared: the public number of records, from which sampling probabilities follow.
    """
    if count > _MOST_PER_DECLARED * declared:
        raise DataError(
            f'There are more than {_MOST_PER_DECLARED:g} times the {declared:,} records that '
            '--dataset_size declares, so steps would be larger than the account allows. Declare '
            'the number of records, or one near it.'
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Images with their labels.

    Attributes:
      images: uint8 [N, H, W, C] in [0, 255], C is 1 (gray) or 3 (RGB); N may be 0.
      labels: int32 [N] in [0, num_classes).
      num_classes: how many classes there are, public, whether or not each has a record.
      class_names: a name for each class.

    Raises:
      DataError: if a dtype, a shape, a label or the number of names is not as above.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.labels.dtype != np.int32:
            raise DataError(
                'Images must be uint8 and labels int32. '
                f'Received: {self.images.dtype} and {self.labels.dtype}.'
            )
        if self.images.ndim != 4 or self.images.shape[-1] not in (1, 3):
            raise DataError(
                f'Images must be [N, H, W, C] with C 1 or 3. Received: {self.images.shape}.'
            )
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f'There must be one label for each of the {len(self.images)} images. '
                f'Received: labels of shape {self.labels.shape}.'
            )
        if self.num_classes < 1 or len(self.class_names) != self.num_classes:
            raise DataError(
                f'There must be at least one class, and a name for each of the {self.num_classes}. '
                f'Received: {len(self.class_names)} names.'
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise DataError(
                f'Labels must be in [0, {self.num_classes}). '
                f'Received: {self.labels.min()} to {self.labels.max()}.'
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.images.shape
        return height, width, channels


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The records to train on and those to evaluate against, and what is public about them.

    Attributes:
      name: the data set as it was asked for.
      train: the records to train on, at least one.
      test: records that training never sees; None if there are none.
      declared_size: number of training records as declared, public; about len(train).
      digests: of the training records, uint64 [N, 2]: `split.digest` of each image as it was
        decoded, before it was cropped or resized. Private, and in memory only.
      images_per_person: the most records that one person has; None if records are not assigned to
        persons.
      persons: number of persons among the training records as declared, public; None as above.
      person_rule: what decides which person a record belongs to; None as above.
      person_digests: of the name of each training record's person, uint64 [N, 2]; None as above.
        Private, and in memory only.
      found: what the caller left open and the data set or its records settled: values by the name
        of the argument of `load.load` that declares each. With these declared, the same data set is
        read again and no public fact is read off its records.
      read_off: the names among them that were read off the records, in the order of `READ_OFF`.
      notes: whole sentences for the terminal about how the data set was read: what was ignored,
        what cannot be read, where decoded images are kept. Private: they name and count files.
    """

    name: str
    train: Records
    test: Records | None
    declared_size: int
    digests: np.ndarray | None = None
    images_per_person: int | None = None
    persons: int | None = None
    person_rule: Identity | None = None
    person_digests: np.ndarray | None = None
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    read_off: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
