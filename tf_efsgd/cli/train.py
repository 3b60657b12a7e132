"""Trains a differentially private generator: python -m tf_efsgd.launch --flagfile=mnist.flags."""

from __future__ import annotations

import sys
import traceback

from absl import logging

from tf_efsgd import config
from tf_efsgd.cli import arguments

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
    with arguments.one_line_errors():
        run_config = config.from_flags()
        arguments.quieten_tensorflow(always=True)
        # TensorFlow takes seconds to load, so it is imported once the flags are known to be right.
        from tf_efsgd.run import runner

        try:
            runner.run(run_config, given=config.given_flags())
        except runner.Interrupted as interrupted:
            print(f'tf_efsgd: {interrupted}', file=sys.stderr)
            sys.exit(128 + interrupted.signal_number)
        except runner.TensorFlowError as error:
            print(f'tf_efsgd: {error} {error.how_to_continue or ""}'.rstrip(), file=sys.stderr)
            sys.exit(1)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, config.define_flags, positional=arguments.PATH, first=_FIRST)
