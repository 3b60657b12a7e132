"""Decides when private steps are paid for. No TensorFlow.

Formal guarantee:
  - A step begins only after an entry of the ledger that counts it is on disk, on every worker.
  - The ledger refuses an entry that would pass the budget, and then the step does not begin.
  - What was charged stays charged, whatever becomes of the steps.
"""

from __future__ import annotations

from collections.abc import Callable

from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.privacy.ledger_copy import NothingRemembered
from tf_efsgd.privacy.run_state import RunState


class StepPayments:
    """Charges private steps to the ledger, some at a time, before the first of them begins.

    Args:
      ledger: of the run, or a worker's copy of it.
      state: what is remembered of the run; it gets the ledger's position after each entry.
      of_chief: returns, on every worker, what the chief's call of a function returned; it waits for
        the chief. With one worker it calls the function.
    """

    def __init__(
        self,
        ledger: Ledger,
        state: RunState | NothingRemembered,
        of_chief: Callable[[Callable[[], int]], int],
    ):
        self._ledger = ledger
        self._state = state
        self._of_chief = of_chief
        self._paid = 0

    @property
    def is_used_up(self) -> bool:
        """Whether the next step is not paid for yet."""
        return self._paid == 0

    def before_step(self) -> None:
        """Makes sure that the next step is paid for; it returns when the charge is on disk.

        Raises:
          LedgerError: if the charge would pass the budget; the step must not run.
          OSError: if the charge cannot be written; the step must not run.
          RuntimeError: if the workers do not count their steps alike.
        """
        if self._paid == 0:
            ledger = self._ledger
            # At least one, so that a run without budget is refused by the ledger.
            count = max(1, min(ledger.plan.steps_per_entry, ledger.remaining_steps))
            ledger.reserve(count)
            self._state.store_position(ledger.position)
            if self._of_chief(lambda: count) != count:
                raise RuntimeError('The workers do not count their steps alike.')
            self._paid = count
        self._paid -= 1
