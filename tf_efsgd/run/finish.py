"""What a run leaves: its report, its export, its evaluation."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import pathlib
import platform
import shutil

import tensorflow as tf
import tensorflow_privacy

from tf_efsgd import budget
from tf_efsgd.config import recipes
from tf_efsgd.export import saved_model
from tf_efsgd.reporting import report
from tf_efsgd.run import evaluate, messages
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.context import Context
from tf_efsgd.training import callbacks, samples
from tf_efsgd.version import __version__


def finish(run: Context) -> None:
    """Reports, exports, evaluates, and says where everything is."""
    statement = _statement(run)
    export = _export(run, statement) if run.config.run.export else None
    samples_png, page = _last_samples(run.folder), run.folder / run_folder.REPORT
    report.write_report(
        page,
        title=f'{run.ledger.plan.dataset}: synthetic images',
        private=statement['private'],
        statement=statement,
        samples_png=samples_png,
        sample_caption=samples.SampleGrid.caption(run.dataset.train.class_names),
        history=callbacks.read_scalars(
            str(run.folder / run_folder.LOGS), is_private=run.is_private
        ),
        # Without where things are on this machine.
        config_text=run.config.to_flags(
            dataset=statement['dataset'],
            person=run_folder.public_rule(run.config.data.person),
            public_features=recipes.without_folder(run.config.privacy.public_features),
            data_dir=None,
            tfds_manual_dir=None,
        ),
        identity=_identity(run, export),
    )
    found = {'sample picture': samples_png, 'report': page}
    if export is not None:
        found['SavedModel'] = export
    if run.config.run.evaluate:
        found['evaluation'] = _evaluate(run)
    found['TensorBoard'] = f'tensorboard --logdir {run.folder / run_folder.LOGS}'
    messages.result(statement, found)


def _statement(run: Context) -> dict:
    statement = budget.make_statement(run.config, run.ledger, run.private_steps, _software())
    if 'not_covered' in statement:  # Without privacy nothing is.
        statement['not_covered'].append(run.other_runs.not_covered)
    return {**statement, **run.other_runs.to_statement()}


# Of a SavedModel: all of its weights.
_WEIGHTS = pathlib.PurePath('variables', 'variables.data-00000-of-00001')


def _identity(run: Context, export: str | None) -> dict[str, str]:
    """What tells this run from others, by a label: all of it public."""
    identity = {
        'Date (UTC)': f'{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}',
        'Run': run.ledger.run_id,
    }
    weights = None if export is None else pathlib.Path(export) / _WEIGHTS
    if weights is not None and weights.exists():
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        identity['SHA-256 of the model'] = f'{digest} export/1/{_WEIGHTS.as_posix()}'
    return identity


def _software() -> dict[str, str]:
    return {
        'tf_efsgd': __version__,
        'tensorflow': tf.__version__,
        'tensorflow_privacy': tensorflow_privacy.__version__,
        'dp_accounting': importlib.metadata.version('dp-accounting'),
        'python': platform.python_version(),
    }


def _last_samples(run_dir: pathlib.Path) -> str | None:
    pictures = sorted((run_dir / run_folder.SAMPLES).glob('step_*.png'))
    return str(pictures[-1]) if pictures else None


def _export(run: Context, statement: dict) -> str:
    target = run.folder / 'export' / '1'
    if target.exists():
        print(f'{target} exists already and is kept.')
        return str(target)
    target.parent.mkdir(exist_ok=True)
    for stale in target.parent.glob('.1.tmp-*'):  # A crash while it was written.
        shutil.rmtree(stale)
    saved_model.export_generator(
        run.gan.generate,
        run.gan.ema_generator.variables,
        target,
        num_classes=run.ledger.plan.num_classes,
        statement=statement,
    )
    return str(target)


def _evaluate(run: Context) -> str:
    """The short form of the evaluation. Sees real images: apart, not covered by epsilon."""
    cache = run.state_dir / evaluate.CLASSIFIERS
    return evaluate.evaluate_run(
        run.config, run.folder, run.dataset, cache, untrained_classifiers=False
    )
