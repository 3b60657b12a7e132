"""What a resumed run shares with its first start: each setting's rule, and the settings' hash."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from tf_efsgd.config.settings import RunConfig, groups_of

_PLACED_DATASETS = ('folder:', 'idx:')


def without_place(value: Any, name: str) -> Any:
    """A setting without where things are on this machine.

    Args:
      value: of the setting.
      name: of the setting. `folder:PATH` and `idx:PATH` of `dataset`, and `csv:FILE` of `person`
        and `label`, lose what stands behind the colon; all other values are returned as they are.
    """
    if name == 'dataset' and value is not None and value.startswith(_PLACED_DATASETS):
        return value.partition(':')[0]
    if name in ('person', 'label') and value is not None and value.startswith('csv:'):
        return 'csv'
    return value


def forbidden_changes(before: RunConfig, now: RunConfig) -> list[str]:
    """What settings change that a resumed run may not change.

    Args:
      before: the settings of an earlier start, from RUN/config.flags.
      now: those to resume with; their `change_mechanism` allows more.

    Returns:
      One text for each, e.g. '--seed was 1, is 2'; where the data lie is not compared.
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


def _as_earlier(field: dataclasses.Field) -> tuple[str, str]:
    """Values of a newer setting that stand for what runs did before there was it."""
    return field.metadata['earlier'], 'auto'


def settings_hash(config: RunConfig, *, has_place: bool = False) -> str:
    """The hash of the settings that a resumed run must share with its first start.

    Args:
      config: the settings.
      has_place: with the path of a table of persons, as earlier versions did.
    """
    left_out: dict[str, object] = {
        field.name: None
        for group in groups_of(config)
        for field in dataclasses.fields(group)
        if field.metadata['on_resume'] not in ('same', 'may_move')
        or (field.metadata['earlier'] and getattr(group, field.name) in _as_earlier(field))
    }
    left_out['dataset'] = None  # The plan holds its name.
    left_out['label'] = without_place(config.data.label, 'label')
    if not has_place:
        left_out['person'] = without_place(config.data.person, 'person')
    return hashlib.sha256(config.to_flags(**left_out).encode()).hexdigest()
