"""One run, in order: data, plan, strategy, model, fit, evaluate, export, report.

Everything that can be wrong is found out before the run folder exists and before any privacy is
spent.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import math
import pathlib
import platform
import time
from collections.abc import Callable

import dp_accounting
import numpy as np
import tensorflow as tf
import tensorflow_privacy

from tf_efsgd import checkpoints, export, monitoring
from tf_efsgd.config import ConfigError, RunConfig, from_flagfile
from tf_efsgd.data import poisson, records
from tf_efsgd.evaluation import classifiers, report
from tf_efsgd.models import gan as gans
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.privacy import accounting, ledger
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer
from tf_efsgd.version import __version__

_GENERATE_BATCH = 500
_ADAM_BETA_1 = 0.5  # as usual for GANs; the default 0.9 makes the two players overshoot
_SAMPLE_SEED, _EVALUATION_SEED = 101, 102

NOT_COVERED = (
    'anything in the folder nonprivate/ (evaluation against real images)',
    'the choice of settings after looking at other runs on the same records',
    'other runs on the same records, and copies of this run folder that were trained further: '
    'their epsilons add up',
    'the declared number of records, the image size, the classes and all settings, which are '
    'public',
    'the time that steps take',
    'several records of one person: the guarantee is per record (one image with its label)',
)


def run(config: RunConfig) -> str:
    """Trains, evaluates and exports.

    Args:
      config: the settings.

    Returns:
      The run folder.

    Raises:
      ConfigError: if a setting does not fit the data, the machine or the run folder; nothing has
        been written then, and no privacy spent.
    """
    logging.getLogger('tensorflow').addFilter(
        # vectorized_map says this of every convolution.
        lambda record: 'uses a while_loop' not in record.getMessage()
    )
    run_dir = _run_dir(config)
    _check_run_dir(run_dir, config)
    strategy = _make_strategy(config)
    dataset = _load(config)
    if config.run.resume:
        spent = _reopen_ledger(run_dir, dataset)
        plan = spent.plan
    else:
        spent, plan = None, _make_plan(config, dataset)
    with strategy.scope():
        gan = _build(config, dataset.train, plan)
    _describe(config, plan, gan, run_dir)

    trained = _Run(config, run_dir, dataset, plan, gan, strategy)
    trained.open(spent)
    trained.fit()
    trained.finish()
    return str(run_dir)


class _Run:
    """A run folder and what goes on in it."""

    def __init__(self, config, run_dir, dataset, plan, gan, strategy):
        self._config = config
        self._dir = run_dir
        self._dataset = dataset
        self._plan = plan
        self._gan = gan
        self._strategy = strategy

    def open(self, spent: ledger.Ledger | None) -> None:
        """Makes the run folder, or goes on in it from its last checkpoint with what it spent."""
        self._dir.mkdir(parents=True, exist_ok=True)
        (self._dir / 'samples').mkdir(exist_ok=True)
        if spent is None:
            (self._dir / 'config.flags').write_text(self._config.to_flags())
            spent = ledger.Ledger(self._dir / 'ledger.jsonl', self._plan)
        self._ledger = spent
        self._checkpoints = checkpoints.RunCheckpoints(str(self._dir / 'checkpoints'), self._gan)
        position = self._checkpoints.restore_latest()
        if position is not None:
            _as_config_error(lambda: spent.check_position(position), ledger.LedgerError)

    def fit(self) -> None:
        """Runs the steps that the budget still allows."""
        first = int(self._gan.private_steps.numpy())
        last = first + self._ledger.remaining_steps
        if first == last:
            print('The budget is spent: nothing left to train.')
            return
        batches = self._strategy.distribute_datasets_from_function(self._batches)
        started = time.monotonic()
        self._gan.fit(
            batches,
            steps_per_epoch=last - first,
            callbacks=self._callbacks(first, last),
            verbose=0,
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
            title=f'{self._plan.dataset}: synthetic images',
            private=statement['private'],
            statement=statement,
            samples_png=found['sample picture'],
            sample_caption='One class per column: ' + ', '.join(self._dataset.train.class_names),
            history=monitoring.read_scalars(str(self._dir / 'logs')),
            config_text=_public_config(self._config, statement['dataset']).to_flags(),
        )
        if settings.export:
            found['SavedModel'] = self._export(statement)
        if settings.evaluate:
            found['evaluation'] = self._evaluate()
        found['TensorBoard'] = f'tensorboard --logdir {self._dir / "logs"}'
        _print_result(statement, found)

    def _batches(self, context: tf.distribute.InputContext) -> tf.data.Dataset:
        train = self._dataset.train
        return poisson.poisson_batches(
            train.images,
            train.labels,
            accounting.sampling_threshold(self._config.privacy.expected_batch_size, len(train)),
            num_replicas=context.num_replicas_in_sync,
        )

    def _callbacks(self, first: int, last: int) -> list[tf.keras.callbacks.Callback]:
        settings, plan = self._config.run, self._plan
        epsilon = self._epsilon_so_far(first) if self._config.privacy.private else None
        writer = tf.summary.create_file_writer(str(self._dir / 'logs'))
        return [
            monitoring.Budget(
                self._ledger.reserve,
                lambda: self._ledger.remaining_steps,
                plan.steps_per_entry,
            ),
            monitoring.TensorBoardScalars(writer, first, last, settings.log_steps, epsilon),
            monitoring.SampleGrid(
                writer,
                str(self._dir / 'samples'),
                lambda labels: _generate(self._gan, labels, _SAMPLE_SEED),
                plan.num_classes,
                first,
                last,
                settings.sample_steps,
            ),
            monitoring.Checkpoint(
                lambda step: self._checkpoints.save(step, self._ledger.position),
                first,
                last,
                settings.checkpoint_steps,
            ),
            monitoring.ProgressBar(first, last, settings.log_steps, epsilon),
        ]

    def _epsilon_so_far(self, first: int) -> Callable[[int], float]:
        """Upper bound on the epsilon spent when so many steps are applied, `first` at the start."""
        plan = self._plan
        meter = accounting.EpsilonMeter(_event(plan), plan.train_steps, plan.target_delta)
        lost = self._ledger.reserved_steps - first  # in interruptions; charged all the same
        return lambda steps: meter(steps + lost)

    def _last_samples(self) -> str | None:
        pictures = sorted((self._dir / 'samples').glob('step_*.png'))
        return str(pictures[-1]) if pictures else None

    def _statement(self) -> dict:
        """The privacy statement: what was promised, computed from the ledger."""
        privacy, plan = self._config.privacy, self._ledger.plan
        statement = {
            'private': privacy.private,
            'dataset': plan.dataset,
            'dataset_size': plan.dataset_size,
            'record': 'one image with its label',
            'applied_steps': int(self._gan.private_steps.numpy()),
            'software': _software(),
        }
        if not privacy.private:
            return {**statement, 'mechanism': 'none: trained without clipping and noise'}
        spent = accounting.compute_epsilon(
            _event(plan), self._ledger.reserved_steps, plan.target_delta
        )
        mechanism = self._gan.discriminator_optimizer.mechanism
        return {
            **statement,
            'epsilon': spent.headline,
            'delta': plan.target_delta,
            'target_epsilon': plan.target_epsilon,
            'epsilon_pld': _or_none(spent.pld),
            'epsilon_rdp': _or_none(spent.rdp),
            'accountant': spent.accountant,
            'neighboring_relation': 'ADD_OR_REMOVE_ONE',
            'sampling': 'Poisson',
            'sampling_probability': plan.sampling_probability,
            'expected_batch_size': privacy.expected_batch_size,
            'steps': self._ledger.reserved_steps,
            'mechanism': 'Gaussian on clipped per-example gradients, '
            + ('error feedback from noised residuals' if mechanism.feeds_back else 'DP-SGD'),
            **dataclasses.asdict(mechanism),
            'not_covered': list(NOT_COVERED),
        }

    def _export(self, statement: dict) -> str:
        target = self._dir / 'export' / '1'
        if target.exists():
            print(f'{target} exists already and is kept.')
            return str(target)
        target.parent.mkdir(exist_ok=True)
        export.export_generator(
            self._gan.generate,
            self._gan.ema_generator.variables,
            target,
            num_classes=self._plan.num_classes,
            statement=statement,
        )
        return str(target)

    def _evaluate(self) -> str | None:
        """gen2real accuracy. Sees real images: written apart, not covered by epsilon."""
        train, test = self._dataset.train, self._dataset.test
        if test is None or train.num_classes < 2:
            print('No evaluation: it needs a test split and at least two classes.')
            return None
        count = self._config.run.evaluation_images
        labels = np.arange(count, dtype=np.int32) % train.num_classes
        generated = records.Records(
            images=_generate(self._gan, labels, _EVALUATION_SEED),
            labels=labels,
            num_classes=train.num_classes,
            class_names=train.class_names,
        )
        print(f'Evaluating: a CNN learns from {count} generated images (NOT covered by epsilon).')
        result = classifiers.gen2real(generated, test, verbose=True)
        path = self._dir / 'nonprivate' / 'metrics.json'
        path.parent.mkdir(exist_ok=True)
        metrics = {
            'note': 'Measured on real images: not covered by the privacy guarantee.',
            'steps': int(self._gan.private_steps.numpy()),
            'gen2real_cnn': dataclasses.asdict(result),
        }
        path.write_text(json.dumps(metrics, indent=2) + '\n')
        print(f'gen2real CNN accuracy: {result.accuracy:.1%} on {result.num_test} real images.')
        return str(path)


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


def _check_run_dir(run_dir: pathlib.Path, config: RunConfig) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f'--run_dir must be a folder. Received: {run_dir}.')
    has_files = run_dir.is_dir() and any(run_dir.iterdir())
    if not config.run.resume:
        if has_files:
            raise ConfigError(
                f'The run folder {run_dir} is not empty: give --resume to go on with it, or '
                'another --run_dir.'
            )
        return
    flagfile = run_dir / 'config.flags'
    if not flagfile.is_file():
        raise ConfigError(f'Nothing to resume: there is no {flagfile}.')
    before = from_flagfile(flagfile.read_text())
    for group in ('data', 'privacy', 'model', 'training'):
        old, new = getattr(before, group), getattr(config, group)
        changed = [
            f'--{field.name} was {getattr(old, field.name)}, is {getattr(new, field.name)}'
            for field in dataclasses.fields(new)
            if field.name not in _MAY_CHANGE
            and getattr(old, field.name) != getattr(new, field.name)
        ]
        if changed:
            raise ConfigError(
                f'{run_dir} was started with other settings: {"; ".join(changed)}. Resume with '
                f'--flagfile={flagfile}, or start a new run folder.'
            )


# Where things are and what computes them; never what is computed.
_MAY_CHANGE = frozenset({'data_dir', 'tfds_manual_dir', 'strategy', 'logical_devices'})


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
    data = config.data
    return _as_config_error(
        lambda: records.load(
            data.dataset,
            data_dir=data.data_dir,
            manual_dir=data.tfds_manual_dir,
            image_size=data.image_size,
            label=data.label,
            limit_records=data.limit_records,
        ),
        records.DataError,
    )


def _public_config(config: RunConfig, dataset: str) -> RunConfig:
    """The settings without where things are on this machine."""
    data = dataclasses.replace(config.data, dataset=dataset, data_dir=None, tfds_manual_dir=None)
    run_settings = dataclasses.replace(config.run, run_dir=None, resume=False)
    return dataclasses.replace(config, data=data, run=run_settings)


def _reopen_ledger(run_dir: pathlib.Path, dataset: records.Dataset) -> ledger.Ledger:
    """The ledger of the run to resume, if it was written for these records."""
    spent = _as_config_error(lambda: ledger.Ledger(run_dir / 'ledger.jsonl'), ledger.LedgerError)
    now = dataclasses.replace(spent.plan, **_public_facts(dataset))
    if now != spent.plan:
        changed = [
            f'{name} was {getattr(spent.plan, name)}, is {value}'
            for name, value in _public_facts(dataset).items()
            if value != getattr(spent.plan, name)
        ]
        raise ConfigError(
            f'The data set is not the one that {run_dir} was started with: {"; ".join(changed)}. '
            'Resume with the same data, or start a new run folder.'
        )
    return spent


def _public_facts(dataset: records.Dataset) -> dict:
    train = dataset.train
    return {
        'dataset': _public_name(dataset.name),
        'dataset_size': len(train),
        'image_shape': train.image_shape,
        'num_classes': train.num_classes,
    }


def _public_name(dataset: str) -> str:
    """The data set's name without where it is on this machine."""
    scheme, colon, path = dataset.partition(':')
    return f'{scheme}:{pathlib.Path(path).resolve().name}' if colon else dataset


def _make_plan(config: RunConfig, dataset: records.Dataset) -> ledger.Plan:
    privacy, train = config.privacy, dataset.train
    if privacy.expected_batch_size > len(train):
        raise ConfigError(
            f'--expected_batch_size must be at most the number of records, {len(train)}. '
            f'Received: {privacy.expected_batch_size}.'
        )
    probability = noise_multiplier = None
    if privacy.private:
        if privacy.target_delta >= 1 / len(train):
            print(
                f'WARNING: --target_delta={privacy.target_delta:g} is not below 1 / number of '
                f'records = {1 / len(train):.1e}; such a guarantee says little.'
            )
        probability = accounting.sampling_probability(privacy.expected_batch_size, len(train))
        noise_multiplier = privacy.noise_multiplier
        if noise_multiplier is None:
            print('Calibrating the noise ...', flush=True)
            noise_multiplier = _as_config_error(
                lambda: accounting.calibrate_noise_multiplier(
                    privacy.target_epsilon, privacy.target_delta, probability, privacy.train_steps
                ),
                ValueError,
            )
    return ledger.Plan(
        **_public_facts(dataset),
        sampling_probability=probability,
        noise_multiplier=noise_multiplier,
        train_steps=privacy.train_steps,
        target_delta=privacy.target_delta if privacy.private else None,
        target_epsilon=privacy.target_epsilon if privacy.private else None,
        steps_per_entry=config.run.log_steps,
    )


def _event(plan: ledger.Plan) -> dp_accounting.DpEvent:
    return accounting.step_event(plan.sampling_probability, plan.noise_multiplier)


def _build(config: RunConfig, train: records.Records, plan: ledger.Plan) -> gans.EFSGDGan:
    """Builds and compiles the GAN; call it in the strategy's scope."""
    model, training, privacy = config.model, config.training, config.privacy
    tf.keras.utils.set_random_seed(training.seed)  # initial weights: public

    def build_networks():
        return (
            build_generator(
                train.image_shape,
                train.num_classes,
                latent_dim=model.latent_dim,
                width=model.generator_width,
                noise_injection=model.noise_injection,
            ),
            build_discriminator(
                train.image_shape,
                train.num_classes,
                width=model.discriminator_width,
                reconstruction=model.reconstruction,
            ),
        )

    generator, discriminator = _as_config_error(build_networks, ValueError)
    gan = gans.EFSGDGan(generator, discriminator, draw_inputs, seed=training.seed)
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(
            training.generator_learning_rate, beta_1=_ADAM_BETA_1
        ),
        discriminator_optimizer=_discriminator_optimizer(config, plan),
        losses=NonSaturatingLosses(),
        expected_batch_size=privacy.expected_batch_size,
        reconstruction_weight=model.reconstruction_weight,
        discriminator_steps=training.discriminator_steps,
        adaptive_discriminator_steps=training.adaptive_discriminator_steps,
        generator_ema=model.generator_ema,
        clip_fake=privacy.clip_fake,
    )
    return gan


def _discriminator_optimizer(config: RunConfig, plan: ledger.Plan):
    rate, privacy = config.training.discriminator_learning_rate, config.privacy
    if not privacy.private:
        return tf.keras.optimizers.legacy.Adam(rate, beta_1=_ADAM_BETA_1)
    return ErrorFeedbackDPKerasAdamOptimizer(
        l2_norm_clip=privacy.l2_norm_clip,
        noise_multiplier=plan.noise_multiplier,
        expected_batch_size=privacy.expected_batch_size,
        error_feedback=privacy.error_feedback,
        residual_l2_norm_clip=privacy.residual_l2_norm_clip,
        residual_share=privacy.residual_share,
        feedback_decay=privacy.feedback_decay,
        feedback_l2_norm_clip=privacy.feedback_l2_norm_clip,
        learning_rate=rate,
        beta_1=_ADAM_BETA_1,
    )


def _generate(gan: gans.EFSGDGan, labels: np.ndarray, seed: int) -> np.ndarray:
    """Images uint8 [n, H, W, C] for int32 labels [n]; the same for the same seed and weights."""
    parts = []
    for start in range(0, len(labels), _GENERATE_BATCH):
        part = tf.constant(labels[start : start + _GENERATE_BATCH])
        images = gan.generate(part, seed=tf.constant([seed, start], tf.int32))
        parts.append(gans.to_uint8(images).numpy())
    return np.concatenate(parts)


def _or_none(bound: float) -> float | None:
    """JSON has no infinity: a bound that does not exist is null."""
    return bound if math.isfinite(bound) else None


def _software() -> dict[str, str]:
    return {
        'tf_efsgd': __version__,
        'tensorflow': tf.__version__,
        'tensorflow_privacy': tensorflow_privacy.__version__,
        'dp_accounting': importlib.metadata.version('dp-accounting'),
        'python': platform.python_version(),
    }


def _describe(config: RunConfig, plan: ledger.Plan, gan: gans.EFSGDGan, run_dir) -> None:
    height, width, channels = plan.image_shape
    print(
        f'{plan.dataset}: {plan.dataset_size} records, {height}x{width}x{channels}, '
        f'{plan.num_classes} classes. Generator {gan.generator.count_params():,} parameters, '
        f'discriminator {gan.discriminator.count_params():,}. Run folder: {run_dir}'
    )
    if plan.sampling_probability is None:
        print('NOT PRIVATE: no clipping, no noise.')
        return
    epsilon = accounting.compute_epsilon(_event(plan), plan.train_steps, plan.target_delta)
    print(
        f'{plan.train_steps} steps of {config.privacy.expected_batch_size} expected records, '
        f'noise multiplier {plan.noise_multiplier:.4f}: '
        f'ε = {monitoring.round_up(epsilon.headline, 3)} ({epsilon.accountant}) '
        f'at δ = {plan.target_delta:g}.'
    )
    if epsilon.accountant != 'PLD':
        print(f'WARNING: PLD gives {epsilon.pld:.3f}, more than RDP; the smaller one holds.')


def _print_result(statement: dict, found: dict) -> None:
    if statement['private']:
        print(
            f'Spent ε = {monitoring.round_up(statement["epsilon"], 3)} '
            f'at δ = {statement["delta"]:g} ({statement["accountant"]}) '
            f'in {statement["steps"]} steps.'
        )
        lost = statement['steps'] - statement['applied_steps']
        if lost:
            print(f'{lost} of these steps were lost in interruptions; they are charged too.')
    else:
        print('NOT PRIVATE: do not share what this run made.')
    for name, place in found.items():
        if place is not None:
            print(f'  {name + ":":<16}{place}')
