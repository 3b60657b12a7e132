"""What is remembered of a run outside its folder: its records' fingerprint, its ledger's position.

Formal guarantees:
  - The fingerprint is an HMAC-SHA256 of the records under a key that the operating system gives
    each run. Key and tag are in one file, mode 0600, outside the run folder: somebody who has only
    the run folder cannot test a guess of the records.
  - The position is stored after every reservation. So a ledger is recognised if it was shortened,
    replaced by an older copy, or belongs to a copy of a run that was trained further elsewhere.
  - Only one process at a time trains a run, even if its folder was copied.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import pathlib
import secrets
from typing import IO

import numpy as np

from tf_efsgd import files

# The suffix, after a run's id, of the file with what the discriminator's heads see of the records;
# it exists only while the run trains.
FEATURES = '.features.npy'


class RunStateError(ValueError):
    """The run does not fit what is remembered of it; the message is one line."""


def default_folder() -> pathlib.Path:
    """The user's state folder for this package, by the XDG base directory specification."""
    base = os.environ.get('XDG_STATE_HOME')
    return (pathlib.Path(base) if base else pathlib.Path.home() / '.local' / 'state') / 'tf_efsgd'


def prepare_folder(folder: str | os.PathLike) -> None:
    """Makes the state folder, for the user alone, when it is missing.

    Raises:
      RunStateError: if it cannot be written.
    """
    if not files.has_locks():
        raise RunStateError(files.USE_WSL)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise RunStateError(
            f'{folder} cannot be written to: give --state_dir, a folder outside the run folder '
            'that can.'
        )


def is_trained(folder: str | os.PathLike, run_id: str) -> bool:
    """Whether a process trains a run now."""
    try:
        with open(pathlib.Path(folder) / f'{run_id}.lock', encoding='utf-8') as lock:
            files.lock(lock, lock.name, shared=True)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def forget(folder: str | os.PathLike, run_id: str) -> None:
    """Removes what is remembered of a run that nobody trains, if anything is."""
    for suffix in ('.json', '.lock'):
        (pathlib.Path(folder) / f'{run_id}{suffix}').unlink(missing_ok=True)


def lock(folder: str | os.PathLike, run_id: str) -> IO[str]:
    """Takes the lock of a run: its holder may train the run, or remove what is remembered of it.

    Returns:
      The open file; closing it releases the lock.

    Raises:
      RunStateError: if another process has it.
    """
    path = pathlib.Path(folder) / f'{run_id}.lock'
    while True:
        file = open(path, 'w', encoding='utf-8', opener=_for_the_user_alone)
        try:
            files.lock(file, path)
        except files.NoLocksError as error:
            file.close()
            path.unlink(missing_ok=True)  # Nobody else can have the lock either.
            raise RunStateError(f'{error} The setting is --state_dir.') from error
        except OSError as error:
            file.close()
            raise RunStateError(
                'Another process trains this run, or a copy of its folder. Wait for it or stop it, '
                'then resume.'
            ) from error
        if files.is_at(file.fileno(), path):  # Otherwise the file was removed before it was locked.
            return file
        file.close()


class RunState:
    """The remembered state of one run, for this process alone until `close`.

    Args:
      folder: the state folder, see `prepare_folder`.
      run_id: names the run, `Ledger.run_id`.

    Raises:
      RunStateError: if the remembered state cannot be read, or another process has it.
    """

    def __init__(self, folder: str | os.PathLike, run_id: str):
        self._path = pathlib.Path(folder) / f'{run_id}.json'
        self._state = None
        self._lock = lock(folder, run_id)
        try:
            if self._path.exists():
                self._state = json.loads(self._path.read_text(encoding='utf-8'))
                bytes.fromhex(self._state['key'] + self._state['records'])
                kinds = [type(self._state['ledger'][name]) for name in ('bytes', 'sha256')]
                if kinds != [int, str]:
                    raise ValueError('The position of the ledger is none.')
        except OSError as error:
            self.close()
            raise RunStateError(
                f'{self._path} cannot be read ({error.strerror}): make it readable for you. '
                f'Received: run {run_id}.'
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise RunStateError(
                f'{self._path} is damaged. Remove it, and resume with --resume_unverified.'
            ) from error

    def close(self) -> None:
        """Lets another process have the run."""
        self._lock.close()

    @property
    def is_known(self) -> bool:
        """Whether anything is remembered of this run here."""
        return self._state is not None

    @property
    def position(self) -> dict[str, int | str]:
        """The last stored position of the ledger."""
        return self._state['ledger']

    def remember_records(
        self, images: np.ndarray, labels: np.ndarray, position: dict[str, int | str]
    ) -> None:
        """Stores a fingerprint of the records under a fresh key, and the ledger's position.

        Args:
          images: uint8 [N, H, W, C]. PRIVATE.
          labels: int32 [N]. PRIVATE.
          position: see `Ledger.position`.
        """
        key = secrets.token_bytes(32)
        self._state = {
            'key': key.hex(),
            'records': _fingerprint(key, images, labels),
            'ledger': position,
        }
        self._write()

    def check_records(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Checks that the records are the remembered ones, in any order.

        Args:
          images: uint8 [N, H, W, C]. PRIVATE.
          labels: int32 [N]. PRIVATE.

        Raises:
          RunStateError: if they are not.
        """
        found = _fingerprint(bytes.fromhex(self._state['key']), images, labels)
        if not hmac.compare_digest(found, self._state['records']):
            raise RunStateError(
                'The records are not the ones that this run was started with (their fingerprint '
                'differs). Resume with the same data, or start a new run folder.'
            )

    def store_position(self, position: dict[str, int | str]) -> None:
        """Stores the ledger's position; returns when it is on disk."""
        self._state['ledger'] = position
        self._write()

    def _write(self) -> None:
        files.write_atomically(self._path, json.dumps(self._state), mode=0o600)

    def __repr__(self) -> str:
        return f'<RunState: {self._path.stem}>'


def _for_the_user_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _fingerprint(key: bytes, images: np.ndarray, labels: np.ndarray) -> str:
    """HMAC-SHA256 over the sorted HMACs of the records: uint8 [N, H, W, C], int32 [N]."""
    shape = repr((images.shape[1:], images.dtype.str)).encode()
    tags = sorted(
        hmac.digest(key, shape + int(label).to_bytes(8, 'little') + image.tobytes(), 'sha256')
        for image, label in zip(images, labels)
    )
    return hmac.new(key, b''.join(tags), hashlib.sha256).hexdigest()
