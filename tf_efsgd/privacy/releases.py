"""What is released of all records before the first step: made in memory, paid, written, kept.

The order is the guarantee. A release is made of the records in memory; the ledger is charged for it
and holds its hash; only then is its first byte written. What is on disk is held against the ledger
before it is used. A release that was charged and lost in a crash is never made again.

Formal guarantees:
  - Nothing that was computed from the records leaves the process before it is charged.
  - Every release is charged at most once and made at most once, whatever is killed and resumed.
  - A file whose content the ledger does not know, or that another version's features made, is
    refused.
"""

from __future__ import annotations

import hashlib
import io
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from tf_efsgd import files
from tf_efsgd.privacy import class_sums, ledger, run_state
from tf_efsgd.privacy.features import grouped, learned, pixels

# The noised sums of the first release: public, so they may be kept, and fitted to again.
WARM_START = 'warm_start.npy'
# Those of the second release, with the features that they are sums of.
LEARNED_FEATURES = 'learned_features.npz'


class ReleaseError(ValueError):
    """A file is not what the run released; the message says what to do."""


class Releases:
    """The releases of one run before its first step.

    Args:
      folder: of the run.
      book: its ledger.
      state: what is remembered of the run outside its folder.
      images: of the records, uint8 [N, H, W, C]. PRIVATE.
      labels: of the records, int32 [N]. PRIVATE.
      noise_multipliers: of the first and of the second release; 0 without privacy.
      new_noise: makes the source of noise of one release, see `optimizer.new_noise`.
      version: of the features of the first release.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        book: ledger.Ledger,
        state: run_state.RunState,
        images: np.ndarray,
        labels: np.ndarray,
        noise_multipliers: Sequence[float],
        new_noise: Callable,
        version: int = pixels.VERSION,
    ):
        self._folder = folder
        self._ledger = book
        self._state = state
        self._images = images
        self._labels = labels
        self.noise_multipliers = tuple(noise_multipliers)
        self._new_noise = new_noise
        self._version = version

    @property
    def _is_private(self) -> bool:
        return self._ledger.first_plan.event is not None

    def check(self) -> None:
        """Holds the files of earlier starts against the ledger.

        Raises:
          ReleaseError: if one is not what was released, or not by this version of the program.
        """
        book = self._ledger
        if book.first_plan.warm_start_event is None:
            return
        for name, noted, version in (
            (WARM_START, book.warm_start, self._version),
            (LEARNED_FEATURES, book.learned_features, learned.VERSION),
        ):
            path = self._folder / name
            if path.exists():
                _check_release(noted, path.read_bytes(), path, version)

    def class_sums(self, features: grouped.GroupedFeatures) -> np.ndarray | None:
        """The first release: made now, or that of an earlier start.

        Args:
          features: of which sums are released.

        Returns:
          int64 [num_classes, features.size]; None if a crash lost them after they were charged.

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
        if self._is_private and not self._ledger.warm_start_is_due:
            return None
        sums = self._make(features, 0)
        buffer = io.BytesIO()
        np.save(buffer, sums)
        charge = self._ledger.reserve_warm_start
        self._pay_and_write(path, buffer.getvalue(), charge, self._version)
        return sums

    def stored_learned_features(self) -> learned.Release | None:
        """The second release of an earlier start; None if there is none."""
        path = self._folder / LEARNED_FEATURES
        if not self._ledger.first_plan.learned_features_share or not path.exists():
            return None
        return learned.Release.from_bytes(path.read_bytes())

    @property
    def learned_features_are_lost(self) -> bool:
        """Whether the second release was charged or given up, and must not be made any more."""
        return self._is_private and not self._ledger.learned_features_are_due

    def release_learned_features(
        self,
        features: learned.LearnedFeatures,
        distances: Sequence[float],
        classifier: Sequence[np.ndarray],
        generator: Sequence[np.ndarray],
    ) -> learned.Release:
        """Makes, pays and writes the second release.

        Args:
          features: of which sums are released.
          distances: of these features, public.
          classifier: weights of the classifier whose layers they are, public.
          generator: weights of the generator whose images it learned from, public.

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
        )

    def _pay_and_write(self, path: pathlib.Path, content: bytes, charge, version: int) -> None:
        """Writes a release down when it is paid for; until then nothing has left this process."""

        def pay():
            charge(_sha256(content), version)
            self._state.store_position(self._ledger.position)

        if self._is_private:  # There must be room for the position, too.
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
        # No advice to remove it: if the ledger is an old copy, that would pay for one of two.
        raise ReleaseError(
            f'{path} is not what this run released, by the ledger, which knows of no such release: '
            'start a new run folder.'
        )
    if noted['sha256'] != _sha256(content):
        raise ReleaseError(
            f'{path} is not what this run released, by the ledger: put the file back from a '
            'backup, or start a new run folder.'
        )
    if noted['version'] != version:
        raise ReleaseError(
            f'{path} was released by another version of this program, or of its public network, '
            'with other features: resume with that version, or start a new run folder.'
        )
