"""Where exported generators are: RUN/export/1, 2, 3, as TF Serving counts them. No TensorFlow."""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

# In an export, paths of its own beside those of TensorFlow.
STATEMENT = 'assets.extra/privacy_statement.json'
CHECKSUMS = 'assets.extra/SHA256SUMS'
WARM_UP = 'assets.extra/tf_serving_warmup_requests'
CLASS_NAMES = 'assets/class_names.txt'

# In a run folder.
EXPORT = 'export'
_MODEL = 'saved_model.pb'


class ExportError(ValueError):
    """There is no export, or not the one that was meant; the message is one line."""


def all_versions(base: str | os.PathLike) -> list[pathlib.Path]:
    """The exports in a folder, the latest last."""
    base = pathlib.Path(base)
    entries = base.iterdir() if base.is_dir() else ()
    # Not all that isdecimal() takes is a number to TF Serving.
    numbers = [int(entry.name) for entry in entries if re.fullmatch('[1-9][0-9]*', entry.name)]
    return [base / str(number) for number in sorted(numbers)]


def next_version(base: str | os.PathLike) -> pathlib.Path:
    """The folder of the next export: the number after the latest, 1 at first."""
    found = all_versions(base)
    return pathlib.Path(base) / str(int(found[-1].name) + 1 if found else 1)


def find(path: str | os.PathLike) -> pathlib.Path:
    """The export that is meant by a path.

    Args:
      path: of a run, of its folder of exports (the latest is meant then), or of one export.

    Raises:
      ExportError: if there is none.
    """
    path = pathlib.Path(path).expanduser()
    if (path / _MODEL).is_file():
        return path
    for base in (path / EXPORT, path):
        whole = [found for found in all_versions(base) if (found / _MODEL).is_file()]
        if whole:
            return whole[-1]
    if not path.is_dir():
        raise ExportError(f'There is no folder {path}: give that of a run or of an export.')
    raise ExportError(
        f'{path} holds no exported generator, as RUN/export/1/{_MODEL} is one: let the run end, or '
        f'export it with tf-efsgd export {path}.'
    )


def read_statement(export: str | os.PathLike) -> dict[str, Any]:
    """The privacy statement of an export.

    Raises:
      ExportError: if it is missing or damaged.
    """
    path = pathlib.Path(export) / STATEMENT
    try:
        statement = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(statement['private'], bool):
            raise TypeError('private')
    except OSError as error:
        raise ExportError(
            f'{path} cannot be read: {error.strerror}. An export without its privacy statement '
            'must not be shared: export the run again.'
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f'{path} is damaged: export the run again.') from error
    return statement
