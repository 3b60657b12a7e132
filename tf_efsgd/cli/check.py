"""Looks at your images before anything is trained: tf-efsgd check PATH.

It says what is in the folder, what cannot be read and why, what size to train at, what images to
expect and how long training takes. It writes nothing and spends nothing.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from tf_efsgd import config, files
from tf_efsgd.cli import arguments
from tf_efsgd.config import expectations, recipes
from tf_efsgd.data import records
from tf_efsgd.data import survey as surveys

_EPSILONS = (10.0, 1.0)
_FLAGS = ('dataset', 'classes', 'label', 'bits', 'person', 'images_per_person', 'minutes')


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags and returns their names."""
    defaults = {
        field.name: field.default
        for group in (config.DataConfig, config.TrainingConfig)
        for field in dataclasses.fields(group)
    }
    chosen = {name: defaults[name] for name in _FLAGS} | {'dataset': None}
    return config.define_flags(flag_values, **chosen)


def look(flag_values: flags.FlagValues) -> surveys.Survey | None:
    """Looks at the folder that --dataset names; None if it is not a folder: data set.

    Raises:
      ConfigError: if there is no such folder, or it holds no images that can be used.
    """
    for group in (config.DataConfig, config.TrainingConfig):
        for field in dataclasses.fields(group):
            if field.name in _FLAGS and field.name != 'dataset':
                config.check_field(field, flag_values[field.name].value)
    if flag_values['person'].value is not None:
        from tf_efsgd.data import persons  # It loads what reads images.

        try:
            persons.Rule.parse(flag_values['person'].value)
        except records.DataError as error:
            raise config.ConfigError(f'--person: {error}') from error
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
            has_folders_of_persons=flag_values['person'].value == 'folder',
        )
    except records.DataError as error:
        raise config.ConfigError(str(error)) from error
    if not found.images:
        raise config.ConfigError(
            f'No image in {path} can be read, e.g. {found.unreadable[0]}. Repair or replace them.'
        )
    return found


def answer(flag_values: flags.FlagValues) -> str:
    """Returns the lines about the folder that the flags name.

    Raises:
      ConfigError: as in `look`.
    """
    found = look(flag_values)
    if found is None:
        raise config.ConfigError(
            'tf-efsgd check takes the path of a folder with images. Received: '
            f'{flag_values["dataset"].value or "none"}.'
        )
    return '\n'.join([*found.lines(), *_advice(found, flag_values)])


def _advice(found: surveys.Survey, flag_values: flags.FlagValues) -> list[str]:
    size = recipes.image_size(found.usual_side) or found.usual_side
    lines = [f'Suggested size: {size}x{size} (most images are about {found.usual_side} pixels).']
    facts = {'records': found.trained_on, 'classes': len(found.class_names)}
    words = [
        expectations.expect(**facts, channels=found.channels, epsilon=epsilon)
        for epsilon in _EPSILONS
    ]
    large, small = (f'{budget:g}' for budget in _EPSILONS)
    if words[0] == words[1]:
        text = f'At epsilon = {large} and at {small} expect {words[0]}'
    else:
        text = f'At epsilon = {large} expect {words[0]}, at epsilon = {small} {words[1]}'
    lines.append(f'{text}; about {flag_values["minutes"].value} minutes (--minutes).')
    if flag_values['images_per_person'].value is None:
        how = ' (--person=dicom takes the PatientID)' if found.has_patients else ''
        lines.append(
            f'Is there more than one image of a person? Then give --images_per_person{how}.'
        )
    return lines


def _main() -> None:
    with arguments.one_line_errors():
        print(answer(flags.FLAGS))


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, define_flags, positional=arguments.PATH, first=_FLAGS)
