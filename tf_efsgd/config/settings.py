"""All settings of a run together: `RunConfig`, and the checks across its groups.

Every setting is written once, as a field of its group in `config.groups`, with its help, range,
choices and resume rule. What can be checked within one group is checked there.
"""

from __future__ import annotations

import dataclasses

from tf_efsgd.config import fields
from tf_efsgd.config.fields import ConfigError
from tf_efsgd.config.groups.data import DataConfig
from tf_efsgd.config.groups.model import ModelConfig
from tf_efsgd.config.groups.privacy import PrivacyConfig
from tf_efsgd.config.groups.run import RunSettings
from tf_efsgd.config.groups.training import TrainingConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run, in groups."""

    data: DataConfig = DataConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    run: RunSettings = RunSettings()

    def __post_init__(self):
        """Checks every setting that can be checked without the data.

        Raises:
          ConfigError: if a setting is out of its range, or settings contradict each other.
        """
        self._check_precision()
        for group in groups_of(self):
            for field in dataclasses.fields(group):
                fields.check(field, getattr(group, field.name))
        self.run.check_together()
        self._check_budget()
        self.data.check_together()
        self._check_heads()
        self.privacy.check_together()
        self.training.check_together()

    def _check_budget(self):
        privacy = self.privacy
        given = (privacy.target_epsilon is not None) + (privacy.noise_multiplier is not None)
        # A run whose mechanism was changed may have both: a limit, and the noise of its next steps.
        if privacy.private and given != 1 and not (given == 2 and self.run.resume):
            received = 'neither' if privacy.target_epsilon is None else 'both'
            raise ConfigError(
                'Give either --target_epsilon (the noise is calibrated) or --noise_multiplier '
                f'(epsilon is reported). Received: {received}.'
            )

    def _check_precision(self):
        precision = self.training.mixed_precision
        if precision == 'float16':
            raise ConfigError(
                '--mixed_precision=float16 is not offered: small gradients would become 0 without '
                'loss scaling. Give bfloat16, which has the range of float32, or none.'
            )
        if precision != 'none' and self.model.reconstruction == 'generator':
            raise ConfigError(
                f'--mixed_precision={precision} does not go with --reconstruction=generator: the '
                'generator then sees records, and what sees records computes in float32. Give '
                '--mixed_precision=none, or another --reconstruction.'
            )

    def _check_heads(self):
        model = self.model
        if model.discriminator == 'public_heads' and model.reconstruction == 'generator':
            raise ConfigError(
                '--reconstruction=generator needs a discriminator that sees images: give '
                '--discriminator=pixels, or --reconstruction=head or none. '
                'Received: --discriminator=public_heads.'
            )

    def with_public_facts_of(self, before: RunConfig) -> RunConfig:
        """Fills in what these settings leave open from an earlier start of the same run.

        Args:
          before: the settings of that start, from RUN/config.flags.

        Returns:
          The settings. The classes, and what that start read off the records, are taken from
          `before` where they are not given here, so that they are never read off the records again.
        """
        left_open = {
            name: getattr(before.data, name)
            for name in ('classes', 'read_off_records', *before.data.read_off)
            if getattr(self.data, name) is None
        }
        return dataclasses.replace(self, data=dataclasses.replace(self.data, **left_open))

    def to_flags(self, **instead) -> str:
        """Returns the text of a flagfile that would repeat the run, defaults included.

        Settings of one start (where the run is, whether and how it is resumed) are left out.
        The order of the lines is part of the settings' hash in ledgers: it must not change.

        Args:
          **instead: settings to show with another value; None leaves one out.
        """
        lines = []
        for group in groups_of(self):
            for field in dataclasses.fields(group):
                value = instead.get(field.name, getattr(group, field.name))
                if value is None or field.metadata['on_resume'] == 'one_start':
                    continue
                if field.metadata['kind'] == 'boolean':
                    lines.append(f'--{"" if value else "no"}{field.name}')
                else:
                    lines.append(f'--{field.name}={value}')
        return '\n'.join(lines) + '\n'


def groups_of(config: RunConfig) -> list:
    """The groups of settings, in the order of `RunConfig`."""
    return [getattr(config, field.name) for field in dataclasses.fields(config)]
