"""Looks up which other runs used the same records, and remembers the run that asks."""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from tf_efsgd.privacy.seen_records.memory import (
    DAMAGED,
    KEY,
    SUFFIX,
    Memory,
    close_to_others,
    keep_aside,
    locked,
    names_in,
    read_key,
    read_own,
    remember,
)
from tf_efsgd.privacy.seen_records.other_runs import OtherRuns, Remembered, SeenRecordsError, Use
from tf_efsgd.privacy.seen_records.promises import PERSON, Promise
from tf_efsgd.privacy.seen_records.sketch import Sketch, hash_of_rule, hashes_of, ownership_of


@dataclasses.dataclass(frozen=True, eq=False)
class Persons:
    """How a run gives its records to persons.

    Attributes:
      rule: everything that the rule consists of, with its table if it has one. PRIVATE.
      names: digests of the name of each record's person, uint64 [N, 2]. PRIVATE.
      public_rule: the text of the rule if that is all of it; None if a table is part of it.
    """

    rule: bytes
    names: np.ndarray
    public_rule: str | None


def count_run(
    folder: str | os.PathLike,
    run_id: str,
    dataset: str,
    digests: np.ndarray,
    promise: Promise,
    budget: float | None = None,
    persons: Persons | None = None,
) -> OtherRuns:
    """Looks up which runs used the same records, and remembers this one before it is charged.

    A resumed run is not counted twice, nor is a copy of its folder. What a run may spend is never
    lowered, because its results may have been shown already.

    Args:
      folder: the state folder, see `run_state.prepare_folder`.
      run_id: of the run's ledger.
      dataset: public name of its data set.
      digests: uint64 [N, 2], 16 bytes of a hash of each record's pixels. PRIVATE.
      promise: what the run may spend in all, from its first start on.
      budget: the largest sum of ε of all runs on these records; None for no limit.
      persons: whose the records are, where the unit of privacy is PERSON; None if that is not
        known, and then no other run has the same persons.

    Returns:
      The other runs. Without a budget, whatever cannot be read or written is reported in it as not
      known and stops nothing.

    Raises:
      SeenRecordsError: if the budget would be passed, or cannot be kept because something is not
        known, or if the run is resumed with other persons than it was started with. Nothing of this
        run was remembered then.
    """
    folder = pathlib.Path(folder)
    public_rule = None if persons is None else persons.public_rule
    others = OtherRuns(promise, dataset=dataset, public_rule=public_rule)
    try:
        with locked(folder):
            others = dataclasses.replace(others, notes=tuple(close_to_others(folder)))
            key = read_key(folder)
            hashes = hashes_of(key, digests)
            new = Memory(
                run_id=run_id,
                dataset=dataset,
                records=len(hashes),
                date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
                promise=promise,
                sketch=Sketch.of(hashes),
                rule=None if persons is None else hash_of_rule(key, persons.rule),
                public_rule=public_rule,
                persons=None
                if persons is None
                else Sketch.of(ownership_of(key, digests, persons.names, hashes)),
            )
            others = _look_up(folder, key, new, hashes, others)
            old, damage = read_own(folder, key, run_id)
            if damage is not None:
                others = dataclasses.replace(others, not_known=(*others.not_known, damage))
            if old is not None:
                _check_own_persons(old, new)
            if budget is not None:
                others.check_budget(budget)
            if damage is not None:
                keep_aside(folder / f'{run_id}{SUFFIX}')
            remember(folder, key, new, old)
    except OSError as error:
        text = (
            f'{error.filename or folder / KEY}: {error.strerror or error}: it is not known which '
            'runs used these records, or later runs will not know of this one. Give another '
            '--state_dir, or make this one readable and writable for you.'
        )
        others = dataclasses.replace(others, not_known=(*others.not_known, text))
        if budget is not None:
            others.check_budget(budget)
    return others


def _check_own_persons(old: Memory, new: Memory) -> None:
    """Raises SeenRecordsError if a resumed run is known to have other persons than before."""
    if old.rule is not None and not new.has_persons_of(old):
        raise SeenRecordsError(
            'The persons of this run are not the ones that it was started with: its rule, or its '
            'table of persons, now gives images to other persons. Restore the table, or the names '
            f'that the rule looks at, or start a new run folder. Received: run {new.run_id}.'
        )


def _look_up(
    folder: pathlib.Path, key: bytes, new: Memory, hashes: np.ndarray, others: OtherRuns
) -> OtherRuns:
    """Adds to `others` what is remembered of other runs; hashes, uint64 [N], are of this run."""
    uses, remembered, not_known = [], [], []
    for name in names_in(folder, SUFFIX):
        path, other = folder / name, name[: -len(SUFFIX)]
        if other == new.run_id:
            continue
        try:
            memory = Memory.read(path, key)
        except (OSError, ValueError) as error:
            not_known.append(
                f'{path} cannot be used ({getattr(error, "strerror", None) or error}): whether '
                'that run used these records, and what it spent on them, is not known, and no sum '
                'includes it. If it used other records: '
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
        'what it may have spent on them, is not known, and no sum includes it. If both are within '
        'what is remembered of it now, or if nothing of it was or will be shown to anybody: '
        f'python -m tf_efsgd.state --state_dir={folder} --remove={name}.'
        for name in names_in(folder, DAMAGED)
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
    """A line about the runs that are remembered without their records, if there are any."""
    sketches = names_in(folder, SUFFIX)
    runs = {name[: -len('.json')] for name in names_in(folder, '.json') if name not in sketches}
    runs -= {name[: -len(SUFFIX)] for name in sketches} | {run_id}
    if runs:
        yield (
            f'{folder} remembers {len(runs)} run{"s" if len(runs) > 1 else ""} without a sketch '
            'of the records, as an earlier version of this program did: whether these records were '
            'used there is not known, and no sum includes it. Resume such a run once, or see '
            f'python -m tf_efsgd.state --state_dir={folder}.'
        )
