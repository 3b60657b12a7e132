"""The table of commands: tf-efsgd COMMAND [--flag=value ...], or python -m tf_efsgd COMMAND."""

from __future__ import annotations

import importlib
import sys

from tf_efsgd import terminal
from tf_efsgd.version import __version__

_HELPS = ('--help', '-help', '-h', '-?', '--helpshort', '--helpfull', 'help')
# Command -> what it does. Each command is a module of this folder with a `main`; only the module of
# the command that is called is loaded.
COMMANDS = {
    'train': 'Train a differentially private generator, or resume a run.',
    'plan': 'Show what a privacy budget buys before it is spent, or what a ledger spent.',
    'check': 'Look at your images: what can be read, what cannot, and what to expect.',
    'generate': 'Write a data set that may be shared, from a run or an export.',
    'evaluate': "Measure a run's generator against real images.",
    'export': "Write a run's generator as the next version of a SavedModel for TF Serving.",
    'report': "Write a run's report again, and say what the run spent.",
    'verify': 'Check that files, checksums and privacy statement belong together.',
    'audit': 'Attack the mechanism, and compare what that proves with the account.',
    'bench': 'Measure time and memory of the private step on this machine.',
    'results': 'Run a grid of experiments and write its table.',
    'state': 'List and remove what is remembered of runs outside their folders.',
    'cache': 'List and remove decoded images that are kept for later starts.',
}

_HELP = """\
tf-efsgd {version}: differentially private synthetic images.

Usage: tf-efsgd COMMAND [PATH or RUN] [--flag=value ...]

{commands}

tf-efsgd COMMAND --help explains a command. Exit codes: 0 done, 1 failed, 2 a mistake in the
command, 130 Ctrl-C. To begin with:
  tf-efsgd train --flagfile=demo.flags
  tf-efsgd train photos/ --target_epsilon=10
  tf-efsgd generate runs/RUN --output=synthetic"""


def main() -> None:
    """Entry point of the console script. Without arguments it prints its help."""
    terminal.open_closed_streams()
    terminal.use_words()
    name, *rest = sys.argv[1:] or ['--help']
    if name in ('--version', '-version', 'version'):
        print(f'tf_efsgd {__version__}')
    elif name.partition('=')[0] in _HELPS:
        commands = '\n'.join(f'  {command:<10}{text}' for command, text in COMMANDS.items())
        with terminal.whoever_reads():
            print(_HELP.format(version=__version__, commands=commands))
    elif name in COMMANDS:
        _start(name, rest)
    else:
        print(
            f'tf_efsgd: The first argument must be a command, one of {", ".join(COMMANDS)}. '
            f'Received: {" ".join(name.split()) or "nothing"}.',
            file=sys.stderr,
        )
        sys.exit(2)


def _start(name: str, arguments: list[str]) -> None:
    """Runs a command as if it had been started by itself."""
    command = importlib.import_module(f'tf_efsgd.cli.{name}')
    sys.argv = [f'tf-efsgd {name}', *arguments]
    # absl prints this docstring above the flags.
    sys.modules['__main__'].__doc__ = command.__doc__
    command.main()
