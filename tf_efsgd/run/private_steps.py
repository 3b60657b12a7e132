"""The private steps of a run: from the last checkpoint to the end of the budget."""

from __future__ import annotations

import dataclasses
import time

import tensorflow as tf

from tf_efsgd import budget
from tf_efsgd.config import ConfigError, recipes
from tf_efsgd.privacy import accounting, ledger
from tf_efsgd.run import checkpoints
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.context import Context
from tf_efsgd.run.errors import Interrupted, as_config_error
from tf_efsgd.training import callbacks


def restore(run: Context) -> None:
    """Continues from the last checkpoint, if there is one.

    Raises:
      ConfigError: if it does not fit the ledger, or nothing is left of the run.
    """
    position = as_config_error(run.checkpoints.restore_latest, checkpoints.CheckpointError)
    run.is_restored = position is not None
    if run.is_restored:
        as_config_error(lambda: run.ledger.check_position(position), ledger.LedgerError)


def check_what_is_left(run: Context) -> None:
    """Says what it means that a run which was charged for steps has no checkpoint.

    Raises:
      ConfigError: if nothing of its budget is left either.
    """
    if run.is_restored or not run.ledger.reserved_steps:
        return
    if not run.ledger.remaining_steps:
        raise ConfigError(
            f'{run.folder} has no checkpoint left and no budget: nothing that was trained is '
            'left. Put a checkpoint back from a backup, or start a new run folder.'
        )
    print(
        'WARNING: there is no checkpoint: training starts anew, and the '
        f'{run.ledger.reserved_steps} steps that were charged stay charged.'
    )


def train(run: Context) -> None:
    """Runs the steps that the budget still allows.

    Raises:
      Interrupted: if SIGINT or SIGTERM stopped it; a checkpoint was written.
    """
    first = run.private_steps
    last = first + run.ledger.remaining_steps
    if not run.ledger.plan.train_steps:
        print('No private steps: the warm start takes the whole budget.')
        return
    if first == last:
        print('The budget is spent: nothing left to train.')
        return
    batches = run.strategy.distribute_datasets_from_function(lambda part: _batches(run, part))
    started = time.monotonic()
    stop = callbacks.StopOnSignal(run.save)
    try:
        run.gan.fit(
            batches,
            steps_per_epoch=last - first,
            callbacks=[*_callbacks(run, first, last), stop],
            verbose=0,
        )
    finally:
        stop.restore_handlers()
    if stop.received is not None:
        how = run_folder.how_to_continue(run.config, run.folder)
        done = f'stopped after step {run.private_steps}, with a checkpoint.'
        raise Interrupted(stop.received, f'{done} {how}')
    print(f'Trained {last - first} steps in {(time.monotonic() - started) / 60:.1f} minutes.')


def _batches(run: Context, part: tf.distribute.InputContext) -> tf.data.Dataset:
    records, plan = run.dataset.train, run.ledger.plan
    return run.sources.sample(
        run.private_inputs,
        records.labels,
        accounting.sampling_threshold(plan.expected_batch_size, plan.dataset_size),
        num_replicas=part.num_replicas_in_sync,
        secure=run.config.privacy.secure_noise,
    )


def _callbacks(run: Context, first: int, last: int) -> list[tf.keras.callbacks.Callback]:
    settings, plan = run.config.run, run.ledger.plan
    epsilon = budget.EpsilonSoFar(run.ledger, first) if plan.event is not None else None
    writer = run.writer()
    callbacks.write_overview(writer, plan.event is not None, _public_settings(run))

    def buffer_norm():
        if plan.event is None:
            return {}
        norm = run.gan.discriminator_optimizer.buffer_norm(run.gan.private_variables)
        return {} if norm is None else {'buffer_norm': norm}

    def reserve(steps):
        run.ledger.reserve(steps)
        run.state.store_position(run.ledger.position)

    return [
        callbacks.Budget(reserve, lambda: run.ledger.remaining_steps, plan.steps_per_entry),
        callbacks.TensorBoardScalars(writer, first, last, settings.log_steps, epsilon, buffer_norm),
        run.sample_grid(writer, first, last),
        callbacks.Checkpoint(lambda step: run.save(), first, last, settings.checkpoint_steps),
        *_diagnostics(run, first, last),
        callbacks.ProgressBar(first, last, settings.log_steps, epsilon),
    ]


def _public_settings(run: Context) -> dict:
    """What distinguishes a run from others, by name; no place on this machine."""
    config = run.config
    settings = {
        name: value
        for group in (config.privacy, config.model, config.training)
        for name, value in dataclasses.asdict(group).items()
        if value is not None
    }
    network = recipes.without_folder(config.privacy.public_features)
    return {**settings, 'dataset': run.ledger.plan.dataset, 'public_features': network}


def _diagnostics(run: Context, first: int, last: int) -> list[tf.keras.callbacks.Callback]:
    if not run.config.privacy.log_nonprivate_diagnostics:
        return []
    folder = run_folder.nonprivate_dir(run.folder)
    print(
        'WARNING: --log_nonprivate_diagnostics writes what real records show to '
        f'{folder}: NOT covered by epsilon, never share it.'
    )
    writer = tf.summary.create_file_writer(str(folder / 'logs'))
    every = run.config.run.log_steps
    return [callbacks.NonprivateDiagnostics(writer, first, last, every)]
