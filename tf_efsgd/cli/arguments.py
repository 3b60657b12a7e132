"""Command lines: parsing, help, output paths, and how a command ends when something goes wrong.

The exit codes of all commands are: 0, done; 1, something failed although the command was right (a
full disk, TensorFlow, a run of a grid, a folder that does not belong together); 2, a mistake of the
user, found before anything was spent; 128 plus the number of the signal that ended the command (130
for Ctrl-C).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import math
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from absl import app, flags, logging

from tf_efsgd import files, progress, terminal
from tf_efsgd.cli import helps
from tf_efsgd.config import ConfigError, read_flagfiles


class Positional(NamedTuple):
    """The meaning of an argument without a name, as in `tf-efsgd train photos/`.

    Attributes:
      flag: the flag that it sets.
      shown: what the help calls it, e.g. RUN.
      prefix: what comes before the argument in the value of the flag.
    """

    flag: str
    shown: str
    prefix: str = ''


RUN = Positional('run_dir', 'RUN')
PATH = Positional('dataset', 'PATH', 'folder:')


def start(
    main: Callable[[], None],
    define_flags: Callable[[], Iterable[str] | None],
    *,
    positional: Positional | None = None,
    first: Sequence[str] = (),
) -> None:
    """Runs a command: defines its flags, reads the command line, and does its work.

    `--help` explains the flags that most users need and names the others; `--helpfull` explains
    all. Both end with exit code 0 before anything else is loaded.

    Args:
      main: does the work of the command, with the parsed flags.
      define_flags: defines the flags; returns the names that the help shows, or None for all.
      positional: the meaning of an argument without a name; None allows none.
      first: names of the flags that `--help` explains, at most seven.
    """
    terminal.open_closed_streams()
    terminal.use_words()
    others = set(flags.FLAGS)
    shown = define_flags()
    names = set(flags.FLAGS) - others if shown is None else set(shown)
    show_in_help(names)
    asked = helps.asked_for(sys.argv[1:])
    if asked == 'full':
        _print_help(helps.full_help(_command(), _doc(), flags.FLAGS, names, positional))
    if asked == 'short':
        _print_help(helps.short_help(_command(), _doc(), flags.FLAGS, names, first, positional))
    parse = functools.partial(parse_arguments, positional=positional)
    app.run(lambda _: main(), flags_parser=parse)


def _command() -> str:
    """The command as the user calls it: `tf-efsgd train`, or `python -m tf_efsgd.launch`."""
    if sys.argv[0].startswith('tf-efsgd '):
        return sys.argv[0]
    path = pathlib.Path(sys.argv[0])
    parts = [path.parent.name, path.stem] if path.stem == '__main__' else [path.stem]
    return f'python -m tf_efsgd.{parts[0]}'


def _doc() -> str:
    return sys.modules['__main__'].__doc__ or ''


def _print_help(text: str) -> NoReturn:
    with terminal.whoever_reads():
        print(text)
    sys.exit(0)


def show_in_help(names: Iterable[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Makes some flags the key flags of the module that was started.

    Args:
      names: of defined flags.
      flag_values: where they are defined.
    """
    for name in names:
        flag_values.register_key_flag_for_module(sys.argv[0], flag_values[name])


def parse_arguments(arguments: Sequence[str], positional: Positional | None = None) -> list[str]:
    """Parses a command line into absl's flags; on a mistake it exits as `exit_with` does.

    Args:
      arguments: the command and what follows it.
      positional: as in `start`.

    Returns:
      The command alone.
    """
    try:
        values = flags.FLAGS
        # A path may come before flags: tf-efsgd train photos/ --target_epsilon=10.
        values.set_gnu_getopt(positional is not None)
        program, *rest = values(read_flagfiles(arguments))
        if positional is not None and rest:
            name, path = positional.flag, rest.pop(0)
            # What a file of flags says is overridden, as by --dataset on the command line.
            if any(re.fullmatch(f'--?{name}(=.*)?', one) for one in arguments[1:]):
                raise ConfigError(
                    f'{positional.shown} and --{name} say the same: give one of them. Received: '
                    f'{path} and --{name}={values[name].value}.'
                )
            values([program, f'--{name}={positional.prefix}{path}'])
        if rest:
            raise ConfigError(f'Settings are flags, --name=value. Received: {rest[0]}')
    except (flags.Error, ConfigError) as error:
        exit_with(error)
    return [program]


def exit_with(error: Exception | str) -> NoReturn:
    """Ends the program because of a mistake of its user: with one line and exit code 2."""
    print(f'tf_efsgd: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def one_line_errors(
    *,
    mistakes: tuple[type[Exception], ...] = (ConfigError,),
    hint: str = '',
    when_interrupted: str | None = None,
) -> Iterator[None]:
    """Ends the program with one line if something goes wrong inside.

    The exit code is 2 for a mistake of the user, 1 for another OSError, 130 for Ctrl-C and 128 plus
    the number of another signal, see `signals_as_interrupts`. If the
    error says how to continue (see `run.errors.with_how_to_continue`), the line ends with that.

    Args:
      mistakes: types of errors that are mistakes of the user.
      hint: whole sentences to print after another OSError or Ctrl-C.
      when_interrupted: sentences for Ctrl-C instead of `hint`; None: the same.
    """
    try:
        yield
    except BrokenPipeError:  # The reader of the output, e.g. `head`, has read enough.
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
        sys.exit(128 + getattr(error, 'signal_number', signal.SIGINT))


class _Signalled(KeyboardInterrupt):
    """Another signal than Ctrl-C's asks the program to end."""

    def __init__(self, signal_number: int):
        super().__init__()
        self.signal_number = signal_number


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Lets SIGTERM, and SIGHUP unless it is ignored, end what is inside as Ctrl-C does.

    By default they end Python at once, and nothing is tidied up.
    """

    def interrupt(number, frame):
        del frame
        raise _Signalled(number)

    numbers = [getattr(signal, name, None) for name in ('SIGTERM', 'SIGHUP')]  # Windows lacks one.
    before = {
        number: signal.signal(number, interrupt)
        for number in numbers
        if number is not None and signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def define_output_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines --json and --quiet, for a command with a result; returns their names."""
    flags.DEFINE_boolean(
        'json', False, 'Print the result as JSON, and nothing else.', flag_values=flag_values
    )
    flags.DEFINE_boolean(
        'quiet', False, 'Print nothing but errors; draw no progress bar.', flag_values=flag_values
    )
    return ['json', 'quiet']


def define_run_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines --run_dir, --json and --quiet, for commands on a run; returns their names."""
    flags.DEFINE_string('run_dir', None, 'The folder of the run.', flag_values=flag_values)
    return ['run_dir', *define_output_flags(flag_values)]


def given_run(command: str, flag_values: flags.FlagValues = flags.FLAGS) -> pathlib.Path:
    """The run folder that --run_dir names.

    Args:
      command: as the user calls it.
      flag_values: the parsed flags.

    Raises:
      ConfigError: if the flag or the folder is missing.
    """
    given = flag_values['run_dir'].value
    if given is None:
        raise ConfigError(f'Give the folder of the run: {command} RUN.')
    run_dir = files.expanded(given)
    if not run_dir.is_dir():
        raise ConfigError(f'There is no folder {run_dir}.')
    return run_dir


def show(
    result: dict[str, Any], text: str | None, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Prints the result of a command as --json and --quiet ask for it.

    Args:
      result: JSON values by name; an infinity or NaN becomes null.
      text: the same in words; None if these were printed on the way.
      flag_values: the parsed flags.
    """
    if flag_values['json'].value:
        print(json.dumps(_finite(result), indent=2))
    elif text is not None and not flag_values['quiet'].value:
        print(text)


def _finite(value: Any) -> Any:
    """Replaces infinities and NaN, which JSON does not have, with None."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def only_the_result(flag_values: flags.FlagValues = flags.FLAGS) -> Iterator[None]:
    """With --json or --quiet, nothing is printed inside, by this process or its children.

    Args:
      flag_values: the parsed flags; with `quiet`, no bar is drawn from now on either.
    """
    if flag_values['quiet'].value:
        progress.be_quiet()
    if not (flag_values['json'].value or flag_values['quiet'].value):
        yield
        return
    sys.stdout.flush()
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def start_for_run(run: Callable[[flags.FlagValues], None]) -> None:
    """Runs a command on a run, with the flags --run_dir, --json and --quiet.

    Args:
      run: does the work of the command, with the parsed flags.
    """

    def main() -> None:
        logging.set_verbosity(logging.ERROR)
        quieten_tensorflow()
        with one_line_errors():
            run(flags.FLAGS)

    start(main, define_run_flags, positional=RUN)


def quieten_tensorflow(*, always: bool = False) -> None:
    """Silences TensorFlow's C++ messages; call it before TensorFlow is loaded.

    Below level 3 it greets every user with three errors about GPU plug-ins; real errors are raised
    as exceptions anyway. The TensorFlow of Python 3.12 ignores the level in part.

    Args:
      always: whether to do so even if the user has set another level: warnings tell the size of
        tensors, and so of a batch, which is private.
    """
    level = '3' if always else os.environ.get('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = level
    if level == '3' and sys.version_info >= (3, 12):
        terminal.hide_libraries()


def check_picture_path(flag: str, path: str) -> None:
    """Checks that matplotlib can write a picture to a path, before anything is computed.

    Args:
      flag: the name of the flag.
      path: of the picture.

    Raises:
      ConfigError: if matplotlib or the folder is missing, or the ending is not that of a picture.
    """
    if importlib.util.find_spec('matplotlib') is None:
        raise ConfigError(f'--{flag} needs matplotlib: pip install matplotlib')
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    check_output_path(flag, path, sorted(FigureCanvasAgg.get_supported_filetypes()))


def check_output_path(flag: str, path: str, endings: Sequence[str]) -> None:
    """Checks that a file can be written to a path, before anything is computed.

    Args:
      flag: the name of the flag.
      path: of the file.
      endings: the allowed endings, without the dot.

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
