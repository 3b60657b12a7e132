"""Chooses the settings that nobody gave, from public facts.

These are the numbers of records and classes, the image shape, epsilon and the minutes. A recipe
looks at no record and knows only what is declared or published anyway. What it chooses is written
to RUN/config.flags like any other setting.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection
from typing import Any

from tf_efsgd.config.groups.data import IMAGE_SIZES
from tf_efsgd.config.settings import PrivacyConfig, RunConfig, groups_of

# A user who gives one of these has their own recipe.
_OWN_RECIPE = (
    'train_steps',
    'expected_batch_size',
    'warm_start_share',
    'warm_start_noise_multiplier',
    'noise_multiplier',
)
# The names of all settings: if all of them are given, nothing is left to choose.
EVERYTHING = frozenset(
    field.name
    for group in dataclasses.fields(RunConfig)
    for field in dataclasses.fields(getattr(RunConfig, group.name))
)
PUBLIC_NETWORK = 'efficientnet_lite0'
_GRAY, _COLOURS = 1, 3
# On a CPU, steps on larger images would take minutes; --image_size asks for them.
_SIZES = (28, 32, 48, 64)


@dataclasses.dataclass(frozen=True)
class Facts:
    """The public facts of the records.

    Attributes:
      records: their declared or published number.
      classes: the number of classes.
      image_shape: (H, W, C).
    """

    records: int
    classes: int
    image_shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast this machine is.

    Attributes:
      fit: seconds that a generator step of the fit to a release takes.
      private: seconds that a private step and the generator step after it take.
      both: seconds that a generator step of the fit to two releases takes; 0 where there is one.
      learning: seconds that it takes to learn what the second release is about; 0 without it.
    """

    fit: float
    private: float
    both: float = 0.0
    learning: float = 0.0


def is_open(privacy: PrivacyConfig, given: Collection[str]) -> bool:
    """Whether the user leaves the recipe to this program."""
    has_target = privacy.private and privacy.target_epsilon is not None
    return has_target and not set(_OWN_RECIPE) & set(given)


def image_size(usual_side: int) -> int | None:
    """Chooses a size to resize images to, for a machine without a GPU.

    Args:
      usual_side: the usual side of the images, in pixels.

    Returns:
      The largest of a few sizes that is at most `usual_side`; None if that is too small.
    """
    sizes = [size for size in IMAGE_SIZES if size < _SIZES[0]] + list(_SIZES)
    return max((size for size in sizes if size <= usual_side), default=None)


def complete(
    config: RunConfig,
    given: Collection[str],
    facts: Facts,
    measure: Callable[[RunConfig], Speed],
) -> RunConfig:
    """Chooses the settings that nobody gave.

    Args:
      config: the settings.
      given: names of the settings that somebody gave.
      facts: about the records.
      measure: measures how long steps with some settings take on this machine.

    Returns:
      The settings, none of them 'auto' any more.
    """
    if is_open(config.privacy, given):
        chosen = _of_facts(config.privacy, facts)
        config = _with(config, {k: v for k, v in chosen.items() if k not in given})
        config = _within_minutes(config, given, measure(_without_auto(config, facts)))
    config = _without_auto(config, facts)
    if config.privacy.warm_start_share == 1 and 'expected_batch_size' not in given:
        # No step is run, but a batch must not be larger than a small data set.
        batch = min(config.privacy.expected_batch_size, facts.records)
        config = _with(config, {'expected_batch_size': batch})
    if config.model.discriminator == 'public_heads':
        usual = {
            'discriminator_steps': 1,
            'adaptive_discriminator_steps': False,
            'reconstruction_weight': _RECONSTRUCTION_WEIGHT,
        }
        config = _with(config, {k: v for k, v in usual.items() if k not in given})
    return config


def uses_public_features(privacy: PrivacyConfig) -> bool:
    """Whether features of a public network are used; False while the value is still 'auto'."""
    return privacy.has_warm_start and privacy.public_features not in ('none', 'auto')


def is_path(network: str) -> bool:
    """Whether a value of --public_features is the path of a file."""
    return os.sep in network or os.path.exists(network)


def without_folder(network: str) -> str:
    """A value of --public_features without its folder on this machine."""
    return os.path.basename(network.rstrip(os.sep)) if is_path(network) else network


def as_before(config: RunConfig, given: Collection[str], before: RunConfig) -> RunConfig:
    """Makes the settings to resume a run with: those that nobody gives now stay what they were.

    Args:
      config: the settings to resume with.
      given: names of the settings that somebody gave.
      before: those of an earlier start, from RUN/config.flags.
    """
    before = without_new(before)
    kept = {
        field.name: getattr(old, field.name)
        for old, group in zip(groups_of(before), groups_of(config))
        for field in dataclasses.fields(group)
        if getattr(group, field.name) == 'auto'
        and field.metadata['earlier']
        or (field.name in _CHOSEN or field.metadata['on_resume'] == 'stays')
        and field.name not in given
    }
    return _with(config, kept)


def without_new(before: RunConfig) -> RunConfig:
    """Sets settings that a run folder does not have yet to what its version of the program did."""
    earlier = {
        field.name: field.metadata['earlier']
        for group in groups_of(before)
        for field in dataclasses.fields(group)
        if field.metadata['earlier'] is not None and getattr(group, field.name) == 'auto'
    }
    return _with(before, earlier)


def _with(config: RunConfig, values: dict) -> RunConfig:
    """Replaces some of the settings, by name."""
    groups = {}
    for field in dataclasses.fields(config):
        group = getattr(config, field.name)
        names = {f.name for f in dataclasses.fields(group)}
        own = {name: value for name, value in values.items() if name in names}
        groups[field.name] = dataclasses.replace(group, **own)
    return dataclasses.replace(config, **groups)


def _without_auto(config: RunConfig, facts: Facts) -> RunConfig:
    privacy, model = config.privacy, config.model
    features = privacy.public_features
    if features == 'auto':
        has_colours = facts.image_shape[-1] == _COLOURS
        features = PUBLIC_NETWORK if has_colours and privacy.has_warm_start else 'none'
    discriminator = model.discriminator
    if discriminator == 'auto':
        can = features != 'none' and privacy.has_warm_start and model.reconstruction != 'generator'
        discriminator = 'public_heads' if can else 'pixels'
    generator = model.generator
    if generator == 'auto':
        generator = 'skip' if discriminator == 'public_heads' else 'plain'
    chosen = {'public_features': features, 'discriminator': discriminator, 'generator': generator}
    return _with(config, chosen)


# The settings that a recipe may choose.
_CHOSEN = (
    'expected_batch_size',
    'train_steps',
    'error_feedback',
    'warm_start_share',
    'learned_features_share',
    'target_delta',
    'generator_width',
    'noise_injection',
    'reconstruction',
    'reconstruction_weight',
    'generator_ema',
    'warm_start_steps',
    'learned_features_steps',
    'warm_start_weight',
    'discriminator_only_steps',
    'discriminator_steps',
    'adaptive_discriminator_steps',
    'generator_learning_rate',
    'discriminator_learning_rate',
    'evaluation_images',
)

_SMALL = 32
# The share of the records in a step of heads. Large batches cost little there: features are cached.
_SHARE_OF_RECORDS, _LARGEST_BATCH = 1 / 8, 2048
_DELTA = 1e-5
# Of larger images: with the default number the evaluation would take as long as the training.
_EVALUATION_IMAGES = 10_000
# Of heads, where the usual weight's gradient would take most of a record's clipped length.
_RECONSTRUCTION_WEIGHT = 1e-3


def _of_facts(privacy: PrivacyConfig, facts: Facts) -> dict:
    """Chooses everything except the numbers of steps."""
    chosen: dict[str, Any] = {'noise_injection': True, 'generator_width': 128}
    if facts.image_shape[0] > _SMALL:
        chosen['evaluation_images'] = _EVALUATION_IMAGES
    if facts.records >= 1 / _DELTA:
        chosen['target_delta'] = 10.0 ** -math.ceil(math.log10(facts.records) + 0.3)
    features = privacy.public_features
    small_gray = facts.image_shape[-1] == _GRAY and facts.image_shape[0] <= _SMALL
    if features == 'none' or (features == 'auto' and small_gray):
        # For gray digits and the like: two releases of pixels if the budget is large, else one.
        two = privacy.target_epsilon >= 4
        return {
            **chosen,
            'public_features': 'none',
            'noise_injection': False,
            'generator_width': 64,
            'warm_start_share': 1.0,
            'reconstruction': 'none',
            'learned_features_share': 0.5 if two else 0.0,
        }
    batch = max(1, min(_LARGEST_BATCH, round(_SHARE_OF_RECORDS * facts.records)))
    return {
        **chosen,
        'public_features': PUBLIC_NETWORK if features == 'auto' else features,
        'discriminator': 'public_heads',
        'warm_start_share': 0.25,
        'expected_batch_size': batch,
        'error_feedback': 'none',
        'reconstruction': 'head',
        'reconstruction_weight': _RECONSTRUCTION_WEIGHT,
        'warm_start_weight': 1.0,
        'discriminator_only_steps': 50,
        'generator_learning_rate': 3e-3,
        'discriminator_learning_rate': 2e-3,
        'generator_ema': 0.99,
    }


# The share of the time for the fit, and the share of the fit's steps for both releases.
_SHARE_OF_FIT, _SHARE_OF_BOTH = 0.05, 0.4
_FEWEST, _MOST_FIT, _MOST_FIT_OF_ONE, _MOST_PRIVATE = 100, 20_000, 10_000, 5_000


def _within_minutes(config: RunConfig, given: Collection[str], speed: Speed) -> RunConfig:
    """Chooses numbers of steps that fit into the minutes."""
    seconds = 60.0 * config.training.minutes
    if config.privacy.warm_start_share == 1:
        has_two = config.privacy.learned_features_share > 0
        # With a small budget a longer fit would follow the noise of the release.
        most = _MOST_FIT if has_two else _MOST_FIT_OF_ONE
        of_both = _SHARE_OF_BOTH if has_two else 0.0
        mean = (1.0 - of_both) * speed.fit + of_both * (speed.both or speed.fit)
        fit = _between(_FEWEST, (seconds - speed.learning) / mean, most)
        both = round(of_both * fit)
        chosen = {'warm_start_steps': fit - both, 'learned_features_steps': max(1, both)}
    else:
        of_fit, of_private = _SHARE_OF_FIT * seconds, (1.0 - _SHARE_OF_FIT) * seconds
        chosen = {
            'warm_start_steps': _between(_FEWEST, of_fit / speed.fit, _MOST_FIT),
            'train_steps': _between(_FEWEST, of_private / speed.private, _MOST_PRIVATE),
        }
    return _with(config, {k: v for k, v in chosen.items() if k not in given})


def _between(least: int, value: float, most: int) -> int:
    """Limits a number, rounded to two digits: machines of about the same speed choose alike."""
    value = max(least, min(most, value))
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return int(value // unit * unit)
