"""The releases of a run with several workers: one sum of all shares, one noise, one charge.

Formal guarantees:
  - Every worker sums its own share of the records, as integers. Only the chief adds the noise,
    charges and writes, as `privacy.releases` does, and broadcasts the release afterwards.
  - The other workers write nothing, and their sums without noise are used for the total alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from tf_efsgd.privacy import class_sums
from tf_efsgd.privacy.features import grouped, learned
from tf_efsgd.privacy.releases import Releases


class Workers(Protocol):
    """The collectives that the releases need; `run.workers.Several` has them.

    Every worker calls the same methods in the same order.
    """

    def of_chief(self, make: Callable[[], Any]) -> Any:
        """Calls `make` on the chief and returns its result, of JSON types, on all workers."""

    def broadcast(self, content: bytes | None) -> bytes | None:
        """Returns the chief's `content` on all workers."""

    def broadcast_array(self, array: np.ndarray | None) -> np.ndarray | None:
        """Returns the chief's `array`, or None, on all workers."""

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum of the workers' arrays of integers, which have one shape."""


class ReleasesOfChief(Releases):
    """`Releases` on the chief, together with the other workers.

    Args:
      workers: of the run.
      *args: of `Releases`.
      **kwargs: of `Releases`.
    """

    def __init__(self, workers: Workers, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._workers = workers
        self._all_reduce = workers.all_reduce

    def class_sums(self, features):
        """See `Releases`."""
        self._workers.of_chief(lambda: self.first_is_to_be_made)
        return self._workers.broadcast_array(super().class_sums(features))

    def stored_learned_features(self):
        """See `Releases`."""
        release = super().stored_learned_features()
        self._workers.broadcast(b'' if release is None else release.to_bytes())
        return release

    def release_learned_features(self, features, distances, classifier, generator):
        """See `Releases`."""
        release = super().release_learned_features(features, distances, classifier, generator)
        self._workers.broadcast(release.to_bytes())
        return release


class ReleasesOfOthers(Releases):
    """`Releases` of another worker: it adds its share up, and hears what was released."""

    def __init__(self, workers: Workers, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._workers = workers

    def check(self) -> None:
        """The chief has the files."""

    def class_sums(self, features):
        """See `Releases`."""
        if self._workers.of_chief(lambda: None):
            self._add_share(features, 0)
        sums = self._workers.broadcast_array(None)
        if sums is not None and self._ledger.warm_start_is_due:
            self._ledger.reserve_warm_start('noted by the chief', 0)
        return sums

    def stored_learned_features(self):
        """See `Releases`."""
        content = self._workers.broadcast(None)
        return learned.Release.from_bytes(content) if content else None

    def release_learned_features(
        self,
        features: learned.LearnedFeatures,
        distances: Sequence[float],
        classifier: Sequence[np.ndarray],
        generator: Sequence[np.ndarray],
    ) -> learned.Release:
        """See `Releases`."""
        self._add_share(features, 1)
        content = self._workers.broadcast(None)
        if self._ledger.learned_features_are_due:
            self._ledger.note_learned_features('noted by the chief', 0)
        return learned.Release.from_bytes(content)

    def _add_share(self, features: grouped.GroupedFeatures, number: int) -> None:
        self._workers.all_reduce(
            class_sums.sum_over_records(
                self._images,
                self._labels,
                self._ledger.first_plan.num_classes,
                features,
                self.noise_multipliers[number],
                self._strategy,
            )
        )
