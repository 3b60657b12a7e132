"""What a run may spend, fixed before its first step, and how a file holds it. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any

import dp_accounting

from tf_efsgd.privacy import accounting

# The fields of a plan that no change of the mechanism may touch.
FIXED = (
    'dataset',
    'dataset_size',
    'image_shape',
    'num_classes',
    'images_per_person',
    'persons',
    'private_parameters',
    'target_delta',
    'warm_start_event',
    'warm_start_noise_multiplier',
    'learned_features_share',
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run may spend, fixed before its first step. Public.

    Attributes:
      dataset: name of the data set.
      dataset_size: declared number of records, N.
      image_shape: (H, W, C).
      num_classes: number of labels.
      event: the event of one step; None when nothing is private.
      unproven_event: what plain DP-SGD accounting would count for a hidden buffer; else None.
      expected_batch_size: mean number of records in a step.
      mechanism: the numbers that define a step, by name; empty when nothing is private.
      private_parameters: how many parameters a step updates.
      warm_start_event: the event of what is released before the first step; None without a warm
        start.
      warm_start_noise_multiplier: sigma_w, the noise of that release divided by how far one record
        moves it; None without a warm start.
      learned_features_share: the share of its 1/sigma^2 that a second release gets; 0 without one.
      train_steps: the number of steps that may be reserved in all.
      target_delta: delta in (0, 1); None when nothing is private.
      target_epsilon: what sigma was calibrated for; None when sigma was given.
      steps_per_entry: the largest count of one entry.
      settings_sha256: the hash of the settings that no resumed run may change.
      images_per_person: K, where the unit of privacy is one person with up to K images; None where
        it is one image.
      persons: declared number of persons; None where the unit of privacy is one image.
    """

    dataset: str
    dataset_size: int
    image_shape: tuple[int, int, int]
    num_classes: int
    event: dp_accounting.DpEvent | None
    unproven_event: dp_accounting.DpEvent | None
    expected_batch_size: int
    mechanism: dict
    private_parameters: int
    warm_start_event: dp_accounting.DpEvent | None
    warm_start_noise_multiplier: float | None
    learned_features_share: float
    train_steps: int
    target_delta: float | None
    target_epsilon: float | None
    steps_per_entry: int
    settings_sha256: str
    images_per_person: int | None = None
    persons: int | None = None

    @property
    def unit_of_privacy(self) -> str:
        """What is added to or removed from a data set to make a neighbour of it."""
        if self.images_per_person is None:
            return 'one image with its label'
        return f'one person, with up to {self.images_per_person} images and their labels'

    @property
    def images_per_unit(self) -> int:
        """How many images one unit of privacy has at most."""
        return self.images_per_person or 1

    @property
    def units(self) -> int:
        """The declared number of units of privacy: images or persons."""
        return self.dataset_size if self.images_per_person is None else self.persons

    @property
    def one_unit(self) -> str:
        """'one image' or 'one person'."""
        return 'one image' if self.images_per_person is None else 'one person'

    @property
    def name_of_units(self) -> str:
        """'images' or 'persons'."""
        return 'images' if self.images_per_person is None else 'persons'


# The fields of a plan that hold an event: a dictionary in the file, an object everywhere else.
_EVENTS = ('event', 'unproven_event', 'warm_start_event')


def event_to_json(event: dp_accounting.DpEvent | None) -> dict | None:
    """Turns an event, or None, into JSON values."""
    return None if event is None else accounting.event_to_dict(event)


def event_from_json(values: dict | None) -> dp_accounting.DpEvent | None:
    """Turns what `event_to_json` gave back into an event, or None."""
    return None if values is None else accounting.event_from_dict(values)


def to_json(plan: Plan) -> dict[str, Any]:
    """Turns a plan into JSON values, by field."""
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    return {
        name: event_to_json(value) if name in _EVENTS else value for name, value in values.items()
    }


def from_json(entry: dict) -> Plan:
    """Reads the plan from a ledger entry that holds what `to_json` gave.

    Raises:
      KeyError: if a field is missing.
      ValueError: if a field holds what no plan does.
    """
    values = {field.name: entry[field.name] for field in dataclasses.fields(Plan)}
    values |= {name: event_from_json(values[name]) for name in _EVENTS}
    plan = Plan(**{**values, 'image_shape': tuple(entry['image_shape'])})
    _check_types(plan)
    return plan


def _check_types(plan: Plan) -> None:
    def is_count(value, least):
        return type(value) is int and value >= least

    delta, persons = plan.target_delta, plan.images_per_person
    if not (
        is_count(plan.dataset_size, 1)
        and is_count(plan.train_steps, 0)
        and is_count(plan.num_classes, 1)
        and is_count(plan.steps_per_entry, 1)
        and len(plan.image_shape) == 3
        and all(is_count(size, 1) for size in plan.image_shape)
        and (delta is None or (isinstance(delta, float) and 0 < delta < 1))
        and isinstance(plan.dataset, str)
        and isinstance(plan.mechanism, (dict, type(None)))
        and (persons is None or (is_count(persons, 1) and is_count(plan.persons, 1)))
    ):
        raise ValueError('A field of the plan holds what no plan does.')
