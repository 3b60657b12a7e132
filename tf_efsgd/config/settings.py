"""The settings of a run: frozen dataclasses, their absl flags, their validation.

Every setting is written once, as a dataclass field with its help; flags are made from the fields.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import math
import os
import pathlib
import re
from collections.abc import Sequence

from absl import flags


class ConfigError(ValueError):
    """A setting is wrong; the message is one line that says what to do."""


_DEFINE = {
    'string': flags.DEFINE_string,
    'integer': flags.DEFINE_integer,
    'float': flags.DEFINE_float,
    'boolean': flags.DEFINE_boolean,
}


def _setting(kind: str, default, text: str, choices: Sequence[str] | None = None):
    return dataclasses.field(
        default=default, metadata={'kind': kind, 'help': text, 'choices': choices}
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images."""

    dataset: str = _setting(
        'string',
        'mnist_10k',
        'mnist_10k (embedded: the 10,000 images of the MNIST test split), digits (from '
        'scikit-learn), mnist, fashion_mnist, celeb_a or any other TFDS name with images and '
        'labels, folder:PATH (PATH/<class>/*.{png,jpg} or PATH/train/<class>/...), idx:PATH.',
    )
    data_dir: str | None = _setting(
        'string', None, "Where TFDS keeps prepared data sets. Default: TFDS's own."
    )
    tfds_manual_dir: str | None = _setting(
        'string', None, 'Folder with files that you downloaded yourself, for TFDS to prepare.'
    )
    image_size: int | None = _setting(
        'integer',
        None,
        'Height and width to resize to, in pixels: 4 to 7 times a power of two. Default: native.',
    )
    channels: int | None = _setting(
        'integer',
        None,
        'Channels of the images, 1 or 3: 1 turns colours to grey, 3 repeats grey. Default: what '
        'the data set declares of itself; of folder: they are read off the records, once, and '
        'published: 3 when one of them has colours.',
    )
    classes: str | None = _setting(
        'string',
        None,
        'Names of all classes, separated by commas, or as a JSON list, or the path of a text file '
        'with one in each line; a record of another class is refused. Default: the class folders '
        'of folder:, empty ones too, or what the data set declares of itself; of idx: their number '
        'is read off the records, once, and published.',
    )
    label: str = _setting('string', 'Male', 'celeb_a: the attribute to use as the label.')
    limit_records: int | None = _setting(
        'integer',
        None,
        'Use about this many training records, chosen by a hash of their content (of all images of '
        'a person: of the person). Default: all.',
    )
    dataset_size: int | None = _setting(
        'integer',
        None,
        'Declared number of training records (before --limit_records), at least 1: public, like '
        'every flag. A rough one will do; it sets how often a record is sampled. With '
        '--images_per_person: of the images that persons keep. Default: they are counted, once, '
        'and the count is published.',
    )
    images_per_person: int | None = _setting(
        'integer',
        None,
        'At most so many images of a person are kept, at least 1, and epsilon is for a person '
        'instead of an image; more of them need more noise. Goes with --person. Default: every '
        'image counts for itself.',
    )
    person: str | None = _setting(
        'string',
        None,
        'Whose an image is, with --images_per_person: folder (PATH/<class>/<person>/...), csv:FILE '
        '(columns file and person; FILE and the files in it are relative to the folder of the data '
        'set), name:REGEX (the first group in the name of the file, e.g. name:^([^_]+)_), or a '
        'TFDS feature (identity for celeb_a).',
    )
    dataset_persons: int | None = _setting(
        'integer',
        None,
        'Declared number of persons in the training records, before --limit_records, with '
        '--images_per_person. Default: they are counted, once, and the count is published.',
    )
    read_off_records: str | None = _setting(
        'string',
        None,
        'Which of the settings above were read off the records, separated by commas: written into '
        'RUN/config.flags with them, for the privacy statement. Not to be given by hand.',
    )

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The declared classes; None when they are not declared."""
        return None if self.classes is None else parse_classes(self.classes)

    @property
    def read_off(self) -> tuple[str, ...]:
        """The names of the settings that were read off the records."""
        return tuple(self.read_off_records.split(',')) if self.read_off_records else ()


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """The mechanism and its budget."""

    private: bool = _setting(
        'boolean',
        True,
        '--noprivate trains without clipping and noise, for comparison; the run is then marked '
        'NOT PRIVATE.',
    )
    target_epsilon: float | None = _setting(
        'float',
        None,
        'Epsilon of the whole run, above 0; the noise is calibrated for it. Either this or '
        '--noise_multiplier.',
    )
    target_delta: float = _setting(
        'float',
        1e-5,
        'Delta, in (0, 1), and below 1 / number of records; with --images_per_person below 1 / '
        'number of persons.',
    )
    allow_large_delta: bool = _setting(
        'boolean',
        False,
        'Accept a --target_delta of 1 / number of records or more. A mechanism that gives one '
        'whole record away would pass it.',
    )
    noise_multiplier: float | None = _setting(
        'float', None, 'Noise over sensitivity of one step, above 0; epsilon is then reported.'
    )
    l2_norm_clip: float = _setting(
        'float', 1.0, "Length to which each record's gradient is clipped, 1e-9 to 1e9."
    )
    expected_batch_size: int = _setting(
        'integer',
        128,
        'Mean number of records in a step, at least 1. Larger: less noise, fewer epochs per '
        'epsilon, slower steps.',
    )
    train_steps: int = _setting('integer', 5000, 'Number of private steps, at least 1.')
    error_feedback: str = _setting(
        'string',
        'private',
        'private gives back later what clipping cut; none is plain DP-SGD; hidden is the published '
        'variant, for research: its buffer is not noised, so its true epsilon is large, its '
        'checkpoints are private and --target_epsilon takes far more noise.',
        ('private', 'none', 'hidden'),
    )
    residual_l2_norm_clip: float = _setting(
        'float',
        1.0,
        'Length to which what clipping cut of one gradient is clipped, 1e-9 to 1e9; of the '
        'size of what is cut. hidden: the largest norm given back in one step, in units of the '
        'sum.',
    )
    residual_share: float = _setting(
        'float',
        0.1,
        'Share of the budget (in 1/sigma^2) spent on the residual, in [0, 1); 0 is plain DP-SGD.',
    )
    feedback_decay: float = _setting(
        'float', 0.9, 'Part of the error buffer kept back at each step, in [0, 1).'
    )
    feedback_l2_norm_clip: float | None = _setting(
        'float', None, 'Largest norm given back in one step, above 0. Default: no limit.'
    )
    clip_fake: bool = _setting(
        'boolean', True, 'Clip gradients of generated images too, so that both sides pull alike.'
    )
    clipping: str = _setting(
        'string',
        'auto',
        'fast clips from one backward pass over the batch; vectorized takes a small one for every '
        'record, for layers without a rule; auto is fast where that is possible. The result is '
        'the same.',
        ('auto', 'fast', 'vectorized'),
    )
    warm_start_share: float = _setting(
        'float',
        0.0,
        'Share of the budget, in [0, 1], that is spent once before the first step: the generator '
        'is fitted to noised mean features of each class. In 1/sigma^2 of the one Gaussian release '
        'that would spend --target_epsilon alone; 1 leaves nothing for private steps, and none are '
        'run.',
    )
    warm_start_noise_multiplier: float | None = _setting(
        'float',
        None,
        'With --noise_multiplier, in place of a share: noise over sensitivity of the warm start, '
        'above 0. Default: no warm start.',
    )
    learned_features_share: float = _setting(
        'float',
        0.0,
        'Share of the warm start, at least 0 and below 1, for a second release: a small classifier '
        'learns from images of the generator that was fitted to the first, features of its layers '
        'are released like those of pixels, and the generator is fitted to both. 0 leaves it out.',
    )
    dataset_budget: float | None = _setting(
        'float',
        None,
        'Epsilon that all runs on this machine may spend together on these records, above 0: a '
        'run that would pass it is refused before it spends anything. Other runs are found in '
        '--state_dir by their records and count with all that they may spend, if they share any; '
        'of runs on more than 10,000 records a sample is kept, which can miss a few dozen shared '
        'ones. Default: no limit; the sum is shown.',
    )
    secure_noise: bool = _setting(
        'boolean',
        False,
        "Take every bit of noise and sampling from the operating system's cryptographic generator "
        'instead of Philox under a secret key; slower.',
    )
    log_nonprivate_diagnostics: bool = _setting(
        'boolean',
        False,
        'Write losses, gradient norms, clipping fractions and batch sizes on real records to '
        'RUN/nonprivate/logs. They are NOT covered by epsilon; steps take longer.',
    )

    @property
    def has_warm_start(self) -> bool:
        """Whether a generator is fitted to class sums before the first step."""
        return self.warm_start_share > 0 or self.warm_start_noise_multiplier is not None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The networks."""

    latent_dim: int = _setting('integer', 64, 'Size of the latent vector, at least 1.')
    generator_width: int = _setting(
        'integer', 64, 'Channels at the start of the generator, at least 1.'
    )
    discriminator_width: int = _setting(
        'integer',
        32,
        'Channels of the first layer of the discriminator, at least 1. Wider networks need '
        'more budget: the noise grows with the number of parameters.',
    )
    noise_injection: bool = _setting(
        'boolean', True, 'Inject noise after each upsampling of the generator.'
    )
    reconstruction: str = _setting(
        'string',
        'head',
        'What records are decoded back by, in the private step: head by a small head of the '
        'discriminator; generator by the generator, from a latent vector that the discriminator '
        'predicts (as in a variational autoencoder), so that it learns from records too, but then '
        'the noise is on all of its parameters as well: with networks of the usual size several '
        'times as much; none not at all.',
        ('head', 'generator', 'none'),
    )
    reconstruction_weight: float = _setting(
        'float',
        0.01,
        'Weight of the squared reconstruction error (with --reconstruction=generator: and of the '
        "latent vector's divergence) in a record's loss, not negative.",
    )
    generator_ema: float = _setting(
        'float', 0.99, "Decay of the generator's moving average per generator step, in [0, 1)."
    )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the networks are trained, and on what."""

    warm_start_steps: int = _setting(
        'integer',
        1500,
        'Generator steps of a warm start, at least 1. They cost no privacy; more make better '
        'images.',
    )
    learned_features_steps: int = _setting(
        'integer',
        3000,
        'Generator steps of the fit to both releases, at least 1, with --learned_features_share.',
    )
    warm_start_weight: float = _setting(
        'float',
        0.0,
        "Weight, not negative, of the distance to the warm start's class means in the generator's "
        'loss while private steps run, beside that of fooling the discriminator; 0 leaves it out.',
    )
    discriminator_only_steps: int = _setting(
        'integer',
        0,
        'First private steps without any of the generator, at least 0: after a warm start the '
        'discriminator has to catch up.',
    )
    discriminator_steps: int = _setting(
        'integer', 5, 'Private steps per generator step, at least; 1 to 64.'
    )
    adaptive_discriminator_steps: bool = _setting(
        'boolean',
        True,
        'Raise them, up to 64, while the discriminator falls behind on generated images.',
    )
    generator_learning_rate: float = _setting(
        'float', 1e-3, "Of Adam in the generator's own steps, above 0."
    )
    discriminator_learning_rate: float = _setting(
        'float',
        1e-3,
        'Of Adam in the private steps, above 0; with --reconstruction=generator it moves the '
        'generator there too.',
    )
    microbatch_size: int | None = _setting(
        'integer',
        None,
        'Records, and generated images beside them, that go through the networks at a time, at '
        'least 1: bounds the memory, not the result. Default: all of a step.',
    )
    seed: int = _setting(
        'integer',
        1,
        'Fixes what is public: initial weights, latents. Never the sampling or the DP noise.',
    )
    strategy: str = _setting(
        'string',
        'auto',
        'auto is mirrored when there are several GPUs (or --logical_devices), else one_device.',
        ('auto', 'one_device', 'mirrored'),
    )
    logical_devices: int = _setting(
        'integer', 1, 'Split the CPU into this many devices, to try --strategy=mirrored.'
    )


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What a run writes, and when."""

    run_dir: str | None = _setting(
        'string', None, 'Run folder; new or empty. Default: runs/<data set>-<time>.'
    )
    resume: bool = _setting(
        'boolean', False, 'Go on in --run_dir from its last checkpoint, with the same settings.'
    )
    change_mechanism: bool = _setting(
        'boolean',
        False,
        'With --resume: allow other privacy settings from now on. Epsilon is then the RDP filter '
        'of the plan at the start, which is larger; --target_epsilon must allow it.',
    )
    resume_unverified: bool = _setting(
        'boolean',
        False,
        'With --resume: go on although --state_dir remembers nothing of the run, as on another '
        'machine. Only the number, shape and classes of the records are compared then.',
    )
    state_dir: str | None = _setting(
        'string',
        None,
        "Where the fingerprint of a run's records, its ledger's last position, what it may spend "
        'on which records and classifiers of real images are kept, outside the run folder and for '
        'you alone; python -m tf_efsgd.state lists and removes it. Default: '
        '$XDG_STATE_HOME/tf_efsgd or ~/.local/state/tf_efsgd.',
    )
    checkpoint_steps: int = _setting(
        'integer',
        500,
        'Steps between checkpoints, private steps and those of the fit of the warm start, at '
        'least 1.',
    )
    log_steps: int = _setting(
        'integer',
        50,
        'Steps between log entries, and steps per reservation in the ledger (that of the first '
        'start of a run), at least 1.',
    )
    sample_steps: int = _setting('integer', 500, 'Steps between sample pictures, at least 1.')
    evaluate: bool = _setting(
        'boolean',
        True,
        'Measure the generator against real images at the end, into RUN/nonprivate: a short form '
        'of python -m tf_efsgd.evaluate.',
    )
    evaluation_images: int = _setting(
        'integer', 20000, 'Generated images that are measured, at least 100.'
    )
    evaluation_runs: int = _setting(
        'integer',
        1,
        'Classifiers that are trained for each score, at least 1; their spread needs 2.',
    )
    evaluation_epochs: int = _setting(
        'integer', 10, 'Passes of each of these classifiers over its images, at least 1.'
    )
    export: bool = _setting('boolean', True, 'Export the generator as a SavedModel at the end.')


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    data: DataConfig = DataConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    run: RunSettings = RunSettings()

    def __post_init__(self):
        """Checks every setting that can be checked without the data.

        Raises:
          ConfigError: if one is out of its range.
        """
        self._check_ranges()
        for group in _groups(self):
            for field in dataclasses.fields(group):
                value, choices = getattr(group, field.name), field.metadata['choices']
                if choices and value not in choices:
                    raise ConfigError(
                        f'--{field.name} must be one of {", ".join(choices)}. Received: {value}.'
                    )
        privacy = self.privacy
        given = (privacy.target_epsilon is not None) + (privacy.noise_multiplier is not None)
        # A run whose mechanism was changed may have both: a limit, and the noise of its next steps.
        if privacy.private and given != 1 and not (given == 2 and self.run.resume):
            given = 'neither' if privacy.target_epsilon is None else 'both'
            raise ConfigError(
                'Give either --target_epsilon (the noise is calibrated) or --noise_multiplier '
                f'(epsilon is reported). Received: {given}.'
            )
        self._check_data()
        self._check_warm_start()
        if self.run.resume and self.run.run_dir is None:
            raise ConfigError('--resume needs --run_dir, the folder of the run to go on with.')
        for name in ('change_mechanism', 'resume_unverified'):
            if getattr(self.run, name) and not self.run.resume:
                raise ConfigError(f'--{name} goes with --resume.')
        if self.training.strategy == 'one_device' and self.training.logical_devices > 1:
            raise ConfigError(
                '--logical_devices above 1 needs --strategy=mirrored. Received: '
                f'--strategy=one_device --logical_devices={self.training.logical_devices}.'
            )

    def _check_data(self):
        data = self.data
        if data.channels == 2:
            raise ConfigError('--channels must be 1 (grey) or 3 (colour). Received: 2.')
        if data.classes is not None:
            parse_classes(data.classes)
        if (data.person is None) != (data.images_per_person is None):
            missing = '--person' if data.person is None else '--images_per_person'
            raise ConfigError(
                '--person (whose an image is) and --images_per_person (how many of them are kept) '
                f'go together. Received: no {missing}.'
            )
        if data.dataset_persons is not None:
            if data.images_per_person is None:
                raise ConfigError(
                    '--dataset_persons goes with --images_per_person. Received: '
                    f'--dataset_persons={data.dataset_persons} alone.'
                )
            if data.dataset_size is not None and data.dataset_persons > data.dataset_size:
                raise ConfigError(
                    '--dataset_persons must be at most --dataset_size: every person has an image. '
                    f'Received: {data.dataset_persons} and {data.dataset_size}.'
                )
        unknown = [name for name in data.read_off if name not in _READ_OFF]
        if unknown:
            raise ConfigError(
                f'--read_off_records names settings among {", ".join(_READ_OFF)}. Received: '
                f'{data.read_off_records}.'
            )

    def with_public_facts_of(self, before: RunConfig) -> RunConfig:
        """What these settings leave open, as an earlier start of the run found it.

        Args:
          before: the settings of that start, from RUN/config.flags.

        Returns:
          The settings: what that start read off the records, and the classes, are taken from there
          when they are not given, so that they are never read off the records again.
        """
        left_open = {
            name: getattr(before.data, name)
            for name in ('classes', 'read_off_records', *before.data.read_off)
            if getattr(self.data, name) is None
        }
        return dataclasses.replace(self, data=dataclasses.replace(self.data, **left_open))

    def _check_warm_start(self):
        privacy = self.privacy
        if not privacy.private:
            return
        share, noise = privacy.warm_start_share, privacy.warm_start_noise_multiplier
        if share and privacy.target_epsilon is None:
            raise ConfigError(
                '--warm_start_share is a share of --target_epsilon, which is not given: give '
                f'--warm_start_noise_multiplier instead. Received: {share}.'
            )
        if noise is not None and (share or privacy.noise_multiplier is None):
            raise ConfigError(
                '--warm_start_noise_multiplier goes with --noise_multiplier; with --target_epsilon '
                f'give --warm_start_share. Received: {noise}.'
            )

    def _check_ranges(self):
        for group, name, low, high in _RANGES:
            value = getattr(getattr(self, group), name)
            if value is None:
                continue
            above = value >= low if isinstance(low, int) else value > low
            below = value < high if isinstance(high, float) else value <= high
            if not (math.isfinite(value) and above and below):
                raise ConfigError(f'--{name} must be {_describe(low, high)}. Received: {value}.')

    def to_flags(self, **instead) -> str:
        """What would repeat the run, as the text of a flagfile, defaults included.

        Where the run is, and whether it goes on and how, is left to the command line.

        Args:
          **instead: settings to show with another value; None leaves one out.
        """
        lines = []
        for group in _groups(self):
            for field in dataclasses.fields(group):
                value = instead.get(field.name, getattr(group, field.name))
                if value is None or field.name in _OF_ONE_START:
                    continue
                if field.metadata['kind'] == 'boolean':
                    lines.append(f'--{"" if value else "no"}{field.name}')
                else:
                    lines.append(f'--{field.name}={value}')
        return '\n'.join(lines) + '\n'


# Settings that may be read off the records, when they are not given.
_READ_OFF = ('classes', 'channels', 'image_size', 'dataset_size', 'dataset_persons')

# Settings of one start, not of the run.
_OF_ONE_START = ('run_dir', 'resume', 'change_mechanism', 'resume_unverified', 'state_dir')

_ANY = math.inf
# (group, name, lowest, highest). An int bound is included, a float bound is not.
_RANGES = (
    ('data', 'image_size', 4, _ANY),
    ('data', 'limit_records', 1, _ANY),
    ('data', 'dataset_size', 1, _ANY),
    ('data', 'channels', 1, 3),
    ('data', 'images_per_person', 1, _ANY),
    ('data', 'dataset_persons', 1, _ANY),
    ('privacy', 'target_epsilon', 0.0, _ANY),
    ('privacy', 'target_delta', 0.0, 1.0),
    ('privacy', 'noise_multiplier', 0.0, _ANY),
    ('privacy', 'l2_norm_clip', 1e-9, 1e9),
    ('privacy', 'expected_batch_size', 1, _ANY),
    ('privacy', 'train_steps', 1, _ANY),
    ('privacy', 'residual_l2_norm_clip', 1e-9, 1e9),
    ('privacy', 'residual_share', 0, 1.0),
    ('privacy', 'feedback_decay', 0, 1.0),
    ('privacy', 'feedback_l2_norm_clip', 1e-9, 1e9),
    ('privacy', 'warm_start_share', 0, 1),
    ('privacy', 'warm_start_noise_multiplier', 0.0, _ANY),
    ('privacy', 'learned_features_share', 0, 1.0),
    ('privacy', 'dataset_budget', 0.0, _ANY),
    ('model', 'latent_dim', 1, _ANY),
    ('model', 'generator_width', 1, _ANY),
    ('model', 'discriminator_width', 1, _ANY),
    ('model', 'reconstruction_weight', 0, _ANY),
    ('model', 'generator_ema', 0, 1.0),
    ('training', 'warm_start_steps', 1, _ANY),
    ('training', 'learned_features_steps', 1, _ANY),
    ('training', 'warm_start_weight', 0, _ANY),
    ('training', 'discriminator_only_steps', 0, _ANY),
    ('training', 'discriminator_steps', 1, 64),
    ('training', 'generator_learning_rate', 0.0, _ANY),
    ('training', 'discriminator_learning_rate', 0.0, _ANY),
    ('training', 'microbatch_size', 1, _ANY),
    ('training', 'seed', 0, 2**31 - 1),
    ('training', 'logical_devices', 1, 64),
    ('run', 'checkpoint_steps', 1, _ANY),
    ('run', 'log_steps', 1, _ANY),
    ('run', 'sample_steps', 1, _ANY),
    ('run', 'evaluation_images', 100, _ANY),
    ('run', 'evaluation_runs', 1, _ANY),
    ('run', 'evaluation_epochs', 1, _ANY),
)


def _describe(low, high) -> str:
    least = f'at least {low}' if isinstance(low, int) else f'above {low:g}'
    if high == _ANY:
        return f'{least} and finite'
    return f'{least} and {"below" if isinstance(high, float) else "at most"} {high:g}'


def _groups(config: RunConfig):
    return [getattr(config, field.name) for field in dataclasses.fields(config)]


def define_flags(flag_values: flags.FlagValues = flags.FLAGS, **only) -> list[str]:
    """Defines one absl flag per setting.

    Args:
      flag_values: where.
      **only: settings to define, by name, with the default they have there. None means all, with
        their own.

    Returns:
      Their names.
    """
    names = []
    for group in _groups(_defaults()):
        for field in dataclasses.fields(group):
            if only and field.name not in only:
                continue
            text = field.metadata['help']
            if field.metadata['choices']:
                text = f'<{"|".join(field.metadata["choices"])}>: {text}'
            default = only.get(field.name, field.default)
            _DEFINE[field.metadata['kind']](field.name, default, text, flag_values=flag_values)
            names.append(field.name)
    return names


def _defaults() -> RunConfig:
    """The default of every setting; they alone are no valid run: a budget is missing."""
    return RunConfig(privacy=PrivacyConfig(noise_multiplier=1.0))


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> RunConfig:
    """Reads the settings from parsed flags.

    Raises:
      ConfigError: if one is wrong.
    """
    groups = {
        field.name: type(group)(
            **{f.name: flag_values[f.name].value for f in dataclasses.fields(group)}
        )
        for field, group in zip(dataclasses.fields(RunConfig), _groups(_defaults()))
    }
    data = groups['data']
    if data.classes is not None:  # So that the file, if they come from one, need not stay.
        classes = join_classes(parse_classes(data.classes))
        groups['data'] = dataclasses.replace(data, classes=classes)
    return RunConfig(**groups)


# Names that may stand between commas in a flagfile as they are.
_PLAIN = re.compile(r'[\w.+()-]+( +[\w.+()-]+)*', re.ASCII)


def parse_classes(text: str) -> tuple[str, ...]:
    """Reads the value of --classes.

    Args:
      text: names separated by commas, a JSON list of names, or the path of a text file with a name
        in each line. Without a comma it is a path, or a name when there is no such file and it does
        not look like one.

    Returns:
      The names, at least one, in their order.

    Raises:
      ConfigError: if it is none of these, or a name is empty or there twice.
    """
    if text.startswith('['):
        try:
            names = json.loads(text)
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                '--classes that start with [ must be a JSON list of names, e.g. ["a", "b, c"]. '
                f'Received: {text[:100]}.'
            )
    elif ',' in text:
        names = [name.strip() for name in text.split(',')]
    else:
        names = _read_classes(text)
    if not names or not all(names) or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        fault = f'{twice[0]!r} twice' if twice else 'an empty name' if names else 'no name'
        raise ConfigError(
            f'--classes must be at least one name, each once and none empty. Received: {fault}.'
        )
    return tuple(names)


def _read_classes(text: str) -> list[str]:
    path = pathlib.Path(text).expanduser()
    if os.path.isfile(path):
        try:
            lines = path.read_text(encoding='utf-8-sig').split('\n')
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f'--classes: {path} cannot be read as UTF-8: {error}.') from error
        return [line.strip() for line in lines if line.strip()]
    if '/' in text or path.suffix in ('.txt', '.csv'):
        raise ConfigError(
            f'--classes: there is no file {text}. Give names separated by commas, or the path of a '
            'text file with one in each line.'
        )
    return [text.strip()]


def join_classes(names: Sequence[str]) -> str:
    """A value of --classes that stands for these names, also as a line of a flagfile."""
    if len(names) > 1 and all(_PLAIN.fullmatch(name) for name in names):
        return ','.join(names)
    return json.dumps(list(names))


def from_flagfile(text: str) -> RunConfig:
    """Reads the settings from the text of a flagfile, as `RunConfig.to_flags` writes it.

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
    return from_flags(flag_values)


def config_dirs() -> list[pathlib.Path]:
    """Where a bare --flagfile name is looked up, in order."""
    installed = importlib.resources.files('tf_efsgd').joinpath('configs')
    checkout = pathlib.Path(__file__).resolve().parents[2] / 'configs'
    return [pathlib.Path.cwd(), pathlib.Path(str(installed)), checkout]


def find_flagfiles(arguments: Sequence[str]) -> list[str]:
    """Replaces bare --flagfile names by the paths of the files they mean.

    A name without a folder is looked up in the working folder, then in the installed configs.

    Args:
      arguments: command-line arguments.

    Returns:
      The arguments, `--flagfile NAME` as `--flagfile=PATH`.

    Raises:
      ConfigError: if there is no such file.
    """
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ('--flagfile', '-flagfile') and rest:
            argument = f'--flagfile={rest.pop(0)}'
        if argument.startswith(('--flagfile=', '-flagfile=')):
            argument = f'--flagfile={_find_flagfile(argument.split("=", 1)[1])}'
        found.append(argument)
    return found


def _find_flagfile(name: str) -> pathlib.Path:
    path = pathlib.Path(name).expanduser()
    bare = path.name == name
    candidates = [folder / name for folder in config_dirs()] if bare else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted({p.name for folder in config_dirs()[1:] for p in folder.glob('*.flags')})
    raise ConfigError(
        f'There is no flagfile {name!r}. Give a path, or one of {", ".join(known) or "none"}.'
    )
