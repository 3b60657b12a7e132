"""A folder of nasty files: each is handled or named, nothing crashes."""

import errno
import os

import numpy as np
import pytest
import tensorflow as tf
from helpers import nasty
from helpers.data_sets import error_of

from tf_efsgd.data import listing, load, parts


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'photos'
    root.mkdir()
    return root, *nasty.write(root)


def test_there_are_forty(folder):
    root, _, _ = folder
    assert sum(len(files) for _, _, files in os.walk(root)) >= 40


def test_each_file_is_handled_or_named(folder):
    root, good, bad = folder
    loaded = load.load(f'folder:{root}', image_size=32, skip_unreadable=True)
    assert loaded.train.class_names == ('b 2', 'b 10')
    images = [part.images for part in (loaded.train, loaded.test) if part is not None]
    assert sum(map(len, images)) == good
    # A bright corner, up and left, in every picture but those of one level, and the wide one.
    upright = [
        image
        for image in np.concatenate(images).astype(int)
        if image[:8, :8].mean() > image[12:, 12:].mean() + 15
    ]
    assert len(upright) >= good - 4
    said = '\n'.join(loaded.notes)
    assert f'{bad} unreadable' in said
    for name in nasty.bad_files():
        assert os.fsdecode(name) in said
    assert 'gone.png' in said
    for word in ('@eaDir', '__MACOSX', '.hidden', 'hidden files', '.txt', '.dng', 'circle'):
        assert word in said
    said.encode('utf-8')


def test_the_first_unreadable_file_is_named_without_the_flag(folder):
    root, _, _ = folder
    error_of(['cannot be read', str(root), '--skip_unreadable'], f'folder:{root}', image_size=32)


@pytest.mark.parametrize(
    'error',
    [
        MemoryError(),
        OSError(errno.EMFILE, 'Too many open files'),
        tf.errors.ResourceExhaustedError(None, None, 'OOM'),
    ],
)
def test_what_the_machine_is_short_of_leaves_nobody_out(folder, monkeypatch, error):
    """Else a large image more would decide whether another one is read."""

    def fail(*_):
        raise error

    monkeypatch.setattr(parts.decoding, 'decode', fail)
    error_of(
        ['cannot be read now', 'start again'],
        f'folder:{folder[0]}',
        image_size=32,
        skip_unreadable=True,
    )


def test_names_of_any_bytes_can_be_printed():
    names = [os.fsdecode(name) for name in (b'caf\xe9', b'\xff\xfe', b'a\nb\x1b[2J')]
    for name in names:
        listing.shown(name).encode('utf-8')
        assert listing.shown(name).isprintable()
    assert listing.shown(names[0]) == 'café'
