"""Files that appear completely or not at all, and are still there after a power cut.

File systems differ: some have no hard links (exFAT), some have no locks (a few of clusters), some
keep no permissions, and Windows has none of these. This is the only place that handles the
differences.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import IO

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None  # type: ignore[assignment]

# The errors of a file system that cannot do something at all.
_CANNOT = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOLCK)
# With these characters, TensorFlow takes the path of a checkpoint or SavedModel for a pattern.
_WILDCARDS = '*?[]\\'
# Byte order marks, the longer ones first: UTF-16 begins like UTF-32.
_MARKS = (
    (codecs.BOM_UTF32_LE, 'utf-32'),
    (codecs.BOM_UTF32_BE, 'utf-32'),
    (codecs.BOM_UTF8, 'utf-8-sig'),
    (codecs.BOM_UTF16_LE, 'utf-16'),
    (codecs.BOM_UTF16_BE, 'utf-16'),
)
_LINKS: list[tempfile.TemporaryDirectory] = []
USE_WSL = (
    'This program needs Linux or macOS, because Windows does not have the kind of locks that keep '
    'two processes from spending one budget. Use WSL (https://learn.microsoft.com/windows/wsl), '
    'and install it there.'
)


class NoLocksError(OSError):
    """The file system or the operating system has no locks; the message says what to do."""


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """The path with `~` and `~user` replaced; a user that does not exist is left as it is."""
    return pathlib.Path(os.path.expanduser(path))


def write_atomically(
    path: str | os.PathLike,
    content: str | bytes,
    *,
    mode: int = 0o644,
    when_there_is_room: Callable[[], None] | None = None,
) -> None:
    """Writes a file under another name, syncs it, then renames it.

    Args:
      path: the file to write; an existing one is replaced.
      content: its new content; text is written as UTF-8.
      mode: its permissions.
      when_there_is_room: called once the disk has reserved enough bytes for the content and before
        the first of them is written. It is for what must neither be done in vain nor too late.

    Raises:
      OSError: if the disk is full or the folder cannot be written to; the old file is kept.
    """
    path = pathlib.Path(path)
    content = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.tmp-', dir=path.parent)
    try:
        with open(handle, 'wb') as file:
            # Until then only the user can read it. A file system without permissions exposes it,
            # as it exposes all of its files.
            with _unless_it_cannot():
                os.fchmod(file.fileno(), mode)
            if when_there_is_room is not None:
                file.write(bytes(len(content)))
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                when_there_is_room()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync(path.parent)


def is_at(handle: int, path: str | os.PathLike) -> bool:
    """Whether this name still belongs to an open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def sync(path: str | os.PathLike) -> None:
    """Waits until a file's content, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if os.path.isdir(path):  # On some network file systems a folder cannot be synced.
            with _unless_it_cannot():
                os.fsync(handle)
        else:
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _unless_it_cannot() -> Iterator[None]:
    """Ignores an error if it means that the file system cannot do something at all."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def publish(temporary: str | os.PathLike, path: str | os.PathLike) -> None:
    """Gives a finished file its name, but never replaces another file, as renaming would.

    Args:
      temporary: the file, beside `path`. On file systems with hard links it keeps this name, too.
      path: its name.

    Raises:
      FileExistsError: if there is a file of that name.
    """
    try:
        os.link(temporary, path)
        return
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    # There are no hard links, as on exFAT. The process that creates the name puts the file there.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(path)
        raise


def has_locks() -> bool:
    """Whether this operating system has locks; a file system may still lack them."""
    return fcntl is not None


def lock(
    file: IO | int, path: str | os.PathLike, *, shared: bool = False, wait: bool = False
) -> None:
    """Takes the lock of an open file, which the kernel releases when this process ends.

    Args:
      file: the open file, or its handle.
      path: its name, for messages.
      shared: whether to share the lock with others who take it shared.
      wait: whether to wait for another process that has it.

    Raises:
      BlockingIOError: if another process has it.
      NoLocksError: if there are no locks.
    """
    if not has_locks():
        raise NoLocksError(USE_WSL)
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, operation if wait else operation | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(error.errno, error.strerror, str(path)) from error
        raise NoLocksError(
            f'The file system of {path} has no locks ({error.strerror or error}), so two '
            'processes could spend one budget: give a folder on another disk. Received: '
            f'{pathlib.Path(path).parent}.'
        ) from error


def read_text(path: str | os.PathLike) -> str:
    """Reads a text that a person may have written with any editor.

    Args:
      path: the file, in UTF-8 with or without a byte order mark, or in UTF-16 or UTF-32 with one.

    Returns:
      The text without the mark.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it has another encoding; the message is one line and names the line in the
        file.
    """
    content = pathlib.Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), 'utf-8')
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b'\n') + 1
        raise ValueError(
            f'{path} is not text in UTF-8, see its line {line}: save it as UTF-8. Received: '
            f'{content[error.start : error.start + 8]!r}.'
        ) from error
    if '\0' in text:
        raise ValueError(f'{path} is not text in UTF-8: save it as UTF-8. Received: zero bytes.')
    return text


def size_text(size: int) -> str:
    """A number of bytes for a person, e.g. '12 kB' or '3.4 MB'; never zero."""
    return f'{size / 1e6:,.1f} MB' if size >= 1e6 else f'{max(1, round(size / 1e3)):,} kB'


def has_wildcards(path: str | os.PathLike) -> bool:
    """Whether TensorFlow takes the path for a pattern, and so may find nothing or another file."""
    return any(character in os.fspath(path) for character in _WILDCARDS)


def without_wildcards(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path that TensorFlow does not take for a pattern; it lasts as long as the process.

    Args:
      path: the path of a folder, which may be made later.

    Returns:
      The path itself, or that of a link to it among the temporary files.
    """
    if not has_wildcards(path):
        return pathlib.Path(path)
    return _link_to(os.path.abspath(path))


@functools.cache
def _link_to(path: str) -> pathlib.Path:
    # The link stays until the end, because an optimizer reads its slots when it creates them.
    folder = tempfile.TemporaryDirectory(prefix='tf_efsgd-')
    _LINKS.append(folder)
    link = pathlib.Path(folder.name) / 'folder'
    link.symlink_to(path, target_is_directory=True)
    return link
