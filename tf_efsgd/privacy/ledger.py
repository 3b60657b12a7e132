"""The write-ahead ledger of a run: what was reserved is spent.

Formal guarantees:
  - `reserve` returns only after its entry is on disk; the caller may run those steps only then.
  - Spent is the SUM of the counts of all entries: steps reserved twice, after a crash, count twice.
  - A torn last line counts as the largest reservation that was still possible.
  - `reserve` refuses what would pass the planned number of steps.
  - Every entry holds the hash of all before it, so a change anywhere but in the last entry is
    recognised; a checkpoint's `position` also guards the end, up to that checkpoint.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib


class LedgerError(ValueError):
    """The ledger cannot be trusted or cannot be spent from; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run may spend, fixed before its first step. Public.

    Attributes:
      dataset: name of the data set.
      dataset_size: declared number of records, N.
      image_shape: (H, W, C).
      num_classes: number of labels.
      sampling_probability: q of every step; None when nothing is private.
      noise_multiplier: sigma of every step; None when nothing is private.
      train_steps: the number of steps that may be reserved in all.
      target_delta: delta in (0, 1); None when nothing is private.
      target_epsilon: what sigma was calibrated for; None when sigma was given.
      steps_per_entry: the largest count of one entry.
    """

    dataset: str
    dataset_size: int
    image_shape: tuple[int, int, int]
    num_classes: int
    sampling_probability: float | None
    noise_multiplier: float | None
    train_steps: int
    target_delta: float | None
    target_epsilon: float | None
    steps_per_entry: int


class Ledger:
    """A JSON-lines file: the plan, then one entry per reserved chunk of steps.

    Args:
      path: of the file.
      plan: written as the first line when the file is new; None reads an existing ledger.

    Raises:
      LedgerError: if the file is missing (without `plan`), is altered, or does not fit `plan`.
    """

    def __init__(self, path: str | os.PathLike, plan: Plan | None = None):
        self._path = pathlib.Path(path)
        self.reserved_steps = 0
        self._hash = hashlib.sha256()
        self._bytes = 0
        if self._path.exists():
            self._read()
            if plan is not None and plan != self.plan:
                raise LedgerError(
                    f'{self._path} was written for another plan: '
                    f'{_differences(self.plan, plan)}; use the same settings or a new run folder.'
                )
        elif plan is None:
            raise LedgerError(f'{self._path} is missing: what this run has spent is unknown.')
        else:
            self.plan = plan
            self._append({'kind': 'plan', **dataclasses.asdict(plan)})
            self._sync_folder()

    @property
    def remaining_steps(self) -> int:
        """How many steps may still be reserved."""
        return max(0, self.plan.train_steps - self.reserved_steps)

    @property
    def position(self) -> dict[str, int | str]:
        """Length in bytes and hash so far: what a checkpoint stores."""
        return {'bytes': self._bytes, 'sha256': self._hash.hexdigest()}

    def reserve(self, steps: int) -> None:
        """Charges `steps` steps; run them only after this returns.

        Raises:
          LedgerError: if that would pass the plan, or `steps` is not in [1, steps_per_entry].
        """
        if not self._is_count(steps):
            raise LedgerError(
                f'One entry reserves 1 to {self.plan.steps_per_entry} steps. Received: {steps}.'
            )
        if steps > self.remaining_steps:
            raise LedgerError(
                f'{steps} more steps would pass the budget: {self.reserved_steps} of '
                f'{self.plan.train_steps} are spent.'
            )
        if self._path.stat().st_size != self._bytes:
            raise LedgerError(
                f'{self._path} was changed by another process: two must not train in one folder.'
            )
        self._append({'kind': 'steps', 'count': steps})
        self.reserved_steps += steps

    def check_position(self, position: dict[str, int | str]) -> None:
        """Checks that the ledger still begins with what a checkpoint saw of it.

        Raises:
          LedgerError: if the ledger is shorter than at the checkpoint, or altered before it.
        """
        seen = self._path.read_bytes()[: position['bytes']]
        if hashlib.sha256(seen).hexdigest() != position['sha256']:
            raise LedgerError(
                f'{self._path} does not continue the one this checkpoint was written with; '
                'what was spent cannot be known. Start a new run folder.'
            )

    def _is_count(self, steps) -> bool:
        return type(steps) is int and 1 <= steps <= self.plan.steps_per_entry

    def _append(self, entry: dict) -> None:
        """Writes an entry behind the last whole one, over a torn line if there is one."""
        entry = {
            **entry,
            'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
            'sha256_before': self._hash.hexdigest(),
        }
        line = json.dumps(entry).encode() + b'\n'
        with open(self._path, 'r+b' if self._path.exists() else 'xb') as file:
            file.seek(self._bytes)
            file.write(line)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._hash.update(line)
        self._bytes += len(line)

    def _sync_folder(self) -> None:
        """Makes sure that a power cut cannot lose the name of the new file."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self) -> None:
        *lines, torn = self._path.read_bytes().split(b'\n')
        for number, line in enumerate(lines):
            entry = self._parse(line, number)
            if number == 0:
                entry['image_shape'] = tuple(entry.get('image_shape', ()))
                names = [field.name for field in dataclasses.fields(Plan)]
                self.plan = Plan(**{name: entry.get(name) for name in names})
            else:
                self.reserved_steps += entry['count']
            self._hash.update(line + b'\n')
            self._bytes += len(line) + 1
        if not lines:
            raise LedgerError(f'{self._path} has no plan: start a new run folder.')
        if torn:
            self._charge_torn_line()

    def _charge_torn_line(self) -> None:
        """Puts the largest reservation it can have been in place of a line a power cut left."""
        count = min(self.plan.steps_per_entry, self.remaining_steps)
        if not count:
            raise LedgerError(
                f'{self._path} goes on after its budget is spent: it was altered. '
                'Start a new run folder.'
            )
        self._append({'kind': 'steps', 'count': count, 'torn': True})
        self.reserved_steps += count

    def _parse(self, line: bytes, number: int) -> dict:
        try:
            entry = json.loads(line)
            intact = entry['sha256_before'] == self._hash.hexdigest()
            if number == 0:
                intact = intact and entry['kind'] == 'plan'
            else:
                intact = intact and entry['kind'] == 'steps' and self._is_count(entry['count'])
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise LedgerError(
                f'{self._path}, line {number + 1}: altered or out of place; what was spent cannot '
                'be known. Start a new run folder.'
            )
        return entry


def _differences(old: Plan, new: Plan) -> str:
    old, new = dataclasses.asdict(old), dataclasses.asdict(new)
    return ', '.join(f'{k} was {old[k]}, is {new[k]}' for k in old if old[k] != new[k])
