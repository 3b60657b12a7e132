"""Files where hard links, locks or permissions are missing; texts of any editor."""

import errno
import fcntl
import os

import pytest
import tensorflow as tf

from tf_efsgd import files

_CANNOT = [errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP]


def _fails(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture(params=[None, *_CANNOT])
def links(request, monkeypatch):
    """A file system with and without hard links."""
    if request.param is not None:
        monkeypatch.setattr(os, 'link', _fails(request.param))
    return request.param is None


def test_a_file_is_published_once(links, tmp_path):
    target = tmp_path / 'target'
    for number in (1, 2):
        (tmp_path / str(number)).write_text(f'text {number}')
    files.publish(tmp_path / '1', target)
    with pytest.raises(FileExistsError):
        files.publish(tmp_path / '2', target)
    assert target.read_text() == 'text 1'
    assert (tmp_path / '1').exists() == links and (tmp_path / '2').exists()


def test_a_disk_that_fails_is_no_file_system_without_links(tmp_path, monkeypatch):
    (tmp_path / '1').write_text('text')
    monkeypatch.setattr(os, 'link', _fails(errno.EIO))
    with pytest.raises(OSError, match='Input/output'):
        files.publish(tmp_path / '1', tmp_path / 'target')
    assert not (tmp_path / 'target').exists()


def test_a_file_that_cannot_take_its_name_leaves_none(tmp_path, monkeypatch):
    (tmp_path / '1').write_text('text')
    monkeypatch.setattr(os, 'link', _fails(errno.EPERM))
    monkeypatch.setattr(os, 'replace', _fails(errno.EIO))
    with pytest.raises(OSError, match='Input/output'):
        files.publish(tmp_path / '1', tmp_path / 'target')
    assert not (tmp_path / 'target').exists()


def test_a_file_is_written_where_there_are_no_permissions(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fchmod', _fails(errno.EPERM))
    files.write_atomically(tmp_path / 'file', 'text')
    assert (tmp_path / 'file').read_text() == 'text'
    monkeypatch.setattr(os, 'fchmod', _fails(errno.EIO))
    with pytest.raises(OSError, match='Input/output'):
        files.write_atomically(tmp_path / 'file', 'other')
    assert (tmp_path / 'file').read_text() == 'text'


def test_a_folder_that_cannot_be_synced_is_none_of_a_lost_file(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('text')
    monkeypatch.setattr(os, 'fsync', _fails(errno.EINVAL))
    files.sync(tmp_path)
    with pytest.raises(OSError, match='Invalid'):
        files.sync(tmp_path / 'file')


def test_a_lock_of_another_process_is_told_from_none(tmp_path, monkeypatch):
    path = tmp_path / 'lock'
    with open(path, 'w') as first, open(path) as second:
        files.lock(first, path)
        with pytest.raises(BlockingIOError):
            files.lock(second, path)
        for number in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EPERM):
            monkeypatch.setattr(fcntl, 'flock', _fails(number))
            with pytest.raises(files.NoLocksError, match='has no locks .*another disk. Received'):
                files.lock(second, path)
        monkeypatch.setattr(fcntl, 'flock', _fails(errno.EACCES))
        with pytest.raises(BlockingIOError):
            files.lock(second, path)


def test_without_locks_windows_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'fcntl', None)
    with open(tmp_path / 'lock', 'w') as file, pytest.raises(files.NoLocksError, match='Use WSL'):
        files.lock(file, 'lock')


_TEXT = '--dataset=folder:Köln\n# ε\n'


@pytest.mark.parametrize(
    'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32']
)
def test_a_text_of_any_editor_is_read(encoding, tmp_path):
    mark = '\ufeff' if encoding.endswith(('le', 'be')) else ''
    (tmp_path / 'file').write_bytes((mark + _TEXT).encode(encoding))
    assert files.read_text(tmp_path / 'file') == _TEXT


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (_TEXT.replace('ε', '').encode('latin-1'), 'see its line 1: save it as UTF-8. Received'),
        (b'a\nb\n\xff\n', 'see its line 3'),
        (_TEXT.encode('utf-16-le'), 'zero bytes|see its line'),
        (b'\xff\xfea', 'see its line 1'),
    ],
)
def test_another_encoding_is_named(content, said, tmp_path):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(ValueError, match=said) as raised:
        files.read_text(tmp_path / 'file')
    assert str(raised.value).startswith(str(tmp_path / 'file')) and '\n' not in str(raised.value)


@pytest.mark.parametrize('name', ['photos [2024]', 'a\\b', 'a*b', 'a?b'])
def test_tensorflow_finds_a_checkpoint_where_it_takes_the_path_for_a_pattern(name, tmp_path):
    folder = tmp_path / name
    path = files.without_wildcards(folder)
    folder.mkdir()
    saved, read = tf.Variable(0.3), tf.Variable(0.0)
    tf.train.Checkpoint(v=saved).write(str(folder / 'variables'))
    tf.train.Checkpoint(v=read).read(str(path / 'variables')).assert_consumed()
    assert read.numpy() == saved.numpy()
    assert files.without_wildcards(folder) == path


def test_another_path_stays(tmp_path):
    assert files.without_wildcards(tmp_path / 'photos (2024)') == tmp_path / 'photos (2024)'
