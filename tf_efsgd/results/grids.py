"""The named grids, as data: the runs behind the tables of the README."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tf_efsgd import config


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: the same settings with several seeds.

    Attributes:
      name: name of its folder and its picture.
      title: a description for a person.
      flagfile: name of the config that it starts from.
      changes: flags that follow the config.
      baseline: name of the row of the same grid that it is compared with; None for that row.
      unproven: whether to run without a target, with the noise that plain DP-SGD accounting asks
        for at the config's target_epsilon. This is for a mechanism to which that accounting does
        not apply, and needs --dataset_size among the flags.
    """

    name: str
    title: str
    flagfile: str
    changes: tuple[str, ...] = ()
    baseline: str | None = None
    unproven: bool = False


_DATA_SETS = (('mnist', 'MNIST'), ('fashion_mnist', 'Fashion-MNIST'))
# Every row switches these on, whatever the configs say, unless its own flags switch them off.
_THREE_IDEAS = ('--error_feedback=private', '--reconstruction=head', '--noise_injection')
_NO_IDEA = ('--error_feedback=none', '--reconstruction=none', '--nonoise_injection')
# (name, title, flags). The others are compared with the first.
_VARIANTS = (
    ('all', 'all three ideas', ()),
    ('no_error_feedback', 'without error feedback', ('--error_feedback=none',)),
    ('no_reconstruction', 'without reconstruction', ('--reconstruction=none',)),
    ('no_noise_injection', 'without noise injection', ('--nonoise_injection',)),
    (
        'dp_sgd_gan',
        'none of them, no warm start: a DP-SGD GAN',
        (*_NO_IDEA, '--warm_start_share=0'),
    ),
    ('no_warm_start', 'without the warm start', ('--warm_start_share=0',)),
    ('warm_start_alone', 'the warm start alone', ('--warm_start_share=1',)),
    (
        'hidden',
        'hidden error feedback (DiceSGD): NOT PRIVATE at the unproven ε',
        # The training splits of both have 60,000 images.
        ('--error_feedback=hidden', '--dataset_size=60000'),
    ),
    ('non_private', 'without clipping and noise: NOT PRIVATE', ('--noprivate',)),
)

# A GAN without a warm start, where error feedback has the most steps to act in.
_FROM_SCRATCH = (
    '--reconstruction=head',
    '--noise_injection',
    '--warm_start_share=0',
    '--train_steps=6000',
    '--discriminator_only_steps=0',
    '--discriminator_steps=4',
    '--adaptive_discriminator_steps',
    '--generator_learning_rate=1e-3',
    '--discriminator_learning_rate=1e-3',
    '--generator_ema=0.99',
    '--checkpoint_steps=1500',
)
_SCRATCH_VARIANTS = (
    ('without', 'DP-SGD, no error feedback', '--error_feedback=none'),
    ('with', 'error feedback', '--error_feedback=private'),
)

GRIDS = {
    'main': tuple(
        Row(f'{data}{suffix}', f'{title}, ε = {epsilon}', f'{data}{suffix}.flags')
        for data, title in _DATA_SETS
        for suffix, epsilon in (('', 10), ('_eps1', 1))
    ),
    'ablation': tuple(
        Row(
            name=f'{data}_{name}',
            title=f'{data_title}, {title}',
            flagfile=f'{data}.flags',
            changes=(*_THREE_IDEAS, *changes),
            baseline=None if name == 'all' else f'{data}_all',
            unproven=name == 'hidden',
        )
        for data, data_title in _DATA_SETS
        for name, title, changes in _VARIANTS
    ),
    'error_feedback': tuple(
        Row(
            name=f'mnist_{name}',
            title=f'MNIST, no warm start, {title}',
            flagfile='mnist.flags',
            changes=(*_FROM_SCRATCH, change),
            baseline=None if name == 'without' else 'mnist_without',
        )
        for name, title, change in _SCRATCH_VARIANTS
    ),
}


def make_config(
    row: Row,
    seed: int,
    *,
    overrides: Sequence[str] = (),
    datasets: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    tfds_manual_dir: str | None = None,
) -> config.RunConfig:
    """Makes the settings of one run, without its run folder.

    Args:
      row: the row of the table.
      seed: seed of public randomness.
      overrides: NAME=VALUE of settings, which follow the flags of the row.
      datasets: values of `--dataset` that replace others, by those others.
      data_dir: replaces the one of the config, unless None.
      tfds_manual_dir: replaces the one of the config, unless None.

    Returns:
      The settings.

    Raises:
      config.ConfigError: if one is wrong; the message names the row.
    """
    lines = [*_flags(row), *(f'--{override}' for override in overrides), f'--seed={seed}']
    given = {'data_dir': data_dir, 'tfds_manual_dir': tfds_manual_dir}
    places: dict[str, Any] = {name: place for name, place in given.items() if place is not None}
    try:
        settings = config.from_flagfile('\n'.join(lines))
        dataset = (datasets or {}).get(settings.data.dataset, settings.data.dataset)
        data = dataclasses.replace(settings.data, dataset=dataset, **places)
        settings = dataclasses.replace(settings, data=data)
        if not (settings.run.evaluate and settings.run.export):
            raise config.ConfigError('A table needs --evaluate and --export.')
        if config.from_flagfile(settings.to_flags()) != settings:
            raise config.ConfigError(
                'The place of a run and how it continues cannot be changed with --set. Received: '
                f'{", ".join(overrides)}.'
            )
        return _with_unproven_noise(settings) if row.unproven else settings
    except ValueError as error:
        raise config.ConfigError(f'Row {row.name}: {error}') from error


def _flags(row: Row) -> list[str]:
    argument = config.find_flagfiles([f'--flagfile={row.flagfile}'])[0]
    text = pathlib.Path(argument.split('=', 1)[1]).read_text(encoding='utf-8')
    return [*text.splitlines(), *row.changes]


def _with_unproven_noise(settings: config.RunConfig) -> config.RunConfig:
    privacy, data = settings.privacy, settings.data
    if data.dataset_size is None or privacy.target_epsilon is None:
        raise config.ConfigError('an unproven epsilon needs --dataset_size and --target_epsilon')
    size = min(data.dataset_size, data.limit_records or data.dataset_size)
    noise_multiplier, noise_of_warm_start = _plain_noise(settings.privacy, size)
    return dataclasses.replace(
        settings,
        privacy=dataclasses.replace(
            privacy,
            target_epsilon=None,
            noise_multiplier=noise_multiplier,
            warm_start_share=0.0,
            warm_start_noise_multiplier=noise_of_warm_start,
        ),
    )


def _few_digits(noise_multiplier: float) -> float:
    """Rounds up, so that the number is the same on every machine."""
    return math.ceil(noise_multiplier * 1e4) / 1e4


@functools.cache
def _plain_noise(privacy: config.PrivacyConfig, size: int) -> tuple[float, float | None]:
    """Returns the noise that plain DP-SGD needs at the same target, for steps and warm start."""
    # The accountant takes a second to load, which --help should not.
    from tf_efsgd import budget

    plan = budget.plan_without_run(dataclasses.replace(privacy, error_feedback='none'), size)
    of_warm_start = plan.warm_start_noise_multiplier
    return (
        _few_digits(plan.mechanism['noise_multiplier']),
        None if of_warm_start is None else _few_digits(of_warm_start),
    )


def show_command(row: Row, settings: config.RunConfig, overrides: Sequence[str] = ()) -> str:
    """Returns the command that repeats a run of the row, without seed and local paths.

    Args:
      row: the row of the table.
      settings: the settings of `make_config`.
      overrides: the overrides that `make_config` was given.

    Returns:
      One line.
    """
    if not row.unproven:
        shown = [f'--flagfile={row.flagfile}', *row.changes, *(f'--{value}' for value in overrides)]
    else:  # A flagfile's target cannot be taken back by a flag.
        dataset = config.from_flagfile('\n'.join(_flags(row))).data.dataset
        left_out = dict.fromkeys(('seed', *config.OWN_PLACES))
        defaults = config.RunConfig(privacy=config.PrivacyConfig(noise_multiplier=1.0))
        known = defaults.to_flags(noise_multiplier=None).splitlines()
        lines = settings.to_flags(dataset=dataset, **left_out).splitlines()
        shown = [line for line in lines if line not in known]
    return ' '.join(['python -m tf_efsgd.launch', *shown])
