"""Decoded images on disk: as decoded anew, found again, and made anew when stale or torn."""

import json
import os
import pathlib
import stat

import numpy as np
import pytest
from helpers.data_sets import error_of, gray_files, gray_image, png, rows_of, write_folder

from tf_efsgd.data import cache, decoding, load


@pytest.fixture
def decoded(monkeypatch):
    """Counts what is decoded."""
    calls = []
    whole = decoding.decode
    monkeypatch.setattr(decoding, 'decode', lambda *args: calls.append(args) or whole(*args))
    return calls


def _folder(tmp_path, count=90):
    return write_folder(tmp_path / 'photos', {'a': gray_files(count, 0), 'b': gray_files(9, 500)})


def _same(one, other):
    for part, again in ((one.train, other.train), (one.test, other.test)):
        assert rows_of(part) == rows_of(again)
        assert part.image_shape == again.image_shape


def test_a_second_start_decodes_nothing(tmp_path, decoded):
    dataset = _folder(tmp_path)
    plain = load.load(dataset)
    assert len(decoded) == 99
    first = load.load(dataset, cache_dir=tmp_path / 'cache')
    assert len(decoded) == 2 * 99
    second = load.load(dataset, cache_dir=tmp_path / 'cache')
    assert len(decoded) == 2 * 99
    for loaded in (first, second):
        _same(plain, loaded)
        order = np.lexsort(loaded.digests.T), np.lexsort(plain.digests.T)
        np.testing.assert_array_equal(loaded.digests[order[0]], plain.digests[order[1]])
        np.testing.assert_array_equal(loaded.train.images[order[0]], plain.train.images[order[1]])
    # Both sides of the split are slices of the file: nothing is copied.
    assert isinstance(second.train.images, cache.MappedImages)
    assert isinstance(second.test.images, cache.MappedImages)
    assert any('PRIVATE' in note and '--nocache' in note for note in first.notes)
    assert any('PRIVATE' in note for note in second.notes)


def test_a_cache_is_for_its_owner_alone(tmp_path):
    load.load(_folder(tmp_path), cache_dir=tmp_path / 'cache')
    (path,) = (tmp_path / 'cache').iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def _change(root, how):
    path = root / 'a' / '003.png'
    if how == 'other pixels':
        path.write_bytes(png(gray_image(999)))
    elif how == 'other pixels, same size and time':
        before = path.stat()
        data = bytearray(path.read_bytes())
        other = png(255 - gray_image(3))
        path.write_bytes((other + bytes(len(data)))[: max(len(data), len(other))])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif how == 'added':
        (root / 'b' / 'new.png').write_bytes(png(gray_image(998)))
    elif how == 'removed':
        path.unlink()
    elif how == 'other class':
        path.rename(root / 'b' / 'moved.png')


@pytest.mark.parametrize(
    'how',
    ['other pixels', 'other pixels, same size and time', 'added', 'removed', 'other class'],
)
def test_a_stale_cache_is_made_anew(tmp_path, how, decoded):
    dataset = _folder(tmp_path)
    load.load(dataset, cache_dir=tmp_path / 'cache')
    _change(tmp_path / 'photos', how)
    _same(load.load(dataset), load.load(dataset, cache_dir=tmp_path / 'cache'))
    assert len(list((tmp_path / 'cache').iterdir())) == 1  # In its place.


@pytest.mark.parametrize(
    'how', [{'image_size': 4}, {'channels': 3}, {'bits': 12}, {'classes': ['b', 'a']}]
)
def test_other_settings_have_another_cache(tmp_path, how):
    dataset = _folder(tmp_path)
    load.load(dataset, cache_dir=tmp_path / 'cache')
    _same(load.load(dataset, **how), load.load(dataset, **how, cache_dir=tmp_path / 'cache'))
    _same(load.load(dataset), load.load(dataset, cache_dir=tmp_path / 'cache'))


def test_another_way_of_reading_makes_it_anew(tmp_path, decoded, monkeypatch):
    dataset = _folder(tmp_path)
    load.load(dataset, cache_dir=tmp_path / 'cache')
    monkeypatch.setattr('tf_efsgd.data.parts._READER', 999)
    load.load(dataset, cache_dir=tmp_path / 'cache')
    assert len(decoded) == 2 * 99


@pytest.mark.parametrize('fault', ['cut off', 'one bit', 'labels', 'trailer', 'empty', 'text'])
def test_a_torn_cache_is_made_anew(tmp_path, fault, decoded):
    dataset = _folder(tmp_path)
    whole = load.load(dataset)
    load.load(dataset, cache_dir=tmp_path / 'cache')
    (path,) = (tmp_path / 'cache').iterdir()
    data = bytearray(path.read_bytes())
    if fault == 'cut off':
        data = data[:-100]
    elif fault == 'one bit':
        data[700] ^= 1
    elif fault == 'labels':
        data[99 * 36 + 8] ^= 1
    elif fault == 'trailer':
        data[-60] ^= 1
    else:
        data = {'empty': b'', 'text': b'no cache'}[fault]
    path.write_bytes(data)
    decoded.clear()
    _same(whole, load.load(dataset, cache_dir=tmp_path / 'cache'))
    assert len(decoded) == 99
    assert len(load.load(dataset, cache_dir=tmp_path / 'cache').train)
    assert len(decoded) == 99


def test_a_start_that_is_cut_off_leaves_no_cache(tmp_path, monkeypatch):
    dataset = _folder(tmp_path)
    whole = decoding.decode

    def decode(data, bits):
        if len(seen) == 80:
            raise KeyboardInterrupt
        seen.append(1)
        return whole(data, bits)

    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(decoding, 'decode', decode)
        with pytest.raises(KeyboardInterrupt):
            load.load(dataset, cache_dir=tmp_path / 'cache')
    assert list((tmp_path / 'cache').iterdir()) == []
    # What a process that was killed left is removed by the next.
    place = cache.Place.of(tmp_path / 'cache', f'folder:{tmp_path / "photos"}, all', [])
    left = tmp_path / 'cache' / f'.{place.path.name}.tmp-killed'
    left.write_bytes(b'half')
    load.load(dataset, cache_dir=tmp_path / 'cache')
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'cache').write_text('a file')
    error_of(['--cache_dir', '--nocache'], _folder(tmp_path), cache_dir=tmp_path / 'cache')


def test_colours_after_many_gray_images_widen_the_cache(tmp_path):
    files = {'a': gray_files(200, 0), 'b': {'c.png': png(gray_image(7, 6, 6, 3))}}
    dataset = write_folder(tmp_path / 'photos', files)
    plain = load.load(dataset)
    assert plain.train.image_shape == (6, 6, 3)
    for _ in range(2):
        _same(plain, load.load(dataset, cache_dir=tmp_path / 'cache'))


def test_persons_limits_and_notes_come_out_of_the_cache(tmp_path):
    files = {f'c/p{i // 4}/{i}.png': png(gray_image(i)) for i in range(80)}
    files['c/p1/broken.png'] = b'no image'
    root = tmp_path / 'photos'
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    how = {'person': 'folder', 'images_per_person': 3, 'limit_records': 30}
    how |= {'skip_unreadable': True}
    plain = load.load(f'folder:{root}', **how)
    for _ in range(2):
        again = load.load(f'folder:{root}', **how, cache_dir=tmp_path / 'cache')
        _same(plain, again)
        assert any('1 unreadable' in n and 'p1/broken.png' in n for n in again.notes)
        assert sorted(map(tuple, again.person_digests.tolist())) == sorted(
            map(tuple, plain.person_digests.tolist())
        )


def test_tfds_sets_are_cached_too(own_tfds, tmp_path, decoded):
    load_own, _ = own_tfds
    splits = {'train': range(60), 'test': range(60, 80)}
    first = load_own(splits, cache_dir=tmp_path / 'cache')
    assert len(decoded) == 80
    names = {json.loads(_trailer(path))['what'] for path in (tmp_path / 'cache').iterdir()}
    assert names == {'own_set, train (channels=3)', 'own_set, test (channels=3)'}
    assert first.train.image_shape == (5, 5, 3)


def _trailer(path):
    data = path.read_bytes()
    size = int.from_bytes(data[-16:-8], 'big')
    return data[-16 - size : -16]


# The mapped array.


def _mapped(tmp_path, images):
    (tmp_path / 'm').write_bytes(images.tobytes())
    with open(tmp_path / 'm', 'rb') as file:
        return cache.MappedImages.open(file, images.shape)


def test_mapped_images_are_an_array_like_any_other(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (300, 5, 5, 3)).astype(np.uint8)
    monkeypatch.setattr(cache, '_RESIDENT', 1000)  # Let go of again and again.
    mapped = _mapped(tmp_path, images)
    (tmp_path / 'm').unlink()
    np.testing.assert_array_equal(mapped, images)
    np.testing.assert_array_equal(mapped[17:45], images[17:45])
    some = np.array([299, 3, 3, 70])
    assert type(mapped[some]) is np.ndarray
    np.testing.assert_array_equal(mapped[some], images[some])
    np.testing.assert_array_equal(mapped[images[:, 0, 0, 0] > 99], images[images[:, 0, 0, 0] > 99])
    assert [image.tobytes() for image in mapped] == [image.tobytes() for image in images]
    assert [i.tobytes() for i in mapped[10:20]] == [i.tobytes() for i in images[10:20]]
    assert mapped[3, 2, 1, 0] == images[3, 2, 1, 0]
    np.testing.assert_array_equal(np.concatenate([mapped[:3], images[:2]])[:3], images[:3])
    with pytest.raises(ValueError):
        mapped[0] = 0


def test_some_of_many_mapped_images_are_mapped_too(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (300, 5, 5, 1)).astype(np.uint8)
    mapped = _mapped(tmp_path, images)
    chosen = np.random.default_rng(1).random(300) < 0.3
    assert type(cache.take(mapped, chosen, tmp_path)) is np.ndarray  # They are few.
    monkeypatch.setattr(cache, '_LARGE', 100)
    before = set(tmp_path.iterdir())
    some = cache.take(mapped, chosen, tmp_path)
    assert isinstance(some, cache.MappedImages) and set(tmp_path.iterdir()) == before
    np.testing.assert_array_equal(some, images[chosen])
    chosen = np.zeros(300, bool)
    assert len(cache.take(mapped, chosen, tmp_path)) == 0
    chosen[40:90] = True
    run = cache.take(mapped, chosen, None)
    assert np.shares_memory(run, mapped)
    np.testing.assert_array_equal(run, images[40:90])


@pytest.mark.acceptance
@pytest.mark.skipif(not pathlib.Path('/proc/self/smaps').exists(), reason='Linux only')
def test_pages_do_not_stay_resident(tmp_path):
    size = 96 * 2**20

    def resident():
        text = pathlib.Path('/proc/self/smaps').read_text().split('VmFlags')
        (mine,) = [part for part in text if str(tmp_path / 'm') in part]
        (line,) = [line for line in mine.splitlines() if line.startswith('Rss:')]
        return int(line.split()[1]) * 1024

    with open(tmp_path / 'm', 'wb') as file:
        file.write(bytes(size))
    with open(tmp_path / 'm', 'rb') as file:
        mapped = cache.MappedImages.open(file, (size // 12288, 64, 64, 3))
    np.asarray(mapped).max()
    assert resident() > 0.9 * size  # What happens without it.
    mapped.release()
    most = 0
    for start in range(0, len(mapped), 256):
        mapped[start : start + 256].sum()
        most = max(most, resident())
    for image in mapped:
        image.max()
    assert max(most, resident()) < 2 * cache._RESIDENT
