"""The settings of a run: what they are, their flags, and where flagfiles are found."""

from tf_efsgd.config.classes import join_classes, parse_classes
from tf_efsgd.config.fields import ConfigError
from tf_efsgd.config.fields import check as check_field
from tf_efsgd.config.flagfiles import config_dirs, find_flagfiles, read_flagfiles
from tf_efsgd.config.flags import (
    define_flags,
    from_flagfile,
    from_flags,
    given_flags,
    names_by_group,
    parse_given,
)
from tf_efsgd.config.resume import (
    MOVABLE,
    OWN_PLACES,
    PLACED_DATASETS,
    forbidden_changes,
    lasting_changes,
    settings_hash,
    without_place,
)
from tf_efsgd.config.settings import (
    DataConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    RunSettings,
    TrainingConfig,
)

__all__ = [
    'ConfigError',
    'DataConfig',
    'MOVABLE',
    'ModelConfig',
    'OWN_PLACES',
    'PLACED_DATASETS',
    'PrivacyConfig',
    'RunConfig',
    'RunSettings',
    'TrainingConfig',
    'check_field',
    'config_dirs',
    'define_flags',
    'find_flagfiles',
    'forbidden_changes',
    'from_flagfile',
    'from_flags',
    'given_flags',
    'join_classes',
    'lasting_changes',
    'names_by_group',
    'parse_classes',
    'parse_given',
    'read_flagfiles',
    'settings_hash',
    'without_place',
]
