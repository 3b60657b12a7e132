"""What is remembered of runs in the state folder: one sketch for each run, all under one key."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import json
import math
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from tf_efsgd import files
from tf_efsgd.privacy.seen_records.promises import Promise
from tf_efsgd.privacy.seen_records.sketch import PERSON_BITS, Sketch

KEY, LOCK, SUFFIX = 'seen.key', 'seen.lock', '.seen.json'
# The end of the name of a damaged sketch that is kept aside.
DAMAGED = '.damaged'
# Format 1 does not say whose the records are.
_FORMAT, _OLD_FORMATS = 2, (1,)
_KEY_BYTES = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """What is remembered of one run.

    Attributes:
      run_id: of its ledger.
      dataset: public name of its data set.
      records: how many records it had.
      date: when it was first counted, UTC, ISO 8601.
      promise: what it may spend.
      sketch: of its records' hashes.
      rule: the hash, under the key, of its rule of persons; None if the rule is not known or the
        run counts images.
      public_rule: as in `Persons`.
      persons: the sketch of the hashes that say whose its records are, see `ownership_of`; None
        where `rule` is.
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
        bits = np.uint64(PERSON_BITS)
        mine, theirs = self.persons.kept, other.persons.kept
        is_shared = np.isin(mine >> bits, theirs >> bits)
        return bool(np.isin(mine[is_shared], theirs).all())

    def to_text(self, key: bytes) -> str:
        """The content of its file; a tag under the key shows whether a file is damaged."""
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
          key: of the state folder, to check the tag; None skips the check, to show the file only.

        Raises:
          OSError: if it cannot be read.
          ValueError: if it is damaged, belongs to another run or was made with another key.
        """
        try:
            values = json.loads(path.read_text(encoding='utf-8'))
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


def _tag(key: bytes, values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hmac.new(key, b'sketch' + text.encode(), hashlib.sha256).hexdigest()


def names_in(folder: pathlib.Path, suffix: str) -> list[str]:
    """The names in a folder with this ending; unlike glob, it fails on an unreadable folder."""
    return sorted(name for name in os.listdir(folder) if name.endswith(suffix))


def read_own(folder: pathlib.Path, key: bytes, run_id: str) -> tuple[Memory | None, str | None]:
    """Reads what is remembered of the run itself, with a line for the user if that is damaged."""
    path = folder / f'{run_id}{SUFFIX}'
    try:
        return Memory.read(path, key), None
    except FileNotFoundError:
        return None, None
    except ValueError as error:
        return None, (
            f'{path}, of this run itself, cannot be used ({error}): whether it used other records '
            'before, or may have spent more on these, is not known, and no sum includes it. It is '
            'kept aside and made again when the run continues without --dataset_budget.'
        )


def keep_aside(path: pathlib.Path) -> None:
    """Renames a damaged sketch, so that it is kept and every start reports it."""
    number = 1
    while (aside := path.with_name(f'{path.name}.{number}{DAMAGED}')).exists():
        number += 1
    os.replace(path, aside)
    files.sync(path.parent)


def remember(folder: pathlib.Path, key: bytes, new: Memory, old: Memory | None) -> None:
    """Writes what is remembered of a run; what it may spend and has used never shrinks.

    Args:
      folder: the state folder.
      key: of the state folder.
      new: what the run uses and may spend now.
      old: what was remembered of it before; None at its first start.
    """
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
            # They differ from those of the first start only if --resume_unverified was given.
            sketch=new.sketch.union(old.sketch),
            persons=persons,
        )
        if new.to_text(key) == old.to_text(key):
            return
    files.write_atomically(folder / f'{new.run_id}{SUFFIX}', new.to_text(key), mode=0o600)


def forget(folder: str | os.PathLike, run_id: str) -> None:
    """Removes the sketch of a run, if there is one; the run then counts no more."""
    (pathlib.Path(folder) / f'{run_id}{SUFFIX}').unlink(missing_ok=True)


def close_to_others(folder: pathlib.Path) -> Iterator[str]:
    """Takes the rights to read or write from other users, with a line where they had any."""
    for name in (KEY, *names_in(folder, SUFFIX), *names_in(folder, DAMAGED)):
        path = folder / name
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mode & 0o077:
                with contextlib.suppress(PermissionError):
                    path.chmod(0o600)
                is_closed = not path.stat().st_mode & 0o077
                yield (
                    f'{path} {"could" if is_closed else "can"} be used by other users of this '
                    f'machine: with {KEY} and the sketches they can test whether a record was '
                    'used. '
                    + (
                        'Only you can use it now.'
                        if is_closed
                        else 'Its file system keeps no permissions: give a --state_dir on another.'
                    )
                )
    if folder.stat().st_mode & 0o022:
        yield (
            f'Other users of this machine can change {folder}: they can remove what is '
            f'remembered. To keep them out: chmod 700 {folder}.'
        )


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Holds a lock that only one process has at a time; the kernel releases it when that ends."""
    path = pathlib.Path(folder) / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            files.lock(handle, path, wait=True)
            if files.is_at(handle, path):  # Otherwise the file was removed while this one waited.
                yield
                return
        finally:
            os.close(handle)


def read_key(folder: pathlib.Path) -> bytes:
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
    """Writes a key under another name and links it: the first key stays, and is always whole."""
    handle, temporary = tempfile.mkstemp(prefix=f'.{KEY}.tmp-', dir=path.parent)  # Mode 0600.
    try:
        with open(handle, 'wb') as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            files.publish(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    files.sync(path.parent)
