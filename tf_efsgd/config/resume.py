"""What a resumed run must share with its first start: by each setting's rule, and by a hash."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from tf_efsgd.config.settings import DataConfig, RunConfig, groups_of

# Data sets named NAME:PATH, where PATH is a folder on this machine.
PLACED_DATASETS = ('folder', 'idx')


def without_place(value: Any, name: str) -> Any:
    """Removes the place on this machine from the value of a setting.

    Args:
      value: the value of the setting.
      name: the name of the setting. `NAME:PATH` of `dataset`, for the names in `PLACED_DATASETS`,
        and `csv:FILE` of `person` and `label` lose what comes after the colon. All other values
        are returned as they are.
    """
    if name == 'dataset' and value is not None:
        kind, colon, _ = value.partition(':')
        return kind if colon and kind in PLACED_DATASETS else value
    if name in ('person', 'label') and value is not None and value.startswith('csv:'):
        return 'csv'
    return value


def _names(on_resume: str) -> tuple[str, ...]:
    """The texts among the settings of data with one resume rule."""
    return tuple(
        field.name
        for field in dataclasses.fields(DataConfig)
        if field.metadata['on_resume'] == on_resume and field.metadata['kind'] == 'string'
    )


# Folders on a machine, which say nothing of the data: workers and repeated runs may differ in them.
OWN_PLACES = _names('may_change')
# Settings that name the data and may hold a path beside; see `without_place`.
MOVABLE = _names('may_move')


def forbidden_changes(before: RunConfig, now: RunConfig) -> list[str]:
    """Finds the settings that differ although a resumed run may not change them.

    Args:
      before: the settings of an earlier start, from RUN/config.flags.
      now: the settings to resume with; their `change_mechanism` allows more changes.

    Returns:
      One text for each, e.g. '--seed was 1, is 2'. The place of the data is not compared.
    """
    compared = (
        ['same', 'may_move'] if now.run.change_mechanism else ['same', 'may_move', 'mechanism']
    )
    changed = []
    for old, new in zip(groups_of(before), groups_of(now)):
        for field in dataclasses.fields(new):
            name, rule = field.name, field.metadata['on_resume']
            was, value = getattr(old, name), getattr(new, name)
            if rule in compared and without_place(was, name) != without_place(value, name):
                changed.append(f'--{name} was {was}, is {value}')
    return changed


def lasting_changes(before: RunConfig, now: RunConfig) -> dict[str, Any]:
    """What a resumed run changes for all later starts, too: by name, what it is now.

    Args:
      before: as in `forbidden_changes`, none of which there are.
      now: likewise.
    """
    return {
        field.name: getattr(new, field.name)
        for old, new in zip(groups_of(before), groups_of(now))
        for field in dataclasses.fields(new)
        if field.metadata['on_resume'] in ('may_move', 'stays')
        and getattr(old, field.name) != getattr(new, field.name)
    }


def _is_as_earlier(field: dataclasses.Field, value: Any) -> bool:
    """Whether the value of a newer setting means what runs did before it existed."""
    earlier = field.metadata['earlier']
    return earlier is not None and value in (earlier, 'auto')


def settings_hash(config: RunConfig, *, has_place: bool = False) -> str:
    """Hashes the settings that a resumed run must share with its first start.

    Args:
      config: the settings.
      has_place: whether the hash includes the path of a table of persons, as in earlier versions.

    Returns:
      A SHA-256, hexadecimal.
    """
    left_out: dict[str, object] = {
        field.name: None
        for group in groups_of(config)
        for field in dataclasses.fields(group)
        if field.metadata['on_resume'] not in ('same', 'may_move')
        or _is_as_earlier(field, getattr(group, field.name))
    }
    left_out['dataset'] = None  # The plan holds its name.
    left_out['label'] = without_place(config.data.label, 'label')
    if not has_place:
        left_out['person'] = without_place(config.data.person, 'person')
    return hashlib.sha256(config.to_flags(**left_out).encode()).hexdigest()
