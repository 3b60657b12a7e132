"""Finds and reads the file that a --flagfile names."""

from __future__ import annotations

import contextlib
import importlib.resources
import pathlib
from collections.abc import Sequence

from tf_efsgd import files
from tf_efsgd.config.fields import ConfigError


def config_dirs() -> list[pathlib.Path]:
    """The folders in which a bare --flagfile name is looked up, in order."""
    installed = importlib.resources.files('tf_efsgd').joinpath('configs')
    checkout = pathlib.Path(__file__).resolve().parents[2] / 'configs'
    return [pathlib.Path.cwd(), pathlib.Path(str(installed)), checkout]


def find_flagfiles(arguments: Sequence[str]) -> list[str]:
    """Replaces bare --flagfile names with the paths of the files that they mean.

    A name without a folder is looked up in the working folder, then in the installed configs.

    Args:
      arguments: command-line arguments.

    Returns:
      The arguments, `--flagfile NAME` as `--flagfile=PATH`.

    Raises:
      ConfigError: if there is no such file.
    """
    found: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == '--':  # What comes after it is not a flag.
            return [*found, argument, *rest]
        if argument in ('--flagfile', '-flagfile') and rest:
            argument = f'--flagfile={rest.pop(0)}'
        if argument.startswith(('--flagfile=', '-flagfile=')):
            argument = f'--flagfile={_find_flagfile(argument.split("=", 1)[1])}'
        found.append(argument)
    return found


def read_flagfiles(arguments: Sequence[str]) -> list[str]:
    """Replaces every --flagfile with what the file says, as absl does, whatever editor wrote it.

    Args:
      arguments: command-line arguments.

    Returns:
      The arguments without --flagfile; the arguments in a file take its place.

    Raises:
      ConfigError: if a file is missing, is not a text, or names itself.
    """
    return _read(arguments, ())


def _read(arguments: Sequence[str], within: tuple[pathlib.Path, ...]) -> list[str]:
    read: list[str] = []
    arguments = find_flagfiles(arguments)
    for number, argument in enumerate(arguments):
        if argument == '--':
            return read + list(arguments[number:])
        if not argument.startswith('--flagfile='):
            read.append(argument)
            continue
        path = pathlib.Path(argument.split('=', 1)[1])
        if path in within:
            raise ConfigError(f'The flagfile {path} names itself, through --flagfile.')
        try:
            lines = [line.strip() for line in files.read_text(path).splitlines()]
        except OSError as error:
            raise ConfigError(f'The flagfile {path} cannot be read: {error.strerror}.') from error
        except ValueError as error:
            raise ConfigError(f'The flagfile {error}') from error
        flags = [line for line in lines if line and not line.startswith(('#', '//'))]
        read += _read(flags, (*within, path))
    return read


def _find_flagfile(name: str) -> pathlib.Path:
    path = files.expanded(name)
    bare = path.name == name
    candidates = [folder / name for folder in config_dirs()] if bare else [path]
    for candidate in candidates:
        with contextlib.suppress(OSError):  # For example if the name is too long.
            if candidate.is_file():
                return candidate
    known = sorted({p.name for folder in config_dirs()[1:] for p in folder.glob('*.flags')})
    raise ConfigError(
        f'There is no flagfile {name!r}. Give a path, or one of {", ".join(known) or "none"}.'
    )
