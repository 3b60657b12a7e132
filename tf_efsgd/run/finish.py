"""The end of a run: its report, its export and its evaluation."""

from __future__ import annotations

import datetime
import importlib.metadata
import pathlib
import platform
import shlex

import tensorflow as tf
import tensorflow_privacy

from tf_efsgd import budget, file_names
from tf_efsgd.config import RunConfig, recipes
from tf_efsgd.data import load
from tf_efsgd.reporting import report
from tf_efsgd.run import evaluate, exports, messages
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.context import Context
from tf_efsgd.training import callbacks, samples
from tf_efsgd.version import __version__


def finish(run: Context) -> None:
    """Reports, exports, evaluates, and says where everything is."""
    statement = _statement(run)
    export = _export(run, statement) if run.config.run.export else None
    page = write_report(run.folder, run.config, statement, run.ledger.run_id)
    found = {'sample picture': last_samples(run.folder), 'report': page}
    if export is not None:
        found['SavedModel'] = export
    if run.config.run.evaluate:
        found['evaluation'] = _evaluate(run)
    found['TensorBoard'] = f'tensorboard --logdir {run.folder / file_names.LOGS}'
    if run.config.run.export and statement['private']:
        folder = shlex.quote(str(run.folder))
        found['to share'] = f'tf-efsgd generate {folder} --output=synthetic'
        if run.config.data.dataset in load.EMBEDDED:
            found['your turn'] = 'tf-efsgd check photos/  (a folder with images of your own)'
    messages.result(statement, found)


def write_report(
    folder: pathlib.Path,
    config: RunConfig,
    statement: dict,
    run_id: str,
) -> pathlib.Path:
    """Writes the report of a run from what lies in its folder.

    Args:
      folder: of the run.
      config: its settings.
      statement: its privacy statement, with the names of the classes.
      run_id: of its ledger.

    Returns:
      The path of the page.
    """
    page = folder / file_names.REPORT
    report.write_report(
        page,
        title=f'{statement["dataset"]}: synthetic images',
        private=statement['private'],
        statement=statement,
        samples_png=last_samples(folder),
        sample_caption=samples.SampleGrid.caption(statement['class_names']),
        history=callbacks.read_scalars(
            # The statement of a private run has an epsilon, even if that is infinite by now.
            str(folder / file_names.LOGS),
            is_private='epsilon' in statement,
        ),
        # The settings leave out where things are on this machine.
        config_text=config.to_flags(
            dataset=statement['dataset'],
            person=run_folder.public_rule(config.data.person),
            label=run_folder.public_rule(config.data.label),
            public_features=recipes.without_folder(config.privacy.public_features),
            data_dir=None,
            tfds_manual_dir=None,
            cache_dir=None,
        ),
        identity=_identity(run_id, statement),
    )
    return page


def _statement(run: Context) -> dict:
    config = run.config
    statement = budget.make_statement(
        run.ledger,
        run.private_steps,
        software(),
        data=config.data,
        privacy=config.privacy,
        model=config.model,
    )
    if 'not_covered' in statement:  # A run without privacy has no such entry.
        statement['not_covered'].append(run.other_runs.not_covered)
    return {
        **statement,
        **run.other_runs.to_statement(),
        **exports.of_generator(run.gan.ema_generator, run.dataset.train.class_names),
        **exports.released_counts(run.folder, run.ledger),
    }


def _identity(run_id: str, statement: dict) -> dict[str, str]:
    """What tells this run from others, by label; all of it is public."""
    identity = {
        'Date (UTC)': f'{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}',
        'Run': run_id,
    }
    if 'generator_sha256' in statement:  # What was generated names it too.
        identity['SHA-256 of the generator'] = statement['generator_sha256']
    return identity


def software() -> dict[str, str]:
    """The versions of the software by name, for the statement."""
    return {
        'tf_efsgd': __version__,
        'tensorflow': tf.__version__,
        'tensorflow_privacy': tensorflow_privacy.__version__,
        'dp_accounting': importlib.metadata.version('dp-accounting'),
        'python': platform.python_version(),
    }


def last_samples(run_dir: pathlib.Path) -> str | None:
    """The path of the last sample picture of a run; None if there is none."""
    pictures = sorted((run_dir / file_names.SAMPLES).glob('step_*.png'))
    return str(pictures[-1]) if pictures else None


def _export(run: Context, statement: dict) -> str:
    target, is_new = exports.export(run.folder, run.gan.ema_generator, statement)
    if not is_new:
        print(f'{target} exists already and is kept.')
    return str(target)


def _evaluate(run: Context) -> str:
    """Makes the short form of the evaluation, which sees real images: epsilon does not cover it."""
    cache = run.state_dir / evaluate.CLASSIFIERS
    return evaluate.evaluate_run(
        run.config, run.folder, run.dataset, cache, untrained_classifiers=False
    )
