"""The progress bars of the evaluation."""

from __future__ import annotations

from tf_efsgd.progress import Bar


def progress_bar(name: str | None, total: int) -> Bar:
    """A bar that moves by `update`.

    It shows no counts: how many records there are may be private.

    Args:
      name: what it is called; None draws none.
      total: how far it goes.
    """
    return Bar(
        total=total,
        desc=name,
        bar_format='{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}',
        disable=name is None,
    )
