"""The progress bar of all that takes long."""

from __future__ import annotations

import sys

import tqdm

# Seconds between two updates: on a terminal, and where nobody watches, as in a log file.
_WATCHED, _UNWATCHED = 0.5, 60.0


class Bar(tqdm.tqdm):
    """A tqdm bar that writes to a log file once a minute at most, and how it ended.

    Args:
      iterable: as of `tqdm.tqdm`.
      **options: as of `tqdm.tqdm`.
    """

    def __init__(self, iterable=None, **options):
        is_watched = sys.stderr.isatty()
        super().__init__(
            iterable,
            mininterval=_WATCHED if is_watched else _UNWATCHED,
            # Else tqdm's monitor refreshes after 10 seconds, whatever mininterval says.
            miniters=None if is_watched else 1,
            dynamic_ncols=is_watched,
            **options,
        )


def progress_bar(name: str | None, total: int, *, delay: float = 0.0) -> Bar:
    """A bar that moves by `update`.

    It shows no counts: how many records there are may be private.

    Args:
      name: what it is called; None draws none.
      total: how far it goes.
      delay: seconds before it is drawn: what ends earlier draws none.
    """
    return Bar(
        total=total,
        desc=name,
        bar_format='{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}',
        disable=name is None,
        delay=delay,
    )
