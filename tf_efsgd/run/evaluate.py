"""Measures a run's generator against real images.

It writes to RUN/nonprivate and, for the classifiers that learn from real images, to the user's
state folder; decoded images are kept in the cache, as in training. Nothing of it goes back into
training. Epsilon does NOT cover it.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import shutil
import time
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from tf_efsgd import budget, config, file_names, files
from tf_efsgd.config import PrivacyConfig, RunConfig, recipes
from tf_efsgd.data.records import Dataset, Records
from tf_efsgd.evaluation import looks, protocol
from tf_efsgd.evaluation.inception import Inception
from tf_efsgd.evaluation.real_classifiers import RealClassifiers
from tf_efsgd.machine import describe_machine, machine
from tf_efsgd.models import sampling
from tf_efsgd.privacy.ledger import Ledger, LedgerError
from tf_efsgd.reporting import metrics_page
from tf_efsgd.reporting.verdict import verdict
from tf_efsgd.run import build, checkpoints
from tf_efsgd.run import folder as run_folder
from tf_efsgd.training import callbacks as monitoring
from tf_efsgd.training import samples
from tf_efsgd.version import __version__

# Names of folders in the state folder.
CLASSIFIERS, DOWNLOADS = 'classifiers', 'downloads'

_SEED = 102
_HPARAMS_FOLDER = 'evaluation'


def check_records(dataset: Dataset) -> None:
    """Raises ConfigError if there are too few records; it does not say how many: that is private.

    Args:
      dataset: the records of the run.
    """
    if len(dataset.train) < protocol.LEAST_TRAIN:
        raise config.ConfigError(
            f'An evaluation needs at least {protocol.LEAST_TRAIN} training images, and there are '
            'fewer: leave it out with --noevaluate (in Python: evaluate=False).'
        )


def evaluate_run(
    run_config: RunConfig,
    run_dir: pathlib.Path,
    dataset: Dataset,
    cache_dir: pathlib.Path,
    *,
    untrained_classifiers: bool = True,
    benchmark_classifiers: bool = False,
    inception: Inception | None = None,
) -> str:
    """Evaluates the last checkpoint of a run and writes the result to RUN/nonprivate.

    Args:
      run_config: the settings of the run, with the sizes of the evaluation.
      run_dir: the run folder.
      dataset: its records.
      cache_dir: where classifiers that learned from real images are kept, outside `run_dir`.
      untrained_classifiers: see `protocol.Sizes`.
      benchmark_classifiers: see `protocol.Sizes`.
      inception: the network for the FID; None leaves it out.

    Returns:
      The path of the page.

    Raises:
      ConfigError: if the run's ledger, checkpoint and records do not fit together.
    """
    check_records(dataset)
    started = time.monotonic()
    train, test, settings = dataset.train, dataset.test, run_config.run
    read_ledger(run_dir, dataset)  # It refuses other records, before anything else is done.
    generator, restored = _trained_generator(run_config, run_dir, train)
    # Read after the checkpoint, the ledger has paid for all of it, even while a run trains.
    ledger, step = read_ledger(run_dir, dataset, restored.ledger_position), restored.step
    untrained = build.untrained_generator(run_config, train)
    sizes = protocol.Sizes(
        settings.evaluation_images,
        settings.evaluation_runs,
        settings.evaluation_epochs,
        untrained_classifiers,
        benchmark_classifiers,
    )
    provenance = _provenance(run_config, run_dir, ledger, step)
    print(
        f'Evaluating {sizes.images} generated images of step {step} (NOT covered by epsilon).',
        flush=True,
    )
    measured = protocol.measure(
        lambda labels: sampling.generate(generator, labels, _SEED, 'generating'),
        lambda labels: sampling.generate(untrained, labels, _SEED),
        train,
        test,
        sizes,
        RealClassifiers(train, cache_dir, verbose=True),
        inception=inception,
        public_look=_public_look(run_config.privacy, train),
        verbose=True,
    )
    minutes = (time.monotonic() - started) / 60
    metrics = {
        'note': 'Measured on real images: not covered by the privacy guarantee.',
        'steps': step,
        **measured.metrics,
        'provenance': {
            **provenance,
            'evaluation_minutes': round(minutes, 2),
            'sizes': dataclasses.asdict(sizes),
            'num_images': measured.metrics['num_images'],
        },
    }
    folder = run_folder.nonprivate_dir(run_dir)
    page = folder / 'metrics.html'
    metrics_page.write_metrics_page(
        page,
        title=f'{ledger.plan.dataset}: measured against real images',
        metrics=metrics,
        pictures={name: _picture(pairs) for name, pairs in measured.pairs.items()},
    )
    _write_json(folder / file_names.METRICS, metrics)
    _write_hparams(folder / file_names.LOGS / _HPARAMS_FOLDER, run_config, metrics)
    _print_summary(metrics)
    return str(page)


def _public_look(privacy: PrivacyConfig, train: Records) -> looks.PublicLook | None:
    """The look through the public network; None for gray images of a run that did not use it."""
    has_colours = train.image_shape[-1] == 3
    if not (has_colours or recipes.uses_public_features(privacy)):
        return None
    return looks.PublicLook(train.image_shape)


def read_ledger(run_dir: pathlib.Path, dataset: Dataset, position: dict | None = None):
    """Reads the ledger of the run, without opening it for writing.

    Args:
      run_dir: the run folder.
      dataset: the records of the run.
      position: the ledger's position that a checkpoint was saved with, if there is one.

    Raises:
      ConfigError: if the ledger cannot be read, is one of other records, or does not continue what
        the checkpoint saw of it.
    """
    try:
        ledger = Ledger.read(run_dir / file_names.LEDGER)
        if position is not None:
            ledger.check_position(position)
    except LedgerError as error:
        raise config.ConfigError(str(error)) from error
    plan, train = ledger.plan, dataset.train
    of_run = (plan.dataset_size, tuple(plan.image_shape), plan.num_classes)
    found = (dataset.declared_size, train.image_shape, train.num_classes)
    if of_run != found:
        raise config.ConfigError(
            'This is not the data set of the run: (records, image shape, classes) was '
            f'{of_run}. Received: {found}.'
        )
    return ledger


def _trained_generator(
    run_config: RunConfig, run_dir: pathlib.Path, train: Records
) -> tuple[tf.keras.Model, checkpoints.Restored]:
    """The moving average of the run's generator, and the checkpoint that it comes from.

    They come from a checkpoint, not from an export: an export draws fresh latents at each call, and
    a run may have no export.
    """
    generator = build.untrained_generator(run_config, train)
    try:
        return generator, checkpoints.restore_generator(run_dir / file_names.CHECKPOINTS, generator)
    except checkpoints.CheckpointError as error:
        raise config.ConfigError(str(error)) from error


def _provenance(run_config: RunConfig, run_dir: pathlib.Path, ledger, step: int) -> dict[str, Any]:
    """Which run the figures belong to: its privacy, steps and time, and the machine."""
    statement = budget.make_statement(
        ledger, step, {}, data=run_config.data, privacy=run_config.privacy, model=run_config.model
    )
    wanted = ['unit_of_privacy', 'private', 'epsilon', 'accountant', 'epsilon_pld', 'epsilon_rdp']
    wanted += ['delta', 'delta_times_units', 'steps', 'public_images']
    return {
        'dataset': ledger.plan.dataset,
        **{name: statement[name] for name in wanted if name in statement},
        'checkpoint_step': step,
        'seed': run_config.training.seed,
        'training_minutes': _training_minutes(run_dir),
        'evaluated': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'machine': describe_machine(machine()),
        'tf_efsgd': __version__,
    }


def _training_minutes(run_dir: pathlib.Path) -> float | None:
    """The time from the first line of the ledger to the last entry of the log, with pauses."""
    with open(run_dir / file_names.LEDGER, encoding='utf-8') as file:
        started = json.loads(file.readline())['time']
    ended = monitoring.last_log_time(str(run_dir / file_names.LOGS))
    if ended is None:
        return None
    return round((ended - datetime.datetime.fromisoformat(started).timestamp()) / 60, 2)


def _picture(pairs) -> bytes:
    """Draws images above their nearest training images, as a PNG."""
    rows = np.concatenate([pairs.images, pairs.nearest])
    return tf.io.encode_png(samples.image_grid(rows, len(pairs.images))).numpy()


def _write_json(path: pathlib.Path, metrics: dict[str, Any]) -> None:

    files.write_atomically(path, json.dumps(metrics, indent=2, ensure_ascii=False) + '\n')


def _write_hparams(folder: pathlib.Path, run_config: RunConfig, metrics: dict[str, Any]) -> None:
    """Writes settings and scores for TensorBoard's HParams, in place of earlier ones."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = {
        name: value
        for group in ('privacy', 'model', 'training')
        for name, value in dataclasses.asdict(getattr(run_config, group)).items()
        if value is not None
    }
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=metrics['steps']):
        hparams.hparams({'dataset': metrics['provenance']['dataset'], **settings})
        for name, value in _scores(metrics).items():
            tf.summary.scalar(f'nonprivate/{name}', value)
    writer.close()


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """The main figures, by name."""
    places = {
        'gen2real_cnn': ('gen2real_cnn', 'accuracy'),
        'gen2real_mlp': ('gen2real_mlp', 'accuracy'),
        'real2gen_cnn': ('real2gen_cnn', 'accuracy'),
        'domain_is': ('domain_is', 'value'),
        'gen2real_benchmark': ('gen2real_benchmark', 'accuracy'),
        'public_fid_test': ('public_fid', 'test'),
        'public_fid_train': ('public_fid', 'train'),
        'domain_fid_test': ('domain_fid', 'test'),
        'domain_fid_train': ('domain_fid', 'train'),
        'fid_test': ('fid', 'test'),
        'fid_train': ('fid', 'train'),
        'precision': ('precision_recall', 'precision'),
        'recall': ('precision_recall', 'recall'),
    }
    found = {name: metrics.get(group, {}).get(key) for name, (group, key) in places.items()}
    return {name: value for name, value in found.items() if value is not None}


def _print_summary(metrics: dict[str, Any]) -> None:
    if 'gen2real_cnn' in metrics:
        cnn = metrics['gen2real_cnn']
        spread = '' if cnn['spread'] is None else f' ± {cnn["spread"]:.1%}'
        print(
            f'gen2real CNN accuracy: {cnn["accuracy"]:.1%}{spread} on {cnn["num_test"]} real images'
            f' (NOT covered by epsilon); {cnn["real"]["accuracy"]:.1%} for a CNN that learned from '
            'real ones.'
        )
    else:
        print('No gen2real: it needs at least 10 real images to test on and at least two classes.')
    others = {k: v for k, v in _scores(metrics).items() if not k.startswith('gen2real_cnn')}
    print('  ' + ', '.join(f'{name} {value:.4g}' for name, value in others.items()))
    print(verdict(metrics))
