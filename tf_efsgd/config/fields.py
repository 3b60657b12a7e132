"""How a setting is defined: its kind, help, range, choices and resume rule, all in one field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

# What a resumed run may do with a setting:
#   same        keep the value of its first start; the settings' hash in its ledger includes it;
#   may_move    use the same data, but at another place on this machine; see `without_place`;
#   may_change  change it: it never changes what is computed (places, devices, what is shown);
#   stays       change it; the new value stays in RUN/config.flags until the next change. It says
#               how public sums are computed, and so how they are rounded;
#   mechanism   keep the value, unless --change_mechanism is given;
#   one_start   change it: it is about one start of a run and is not in RUN/config.flags.
OnResume = Literal['same', 'may_move', 'may_change', 'stays', 'mechanism', 'one_start']


class ConfigError(ValueError):
    """A setting is wrong; the message is one line that says what to do."""


# Whole numbers are kept in 32 bits by much of what takes them.
LARGEST_INTEGER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have; all of them are finite.

    Attributes:
      at_least: the lowest allowed value, or None.
      above: a bound that every value is larger than, or None.
      at_most: the highest allowed value, or None.
      below: a bound that every value is smaller than, or None.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Returns whether the value is in the range; NaN and infinities are not."""
        if not isinstance(value, int) and not math.isfinite(value):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {
            'at least': self.at_least,
            'above': self.above,
            'at most': self.at_most,
            'below': self.below,
        }
        shown = [f'{name} {_shown(bound)}' for name, bound in bounds.items() if bound is not None]
        return ' and '.join(shown)


def _shown(bound: float) -> str:
    return f'{bound:g}' if isinstance(bound, float) else str(bound)


def string(
    default: str | None,
    text: str,
    *,
    choices: Sequence[str] | None = None,
    on_resume: OnResume = 'same',
    may_be_read_off: bool = False,
    earlier: str | None = None,
) -> Any:
    """A field with a text; see `_setting`."""
    return _setting(
        'string',
        default,
        text,
        choices=choices,
        on_resume=on_resume,
        may_be_read_off=may_be_read_off,
        earlier=earlier,
    )


def boolean(
    default: bool, text: str, *, on_resume: OnResume = 'same', earlier: bool | None = None
) -> Any:
    """A field that is on or off; see `_setting`."""
    return _setting('boolean', default, text, on_resume=on_resume, earlier=earlier)


def integer(
    default: int | None,
    text: str,
    *,
    on_resume: OnResume = 'same',
    may_be_read_off: bool = False,
    earlier: int | None = None,
    **bounds: int,
) -> Any:
    """A field with a whole number; `bounds` are those of `Range`; see `_setting`."""
    return _setting(
        'integer',
        default,
        text,
        allowed=Range(**bounds),
        on_resume=on_resume,
        may_be_read_off=may_be_read_off,
        earlier=earlier,
    )


def number(
    default: float | None,
    text: str,
    *,
    on_resume: OnResume = 'same',
    earlier: float | None = None,
    **bounds: float,
) -> Any:
    """A field with a real number; `bounds` are those of `Range`; see `_setting`."""
    return _setting(
        'float', default, text, allowed=Range(**bounds), on_resume=on_resume, earlier=earlier
    )


def _setting(
    kind: str,
    default: Any,
    text: str,
    *,
    choices: Sequence[str] | None = None,
    allowed: Range | None = None,
    on_resume: OnResume = 'same',
    may_be_read_off: bool = False,
    earlier: object = None,
) -> Any:
    """A dataclass field with all that is known of a setting in its metadata.

    Args:
      kind: 'string', 'integer', 'float' or 'boolean'.
      default: its value when nobody gives one.
      text: what the flag does, its unit, and when to change it; `help_of` adds range and choices.
      choices: the only allowed values of a text, or None.
      allowed: the range of a number.
      on_resume: what a resumed run may do with it.
      may_be_read_off: whether it is read off the records, once, when it is not given.
      earlier: what runs did before this setting existed, as a value of it. That value is left out
        of the hash of the settings, so that these runs can be resumed. A run folder without the
        setting is read with its default, so the default is this value, or 'auto' for a text, which
        `recipes.without_new` replaces. None for the settings of the first version.

    Raises:
      ValueError: if `earlier` is neither None nor the default, and the default is not 'auto'.
    """
    if earlier is not None and default not in (earlier, 'auto'):
        raise ValueError(
            f'The default of a new setting must be what runs did before, {earlier!r}, or "auto". '
            f'Received: {default!r}.'
        )
    metadata = {
        'kind': kind,
        'help': text,
        'choices': choices,
        'range': allowed,
        'on_resume': on_resume,
        'may_be_read_off': may_be_read_off,
        'earlier': earlier,
    }
    return dataclasses.field(default=default, metadata=metadata)


def help_of(field: dataclasses.Field) -> str:
    """The whole help of a setting: its choices, its text, its range."""
    choices, allowed = field.metadata['choices'], field.metadata['range']
    text = field.metadata['help']
    if choices:
        text = f'<{"|".join(choices)}>: {text}'
    return f'{text} Range: {allowed}.' if allowed is not None else text


def _fits_a_line(value: str) -> bool:
    """Whether a value survives in a line of a flagfile in UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:  # A file's name that is not UTF-8.
        return False
    return len(value.splitlines()) <= 1 and value == value.strip()


def check(field: dataclasses.Field, value: Any) -> None:
    """Checks the value of one setting by itself.

    Raises:
      ConfigError: if it is out of its range or none of its choices.
    """
    choices, allowed = field.metadata['choices'], field.metadata['range']
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        received = value if abs(value) < 10**18 else f'a number of {len(hex(value)) - 2} hex digits'
        bound = f'at most {LARGEST_INTEGER}' if value > 0 else f'at least {-LARGEST_INTEGER}'
        if allowed is not None and value < 0 and not allowed.holds(-LARGEST_INTEGER):
            bound = str(allowed)
        raise ConfigError(f'--{field.name} must be {bound}. Received: {received}.')
    if value is not None and allowed is not None and not allowed.holds(value):
        is_open = allowed.at_most is None and allowed.below is None
        finite = ' and finite' if is_open and field.metadata['kind'] == 'float' else ''
        raise ConfigError(f'--{field.name} must be {allowed}{finite}. Received: {value}.')
    if isinstance(value, str) and not _fits_a_line(value):
        raise ConfigError(
            f'--{field.name} must be one line of text, without blanks at its ends: flagfiles hold '
            f'it in a line. Received: {ascii(value)}.'
        )
    if choices and value not in choices:
        raise ConfigError(f'--{field.name} must be one of {", ".join(choices)}. Received: {value}.')
