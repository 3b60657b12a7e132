"""The private steps of a run: from the last checkpoint to the end of the budget."""

from __future__ import annotations

import signal
import time

import numpy as np
import tensorflow as tf

from tf_efsgd import budget, file_names
from tf_efsgd.config import ConfigError
from tf_efsgd.privacy import accounting
from tf_efsgd.privacy.ledger import LedgerError
from tf_efsgd.privacy.payments import StepPayments
from tf_efsgd.run import checkpoints
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.context import Context
from tf_efsgd.run.errors import Interrupted, as_config_error
from tf_efsgd.training import callbacks


def restore(run: Context) -> bool:
    """Restores the last checkpoint; returns whether there is one.

    Raises:
      ConfigError: if it does not fit the ledger, or every checkpoint is damaged.
    """
    position = as_config_error(run.checkpoints.restore_latest, checkpoints.CheckpointError)
    run.is_restored = position is not None
    if run.is_restored:
        as_config_error(lambda: run.ledger.check_position(position), LedgerError)
    return run.is_restored


def check_what_is_left(run: Context) -> None:
    """Warns if a run that was charged for steps has no checkpoint.

    Raises:
      ConfigError: if no budget is left either.
    """
    if run.is_restored or not run.ledger.reserved_steps:
        return
    if not run.ledger.remaining_steps:
        raise ConfigError(
            f'{run.folder} has no checkpoint and no budget left: what was trained is lost. '
            'Restore a checkpoint from a backup, or start a new run folder.'
        )
    print(
        'WARNING: there is no checkpoint: training starts from the beginning, and the '
        f'{run.ledger.reserved_steps} steps that were charged stay charged.'
    )


def train(run: Context) -> None:
    """Runs the steps that the budget still allows.

    Raises:
      Interrupted: if SIGINT or SIGTERM stopped it; a checkpoint was written.
    """
    run.workers.broadcast_variables(run.trained_variables)
    first = run.private_steps
    last = first + run.ledger.remaining_steps
    if not run.ledger.plan.train_steps:
        print('No private steps: the warm start takes the whole budget.')
        return
    if first == last:
        print('The budget is spent: nothing is left to train.')
        return
    # They are computed here, on the device that was tried: TensorFlow calls the function below on
    # the CPU.
    inputs = run.private_inputs
    batches = run.strategy.distribute_datasets_from_function(
        lambda part: _batches(run, inputs, part)
    )
    started = time.monotonic()
    payments = StepPayments(run.ledger, run.state, run.workers.of_chief)
    pay = callbacks.BeforeEachStep(payments.before_step)
    stop = _stop_on_signal(run, payments)
    try:
        run.gan.fit(
            batches,
            steps_per_epoch=last - first,
            callbacks=[pay, *_callbacks(run, first, last), stop],
            verbose=0,
        )
    finally:
        stop.restore_handlers()
    ended_by = run.workers.all_reduce_max(stop.received or 0)
    if ended_by:
        run.workers.leave()
        how = run_folder.how_to_continue(run.config, run.folder)
        done = f'stopped after step {run.private_steps}, with a checkpoint.'
        raise Interrupted(ended_by, f'{done} {how}')
    print(f'Trained {last - first} steps in {(time.monotonic() - started) / 60:.1f} minutes.')


def _stop_on_signal(run: Context, payments: StepPayments) -> callbacks.StopOnSignal:
    if run.workers.count == 1:
        return callbacks.StopOnSignal(run.save)

    def received_by_any(received):
        """All workers stop at the same step: where the steps that are paid for end."""
        if not payments.is_used_up:
            return None
        number = run.workers.all_reduce_max(received or 0)
        return signal.Signals(number) if number else None

    return callbacks.StopOnSignal(run.save, received_by_any, 'after the steps that are paid for')


def _batches(run: Context, inputs: np.ndarray, part: tf.distribute.InputContext) -> tf.data.Dataset:
    plan = run.ledger.plan
    return run.sources.sample(
        inputs,
        run.workers.share(run.dataset.train.labels)[:],
        accounting.sampling_threshold(plan.expected_batch_size, plan.dataset_size),
        num_replicas=run.workers.local_replicas(part),
        secure=run.config.privacy.secure_noise,
    )


def _callbacks(run: Context, first: int, last: int) -> list[tf.keras.callbacks.Callback]:
    settings, plan = run.config.run, run.ledger.plan
    checkpoint = callbacks.Checkpoint(
        lambda step: run.save(), first, last, settings.checkpoint_steps
    )
    if not run.workers.is_chief:
        return [checkpoint]
    epsilon = budget.EpsilonSoFar(run.ledger, first) if plan.event is not None else None
    writer = run.writer()
    run.write_overview(writer)

    def buffer_norm():
        if plan.event is None:
            return {}
        norm = run.gan.discriminator_optimizer.buffer_norm(run.gan.private_variables)
        return {} if norm is None else {'buffer_norm': norm}

    return [
        callbacks.TensorBoardScalars(writer, first, last, settings.log_steps, epsilon, buffer_norm),
        run.sample_grid(writer, first, last),
        checkpoint,
        *_diagnostics(run, first, last),
        callbacks.ProgressBar(first, last, settings.log_steps, epsilon),
    ]


def _diagnostics(run: Context, first: int, last: int) -> list[tf.keras.callbacks.Callback]:
    if not run.config.privacy.log_nonprivate_diagnostics:
        return []
    folder = run_folder.nonprivate_dir(run.folder)
    print(
        'WARNING: --log_nonprivate_diagnostics writes what real records show to '
        f'{folder}: NOT covered by epsilon, never share it.'
    )
    writer = tf.summary.create_file_writer(str(folder / file_names.LOGS))
    every = run.config.run.log_steps
    return [callbacks.NonprivateDiagnostics(writer, first, last, every)]
