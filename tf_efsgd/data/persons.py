"""Which person an image belongs to, and which of a person's images are kept.

Formal guarantees:
  - Which person an image belongs to depends on that image alone: on its folder, its row in a table,
    its name, the patient in its header or one of its features. An image without a person is
    refused.
  - Which images a person keeps depends on that person's own images alone: on the hashes of their
    pixels and, for equal pixels, on their labels. The images of other persons play no part in it.
  - A person is the same string in all classes and in both splits.

Names of persons are private: no error here contains one, except within the path of an image.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_efsgd import files
from tf_efsgd.data import dicom, listing
from tf_efsgd.data.records import DataError

if TYPE_CHECKING:
    import tensorflow as tf

_FORMS = 'folder, csv:FILE, name:REGEX, dicom (of a folder: data set) or the name of a TFDS feature'


@dataclasses.dataclass(frozen=True)
class Rule:
    """How images are assigned to persons.

    Attributes:
      kind: 'folder', 'csv', 'name', 'dicom' or 'feature'.
      value: the file, the pattern, or the feature's name with / between levels; '' for 'folder' and
        'dicom'.
    """

    kind: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Reads the value of --person.

        Args:
          text: 'folder', 'dicom', 'csv:FILE', 'name:REGEX', 'feature:NAME' or NAME.

        Raises:
          DataError: if it is none of these.
        """
        kind, has_kind, value = text.partition(':')
        if text in ('folder', 'dicom'):
            return cls(text, '')
        if not has_kind:
            kind, value = 'feature', text
        if kind not in ('csv', 'name', 'feature') or not value:
            raise DataError(f'--person must be {_FORMS}. Received: {text!r}.')
        if kind == 'name':
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise DataError(
                    f'--person=name: needs a regular expression, and this is not one: {error}. '
                    f'Received: {value!r}.'
                ) from error
            if not groups:
                raise DataError(
                    '--person=name: needs a group in its regular expression, the part of the name '
                    f'that is the person, e.g. name:^([^_]+)_. Received: {value!r}.'
                )
        return cls(kind, value)

    def __str__(self) -> str:
        return f'{self.kind}:{self.value}' if self.value else self.kind


@dataclasses.dataclass(frozen=True)
class Identity:
    """What decides which person an image belongs to, wherever it is stored on this machine.

    Attributes:
      content: the rule and, for a table, its rows, which are private.
      public: the rule as text if that is all of it; None for a table.
    """

    content: bytes
    public: str | None

    @classmethod
    def of(cls, rule: Rule, table: Mapping[str, str] | None = None) -> Identity:
        """Makes the identity of a rule and, for a table, of its persons by file."""
        if rule.kind == 'csv':
            return cls(f'csv:{json.dumps(sorted(table.items()))}'.encode(), None)
        return cls(str(rule).encode('utf-8', 'surrogatepass'), str(rule))


def of_files(rule: Rule, root: pathlib.Path) -> tuple[Callable[[str, str], str], Identity]:
    """Makes the function that tells which person a file of a folder: data set belongs to.

    Args:
      rule: of the kind 'folder', 'csv', 'name' or 'dicom'.
      root: the folder of the data set. The rows of a table are relative to it, and so is the path
        of the table unless it is absolute.

    Returns:
      A function that maps an image's path, and its path below its class folder, to the person; and
      the identity of the rule. The function raises DataError, with the path, for an image without a
      person.

    Raises:
      DataError: if the rule is of another kind, or the table cannot be used.
    """
    if rule.kind == 'folder':
        found = _required(rule, lambda path, below: pathlib.PurePath(below).parts[:-1][:1])
        return found, Identity.of(rule)
    if rule.kind == 'name':
        pattern = re.compile(rule.value)

        def first_group(path, below):
            found = pattern.search(os.path.basename(path))
            return [found.group(1)] if found else []

        return _required(rule, first_group), Identity.of(rule)
    if rule.kind == 'csv':
        table = listing.read_table(root / files.expanded(rule.value), 'person', '--person')

        def in_table(path, below):
            name = pathlib.Path(os.path.relpath(path, root)).as_posix()
            return [table.get(listing.composed(name))]

        return _required(rule, in_table), Identity.of(rule, table)
    if rule.kind == 'dicom':
        return _required(rule, lambda path, below: [_patient(path)]), Identity.of(rule)
    raise DataError(f'--person={rule} is for TFDS data sets. A folder: data set takes {_FORMS}.')


def _required(rule: Rule, find: Callable[[str, str], Sequence[str | None]]):
    def person_of(path: str, below: str) -> str:
        found = [person for person in find(path, below) if person]
        if not found:
            raise DataError(
                f'{listing.shown(path)} has no person by --person={rule.kind}. Every image needs '
                'one: name it or remove the image.'
            )
        return listing.composed(found[0])

    return person_of


def _patient(path: str) -> str:
    """The PatientID of a DICOM file; '' if there is none."""
    try:
        return dicom.patient(path)
    except (OSError, dicom.DicomError) as error:
        raise DataError(f'{listing.shown(path)} has no person: {error}.') from error


def find_feature(
    rule: Rule, features: Any, name: str
) -> tuple[dict[str, Any], Callable[[Any], tf.Tensor]]:
    """Finds the feature of a TFDS data set that says which person a record belongs to.

    Args:
      rule: of the kind 'feature'; the name of a group with one feature in it stands for that.
      features: of the data set, a FeaturesDict.
      name: of the data set.

    Returns:
      The features to read, nested as in the data set, and how to take the person, string [], from a
      record.

    Raises:
      DataError: if there is no such feature, or it holds neither a whole number nor a text.
    """
    import tensorflow as tf  # Rules for folders do without it.

    if rule.kind != 'feature':
        raise DataError(
            f'--person={rule} is for folder: data sets. {name} takes the name of a feature.'
        )
    levels, feature = [], features
    for level in rule.value.split('/'):
        if not _is_group(feature) or level not in feature:
            raise DataError(
                f'{name} has no feature {rule.value!r} to use as --person. It has '
                f'{", ".join(_names(features)[:20])}.'
            )
        levels.append(level)
        feature = feature[level]
    if _is_group(feature) and len(feature) == 1:
        levels += list(feature)
        feature = feature[levels[-1]]
    is_number = not _is_group(feature) and feature.shape == () and feature.tf_dtype.is_integer
    is_text = not _is_group(feature) and feature.shape == () and feature.tf_dtype == tf.string
    if not (is_number or is_text):
        raise DataError(
            f'The feature {rule.value!r} of {name} cannot be a person: it must be one whole number '
            f'or text. Received: {", ".join(_names(feature)[:20]) or feature}.'
        )
    partial: Any = True
    for level in reversed(levels):
        partial = {level: partial}

    def take(record: Any) -> tf.Tensor:
        for level in levels:
            record = record[level]
        return tf.strings.as_string(record) if is_number else record

    return partial, take


def _is_group(feature: Any) -> bool:
    return hasattr(feature, 'keys')


def _names(features: Any, prefix: str = '') -> list[str]:
    if not _is_group(features):
        return [prefix] if prefix else []
    return [
        name
        for key in features
        for name in _names(features[key], f'{prefix}/{key}' if prefix else key)
    ]


def first_images(
    persons: np.ndarray, digests: np.ndarray, labels: np.ndarray, images_per_person: int
) -> np.ndarray:
    """Chooses which images are kept: those with the smallest hashes of each person.

    Args:
      persons: names, [N].
      digests: of the pixels, uint64 [N, 2]; see `split.digest`.
      labels: integers [N]; they decide between equal pixels.
      images_per_person: the largest number of images that a person keeps, at least 1.

    Returns:
      bool [N], which images are kept.
    """
    _, codes = np.unique(persons, return_inverse=True)
    order = np.lexsort([labels, digests[:, 1], digests[:, 0], codes])
    kept = np.zeros(len(persons), bool)
    counts: dict[int, int] = {}
    for i in order:
        counts[codes[i]] = counts.get(codes[i], 0) + 1
        kept[i] = counts[codes[i]] <= images_per_person
    return kept
