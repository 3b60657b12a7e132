"""Makes the export and the report of a run again from its folder, without the records."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tf_efsgd import budget, file_names
from tf_efsgd.config import ConfigError, DataConfig, RunConfig, settings_hash
from tf_efsgd.data.records import Records
from tf_efsgd.export import versions
from tf_efsgd.privacy import seen_records
from tf_efsgd.privacy.ledger import Ledger, LedgerError
from tf_efsgd.privacy.plan import Plan
from tf_efsgd.run import build, checkpoints, exports, finish
from tf_efsgd.run import folder as run_folder


def export(run_dir: pathlib.Path) -> dict[str, Any]:
    """Exports the generator of a run's last checkpoint, as the next version if it has changed.

    Args:
      run_dir: the folder of a run that was trained, or is being trained.

    Returns:
      By name: `export_dir`, whether it `is_new`, and the `privacy_statement`.

    Raises:
      ConfigError: if there is no such run, or nothing of it was trained.
    """
    config, ledger, generator, step = _read(run_dir)
    statement = _statement(run_dir, config, ledger, step, generator)
    try:
        target, is_new = exports.export(run_dir, generator, statement)
    except ValueError as error:  # The statement claims more than its numbers support.
        raise ConfigError(str(error)) from error
    return {
        'export_dir': str(target),
        'is_new': is_new,
        'privacy_statement': versions.read_statement(target),
    }


def report(run_dir: pathlib.Path) -> dict[str, Any]:
    """Writes RUN/report.html again, from the last checkpoint and the ledger.

    Args:
      run_dir: as in `export`.

    Returns:
      By name: `report`, the path of the page, and the `privacy_statement`.

    Raises:
      ConfigError: as in `export`.
    """
    config, ledger, generator, step = _read(run_dir)
    statement = _statement(run_dir, config, ledger, step, generator)
    page = finish.write_report(run_dir, config, statement, ledger.run_id)
    return {'report': str(page), 'privacy_statement': statement}


def _read(run_dir: pathlib.Path) -> tuple[RunConfig, Ledger, tf.keras.Model, int]:
    """The settings, the ledger, and the generator of the last checkpoint with its step.

    The ledger is read after the checkpoint, so it has paid for everything that the generator has
    learned, even while the run trains.
    """
    config = run_folder.read_settings(run_dir)
    path = run_dir / file_names.LEDGER
    try:
        generator = _untrained(run_dir, config, Ledger.read(path).plan)
        restored = checkpoints.restore_generator(run_dir / file_names.CHECKPOINTS, generator)
        ledger = Ledger.read(path)
        ledger.check_position(restored.ledger_position)
    except (LedgerError, OSError, checkpoints.CheckpointError) as error:
        raise ConfigError(str(error)) from error
    hashes = (settings_hash(config), settings_hash(config, has_place=True))
    if ledger.first_plan.settings_sha256 not in hashes:
        raise ConfigError(
            f'The settings of {run_dir} are not those that it was started with: its ledger has '
            f'another hash, so {run_dir / file_names.FLAGFILE} was changed. Restore that file.'
        )
    try:
        budget.changed_plan(config.privacy, ledger, is_allowed=False)
    except ConfigError as error:
        raise ConfigError(
            f'The privacy settings of {run_dir} are not those of its ledger, so '
            f'{run_dir / file_names.FLAGFILE} was changed. Restore that file.'
        ) from error
    if restored.step > ledger.reserved_steps:
        raise ConfigError(
            f'{path} has paid for {ledger.reserved_steps:,} steps, and the last checkpoint is of '
            f'step {restored.step:,}: what was spent cannot be known. Restore the ledger.'
        )
    return config, ledger, generator, restored.step


def _untrained(run_dir: pathlib.Path, config: RunConfig, plan: Plan) -> tf.keras.Model:
    names = _class_names(run_dir, config.data, plan.num_classes)
    shape = Records(
        np.zeros([0, *plan.image_shape], np.uint8), np.zeros([0], np.int32), len(names), names
    )
    return build.untrained_generator(config, shape)


def _class_names(run_dir: pathlib.Path, data: DataConfig, num_classes: int) -> tuple[str, ...]:
    """The names of the classes, as declared or as in an earlier export; otherwise numbers."""
    if data.class_names is not None:
        return data.class_names
    for earlier in reversed(versions.all_versions(run_dir / file_names.EXPORT)):
        try:
            names = versions.read_statement(earlier).get('class_names')
        except versions.ExportError:  # Not whole; the next one may be.
            continue
        if names is not None:
            return tuple(names)
    return tuple(str(label) for label in range(num_classes))


def _statement(run_dir, config, ledger, step, generator) -> dict[str, Any]:
    """The privacy statement; it says of other runs what an export of this generator says."""
    of_ledger = budget.make_statement(
        ledger,
        step,
        finish.software(),
        data=config.data,
        privacy=config.privacy,
        model=config.model,
    )
    statement = {
        **of_ledger,
        **exports.of_generator(
            generator, _class_names(run_dir, config.data, ledger.plan.num_classes)
        ),
        **exports.released_counts(run_dir, ledger),
    }
    earlier = exports.latest_of(run_dir, statement)
    if earlier is not None and 'together' in earlier:
        covered = {name: earlier[name] for name in ('not_covered',) if name in earlier}
        return {**earlier, **statement, **covered}
    # Without the records nobody can look up which other runs used them.
    unit = seen_records.IMAGE if ledger.plan.images_per_person is None else seen_records.PERSON
    promise = seen_records.Promise(math.inf, 0.0, unit)
    unknown = seen_records.OtherRuns(promise, dataset=ledger.plan.dataset)
    if 'not_covered' in statement:
        statement['not_covered'].append(unknown.not_covered)
    return {**statement, **unknown.to_statement()}
