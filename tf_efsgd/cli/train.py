"""Trains a differentially private generator: python -m tf_efsgd.launch --flagfile=mnist.flags."""

from __future__ import annotations

import os
import sys

from absl import logging

from tf_efsgd import config
from tf_efsgd.cli import arguments

_FIRST = ['dataset', 'target_epsilon', 'minutes', 'image_size', 'run_dir', 'resume']


def _main() -> None:
    logging.set_verbosity(logging.WARNING)
    with arguments.one_line_errors():
        run_config = config.from_flags()
        # Warnings of TensorFlow tell the size of tensors, and so of a batch, which is private:
        # whatever the user set.
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
        # TensorFlow takes seconds to load: only after the flags are known to be right.
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
