"""Choices of a setting are those of the code that it is for, which the settings cannot import."""

import dataclasses

import pytest
from absl import flags

from tf_efsgd import config
from tf_efsgd.cli import audit, generate
from tf_efsgd.config import recipes
from tf_efsgd.export import formats, synthetic_data
from tf_efsgd.models import discriminator, generator, public_network
from tf_efsgd.privacy import mechanism
from tf_efsgd.training import private_model


@pytest.mark.parametrize(
    ('group', 'setting', 'wanted'),
    [
        (config.PrivacyConfig, 'error_feedback', mechanism.ERROR_FEEDBACK_MODES),
        (config.PrivacyConfig, 'clipping', private_model.CLIPPINGS),
        (config.TrainingConfig, 'jit_compile', private_model.COMPILING),
        (config.ModelConfig, 'reconstruction', discriminator.RECONSTRUCTIONS),
        (config.ModelConfig, 'generator', ('auto', *generator.ARCHITECTURES)),
    ],
)
def test_choices_of_a_setting(group, setting, wanted):
    (field,) = [f for f in dataclasses.fields(group) if f.name == setting]
    assert sorted(field.metadata['choices']) == sorted(wanted)


def test_choices_of_the_audit():
    values = flags.FlagValues()
    audit.define_flags(values)
    wanted = (*mechanism.ERROR_FEEDBACK_MODES, 'all')
    assert sorted(values['error_feedback'].parser.enum_values) == sorted(wanted)


@pytest.mark.parametrize(
    ('flag', 'wanted'),
    [('format', formats.FORMATS), ('balance', synthetic_data.BALANCES)],
)
def test_choices_of_a_data_set_to_share_stand_in_the_help(flag, wanted):
    values = flags.FlagValues()
    generate.define_flags(values)
    assert values[flag].help.startswith(f'<{"|".join(wanted)}>: ')
    assert values[flag].default in wanted


def test_the_recipe_names_the_network_that_comes_with_the_package():
    assert recipes.PUBLIC_NETWORK == public_network.NAME
