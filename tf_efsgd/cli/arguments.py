"""Command lines: parsing, help, output paths, and how a command ends over what goes wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags

from tf_efsgd import terminal
from tf_efsgd.config import ConfigError, read_flagfiles


def start(
    main: Callable[[], None],
    define_flags: Callable[[], Iterable[str] | None],
) -> None:
    """Runs a command: defines its flags, reads the command line, and does its work.

    Args:
      main: what the command does with the parsed flags.
      define_flags: defines them in absl's; returns the names that --help shows, or None for all.
    """
    terminal.use_words()
    others = set(flags.FLAGS)
    shown = define_flags()
    show_in_help(set(flags.FLAGS) - others if shown is None else shown)
    app.run(lambda _: main(), flags_parser=parse_arguments)


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
        rest = flags.FLAGS(read_flagfiles(arguments))
        if len(rest) > 1:
            raise ConfigError(f'Settings are flags, --name=value. Received: {rest[1]}')
    except (flags.Error, ConfigError) as error:
        exit_with(error)
    return rest


def exit_with(error: Exception | str) -> NoReturn:
    """Ends the program over a mistake of its user's: one line, exit code 2."""
    print(f'tf_efsgd: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def one_line_errors(
    *,
    mistakes: tuple[type[Exception], ...] = (ConfigError,),
    hint: str = '',
    when_interrupted: str | None = None,
) -> Iterator[None]:
    """Ends the program with one line where something goes wrong inside.

    The exit code is 2 for a mistake of the user's, 1 for another OSError, 130 for Ctrl-C. An error
    that says itself how to continue, see `run.errors.with_how_to_continue`, ends in that.

    Args:
      mistakes: errors that are the user's.
      hint: whole sentences to say after any other OSError or Ctrl-C.
      when_interrupted: those for Ctrl-C, if they are others.
    """
    try:
        yield
    except BrokenPipeError:  # Whoever read what was written, `head` say, has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except mistakes as error:
        exit_with(error)
    except OSError as error:
        said = getattr(error, 'how_to_continue', None) or hint
        print(f'tf_efsgd: {error}. {said}'.rstrip(), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        said = hint if when_interrupted is None else when_interrupted
        said = getattr(error, 'how_to_continue', None) or said
        print(f'\ntf_efsgd: interrupted. {said}'.rstrip(), file=sys.stderr)
        sys.exit(130)


def quieten_tensorflow() -> None:
    """Silences TensorFlow's C++ messages; call it before TensorFlow is loaded.

    Below 3 it greets every user with three errors about GPU plug-ins; real errors are raised. What
    the user set stays.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


def check_picture_path(flag: str, path: str) -> None:
    """Checks that matplotlib can write a picture there, before anything is computed.

    Args:
      flag: the name of the flag.
      path: of the file to be.

    Raises:
      ConfigError: if matplotlib is missing, the folder is, or the ending names no picture.
    """
    if importlib.util.find_spec('matplotlib') is None:
        raise ConfigError(f'--{flag} needs matplotlib: pip install matplotlib')
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    check_output_path(flag, path, sorted(FigureCanvasAgg.get_supported_filetypes()))


def check_output_path(flag: str, path: str, endings: Sequence[str]) -> None:
    """Checks that a file can be written there, before anything is computed.

    Args:
      flag: the name of the flag.
      path: of the file to be.
      endings: what it may end in, without the dot.

    Raises:
      ConfigError: if the folder is missing, or the file has another ending.
    """
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        raise ConfigError(f'--{flag}: there is no folder {target.parent}. Received: {path}.')
    if target.is_dir() or target.suffix[1:].lower() not in endings:
        raise ConfigError(
            f'--{flag} must be a file that ends in one of {", ".join(endings)}. Received: {path}.'
        )
