"""The write-ahead ledger of a run: what was reserved is spent.

It is a JSON-lines file: the plan, then the warm start where one is planned, then one entry for each
reserved chunk of steps, with its event. A change of the mechanism in a resumed run is another plan.
A warm start of two releases is charged before the first one, as the single Gaussian that both are
together; a later entry says when the second was made.

Formal guarantees:
  - `reserve` returns only after its entry is on disk; the caller may run those steps only then.
  - What is spent is the SUM of the counts of all entries: steps that are reserved twice, after a
    crash, count twice.
  - A torn last line counts as the largest reservation that was still possible.
  - `reserve` refuses what would pass the planned number of steps; a warm start is reserved once.
  - A second release comes after the warm start was charged and before the first step, and only
    once: a torn line in its place counts as that release.
  - Only one process at a time has the ledger open for writing: a second one is refused.
  - Every entry holds the hash of all before it, so a change anywhere but in the last entry is
    recognised; a `position` that was stored elsewhere also guards the end, up to that position.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import hashlib
import json
import os
import pathlib
import secrets
from typing import Any

import dp_accounting

from tf_efsgd import files
from tf_efsgd.privacy.plan import (
    FIXED,
    Plan,
    event_from_json,
    event_to_json,
    from_json,
    to_json,
)

_FORMAT = 5

# The position at which every ledger starts.
START_POSITION = {'bytes': 0, 'sha256': hashlib.sha256().hexdigest()}


class LedgerError(ValueError):
    """The ledger cannot be trusted or cannot be spent from; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A number of steps that were reserved.

    Attributes:
      event: of one of these steps, as in `Plan`.
      count: how many steps.
      time: when they were reserved, UTC, ISO 8601.
      torn: the line was unreadable (a power cut); the largest possible count stands for it.
    """

    event: dp_accounting.DpEvent | None
    count: int
    time: str
    torn: bool = False


class Ledger:
    """The ledger of a run, open for writing until `close` or the end of the process.

    Args:
      path: of the file.
      plan: written as the first line of a new file; None opens an existing ledger.
      run_id: of a new ledger; None draws one.

    Attributes:
      plans: the plan fixed before the first step, then one for each change.
      run_id: drawn when the ledger was made; it names the run even when its folder is moved.
      warm_start: the entry that charged the planned warm start, None before: 'sha256' of what it
        released and 'version' of its features, both None where the line was torn.
      learned_features: the entry of the second release, like `warm_start`; its values are also None
        where the release was given up.
      entries: all reservations of steps so far, in order.
      unverified_resumes: how often the run was continued although nothing was remembered of it.

    Raises:
      LedgerError: if the file is missing (without `plan`), exists (with `plan`), is altered or is
        open in another process.
    """

    def __init__(
        self, path: str | os.PathLike, plan: Plan | None = None, run_id: str | None = None
    ):
        self.run_id = run_id or new_run_id()
        self._open(path, plan, for_writing=True)

    @classmethod
    def read(cls, path: str | os.PathLike) -> Ledger:
        """Reads a ledger without opening it for writing, whether or not a run has it open.

        Raises:
          LedgerError: if the file is missing or altered.
        """
        ledger = cls.__new__(cls)
        ledger._open(path, None, for_writing=False)
        return ledger

    def _open(self, path: str | os.PathLike, plan: Plan | None, for_writing: bool) -> None:
        self._begin(path)
        if plan is not None:
            self._create(plan)
            return
        try:
            if for_writing:
                self._file = open(self._path, 'r+b', buffering=0)
                self._lock()
            content = self._path.read_bytes()
        except FileNotFoundError as error:
            raise LedgerError(
                f'{self._path} is missing: what this run has spent is unknown.'
            ) from error
        self._parse_all(content)

    def _begin(self, path: str | os.PathLike) -> None:
        """An empty ledger."""
        self._path = pathlib.Path(path)
        self.entries: list[Entry] = []
        self.warm_start: dict | None = None
        self.learned_features: dict | None = None
        self.unverified_resumes = 0
        self._is_noted_unverified = False
        self.plans: list[Plan] = []
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._torn_bytes = 0
        self._torn_release: str | None = None
        self._torn_steps = 0
        self._file = None

    def _create(self, plan):
        """Writes the plan under another name, then renames: there is no ledger without a plan."""
        if self._path.exists():
            raise LedgerError(f'{self._path} exists already: choose a new run folder.')
        temporary = self._path.with_name(f'.{self._path.name}.tmp-{self.run_id}')
        self._file = open(temporary, 'x+b', buffering=0)
        try:
            self._lock()
            self._write(
                {
                    'kind': 'plan',
                    'unit_of_privacy': plan.unit_of_privacy,
                    'format': _FORMAT,
                    'run_id': self.run_id,
                    **to_json(plan),
                }
            )
            files.publish(temporary, self._path)
        except FileExistsError as error:
            self.close()
            raise LedgerError(f'{self._path} exists already: choose a new run folder.') from error
        except BaseException:
            self.close()
            raise
        finally:
            temporary.unlink(missing_ok=True)
        self.plans.append(plan)
        files.sync(self._path.parent)

    def _lock(self):
        """Takes a lock that the kernel releases when this process ends, however it ends."""
        try:
            files.lock(self._file, self._path)
        except files.NoLocksError as error:
            self.close()
            raise LedgerError(f'{error} The setting is --run_dir.') from error
        except OSError as error:
            self.close()
            raise LedgerError(
                f'{self._path} is in use: another process trains in this run folder. Wait for it '
                'or stop it, then resume.'
            ) from error

    def close(self) -> None:
        """Lets another process have the ledger; nothing can be reserved any more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def content(self) -> bytes:
        """The whole file, as it is on disk."""
        return self._path.read_bytes()

    @property
    def plan(self) -> Plan:
        """The plan by which the next steps are reserved."""
        return self.plans[-1]

    @property
    def first_plan(self) -> Plan:
        """The plan that was fixed before the first step."""
        return self.plans[0]

    @property
    def changes(self) -> int:
        """How often the mechanism was changed after the start."""
        return len(self.plans) - 1

    @property
    def reserved_steps(self) -> int:
        """The sum of the counts of all entries."""
        return sum(entry.count for entry in self.entries)

    @property
    def events(self) -> list[tuple[dp_accounting.DpEvent | None, int]]:
        """What was reserved, as (event of one step, steps); equal events in a row are added up."""
        summed: list[tuple[dp_accounting.DpEvent | None, int]] = []
        for entry in self.entries:
            if summed and summed[-1][0] == entry.event:
                summed[-1] = (entry.event, summed[-1][1] + entry.count)
            else:
                summed.append((entry.event, entry.count))
        return summed

    @property
    def remaining_steps(self) -> int:
        """How many steps may still be reserved."""
        return max(0, self.plan.train_steps - self.reserved_steps)

    @property
    def position(self) -> dict[str, int | str]:
        """Length in bytes and hash so far: what a checkpoint stores."""
        return {'bytes': self._bytes, 'sha256': self._hash.hexdigest()}

    @property
    def warm_start_reserved(self) -> bool:
        """Whether the planned warm start is charged."""
        return self.warm_start is not None

    @property
    def warm_start_is_due(self) -> bool:
        """Whether a warm start is planned and not reserved yet; steps must wait for it."""
        return self.first_plan.warm_start_event is not None and not self.warm_start_reserved

    def reserve_warm_start(self, sha256: str, version: int) -> None:
        """Charges the planned warm start; write or use the release only after this returns.

        Args:
          sha256: of what will be released.
          version: of the features that are released.

        Raises:
          LedgerError: if none is planned, or it is charged already.
        """
        if not self.warm_start_is_due:
            raise LedgerError('No warm start is planned, or it is charged already.')
        self._append(self._release_entry('warm_start', sha256=sha256, version=version))
        self.warm_start = {'sha256': sha256, 'version': version}

    @property
    def learned_features_are_due(self) -> bool:
        """Whether a second release is planned and neither made nor given up; steps must wait."""
        return (
            self.first_plan.warm_start_event is not None
            and self.first_plan.learned_features_share > 0
            and self.learned_features is None
        )

    def note_learned_features(self, sha256: str | None, version: int | None) -> None:
        """Notes the second release, which is charged already; use it only after this returns.

        Args:
          sha256: of what will be released; None gives the release up.
          version: of the features that are released; None gives the release up.

        Raises:
          LedgerError: if none is planned, it is noted already, or the warm start is not charged
            yet.
        """
        if self.warm_start_is_due or not self.learned_features_are_due:
            raise LedgerError('No second release is planned, or this is not the time for it.')
        self._append(self._release_entry('learned_features', sha256=sha256, version=version))
        self.learned_features = {'sha256': sha256, 'version': version}

    def reserve(self, steps: int) -> None:
        """Charges `steps` steps; run them only after this returns.

        Raises:
          LedgerError: if that would pass the plan, `steps` is not in [1, steps_per_entry], or a
            planned release is still due.
        """
        if self.warm_start_is_due or self.learned_features_are_due:
            raise LedgerError('The planned warm start must come before the first step.')
        if not self._is_count(steps):
            raise LedgerError(
                f'One entry reserves 1 to {self.plan.steps_per_entry} steps. Received: {steps}.'
            )
        if steps > self.remaining_steps:
            raise LedgerError(
                f'{steps} more steps would pass the budget: {self.reserved_steps} of '
                f'{self.plan.train_steps} are spent.'
            )
        self._reserve(steps)

    def change_plan(self, plan: Plan) -> None:
        """Writes down that the next steps follow another plan, for the same records.

        Raises:
          LedgerError: if the plan is for other records.
        """
        for name in FIXED:
            old, new = getattr(self.plan, name), getattr(plan, name)
            if old != new:
                raise LedgerError(f'{self._path}: {name} was {old}, is {new}; it cannot change.')
        self._append({'kind': 'change', **to_json(plan)})
        self.plans.append(plan)

    def note_unverified_resume(self) -> None:
        """Notes that the run continues although its records and ledger could not be verified.

        It is noted once each time the ledger is opened, whatever could not be verified.
        """
        if self._is_noted_unverified:
            return
        self._append({'kind': 'unverified'})
        self.unverified_resumes += 1
        self._is_noted_unverified = True

    def check_position(self, position: dict[str, Any]) -> None:
        """Checks that the ledger still begins with what a checkpoint saw of it.

        Args:
          position: `Ledger.position` at the time of the checkpoint.

        Raises:
          LedgerError: if the ledger is shorter than at the checkpoint, or altered before it.
        """
        seen = self._path.read_bytes()[: position['bytes']]
        if hashlib.sha256(seen).hexdigest() != position['sha256']:
            raise LedgerError(
                f'{self._path} does not continue the ledger that this checkpoint was written with: '
                'what was spent cannot be known. Start a new run folder.'
            )

    def _is_count(self, steps) -> bool:
        return type(steps) is int and 1 <= steps <= self.plan.steps_per_entry

    def _reserve(self, steps: int) -> None:
        self.entries.append(_entry(self._append(self._steps_entry(steps))))

    def _steps_entry(self, steps: int, **more) -> dict:
        entry = {'kind': 'steps', 'count': steps, 'event': event_to_json(self.plan.event), **more}
        return {**entry, 'dataset': self.plan.dataset}

    def _release_entry(self, kind: str, **more) -> dict:
        """The first release carries the event of both."""
        event = {}
        if kind == 'warm_start':
            event = {'event': event_to_json(self.first_plan.warm_start_event)}
        return {'kind': kind, **event, **more, 'dataset': self.plan.dataset}

    def _append(self, entry: dict) -> dict:
        """Writes an entry behind the last whole one, over a torn line if there is one."""
        if self._file is None:
            raise LedgerError(f'{self._path} is not open for writing.')
        # After a reservation that failed, e.g. on a full disk, the next one is refused too.
        on_disk = os.stat(self._path)
        if not os.path.samestat(on_disk, os.fstat(self._file.fileno())) or (
            on_disk.st_size != self._bytes + self._torn_bytes
        ):
            raise LedgerError(f'{self._path} was changed by another process while it was in use.')
        if self._torn_bytes and self._torn_steps:
            self._write(self._steps_entry(self._torn_steps, torn=True))
        elif self._torn_bytes and self._torn_release:
            self._write(
                self._release_entry(self._torn_release, sha256=None, version=None, torn=True)
            )
        return self._write(entry)

    def _write(self, entry: dict) -> dict:
        entry = {
            **entry,
            'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
            'sha256_before': self._hash.hexdigest(),
        }
        line = json.dumps(entry).encode() + b'\n'
        self._file.seek(self._bytes)
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._file.truncate()
        os.fsync(self._file.fileno())
        self._torn_bytes = 0
        self._hash.update(line)
        self._bytes += len(line)
        return entry

    def _parse_all(self, content: bytes) -> None:
        *lines, torn = content.split(b'\n')
        for number, line in enumerate(lines):
            self._parse(line, number)
            self._hash.update(line + b'\n')
            self._bytes += len(line) + 1
        if not lines:
            raise LedgerError(f'{self._path} has no plan: start a new run folder.')
        if torn:
            self._charge_torn_line(len(torn))

    def _charge_torn_line(self, torn_bytes: int) -> None:
        """Charges the largest entry that a line can have been before a power cut tore it.

        On disk that entry takes the line's place only when the next one is written: reading a
        ledger, or refusing it, leaves it as it is.
        """
        count = min(self.plan.steps_per_entry, self.remaining_steps)
        self._torn_bytes = torn_bytes
        if self.warm_start_is_due:
            self.warm_start = {'sha256': None, 'version': None}
            self._torn_release = 'warm_start'
        elif self.learned_features_are_due:
            self.learned_features = {'sha256': None, 'version': None}
            self._torn_release = 'learned_features'
        elif count:  # Else no steps were left to reserve.
            self._torn_steps = count
            self.entries.append(Entry(self.plan.event, count, time='unknown', torn=True))

    def _parse(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line)
            intact = entry['sha256_before'] == self._hash.hexdigest()
            kind = entry['kind']
            if number == 0 and kind == 'plan' and entry.get('format') != _FORMAT:
                raise LedgerError(
                    f'{self._path} was written by another version of this program: start a new run '
                    'folder.'
                )
            if kind == 'steps' and number:
                steps = _entry(entry)
                intact = (
                    intact
                    and self._is_count(steps.count)
                    and steps.event == self.plan.event
                    and not self.warm_start_is_due
                    and not self.learned_features_are_due
                )
                self.entries.append(steps)
            elif kind == 'warm_start' and number:
                planned = self.first_plan.warm_start_event
                event = event_from_json(entry['event'])
                intact = intact and self.warm_start_is_due and event == planned
                self.warm_start = {name: entry[name] for name in ('sha256', 'version')}
            elif kind == 'learned_features' and number:
                intact = intact and not self.warm_start_is_due and self.learned_features_are_due
                self.learned_features = {name: entry[name] for name in ('sha256', 'version')}
            elif kind == 'unverified' and number:
                self.unverified_resumes += 1
            elif kind == ('change' if number else 'plan'):
                self.plans.append(from_json(entry))
                if not number:
                    self.run_id = entry['run_id']
            else:
                intact = False
        except LedgerError:
            raise
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact or self.plan.train_steps < self.reserved_steps:
            raise LedgerError(
                f'{self._path}, line {number + 1} is altered or out of place: what was spent '
                'cannot be known. Start a new run folder.'
            )


def new_run_id() -> str:
    """A new name for a run, which keeps it wherever its folder moves; public."""
    return secrets.token_hex(16)


def _entry(entry: dict) -> Entry:
    event = event_from_json(entry['event'])
    return Entry(event, entry['count'], entry['time'], entry.get('torn', False))
