"""What lies in the state folder, and how it is removed.

It outlives the run folders: fingerprints of records, sketches that tell later runs which records
were used with what epsilon, classifiers that learned from real images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import pathlib
import shutil

from tf_efsgd import files
from tf_efsgd.config import ConfigError
from tf_efsgd.privacy import run_state, seen_records

# The name that stands for everything of ours.
ALL = 'all'
_RUN_SUFFIXES = (seen_records.SUFFIX, run_state.FEATURES, '.json', '.lock')
# Other names in the state folder, and what they are.
_OTHERS = {
    seen_records.KEY: 'secret key of all sketches of records',
    seen_records.LOCK: 'lock of all sketches of records',
    'classifiers': 'classifiers that learned from real images (PRIVATE)',
    'downloads': 'networks that were downloaded',
}
_UNKNOWN = 'not of this program, left alone'


@dataclasses.dataclass(frozen=True)
class Item:
    """Something in the state folder.

    Attributes:
      name: a run id, or the name of a file or folder.
      what: what it is, for a person.
      date: when it was started or last changed, UTC.
      size: in bytes.
      paths: its files and folders.
      is_run: whether it is what is remembered of a run.
      is_ours: whether this program made it.
    """

    name: str
    what: str
    date: datetime.datetime
    size: int
    paths: tuple[pathlib.Path, ...]
    is_run: bool = False
    is_ours: bool = True


def find_items(folder: pathlib.Path) -> list[Item]:
    """What lies in a state folder: runs, oldest first, then the rest; nothing when it is missing.

    Raises:
      OSError: if the folder cannot be read.
    """
    if not folder.exists():
        return []
    runs: dict[str, list[pathlib.Path]] = {}
    items = []
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in _RUN_SUFFIXES if path.name.endswith(s)), None)
        if path.name.endswith(seen_records.DAMAGED):
            what = 'sketch of a run that was damaged: while it is here, its epsilon is not known'
            items.append(_item(path.name, what, path))
        elif '.tmp-' in path.name:
            items.append(_item(path.name, 'left over from a crash', path))
        elif path.name in _OTHERS:
            items.append(_item(path.name, _OTHERS[path.name], path))
        elif suffix is not None:
            runs.setdefault(path.name[: -len(suffix)], []).append(path)
        else:
            items.append(dataclasses.replace(_item(path.name, _UNKNOWN, path), is_ours=False))
    found = [_run_item(folder, name, paths) for name, paths in runs.items()]
    return sorted(found, key=lambda item: item.date) + items


def _item(name: str, what: str, *paths: pathlib.Path) -> Item:
    inside = [file for path in paths for file in (path, *path.rglob('*')) if file.is_file()]
    changed = max(path.lstat().st_mtime for path in (*paths, *inside))
    return Item(
        name=name,
        what=what,
        date=datetime.datetime.fromtimestamp(changed, datetime.timezone.utc),
        size=sum(file.lstat().st_size for file in inside),
        paths=paths,
    )


def _run_item(folder: pathlib.Path, run_id: str, paths: list[pathlib.Path]) -> Item:
    sketch = folder / f'{run_id}{seen_records.SUFFIX}'
    what, date = 'run, of which only the lock is left', None
    if sketch in paths:
        try:
            memory = seen_records.Memory.read(sketch)
            what = f'run on {memory.dataset}: {memory.records:,} records, {memory.promise}'
            date = datetime.datetime.fromisoformat(memory.date)
        except (OSError, ValueError):
            what = 'run, its sketch of the records is damaged: its epsilon is not counted'
    elif folder / f'{run_id}.json' in paths:
        what = 'run, without a sketch of its records: its epsilon is not counted'
    item = _item(run_id, what, *paths)
    return dataclasses.replace(item, date=date or item.date, is_run=True)


def table(items: list[Item]) -> str:
    """The items as a plain table."""
    rows = [('name', 'what', 'since (UTC)', 'size')]
    rows += [(i.name, i.what, f'{i.date:%Y-%m-%d %H:%M}', files.size_text(i.size)) for i in items]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows
    )


def remove(folder: pathlib.Path, name: str) -> list[Item]:
    """Removes what is remembered of a run, something else by its name, or all that is ours.

    Args:
      folder: the state folder.
      name: as in the table, or 'all'.

    Returns:
      What was removed.

    Raises:
      ConfigError: if there is no such thing, or a process trains a run of it; nothing is removed.
      OSError: if something cannot be removed.
    """
    if not _chosen(folder, name):
        return []
    # A run that starts takes its own lock before it is counted, and is counted under this one: none
    # is counted while this removes, and whichever is counted already has a lock that is seen here.
    with contextlib.ExitStack() as locks:
        locks.enter_context(seen_records.locked(folder))
        chosen = _chosen(folder, name)
        runs = [item for item in chosen if item.is_run]
        for item in runs:
            _check_not_trained(run_state.is_trained(folder, item.name), item, name)
        for item in runs:
            try:
                locks.enter_context(run_state.lock(folder, item.name))
            except run_state.RunStateError:
                _check_not_trained(True, item, name)
        for item in chosen:
            _remove(item)
        for item in runs:  # Some had none before.
            (folder / f'{item.name}.lock').unlink(missing_ok=True)
    return chosen


def _chosen(folder: pathlib.Path, name: str) -> list[Item]:
    chosen = [item for item in find_items(folder) if item.is_ours and name in (item.name, ALL)]
    if not chosen and name != ALL:
        raise ConfigError(
            f'{folder} has nothing to remove by that name: give a run id or a name of its table, '
            f'or {ALL}. Received: --remove={name}.'
        )
    return chosen


def _check_not_trained(is_trained: bool, item: Item, name: str) -> None:
    if is_trained:
        raise ConfigError(
            f'Run {item.name} is trained by a process now: wait for it or stop it first. '
            f'Received: --remove={name}.'
        )


def _remove(item: Item) -> None:
    # The lock comes last: until then nobody else has the run.
    for path in sorted(item.paths, key=lambda path: path.suffix == '.lock'):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
