"""Everything before the first privacy is spent: settings and records, networks and plan, ledger.

What can be wrong is found here, before the run folder exists. With several workers the chief
decides, and the others take over what it decided.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Collection

import tensorflow as tf
from tensorflow.python.framework import config as tf_config

from tf_efsgd import budget, progress
from tf_efsgd.config import ConfigError, RunConfig
from tf_efsgd.data.records import Dataset
from tf_efsgd.models.public_heads import HeadInputs
from tf_efsgd.privacy import layer_norms, ledger_copy, run_state, seen_records
from tf_efsgd.privacy.features import pixels, public
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.privacy.plan import Plan
from tf_efsgd.run import build, devices, evaluate, messages, shares, start
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.alone import Alone
from tf_efsgd.run.context import Sources
from tf_efsgd.training.gan import EFSGDGan


@dataclasses.dataclass(frozen=True)
class Settled:
    """The settings and records of a run, and what a run to resume has from its first start.

    Attributes:
      config: the settings, with every public fact declared.
      state_dir: the folder where things are remembered outside the run folder.
      strategy: the one that the networks are built under.
      dataset: the records. PRIVATE.
      ledger: the ledger of a run to resume; None for a new run, and on workers that are not the
        chief.
      state: what is remembered of a run to resume; None where `ledger` is.
    """

    config: RunConfig
    state_dir: pathlib.Path
    strategy: tf.distribute.Strategy
    dataset: Dataset
    ledger: Ledger | None
    state: run_state.RunState | None


@dataclasses.dataclass(frozen=True)
class Built:
    """The networks of a run, ready to train, and the plan that they train by.

    Attributes:
      gan: the compiled model; its private step was tried.
      head_inputs: what a discriminator of heads sees of an image; None if it sees images.
      network: the frozen network that learned from public images; None without public features.
      features: of the first release, tried; None in a run without one, and in a resumed run.
      plan: the plan of the run from now on.
    """

    gan: EFSGDGan
    head_inputs: HeadInputs | None
    network: tf.keras.Model | None
    features: pixels.FeatureMap | public.PublicFeatures | None
    plan: Plan


@dataclasses.dataclass(frozen=True)
class Opened:
    """Where the run writes what it spends; on workers that are not the chief nothing is written.

    Attributes:
      ledger: the ledger, or a copy in memory.
      state: what is remembered of the run.
      other_runs: those on the same records; None on workers that are not the chief.
    """

    ledger: Ledger
    state: run_state.RunState | ledger_copy.NothingRemembered
    other_runs: seen_records.OtherRuns | None


def _check_tensorflow() -> None:
    """Raises ConfigError if TensorFlow has global settings with which no run can end well."""
    # The exported generator draws new latents at each call, which determinism forbids.
    if tf_config.is_op_determinism_enabled():
        raise ConfigError(
            'TensorFlow is set to be deterministic, and then an exported generator cannot draw '
            'new images: unset TF_DETERMINISTIC_OPS, or leave enable_op_determinism() out.'
        )
    usual = {'floatx': 'float32', 'image_data_format': 'channels_last'}
    found = {name: getattr(tf.keras.backend, name)() for name in usual}
    usual['mixed precision'] = 'float32'
    found['mixed precision'] = tf.keras.mixed_precision.global_policy().name
    for name, value in found.items():
        if value != usual[name]:
            raise ConfigError(
                f'Keras must be set to {name} {usual[name]}, by its functions or '
                f'~/.keras/keras.json. Received: {value}.'
            )


def settle(
    config: RunConfig,
    run_dir: pathlib.Path,
    given: Collection[str],
    sources: Sources,
    team: Alone,
    stack: contextlib.ExitStack,
) -> Settled:
    """Loads the records and settles every setting; nothing is written.

    Args:
      config: the settings as they were given.
      run_dir: the run folder.
      given: names of the settings that somebody gave, see `runner.run`.
      sources: of records, samples and noise.
      team: the workers of the run.
      stack: closes, when the run ends, what is opened here.

    Raises:
      ConfigError: if a setting does not fit the data, the machine or the run folder.
    """
    _check_tensorflow()
    # Features are tried, and measured, with the arithmetic that they are computed with later.
    layer_norms.switch_off_tensor_float_32()
    config = run_folder.with_whole_paths(config)
    config = team.settings_of_chief(lambda: run_folder.check(run_dir, config, given), config)
    state_dir = team.together(lambda: run_folder.state_dir(config, run_dir))
    strategy = team.strategy or devices.make_strategy(config.training)
    device = devices.describe(strategy, team.count)
    messages.begin(device, config, given, devices.warning(config.training))
    ledger = state = None
    if config.run.resume:
        ledger = team.only_on_chief(lambda: _close_at_end(stack, start.open_ledger(run_dir)))
    else:
        config = team.settings_of_chief(lambda: start.choose_image_size(config, given), config)
    dataset = team.together(lambda: sources.load(config))
    config = team.settings_of_chief(lambda: run_folder.declare(config, dataset), config)
    dataset = shares.check(team, dataset)
    if config.run.evaluate:
        team.only_on_chief(lambda: evaluate.check_records(dataset))
    if config.run.resume:
        state = team.only_on_chief(
            lambda: _close_at_end(
                stack, start.remembered(config, run_dir, state_dir, ledger, dataset)
            )
        )
    else:
        config = team.settings_of_chief(
            lambda: start.choose_settings(config, given, dataset, strategy, team.count == 1), config
        )
    return Settled(config, state_dir, strategy, dataset, ledger, state)


def build_networks(settled: Settled, sources: Sources, team: Alone) -> Built:
    """Builds the networks, makes the plan and tries the private step; nothing is written.

    Args:
      settled: from `settle`.
      sources: of records, samples and noise.
      team: the workers of the run.

    Raises:
      ConfigError: if the networks do not go with the records, or the plan with the ledger.
    """
    config, train = settled.config, settled.dataset.train
    with settled.strategy.scope():
        network = build.build_public_network(config.privacy, train)
    shares.check_network(team, network)
    with progress.waiting('Building the networks'), settled.strategy.scope():
        gan, head_inputs = build.build_gan(config, train, network)
    if head_inputs is not None:
        team.together(lambda: build.try_head_inputs(head_inputs, train.image_shape))
    parameters = sum(v.shape.num_elements() for v in gan.private_variables)
    plan = team.plan_of_chief(
        lambda: start.make_plan(config, settled.ledger, settled.dataset, parameters)
    )
    features = None
    if config.privacy.has_warm_start and not config.run.resume:
        with progress.waiting('Trying the features of the release'):
            features = build.build_features(plan, network)
            team.together(lambda: build.try_rows(features.rows))
    with progress.waiting('Trying the private step'), settled.strategy.scope():
        noise = sources.new_noise(secure=config.privacy.secure_noise)
        build.compile_gan(gan, config, plan, team.noise_of_chief(noise))
    return Built(gan, head_inputs, network, features, plan)


def open_run(
    settled: Settled,
    built: Built,
    run_dir: pathlib.Path,
    team: Alone,
    stack: contextlib.ExitStack,
) -> Opened:
    """Counts the run among those on its records, and makes its folder if it is new.

    Args:
      settled: from `settle`.
      built: from `build_networks`.
      run_dir: the run folder.
      team: the workers of the run.
      stack: closes, when the run ends, what is opened here.

    Raises:
      ConfigError: if the run cannot start; a new run is not remembered then.
    """
    opened = team.only_on_chief(lambda: _open_on_chief(settled, built, run_dir, stack))
    content = team.broadcast(opened.ledger.content if team.is_chief and team.count > 1 else None)
    if not team.is_chief:
        opened = Opened(ledger_copy.LedgerCopy(content), ledger_copy.NothingRemembered(), None)
    start.remember_share(
        team,
        settled.config,
        settled.state_dir,
        opened.ledger,
        opened.state,
        settled.dataset,
        stack,
    )
    return opened


def _open_on_chief(settled, built, run_dir, stack) -> Opened:
    config, state_dir, dataset = settled.config, settled.state_dir, settled.dataset
    plan, ledger = built.plan, settled.ledger
    promised = None if plan.event is None else budget.promised_epsilon(plan, ledger)
    messages.describe(plan, built.gan, run_dir, promised)
    if ledger is not None:
        counted = start.count_run(config.privacy, state_dir, ledger.run_id, plan, promised, dataset)
        return Opened(ledger, settled.state, counted)
    messages.warn_of_few(plan, promised)
    ledger, state, counted = start.start(config, run_dir, state_dir, plan, promised, dataset)
    return Opened(_close_at_end(stack, ledger), _close_at_end(stack, state), counted)


def _close_at_end(stack: contextlib.ExitStack, opened):
    """Has what was opened closed when the run ends, however it ends."""
    stack.callback(opened.close)
    return opened
