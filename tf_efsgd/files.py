"""Files that appear whole or not at all, and are still there after a power cut."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable


def write_atomically(
    path: str | os.PathLike,
    content: str | bytes,
    *,
    mode: int = 0o644,
    when_there_is_room: Callable[[], None] | None = None,
) -> None:
    """Writes a file under another name, syncs it, then renames it.

    Args:
      path: of the file; an existing one is replaced.
      content: its new content; text is written as UTF-8.
      mode: its permissions.
      when_there_is_room: called when the disk has as many bytes for it, before the first byte of
        the content is written: what must not be done in vain, nor after.

    Raises:
      OSError: if the disk is full or the folder cannot be written; the old file is kept then.
    """
    path = pathlib.Path(path)
    content = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.tmp-', dir=path.parent)
    try:
        with open(handle, 'wb') as file:
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
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def sync(path: str | os.PathLike) -> None:
    """Waits until a file's content, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
