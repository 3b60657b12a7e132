"""One run, in order: data, plan, strategy, model, fit, evaluate, export, report.

Everything that can be wrong is found out before the run folder exists and before any privacy is
spent.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import shutil
import time

import numpy as np
import tensorflow as tf
import tensorflow_privacy

from tf_efsgd import budget, files, progress, rounding
from tf_efsgd.config import (
    ConfigError,
    RunConfig,
    forbidden_changes,
    settings_hash,
    without_place,
)
from tf_efsgd.data import poisson, records
from tf_efsgd.export import saved_model as export
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.privacy import (
    accounting,
    learned_features,
    ledger,
    run_state,
    seen_records,
    warm_start,
)
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer, new_noise
from tf_efsgd.reporting import report
from tf_efsgd.run import checkpoints, evaluate, log_filters
from tf_efsgd.run import folder as run_folder
from tf_efsgd.training import callbacks as monitoring
from tf_efsgd.training import gan as gans
from tf_efsgd.version import __version__

_ADAM_BETA_1 = 0.5  # as usual for GANs; the default 0.9 makes the two players overshoot
_SAMPLE_SEED = 101
# Of the generated images that the features of the second release are learned from.
_LEARNED_SEED = 103
_LEDGER, _FLAGFILE = run_folder.LEDGER, run_folder.FLAGFILE
# The noised sums of the warm start: released, so they may be kept, and fitted to again.
_WARM_START = 'warm_start.npy'
# The same of the second release, with what it is about.
_LEARNED_FEATURES = 'learned_features.npz'
# In RUN/nonprivate/: which other runs used these records, and how many of them.
_OTHER_RUNS = 'other_runs.json'


_NOT_PRIVATE_NOTE = """\
NOT PRIVATE. This run was trained without clipping and noise (--noprivate), for comparison. Nothing
in this folder may be shared with anyone who may not see the records.
"""


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint; the message says how to go on.

    Attributes:
      signal_number: of the signal.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


def run(config: RunConfig) -> str:
    """Trains, evaluates and exports.

    Args:
      config: the settings.

    Returns:
      The run folder.

    Raises:
      ConfigError: if a setting does not fit the data, the machine or the run folder; nothing has
        been written then, and no privacy spent.
      Interrupted: if SIGINT or SIGTERM stopped training.
      OSError: if the disk is full, say; `resume` goes on then.
      TensorFlowError: if TensorFlow failed; so it does then.
    """
    with log_filters.quiet_libraries():
        return _run(config)


def _run(config: RunConfig) -> str:
    run_dir = _run_dir(config)
    config = _check_run_dir(run_dir, config)
    state_dir = run_folder.state_dir(config, run_dir)
    strategy = _make_strategy(config)
    with contextlib.ExitStack() as stack:
        spent = None
        if config.run.resume:
            spent = _as_config_error(lambda: ledger.Ledger(run_dir / _LEDGER), ledger.LedgerError)
            stack.callback(spent.close)
        dataset = _load(config)
        config = run_folder.declare(config, dataset)
        if config.run.evaluate:
            evaluate.check_records(dataset)
        state = None
        if spent is not None:
            state = _remembered(config, run_dir, state_dir, spent, dataset)
            stack.callback(state.close)
        with strategy.scope():
            gan = _build(config, dataset.train)
        parameters = sum(v.shape.num_elements() for v in gan.private_variables)
        if spent is None:
            plan = budget.make_plan(config, _public_facts(dataset), parameters)
        else:
            plan = budget.changed_plan(config, spent) or spent.plan
            _check_parameters(spent.plan, parameters)
        with strategy.scope():
            _compile(gan, config, plan)
        promised = None if plan.event is None else budget.promised_epsilon(plan, spent)
        _describe(plan, gan, run_dir, promised)
        if spent is None:
            spent, state, other_runs = _start(config, run_dir, state_dir, plan, promised, dataset)
            stack.callback(spent.close)
            stack.callback(state.close)
        else:
            other_runs = _count_run(config, state_dir, spent.run_id, plan, promised, dataset)

        trained = _Run(config, run_dir, state_dir, dataset, spent, state, gan, strategy, other_runs)
        trained.restore()
        if plan != spent.plan:
            trained.change(plan)
        if config.run.change_mechanism:
            files.write_atomically(run_dir / _FLAGFILE, config.to_flags())
        else:
            _note_place(run_dir, config)
        trained.note_other_runs()
        with _without_private_text(config.privacy.log_nonprivate_diagnostics):
            trained.warm_start()
            trained.fit()
            trained.finish()
    return str(run_dir)


def _count_run(config, state_dir, run_id, plan, promised, dataset) -> seen_records.OtherRuns:
    """Counts the run among those on its records, before it is charged, and says which these are."""
    promise = seen_records.Promise(
        epsilon=math.inf if promised is None else promised.headline,
        delta=plan.target_delta or 0.0,
        unit=seen_records.IMAGE if plan.images_per_person is None else seen_records.PERSON,
    )
    other_runs = _as_config_error(
        lambda: seen_records.count_run(
            state_dir,
            run_id,
            plan.dataset,
            dataset.digests,
            promise,
            config.privacy.dataset_budget,
            _persons(dataset),
        ),
        seen_records.SeenRecordsError,
    )
    for line in other_runs.lines():
        print(line)
    return other_runs


def _persons(dataset: records.Dataset) -> seen_records.Persons | None:
    """Whose the records are; None where a record is not given to a person."""
    if dataset.images_per_person is None:
        return None
    rule = dataset.person_rule
    return seen_records.Persons(rule.content, dataset.person_digests, rule.public)


def _start(
    config, run_dir, state_dir, plan, promised, dataset
) -> tuple[ledger.Ledger, run_state.RunState, seen_records.OtherRuns]:
    """Counts the run and makes its folder; the ledger comes last: without one, none was trained.

    The run's lock is taken before it is counted, so that what is remembered of it is not removed
    while it starts.
    """
    train, run_id = dataset.train, ledger.new_run_id()

    def start(state):
        run_dir.mkdir(parents=True, exist_ok=True)
        files.write_atomically(run_dir / _FLAGFILE, config.to_flags())
        if plan.event is None:
            files.write_atomically(run_dir / 'NOT_PRIVATE.txt', _NOT_PRIVATE_NOTE)
        state.remember_records(train.images, train.labels, ledger.START)
        return ledger.Ledger(run_dir / _LEDGER, plan, run_id)

    errors = (ledger.LedgerError, run_state.RunStateError)
    state = None
    try:
        state = _as_config_error(lambda: run_state.RunState(state_dir, run_id), errors)
        other_runs = _count_run(config, state_dir, run_id, plan, promised, dataset)
        return _as_config_error(lambda: start(state), errors), state, other_runs
    except BaseException:  # It was never charged.
        seen_records.forget(state_dir, run_id)
        run_state.forget(state_dir, run_id)
        if state is not None:
            state.close()
        raise


def _remembered(config, run_dir, state_dir, spent, dataset) -> run_state.RunState:
    """What is remembered of the run to resume, if its records and its ledger fit."""
    facts = _public_facts(dataset)
    if without_place(config.data.dataset, 'dataset') != config.data.dataset:
        del facts['dataset']  # Its folder may have another name now; its records are compared.
    _check_public_facts(spent.plan, facts)
    hashes = (settings_hash(config), settings_hash(config, has_place=True))
    if spent.first_plan.settings_sha256 not in hashes:
        raise ConfigError(
            'The settings are not those that the run was started with, by the hash of them in its '
            f'ledger: {run_dir / _FLAGFILE} was changed. Start a new run folder.'
        )

    def remember():
        state = run_state.RunState(state_dir, spent.run_id)
        try:
            _verify(config, state_dir, spent, dataset.train, state)
        except BaseException:
            state.close()
            raise
        return state

    return _as_config_error(remember, (ledger.LedgerError, run_state.RunStateError))


def _verify(config, state_dir, spent, train, state) -> None:
    """Raises unless the records and the ledger are the remembered ones, or that was waived."""
    if state.is_known:
        state.check_records(train.images, train.labels)
        spent.check_position(state.position)
    elif config.run.resume_unverified:
        _check_count(config, spent.plan, train)
        _check_public_facts(spent.plan, {'dataset': _public_name(config.data.dataset)})
        print(
            'WARNING: nothing is remembered of this run here: whether its records and its ledger '
            'are the last ones is not checked (--resume_unverified). The statement says so.'
        )
        spent.note_unverified_resume()
        state.remember_records(train.images, train.labels, spent.position)
    else:
        raise ConfigError(
            f'{state_dir} remembers nothing of this run, so its records and its ledger cannot be '
            'verified: resume on the machine and as the user it was started by, give its '
            '--state_dir, or, if you are sure that both are the last ones, --resume_unverified.'
        )


def _check_count(config: RunConfig, plan: ledger.Plan, train: records.Records) -> None:
    """Raises where the number of records was read off them and is another one now."""
    is_exact = 'dataset_size' in config.data.read_off and config.data.limit_records is None
    if is_exact and len(train) != plan.dataset_size:
        raise ConfigError(
            'The data set is not the one that the run was started with: dataset_size was '
            f'{plan.dataset_size}, is {len(train)}. Resume with the same data, or start a new run '
            'folder.'
        )


class _Run:
    """A run folder and what goes on in it."""

    def __init__(
        self, config, run_dir, state_dir, dataset, spent, state, gan, strategy, other_runs
    ):
        self._config = config
        self._dir = run_dir
        self._state_dir = state_dir
        self._dataset = dataset
        self._ledger = spent
        self._state = state
        self._gan = gan
        self._strategy = strategy
        self._other_runs = other_runs
        self._is_restored = False
        folder = self._dir / 'checkpoints'
        self._checkpoints = checkpoints.RunCheckpoints(
            folder, gan, holds_private_state=_holds_private_state(spent.plan)
        )
        self._fit_checkpoints = folder / 'warm_start'

    def note_other_runs(self) -> None:
        """Writes what comparing the records with those of other runs has found, apart."""
        files.write_atomically(
            run_folder.nonprivate_dir(self._dir) / _OTHER_RUNS,
            json.dumps(self._other_runs.to_nonprivate(), indent=2) + '\n',
        )

    def restore(self) -> None:
        """Goes on from the last checkpoint, if there is one."""
        position = _as_config_error(self._checkpoints.restore_latest, checkpoints.CheckpointError)
        self._is_restored = position is not None
        if self._is_restored:
            _as_config_error(lambda: self._ledger.check_position(position), ledger.LedgerError)
        _as_config_error(self._check_releases, ValueError)
        if self._is_restored:
            return
        if self._ledger.reserved_steps and not self._ledger.remaining_steps:
            raise ConfigError(
                f'{self._dir} has no checkpoint left and no budget: nothing that was trained is '
                'left. Put a checkpoint back from a backup, or start a new run folder.'
            )
        elif self._ledger.reserved_steps:
            print(
                'WARNING: there is no checkpoint: training starts anew, and the '
                f'{self._ledger.reserved_steps} steps that were charged stay charged.'
            )

    def _check_releases(self) -> None:
        """Holds what the warm start released against the ledger; see `_check_release`."""
        spent = self._ledger
        if spent.first_plan.warm_start_event is None:
            return
        for name, noted, version in (
            (_WARM_START, spent.warm_start, warm_start.VERSION),
            (_LEARNED_FEATURES, spent.learned_features, learned_features.VERSION),
        ):
            path = self._dir / name
            if path.exists():
                _check_release(noted, path.read_bytes(), path, version)

    def change(self, plan: ledger.Plan) -> None:
        """Goes on by another plan, and says what epsilon is from now on."""
        self._ledger.change_plan(plan)
        self._state.store_position(self._ledger.position)
        epsilon = budget.spent_epsilon(self._ledger)
        print(
            'The mechanism is changed from here on. Epsilon of the whole run, whatever is done '
            f'within the budget: {rounding.up(epsilon.headline)} (RDP filter, fixed at '
            'the start).'
        )

    def warm_start(self) -> None:
        """Fits the generator to what is released of all records at once, before the first step."""
        privacy, training = self._config.privacy, self._config.training
        plan = self._ledger.first_plan
        if not (privacy.warm_start_share if plan.event is None else plan.warm_start_event):
            return
        if self._is_restored and not training.warm_start_weight:
            return
        features = warm_start.FeatureMap(plan.image_shape)
        sums = self._released_sums(features)
        if plan.event is not None and not self._is_restored:
            epsilon = budget.EpsilonSoFar(self._ledger, 0)(0)
            monitoring.write_epsilon(self._writer(), 0, epsilon)
        if sums is None:
            self._go_on_without('warm start')
            return
        means = warm_start.class_means(sums, self._noise_of_release(0), plan.dataset_size)
        targets = [warm_start.Target(features, means)]
        if self._is_restored:
            release = self._stored_learned_features()
            if release is not None:
                targets.append(self._learned_target(release))
            elif self._ledger.learned_features is not None:
                print(f'WARNING: {_LEARNED_FEATURES} is missing: the steps go on without it.')
        else:
            targets = self._fit_to(targets[0])
        if training.warm_start_weight:
            self._gan.set_target(warm_start.SumOfTargets(targets), training.warm_start_weight)

    def _go_on_without(self, what: str) -> None:
        """After a crash between the charge of a release and its file: it is never made again."""
        if not (self._ledger.plan.train_steps or self._is_restored) and what == 'warm start':
            raise ConfigError(
                f'The warm start of {self._dir} was charged, but a crash lost what it released, '
                'and nothing of the budget is left: start a new run folder.'
            )
        print(
            f'WARNING: the {what} was charged, but a crash lost what it released: training goes '
            'on without it.'
        )
        if self._ledger.learned_features_are_due:  # Without the first release there is no second.
            self._give_up_learned_features()

    def _give_up_learned_features(self) -> None:
        self._ledger.note_learned_features(None, None)
        self._state.store_position(self._ledger.position)

    def _fit_to(self, target: warm_start.Target) -> list[warm_start.Target]:
        """Fits the generator to what was and what will be released; returns all targets."""
        # A copy outside the strategy: the fit is for one device.
        generator = tf.keras.models.clone_model(self._gan.generator)
        generator.set_weights(self._gan.generator.get_weights())
        training, started, targets = self._config.training, time.monotonic(), [target]
        release = self._stored_learned_features()
        if release is None:
            self._fit_steps(generator, targets, 'warm start', steps=training.warm_start_steps)
            release = self._release_learned_features(generator)
        if release is not None:
            generator.set_weights(release.generator)
            targets.append(self._learned_target(release))
            self._fit_steps(
                generator,
                targets,
                'warm start, both releases',
                steps=training.learned_features_steps,
                learning_rate=learned_features.LEARNING_RATE,
                first_step=training.warm_start_steps,
            )
        self._gan.generator.set_weights(generator.get_weights())
        self._gan.ema_generator.set_weights(generator.get_weights())
        print(f'Fitted the generator in {(time.monotonic() - started) / 60:.1f} minutes.')
        self._save()
        shutil.rmtree(self._fit_checkpoints, ignore_errors=True)
        self._sample_grid(self._writer(), 0, 0).on_due({})
        return targets

    def _fit_steps(self, generator, targets, description: str, **how) -> None:
        average = warm_start.fit(
            generator,
            draw_inputs,
            targets,
            seed=self._config.training.seed,
            checkpoint_dir=self._fit_checkpoints,
            checkpoint_steps=self._config.run.checkpoint_steps,
            progress=functools.partial(progress.Bar, desc=description, unit='step'),
            **how,
        )
        generator.set_weights(average)

    def _released_sums(self, features: warm_start.FeatureMap) -> np.ndarray | None:
        """The noised sums: made now, or those of an earlier start; None if a crash lost them."""
        path, plan = self._dir / _WARM_START, self._ledger.first_plan
        is_private = plan.event is not None
        if path.exists():
            sums = np.load(path, allow_pickle=False)
            if sums.dtype != np.int64 or sums.shape != (plan.num_classes, features.size):
                raise ConfigError(
                    f'{path} is not what this run released: integers of shape '
                    f'{(plan.num_classes, features.size)}. Put the file back from a backup, or '
                    f'start a new run folder. Received: {sums.dtype} of shape {sums.shape}.'
                )
            return sums
        if is_private and not self._ledger.warm_start_is_due:
            return None
        sums = self._release(features, 0)
        buffer = io.BytesIO()
        np.save(buffer, sums)
        charge = self._ledger.reserve_warm_start
        self._pay_and_write(path, buffer.getvalue(), charge, warm_start.VERSION)
        return sums

    def _pay_and_write(self, path: pathlib.Path, content: bytes, charge, version: int) -> None:
        """Writes a release down when it is paid for; until then nothing has left this process."""

        def pay():
            charge(_sha256(content), version)
            self._state.store_position(self._ledger.position)

        is_private = self._ledger.first_plan.event is not None
        if is_private:  # That there is room for the position, too.
            self._state.store_position(self._ledger.position)
        files.write_atomically(path, content, when_there_is_room=pay if is_private else None)

    def _release(self, features: warm_start.GroupedFeatures, number: int) -> np.ndarray:
        """Looks at the records; what it returns is not paid for yet."""
        train = self._dataset.train
        return warm_start.release(
            train.images,
            train.labels,
            train.num_classes,
            features,
            self._noise_of_release(number),
            new_noise(secure=self._config.privacy.secure_noise),
        )

    def _noise_of_release(self, number: int) -> float:
        """The noise multiplier of the first or the second release; 0 without privacy."""
        plan = self._ledger.first_plan
        return budget.noise_of_releases(plan)[number] if plan.event is not None else 0.0

    def _stored_learned_features(self) -> learned_features.Release | None:
        """The second release of an earlier start, if there is one."""
        path = self._dir / _LEARNED_FEATURES
        if not self._ledger.first_plan.learned_features_share or not path.exists():
            return None
        return learned_features.Release.from_bytes(path.read_bytes())

    def _release_learned_features(self, generator) -> learned_features.Release | None:
        """The second release, of what a classifier of this generator's images sees."""
        plan, seed = self._ledger.first_plan, self._config.training.seed
        is_private = plan.event is not None
        if not plan.learned_features_share:
            return None
        if is_private and not self._ledger.learned_features_are_due:
            self._go_on_without('second release of the warm start')
            return None
        classifier = build_classifier(plan.image_shape, plan.num_classes)
        with progress.Bar(desc='learning features', unit='epoch') as bar:
            distances = learned_features.learn(
                classifier,
                lambda labels: evaluate.generate(generator, labels, _LEARNED_SEED),
                plan.num_classes,
                seed=seed,
                callbacks=[tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: bar.update())],
            )
        if not np.all(np.isfinite(distances)):
            print('WARNING: no features were learned: the second release is given up.')
            if is_private:
                self._give_up_learned_features()
            return None
        features = learned_features.LearnedFeatures(classifier, distances, plan.image_shape)
        release = learned_features.Release(
            sums=self._release(features, 1),
            distances=distances,
            classifier=classifier.get_weights(),
            generator=generator.get_weights(),
        )
        self._pay_and_write(
            self._dir / _LEARNED_FEATURES,
            release.to_bytes(),
            self._ledger.note_learned_features,
            learned_features.VERSION,
        )
        return release

    def _learned_target(self, release: learned_features.Release) -> warm_start.Target:
        plan = self._ledger.first_plan
        classifier = build_classifier(plan.image_shape, plan.num_classes)
        classifier.set_weights(release.classifier)
        features = learned_features.LearnedFeatures(classifier, release.distances, plan.image_shape)
        means = warm_start.class_means(release.sums, self._noise_of_release(1), plan.dataset_size)
        return warm_start.Target(features, means)

    def fit(self) -> None:
        """Runs the steps that the budget still allows."""
        settings = self._config.run
        first = int(self._gan.private_steps.numpy())
        last = first + self._ledger.remaining_steps
        if not self._ledger.plan.train_steps:
            print('No private steps: the warm start takes the whole budget.')
            return
        if first == last:
            print('The budget is spent: nothing left to train.')
            return
        batches = self._strategy.distribute_datasets_from_function(self._batches)
        started = time.monotonic()
        stop = monitoring.StopOnSignal(self._save)
        try:
            self._gan.fit(
                batches,
                steps_per_epoch=last - first,
                callbacks=[*self._callbacks(first, last), stop],
                verbose=0,
            )
        finally:
            stop.restore_handlers()
        if stop.received is not None:
            raise Interrupted(
                stop.received,
                f'stopped after step {int(self._gan.private_steps.numpy())}, with a checkpoint. Go '
                f'on with: python -m tf_efsgd.launch --flagfile={self._dir / _FLAGFILE} '
                f'--run_dir={self._dir} --resume'
                + (f' --state_dir={settings.state_dir}' if settings.state_dir else ''),
            )
        minutes = (time.monotonic() - started) / 60
        print(f'Trained {last - first} steps in {minutes:.1f} minutes.')

    def finish(self) -> None:
        """Evaluates, exports, reports, and says where everything is."""
        settings = self._config.run
        statement = self._statement()
        found = {'sample picture': self._last_samples(), 'report': self._dir / 'report.html'}
        report.write_report(
            self._dir / 'report.html',
            title=f'{self._ledger.plan.dataset}: synthetic images',
            private=statement['private'],
            statement=statement,
            samples_png=found['sample picture'],
            sample_caption=monitoring.SampleGrid.caption(self._dataset.train.class_names),
            history=monitoring.read_scalars(
                str(self._dir / 'logs'), is_private=self._ledger.plan.event is not None
            ),
            # Without where things are on this machine.
            config_text=self._config.to_flags(
                dataset=statement['dataset'],
                person=_public_rule(self._config.data.person),
                data_dir=None,
                tfds_manual_dir=None,
            ),
        )
        if settings.export:
            found['SavedModel'] = self._export(statement)
        if settings.evaluate:
            found['evaluation'] = self._evaluate()
        found['TensorBoard'] = f'tensorboard --logdir {self._dir / "logs"}'
        _print_result(statement, found)

    def _batches(self, context: tf.distribute.InputContext) -> tf.data.Dataset:
        train, plan = self._dataset.train, self._ledger.plan
        return poisson.poisson_batches(
            train.images,
            train.labels,
            accounting.sampling_threshold(plan.expected_batch_size, plan.dataset_size),
            num_replicas=context.num_replicas_in_sync,
            secure=self._config.privacy.secure_noise,
        )

    def _reserve(self, steps: int) -> None:
        self._ledger.reserve(steps)
        self._state.store_position(self._ledger.position)

    def _save(self) -> None:
        self._checkpoints.save(int(self._gan.private_steps.numpy()), self._ledger.position)

    def _callbacks(self, first: int, last: int) -> list[tf.keras.callbacks.Callback]:
        settings, plan = self._config.run, self._ledger.plan
        epsilon = budget.EpsilonSoFar(self._ledger, first) if plan.event is not None else None
        writer = self._writer()
        return [
            monitoring.Budget(
                self._reserve,
                lambda: self._ledger.remaining_steps,
                plan.steps_per_entry,
            ),
            monitoring.TensorBoardScalars(writer, first, last, settings.log_steps, epsilon),
            self._sample_grid(writer, first, last),
            monitoring.Checkpoint(
                lambda step: self._save(), first, last, settings.checkpoint_steps
            ),
            *self._diagnostics(first, last),
            monitoring.ProgressBar(first, last, settings.log_steps, epsilon),
        ]

    def _sample_grid(self, writer, first: int, last: int) -> monitoring.SampleGrid:
        plan = self._ledger.plan
        return monitoring.SampleGrid(
            writer,
            str(self._dir / 'samples'),
            lambda labels: evaluate.generate(self._gan.ema_generator, labels, _SAMPLE_SEED),
            plan.num_classes,
            first,
            last,
            self._config.run.sample_steps,
            is_private=plan.event is not None,
        )

    def _writer(self) -> tf.summary.SummaryWriter:
        (self._dir / 'samples').mkdir(exist_ok=True)
        return tf.summary.create_file_writer(str(self._dir / 'logs'))

    def _diagnostics(self, first: int, last: int) -> list[tf.keras.callbacks.Callback]:
        if not self._config.privacy.log_nonprivate_diagnostics:
            return []
        folder = run_folder.nonprivate_dir(self._dir)
        print(
            'WARNING: --log_nonprivate_diagnostics writes what real records show to '
            f'{folder}: NOT covered by epsilon, never share it.'
        )
        writer = tf.summary.create_file_writer(str(folder / 'logs'))
        every = self._config.run.log_steps
        return [monitoring.NonprivateDiagnostics(writer, first, last, every)]

    def _last_samples(self) -> str | None:
        pictures = sorted((self._dir / 'samples').glob('step_*.png'))
        return str(pictures[-1]) if pictures else None

    def _statement(self) -> dict:
        applied = int(self._gan.private_steps.numpy())
        statement = budget.make_statement(self._config, self._ledger, applied, _software())
        if 'not_covered' in statement:  # Without privacy nothing is.
            statement['not_covered'].append(self._other_runs.not_covered)
        return {**statement, **self._other_runs.to_statement()}

    def _export(self, statement: dict) -> str:
        target = self._dir / 'export' / '1'
        if target.exists():
            print(f'{target} exists already and is kept.')
            return str(target)
        target.parent.mkdir(exist_ok=True)
        for stale in target.parent.glob('.1.tmp-*'):  # A crash while it was written.
            shutil.rmtree(stale)
        export.export_generator(
            self._gan.generate,
            self._gan.ema_generator.variables,
            target,
            num_classes=self._ledger.plan.num_classes,
            statement=statement,
        )
        return str(target)

    def _evaluate(self) -> str:
        """The short form of the evaluation. Sees real images: apart, not covered by epsilon."""
        cache = self._state_dir / evaluate.CLASSIFIERS
        return evaluate.evaluate_run(
            self._config, self._dir, self._dataset, cache, untrained_classifiers=False
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_release(noted: dict | None, content: bytes, path: pathlib.Path, version: int) -> None:
    """Raises ConfigError unless this is what the ledger says was released.

    Args:
      noted: the ledger's entry of the release, None without one.
      content: of the file.
      path: of the file.
      version: of the features that this program makes.
    """
    if noted is None:
        # No advice to remove it: if the ledger is an old copy, that would pay for one of two.
        raise ConfigError(
            f'{path} is not what this run released, by the ledger, which knows of no such release: '
            'start a new run folder.'
        )
    if noted['sha256'] != _sha256(content):
        raise ConfigError(
            f'{path} is not what this run released, by the ledger: put the file back from a '
            'backup, or start a new run folder.'
        )
    if noted['version'] != version:
        raise ConfigError(
            f'{path} was released by another version of this program, with other features: resume '
            'with that version, or start a new run folder.'
        )


def _as_config_error(call, error_type):
    """Runs `call`; a mistake of the user's found there becomes the launcher's one-line error."""
    try:
        return call()
    except error_type as error:
        raise ConfigError(str(error)) from error


def _run_dir(config: RunConfig) -> pathlib.Path:
    if config.run.run_dir is not None:
        return pathlib.Path(config.run.run_dir).expanduser()
    name = _public_name(config.data.dataset).replace(':', '-')
    return pathlib.Path('runs') / f'{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}'


def _check_run_dir(run_dir: pathlib.Path, config: RunConfig) -> RunConfig:
    """Checks that a run can start, or continue, in this folder.

    Returns:
      The settings; those of a run to resume with the public facts that its first start declared or
      read off the records.

    Raises:
      ConfigError: if it cannot.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f'--run_dir must be a folder. Received: {run_dir}.')
    found = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    # Of a start that was cut off before the ledger was there, only these are left.
    has_files = any(
        name not in (_FLAGFILE, 'NOT_PRIVATE.txt') and '.tmp-' not in name for name in found
    )
    if not config.run.resume:
        if has_files:
            raise ConfigError(
                f'The run folder {run_dir} is not empty: give --resume to go on with it, or '
                'another --run_dir.'
            )
        return config
    flagfile = run_dir / _FLAGFILE
    if not flagfile.is_file():
        raise ConfigError(f'Nothing to resume: there is no {flagfile}.')
    if not has_files:
        raise ConfigError(f'Nothing to resume: {run_dir} was never trained in. Leave out --resume.')
    # As settings to resume with: those of a changed run do not start another.
    before = run_folder.read_settings(run_dir)
    config = config.with_public_facts_of(before)
    changed = forbidden_changes(before, config)
    if changed:
        raise ConfigError(
            f'{run_dir} was started with other settings: {"; ".join(changed)}. Resume with '
            f'--flagfile={flagfile}, or start a new run folder.'
        )
    return config


def _holds_private_state(plan: ledger.Plan) -> bool:
    return plan.event is None or budget.mechanism_of(plan).hides_buffer


class TensorFlowError(Exception):
    """TensorFlow failed; the message leaves out what it said, which may tell of the records."""


@contextlib.contextmanager
def _without_private_text(show: bool):
    """Turns TensorFlow's errors into ours: their texts hold shapes, and so the size of a batch."""
    try:
        yield
    except tf.errors.OpError as error:
        if 'No space left' in error.message:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        if show:
            raise
        hint = ''
        if isinstance(error, tf.errors.ResourceExhaustedError):
            hint = ' It ran out of memory: give a (smaller) --microbatch_size.'
        raise TensorFlowError(
            f'TensorFlow failed with a {type(error).__name__}.{hint} Its text can tell the size of '
            'a batch, which is private; --log_nonprivate_diagnostics shows it.'
        ) from None


def _make_strategy(config: RunConfig) -> tf.distribute.Strategy:
    training = config.training
    if training.logical_devices > 1:
        cpu = tf.config.list_physical_devices('CPU')[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * training.logical_devices
        )
    gpus = tf.config.list_logical_devices('GPU')
    devices = gpus or tf.config.list_logical_devices('CPU')
    if training.strategy == 'one_device' or (training.strategy == 'auto' and len(devices) == 1):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _load(config: RunConfig) -> records.Dataset:
    return run_folder.load_records(config)


def _check_public_facts(plan: ledger.Plan, facts: dict) -> None:
    changed = [
        f'{name} was {getattr(plan, name)}, is {value}'
        for name, value in facts.items()
        if value != getattr(plan, name)
    ]
    if changed:
        raise ConfigError(
            'The data set is not the one that the run was started with: '
            f'{"; ".join(changed)}. Resume with the same data, or start a new run folder.'
        )


def _public_facts(dataset: records.Dataset) -> dict:
    train = dataset.train
    return {
        'dataset': _public_name(dataset.name),
        'dataset_size': dataset.declared_size,
        'image_shape': train.image_shape,
        'num_classes': train.num_classes,
        'images_per_person': dataset.images_per_person,
        'persons': dataset.persons,
    }


def _public_name(dataset: str) -> str:
    """The data set's name without where it is on this machine."""
    scheme, colon, path = dataset.partition(':')
    return f'{scheme}:{pathlib.Path(path).resolve().name}' if colon else dataset


def _note_place(run_dir: pathlib.Path, config: RunConfig) -> None:
    """Writes into RUN/config.flags where the records are now, if they are the run's but moved."""
    before = run_folder.read_settings(run_dir)
    place = {'dataset': config.data.dataset, 'person': config.data.person}
    if any(getattr(before.data, name) != value for name, value in place.items()):
        files.write_atomically(run_dir / _FLAGFILE, before.to_flags(**place))


def _public_rule(person: str | None) -> str | None:
    """The value of --person without where a table is on this machine."""
    if person is None or not person.startswith('csv:'):
        return person
    return f'csv:{pathlib.Path(person.removeprefix("csv:")).name}'


def _check_parameters(plan: ledger.Plan, parameters: int) -> None:
    """What a step releases is counted by their number."""
    if parameters != plan.private_parameters:
        raise ConfigError(
            f'The networks have {parameters} parameters that private steps update, and '
            f'{plan.private_parameters} by the ledger: resume with the version of this program '
            'that the run was started with, or start a new run folder.'
        )


def _build(config: RunConfig, train: records.Records) -> gans.EFSGDGan:
    """Builds the GAN; call it in the strategy's scope."""
    model = config.model

    def build_networks():
        return (
            evaluate.untrained_generator(config, train),
            build_discriminator(
                train.image_shape,
                train.num_classes,
                width=model.discriminator_width,
                reconstruction=model.reconstruction,
                latent_dim=model.latent_dim,
            ),
        )

    generator, discriminator = _as_config_error(build_networks, ValueError)
    return gans.EFSGDGan(generator, discriminator, draw_inputs, seed=config.training.seed)


def _compile(gan: gans.EFSGDGan, config: RunConfig, plan: ledger.Plan) -> None:
    """Makes the GAN ready to train by a plan; call it in the strategy's scope."""
    model, training, privacy = config.model, config.training, config.privacy
    compile_gan = functools.partial(
        gan.compile,
        generator_optimizer=tf.keras.optimizers.legacy.Adam(
            training.generator_learning_rate, beta_1=_ADAM_BETA_1
        ),
        discriminator_optimizer=_discriminator_optimizer(config, plan),
        losses=NonSaturatingLosses(),
        expected_batch_size=privacy.expected_batch_size,
        reconstruction_weight=model.reconstruction_weight,
        discriminator_steps=training.discriminator_steps,
        adaptive_discriminator_steps=training.adaptive_discriminator_steps,
        discriminator_only_steps=training.discriminator_only_steps,
        generator_ema=model.generator_ema,
        clip_fake=privacy.clip_fake,
        noise=new_noise(secure=privacy.secure_noise),
        measure_records=privacy.log_nonprivate_diagnostics,
        clipping=privacy.clipping,
        microbatch_size=training.microbatch_size,
    )
    _as_config_error(compile_gan, ValueError)


def _discriminator_optimizer(config: RunConfig, plan: ledger.Plan):
    rate = config.training.discriminator_learning_rate
    if plan.event is None:
        return tf.keras.optimizers.legacy.Adam(rate, beta_1=_ADAM_BETA_1)
    return ErrorFeedbackDPKerasAdamOptimizer(
        expected_batch_size=plan.expected_batch_size,
        learning_rate=rate,
        beta_1=_ADAM_BETA_1,
        **plan.mechanism,
    )


def _software() -> dict[str, str]:
    return {
        'tf_efsgd': __version__,
        'tensorflow': tf.__version__,
        'tensorflow_privacy': tensorflow_privacy.__version__,
        'dp_accounting': importlib.metadata.version('dp-accounting'),
        'python': platform.python_version(),
    }


def _describe(
    plan: ledger.Plan, gan: gans.EFSGDGan, run_dir, epsilon: accounting.Epsilon | None
) -> None:
    height, width, channels = plan.image_shape
    print(
        f'{plan.dataset}: {plan.dataset_size} records, {height}x{width}x{channels}, '
        f'{plan.num_classes} classes. Generator {gan.generator.count_params():,} parameters, '
        f'discriminator {gan.discriminator.count_params():,}. Run folder: {run_dir}'
    )
    if plan.event is None:
        print('NOT PRIVATE: no clipping, no noise.')
        return
    promised, times_units = rounding.up(epsilon.headline), budget.delta_times_units(plan)
    parts = []
    if plan.warm_start_event is not None:
        noise = ' and '.join(f'{value:.4f}' for value in budget.noise_of_releases(plan))
        parts.append(f'warm start with noise multiplier {noise}')
    if plan.train_steps:
        parts.append(
            f'{plan.train_steps} steps of {plan.expected_batch_size} expected records, '
            f'noise multiplier {plan.mechanism["noise_multiplier"]:.4f}'
        )
    print(
        f'{" and ".join(parts)}: ε of the whole run = {promised} '
        f'({epsilon.accountant}) at δ = {plan.target_delta:g}, for {plan.unit_of_privacy}. '
        f'δ times the number of {plan.name_of_units} is {rounding.up(times_units, 2)}.'
    )
    if not epsilon.is_proven:
        print(
            'WARNING: the ε of exact real-valued noise would be '
            f'{rounding.up(epsilon.smallest_bound)}. No ε as large as that can be proven for noise '
            'that is drawn with 128 bits: the run has none.'
        )
    unproven = budget.unproven_epsilon(plan, plan.train_steps)
    if unproven is not None:
        print(
            'WARNING: the error buffer of --error_feedback=hidden is not noised. What a record '
            'left there comes out again in every later step, so sampling hides nothing and ε is '
            f'as large as that. Plain DP-SGD accounting would print {rounding.up(unproven)}, which '
            'is unproven; python -m tf_efsgd.audit shows that it is not true. Checkpoints are '
            'PRIVATE.'
        )
    elif epsilon.accountant == 'RDP':
        print(
            f'WARNING: PLD gives {rounding.up(epsilon.pld)}, more than RDP; the smaller one holds.'
        )


def _shown(epsilon: float | None) -> str:
    return rounding.up(math.inf if epsilon is None else epsilon)


def _print_result(statement: dict, found: dict) -> None:
    if 'epsilon' in statement:
        print(
            f'Spent ε = {_shown(statement["epsilon"])} '
            f'at δ = {statement["delta"]:g} ({statement["accountant"]}) '
            f'in {statement["steps"]} steps, for {statement["unit_of_privacy"]}. δ times their '
            f'number is {rounding.up(statement["delta_times_units"], 2)}.'
        )
        lost = statement['steps'] - statement['applied_steps']
        if lost:
            print(f'{lost} of these steps were lost in interruptions; they are charged too.')
    if not statement['private']:
        print('NOT PRIVATE: do not share what this run made.')
    for name, place in found.items():
        if place is not None:
            print(f'  {name + ":":<16}{place}')
