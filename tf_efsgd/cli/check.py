"""Looks at your images before anything is trained: tf-efsgd check PATH.

It says what is in the folder, what cannot be read and why, what size to train at, what images to
expect and how long training takes. It writes nothing and spends nothing. What it prints is PRIVATE:
it names and counts files, and is meant for you at the terminal; so is what --json prints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from tf_efsgd import config, files
from tf_efsgd.cli import arguments
from tf_efsgd.config import expectations, recipes
from tf_efsgd.data import records
from tf_efsgd.data import survey as surveys

_EPSILONS = (10.0, 1.0)
_FLAGS = ('dataset', 'classes', 'label', 'bits', 'person', 'images_per_person', 'minutes')
# What a user is about to train with, so that the answer is about that run.
_OF_TRAINING = ('target_epsilon', 'image_size', 'skip_unreadable')
# What these mean for a folder, the only kind of data set that is looked at.
_HELPS = {
    'dataset': 'The folder to look at: folder:PATH, which PATH alone means, too. Images of any '
    'usual kind in PATH/<class>/, or in PATH/train/<class>/ and PATH/test/<class>/, or all in PATH '
    '(one class).',
    'classes': 'Names of all classes: separated by commas, as a JSON list, or the path of a text '
    'file with one name in each line. A record of another class is refused. Default: the class '
    'folders, also empty ones.',
    'label': 'What the label of an image is. csv:FILE: a table with the columns file and label '
    '(FILE and the files in it are relative to the folder). Default: class folders are the labels.',
    'person': 'How the person of an image is found, with --images_per_person: folder '
    '(PATH/<class>/<person>/...), csv:FILE (a table with the columns file and person; FILE and the '
    'files in it are relative to the folder), name:REGEX (the first group in the name of the file, '
    'e.g. name:^([^_]+)_) or dicom (the PatientID in the file).',
}
_PRIVATE = 'PRIVATE: names and counts of files, for the terminal and not for publication'
_GROUPS = (config.DataConfig, config.PrivacyConfig, config.TrainingConfig)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags and returns their names."""
    config.define_flags(flag_values)  # All of them: what is checked may have a file of flags.
    for name, value in {'dataset': None, 'label': ''}.items():
        flag_values.set_default(name, value)
    for name, text in _HELPS.items():
        flag_values[name].help = text
    return [*_FLAGS, *_OF_TRAINING, *arguments.define_output_flags(flag_values)]


def look(flag_values: flags.FlagValues) -> surveys.Survey | None:
    """Looks at the folder that --dataset names; None if it is not a folder: data set.

    Raises:
      ConfigError: if there is no such folder, or it holds no images that can be used.
    """
    _check_fields(flag_values, _FLAGS)
    rule = None
    if flag_values['person'].value is not None:
        from tf_efsgd.data import persons  # It loads what reads images.

        try:
            rule = persons.Rule.parse(flag_values['person'].value)
        except records.DataError as error:
            raise config.ConfigError(str(error)) from error
    scheme, _, path = (flag_values['dataset'].value or '').partition(':')
    if scheme != 'folder':
        return None
    root = files.expanded(path)
    if not path or not root.is_dir():
        raise config.ConfigError(f'There is no folder {path!r}. Give the path of one.')
    classes = flag_values['classes'].value
    try:
        found = surveys.survey(
            root,
            None if classes is None else config.parse_classes(classes),
            flag_values['label'].value or '',
            flag_values['bits'].value,
            person=rule,
            images_per_person=flag_values['images_per_person'].value,
        )
    except records.DataError as error:
        raise config.ConfigError(str(error)) from error
    if not found.images:
        raise config.ConfigError(
            f'No image in {path} can be read, e.g. {found.unreadable[0]}. Repair or replace them.'
        )
    return found


def _check_fields(flag_values: flags.FlagValues, names: Sequence[str]) -> None:
    for group in _GROUPS:
        for field in dataclasses.fields(group):
            if field.name in names and field.name != 'dataset':
                config.check_field(field, flag_values[field.name].value)


def answer(flag_values: flags.FlagValues) -> str:
    """Does what `find` does, and returns only the lines."""
    return find(flag_values)[1]


def find(flag_values: flags.FlagValues) -> tuple[dict[str, Any], str]:
    """Looks at the folder that the flags name.

    Returns:
      (JSON values by name, the same as lines); both are private.

    Raises:
      ConfigError: as in `look`.
    """
    _check_fields(flag_values, _OF_TRAINING)
    together = ('image_size', 'person', 'images_per_person', 'classes')
    config.DataConfig(**{name: flag_values[name].value for name in together}).check_together()
    found = look(flag_values)
    if found is None:
        raise config.ConfigError(
            'tf-efsgd check takes the path of a folder with images. Received: '
            f'{flag_values["dataset"].value or "none"}.'
        )
    lines = found.lines(skips_unreadable=flag_values['skip_unreadable'].value)
    size = flag_values['image_size'].value
    if size is None:
        size = recipes.image_size(found.usual_side) or found.usual_side
    expected = _expected(found, flag_values['target_epsilon'].value)
    result = {
        'note': _PRIVATE,
        **dataclasses.asdict(found),
        'images': found.images,
        'image_size': size,
        'expected': [{'epsilon': epsilon, 'words': words} for epsilon, words in expected.items()],
        'minutes': flag_values['minutes'].value,
    }
    return result, '\n'.join([*lines, *_advice(found, flag_values, size, expected)])


def _expected(found: surveys.Survey, target: float | None) -> dict[float, str]:
    """What images to expect, in words, by epsilon."""
    facts = {'records': found.trained_on, 'classes': len(found.class_names)}
    return {
        epsilon: expectations.expect(**facts, channels=found.channels, epsilon=epsilon)
        for epsilon in (_EPSILONS if target is None else (target,))
    }


def _advice(
    found: surveys.Survey, flag_values: flags.FlagValues, size: int, expected: dict[float, str]
) -> list[str]:
    usual = f'(most images are about {found.usual_side} pixels)'
    if flag_values['image_size'].value is None:
        lines = [f'Suggested size: {size}x{size} {usual}.']
    else:
        lines = [f'They are resized to {size}x{size} {usual}.']
    budgets, words = [f'{budget:g}' for budget in expected], list(expected.values())
    if len(set(words)) == 1:
        text = f'At epsilon = {" and at ".join(budgets)} expect {words[0]}'
    else:
        text = f'At epsilon = {budgets[0]} expect {words[0]}, at epsilon = {budgets[1]} {words[1]}'
    lines.append(f'{text}; about {flag_values["minutes"].value} minutes (--minutes).')
    if flag_values['images_per_person'].value is None:
        how = ' (--person=dicom takes the PatientID)' if found.has_patients else ''
        lines.append(
            f'Is there more than one image of a person? Then give --images_per_person{how}.'
        )
    return lines


def _main() -> None:
    with arguments.one_line_errors():
        with arguments.only_the_result(flags.FLAGS):
            found, text = find(flags.FLAGS)
        arguments.show(found, text, flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, define_flags, positional=arguments.PATH, first=_FLAGS + _OF_TRAINING)
