"""Finds exported generators: RUN/export/1, 2, 3, as TF Serving counts them. No TensorFlow."""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

from tf_efsgd import file_names, files

# Paths in an export, beside those of TensorFlow.
STATEMENT = f'{file_names.EXTRA}/{file_names.STATEMENT}'
CHECKSUMS = f'{file_names.EXTRA}/{file_names.CHECKSUMS}'
WARM_UP = f'{file_names.EXTRA}/tf_serving_warmup_requests'
CLASS_NAMES = 'assets/class_names.txt'

_MODEL = 'saved_model.pb'


class ExportError(ValueError):
    """An export is missing, or is not the one that was meant; the message is one line."""


def all_versions(base: str | os.PathLike) -> list[pathlib.Path]:
    """Returns the exports in a folder, the latest last."""
    base = pathlib.Path(base)
    entries = base.iterdir() if base.is_dir() else ()
    # TF Serving does not take everything for a number that isdecimal() does.
    numbers = [int(entry.name) for entry in entries if re.fullmatch('[1-9][0-9]*', entry.name)]
    return [base / str(number) for number in sorted(numbers)]


def next_version(base: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of the next export: the number after the latest, 1 for the first."""
    found = all_versions(base)
    return pathlib.Path(base) / str(int(found[-1].name) + 1 if found else 1)


def find(path: str | os.PathLike) -> pathlib.Path:
    """Finds the export that a path means.

    Args:
      path: the path of a run or of its folder of exports, which mean the latest export, or of one
        export.

    Returns:
      The folder of the export.

    Raises:
      ExportError: if there is none.
    """
    path = files.expanded(path)
    if (path / _MODEL).is_file():
        return path
    for base in (path / file_names.EXPORT, path):
        whole = [found for found in all_versions(base) if (found / _MODEL).is_file()]
        if whole:
            return whole[-1]
    if not path.is_dir():
        raise ExportError(f'There is no folder {path}: give the folder of a run or of an export.')
    raise ExportError(
        f'{path} holds no exported generator such as RUN/export/1/{_MODEL}: let the run end, or '
        f'export it with tf-efsgd export {path}.'
    )


def read_statement(export: str | os.PathLike) -> dict[str, Any]:
    """Reads the privacy statement of an export.

    Args:
      export: the folder of the export.

    Returns:
      JSON values by name.

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
