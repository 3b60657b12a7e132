"""The texts of --help and --helpfull, in groups; the libraries of the command are not loaded."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from absl import flags

from tf_efsgd import config

if TYPE_CHECKING:
    from tf_efsgd.cli.arguments import Positional

_WIDTH = 96
# So few flags can all be explained by the short help.
_FEW = 12
# Values that make a flag true, as absl reads them.
_TRUE = ('', '1', 't', 'true')


def asked_for(arguments: Sequence[str]) -> Literal['short', 'full'] | None:
    """Which help a command line asks for: `--help`, `--help=1`, `--helpfull`; None: neither."""
    parts = [argument.partition('=') for argument in arguments if argument.startswith('-')]
    asked = {name.lstrip('-') for name, _, given in parts if given.lower() in _TRUE}
    if 'helpfull' in asked:
        return 'full'
    return 'short' if asked & {'help', 'h', '?', 'helpshort'} else None


def short_help(
    command: str,
    doc: str,
    flag_values: flags.FlagValues,
    names: Collection[str],
    first: Sequence[str],
    positional: Positional | None = None,
) -> str:
    """Explains the flags that most users need, and names the others in groups.

    Args:
      command: the command as the user calls it.
      doc: the docstring of its module.
      flag_values: where its flags are defined.
      names: of its flags.
      first: names of the flags that are explained.
      positional: the meaning of an argument without a name.
    """
    lines = _head(command, doc, positional)
    explained = [name for name in first if name in names]
    lines += ['', 'Most used:'] if explained else []
    for name in explained:
        lines += _flag_lines(flag_values[name], _first_sentence(flag_values[name].help))
    groups = _grouped(set(names) - set(explained))
    if not explained and len(names) <= _FEW:  # The groups of so few need no headings.
        groups = {'flags': [name for members in groups.values() for name in members]}
    for group, members in groups.items():
        lines += ['', f'{group.capitalize()}:']
        if len(names) <= _FEW:
            for name in members:
                flag = flag_values[name]
                lines += _flag_lines(flag, _first_sentence(flag.help))
        else:
            lines += _wrapped(' '.join(f'--{name}' for name in members))
    return '\n'.join([*lines, '', f'{command} --helpfull explains all of them.'])


def full_help(
    command: str,
    doc: str,
    flag_values: flags.FlagValues,
    names: Collection[str],
    positional: Positional | None = None,
) -> str:
    """Explains all flags with their whole help, in groups; the arguments are as in `short_help`."""
    lines = [*_head(command, doc, positional), *doc.strip().splitlines()[1:]]
    for group, members in _grouped(names).items():
        lines += ['', f'{group.capitalize()}:']
        for name in members:
            lines += _flag_lines(flag_values[name], flag_values[name].help)
    return '\n'.join(lines)


def _head(command: str, doc: str, positional: Positional | None) -> list[str]:
    argument = f' [{positional.shown}]' if positional is not None else ''
    title = doc.strip().splitlines()[0] if doc.strip() else ''
    usage = f'Usage: {command}{argument} [--flag=value ...]'
    same = []
    if positional is not None:
        same = [f'{positional.shown} is --{positional.flag}={positional.prefix}{positional.shown}.']
    return [*([title, ''] if title else []), usage, *same]


def _grouped(names: Collection[str]) -> dict[str, list[str]]:
    """Groups names of flags by their group of settings; the others are in 'more'."""
    groups = config.names_by_group()
    found = {
        group: [name for name in members if name in names] for group, members in groups.items()
    }
    known = {name for members in found.values() for name in members}
    return {
        group: members
        for group, members in {**found, 'more': sorted(set(names) - known)}.items()
        if members
    }


def _flag_lines(flag: flags.Flag, text: str | None) -> list[str]:
    prefix = '[no]' if flag.boolean else ''
    default = ''
    if flag.default not in (None, '', []) and not flag.boolean:
        default = f' (default {flag.default_as_str.strip(chr(39))})'
    return [f'  --{prefix}{flag.name}', *_wrapped(f'{text or ""}{default}', '      ')]


def _wrapped(text: str, indent: str = '  ') -> list[str]:
    return textwrap.wrap(
        ' '.join(text.split()),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _first_sentence(text: str | None) -> str:
    """The text up to the first full stop that ends a sentence."""
    text = ' '.join((text or '').split())
    match = re.match(r'(.*?[^.](?<!e\.g)\.)(?= [A-Z0-9]|$)', text)
    return match[1] if match else text
