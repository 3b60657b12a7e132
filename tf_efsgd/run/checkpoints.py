"""Saves and restores a run: everything that training continues with, and nothing secret.

A checkpoint is for continuing, not for sharing; `exports` makes what is shared. Each checkpoint is
a folder, `step_000500/`, that appears whole or not at all, with a manifest of what is in it. If a
crash or a bad disk has damaged one, that is recognised and said, and the one before is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import NamedTuple

import tensorflow as tf

from tf_efsgd import files

_PREFIX, _MANIFEST = 'variables', 'manifest.json'
# What the name of a damaged checkpoint begins with, once an older one was used in its place.
_DAMAGED = 'damaged_'
_NAME = re.compile(r'step_(\d+)')
_KEPT = 2

_PRIVATE_NOTE = """\
PRIVATE. This checkpoint holds state of the training records that no noise protects. It is NOT
covered by the privacy guarantee of the run and must be kept like the records themselves.
"""


class CheckpointError(ValueError):
    """No checkpoint can be used; the message is one line that says what to do."""


class RunCheckpoints:
    """The checkpoints of one run: networks, optimizers with their error buffers, and counters.

    Noise keys and their counters are in no variable that this tracks: a resumed run draws new keys.

    Args:
      folder: RUN/checkpoints.
      gan: the compiled model.
      holds_private_state: whether to mark every checkpoint PRIVATE.
    """

    def __init__(
        self, folder: str | os.PathLike, gan: tf.keras.Model, *, holds_private_state: bool = False
    ):
        self._folder = pathlib.Path(folder)
        self._checkpoint = tf.train.Checkpoint(gan=gan)
        self._holds_private_state = holds_private_state

    def save(self, step: int, ledger_position: dict) -> str:
        """Saves a checkpoint.

        Args:
          step: the number of private steps so far.
          ledger_position: the ledger's position at this moment.

        Returns:
          The path of the checkpoint.

        Raises:
          OSError: e.g. if the disk is full; earlier checkpoints are kept then.
        """
        self._folder.mkdir(exist_ok=True)
        target = self._folder / f'step_{step:06d}'
        work = pathlib.Path(tempfile.mkdtemp(prefix=f'.{target.name}.tmp-', dir=self._folder))
        try:
            self._write(work, step, ledger_position)
            if target.exists():  # The same step was trained again after a crash.
                shutil.rmtree(target)
            os.rename(work, target)
        except tf.errors.OpError as error:
            full = 'No space left' in error.message
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, os.strerror(code), str(target)) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        files.sync(self._folder)
        for _, old in _all(self._folder)[_KEPT:]:
            shutil.rmtree(old)
        return str(target)

    def _write(self, work: pathlib.Path, step: int, ledger_position: dict) -> None:
        if self._holds_private_state:
            (work / 'PRIVATE.txt').write_text(_PRIVATE_NOTE, encoding='utf-8')
        self._checkpoint.write(str(work / _PREFIX))
        written = {path.name: _digest(path) for path in work.iterdir()}
        for name in written:
            files.sync(work / name)
        manifest = {
            'step': step,
            'ledger': ledger_position,
            'holds_private_state': self._holds_private_state,
            'sha256': written,
        }
        files.write_atomically(work / _MANIFEST, json.dumps(manifest, indent=2))

    def restore_latest(self) -> dict | None:
        """Restores the last checkpoint that is whole; renames damaged ones and says so.

        Returns:
          The ledger's position that it was saved with; None when there is no checkpoint.

        Raises:
          CheckpointError: if every checkpoint is damaged, or the last whole one holds other
            networks.
        """
        for stale in self._folder.glob('.step_*.tmp-*'):  # Left by a crash during the writing.
            shutil.rmtree(stale)
        damaged = []
        for _, path in _all(self._folder):
            manifest = _read_manifest(path)
            if manifest is None:
                damaged.append(path)
                continue
            _read_into(self._checkpoint, path)
            _set_aside(damaged)
            return manifest['ledger']
        if damaged or any(self._folder.glob(f'{_DAMAGED}step_*')):
            raise CheckpointError(
                f'Every checkpoint in {self._folder} is damaged: restore one from a backup, or '
                'start a new run folder.'
            )
        return None


def _set_aside(damaged: list[pathlib.Path]) -> None:
    for path in damaged:
        aside = path.with_name(f'{_DAMAGED}{path.name}')
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        print(f'WARNING: checkpoint {path} is damaged; it is now {aside.name}.')


class Restored(NamedTuple):
    """Where a generator that was read from a checkpoint stands.

    Attributes:
      step: of the checkpoint.
      ledger_position: the ledger's position that the checkpoint was saved with.
    """

    step: int
    ledger_position: dict


def restore_generator(folder: str | os.PathLike, generator: tf.keras.Model) -> Restored:
    """Reads the moving average of a run's generator from the last checkpoint that is whole.

    It writes nothing: a damaged checkpoint stays where it is.

    Args:
      folder: RUN/checkpoints.
      generator: a network like that of the run; its weights are set.

    Returns:
      Which checkpoint it was.

    Raises:
      CheckpointError: if there is no whole checkpoint, or it holds another network.
    """
    for step, path in _all(pathlib.Path(folder)):
        manifest = _read_manifest(path)
        if manifest is None:
            print(f'WARNING: checkpoint {path} is damaged; the one before it is used.')
            continue
        _read_into(tf.train.Checkpoint(gan=tf.train.Checkpoint(ema_generator=generator)), path)
        return Restored(step, manifest['ledger'])
    raise CheckpointError(
        f'There is no whole checkpoint in {folder}: let the run continue first, with --resume.'
    )


def _read_into(checkpoint: tf.train.Checkpoint, path: pathlib.Path) -> None:
    try:
        status = checkpoint.read(str(files.without_wildcards(path) / _PREFIX))
        status.assert_existing_objects_matched()
    except (AssertionError, ValueError) as error:  # A variable is missing, or of another shape.
        raise CheckpointError(
            f'{path} holds other networks than the settings of the run describe: another version '
            'of tf_efsgd trained it, or its config.flags was changed. Continue with that version. '
            'The exports of the run can be used without it.'
        ) from error
    # An optimizer restores its slots when it makes them. A run that trains no more makes none, and
    # that deserves no warning.
    status.expect_partial()


def _all(folder: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """(step, path) of all checkpoints, the last first."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob('step_*'))
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)


def _read_manifest(path: pathlib.Path) -> dict | None:
    """The manifest of a checkpoint; None if the checkpoint is damaged."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding='utf-8'))
        whole = all(_digest(path / name) == digest for name, digest in manifest['sha256'].items())
        seen = manifest['ledger']
        is_position = isinstance(seen['bytes'], int) and isinstance(seen['sha256'], str)
        return manifest if whole and manifest['sha256'] and is_position else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
