"""Lists the checksums of a folder, as `sha256sum -c` reads them, and finds differences."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re

from tf_efsgd import files

# What file managers leave in a folder that somebody has opened; it is neither listed nor compared.
_LITTER = ('.ds_store', 'thumbs.db', 'desktop.ini')
_LINE = re.compile(r'(\\?)([0-9a-f]{64})[ ][ *](.+)')


class ChecksumError(ValueError):
    """A list of checksums is missing or damaged; the message says what to do."""


def sha256_of(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def write(folder: str | os.PathLike, name: str) -> None:
    """Writes the checksums of all files of a folder into it, and waits until all are on disk.

    Args:
      folder: the folder with its files.
      name: the name of the list, a path in the folder. The list has no checksum of itself. Check
        it with `cd FOLDER && sha256sum -c NAME`.
    """
    folder = pathlib.Path(folder)
    lines = []
    for path in _files_of(folder):
        if path != name:
            files.sync(folder / path)
            lines.append(_line(sha256_of(folder / path), path))
    files.write_atomically(folder / name, os.fsencode(''.join(lines)))


def differences(folder: str | os.PathLike, name: str) -> list[str]:
    """Compares a folder with its list of checksums.

    Args:
      folder: the folder with its files.
      name: the name of the list, a path in the folder.

    Returns:
      One line for each file that is missing, unlisted or changed; none if all is well.

    Raises:
      ChecksumError: if the list is missing or damaged.
    """
    folder = pathlib.Path(folder)
    listed = _read(folder / name)
    there = {path for path in _files_of(folder) if path != name}
    lines = [f'{path} is missing' for path in listed if path not in there]
    lines += [f'{path} is in no list of checksums' for path in sorted(there - set(listed))]
    lines += [
        f'{path} was changed: its checksum differs'
        for path, digest in listed.items()
        if path in there and sha256_of(folder / path) != digest
    ]
    return lines


def _read(path: pathlib.Path) -> dict[str, str]:
    try:
        lines = os.fsdecode(path.read_bytes()).split('\n')
    except OSError as error:
        raise ChecksumError(
            f'There is no list of checksums {path}: the folder is incomplete, or was not made by '
            'this program.'
        ) from error
    found = {}
    for line in filter(None, lines):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ChecksumError(f'{path} is damaged. Received the line: {line[:100]!r}.')
        found[_unescaped(match[3]) if match[1] else match[3]] = match[2]
    if not found:
        raise ChecksumError(f'{path} lists no file: it is damaged.')
    return found


def _files_of(folder: pathlib.Path) -> list[str]:
    """Returns all files below a folder, as relative paths with /."""
    found = []
    for path, folders, names in os.walk(folder):
        folders.sort()
        relative = pathlib.Path(path).relative_to(folder)
        names = [name for name in names if name.lower() not in _LITTER and name[:2] != '._']
        found += [(relative / name).as_posix() for name in names]
    return sorted(found)


def _line(digest: str, path: str) -> str:
    """Returns a line as `sha256sum` writes it: it starts with a backslash if a name needs one."""
    escaped = path.replace('\\', '\\\\').replace('\n', '\\n').replace('\r', '\\r')
    return f'{"" if escaped == path else chr(92)}{digest}  {escaped}\n'


def _unescaped(path: str) -> str:
    codes = {'\\n': '\n', '\\r': '\r', '\\\\': '\\'}
    return re.sub(r'\\[nr\\]', lambda match: codes[match[0]], path)
