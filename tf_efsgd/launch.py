"""Trains a differentially private generator: python -m tf_efsgd.launch --flagfile=mnist.flags."""

from __future__ import annotations

import os
import sys

from absl import app, flags, logging

from tf_efsgd import config


def _fail(error: Exception) -> None:
    print(f'tf_efsgd: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(config.find_flagfiles(arguments))
        if len(rest) > 1:
            raise config.ConfigError(f'Settings are flags, --name=value. Received: {rest[1]}')
    except (flags.Error, config.ConfigError) as error:
        _fail(error)
    return rest


def _main(arguments: list[str]) -> None:
    del arguments
    logging.set_verbosity(logging.WARNING)
    try:
        run_config = config.from_flags()
        # TensorFlow takes seconds to load: only after the flags are known to be right.
        # Below 3 it greets every user with three errors about GPU plug-ins; real ones are raised.
        os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
        from tf_efsgd import runner

        try:
            runner.run(run_config)
        except runner.Interrupted as interrupted:
            print(f'tf_efsgd: {interrupted}', file=sys.stderr)
            sys.exit(128 + interrupted.signal_number)
    except config.ConfigError as error:
        _fail(error)
    except OSError as error:
        print(
            f'tf_efsgd: {error}. Nothing that was trained and saved is lost: mend it, then go on '
            'with --flagfile=RUN/config.flags --run_dir=RUN --resume, RUN being the run folder.',
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            '\ntf_efsgd: interrupted; go on from the last checkpoint with '
            '--flagfile=RUN/config.flags --run_dir=RUN --resume, RUN being the run folder.',
            file=sys.stderr,
        )
        sys.exit(130)


def main() -> None:
    """Entry point of the command line."""
    config.define_flags()
    app.run(_main, flags_parser=_parse)


if __name__ == '__main__':
    main()
