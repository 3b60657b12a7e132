"""The settings of a run: what they are, their flags, where flagfiles are."""

from tf_efsgd.config.settings import (
    ConfigError,
    DataConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    RunSettings,
    TrainingConfig,
    config_dirs,
    define_flags,
    find_flagfiles,
    from_flagfile,
    from_flags,
    join_classes,
    parse_classes,
)

__all__ = [
    'ConfigError',
    'DataConfig',
    'ModelConfig',
    'PrivacyConfig',
    'RunConfig',
    'RunSettings',
    'TrainingConfig',
    'config_dirs',
    'define_flags',
    'find_flagfiles',
    'from_flagfile',
    'from_flags',
    'join_classes',
    'parse_classes',
]
