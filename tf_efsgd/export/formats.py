"""Writes images with labels: PNG in class folders, one NPZ, TFRecord, or a TFDS data set.

A writer takes units of consecutive images. When `write` returns, the whole unit is on disk, and a
unit that is written again replaces itself. So an interrupted data set can be continued.
"""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd import files
from tf_efsgd.export import names

FORMATS = ('png', 'npz', 'tfrecord', 'tfds')

# Images that are generated and written at a time.
PART = 200
# The images of one shard have about this size before they are encoded.
_SHARD_BYTES = 64 * 2**20
_NPZ, _RAW = 'images.npz', '.images.npy'
_SPLIT, _TFDS_VERSION = 'train', '1.0.0'


def make_writer(
    kind: str,
    folder: pathlib.Path,
    count: int,
    image_shape: Sequence[int],
    class_names: Sequence[str],
    name: str,
) -> Writer:
    """Makes the writer of a format.

    Args:
      kind: one of `FORMATS`.
      folder: the existing folder for the files.
      count: how many images there will be.
      image_shape: height, width and channels.
      class_names: names of the classes, in the order of the labels.
      name: name of the data set.

    Returns:
      The writer.
    """
    writers = {'png': PngFolders, 'npz': Npz, 'tfrecord': TFRecords, 'tfds': Tfds}
    return writers[kind](folder, count, tuple(image_shape), tuple(class_names), name)


class Writer:
    """What all formats have in common; the arguments are those of `make_writer`."""

    # Number of images in a unit, a multiple of `PART`.
    unit = PART

    def __init__(self, folder, count, image_shape, class_names, name):
        self._folder = folder
        self._count = count
        self._image_shape = image_shape
        self._class_names = class_names
        self._name = name

    def write(self, first: int, images: np.ndarray, labels: np.ndarray) -> None:
        """Writes a unit.

        Args:
          first: number of its first image, counted from 0.
          images: uint8 [n, H, W, C].
          labels: int32 [n].
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Writes what belongs to all units, after the last one."""

    def file_of(self, number: int, label: int) -> str | None:
        """Returns the file that holds this image alone, or None."""
        del number, label
        return None


class PngFolders(Writer):
    """Writes `CLASS/000123.png`."""

    def __init__(self, *args):
        super().__init__(*args)
        self._folders = names.folder_names(self._class_names)
        self._digits = max(6, len(str(self._count - 1)))
        for folder in self._folders:
            (self._folder / folder).mkdir(exist_ok=True)

    def write(self, first, images, labels):
        """See the class."""
        for i, encoded in enumerate(tf.io.encode_png(images).numpy()):
            (self._folder / self.file_of(first + i, int(labels[i]))).write_bytes(encoded)

    def file_of(self, number, label):
        """See the class."""
        return f'{self._folders[label]}/{number:0{self._digits}d}.png'


class Npz(Writer):
    """Writes `images.npz`: images uint8 [N, H, W, C], labels int32 [N], class_names."""

    def __init__(self, *args):
        super().__init__(*args)
        shape, path = (self._count, *self._image_shape), self._folder / _RAW
        if path.exists():
            self._images = np.load(path, mmap_mode='r+')
        else:
            self._images = np.lib.format.open_memmap(path, 'w+', np.uint8, shape)
        self._labels = np.zeros([self._count], np.int32)

    def write(self, first, images, labels):
        """See the class."""
        self._images[first : first + len(images)] = images
        self._images.flush()

    def set_labels(self, labels: np.ndarray) -> None:
        """Sets all labels, int32 [N]."""
        self._labels = labels

    def finish(self):
        """See the class."""
        path = self._folder / _NPZ
        arrays = {'labels': self._labels, 'class_names': np.array(self._class_names)}
        # np.savez would hold all images in memory.
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.write(self._folder / _RAW, 'images.npy')
            for key, values in arrays.items():
                with archive.open(f'{key}.npy', 'w') as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
        del self._images
        os.unlink(self._folder / _RAW)


class TFRecords(Writer):
    """Writes `images-00000-of-00003.tfrecord`, with the feature names of TensorFlow's tools."""

    def __init__(self, *args):
        super().__init__(*args)
        of_part = PART * int(np.prod(self._image_shape))
        self.unit = PART * max(1, _SHARD_BYTES // of_part)
        self._shards = -(-self._count // self.unit)

    def path(self, shard: int) -> pathlib.Path:
        """Returns the path of a shard."""
        return self._folder / f'images-{shard:05d}-of-{self._shards:05d}.tfrecord'

    def write(self, first, images, labels):
        """See the class."""
        path = self.path(first // self.unit)
        unfinished = path.with_name(f'.{path.name}.tmp')
        with tf.io.TFRecordWriter(str(unfinished)) as writer:
            for image, label in zip(images, labels):
                writer.write(self._serialize(image, int(label)))
        files.sync(unfinished)
        os.replace(unfinished, path)

    def _serialize(self, image: np.ndarray, label: int) -> bytes:
        height, width, channels = self._image_shape
        numbers = {'label': label, 'height': height, 'width': width, 'channels': channels}
        texts = {
            'image/encoded': tf.io.encode_png(image).numpy(),
            'image/format': b'png',
            'image/class/text': self._class_names[label].encode('utf-8', 'surrogateescape'),
        }
        features = {
            ('image/class/label' if key == 'label' else f'image/{key}'): tf.train.Feature(
                int64_list=tf.train.Int64List(value=[value])
            )
            for key, value in numbers.items()
        }
        for key, value in texts.items():
            features[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


class Tfds(TFRecords):
    """Writes `NAME/1.0.0/`, which `tfds.load(NAME, data_dir=...)` reads without any code."""

    def __init__(self, *args):
        import tensorflow_datasets as tfds

        super().__init__(*args)
        self._inside = self._folder / self._name / _TFDS_VERSION
        self._inside.mkdir(parents=True, exist_ok=True)
        self._features = tfds.features.FeaturesDict(
            {
                'image': tfds.features.Image(shape=self._image_shape, encoding_format='png'),
                'label': tfds.features.ClassLabel(names=_lines(self._class_names)),
            }
        )

    def path(self, shard):
        """See the class."""
        number = f'{shard:05d}-of-{self._shards:05d}'
        return self._inside / f'{self._name}-{_SPLIT}.tfrecord-{number}'

    def _serialize(self, image, label):
        return self._features.serialize_example(
            self._features.encode_example({'image': image, 'label': label})
        )

    def finish(self):
        """See the class."""
        import tensorflow_datasets as tfds

        last = self._count - (self._shards - 1) * self.unit
        split = tfds.core.SplitInfo(
            name=_SPLIT,
            shard_lengths=[self.unit] * (self._shards - 1) + [last],
            num_bytes=sum(self.path(i).stat().st_size for i in range(self._shards)),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=self._inside,
                dataset_name=self._name,
                split=_SPLIT,
                filetype_suffix='tfrecord',
            ),
        )
        tfds.folder_dataset.write_metadata(
            data_dir=self._inside,
            features=self._features,
            split_infos=[split],
            version=_TFDS_VERSION,
            check_data=False,
            description='Synthetic images; PRIVACY.html beside them says how they were made.',
            supervised_keys=('image', 'label'),
        )


def _lines(class_names: Sequence[str]) -> list[str]:
    """Makes all names different and one line each, since TFDS keeps them in a text file."""
    found: list[str] = []
    for label, name in enumerate(class_names):
        text = name.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
        text = ' '.join(text.split()) or f'class_{label}'
        found.append(text if text not in found else f'{text}_{label}')
    return found
