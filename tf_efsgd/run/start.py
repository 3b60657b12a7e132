"""The parts of a start: plan, ledger, and what is remembered of the run and of other runs.

What can be wrong is found before anything is spent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Collection, Iterator

import tensorflow as tf

from tf_efsgd import budget, file_names, files
from tf_efsgd.config import (
    ConfigError,
    DataConfig,
    PrivacyConfig,
    RunConfig,
    recipes,
    settings_hash,
    without_place,
)
from tf_efsgd.data import records
from tf_efsgd.data.sources import folder
from tf_efsgd.privacy import accounting, ledger_copy, run_state, seen_records
from tf_efsgd.privacy.ledger import START_POSITION, Ledger, LedgerError, new_run_id
from tf_efsgd.privacy.plan import Plan
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run import speed
from tf_efsgd.run.alone import Alone
from tf_efsgd.run.errors import as_config_error

# The file in RUN/nonprivate/ that says which other runs used these records, and how many.
_OTHER_RUNS = 'other_runs.json'

# Locked while a run starts in its folder; `folder.check` knows such names as left behind.
_LOCK = '.start.tmp-lock'

_NOT_PRIVATE_NOTE = """\
NOT PRIVATE. This run was trained without clipping and noise (--noprivate), for comparison. Nothing
in this folder may be shared with anyone who may not see the records.
"""


def public_facts(dataset: records.Dataset) -> dict:
    """What a plan says of the records: public facts by name."""
    train = dataset.train
    return {
        'dataset': run_folder.public_name(dataset.name),
        'dataset_size': dataset.declared_size,
        'image_shape': train.image_shape,
        'num_classes': train.num_classes,
        'images_per_person': dataset.images_per_person,
        'persons': dataset.persons,
    }


def choose_image_size(config: RunConfig, given: Collection[str]) -> RunConfig:
    """Chooses a size for the images of a folder, if nobody gave one.

    It is read off the records, once, and the settings say so.

    Args:
      config: the settings.
      given: names of the settings that somebody gave.
    """
    scheme, _, path = config.data.dataset.partition(':')
    is_open = recipes.is_open(config.privacy, given) and config.data.image_size is None
    if scheme != 'folder' or not is_open:
        return config
    side = folder.usual_side(files.expanded(path))
    size = None if side is None else recipes.image_size(side)
    if size is None:
        return config
    if size != side:
        print(f'Images are resized to {size}x{size}; give --image_size for another size.')
    data = dataclasses.replace(config.data, image_size=size, read_off_records='image_size')
    return dataclasses.replace(config, data=data)


def choose_settings(
    config: RunConfig,
    given: Collection[str],
    dataset: records.Dataset,
    strategy: tf.distribute.Strategy,
    is_alone: bool,
) -> RunConfig:
    """Chooses the settings of a new run that nobody gave, see `config.recipes`.

    Args:
      config: the settings, with the public facts of the records.
      given: names of the settings that somebody gave.
      dataset: the records; only their public facts are used.
      strategy: the one that will train, see `speed.measure`.
      is_alone: whether the strategy belongs to this process alone.
    """
    train = dataset.train
    facts = recipes.Facts(dataset.declared_size, train.num_classes, train.image_shape)

    def measure(settings):
        return speed.measure(settings, train, strategy, is_alone)

    return recipes.complete(config, given, facts, measure)


def make_plan(
    config: RunConfig, ledger: Ledger | None, dataset: records.Dataset, parameters: int
) -> Plan:
    """Makes the plan that the run will train by.

    Args:
      config: the settings.
      ledger: the ledger of a run to resume; None for a new run.
      dataset: the records.
      parameters: how many parameters a private step updates.

    Raises:
      ConfigError: if the settings do not fit the records, or the plan of the run to resume.
    """
    if ledger is None:
        return budget.make_plan(
            config.privacy,
            public_facts(dataset),
            parameters,
            steps_per_entry=config.run.log_steps,
            settings_sha256=settings_hash(config),
        )
    is_allowed = config.run.change_mechanism
    plan = budget.changed_plan(config.privacy, ledger, is_allowed=is_allowed) or ledger.plan
    _check_parameters(ledger.plan, parameters)
    return plan


def count_run(
    privacy: PrivacyConfig,
    state_dir: pathlib.Path,
    run_id: str,
    plan: Plan,
    promised: accounting.Epsilon | None,
    dataset: records.Dataset,
) -> seen_records.OtherRuns:
    """Counts the run among those on its records before it is charged, and prints which these are.

    Args:
      privacy: the settings of privacy.
      state_dir: the folder where things are remembered outside run folders.
      run_id: of the run.
      plan: of the run.
      promised: epsilon of the whole run; None without privacy.
      dataset: the records.

    Returns:
      The other runs.

    Raises:
      ConfigError: if all runs together would pass --dataset_budget.
    """
    promise = seen_records.Promise(
        epsilon=math.inf if promised is None else promised.headline,
        delta=plan.target_delta or 0.0,
        unit=seen_records.IMAGE if plan.images_per_person is None else seen_records.PERSON,
    )
    other_runs = as_config_error(
        lambda: seen_records.count_run(
            state_dir,
            run_id,
            plan.dataset,
            dataset.digests,
            promise,
            privacy.dataset_budget,
            _persons(dataset),
        ),
        seen_records.SeenRecordsError,
    )
    for line in other_runs.lines():
        print(line)
    return other_runs


def _persons(dataset: records.Dataset) -> seen_records.Persons | None:
    """Whose the records are; None if records are not given to persons."""
    if dataset.images_per_person is None:
        return None
    rule = dataset.person_rule
    return seen_records.Persons(rule.content, dataset.person_digests, rule.public)


def start(
    config: RunConfig,
    run_dir: pathlib.Path,
    state_dir: pathlib.Path,
    plan: Plan,
    promised: accounting.Epsilon | None,
    dataset: records.Dataset,
) -> tuple[Ledger, run_state.RunState, seen_records.OtherRuns]:
    """Counts a new run and makes its folder; the ledger comes last.

    A folder without a ledger is no trained run. The run's lock is taken before the run is counted,
    so that what is remembered of it is not removed while it starts.

    Args:
      config: the settings.
      run_dir: the run folder to make.
      state_dir: as in `count_run`.
      plan: of the run.
      promised: as in `count_run`.
      dataset: the records.

    Returns:
      (its ledger, what is remembered of it, the other runs on its records).

    Raises:
      ConfigError: if it cannot start; nothing is remembered of it then.
    """
    train, run_id = dataset.train, new_run_id()

    def make(state):
        run_dir.mkdir(parents=True, exist_ok=True)
        # Of two starts in one folder the second must not write over the settings of the first.
        with _started_alone(run_dir):
            files.write_atomically(run_dir / file_names.FLAGFILE, config.to_flags())
            if plan.event is None:
                files.write_atomically(run_dir / file_names.NOT_PRIVATE, _NOT_PRIVATE_NOTE)
            state.remember_records(train.images, train.labels, START_POSITION)
            return Ledger(run_dir / file_names.LEDGER, plan, run_id)

    errors = (LedgerError, run_state.RunStateError)
    state = None
    try:
        state = as_config_error(lambda: run_state.RunState(state_dir, run_id), errors)
        other_runs = count_run(config.privacy, state_dir, run_id, plan, promised, dataset)
        return as_config_error(lambda: make(state), errors), state, other_runs
    except BaseException:  # The run was never charged, so nothing need be remembered.
        seen_records.forget(state_dir, run_id)
        run_state.forget(state_dir, run_id)
        if state is not None:
            state.close()
        raise


@contextlib.contextmanager
def _started_alone(run_dir: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time start a run in a folder.

    Raises:
      ConfigError: if another one starts there, or has started.
    """
    lock = run_dir / _LOCK
    taken = ConfigError(
        f'Another run started in {run_dir} in the meantime: give this one another --run_dir.'
    )
    with open(lock, 'wb') as file:
        try:
            files.lock(file, lock)
        except BlockingIOError as error:
            raise taken from error
        except files.NoLocksError as error:
            raise ConfigError(str(error)) from error
        try:
            if (run_dir / file_names.LEDGER).exists():
                raise taken
            yield
        finally:
            lock.unlink(missing_ok=True)


def open_ledger(run_dir: pathlib.Path) -> Ledger:
    """Opens the ledger of a run to resume.

    Raises:
      ConfigError: if it cannot be trusted, or another process has it open.
    """
    return as_config_error(lambda: Ledger(run_dir / file_names.LEDGER), LedgerError)


def remembered(
    config: RunConfig,
    run_dir: pathlib.Path,
    state_dir: pathlib.Path,
    ledger: Ledger,
    dataset: records.Dataset,
) -> run_state.RunState:
    """Opens what is remembered of a run to resume, and compares the run with it.

    Args:
      config: the settings.
      run_dir: the run folder.
      state_dir: as in `count_run`.
      ledger: its ledger.
      dataset: the records.

    Raises:
      ConfigError: if its settings, records or ledger are not the remembered ones.
    """
    facts = public_facts(dataset)
    if without_place(config.data.dataset, 'dataset') != config.data.dataset:
        del facts['dataset']  # Its folder may have another name now; its records are compared.
    _check_public_facts(ledger.plan, facts)
    hashes = (settings_hash(config), settings_hash(config, has_place=True))
    if ledger.first_plan.settings_sha256 not in hashes:
        raise ConfigError(
            'The settings are not those that the run was started with: its ledger has another '
            f'hash, so {run_dir / file_names.FLAGFILE} was changed. Start a new run folder.'
        )

    def remember():
        state = run_state.RunState(state_dir, ledger.run_id)
        try:
            _verify(config, state_dir, ledger, dataset.train, state)
        except BaseException:
            state.close()
            raise
        return state

    return as_config_error(remember, (LedgerError, run_state.RunStateError))


def _verify(config, state_dir, ledger, train, state) -> None:
    """Raises unless records and ledger are the remembered ones, or --resume_unverified is given."""
    if state.is_known:
        state.check_records(train.images, train.labels)
        ledger.check_position(state.position)
    elif config.run.resume_unverified:
        _check_count(config.data, ledger.plan, train)
        _check_public_facts(ledger.plan, {'dataset': run_folder.public_name(config.data.dataset)})
        print(
            'WARNING: nothing is remembered of this run here, so it is not checked whether its '
            'records and ledger are the latest ones (--resume_unverified). The statement says so.'
        )
        ledger.note_unverified_resume()
        state.remember_records(train.images, train.labels, ledger.position)
    else:
        raise ConfigError(
            f'{state_dir} remembers nothing of this run, so its records and its ledger cannot be '
            'verified. Resume on the machine and as the user that started it, or give its '
            '--state_dir. If you are sure that both are the latest ones, --resume_unverified '
            'continues anyway; the statement records it.'
        )


def _check_count(data: DataConfig, plan: Plan, train: records.Records) -> None:
    """Raises if the number of records was read off them and is another one now."""
    is_exact = 'dataset_size' in data.read_off and data.limit_records is None
    if is_exact and len(train) != plan.dataset_size:
        raise ConfigError(
            'The data set is not the one that the run was started with: dataset_size was '
            f'{plan.dataset_size}, is {len(train)}. Resume with the same data, or start a new run '
            'folder.'
        )


def _check_public_facts(plan: Plan, facts: dict) -> None:
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


def _check_parameters(plan: Plan, parameters: int) -> None:
    """Raises if the number of parameters is not the plan's: the account depends on it."""
    if parameters != plan.private_parameters:
        raise ConfigError(
            f'The networks have {parameters} parameters that private steps update, but the ledger '
            f'says {plan.private_parameters}: resume with the version of this program that the run '
            'was started with, or start a new run folder.'
        )


def note_other_runs(run_dir: pathlib.Path, other_runs: seen_records.OtherRuns) -> None:
    """Writes to RUN/nonprivate what comparing the records with those of other runs found."""
    files.write_atomically(
        run_folder.nonprivate_dir(run_dir) / _OTHER_RUNS,
        json.dumps(other_runs.to_nonprivate(), indent=2) + '\n',
    )


def remember_share(
    workers: Alone,
    config: RunConfig,
    state_dir: pathlib.Path,
    ledger: Ledger,
    state: run_state.RunState | ledger_copy.NothingRemembered,
    dataset: records.Dataset,
    stack: contextlib.ExitStack,
) -> None:
    """Remembers the records that only this worker has, or compares them with what is remembered.

    It does nothing on the chief, which remembers its records with the run, or if all workers have
    the same records. If the records of a worker could not be verified, the ledger notes it before
    they are remembered.

    Args:
      workers: of the run.
      config: the settings.
      state_dir: as in `count_run`, of this worker.
      ledger: the ledger of the run.
      state: what is remembered of the run.
      dataset: the records that this worker has.
      stack: closes what is remembered when the run ends.

    Raises:
      ConfigError: on all workers, if one has other records than at the first start.
    """
    if not workers.has_own_records:
        return
    own = workers.together(lambda: _check_own(workers, config, state_dir, ledger, dataset, stack))
    is_new = own is not None and not own.is_known
    if config.run.resume and workers.all_reduce_max(int(is_new)):
        workers.only_on_chief(lambda: _note_unverified(ledger, state))
    if is_new:
        own.remember_records(dataset.train.images, dataset.train.labels, ledger.position)


def _check_own(workers, config, state_dir, ledger, dataset, stack) -> run_state.RunState | None:
    """Compares this worker's records with what is remembered of them; None on the chief."""
    if workers.is_chief:
        return None
    train, run_id = dataset.train, f'{ledger.run_id}-worker-{workers.index}'
    own = as_config_error(lambda: run_state.RunState(state_dir, run_id), run_state.RunStateError)
    stack.callback(own.close)
    if own.is_known:
        as_config_error(
            lambda: own.check_records(train.images, train.labels), run_state.RunStateError
        )
    elif config.run.resume and not config.run.resume_unverified:
        raise ConfigError(
            f'{state_dir} remembers nothing of the records of this worker: give its --state_dir. '
            'If you are sure that the records are those of the first start, --resume_unverified '
            'continues anyway.'
        )
    return own


def _note_unverified(ledger, state) -> None:
    print(
        'WARNING: what another worker has of the records is not checked: nothing is remembered of '
        'them there (--resume_unverified). The statement says so.'
    )
    ledger.note_unverified_resume()
    state.store_position(ledger.position)
