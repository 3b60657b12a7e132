"""Exports the generator of a run, as the next version if it differs from the last one."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_efsgd import budget, file_names
from tf_efsgd.export import checksums, saved_model, versions
from tf_efsgd.models import generator as generators
from tf_efsgd.privacy import class_sums, releases
from tf_efsgd.privacy.ledger import Ledger

# The entries of a statement that say which generator it is about, and what was spent for it.
_IDENTITY = ('private', 'epsilon', 'delta', 'steps', 'applied_steps', 'generator_sha256')


def of_generator(generator: tf.keras.Model, class_names: Sequence[str]) -> dict[str, Any]:
    """What the statement says of the generator, JSON values by name.

    Args:
      generator: the one whose images are shared.
      class_names: in the order of the labels; public.
    """
    digest = hashlib.sha256()
    for variable in generator.variables:
        digest.update(np.ascontiguousarray(variable.numpy(), '<f4').tobytes())
    return {'class_names': list(class_names), 'generator_sha256': digest.hexdigest()}


def released_counts(folder: pathlib.Path, ledger: Ledger) -> dict[str, Any]:
    """The noisy numbers of records of the classes, if a private run has released them.

    Args:
      folder: of the run.
      ledger: its ledger.
    """
    plan, path = ledger.first_plan, folder / releases.WARM_START
    if plan.event is None or plan.warm_start_event is None or not path.exists():
        return {}
    sums = np.load(path, allow_pickle=False)
    counts = class_sums.class_counts(sums, budget.noise_of_releases(plan)[0])
    return {'released_class_counts': [round(float(count), 1) for count in counts]}


def export(
    folder: pathlib.Path, generator: tf.keras.Model, statement: dict[str, Any]
) -> tuple[pathlib.Path, bool]:
    """Exports a generator as the next version, unless the latest one is the same.

    Args:
      folder: of the run.
      generator: from `build_generator`, trained.
      statement: of the run, with what `of_generator` says.

    Returns:
      (the folder of the export, whether it was made now).

    Raises:
      ValueError: see `saved_model.export_generator`.
    """
    base = folder / file_names.EXPORT
    base.mkdir(exist_ok=True)
    for stale in base.glob('.*.tmp-*'):  # Left by a crash during the writing.
        shutil.rmtree(stale)
    found = versions.all_versions(base)
    if found and _is_same(found[-1], statement):
        return found[-1], False
    target = versions.next_version(base)
    names = statement['class_names']

    def generate(labels, seed=None):
        return generator(generators.draw_inputs(generator, labels, seed))

    def generate_from_latents(labels, latents):
        return generator(generators.inputs_from_latents(generator, labels, latents))

    saved_model.export_generator(
        functools.partial(generate, seed=None),
        generator.variables,
        target,
        num_classes=len(names),
        class_names=names,
        statement=statement,
        from_seed=generate,
        from_latents=saved_model.FromLatents(
            generate_from_latents, generator.input[generators.LATENTS].shape[-1]
        ),
    )
    return target, True


def latest_of(folder: pathlib.Path, statement: dict[str, Any]) -> dict[str, Any] | None:
    """The statement of a run's latest export if that holds the same generator, else None."""
    found = versions.all_versions(folder / file_names.EXPORT)
    if not found or not _is_same(found[-1], statement):
        return None
    return versions.read_statement(found[-1])


def _is_same(export: pathlib.Path, statement: dict[str, Any]) -> bool:
    """Whether an export holds the generator of a statement, and says that as much was spent."""
    try:
        before = versions.read_statement(export)
        # Earlier versions of this program wrote neither this hash nor checksums.
        is_listed = 'generator_sha256' in before
        if is_listed and checksums.differences(export, versions.CHECKSUMS):
            return False
    except (versions.ExportError, checksums.ChecksumError):
        return False
    # Exports of earlier versions of this program do not say the hash of their generator.
    names = (name for name in _IDENTITY if name in before)
    return all(before[name] == statement.get(name) for name in names)
