"""The releases of all records before the first step: made in memory, paid for, then written.

The order is the guarantee. A release is made from the records in memory; the ledger is charged for
it and notes its hash; only then is its first byte written. A file is compared with the ledger
before it is used. A release that was charged and then lost in a crash is never made again.

Formal guarantees:
  - Nothing that was computed from the records leaves the process before it is charged; with
    several workers, nothing leaves their processes, which are trusted.
  - Every release is charged at most once and written at most once, whatever is killed and resumed.
    After a crash before the charge it is made again, with fresh noise: nothing of the first one was
    written.
  - A file is refused if the ledger does not know its content, or if the features of another version
    made it.
"""

from __future__ import annotations

import hashlib
import io
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd import files
from tf_efsgd.privacy import class_sums, run_state
from tf_efsgd.privacy.features import grouped, learned, pixels
from tf_efsgd.privacy.ledger import Ledger

# The noisy sums of the first release. They are public, so they may be kept and used again.
WARM_START = 'warm_start.npy'
# The noisy sums of the second release, with the features that they are sums of.
LEARNED_FEATURES = 'learned_features.npz'


class ReleaseError(ValueError):
    """A file is not what the run released; the message says what to do."""


class Releases:
    """The releases of one run before its first step.

    Args:
      folder: of the run.
      ledger: its ledger.
      state: what is remembered of the run outside its folder.
      images: of the records, uint8 [N, H, W, C]. PRIVATE.
      labels: of the records, int32 [N]. PRIVATE.
      noise_multipliers: of the first and of the second release; 0 without privacy.
      new_noise: makes the source of noise of one release, see `optimizer.new_noise`.
      version: of the features of the first release.
      strategy: each of its replicas looks at a part of the records; None: one device.
      all_reduce: see `class_sums.release`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        ledger: Ledger,
        state: run_state.RunState,
        images: np.ndarray,
        labels: np.ndarray,
        noise_multipliers: Sequence[float],
        new_noise: Callable,
        version: int = pixels.VERSION,
        strategy: tf.distribute.Strategy | None = None,
        all_reduce: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
    ):
        self._folder = folder
        self._ledger = ledger
        self._state = state
        self._images = images
        self._labels = labels
        self.noise_multipliers = tuple(noise_multipliers)
        self._new_noise = new_noise
        self._version = version
        self._strategy = strategy
        self._all_reduce = all_reduce

    @property
    def _is_private(self) -> bool:
        return self._ledger.first_plan.event is not None

    def check(self) -> None:
        """Compares the files of earlier starts with the ledger.

        Raises:
          ReleaseError: if a file is not what was released, or another version of the program
            released it.
        """
        ledger = self._ledger
        if ledger.first_plan.warm_start_event is None:
            return
        for name, noted, version in (
            (WARM_START, ledger.warm_start, self._version),
            (LEARNED_FEATURES, ledger.learned_features, learned.VERSION),
        ):
            path = self._folder / name
            if path.exists():
                _check_release(noted, path.read_bytes(), path, version)

    def class_sums(self, features: grouped.GroupedFeatures) -> np.ndarray | None:
        """The first release, of an earlier start or made now.

        Args:
          features: whose sums are released.

        Returns:
          int64 [num_classes, features.size]; None if a crash lost the sums after they were charged.

        Raises:
          ReleaseError: if the file holds other numbers.
          OSError: if the disk is full; nothing was charged then.
        """
        path, plan = self._folder / WARM_START, self._ledger.first_plan
        if path.exists():
            sums = np.load(path, allow_pickle=False)
            if sums.dtype != np.int64 or sums.shape != (plan.num_classes, features.size):
                raise ReleaseError(
                    f'{path} is not what this run released: integers of shape '
                    f'{(plan.num_classes, features.size)}. Put the file back from a backup, or '
                    f'start a new run folder. Received: {sums.dtype} of shape {sums.shape}.'
                )
            return sums
        if not self.first_is_to_be_made:
            return None
        sums = self._make(features, 0)
        buffer = io.BytesIO()
        np.save(buffer, sums)
        charge = self._ledger.reserve_warm_start
        self._pay_and_write(path, buffer.getvalue(), charge, self._version)
        return sums

    @property
    def first_is_to_be_made(self) -> bool:
        """Whether `class_sums` will look at the records: there is no file, and none was charged."""
        is_open = not self._is_private or self._ledger.warm_start_is_due
        return is_open and not (self._folder / WARM_START).exists()

    def stored_learned_features(self) -> learned.Release | None:
        """The second release of an earlier start; None if there is none."""
        path = self._folder / LEARNED_FEATURES
        if not self._ledger.first_plan.learned_features_share or not path.exists():
            return None
        return learned.Release.from_bytes(path.read_bytes())

    @property
    def learned_features_are_lost(self) -> bool:
        """Whether the second release was made or given up, and must not be made any more."""
        return self._is_private and not self._ledger.learned_features_are_due

    def release_learned_features(
        self,
        features: learned.LearnedFeatures,
        distances: Sequence[float],
        classifier: Sequence[np.ndarray],
        generator: Sequence[np.ndarray],
    ) -> learned.Release:
        """Makes the second release, pays for it and writes it.

        Args:
          features: whose sums are released.
          distances: of these features, public.
          classifier: weights of the classifier whose layers the features are, public.
          generator: weights of the generator from whose images the classifier learned, public.

        Returns:
          The release.

        Raises:
          OSError: if the disk is full; nothing was charged then.
        """
        release = learned.Release(
            sums=self._make(features, 1),
            distances=distances,
            classifier=classifier,
            generator=generator,
        )
        self._pay_and_write(
            self._folder / LEARNED_FEATURES,
            release.to_bytes(),
            self._ledger.note_learned_features,
            learned.VERSION,
        )
        return release

    def give_up_learned_features(self) -> None:
        """Notes in the ledger that there will be no second release, if one is due."""
        if self._is_private and self._ledger.learned_features_are_due:
            self._ledger.note_learned_features(None, None)
            self._state.store_position(self._ledger.position)

    def class_means(
        self, number: int, sums: np.ndarray, groups: int = grouped.GROUPS
    ) -> np.ndarray:
        """Mean features of each class from released sums: post-processing.

        Args:
          number: 0 for the first release, 1 for the second.
          sums: of that release.
          groups: of its features.

        Returns:
          As `class_sums.class_means`.
        """
        size = self._ledger.first_plan.dataset_size
        return class_sums.class_means(sums, self.noise_multipliers[number], size, groups)

    def _make(self, features: grouped.GroupedFeatures, number: int) -> np.ndarray:
        """Looks at the records; what it returns is not paid for yet."""
        return class_sums.release(
            self._images,
            self._labels,
            self._ledger.first_plan.num_classes,
            features,
            self.noise_multipliers[number],
            self._new_noise(),
            self._strategy,
            self._all_reduce,
        )

    def _pay_and_write(self, path: pathlib.Path, content: bytes, charge, version: int) -> None:
        """Writes a release once it is paid for; until then nothing of it leaves this process."""

        def pay():
            charge(_sha256(content), version)
            self._state.store_position(self._ledger.position)

        if self._is_private:  # The disk must have room for the position too.
            self._state.store_position(self._ledger.position)
        files.write_atomically(path, content, when_there_is_room=pay if self._is_private else None)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_release(noted: dict | None, content: bytes, path: pathlib.Path, version: int) -> None:
    """Raises ReleaseError unless this is what the ledger says was released.

    Args:
      noted: the ledger's entry of the release; None without one.
      content: of the file.
      path: of the file.
      version: of the features that this program makes.
    """
    if noted is None:
        # The message does not advise removing the file: if the ledger is an old copy, a second
        # release would be made and only one paid for.
        raise ReleaseError(
            f'{path} is not what this run released: its ledger knows of no such release. Start a '
            'new run folder.'
        )
    if noted['sha256'] != _sha256(content):
        raise ReleaseError(
            f'{path} is not what this run released: its ledger has another hash. Put the file back '
            'from a backup, or start a new run folder.'
        )
    if noted['version'] != version:
        raise ReleaseError(
            f'{path} was released by another version of this program, or of its public network, '
            'with other features: resume with that version, or start a new run folder.'
        )
