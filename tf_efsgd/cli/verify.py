"""Checks that what is shared belongs together: tf-efsgd verify OUT.

OUT is a synthetic data set, an export or a run. Files and checksums, the privacy statement, the
pages that repeat it and, for a run, the ledger are compared with each other. Prints the epsilon.
Exit code 1 means that something does not belong together.
"""

from __future__ import annotations

import sys

from absl import flags

from tf_efsgd import config
from tf_efsgd.cli import arguments


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags and returns their names."""
    flags.DEFINE_string(
        'path',
        None,
        'The folder of a synthetic data set, an export or a run.',
        flag_values=flag_values,
    )
    return ['path', *arguments.define_output_flags(flag_values)]


def run(flag_values: flags.FlagValues) -> int:
    """Verifies; returns the exit code.

    Raises:
      ConfigError: if the folder is none of these, or cannot be read.
    """
    if flag_values['path'].value is None:
        raise config.ConfigError('Give the folder to verify: tf-efsgd verify OUT.')
    from tf_efsgd.run import verify

    found = verify.verify(flag_values['path'].value)
    arguments.show(found, verify.describe(found), flag_values)
    return 1 if found['faults'] else 0


def _main() -> None:
    with arguments.one_line_errors():
        code = run(flags.FLAGS)
    sys.exit(code)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, define_flags, positional=arguments.Positional('path', 'OUT'))
