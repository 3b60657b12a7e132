"""Small data sets on disk: how to write them, load them and compare what came of it."""

import gzip
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.data import load
from tf_efsgd.data.records import DataError


def error_of(match, *args, **kwargs):
    """Checks that loading fails with one line that holds all of these words."""
    with pytest.raises(DataError) as caught:
        load.load(*args, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    for word in [match] if isinstance(match, str) else match:
        assert word in message
    return message


def rows_of(part):
    """Returns the records of a split as a set."""
    return {(image.tobytes(), int(label)) for image, label in zip(part.images, part.labels)}


def noise_images(*shape, seed=7):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(folder, split, images, labels, compress=True):
    """Writes the images, uint8 [N, H, W], and labels of a split in the format of MNIST."""
    head = struct.pack('>4I', 2051, *images.shape)
    files = {
        f'{split}-images-idx3-ubyte': head + images.tobytes(),
        f'{split}-labels-idx1-ubyte': struct.pack('>2I', 2049, len(labels)) + bytes(labels),
    }
    for name, data in files.items():
        if compress:
            (folder / f'{name}.gz').write_bytes(gzip.compress(data, 1))
        else:
            (folder / name).write_bytes(data)


def png(pixels, compression=-1):
    return tf.io.encode_png(pixels, compression=compression).numpy()


def jpeg(pixels):
    return tf.io.encode_jpeg(pixels, quality=95).numpy()


def palette_png(indices, palette):
    """Makes a PNG of colour type 3, which TensorFlow cannot write."""

    def chunk(kind, data):
        checksum = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + checksum

    height, width = indices.shape
    rows = b''.join(b'\0' + row.tobytes() for row in indices)
    header = struct.pack('>2I5B', width, height, 8, 3, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'PLTE', palette.tobytes()), (b'IDAT', zlib.compress(rows))]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*c) for c in [*chunks, (b'IEND', b'')])


def write_folder(root, classes):
    """Writes {class: {file: bytes}}; returns the name of the data set."""
    for name, files in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (root / name / file).write_bytes(data)
    return f'folder:{root}'


def write_train(root, classes):
    """Adds a test set of the same files, so that none is set aside."""
    write_folder(root / 'test', classes)
    write_folder(root / 'train', classes)
    return f'folder:{root}'


def gray_image(seed, *shape):
    """Draws noise that is another one for each seed, uint8 [6, 6, 1] or of this shape."""
    return noise_images(*(shape or (6, 6, 1)), seed=seed)


def gray_files(count, start, make=png, *shape):
    """Makes files 000.png and so on, of the seeds from `start` upwards."""
    return {f'{i:03}.png': make(gray_image(start + i, *shape)) for i in range(count)}
