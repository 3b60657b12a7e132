"""Writes a run's generator as a SavedModel for TF Serving: tf-efsgd export RUN.

A run exports by itself when it ends. This does so for a run with --noexport, for one that was
stopped, or again by a newer version of the program: from the last checkpoint, without the records,
as the next version (RUN/export/2). The same generator is not exported twice.
"""

from __future__ import annotations

from absl import flags, logging

from tf_efsgd.cli import arguments


def run(flag_values: flags.FlagValues) -> None:
    """Exports.

    Raises:
      ConfigError: if there is no such run, or nothing of it was trained.
      OSError: if the disk is full, say.
    """
    run_dir = arguments.given_run('tf-efsgd export', flag_values)
    # TensorFlow takes seconds to load: only after the flags are known to be right.
    from tf_efsgd.run import again

    made = again.export(run_dir)
    text = made['export_dir'] if made['is_new'] else f'{made["export_dir"]} exists already.'
    arguments.show(made, text, flag_values)


def _main() -> None:
    logging.set_verbosity(logging.ERROR)
    arguments.quieten_tensorflow()
    with arguments.one_line_errors():
        run(flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, arguments.define_run_flags, positional=arguments.RUN)
