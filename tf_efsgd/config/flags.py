"""Makes absl flags from the fields of the settings, and settings from the flags."""

from __future__ import annotations

import dataclasses

from absl import flags

from tf_efsgd.config import fields
from tf_efsgd.config.classes import join_classes, parse_classes
from tf_efsgd.config.fields import ConfigError
from tf_efsgd.config.settings import PrivacyConfig, RunConfig, groups_of

_DEFINE = {
    'string': flags.DEFINE_string,
    'integer': flags.DEFINE_integer,
    'float': flags.DEFINE_float,
    'boolean': flags.DEFINE_boolean,
}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS, **only) -> list[str]:
    """Defines one absl flag per setting.

    Args:
      flag_values: where to define them.
      **only: the settings to define, by name, with the default they have there; without any, all
        settings with their own defaults.

    Returns:
      The names of the flags.
    """
    names = []
    for group in groups_of(_defaults()):
        for field in dataclasses.fields(group):
            if only and field.name not in only:
                continue
            default = only.get(field.name, field.default)
            define = _DEFINE[field.metadata['kind']]
            define(field.name, default, fields.help_of(field), flag_values=flag_values)
            names.append(field.name)
    return names


def _defaults() -> RunConfig:
    """The default of every setting, and a noise multiplier: without a budget they are not valid."""
    return RunConfig(privacy=PrivacyConfig(noise_multiplier=1.0))


def names_by_group() -> dict[str, list[str]]:
    """The names of all settings by their groups: data, privacy, model, training, run."""
    groups = zip(dataclasses.fields(RunConfig), groups_of(_defaults()))
    return {field.name: [f.name for f in dataclasses.fields(group)] for field, group in groups}


def given_flags(flag_values: flags.FlagValues = flags.FLAGS) -> frozenset[str]:
    """The names of the settings that the command line or its flagfiles gave."""
    names = (field.name for group in groups_of(_defaults()) for field in dataclasses.fields(group))
    return frozenset(name for name in names if flag_values[name].present)


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> RunConfig:
    """Reads the settings from parsed flags.

    Raises:
      ConfigError: if one is wrong.
    """
    groups = {
        field.name: type(group)(
            **{f.name: flag_values[f.name].value for f in dataclasses.fields(group)}
        )
        for field, group in zip(dataclasses.fields(RunConfig), groups_of(_defaults()))
    }
    data = groups['data']
    if data.classes is not None:  # If the names come from a file, it need not be kept.
        classes = join_classes(parse_classes(data.classes))
        groups['data'] = dataclasses.replace(data, classes=classes)
    return RunConfig(**groups)


def from_flagfile(text: str) -> RunConfig:
    """Reads the settings from the text of a flagfile, as `RunConfig.to_flags` writes it.

    Raises:
      ConfigError: if one is wrong.
    """
    return parse_given(text)[0]


def parse_given(text: str) -> tuple[RunConfig, frozenset[str]]:
    """Reads the settings from the text of a flagfile, with the names of those that it gives.

    Args:
      text: as in `from_flagfile`.

    Returns:
      (the settings, the names of the settings that the text gives).

    Raises:
      ConfigError: if one is wrong.
    """
    flag_values = flags.FlagValues()
    define_flags(flag_values)
    lines = [line.strip() for line in text.splitlines()]
    arguments = [line for line in lines if line and not line.startswith(('#', '//'))]
    try:
        rest = flag_values(['flagfile', *arguments])
    except flags.Error as error:
        raise ConfigError(' '.join(str(error).split())) from error
    if len(rest) > 1:  # absl stops reading there.
        raise ConfigError(f'Settings are flags, --name=value. Received: {rest[1]}')
    return from_flags(flag_values), given_flags(flag_values)
