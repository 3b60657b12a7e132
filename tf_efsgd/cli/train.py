"""Trains a differentially private generator: tf-efsgd train PATH."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from tf_efsgd import config, file_names, files, terminal
from tf_efsgd.cli import arguments
from tf_efsgd.export import versions

# This module is imported together with TensorFlow, or not at all.
_WORKERS = 'tf_efsgd.run.workers'

_FIRST = ['dataset', 'target_epsilon', 'minutes', 'image_size', 'run_dir', 'resume']


def _main() -> None:
    """Trains; one of several workers then ends its process at once (see `workers.end_process`)."""
    code = 1
    try:
        _train()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        raise
    except BaseException:
        if _runs_several_workers():
            traceback.print_exc()
        raise
    finally:
        if _runs_several_workers():
            sys.modules[_WORKERS].end_process(code)


def _runs_several_workers() -> bool:
    return _WORKERS in sys.modules and sys.modules[_WORKERS].Several.is_connected


def _train() -> None:
    logging.set_verbosity(logging.WARNING)
    # Whoever stops reading what it says does not stop a run that has been paid for.
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminal.whoever_reads())
        stack.enter_context(arguments.one_line_errors())
        stack.enter_context(arguments.signals_as_interrupts())
        run_config = config.from_flags(flags.FLAGS)
        arguments.quieten_tensorflow(always=True)
        # TensorFlow takes seconds to load, so it is imported once the flags are known to be right.
        from tf_efsgd.run import runner

        try:
            with arguments.only_the_result(flags.FLAGS):
                folder = runner.run(run_config, given=config.given_flags(flags.FLAGS))
            # Without --json, the run has already printed this.
            arguments.show(places_of(pathlib.Path(folder)), None, flags.FLAGS)
        except runner.Interrupted as interrupted:
            print(f'tf_efsgd: {interrupted}', file=sys.stderr)
            sys.exit(128 + interrupted.signal_number)
        except runner.TensorFlowError as error:
            print(f'tf_efsgd: {error} {error.how_to_continue or ""}'.rstrip(), file=sys.stderr)
            sys.exit(1)


def places_of(folder: pathlib.Path) -> dict[str, Any]:
    """Says where everything is that a run made.

    Args:
      folder: of the run.

    Returns:
      JSON values by name: `run_dir`, `export_dir`, its `privacy_statement`, `report` and `metrics`;
      None for what the run did not make.
    """
    found = versions.all_versions(folder / file_names.EXPORT)
    export = found[-1] if found else None
    report, nonprivate = folder / file_names.REPORT, folder / file_names.NONPRIVATE
    metrics = nonprivate / file_names.METRICS
    return {
        'run_dir': str(folder),
        'export_dir': None if export is None else str(export),
        'report': str(report) if report.is_file() else None,
        'metrics': str(metrics) if metrics.is_file() else None,
        'privacy_statement': None if export is None else versions.read_statement(export),
    }


def with_settings_of_run(arguments: Sequence[str]) -> list[str]:
    """Adds the file of flags of the run to resume, if no such file is given.

    Args:
      arguments: the command line, with the command.
    """
    names = [argument.lstrip('-').partition('=')[0] for argument in arguments]
    if 'resume' not in names or 'flagfile' in names:
        return list(arguments)
    for argument, name, after in zip(arguments, names, [*arguments[1:], '']):
        if name != 'run_dir':
            continue
        try:
            path = files.expanded(argument.partition('=')[2] or after) / file_names.FLAGFILE
            if path.is_file():
                return [arguments[0], f'--flagfile={path}', *arguments[1:]]
        except (OSError, ValueError):
            break  # What is wrong with the path is said later, in one line.
    return list(arguments)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags and returns their names."""
    return [*config.define_flags(flag_values), *arguments.define_output_flags(flag_values)]


def main() -> None:
    """Entry point of the command line."""
    sys.argv[:] = with_settings_of_run(sys.argv)
    arguments.start(_main, define_flags, positional=arguments.PATH, first=_FIRST)
