"""Command lines: parsing, help, and how a command ends over a mistake of its user's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from absl import flags

from tf_efsgd.config import ConfigError, find_flagfiles


def show_in_help(names: Iterable[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Makes `--help` show these flags: it shows those of the module that was started alone.

    Args:
      names: of defined flags.
      flag_values: where they are defined.
    """
    for name in names:
        flag_values.register_key_flag_for_module(sys.argv[0], flag_values[name])


def parse_arguments(arguments: Sequence[str]) -> list[str]:
    """Parses a command line into absl's flags; on a mistake exits as `exit_with` does."""
    try:
        rest = flags.FLAGS(find_flagfiles(arguments))
        if len(rest) > 1:
            raise ConfigError(f'Settings are flags, --name=value. Received: {rest[1]}')
    except (flags.Error, ConfigError) as error:
        exit_with(error)
    return rest


def exit_with(error: Exception) -> NoReturn:
    """Ends the program over a mistake of its user's: one line, exit code 2."""
    print(f'tf_efsgd: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)
