"""Which runs used the same records, and what they may spend together.

The state folder keeps one key for all runs, and a sketch of the records of each run. A record's
hash is HMAC-SHA256 of its digest under that key; of a run's hashes the 10,000 smallest are kept,
with the threshold below which none is missing: a sample of the records that nobody can choose
without the key, and that has the same records in every run (a bottom-k or theta sketch: Cohen and
Kaplan 2007, Dasgupta et al. 2016). The records of a run that starts are all at hand, so how many of
them another run used is counted in its sample and divided by the share that was kept; the sizes of
the two data sets play no part.

What that finds, r being the share kept of the OTHER run's records, min(1, 10,000 / records):
  - up to 10,000 records there, r is 1: every common record is found and the number is exact.
    (One of 60,000 records here is taken for another by mistake with probability 10⁻⁸.)
  - above, m common records are missed with probability (1 - r)^m, and their number has the standard
    deviation √(m (1 - r) / r). At 60,000 records, r = 1/6: 1 % of them, 600, is found always
    (missed: 10⁻⁴⁷) and shown as 600 ± 55; 40 are missed once in 1,500 times, 10 once in 6, a single
    one 5 times in 6. At 200,000, r = 1/20: 1 % is missed once in 10⁴⁴ times, 100 once in 170.
  - Nothing is counted that is not there, whatever the sizes.
A plain MinHash of both sets gives their Jaccard index instead, which says little when one set is
much smaller; a Bloom filter of the same size takes some 600 of 60,000 new records for seen ones. A
picture is recognised by its pixels: at another --image_size, under another label, among other
records; not when it was stored with other pixels. A person is not recognised by other pictures.

Formal guarantees:
  - Together, runs on the same records have the sums of their ε and of their δ: a later run was
    chosen after the earlier was seen, and basic composition holds for choices made on the way when
    a total is fixed first (`budget`). Any overlap counts as if all records were in it.
  - A run counts with all that it MAY spend, from before its first charge on: it is counted when it
    is looked up, under one lock, so two runs that start together see each other.
  - A sum is never below the exact one, what is shown of it not below its first 15 digits.
  - Together says nothing proven of persons unless both runs tell persons apart by the same rule and
    table (compared under the key) and give every record they are seen to share to the same person:
    what is one person to one run may be several to the other.
  - What the public statement says of other runs is a function of public facts alone: which runs are
    remembered, the names of their data sets, what they may spend, the texts of their rules of
    persons. It is the same whatever the comparison of records found, so who can start runs with a
    guessed record beside another run learns nothing from it. What was found is on the terminal and
    in RUN/nonprivate/ (`OtherRuns.to_nonprivate`), not covered by ε; so is whether a run with a
    --dataset_budget was refused. Who sees those can test a guess of a record.
  - What cannot be read counts as not known, also where it is of the run itself: a damaged sketch is
    kept aside, and says so at every start until it is removed.
  - Sketches and key are outside run folders, mode 0600. Who has both can test a guess of a record.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import fcntl
import fractions
import hashlib
import hmac
import json
import math
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tf_efsgd import files, rounding

# Units of privacy: what one data set has and its neighbour has not.
IMAGE, PERSON = 'image', 'person'

KEY, LOCK, SUFFIX = 'seen.key', 'seen.lock', '.seen.json'
# Ends the name of a sketch that was damaged and is kept aside.
DAMAGED = '.damaged'

NOT_COVERED_COMPARED = (
    'what comparing the records with those of the other runs that are remembered on the machine of '
    'this run has found, at each of its starts: it is shown on the terminal and in nonprivate/ '
    'alone, and nothing in this statement depends on it'
)
NOT_COVERED_NOT_COMPARED = (
    'other runs on the same records, of which nothing is known: what is remembered on the machine '
    'of this run could not be used at its last start, and no comparison was made'
)

# Format 1 does not say whose the records are.
_FORMAT, _OLD_FORMATS = 2, (1,)
_KEY_BYTES, _DIGEST_BYTES = 32, 16
# 10,000 hashes of 56 bits take 93 KB in a file.
_MOST_KEPT, _HASH_BYTES = 10_000, 7
_ALL = 2 ** (8 * _HASH_BYTES)
# Of a hash that says whose a record is, so many bits are the person's, the others the record's.
_PERSON_BITS = 16
# Other runs that are named at the start, the newest ones; all are in the sums and the statement.
_SHOWN = 5


class SeenRecordsError(ValueError):
    """A budget over all runs would be passed, or cannot be kept; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Promise:
    """What a run may spend in all.

    Attributes:
      epsilon: at least 0; infinite where none is proven, as without noise.
      delta: in [0, 1).
      unit: of privacy, IMAGE or PERSON.
    """

    epsilon: float
    delta: float
    unit: str

    def in_unit(self, unit: str) -> Promise:
        """What is promised to another unit of privacy, by what is known in general.

        One image less is a person less and the same person, without that image, more: two steps
        between neighbours, (2ε, (1 + e^ε)δ). A person had any number of images in a run that
        counts by image: nothing is proven.
        """
        if unit == self.unit:
            return self
        if unit == PERSON or self.epsilon > 700:  # Where e^ε ends.
            return Promise(math.inf, 0.0, unit)
        delta = _sum_up([self.delta, (1 + 2**-50) * math.exp(self.epsilon) * self.delta])
        return Promise(2 * self.epsilon, delta, unit)

    def __str__(self) -> str:
        if not self.is_proven:
            return 'no proven ε'
        return f'ε = {_rounded_up(self.epsilon)}, δ = {_rounded_up(self.delta)}'

    @property
    def is_proven(self) -> bool:
        """Whether it says anything."""
        return math.isfinite(self.epsilon) and self.delta < 1

    def to_json(self) -> dict[str, Any]:
        """Numbers by name; JSON has no infinity, so a bound that does not exist is null."""
        epsilon, delta = (self.epsilon, self.delta) if self.is_proven else (None, None)
        return {'epsilon': epsilon, 'delta': delta, 'record': self.unit}


@dataclasses.dataclass(frozen=True, eq=False)
class Persons:
    """How a run gives its records to persons.

    Attributes:
      rule: all that its rule consists of, a table too; private.
      names: digests of the person's name of each record, uint64 [N, 2]; private.
      public_rule: the rule as text where that is all of it; None where a table is part of it.
    """

    rule: bytes
    names: np.ndarray
    public_rule: str | None


@dataclasses.dataclass(frozen=True)
class Remembered:
    """What is public of another run, whatever its records.

    Attributes:
      run_id: of its ledger.
      dataset: public name of its data set.
      date: when it was first counted, UTC, ISO 8601.
      promise: what it may spend.
      public_rule: as in `Persons`; None also where it is not known or the run counts images.
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
      is_exact: whether that is counted and not estimated.
      other_persons: whether both runs count persons, and it is not known that these are the same.
    """

    run_id: str
    dataset: str
    date: str
    promise: Promise
    count: int
    is_exact: bool
    other_persons: bool = False

    def promise_in(self, unit: str) -> Promise:
        """What it may spend, in the unit of privacy of a run on the same records."""
        return Promise(math.inf, 0.0, unit) if self.other_persons else self.promise.in_unit(unit)


@dataclasses.dataclass(frozen=True)
class OtherRuns:
    """What other runs on this machine spend on the records of one that starts.

    Attributes:
      own: what this run may spend.
      uses: the other runs, oldest first.
      not_known: a line for everything in the state folder that could not be read.
      remembered: all other runs that are remembered, whatever their records, oldest first.
      dataset: public name of this run's data set.
      public_rule: of this run, as in `Remembered`.
      is_compared: whether the records were compared with what is remembered.
      notes: lines of what is to be warned of besides.
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
        """What this run and the others may spend, in this run's unit of privacy: the sums."""
        return _sum_of([self.own, *self._in_own_unit()], self.own.unit)

    def _in_own_unit(self) -> list[Promise]:
        return [use.promise_in(self.own.unit) for use in self.uses]

    def lines(self) -> list[str]:
        """What is said at the start, on the terminal alone: the numbers of records are private."""
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
                f'python -m tf_efsgd.state --remove={use.run_id} (and the same --state_dir).'
            )
        if use.other_persons:
            line += (
                ' for one person, by another rule or table of persons (--person) than this run '
                'has, or it is not known by which: who is one person here may be several there, '
                'and no ε is proven for both runs together'
            )
        elif use.promise.unit != self.own.unit:
            here = use.promise.in_unit(self.own.unit)
            line += f' for one {use.promise.unit}; for one {here.unit}, as in this run: {here}'
        return f'{line}.'

    def _sum_text(self) -> str:
        total = self.together
        if not total.is_proven:
            return 'no ε holds'
        epsilon, delta = _rounded_up(total.epsilon), _rounded_up(total.delta)
        return f'ε ≤ {epsilon}, δ ≤ {delta} (sums over all {len(self.uses) + 1} runs)'

    @property
    def not_covered(self) -> str:
        """The line of the privacy statement about this comparison."""
        return NOT_COVERED_COMPARED if self.is_compared else NOT_COVERED_NOT_COMPARED

    def to_statement(self) -> dict[str, Any]:
        """What goes into the privacy statement, JSON values by name: nothing of what was compared.

        Whether two runs share records is read off the records, and no noise hides it: who may start
        runs could start one with a single guessed record and see whether another run is named. A
        threshold would not help against somebody who knows nearly all records. So the runs that are
        named are those whose data set has the same public name, and beside their sum stands that of
        all runs that are remembered, which holds whatever records they used.
        """
        named = [run for run in self.remembered if run.dataset == self.dataset]
        return {
            'other_runs': [{'run': run.run_id, **run.promise.to_json()} for run in named],
            'together': {
                **self._public_sum(named).to_json(),
                'runs': len(named) + 1,
                'rule': 'the sums of ε and δ of this run and of all in other_runs, each with all '
                'that it may spend; they hold if these used the same records, and more so if not; '
                'for runs that were chosen after others were seen they hold when the totals are '
                'fixed first',
                'found_by': 'the public name of the data set, among the runs that were remembered '
                'on the machine of this run when it was last started; not by comparing records: '
                'runs on the same records under another name are in together_with_all alone',
            },
            'together_with_all': {
                **self._public_sum(self.remembered, is_all=True).to_json(),
                'runs': len(self.remembered) + 1,
                'rule': 'the sums over all runs that were remembered there, whatever their records',
            },
            'other_runs_not_known': len(self.not_known),
        }

    def _public_sum(self, runs: Sequence[Remembered], *, is_all: bool = False) -> Promise:
        """What this run and these promise together, as far as public facts say it."""
        unit = self.own.unit
        nothing = Promise(math.inf, 0.0, unit)
        if not self.is_compared or (is_all and self.not_known):
            return nothing
        promises = [
            # By the texts of the rules alone: whether tables are equal tells of the persons.
            nothing
            if unit == run.promise.unit == PERSON
            and (run.public_rule is None or run.public_rule != self.public_rule)
            else run.promise.in_unit(unit)
            for run in runs
        ]
        return _sum_of([self.own, *promises], unit)

    def to_nonprivate(self) -> dict[str, Any]:
        """What comparing the records has found, JSON values by name; for RUN/nonprivate/ alone."""
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
                'another rule or table (--person) than this run, or it is not known by which, so '
                f'what both promise to one person is not known ({other_persons}). Use the rule and '
                'table of that run or other records, or leave out --dataset_budget. '
                f'Received: --dataset_budget={budget!r}.'
            )
        total, others = self.together, _sum_of(self._in_own_unit(), self.own.unit)
        # Rounded up to the next float, so not above the budget, a float, unless the exact sum is.
        if total.is_proven and total.epsilon <= budget:
            return
        cause = f'this run alone may spend {self.own}'
        if self.uses and self.own.is_proven:
            runs = ', '.join(use.run_id for use in self.uses)
            cause = f'with what other runs on these records may spend ({runs}), {self._sum_text()}'
        left = budget - others.epsilon if others.is_proven else 0.0
        hint = f'Left is ε = {rounding.down(left)}' if left > 0 else 'Nothing is left'
        raise SeenRecordsError(
            f'The budget of these records would be passed: {cause}. {hint}. Ask for less, use '
            'other records, or raise the budget; python -m tf_efsgd.state lists what is '
            f'remembered. Received: --dataset_budget={budget!r}.'
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """A sample of a set of hashes: all of them that are below a threshold.

    Attributes:
      kept: uint64 [K], sorted, each once; K is at most 10,000.
      below: the threshold, at most 2^56, at which all are kept.
    """

    kept: np.ndarray
    below: int = _ALL

    @classmethod
    def of(cls, hashes: np.ndarray) -> Sketch:
        """Sketches a set of hashes, uint64 [N] below 2^56, of which some may be equal."""
        return cls(np.unique(hashes))._smallest()

    def union(self, other: Sketch) -> Sketch:
        """The sketch of all records of two."""
        below = min(self.below, other.below)
        kept = np.union1d(self.kept, other.kept)
        return Sketch(kept[kept < np.uint64(below)], below)._smallest()

    def _smallest(self) -> Sketch:
        if len(self.kept) <= _MOST_KEPT:
            return self
        return Sketch(self.kept[:_MOST_KEPT], int(self.kept[_MOST_KEPT]))

    @property
    def is_whole(self) -> bool:
        """Whether every hash was kept."""
        return self.below == _ALL

    def count(self, hashes: np.ndarray) -> int:
        """How many of these hashes, uint64 [N], are of the set; about so many when not whole.

        Returns:
          In [0, N]. 0 when none was found, otherwise at least 1; an estimate has two digits.
        """
        found = int(np.isin(hashes, self.kept).sum())
        if self.is_whole or not found:
            return found
        estimate = found * _ALL / self.below
        digits = 1 - math.floor(math.log10(estimate))
        return min(max(round(round(estimate, digits)), found), len(hashes))

    def to_json(self) -> dict[str, Any]:
        """JSON values by name."""
        raw = self.kept.astype('>u8').view(np.uint8).reshape(-1, 8)[:, 8 - _HASH_BYTES :]
        return {'below': self.below, 'kept': base64.b64encode(raw.tobytes()).decode()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Sketch:
        """Reads back what `to_json` made.

        Raises:
          KeyError, TypeError, ValueError: if it is something else.
        """
        raw = np.frombuffer(base64.b64decode(values['kept'], validate=True), np.uint8)
        raw = np.pad(raw.reshape(-1, _HASH_BYTES), [(0, 0), (8 - _HASH_BYTES, 0)])
        return cls(raw.copy().view('>u8').ravel().astype(np.uint64), int(values['below']))


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """What is remembered of one run.

    Attributes:
      run_id: of its ledger.
      dataset: public name of its data set.
      records: how many there were.
      date: when it was first counted, UTC, ISO 8601.
      promise: what it may spend.
      sketch: of its records' hashes.
      rule: hash of its rule of persons under the key; None where it is not known or the run counts
        images.
      public_rule: as in `Persons`.
      persons: of the hashes that say whose its records are, see `_ownership`; None like that.
    """

    run_id: str
    dataset: str
    records: int
    date: str
    promise: Promise
    sketch: Sketch
    rule: str | None = None
    public_rule: str | None = None
    persons: Sketch | None = None

    def has_persons_of(self, other: Memory) -> bool:
        """Whether both are known to tell the same persons apart."""
        if self.rule is None or self.rule != other.rule:
            return False
        bits = np.uint64(_PERSON_BITS)
        mine, theirs = self.persons.kept, other.persons.kept
        is_shared = np.isin(mine >> bits, theirs >> bits)
        return bool(np.isin(mine[is_shared], theirs).all())

    def to_text(self, key: bytes) -> str:
        """The content of its file, with a tag under the key: a damaged one is recognised."""
        values = {
            'format': _FORMAT,
            'run_id': self.run_id,
            'dataset': self.dataset,
            'records': self.records,
            'date': self.date,
            **self.promise.to_json(),
            **self.sketch.to_json(),
            'rule': self.rule,
            'public_rule': self.public_rule,
            'persons': None if self.persons is None else self.persons.to_json(),
        }
        return json.dumps({**values, 'tag': _tag(key, values)})

    @classmethod
    def read(cls, path: pathlib.Path, key: bytes | None = None) -> Memory:
        """Reads a file.

        Args:
          path: RUNID.seen.json.
          key: holds it against its tag; None does without, to show it only.

        Raises:
          OSError: if it cannot be read.
          ValueError: if it is damaged, of another run or was made with another key.
        """
        try:
            values = json.loads(path.read_text())
            tag = values.pop('tag')
            if key is not None and not hmac.compare_digest(tag, _tag(key, values)):
                raise ValueError('tag')
            is_old = values['format'] in _OLD_FORMATS
            if (
                not (is_old or values['format'] == _FORMAT)
                or values['run_id'] + SUFFIX != path.name
            ):
                raise ValueError('of another format or run')
            is_proven = values['epsilon'] is not None
            promise = Promise(
                float(values['epsilon']) if is_proven else math.inf,
                float(values['delta']) if is_proven else 0.0,
                str(values['record']),
            )
            return cls(
                run_id=values['run_id'],
                dataset=str(values['dataset']),
                records=int(values['records']),
                date=str(values['date']),
                promise=promise,
                sketch=Sketch.from_json(values),
                rule=None if is_old else values['rule'],
                public_rule=None if is_old else values['public_rule'],
                persons=None
                if is_old or values['persons'] is None
                else Sketch.from_json(values['persons']),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'damaged, or made with another {KEY}') from error


def count_run(
    folder: str | os.PathLike,
    run_id: str,
    dataset: str,
    digests: np.ndarray,
    promise: Promise,
    budget: float | None = None,
    persons: Persons | None = None,
) -> OtherRuns:
    """Looks up which runs used the same records, and remembers this one; before it is charged.

    A run that is resumed is not counted twice, nor is a copy of its folder. What it may spend is
    never lowered, for it may have been shown already.

    Args:
      folder: the state folder, see `run_state.prepare_folder`.
      run_id: of the run's ledger.
      dataset: public name of its data set.
      digests: uint64 [N, 2], 16 bytes of a hash of each record's pixels.
      promise: what the run may spend in all, from its first start on.
      budget: the largest sum of ε of all runs on these records; None for no limit.
      persons: whose the records are, where the unit of privacy is PERSON; None where it is not
        known, so that no run has the same persons.

    Returns:
      The other runs. Without a budget, whatever cannot be read or written is among them as not
      known and stops nothing.

    Raises:
      SeenRecordsError: if the budget would be passed, or cannot be kept because something is not
        known, or the run is resumed with other persons than it was started with; nothing of this
        run was remembered then.
    """
    folder = pathlib.Path(folder)
    public_rule = None if persons is None else persons.public_rule
    others = OtherRuns(promise, dataset=dataset, public_rule=public_rule)
    try:
        with locked(folder):
            others = dataclasses.replace(others, notes=tuple(_close_to_others(folder)))
            key = _key(folder)
            hashes = _hashes(key, digests)
            new = Memory(
                run_id=run_id,
                dataset=dataset,
                records=len(hashes),
                date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
                promise=promise,
                sketch=Sketch.of(hashes),
                rule=None if persons is None else _rule_hash(key, persons.rule),
                public_rule=public_rule,
                persons=None
                if persons is None
                else Sketch.of(_ownership(key, digests, persons.names, hashes)),
            )
            others = _look_up(folder, key, new, hashes, others)
            old, damage = _read_own(folder, key, run_id)
            if damage is not None:
                others = dataclasses.replace(others, not_known=(*others.not_known, damage))
            if old is not None:
                _check_own_persons(old, new)
            if budget is not None:
                others.check_budget(budget)
            if damage is not None:
                _keep_aside(folder / f'{run_id}{SUFFIX}')
            _remember(folder, key, new, old)
    except OSError as error:
        text = (
            f'{error.filename or folder / KEY}: {error.strerror or error}: which runs used these '
            'records is not known, or later ones will not know of this run. Give another '
            '--state_dir, or make this one readable and writable for you.'
        )
        others = dataclasses.replace(others, not_known=(*others.not_known, text))
        if budget is not None:
            others.check_budget(budget)
    return others


def forget(folder: str | os.PathLike, run_id: str) -> None:
    """Removes the sketch of a run, which then counts no more; nothing happens without one."""
    (pathlib.Path(folder) / f'{run_id}{SUFFIX}').unlink(missing_ok=True)


def _names(folder: pathlib.Path, suffix: str) -> list[str]:
    """The names in a folder that end so; unlike glob, it fails where the folder cannot be read."""
    return sorted(name for name in os.listdir(folder) if name.endswith(suffix))


def _look_up(
    folder: pathlib.Path, key: bytes, new: Memory, hashes: np.ndarray, others: OtherRuns
) -> OtherRuns:
    """Adds what is remembered of other runs, for one with these hashes, uint64 [N]."""
    uses, remembered, not_known = [], [], []
    for name in _names(folder, SUFFIX):
        path, other = folder / name, name[: -len(SUFFIX)]
        if other == new.run_id:
            continue
        try:
            memory = Memory.read(path, key)
        except (OSError, ValueError) as error:
            not_known.append(
                f'{path} cannot be used ({getattr(error, "strerror", None) or error}): whether '
                'that run used these records, and what it spent on them, is not known, and no sum '
                'holds it. If it used others: '
                f'python -m tf_efsgd.state --state_dir={folder} --remove={other}.'
            )
            continue
        known = (other, memory.dataset, memory.date, memory.promise)
        remembered.append(Remembered(*known, memory.public_rule))
        count = memory.sketch.count(hashes)
        if count:
            count_persons = new.promise.unit == memory.promise.unit == PERSON
            uses.append(
                Use(
                    *known,
                    count,
                    is_exact=memory.sketch.is_whole,
                    other_persons=count_persons and not new.has_persons_of(memory),
                )
            )
    not_known += [
        f'{folder / name} was damaged and is kept aside: which records that run used before, and '
        'what it may have spent on them, is not known, and no sum holds it. If neither was more '
        'than what is remembered of it now, or nothing of it was or will be shown to anybody: '
        f'python -m tf_efsgd.state --state_dir={folder} --remove={name}.'
        for name in _names(folder, DAMAGED)
    ]
    not_known += _without_sketch(folder, new.run_id)
    return dataclasses.replace(
        others,
        uses=tuple(sorted(uses, key=lambda use: use.date)),
        not_known=tuple(not_known),
        remembered=tuple(sorted(remembered, key=lambda run: run.date)),
        is_compared=True,
    )


def _without_sketch(folder: pathlib.Path, run_id: str) -> Iterator[str]:
    """A line for runs that are remembered without their records, as by an earlier version."""
    sketches = _names(folder, SUFFIX)
    runs = {name[: -len('.json')] for name in _names(folder, '.json') if name not in sketches}
    runs -= {name[: -len(SUFFIX)] for name in sketches} | {run_id}
    if runs:
        yield (
            f'{folder} remembers {len(runs)} run{"s" if len(runs) > 1 else ""} without a sketch '
            'of the records, as an earlier version of this program did: whether these records were '
            'used there is not known, and no sum holds it. Resume such a run once, or see '
            f'python -m tf_efsgd.state --state_dir={folder}.'
        )


def _read_own(folder: pathlib.Path, key: bytes, run_id: str) -> tuple[Memory | None, str | None]:
    """What is remembered of the run itself, and a line where that is damaged."""
    path = folder / f'{run_id}{SUFFIX}'
    try:
        return Memory.read(path, key), None
    except FileNotFoundError:
        return None, None
    except ValueError as error:
        return None, (
            f'{path}, of this run itself, cannot be used ({error}): whether it used other records '
            'before, or may have spent more on these, is not known, and no sum holds it. It is '
            'kept aside and made anew when the run continues without --dataset_budget.'
        )


def _check_own_persons(old: Memory, new: Memory) -> None:
    """Raises SeenRecordsError where a resumed run is known to have other persons than before."""
    if old.rule is not None and not new.has_persons_of(old):
        raise SeenRecordsError(
            'The persons of this run are not the ones that it was started with: its rule, or its '
            'table of persons, gives images to others now. Put the table, or the names that the '
            f'rule looks at, back, or start a new run folder. Received: run {new.run_id}.'
        )


def _keep_aside(path: pathlib.Path) -> None:
    """Gives a damaged sketch a name under which it stays, and is told of at every start."""
    number = 1
    while (aside := path.with_name(f'{path.name}.{number}{DAMAGED}')).exists():
        number += 1
    os.replace(path, aside)
    files.sync(path.parent)


def _remember(folder: pathlib.Path, key: bytes, new: Memory, old: Memory | None) -> None:
    if old is not None:
        persons = new.persons
        if persons is not None and old.persons is not None:
            persons = persons.union(old.persons)
        new = dataclasses.replace(
            new,
            date=old.date,
            promise=dataclasses.replace(
                new.promise,
                epsilon=max(new.promise.epsilon, old.promise.epsilon),
                delta=max(new.promise.delta, old.promise.delta),
            ),
            # Others than at the start only where --resume_unverified was given.
            sketch=new.sketch.union(old.sketch),
            persons=persons,
        )
        if new.to_text(key) == old.to_text(key):
            return
    files.write_atomically(folder / f'{new.run_id}{SUFFIX}', new.to_text(key), mode=0o600)


def _close_to_others(folder: pathlib.Path) -> Iterator[str]:
    """Takes rights to read or write from other users, with a line where there were any."""
    for name in (KEY, *_names(folder, SUFFIX), *_names(folder, DAMAGED)):
        path = folder / name
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mode & 0o077:
                path.chmod(0o600)
                yield (
                    f'{path} could be used by other users of this machine: with {KEY} and the '
                    'sketches they can test whether a record was used. It is for you alone now.'
                )
    if folder.stat().st_mode & 0o022:
        yield (
            f'{folder} can be changed by other users of this machine: they can remove what is '
            f'remembered. To have it for you alone: chmod 700 {folder}.'
        )


def _hashes(key: bytes, digests: np.ndarray) -> np.ndarray:
    """The keyed hashes of records, uint64 [N] below 2^56, from digests uint64 [N, 2]."""
    raw, size = np.ascontiguousarray(digests, '>u8').tobytes(), _DIGEST_BYTES
    padding = bytes(8 - _HASH_BYTES)
    tags = b''.join(
        padding + hmac.digest(key, b'record' + raw[at : at + size], 'sha256')[:_HASH_BYTES]
        for at in range(0, len(raw), size)
    )
    return np.frombuffer(tags, '>u8').astype(np.uint64)


def _ownership(
    key: bytes, digests: np.ndarray, names: np.ndarray, hashes: np.ndarray
) -> np.ndarray:
    """Hashes that say whose each record is, uint64 [N] below 2^56.

    The upper bits are those of the record's own hash, so that the sketches of two runs keep the
    same records; the lower ones are a keyed hash of record and person together.

    Args:
      key: of the state folder.
      digests: of the records, uint64 [N, 2].
      names: of the persons' names, uint64 [N, 2].
      hashes: `_hashes` of the records, uint64 [N].
    """
    pairs = np.ascontiguousarray(np.concatenate([digests, names], axis=1), '>u8').tobytes()
    size, count = 2 * _DIGEST_BYTES, _PERSON_BITS // 8
    tags = b''.join(
        hmac.digest(key, b'person' + pairs[at : at + size], 'sha256')[:count]
        for at in range(0, len(pairs), size)
    )
    low = np.frombuffer(tags, '>u2').astype(np.uint64)
    return (hashes & ~np.uint64(2**_PERSON_BITS - 1)) | low


def _rule_hash(key: bytes, rule: bytes) -> str:
    return hmac.new(key, b'rule' + rule, hashlib.sha256).hexdigest()


def _tag(key: bytes, values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hmac.new(key, b'sketch' + text.encode(), hashlib.sha256).hexdigest()


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """One process at a time; the kernel lets go when a process ends, however it ends."""
    path = pathlib.Path(folder) / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if files.is_at(handle, path):  # Otherwise it was removed while this one waited.
                yield
                return
        finally:
            os.close(handle)


def _key(folder: pathlib.Path) -> bytes:
    """The key of the state folder, made when it is missing.

    Raises:
      OSError: if it cannot be read or made, or is damaged.
    """
    path = folder / KEY
    if not path.exists():
        _make_key(path)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise OSError(0, f'damaged, {len(key)} bytes for {_KEY_BYTES}', str(path))
    return key


def _make_key(path: pathlib.Path) -> None:
    """Writes a key under another name and links it: the first one made stays, and is whole."""
    handle, temporary = tempfile.mkstemp(prefix=f'.{KEY}.tmp-', dir=path.parent)  # Mode 0600.
    try:
        with open(handle, 'wb') as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    files.sync(path.parent)


def _sum_of(promises: Sequence[Promise], unit: str) -> Promise:
    """What they promise together, all in one unit of privacy."""
    if not all(promise.is_proven for promise in promises):
        return Promise(math.inf, 0.0, unit)
    epsilon = _sum_up(promise.epsilon for promise in promises)
    return Promise(epsilon, _sum_up(promise.delta for promise in promises), unit)


def _sum_up(values: Iterable[float]) -> float:
    """The sum of finite floats, rounded up."""
    exact = sum(map(fractions.Fraction, values), fractions.Fraction())
    rounded = float(exact)
    return rounded if fractions.Fraction(rounded) >= exact else math.nextafter(rounded, math.inf)


def _rounded_up(value: float) -> str:
    return rounding.up(float(f'{value:.15g}'))  # A sum of three floats 1e-5 is shown as 3e-5.
