"""Where the file is that a --flagfile names."""

from __future__ import annotations

import importlib.resources
import pathlib
from collections.abc import Sequence

from tf_efsgd.config.fields import ConfigError


def config_dirs() -> list[pathlib.Path]:
    """Where a bare --flagfile name is looked up, in order."""
    installed = importlib.resources.files('tf_efsgd').joinpath('configs')
    checkout = pathlib.Path(__file__).resolve().parents[2] / 'configs'
    return [pathlib.Path.cwd(), pathlib.Path(str(installed)), checkout]


def find_flagfiles(arguments: Sequence[str]) -> list[str]:
    """Replaces bare --flagfile names by the paths of the files they mean.

    A name without a folder is looked up in the working folder, then in the installed configs.

    Args:
      arguments: command-line arguments.

    Returns:
      The arguments, `--flagfile NAME` as `--flagfile=PATH`.

    Raises:
      ConfigError: if there is no such file.
    """
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ('--flagfile', '-flagfile') and rest:
            argument = f'--flagfile={rest.pop(0)}'
        if argument.startswith(('--flagfile=', '-flagfile=')):
            argument = f'--flagfile={_find_flagfile(argument.split("=", 1)[1])}'
        found.append(argument)
    return found


def _find_flagfile(name: str) -> pathlib.Path:
    path = pathlib.Path(name).expanduser()
    bare = path.name == name
    candidates = [folder / name for folder in config_dirs()] if bare else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted({p.name for folder in config_dirs()[1:] for p in folder.glob('*.flags')})
    raise ConfigError(
        f'There is no flagfile {name!r}. Give a path, or one of {", ".join(known) or "none"}.'
    )
