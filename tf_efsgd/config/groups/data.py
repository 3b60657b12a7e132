"""The settings of the data: which images, and what is public about them."""

from __future__ import annotations

import dataclasses

from tf_efsgd.config.classes import parse_classes
from tf_efsgd.config.fields import ConfigError, boolean, integer, string

# A generator reaches these by doubling 4 to 7 pixels, see `models.generator.start_size`.
IMAGE_SIZES = tuple(sorted(s * 2**k for s in (4, 5, 6, 7) for k in range(9) if s * 2**k <= 1024))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images to train on, and what is public about them."""

    dataset: str = string(
        'mnist_10k',
        'The data set. mnist_10k: 10,000 embedded images, the test split of MNIST; digits: those '
        'of scikit-learn; mnist, fashion_mnist, celeb_a or any other TFDS name with images and '
        'labels; folder:PATH: images of any usual kind in PATH/<class>/, or in PATH/train/<class>/ '
        'and PATH/test/<class>/, or all in PATH (one class); idx:PATH: the files of MNIST. With '
        '--resume the PATH may be a new one, if the files were moved; the records are compared.',
        on_resume='may_move',
    )
    data_dir: str | None = string(
        None,
        "The folder where TFDS keeps prepared data sets. Default: TFDS's own.",
        on_resume='may_change',
    )
    tfds_manual_dir: str | None = string(
        None,
        'The folder with files that you downloaded yourself, for data sets that TFDS cannot '
        'download, e.g. celeb_a when its server refuses.',
        on_resume='may_change',
    )
    image_size: int | None = integer(
        None,
        'Height and width to resize the images to, in pixels: 4, 5, 6 or 7 times a power of two. '
        'Smaller images train faster. Default: the size that the images have.',
        at_least=4,
        at_most=1024,
        may_be_read_off=True,
    )
    channels: int | None = integer(
        None,
        'Number of channels of the images: 1 turns colours to gray, 3 repeats gray. Default: what '
        'the data set declares. For folder: the default is read off the records, once, and '
        'published: 3 if any image has colours, else 1.',
        at_least=1,
        at_most=3,
        may_be_read_off=True,
    )
    classes: str | None = string(
        None,
        'Names of all classes: separated by commas, as a JSON list, or the path of a text file '
        'with one name in each line. A record of another class is refused. Default: for folder: '
        'the class folders, also empty ones; else what the data set declares. For idx: the number '
        'of classes is read off the records, once, and published.',
        may_be_read_off=True,
    )
    label: str = string(
        'Male',
        'What the label of an image is. celeb_a: one of its 40 attributes, e.g. Smiling, or '
        'several with commas, e.g. Male,Smiling: each combination is a class. For folder: give '
        'csv:FILE, a table with the columns file and label (FILE and the files in it are relative '
        'to the folder of the data set); without a table, class folders are the labels.',
        on_resume='may_move',
    )
    limit_records: int | None = integer(
        None,
        'Train on only about this many records, for a trial: each is chosen by a hash of its '
        'content, or all images of a person by a hash of the person. Default: all.',
        at_least=1,
    )
    dataset_size: int | None = integer(
        None,
        'Declared number of training records, before --limit_records; with --images_per_person '
        'only the images that are kept count. It sets how often a record is sampled, and it is '
        'public like every flag; a rounded number is enough. Declare it when the exact number '
        'is private. Default: the records are counted, once, and the count is published.',
        at_least=1,
        may_be_read_off=True,
    )
    images_per_person: int | None = integer(
        None,
        'Keep at most so many images of each person; epsilon is then for a person instead of an '
        'image. A larger number needs more noise. It goes with --person. Give it when several '
        'images may show the same person. Default: every image counts for itself.',
        at_least=1,
    )
    person: str | None = string(
        None,
        'How the person of an image is found, with --images_per_person: folder '
        '(PATH/<class>/<person>/...), csv:FILE (a table with the columns file and person; FILE and '
        'the files in it are relative to the folder of the data set), name:REGEX (the first group '
        'in the name of the file, e.g. name:^([^_]+)_), dicom (the PatientID in the file), or a '
        'TFDS feature (identity for celeb_a).',
        on_resume='may_move',
    )
    dataset_persons: int | None = integer(
        None,
        'Declared number of persons in the training records, before --limit_records; it goes with '
        '--images_per_person and is public. Default: the persons are counted, once, and the count '
        'is published.',
        at_least=1,
        may_be_read_off=True,
    )
    read_off_records: str | None = string(
        None,
        'Which of the settings above were read off the records, separated by commas. The program '
        'writes it to RUN/config.flags for the privacy statement; do not give it yourself.',
    )
    bits: int | None = integer(
        None,
        'How many bits the values in 16-bit image files really have, e.g. 12 for many cameras and '
        'scanners; larger values become white. Give it when all images come from one device. '
        'Default: what each file says, or what the largest value of that file needs.',
        at_least=8,
        at_most=16,
    )
    skip_unreadable: bool = boolean(
        False,
        'Leave out image files that cannot be read, and list them on the terminal. Without it, the '
        'first such file ends the program, before anything is spent.',
        on_resume='may_change',
    )
    cache: bool = boolean(
        True,
        'Keep decoded images of folder: and TFDS data sets in --cache_dir and read them from there '
        'at the next start. They are private, like the images: tf-efsgd cache lists and removes '
        'them. --nocache keeps them only in memory.',
        on_resume='may_change',
    )
    cache_dir: str | None = string(
        None,
        'The folder, outside the run folder, for decoded images; it takes about as many bytes as '
        'there are pixels after resizing. Default: $XDG_CACHE_HOME/tf_efsgd or ~/.cache/tf_efsgd.',
        on_resume='may_change',
    )

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The declared classes; None when they are not declared."""
        return None if self.classes is None else parse_classes(self.classes)

    @property
    def read_off(self) -> tuple[str, ...]:
        """The names of the settings that were read off the records."""
        return tuple(self.read_off_records.split(',')) if self.read_off_records else ()

    def check_together(self) -> None:
        """Checks what must hold of several settings of this group.

        Raises:
          ConfigError: if they contradict each other.
        """
        if self.image_size is not None and self.image_size not in IMAGE_SIZES:
            nearest = min(IMAGE_SIZES, key=lambda size: abs(size - self.image_size))
            raise ConfigError(
                '--image_size must be 4, 5, 6 or 7 times a power of two. Received: '
                f'{self.image_size}; the nearest such size is {nearest}.'
            )
        if self.channels == 2:
            raise ConfigError('--channels must be 1 (gray) or 3 (colour). Received: 2.')
        if self.classes is not None:
            parse_classes(self.classes)
        if (self.person is None) != (self.images_per_person is None):
            missing = '--person' if self.person is None else '--images_per_person'
            raise ConfigError(
                '--person (whose an image is) and --images_per_person (how many of them are kept) '
                f'go together. Received: no {missing}.'
            )
        if self.dataset_persons is not None:
            if self.images_per_person is None:
                raise ConfigError(
                    '--dataset_persons goes with --images_per_person. Received: '
                    f'--dataset_persons={self.dataset_persons} alone.'
                )
            if self.dataset_size is not None and self.dataset_persons > self.dataset_size:
                raise ConfigError(
                    '--dataset_persons must be at most --dataset_size: every person has an image. '
                    f'Received: {self.dataset_persons} and {self.dataset_size}.'
                )
        known = [f.name for f in dataclasses.fields(self) if f.metadata['may_be_read_off']]
        if not set(self.read_off) <= set(known):
            raise ConfigError(
                f'--read_off_records names settings among {", ".join(known)}. Received: '
                f'{self.read_off_records}.'
            )
