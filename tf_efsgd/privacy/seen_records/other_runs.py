"""What other runs on the same records may spend: how that is printed, stated and limited."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tf_efsgd import rounding
from tf_efsgd.privacy.seen_records.promises import PERSON, Promise, rounded_up, sum_of

NOT_COVERED_COMPARED = (
    'what each start of this run found by comparing its records with those of the other runs that '
    'are remembered on its machine: that is shown only on the terminal and in nonprivate/, and '
    'nothing in this statement depends on it'
)
NOT_COVERED_NOT_COMPARED = (
    'other runs on the same records, of which nothing is known: what is remembered on the machine '
    'of this run could not be used at its last start, and no comparison was made'
)
# How many other runs are named at the start, newest last; the sums and the statement have all.
_SHOWN = 5


class SeenRecordsError(ValueError):
    """A budget over all runs would be passed, or cannot be kept; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Remembered:
    """The public facts of another run, whatever its records are.

    Attributes:
      run_id: of its ledger.
      dataset: public name of its data set.
      date: when it was first counted, UTC, ISO 8601.
      promise: what it may spend.
      public_rule: as in `Persons`; also None if it is not known or the run counts images.
    """

    run_id: str
    dataset: str
    date: str
    promise: Promise
    public_rule: str | None


@dataclasses.dataclass(frozen=True)
class Use:
    """Another run that used some of these records.

    Attributes:
      run_id: of its ledger.
      dataset: public name of its data set.
      date: when it was first counted, UTC, ISO 8601.
      promise: what it may spend.
      count: how many of these records it used, at least 1.
      is_exact: whether that number is counted and not estimated.
      other_persons: whether both runs count persons that are not known to be the same.
    """

    run_id: str
    dataset: str
    date: str
    promise: Promise
    count: int
    is_exact: bool
    other_persons: bool = False

    def promise_in(self, unit: str) -> Promise:
        """What that run may spend, in the unit of privacy of a run on the same records."""
        return Promise(math.inf, 0.0, unit) if self.other_persons else self.promise.in_unit(unit)


@dataclasses.dataclass(frozen=True)
class OtherRuns:
    """What other runs on this machine may spend on the records of a run that starts.

    Attributes:
      own: what this run may spend.
      uses: the other runs that used some of its records, oldest first.
      not_known: a line for everything in the state folder that could not be read.
      remembered: all other runs that are remembered, whatever their records, oldest first.
      dataset: public name of this run's data set.
      public_rule: of this run, as in `Remembered`.
      is_compared: whether the records were compared with what is remembered.
      notes: further warnings, a line each.
    """

    own: Promise
    uses: tuple[Use, ...] = ()
    not_known: tuple[str, ...] = ()
    remembered: tuple[Remembered, ...] = ()
    dataset: str = ''
    public_rule: str | None = None
    is_compared: bool = False
    notes: tuple[str, ...] = ()

    @property
    def together(self) -> Promise:
        """The sums of what this run and the others may spend, in this run's unit of privacy."""
        return sum_of([self.own, *self._in_own_unit()], self.own.unit)

    def _in_own_unit(self) -> list[Promise]:
        return [use.promise_in(self.own.unit) for use in self.uses]

    def lines(self) -> list[str]:
        """The lines printed at the start, only on the terminal: numbers of records are private."""
        lines = [f'WARNING: {text}' for text in (*self.not_known, *self.notes)]
        earlier = len(self.uses) - _SHOWN
        if earlier > 0:
            lines.append(
                f'{earlier} earlier run{"s" if earlier > 1 else ""} used these records, and:'
            )
        lines += [self._line(use) for use in self.uses[-_SHOWN:]]
        if self.uses:
            lines.append(f'Together with this run: {self._sum_text()}.')
        return lines

    def _line(self, use: Use) -> str:
        count = f'{"" if use.is_exact else "about "}{use.count:,} of these records'
        line = (
            f'{count} {"was" if use.count == 1 else "were"} used by run {use.run_id} '
            f'({use.dataset}, {use.date[:10]}) with {use.promise}'
        )
        if not use.promise.is_proven:
            return (
                f'{line}. If nothing of that run was or will be shown to anybody: '
                f'tf-efsgd state --remove={use.run_id} (and the same --state_dir).'
            )
        if use.other_persons:
            line += (
                ' for one person, by another rule or table of persons (--person) than that of this '
                'run, or by one that is not known: one person here may be several there, and no ε '
                'is proven for both runs together'
            )
        elif use.promise.unit != self.own.unit:
            here = use.promise.in_unit(self.own.unit)
            line += f' for one {use.promise.unit}; for one {here.unit}, as in this run: {here}'
        return f'{line}.'

    def _sum_text(self) -> str:
        total = self.together
        if not total.is_proven:
            return 'no ε holds'
        epsilon, delta = rounded_up(total.epsilon), rounded_up(total.delta)
        return f'ε ≤ {epsilon}, δ ≤ {delta} (sums over all {len(self.uses) + 1} runs)'

    @property
    def not_covered(self) -> str:
        """The line of the privacy statement about this comparison."""
        return NOT_COVERED_COMPARED if self.is_compared else NOT_COVERED_NOT_COMPARED

    def to_statement(self) -> dict[str, Any]:
        """What goes into the privacy statement, JSON values by name: nothing that was compared.

        Whether two runs share records is read off the records, and no noise hides it: somebody who
        may start runs could start one with a single guessed record and see whether another run is
        named. A threshold would not help against somebody who knows nearly all records. So the
        statement names the runs whose data set has the same public name. Beside their sum it gives
        that of all remembered runs, which holds whatever records they used.
        """
        named = [run for run in self.remembered if run.dataset == self.dataset]
        return {
            'other_runs': [{'run': run.run_id, **run.promise.to_json()} for run in named],
            'together': {
                **self._public_sum(named).to_json(),
                'runs': len(named) + 1,
                'rule': 'the sums of ε and δ of this run and of all in other_runs, each with all '
                'that it may spend. They hold whether or not these runs used the same records. If '
                'runs were chosen after others were seen, they hold if the totals were fixed first',
                'found_by': 'the public name of the data set, among the runs that were remembered '
                'on the machine of this run when it was last started; not by comparing records: '
                'runs on the same records under another name are only in together_with_all',
            },
            'together_with_all': {
                **self._public_sum(self.remembered, is_all=True).to_json(),
                'runs': len(self.remembered) + 1,
                'rule': 'the sums over all runs that were remembered there, on whatever records',
            },
            'other_runs_not_known': len(self.not_known),
        }

    def _public_sum(self, runs: Sequence[Remembered], *, is_all: bool = False) -> Promise:
        """What this run and the others promise together, as far as public facts say it."""
        unit = self.own.unit
        nothing = Promise(math.inf, 0.0, unit)
        if not self.is_compared or (is_all and self.not_known):
            return nothing
        promises = [
            # Only the texts of the rules are compared: whether tables are equal depends on persons.
            nothing
            if unit == run.promise.unit == PERSON
            and (run.public_rule is None or run.public_rule != self.public_rule)
            else run.promise.in_unit(unit)
            for run in runs
        ]
        return sum_of([self.own, *promises], unit)

    def to_nonprivate(self) -> dict[str, Any]:
        """What comparing the records found, JSON values by name; only for RUN/nonprivate/."""
        return {
            'is_compared': self.is_compared,
            'other_runs': [
                {
                    'run': use.run_id,
                    'dataset': use.dataset,
                    'date': use.date,
                    **use.promise.to_json(),
                    'shared_records': use.count,
                    'is_exact': use.is_exact,
                    'same_persons': not use.other_persons,
                }
                for use in self.uses
            ],
            'together': {**self.together.to_json(), 'runs': len(self.uses) + 1},
            'not_known': list(self.not_known),
        }

    def check_budget(self, budget: float) -> None:
        """Checks that all runs together keep a budget.

        Args:
          budget: the largest sum of ε that is allowed, in this run's unit of privacy.

        Raises:
          SeenRecordsError: if they do not, or what one of them spends is not known.
        """
        if self.not_known:
            raise SeenRecordsError(
                f'--dataset_budget cannot be kept: {" ".join(self.not_known)} '
                f'Received: --dataset_budget={budget:g}.'
            )
        other_persons = ', '.join(use.run_id for use in self.uses if use.other_persons)
        if other_persons:
            raise SeenRecordsError(
                '--dataset_budget cannot be kept: on these records a run gave images to persons by '
                'another rule or table (--person) than this run, or by one that is not known, so '
                f'what both promise to one person is not known ({other_persons}). Use the rule and '
                'table of that run or other records, or leave out --dataset_budget. '
                f'Received: --dataset_budget={budget!r}.'
            )
        total, others = self.together, sum_of(self._in_own_unit(), self.own.unit)
        # The sum is rounded up to the next float and the budget is a float: so the rounded sum is
        # above it only if the exact one is.
        if total.is_proven and total.epsilon <= budget:
            return
        cause = f'this run alone may spend {self.own}'
        if self.uses and self.own.is_proven:
            runs = ', '.join(use.run_id for use in self.uses)
            cause = f'with what other runs on these records may spend ({runs}), {self._sum_text()}'
        left = budget - others.epsilon if others.is_proven else 0.0
        hint = f'ε = {rounding.down(left)} is left' if left > 0 else 'Nothing is left'
        raise SeenRecordsError(
            f'The budget of these records would be passed: {cause}. {hint}. Ask for less, use '
            'other records, or raise the budget; python -m tf_efsgd.state lists what is '
            f'remembered. Received: --dataset_budget={budget!r}.'
        )
