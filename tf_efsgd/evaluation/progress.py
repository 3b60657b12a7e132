"""The progress bars of the evaluation."""

from __future__ import annotations

import sys

import tqdm


def progress_bar(name: str | None, total: int) -> tqdm.tqdm:
    """A bar that moves by `update`; rarely where nobody watches, as in a log file.

    It shows no counts: how many records there are may be private.

    Args:
      name: what it is called; None draws none.
      total: how far it goes.
    """
    interactive = sys.stderr.isatty()
    return tqdm.tqdm(
        total=total,
        desc=name,
        bar_format='{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}',
        disable=name is None,
        mininterval=0.5 if interactive else 20.0,
        dynamic_ncols=interactive,
    )
