"""Loading data sets: what arrives, what never moves, and what a user is told."""

import gzip
import logging as std_logging
import struct
import time
import zlib

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd.data import records, split
from tf_efsgd.data.records import DataError, Records


def _error(match, *args, **kwargs):
    """Checks that loading fails with one line that holds all of these words."""
    with pytest.raises(DataError) as caught:
        records.load(*args, **kwargs)
    message = str(caught.value)
    assert '\n' not in message
    for word in [match] if isinstance(match, str) else match:
        assert word in message
    return message


def _rows(part):
    """The records of a split as a set."""
    return {(image.tobytes(), int(label)) for image, label in zip(part.images, part.labels)}


def _noise_images(*shape, seed=7):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# Records.


def test_records_knows_its_size_and_shape():
    made = Records(np.zeros([5, 4, 3, 1], np.uint8), np.zeros([5], np.int32), 2, ('a', 'b'))
    assert len(made) == 5
    assert made.image_shape == (4, 3, 1)


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        ({'images': np.zeros([5, 4, 3, 1], np.float32)}, 'float32'),
        ({'labels': np.zeros([5], np.int64)}, 'int64'),
        ({'images': np.zeros([5, 4, 3], np.uint8)}, '(5, 4, 3)'),
        ({'images': np.zeros([5, 4, 3, 2], np.uint8)}, '(5, 4, 3, 2)'),
        ({'labels': np.zeros([4], np.int32)}, '(4,)'),
        ({'labels': np.array([0, 1, 2, 0, 0], np.int32)}, '0 to 2'),
        ({'labels': np.array([0, 1, -1, 0, 0], np.int32)}, '-1 to 1'),
        ({'class_names': ('a',)}, '1 names'),
    ],
)
def test_records_refuses_what_does_not_fit(change, word):
    good = {
        'images': np.zeros([5, 4, 3, 1], np.uint8),
        'labels': np.zeros([5], np.int32),
        'num_classes': 2,
        'class_names': ('a', 'b'),
    }
    Records(**good)
    with pytest.raises(DataError) as caught:
        Records(**{**good, **change})
    assert word in str(caught.value)


# mnist_10k, digits, idx: and the split.


def _write_idx(folder, split, images, labels, compress=True):
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


@pytest.fixture
def idx_folder(tmp_path):
    """40 training images 6x9 of 3 classes, as .gz, and 7 test images, plain."""
    images = _noise_images(47, 6, 9)
    labels = np.arange(47) % 3
    _write_idx(tmp_path, 'train', images[:40], labels[:40].astype(np.uint8))
    _write_idx(tmp_path, 't10k', images[40:], labels[40:].astype(np.uint8), compress=False)
    return tmp_path, images, labels


def test_mnist_10k_is_split_9000_to_1000():
    loaded = records.load('mnist_10k')
    assert loaded.name == 'mnist_10k'
    assert loaded.train.images.shape == (9000, 28, 28, 1)
    assert loaded.test.images.shape == (1000, 28, 28, 1)
    assert loaded.train.num_classes == 10
    assert loaded.train.class_names == tuple('0123456789')
    assert len(_rows(loaded.train) | _rows(loaded.test)) == 10_000
    # The counts of MNIST's test set, digit by digit.
    both = np.concatenate([loaded.train.labels, loaded.test.labels])
    assert np.bincount(both).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_split_of_mnist_10k_is_the_same_at_another_size():
    native, large = records.load('mnist_10k'), records.load('mnist_10k', image_size=31)
    assert large.test.images.shape == (1000, 31, 31, 1)
    np.testing.assert_array_equal(large.test.labels, native.test.labels)


@pytest.mark.parametrize('limit', [None, 3000])
def test_shuffling_or_removing_records_moves_no_other(tmp_path, limit, monkeypatch):
    images, labels = records._read_idx_pair(records._EMBEDDED, 't10k')
    before = records.load('mnist_10k', limit_records=limit)
    order = np.random.default_rng(3).permutation(10_000)
    _write_idx(tmp_path, 't10k', images[order], labels[order])
    monkeypatch.setattr(records, '_EMBEDDED', tmp_path)
    shuffled = records.load('mnist_10k', limit_records=limit)
    assert _rows(shuffled.train) == _rows(before.train)
    assert _rows(shuffled.test) == _rows(before.test)
    if limit is None:  # The limit is a share of the public number of records: here it changes.
        for left_out in (0, 4321, 9999):
            kept = np.arange(10_000) != left_out
            _write_idx(tmp_path, 't10k', images[kept], labels[kept])
            fewer = records.load('mnist_10k')
            gone = {(images[left_out].tobytes(), int(labels[left_out]))}
            assert _rows(fewer.train) == _rows(before.train) - gone
            assert _rows(fewer.test) == _rows(before.test) - gone


def test_limit_is_drawn_independently_of_the_split():
    digests = split.digests_of(_noise_images(8000, 3, 3, 1))
    uniform = digests / 2.0**64
    assert abs(np.corrcoef(uniform.T)[0, 1]) < 0.05  # 4.5 standard deviations.
    np.testing.assert_allclose(uniform.mean(axis=0), 0.5, atol=0.015)


def test_hashing_60000_records_is_fast():
    images = np.zeros([60_000, 28, 28, 1], np.uint8)
    start = time.process_time()  # A busy machine is no failure.
    split.digests_of(images)
    assert time.process_time() - start < 2


def test_limit_keeps_about_as_many():
    full = records.load('mnist_10k')
    limited = records.load('mnist_10k', limit_records=2500)
    # Binomial: standard deviation 42.
    assert 2300 < len(limited.train) < 2700
    assert len(limited.train) != 2500
    assert _rows(limited.train) < _rows(full.train)
    assert _rows(limited.test) == _rows(full.test)
    smaller = records.load('mnist_10k', limit_records=700)
    assert _rows(smaller.train) < _rows(limited.train)


@pytest.mark.parametrize('limit', [9000, 123_456])
def test_limit_from_the_full_size_on_keeps_all(limit):
    assert len(records.load('mnist_10k', limit_records=limit).train) == 9000


def test_digits():
    loaded = records.load('digits')
    assert len(loaded.train) + len(loaded.test) == 1797
    assert 130 < len(loaded.test) < 230
    assert loaded.train.image_shape == (8, 8, 1)
    # 0..16 became 0..255: 8 is 127.5, rounded to even.
    assert {0, 16, 128, 239, 255} <= set(np.unique(loaded.train.images))
    assert len(np.unique(loaded.train.images)) == 17
    assert records.load('digits', image_size=12).test.image_shape == (12, 12, 1)


def test_idx_reads_both_kinds_of_file_and_crops(idx_folder):
    folder, images, labels = idx_folder
    loaded = records.load(f'idx:{folder}')
    # 6x9: one column goes on the left, two on the right.
    np.testing.assert_array_equal(loaded.train.images[..., 0], images[:40, :, 1:7])
    np.testing.assert_array_equal(loaded.train.labels, labels[:40])
    np.testing.assert_array_equal(loaded.test.images[..., 0], images[40:, :, 1:7])
    np.testing.assert_array_equal(loaded.test.labels, labels[40:])
    assert loaded.train.num_classes == loaded.test.num_classes == 3


def test_idx_without_a_test_set_is_split(idx_folder):
    folder, images, labels = idx_folder
    for path in folder.glob('t10k*'):
        path.unlink()
    loaded = records.load(f'idx:{folder}')
    assert 0 < len(loaded.test) < len(loaded.train) < 40
    cropped = Records(images[:40, :, 1:7, None], labels[:40].astype(np.int32), 3, ('0', '1', '2'))
    assert _rows(loaded.train) | _rows(loaded.test) == _rows(cropped)


def test_idx_faults_are_named(idx_folder):
    folder, _, _ = idx_folder
    train_images = folder / 'train-images-idx3-ubyte.gz'
    test_labels = folder / 't10k-labels-idx1-ubyte'
    whole = train_images.read_bytes()

    train_images.write_bytes(whole[:-300])
    _error([str(train_images), 'cannot read'], f'idx:{folder}')
    train_images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    _error([str(train_images), 'truncated', '2175 bytes, not 2176'], f'idx:{folder}')
    train_images.write_bytes(gzip.compress(gzip.decompress(whole) + b'x'))
    _error([str(train_images), 'too long'], f'idx:{folder}')
    train_images.write_bytes(b'')
    _error([str(train_images), 'must start with the number 2051'], f'idx:{folder}')
    train_images.write_bytes(gzip.compress(struct.pack('>I', 2051)))
    _error([str(train_images), 'truncated'], f'idx:{folder}')
    train_images.write_bytes((folder / 'train-labels-idx1-ubyte.gz').read_bytes())
    _error(['2051', 'Received: 2049'], f'idx:{folder}')
    train_images.write_bytes(gzip.compress(struct.pack('>4I', 2051, 0, 6, 9)))
    _error(['0 train images', '40 labels'], f'idx:{folder}')
    train_images.unlink()
    _error('neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz', f'idx:{folder}')

    train_images.write_bytes(whole)
    test_labels.write_bytes(struct.pack('>2I', 2049, 7) + bytes([0, 1, 2, 3, 0, 0, 0]))
    _error(['test labels', 'up to 3'], f'idx:{folder}')
    test_labels.unlink()
    _error('t10k-labels-idx1-ubyte', f'idx:{folder}')


def test_an_empty_idx_set_is_refused(tmp_path):
    _write_idx(tmp_path, 'train', np.zeros([0, 6, 9], np.uint8), np.zeros([0], np.uint8))
    _error('empty', f'idx:{tmp_path}')


# folder:


def _png(pixels):
    return tf.io.encode_png(pixels).numpy()


def _jpeg(pixels):
    return tf.io.encode_jpeg(pixels, quality=95).numpy()


def _palette_png(indices, palette):
    """A PNG of colour type 3, which TensorFlow cannot write."""

    def chunk(kind, data):
        checksum = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + checksum

    height, width = indices.shape
    rows = b''.join(b'\0' + row.tobytes() for row in indices)
    header = struct.pack('>2I5B', width, height, 8, 3, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'PLTE', palette.tobytes()), (b'IDAT', zlib.compress(rows))]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*c) for c in [*chunks, (b'IEND', b'')])


def _write_folder(root, classes):
    for name, files in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (root / name / file).write_bytes(data)
    return f'folder:{root}'


def _write_train(root, classes):
    """With a test set of the same files, so that none is set aside."""
    _write_folder(root / 'test', classes)
    _write_folder(root / 'train', classes)
    return f'folder:{root}'


def _grey(seed, *shape):
    return _noise_images(*(shape or (6, 6, 1)), seed=seed)


def _files(count, start, make=_png, *shape):
    return {f'{i:03}.png': make(_grey(start + i, *shape)) for i in range(count)}


def test_folder_of_classes(tmp_path):
    files = {'zebra': _files(70, 0), 'ant': {**_files(29, 100), 'UPPER.PNG': _png(_grey(300))}}
    dataset = _write_folder(tmp_path, files)
    (tmp_path / '.hidden').mkdir()
    (tmp_path / 'ant' / '.junk.png').write_bytes(b'no image')
    (tmp_path / 'ant' / 'notes.txt').write_bytes(b'no image')
    (tmp_path / 'README.md').write_bytes(b'no image')
    loaded = records.load(dataset)
    assert loaded.train.class_names == ('ant', 'zebra')
    assert loaded.train.image_shape == (6, 6, 1)
    wanted = {(_grey(100 + i).tobytes(), 0) for i in range(29)} | {(_grey(300).tobytes(), 0)}
    wanted |= {(_grey(i).tobytes(), 1) for i in range(70)}
    assert _rows(loaded.train) | _rows(loaded.test) == wanted
    assert 1 <= len(loaded.test) <= 25
    # Not by position: without one file all others stay where they were.
    (tmp_path / 'ant' / '000.png').unlink()
    fewer = records.load(dataset)
    gone = {(_grey(100).tobytes(), 0)}
    assert _rows(fewer.train) == _rows(loaded.train) - gone
    assert _rows(fewer.test) == _rows(loaded.test) - gone
    # Nor by the size it is resized to.
    small = records.load(dataset, image_size=3)
    np.testing.assert_array_equal(small.test.labels, fewer.test.labels)


def test_folder_with_train_and_test(tmp_path):
    _write_folder(tmp_path / 'train', {'a': _files(3, 0), 'b': _files(2, 10), 'c': _files(1, 20)})
    _write_folder(tmp_path / 'test', {'c': _files(2, 30), 'b': _files(1, 40)})
    loaded = records.load(f'folder:{tmp_path}')
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert loaded.test.labels.tolist() == [1, 2, 2]
    np.testing.assert_array_equal(loaded.test.images[1], _grey(30))
    _write_folder(tmp_path / 'test', {'dog': _files(1, 50)})
    _error(["'dog'", 'among those to train'], f'folder:{tmp_path}')


def test_either_side_of_a_split_may_stay_empty(tmp_path, monkeypatch):
    dataset = _write_folder(tmp_path, {'only': _files(3, 0)})
    monkeypatch.setattr(split, '_TEST_THRESHOLD', 0)
    loaded = records.load(dataset)
    assert (len(loaded.train), loaded.test) == (3, None)
    monkeypatch.setattr(split, '_TEST_THRESHOLD', 2**64 - 1)
    _error('no training records left', dataset)


def test_every_kind_of_png_becomes_8_bit_rgb(tmp_path):
    grey, alpha, rgb = _grey(1), _grey(2), _noise_images(6, 6, 3, seed=3)
    indices = _noise_images(6, 6, seed=4) % 5
    palette = _noise_images(5, 3, seed=5)
    opacity = alpha / 255
    on_white = np.round(rgb * opacity + 255 * (1 - opacity))
    files = {
        '0 grey': (_png(grey), np.repeat(grey, 3, -1)),
        '1 rgb': (_png(rgb), rgb),
        '2 grey, 16 bits': (_png(grey.astype(np.uint16) * 256 + 99), np.repeat(grey, 3, -1)),
        '3 rgb, 16 bits': (_png(rgb.astype(np.uint16) * 256 + 99), rgb),
        '4 palette': (_palette_png(indices, palette), palette[indices]),
        '5 rgb, alpha': (_png(np.concatenate([rgb, alpha], -1)), on_white),
        '6 grey, clear': (_png(np.concatenate([grey, 0 * grey], -1)), np.full_like(rgb, 255)),
        '7 rgb, opaque': (_png(np.concatenate([rgb, 0 * alpha + 255], -1)), rgb),
    }
    contents = {f'{name}.png': data for name, (data, _) in files.items()}
    loaded = records.load(_write_train(tmp_path, {'x': contents}))
    assert loaded.train.images.shape == (len(files), 6, 6, 3)
    for image, (name, (_, wanted)) in zip(loaded.train.images, files.items()):
        np.testing.assert_allclose(image.astype(int), wanted, atol=1 if '5' in name else 0)


def test_grey_with_and_without_alpha_stays_grey(tmp_path):
    grey = _grey(1)
    opaque = np.concatenate([grey, 0 * grey + 255], -1)
    files = {'0.png': _png(grey), '1.png': _png(opaque), '2.jpg': _jpeg(grey)}
    _write_folder(tmp_path / 'train', {'x': files})
    _write_folder(tmp_path / 'test', {'x': {'0.jpeg': _jpeg(grey)}})
    loaded = records.load(f'folder:{tmp_path}')
    assert loaded.train.image_shape == loaded.test.image_shape == (6, 6, 1)
    np.testing.assert_array_equal(loaded.train.images[0], grey)
    np.testing.assert_array_equal(loaded.train.images[1], grey)
    # One coloured test image makes all of them RGB.
    _write_folder(tmp_path / 'test', {'x': {'1.png': _png(_noise_images(6, 6, 3))}})
    loaded = records.load(f'folder:{tmp_path}')
    assert loaded.train.image_shape == loaded.test.image_shape == (6, 6, 3)
    np.testing.assert_array_equal(loaded.train.images[0], np.repeat(grey, 3, -1))


def test_colour_after_the_first_batch_makes_all_rgb(tmp_path):
    count = records._DECODE_BATCH + 5
    files = {'a': _files(count, 0), 'b': {'c.png': _png(_noise_images(6, 6, 3))}}
    loaded = records.load(_write_train(tmp_path, files))
    assert loaded.train.images.shape == (count + 1, 6, 6, 3)
    np.testing.assert_array_equal(loaded.train.images[3], np.repeat(_grey(3), 3, -1))
    np.testing.assert_array_equal(loaded.train.images[-1], _noise_images(6, 6, 3))


def test_images_are_cropped_to_the_centre_and_resized(tmp_path):
    # Left and right thirds are black and must be gone; the square is dark above, bright below.
    wide = np.zeros([8, 24, 1], np.uint8)
    wide[:4, 8:16], wide[4:, 8:16] = 30, 201
    tall = wide.transpose(1, 0, 2)
    _write_train(tmp_path, {'x': {'0.png': _png(wide), '1.png': _png(tall)}})
    native = records.load(f'folder:{tmp_path}').train.images
    np.testing.assert_array_equal(native[0], wide[:, 8:16])
    np.testing.assert_array_equal(native[1], tall[8:16])
    small = records.load(f'folder:{tmp_path}', image_size=2).train.images[..., 0]
    # Antialiased: a pixel is a weighted mean of what it covers, a little of the other side too.
    assert small[0, 0, 0] == small[0, 0, 1] and small[0, 1, 0] == small[0, 1, 1]
    assert 30 < small[0, 0, 0] < 60 and 171 < small[0, 1, 0] < 201
    np.testing.assert_array_equal(small[1], small[0].T)


def test_resizing_rounds_to_the_nearest():
    image = _noise_images(1, 9, 9, 3)
    exact = tf.image.resize(image, [4, 4], antialias=True).numpy()
    error = records._resize(tf.constant(image), 4).numpy() - exact
    assert np.abs(error).max() <= 0.5
    assert (error < -0.1).any() and (error > 0.1).any()


def test_resizing_is_antialiased(tmp_path):
    # Stripes one pixel wide: without antialiasing a single stripe would be picked.
    stripes = np.zeros([32, 32, 1], np.uint8)
    stripes[:, ::2] = 255
    _write_train(tmp_path, {'x': {'0.png': _png(stripes)}})
    small = records.load(f'folder:{tmp_path}', image_size=4).train.images
    assert small.dtype == np.uint8
    assert 110 < small.min() <= small.max() < 145
    same = records.load(f'folder:{tmp_path}', image_size=32).train.images
    np.testing.assert_array_equal(same[0], stripes)
    idx, array = tmp_path / 'idx', stripes[None, ..., 0]
    idx.mkdir()
    _write_idx(idx, 'train', array, [0])
    _write_idx(idx, 't10k', array, [0])
    np.testing.assert_array_equal(records.load(f'idx:{idx}', image_size=4).train.images, small)


@pytest.mark.parametrize('fault', ['empty', 'text', 'cut off'])
@pytest.mark.parametrize('place', ['0bad.JPG', '100bad.jpg'])
def test_an_unreadable_image_is_named(tmp_path, fault, place):
    cut_off = _jpeg(_noise_images(60, 60, 3))[:-900]
    content = {'empty': b'', 'text': b'no image', 'cut off': cut_off}[fault]
    dataset = _write_folder(tmp_path, {'a': _files(2, 0), 'b': {**_files(150, 9), place: content}})
    _error([str(tmp_path / 'b' / place), 'cannot read'], dataset)
    _error([str(tmp_path / 'b' / place), 'cannot read'], dataset, image_size=5)


@pytest.mark.parametrize('count', [3, records._DECODE_BATCH])
def test_images_of_two_sizes_need_image_size(tmp_path, count):
    files = {**_files(count, 0), 'odd.png': _png(_grey(1, 7, 9, 1))}
    dataset = _write_train(tmp_path, {'a': files})
    _error([str(tmp_path / 'train' / 'a' / 'odd.png'), '7x7', '6x6', '--image_size'], dataset)
    assert records.load(dataset, image_size=5).train.images.shape == (count + 1, 5, 5, 1)


def test_train_and_test_of_two_sizes_need_image_size(tmp_path):
    _write_train(tmp_path, {'a': _files(2, 0)})
    _write_folder(tmp_path / 'test', {'a': _files(2, 0, _png, 9, 9, 1)})
    _error(['6x6', '9x9', '--image_size'], f'folder:{tmp_path}')
    assert records.load(f'folder:{tmp_path}', image_size=4).test.image_shape == (4, 4, 1)


def test_folders_without_images_are_named(tmp_path):
    _error([str(tmp_path), 'no class folders'], f'folder:{tmp_path}')
    dataset = _write_folder(tmp_path, {'empty': {}, 'too': {}})
    _error([str(tmp_path), 'no .png, .jpg, .jpeg images'], dataset)
    _write_folder(tmp_path / 'train', {'a': _files(1, 0)})
    _write_folder(tmp_path / 'test', {'a': {}})
    _error([str(tmp_path / 'test'), 'no .png, .jpg, .jpeg images'], dataset)


def test_images_one_folder_too_deep_are_no_empty_class(tmp_path):
    dataset = _write_folder(tmp_path, {'cat': _files(2, 0), 'dog/rex': _files(2, 9)})
    _error([str(tmp_path / 'dog'), 'no .png, .jpg, .jpeg images of its own', '--person'], dataset)


# What a user gets wrong.


def test_unknown_names():
    _error(["'mnst'", 'did you mean mnist'], 'mnst')
    _error('did you mean mnist_10k', 'mnist10k')
    _error('did you mean digits', 'digit')
    _error('folder:PATH', 'zzqqxxzz')
    _error('folder:PATH', '')
    _error('folder:PATH', '/some/images')
    _error(['unknown scheme', "'floder:/x'", 'folder:PATH', 'idx:PATH'], 'floder:/x')
    _error('9.9.9', 'mnist:9.9.9')


@pytest.mark.parametrize('scheme', ['idx', 'folder'])
def test_missing_folder(tmp_path, scheme):
    _error(str(tmp_path / 'gone'), f'{scheme}:{tmp_path}/gone')
    _error('needs the path of a folder', f'{scheme}:')


@pytest.mark.parametrize('value', [0, -5])
@pytest.mark.parametrize('name', ['limit_records', 'image_size'])
def test_sizes_below_one(name, value):
    _error([name, f'Received: {value}'], 'mnist_10k', **{name: value})


# TensorFlow Datasets.


def test_a_set_that_cannot_be_had_is_one_line(tmp_path):
    # ImageNet asks for files that only a person can fetch: TFDS refuses without any network.
    words = ['imagenet2012', 'ILSVRC2012_img_train.tar', '--data_dir', '--tfds_manual_dir']
    _error(words, 'imagenet2012', data_dir=tmp_path)
    _error('--tfds_manual_dir', 'imagenet2012', data_dir=tmp_path, manual_dir=tmp_path / 'gone')


def test_a_set_without_images_is_refused():
    import tensorflow_datasets as tfds

    text = tfds.features.FeaturesDict({'text': tfds.features.Text(), 'label': np.int64})
    depth = tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(shape=(4, 4, 1), dtype=np.float32),
            'label': tfds.features.ClassLabel(num_classes=2),
        }
    )
    number = tfds.features.FeaturesDict({'image': tfds.features.Image(), 'label': np.int64})
    for features in (text, depth, number):
        with pytest.raises(DataError, match='cannot be used'):
            records._find_label(features, 'some_set', 'Male')


def _wanted(images, numbers):
    return {(images[i][:, 1:6].tobytes(), i % 3) for i in numbers}


@pytest.mark.parametrize('held_out', ['test', 'validation'])
def test_tfds_splits_are_taken_as_they_are(own_tfds, held_out):
    load, images = own_tfds
    loaded = load({'train': range(150), held_out: range(150, 200)})
    assert loaded.train.class_names == ('x', 'y', 'z')
    assert _rows(loaded.train) == _wanted(images, range(150))
    assert _rows(loaded.test) == _wanted(images, range(150, 200))


def test_tfds_prefers_test_to_validation(own_tfds):
    load, images = own_tfds
    loaded = load({'train': range(9), 'validation': range(9, 80), 'test': range(80, 99)})
    assert _rows(loaded.test) == _wanted(images, range(80, 99))


def test_tfds_set_with_one_split_is_split_by_hash(own_tfds):
    load, images = own_tfds
    loaded = load({'train': range(200)})
    assert 5 <= len(loaded.test) <= 45
    assert _rows(loaded.train) | _rows(loaded.test) == _wanted(images, range(200))
    limited = load({'train': range(200)}, limit_records=60)
    assert _rows(limited.train) < _rows(loaded.train)
    assert 30 <= len(limited.train) <= 90


def test_tfds_set_without_train_is_refused(own_tfds):
    load, _ = own_tfds
    with pytest.raises(DataError, match='no split train, only test'):
        load({'test': range(5)})


def test_real_tfds_mnist_equals_the_idx_files(test_data, caplog):
    prepared = test_data / 'tfds'
    if not (prepared / 'mnist').is_dir() or not (test_data / 'mnist').is_dir():
        pytest.skip(f'no MNIST in {test_data}')
    with caplog.at_level(std_logging.DEBUG):
        ours = records.load('mnist', data_dir=prepared, limit_records=300)
    assert [r.getMessage() for r in caplog.records if r.name == 'absl'] == []
    idx = records.load(f'idx:{test_data / "mnist"}')
    assert _rows(ours.test) == _rows(idx.test)
    assert 220 < len(ours.train) < 380 and _rows(ours.train) < _rows(idx.train)


def test_fashion_mnist_is_prepared_from_files_without_network(test_data, tmp_path):
    files = test_data / 'fashion_mnist'
    if not files.is_dir():
        pytest.skip(f'no fashion_mnist in {test_data}')
    ours = records.load('fashion_mnist', data_dir=tmp_path, manual_dir=files, limit_records=300)
    assert ours.train.class_names[9] == 'Ankle boot'
    assert _rows(ours.test) == _rows(records.load(f'idx:{files}').test)


def test_celeb_a_schema(test_data):
    prepared = test_data / 'tfds_drawn'
    if not (prepared / 'celeb_a').is_dir():
        pytest.skip(f'no celeb_a in {test_data}')
    words = ["'smilling'", 'Smiling', '--label']
    _error(words, 'celeb_a', data_dir=prepared, label='smilling')
    builder = records._tfds_builder('celeb_a', prepared)
    names, partial, get_label = records._find_label(builder.info.features, 'celeb_a', 'Eyeglasses')
    assert names == ('not Eyeglasses', 'Eyeglasses')
    stream = records._tfds_stream(builder, 'validation', partial, get_label)
    part = records._part_of_stream(stream, 1200, 16, 3, str)
    assert part.images.shape == (1200, 16, 16, 3)
    whole = builder.as_dataset(split='validation', shuffle_files=False).take(1200)
    wanted = [int(record['attributes']['Eyeglasses']) for record in whole.as_numpy_iterator()]
    assert part.labels.tolist() == wanted
    assert 0 < sum(wanted) < 1200


# The number of records is declared.


def test_removing_a_record_moves_no_other_under_a_limit(tmp_path):
    # By the number of records there are, one more or less moved others for most limits.
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (300, 4, 4)).astype(np.uint8)
    labels = np.arange(300, dtype=np.int32) % 3

    def kept(images, labels, limit, dataset_size):
        part = records._part_of_arrays(images, labels, None)
        source = records._Source(part, part, ('a', 'b', 'c'))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, '_read', lambda *_: source)
            dataset = records.load('any', limit_records=limit, dataset_size=dataset_size)
        assert dataset.declared_size == min(limit, dataset_size or len(images))
        return {image.tobytes() for image in dataset.train.images}

    moved = set()
    for limit in (100, 101, 149, 150, 299):
        whole = kept(images, labels, limit, 300)
        assert abs(len(whole) - limit) < 50
        for i in range(0, 300, 7):
            less = kept(np.delete(images, i, 0), np.delete(labels, i), limit, 300)
            assert whole ^ less <= {images[i].tobytes()}
            counted = kept(np.delete(images, i, 0), np.delete(labels, i), limit, None)
            moved |= counted ^ less
    assert moved  # so the declared number is what prevents it


def test_the_declared_size_is_what_was_declared():
    assert records.load('digits').declared_size == 1602
    assert records.load('digits', dataset_size=1600).declared_size == 1600
    assert records.load('digits', dataset_size=1600, limit_records=400).declared_size == 400
    assert records.load('digits', dataset_size=1600, limit_records=2000).declared_size == 1600
