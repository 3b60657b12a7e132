"""The progress bars of the evaluation."""

from __future__ import annotations

import sys

import tqdm


def progress_bar(name: str | None, total: int, unit: str) -> tqdm.tqdm:
    """A bar that moves by `update`; rarely where nobody watches, as in a log file.

    Args:
      name: what it is called; None draws none.
      total: how far it goes.
      unit: of what.
    """
    interactive = sys.stderr.isatty()
    return tqdm.tqdm(
        total=total,
        desc=name,
        unit=unit,
        disable=name is None,
        mininterval=0.5 if interactive else 20.0,
        dynamic_ncols=interactive,
    )
