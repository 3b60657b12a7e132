"""Trains a differentially private generator: python -m tf_efsgd.launch --flagfile=mnist.flags."""

from __future__ import annotations

import os
import sys

from absl import app, logging

from tf_efsgd import config
from tf_efsgd.cli import arguments

_HOW_TO_GO_ON = (
    'Nothing that was saved is lost: go on with --flagfile=RUN/config.flags --run_dir=RUN --resume '
    '(and the same --state_dir, if one was given), RUN being the run folder.'
)


def _main(rest: list[str]) -> None:
    del rest
    logging.set_verbosity(logging.WARNING)
    try:
        run_config = config.from_flags()
        # TensorFlow takes seconds to load: only after the flags are known to be right.
        # Below 3 it greets every user with three errors about GPU plug-ins; real ones are raised.
        # Its warnings also tell the size of tensors, and so of a batch, which is private.
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
        from tf_efsgd.run import runner

        try:
            runner.run(run_config)
        except runner.Interrupted as interrupted:
            print(f'tf_efsgd: {interrupted}', file=sys.stderr)
            sys.exit(128 + interrupted.signal_number)
        except runner.TensorFlowError as error:
            print(f'tf_efsgd: {error} {_HOW_TO_GO_ON}', file=sys.stderr)
            sys.exit(1)
    except config.ConfigError as error:
        arguments.exit_with(error)
    except OSError as error:
        print(f'tf_efsgd: {error}. {_HOW_TO_GO_ON}', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f'\ntf_efsgd: interrupted. {_HOW_TO_GO_ON}', file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Entry point of the command line."""
    arguments.show_in_help(config.define_flags())
    app.run(_main, flags_parser=arguments.parse_arguments)


if __name__ == '__main__':
    main()
