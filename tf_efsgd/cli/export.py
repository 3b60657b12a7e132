"""Writes a run's generator as a SavedModel for TF Serving: tf-efsgd export RUN.

A run exports by itself when it ends. This command exports a run with --noexport, a run that was
stopped, or a run again with a newer version of the program. It works from the last checkpoint,
without the records, and makes the next version (RUN/export/2). It does not export the same
generator twice.
"""

from __future__ import annotations

from absl import flags

from tf_efsgd.cli import arguments


def run(flag_values: flags.FlagValues) -> None:
    """Exports the run that the flags name.

    Raises:
      ConfigError: if there is no such run, or nothing of it was trained.
      OSError: e.g. if the disk is full.
    """
    run_dir = arguments.given_run('tf-efsgd export', flag_values)
    # TensorFlow takes seconds to load, so it is loaded only once the flags are known to be right.
    from tf_efsgd.run import again

    made = again.export(run_dir)
    text = made['export_dir'] if made['is_new'] else f'{made["export_dir"]} exists already.'
    arguments.show(made, text, flag_values)


def main() -> None:
    """Entry point of the command line."""
    arguments.start_for_run(run)
