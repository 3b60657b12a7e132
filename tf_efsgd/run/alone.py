"""The collectives of a run with a single worker, which have nothing to do.

`workers.Several` has them for several workers. Every worker calls the same methods in the same
order. The docstrings here hold for both classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import tensorflow as tf

from tf_efsgd.config import RunConfig
from tf_efsgd.privacy.plan import Plan

_T = TypeVar('_T')


class Alone:
    """The only worker of a run.

    Attributes:
      index: of this worker; the chief has 0.
      count: how many there are.
      strategy: over the devices of all; None for a worker alone, which has any.
      has_own_records: whether each has records that no other has.
      losses: the errors that TensorFlow raises when another worker is lost.
    """

    index = 0
    count = 1
    strategy: tf.distribute.Strategy | None = None
    has_own_records = False
    losses: tuple[type[Exception], ...] = ()

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Names a worker in messages."""
        return f'worker {index}'

    def only_on_chief(self, make: Callable[[], _T]) -> _T | None:
        """Calls `make` on the chief and returns its result there; returns None on the others.

        Raises:
          ConfigError: on all workers, if it does on the chief.
        """
        return make()

    def of_chief(self, make: Callable[[], _T]) -> _T:
        """Calls `make` on the chief and returns its result, of JSON types or None, on all workers.

        Raises:
          ConfigError: on all workers, if it does on the chief.
        """
        return make()

    def settings_of_chief(self, make: Callable[[], RunConfig], own: RunConfig) -> RunConfig:
        """Returns the chief's settings with the paths of this worker.

        Args:
          make: called on the chief alone.
          own: the settings of this worker.

        Raises:
          ConfigError: on all workers, if it does on the chief.
        """
        del own
        return make()

    def plan_of_chief(self, make: Callable[[], Plan]) -> Plan:
        """Calls `make` on the chief and returns its plan on all workers.

        Raises:
          ConfigError: on all workers, if it does on the chief.
        """
        return make()

    def together(self, call: Callable[[], _T]) -> _T:
        """Runs `call` on every worker.

        Raises:
          ConfigError: on all workers, if it does on one.
        """
        return call()

    def broadcast(self, content: bytes | None) -> bytes | None:
        """Returns the chief's `content` on all workers; that of the others is ignored."""
        return content

    def broadcast_array(self, array: np.ndarray | None) -> np.ndarray | None:
        """Returns the chief's `array`, or None, on all workers; no arrays of Python objects."""
        return array

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum of the workers' arrays of integers, which have one shape."""
        return array

    def all_gather(self, content: bytes) -> list[bytes]:
        """Returns the `content` of each worker, in their order, on all workers."""
        return [content]

    def broadcast_variables(self, variables: Sequence[tf.Variable]) -> None:
        """Sets variables to their values on the chief."""

    def all_reduce_max(self, number: int) -> int:
        """Returns the largest of the workers' numbers, each >= 0."""
        return number

    def check_alike(self, variables: Sequence[tf.Variable]) -> None:
        """Compares variables with those of the chief.

        Raises:
          WorkersDiffer: on all workers, if they differ on one.
        """

    def noise_of_chief(self, source):
        """Returns the chief's source of noise on all workers.

        Args:
          source: a `noise.NoiseKey` or `noise.SecureNoise` of this worker from which nothing has
            been drawn. Each worker counts the steps of the key for itself, from the first one.
        """
        return source

    def divide(self, digests: np.ndarray) -> None:
        """Assigns each record to a worker by its digest alone, so no record moves another.

        Args:
          digests: of the records that all workers have, uint64 [N, 2], see `data.split.digest`.
        """

    def share(self, array: np.ndarray) -> np.ndarray:
        """Returns this worker's rows of an array over all records, as `Rows`, without a copy."""
        return array

    def local_replicas(self, part: tf.distribute.InputContext) -> int:
        """Returns the number of replicas of this worker."""
        return part.num_replicas_in_sync // part.num_input_pipelines

    def leave(self) -> None:
        """Waits for the other workers, as the last call of all of them.

        A worker that is lost meanwhile is no error, since nothing is left to do.
        """

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Encloses the run."""
        yield
