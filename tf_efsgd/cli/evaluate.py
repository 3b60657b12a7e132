"""Measures a run's generator against real images: tf-efsgd evaluate RUN.

It writes to RUN/nonprivate and, for the classifiers that learn from real images, to the user's
state folder; decoded images are kept in the cache, as in training. Nothing of it goes back into
training. Epsilon does NOT cover it.
"""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING

from absl import flags, logging

from tf_efsgd import config, files
from tf_efsgd.cli import arguments

if TYPE_CHECKING:
    from tf_efsgd.evaluation.inception import Inception

# These settings of the run may be given again: they say where its records are now.
_PLACES = ('dataset', 'data_dir', 'tfds_manual_dir')
_OVERRIDES = ('evaluation_images', 'evaluation_runs', 'evaluation_epochs', 'state_dir', *_PLACES)

_FIRST = ['run_dir', 'evaluation_images', 'evaluation_runs', 'dataset', 'data_dir', 'state_dir']


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Defines the flags, which have the same meaning as in training, and returns their names."""
    flags.DEFINE_string(
        'run_dir',
        None,
        'The folder of the run to evaluate; its settings are used.',
        flag_values=flag_values,
    )
    names = config.define_flags(
        flag_values,
        evaluation_images=60_000,
        evaluation_runs=3,
        evaluation_epochs=10,
        state_dir=None,
        **dict.fromkeys(_PLACES),
    )
    flags.DEFINE_string(
        'inception_weights',
        None,
        'Path of the 2015 Inception network: its frozen graph (.pb), or the .tgz in which it is '
        'published. FID is then measured too. On CPUs that takes hours; fewer --evaluation_images '
        'take less time. Default: no FID.',
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        'download_inception',
        False,
        'Download the 2015 Inception network to --state_dir, once, and measure FID with it.',
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        'benchmark_classifiers',
        False,
        "Train the three classifiers of the field's benchmark as well, reduced for CPUs: a ResNet, "
        'a WideResNet and a ResNeXt. They take about four times as long as the CNN.',
        flag_values=flag_values,
    )
    return [
        'run_dir',
        'inception_weights',
        'download_inception',
        'benchmark_classifiers',
        *names,
        *arguments.define_output_flags(flag_values),
    ]


def run(values: flags.FlagValues) -> str:
    """Evaluates the run that the flags name.

    Returns:
      The path of the page that was written.

    Raises:
      ConfigError: if a flag is wrong, or the run or its records cannot be read.
    """
    if values.run_dir is None:
        raise config.ConfigError('Give --run_dir, the folder of the run to evaluate.')
    if values.inception_weights is not None and values.download_inception:
        raise config.ConfigError('Give --inception_weights or --download_inception, not both.')
    # TensorFlow takes seconds to load: only after the flags are known to be right.
    from tf_efsgd.evaluation.inception import InceptionError
    from tf_efsgd.run import evaluate
    from tf_efsgd.run import folder as run_folder

    run_dir = files.expanded(values.run_dir)
    given = {name: values[name].value for name in _OVERRIDES}
    overrides = [f'--{name}={value}' for name, value in given.items() if value is not None]
    run_config = run_folder.read_settings(run_dir, *overrides)
    state_dir = run_folder.state_dir(run_config, run_dir)
    try:
        inception = _inception(values, state_dir / evaluate.DOWNLOADS)
    except InceptionError as error:
        raise config.ConfigError(str(error)) from error
    try:
        dataset = run_folder.load_records(run_config)
    except config.ConfigError as error:
        hint = 'If the records are elsewhere now, give --dataset or --data_dir.'
        raise config.ConfigError(f'{error}. {hint}') from error
    ledger = evaluate.read_ledger(run_dir, dataset)
    if not run_folder.check_records(state_dir, ledger.run_id, dataset.train):
        print(
            f'{state_dir} remembers nothing of this run, so it is not checked whether these are '
            'its records.'
        )
    return evaluate.evaluate_run(
        run_config,
        run_dir,
        dataset,
        state_dir / evaluate.CLASSIFIERS,
        inception=inception,
        benchmark_classifiers=values.benchmark_classifiers,
    )


def _inception(values: flags.FlagValues, folder: pathlib.Path) -> Inception | None:
    from tf_efsgd.evaluation import inception

    path = values.inception_weights
    if values.download_inception:
        path = inception.download(folder)
    if path is None:
        print(
            'No FID: it needs the 2015 Inception network, see --inception_weights=PATH or '
            '--download_inception. The domain FID is measured instead.'
        )
        return None
    return inception.Inception(path)


def _main() -> None:
    logging.set_verbosity(logging.ERROR)
    arguments.quieten_tensorflow()
    with arguments.one_line_errors(when_interrupted='RUN/nonprivate is as it was.'):
        with arguments.only_the_result(flags.FLAGS):
            page = run(flags.FLAGS)
        metrics = json.loads(pathlib.Path(page).with_suffix('.json').read_text('utf-8'))
        arguments.show({'page': page, **metrics}, page, flags.FLAGS)


def main() -> None:
    """Entry point of the command line."""
    arguments.start(_main, define_flags, positional=arguments.RUN, first=_FIRST)
