"""Which records are tested on: by their pixels alone, and each by itself."""

import struct
import zlib

import numpy as np
import pytest
from helpers import yardstick
from helpers.data_sets import gray_image, noise_images, png, write_folder, write_idx

from tf_efsgd.data import load, split


def _pixels(part):
    return {image.tobytes() for image in part.images}


def test_hashes_never_change():
    # A change here moves records between the splits.
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert split.digest(image).tolist() == [0x74F425D32C2B9930, 0xE31751AE451BAC62]
    ada = split.digests_of_persons(['Ada'])
    assert ada.tolist() == [[0x9CEC3DAFFCA37EB8, 0xA4B887AD85B9E646]]


def test_shape_and_every_pixel_count_for_the_hash():
    images = [np.zeros(shape, np.uint8) for shape in ((4, 5, 1), (5, 4, 1), (20, 1, 1), (2, 10, 1))]
    for place in ((0, 0, 0), (3, 4, 0)):
        images.append(images[0].copy())
        images[-1][place] = 1
    colour = np.zeros([4, 5, 3], np.uint8)
    colour[3, 4, 2] = 1
    digests = split.digests_of([*images, colour])
    assert len({tuple(row) for row in digests}) == len(images) + 1
    np.testing.assert_array_equal(split.digest(images[0]), digests[0])
    assert split.digests_of([]).shape == (0, 2)


def test_gray_hashes_alike_with_one_channel_and_with_three():
    gray = gray_image(1)
    np.testing.assert_array_equal(split.digest(np.repeat(gray, 3, -1)), split.digest(gray))


def test_persons_and_records_have_hashes_of_their_own():
    digests = split.digests_of_persons([f'{i}' for i in range(4000)])
    assert abs(split.is_tested_on(digests).mean() - 0.1048) < 0.02  # 4 standard deviations.
    text = np.frombuffer(b'Ada', np.uint8).reshape(1, 3, 1)
    assert not np.array_equal(split.digest(text), split.digests_of_persons(['Ada'])[0])


def test_limit_is_drawn_independently_of_the_split():
    digests = split.digests_of(noise_images(8000, 3, 3, 1))
    uniform = digests / 2.0**64
    assert abs(np.corrcoef(uniform.T)[0, 1]) < 0.05  # 4.5 standard deviations.
    np.testing.assert_allclose(uniform.mean(axis=0), 0.5, atol=0.015)


def test_hashing_60000_records_is_fast():
    images = np.zeros([60_000, 28, 28, 1], np.uint8)
    with yardstick.measured() as took:
        split.digests_of(images)
    assert took.units < 15  # About 3.


def _encodings(gray):
    """Lossless files of one gray picture, all with other bytes."""

    def chunk(kind, data):
        checksum = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + checksum

    height, width = gray.shape[:2]
    rows = b''.join(b'\0' + row.tobytes() for row in gray)
    header = chunk(b'IHDR', struct.pack('>2I5B', width, height, 8, 0, 0, 0, 0))
    comment = chunk(b'tEXt', b'Comment\0taken twice')
    data = chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    opaque = np.concatenate([gray, 0 * gray + 255], -1)
    return [
        png(gray, 0),
        png(gray, 9),
        png(np.repeat(gray, 3, -1)),
        png(opaque),
        b'\x89PNG\r\n\x1a\n' + header + comment + data,
    ]


def test_all_encodings_of_a_picture_fall_on_one_side(tmp_path):
    kinds = len(_encodings(gray_image(0)))
    files = {
        f'{i:02}_{kind}.png': data
        for i in range(40)
        for kind, data in enumerate(_encodings(gray_image(i)))
    }
    assert len(set(files.values())) == 40 * kinds
    loaded = load.load(write_folder(tmp_path, {'x': files}), channels=1)
    assert len(loaded.train) + len(loaded.test) == 40 * kinds
    assert loaded.test is not None
    assert not _pixels(loaded.train) & _pixels(loaded.test)
    assert len({tuple(row) for row in loaded.digests}) == len(_pixels(loaded.train))


def test_a_picture_under_two_labels_falls_on_one_side(tmp_path):
    files = {f'{i:02}.png': png(gray_image(i)) for i in range(60)}
    loaded = load.load(write_folder(tmp_path, {'a': files, 'b': files}))
    assert loaded.test is not None
    assert not _pixels(loaded.train) & _pixels(loaded.test)
    of_idx = np.stack([gray_image(i)[..., 0] for i in range(60)] * 2)
    write_idx(tmp_path, 'train', of_idx, [0] * 60 + [1] * 60)
    again = load.load(f'idx:{tmp_path}')
    # The same pictures as files and as an array: the same sides.
    assert _pixels(again.test) == _pixels(loaded.test)
    assert _pixels(again.train) == _pixels(loaded.train)


@pytest.mark.parametrize('limit', [None, 150])
def test_a_record_of_a_new_class_that_sorts_first_moves_no_other(tmp_path, limit):
    declared = {'limit_records': limit, 'dataset_size': 270}
    files = {
        name: {f'{i}.png': png(gray_image(100 * n + i)) for i in range(100)}
        for n, name in enumerate(('b', 'c', 'd'))
    }
    dataset = write_folder(tmp_path, files)
    before = load.load(dataset, **declared)
    new = gray_image(9999)
    write_folder(tmp_path, {'a': {'new.png': png(new)}})
    after = load.load(dataset, **declared)
    assert after.train.class_names == ('a', 'b', 'c', 'd')
    for one, other in ((before.train, after.train), (before.test, after.test)):
        assert _pixels(one) == _pixels(other) - {new.tobytes()}
        assert len(one) > 10
    # Declared, the class is there before its first record is, and no label moves either.
    classes = ('a', 'b', 'c', 'd')
    (tmp_path / 'a' / 'new.png').unlink()
    empty = load.load(dataset, classes=classes, **declared)
    assert empty.train.num_classes == 4 and 0 not in empty.train.labels
    rows = set(zip(map(bytes, after.train.images), after.train.labels.tolist()))
    assert set(zip(map(bytes, empty.train.images), empty.train.labels.tolist())) <= rows


def test_the_side_of_a_record_does_not_depend_on_the_size_it_is_cropped_and_resized_to(tmp_path):
    rng = np.random.default_rng(5)
    files = {
        f'{i:03}.png': png(rng.integers(0, 256, (8, 14, 3), dtype=np.uint8)) for i in range(90)
    }
    dataset = write_folder(tmp_path, {'x': files})
    native, small = load.load(dataset), load.load(dataset, image_size=4, channels=1)
    assert len(native.test) == len(small.test) > 0
    np.testing.assert_array_equal(native.digests, small.digests)
    # What is cropped away counts too: two pictures with the same middle are two pictures.
    wide = [rng.integers(0, 256, (8, 14, 3), dtype=np.uint8) for _ in range(2)]
    wide[1][:, 3:11] = wide[0][:, 3:11]
    files = {f'{i}.png': png(image) for i, image in enumerate(wide)}
    write_folder(tmp_path / 'train', {'x': files})
    write_folder(tmp_path / 'test', {'x': files})
    pair = load.load(dataset, image_size=4)
    np.testing.assert_array_equal(*pair.train.images)
    np.testing.assert_array_equal(pair.digests, split.digests_of(wide))
    assert not np.array_equal(*pair.digests)


def test_digests_are_those_of_the_training_records_in_their_order(tmp_path):
    files = {f'{i:03}.png': png(gray_image(i)) for i in range(80)}
    loaded = load.load(write_folder(tmp_path, {'x': files}), limit_records=50)
    assert 20 < len(loaded.train) < 75
    assert loaded.digests.dtype == np.uint64
    np.testing.assert_array_equal(loaded.digests, split.digests_of(loaded.train.images))


def test_an_image_of_the_size_that_is_declared_keeps_its_pixels(tmp_path):
    # A run that read its size off the records declares it when it is resumed.
    files = {f'{i}.png': png(gray_image(i, 9, 11, 3)) for i in range(5)}
    write_folder(tmp_path / 'train', {'x': files})
    write_folder(tmp_path / 'test', {'x': files})
    native = load.load(f'folder:{tmp_path}').train.images
    declared = load.load(f'folder:{tmp_path}', image_size=9).train.images
    np.testing.assert_array_equal(native, declared)
