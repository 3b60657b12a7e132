"""Reads and writes the value of --classes: names in a flag, or in a file of their own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence

from tf_efsgd import files
from tf_efsgd.config.fields import ConfigError

# Names that need no quotes between commas in a flagfile.
_PLAIN = re.compile(r'[\w.+()-]+( +[\w.+()-]+)*', re.ASCII)


def parse_classes(text: str) -> tuple[str, ...]:
    """Reads the value of --classes.

    Args:
      text: names separated by commas, a JSON list of names, or the path of a text file with a name
        in each line. Without a comma it is a path; if there is no such file and it does not look
        like a path, it is one name.

    Returns:
      The names, at least one, in their order.

    Raises:
      ConfigError: if it is none of these, or a name is empty or given twice.
    """
    if text.startswith('['):
        try:
            names = json.loads(text)
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                '--classes that start with [ must be a JSON list of names, e.g. ["a", "b, c"]. '
                f'Received: {text[:100]}.'
            )
    elif ',' in text:
        names = [name.strip() for name in text.split(',')]
    else:
        names = _read_classes(text)
    if not names or not all(names) or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        fault = f'{twice[0]!r} twice' if twice else 'an empty name' if names else 'no name'
        raise ConfigError(
            f'--classes must be at least one name, each once and none empty. Received: {fault}.'
        )
    return tuple(names)


def _read_classes(text: str) -> list[str]:
    path = files.expanded(text)
    if os.path.isfile(path):
        try:
            lines = files.read_text(path).split('\n')
        except OSError as error:
            raise ConfigError(f'--classes: {path} cannot be read: {error.strerror}.') from error
        except ValueError as error:
            raise ConfigError(f'--classes: {error}') from error
        return [line.strip() for line in lines if line.strip()]
    if '/' in text or path.suffix in ('.txt', '.csv'):
        raise ConfigError(
            f'--classes: there is no file {text}. Give names separated by commas, or the path of a '
            'text file with one in each line.'
        )
    return [text.strip()]


def join_classes(names: Sequence[str]) -> str:
    """Makes the value of --classes for these names; it can stand in a line of a flagfile."""
    if len(names) > 1 and all(_PLAIN.fullmatch(name) for name in names):
        return ','.join(names)
    return json.dumps(list(names))
