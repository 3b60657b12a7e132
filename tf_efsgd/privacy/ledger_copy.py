"""What the other workers of a run know of its ledger, which the chief alone has and writes.

Formal guarantees:
  - Nothing here touches a file: neither the ledger nor what is remembered outside the run folder.
  - A copy counts as the ledger counts and refuses what it refuses: all workers see one budget.
"""

from __future__ import annotations

from tf_efsgd.privacy.ledger import Ledger


class LedgerCopy(Ledger):
    """A ledger in memory; the chief's is the one that counts.

    Args:
      content: of the chief's file, `Ledger.content`.

    Raises:
      LedgerError: if it is altered.
    """

    def __init__(self, content: bytes):
        self._begin("the chief's ledger")
        self._parse_all(content)

    def _append(self, entry: dict) -> dict:
        return {**entry, 'time': 'noted by the chief'}

    def close(self) -> None:
        """Nothing is open."""


class NothingRemembered:
    """In place of `run_state.RunState`: the chief remembers the run."""

    is_known = False

    def store_position(self, position: dict) -> None:
        """Stores nothing."""

    def close(self) -> None:
        """Nothing is open."""
