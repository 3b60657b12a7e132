"""Shows what a privacy budget buys, and what a run has spent: tf-efsgd plan.

  tf-efsgd plan --flagfile=mnist.flags --dataset_size=60000 --plot=plan.png
  tf-efsgd plan --target_epsilon=10 --dataset_size=60000 --train_steps=10000
  tf-efsgd plan --dataset=folder:PATH --target_epsilon=10
  tf-efsgd plan --ledger=RUN/ledger.jsonl

It accepts all flags of tf-efsgd train and reads those about privacy. --error_feedback=hidden plans
the published variant, whose error buffer has no noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from tf_efsgd import config, file_names, files
from tf_efsgd.cli import arguments
from tf_efsgd.config import expectations, recipes

if TYPE_CHECKING:
    from tf_efsgd.budget.forecast import Forecast

_NO_RECIPE = (
    '\n\nThis is for the default of every setting that is not given. A run chooses them by its '
    'records: tf-efsgd plan --dataset=folder:PATH shows that.'
)
# Assumed seconds of a step on two cores: the planner measures nothing.
_ASSUMED_SPEED = recipes.Speed(fit=0.1, private=0.5, both=0.15, learning=30.0)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags of a run and those of the plan.

    Returns:
      The names of the flags that are read: of a run, those about privacy and data.
    """
    config.define_flags(flag_values)
    flags.DEFINE_integer(
        'parameters',
        None,
        'Number of parameters that private steps update. It determines the length of the noise, '
        'and what the grid of the releases costs; a run prints it when it starts. Default: the '
        'noise on one parameter, and the cost of 2^20 parameters, which is more than the networks '
        'of the configs have. Range: at least 1.',
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        'plot',
        None,
        'Draw epsilon against the steps and against the noise to this file, e.g. plan.png.',
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        'ledger',
        None,
        'Print what this ledger, e.g. RUN/ledger.jsonl, has spent instead of a plan.',
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        'ledger_entries',
        False,
        'With --ledger: list every entry in a line of its own, even equal ones.',
        flag_values=flag_values,
    )
    return [
        *(field.name for field in dataclasses.fields(config.PrivacyConfig)),
        *('dataset', 'dataset_size', 'images_per_person', 'dataset_persons', 'classes', 'label'),
        *('bits', 'image_size', 'channels', 'limit_records', 'minutes'),
        *('parameters', 'plot', 'ledger', 'ledger_entries'),
        *arguments.define_output_flags(flag_values),
    ]


def settings_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> config.PrivacyConfig:
    """Reads and checks the privacy settings; other settings are not checked.

    Raises:
      config.ConfigError: if one is wrong, or not exactly one of target_epsilon and noise_multiplier
        is given.
    """
    names = [field.name for field in dataclasses.fields(config.PrivacyConfig)]
    settings = config.PrivacyConfig(**{name: flag_values[name].value for name in names})
    if not settings.private:
        raise config.ConfigError('--noprivate spends nothing: there is nothing to plan.')
    config.RunConfig(privacy=settings)
    return settings


def forecast(*settings) -> Forecast:
    """Calls `budget.forecast.forecast`, which is loaded only now: --help does not need it."""
    from tf_efsgd.budget.forecast import forecast as compute

    return compute(*settings)


def answer(flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """Does what `find` does, and returns only the text."""
    return find(flag_values)[1]


def find(flag_values: flags.FlagValues = flags.FLAGS) -> tuple[dict[str, Any], str]:
    """Answers what the flags ask for; writes the picture.

    Returns:
      (JSON values by name, the same as text).

    Raises:
      config.ConfigError: if a flag is wrong.
      LedgerError: if the ledger cannot be trusted.
      ValueError: if no noise fits the target, or the batch does not fit the records.
    """
    from tf_efsgd.budget import as_json, picture, text
    from tf_efsgd.privacy.ledger import Ledger

    if flag_values.ledger is not None:
        if flag_values.plot is not None:
            raise config.ConfigError('--plot draws a plan, not a ledger: leave one of them out.')
        path = files.expanded(flag_values.ledger)
        ledger = Ledger.read(path / file_names.LEDGER if path.is_dir() else path)
        lines = text.format_ledger(ledger, flag_values.ledger_entries)
        return as_json.of_ledger(ledger), lines
    if flag_values.plot is not None:
        arguments.check_picture_path('plot', flag_values.plot)
    if _has_folder(flag_values):
        return _of_folder(flag_values)
    settings = settings_from_flags(flag_values)
    if flag_values.dataset_size is None or flag_values.dataset_size < 1:
        raise config.ConfigError(
            '--dataset_size is missing: the number of training records, e.g. 60000 for mnist, or '
            'give --dataset=folder:PATH to have them counted.'
        )
    _check_plot(flag_values, settings)
    for field in dataclasses.fields(config.DataConfig):
        if field.name in ('dataset_size', 'images_per_person', 'dataset_persons'):
            config.check_field(field, flag_values[field.name].value)
    images_per_person, persons = flag_values.images_per_person, flag_values.dataset_persons
    if (images_per_person is None) != (persons is None):
        raise config.ConfigError(
            '--images_per_person and --dataset_persons, the number of persons, go together here. '
            f'Received: --images_per_person={images_per_person} --dataset_persons={persons}.'
        )
    plan = forecast(
        settings, flag_values.dataset_size, flag_values.parameters, images_per_person, persons
    )
    lines = text.format_forecast(plan, flag_values.parameters)
    if recipes.is_open(settings, config.given_flags(flag_values)):
        lines += _NO_RECIPE
    if flag_values.plot is not None:
        picture.plot(plan, flag_values.plot)
        lines += f'\n\nPicture: {flag_values.plot}'
    return as_json.of_forecast(plan), lines


def _has_folder(flag_values: flags.FlagValues) -> bool:
    """Whether there is a folder to look at; with --dataset_size a plan needs none."""
    scheme, _, path = flag_values['dataset'].value.partition(':')
    if scheme != 'folder':
        return False
    return flag_values.dataset_size is None or (bool(path) and files.expanded(path).is_dir())


def _check_plot(flag_values: flags.FlagValues, settings: config.PrivacyConfig) -> None:
    if flag_values.plot is not None and settings.warm_start_share == 1:
        raise config.ConfigError(
            '--plot draws private steps, and --warm_start_share=1 runs none: leave --plot out.'
        )


def _of_folder(flag_values: flags.FlagValues) -> tuple[dict[str, Any], str]:
    """Answers for a folder: what is in it, what a run on it would choose, and what that spends.

    Raises:
      ConfigError: if a flag is wrong or the folder cannot be used.
    """
    from tf_efsgd.budget import as_json, picture, text
    from tf_efsgd.cli import check

    run_config = config.from_flags(flag_values)
    if not run_config.privacy.private:
        raise config.ConfigError('--noprivate spends nothing: there is nothing to plan.')
    found = check.look(flag_values)
    side = run_config.data.image_size or recipes.image_size(found.usual_side) or found.usual_side
    channels = run_config.data.channels or found.channels
    records = min(found.trained_on, run_config.data.limit_records or found.trained_on)
    records = run_config.data.dataset_size or records
    given = config.given_flags(flag_values)
    facts = recipes.Facts(records, len(found.class_names), (side, side, channels))
    chosen = recipes.complete(run_config, given, facts, lambda _: _ASSUMED_SPEED)
    _check_plot(flag_values, chosen.privacy)
    lines = [
        *found.lines(skips_unreadable=run_config.data.skip_unreadable),
        f'About {records:,} of them are trained on, as {side}x{side}x{channels}.',
        *_recipe(run_config, chosen, given),
        *_expected(facts, run_config.privacy.target_epsilon),
    ]
    result = {
        'records': records,
        'class_names': list(found.class_names),
        'image_shape': [side, side, channels],
        'flags': chosen.to_flags().splitlines(),
    }
    persons = run_config.data.images_per_person
    if persons is not None and run_config.data.dataset_persons is None:
        lines += ['To compute epsilon, give --dataset_persons, about how many persons there are.']
        return {**result, 'epsilon': None}, '\n'.join(lines)
    plan = forecast(
        chosen.privacy, records, flag_values.parameters, persons, run_config.data.dataset_persons
    )
    text_of_plan = text.format_forecast(plan, flag_values.parameters)
    if flag_values.plot is not None:
        picture.plot(plan, flag_values.plot)
        text_of_plan += f'\n\nPicture: {flag_values.plot}'
    return {**result, **as_json.of_forecast(plan)}, '\n'.join(lines) + f'\n\n{text_of_plan}'


def _expected(facts: recipes.Facts, epsilon: float | None) -> list[str]:
    if epsilon is None:
        return []
    records, classes, channels = facts.records, facts.classes, facts.image_shape[-1]
    about = {'records': records, 'classes': classes, 'channels': channels}
    words = expectations.expect(**about, epsilon=epsilon)
    few = expectations.warning(**about, epsilon=epsilon)
    return [f'Expect {words}.', *([few] if few is not None else [])]


def _recipe(
    given_config: config.RunConfig, chosen: config.RunConfig, given: Collection[str]
) -> list[str]:
    """Shows which settings a run would choose by itself, and how long it would take."""
    if not recipes.is_open(given_config.privacy, given):
        return ['Nothing is left to choose: the recipe is given.']
    known = given_config.to_flags().splitlines()
    values = [line for line in chosen.to_flags().splitlines() if line not in known]
    minutes = chosen.training.minutes
    return [
        f'Recipe, about {minutes} minutes (--minutes): {" ".join(values)}. The numbers of steps '
        'are for a machine with two cores; a run measures its own machine and chooses its own.'
    ]


def _main() -> None:
    logging.set_verbosity(logging.WARNING)  # Matplotlib logs messages about its fonts.
    with arguments.one_line_errors(mistakes=(ValueError, OSError)):
        with arguments.only_the_result(flags.FLAGS):
            found, text = find(flags.FLAGS)
        arguments.show(found, text, flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(
        _main,
        define_flags,
        positional=arguments.PATH,
        first=[
            *('dataset_size', 'target_epsilon', 'train_steps', 'expected_batch_size'),
            *('plot', 'ledger'),
        ],
    )
