"""Writes the report of a run again, and says what it spent: tf-efsgd report RUN.

RUN/report.html is made from the last checkpoint, the ledger and the released logs, without the
records. --json prints the privacy statement.
"""

from __future__ import annotations

from absl import flags

from tf_efsgd import rounding
from tf_efsgd.cli import arguments


def run(flag_values: flags.FlagValues) -> None:
    """Writes the report of the run that the flags name.

    Raises:
      ConfigError: if there is no such run, or nothing of it was trained.
      OSError: e.g. if the disk is full.
    """
    run_dir = arguments.given_run('tf-efsgd report', flag_values)
    # TensorFlow takes seconds to load, so it is loaded only once the flags are known to be right.
    from tf_efsgd.run import again

    made = again.report(run_dir)
    statement = made['privacy_statement']
    line = 'NOT PRIVATE: do not share the page.'
    if statement['private']:
        line = (
            f'ε = {rounding.up(statement["epsilon"])} at δ = {statement["delta"]:g}, for '
            f'{statement["unit_of_privacy"]}.'
        )
    arguments.show(made, f'{line}\n{made["report"]}', flag_values)


def main() -> None:
    """Entry point of the command line."""
    arguments.start_for_run(run)
