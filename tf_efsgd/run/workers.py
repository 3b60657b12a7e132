"""Collectives of a run with several workers: broadcasts, gathers and sums.

Every worker executes the same run, in step. Only the chief writes; the others do what it
broadcasts. All of this uses TensorFlow's collectives: each call waits until every worker has made
it, and if one worker is lost, the calls of all others fail.

Formal guarantees:
  - No worker has a broadcast before the chief has made it. So a ledger entry that the chief writes
    first is on disk before any other worker continues.
  - The key of the noise is broadcast once and never written; in a graph it is an argument.
  - Sums of integers are exact, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import multi_worker_util
from tensorflow.python.eager import context

from tf_efsgd.config import ConfigError, RunConfig
from tf_efsgd.data.rows import Rows
from tf_efsgd.privacy import noise
from tf_efsgd.privacy.plan import from_json as plan_from_json
from tf_efsgd.privacy.plan import to_json as plan_to_json
from tf_efsgd.run import cluster as clusters
from tf_efsgd.run.alone import Alone
from tf_efsgd.run.errors import TensorFlowError, WorkerLost

# The group key of our own collectives; strategies count theirs from 1.
_GROUP = 2**30
# How many seconds TensorFlow may take to connect workers that have already met.
_CONNECTING = 60.0
# After so many seconds without a heartbeat a worker counts as lost. TensorFlow's 10 are too few on
# machines that are busy with other work. A killed worker is noticed by its closed connections.
_SILENCE = 60.0
# What TensorFlow raises when another worker is gone.
_LOSSES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


class Several(Alone):
    """One of several workers of a run.

    Args:
      cluster: from `cluster.read`; the workers have met.
      records: the setting `worker_records`.

    """

    losses = _LOSSES
    # Whether this process is connected to other workers.
    is_connected = False

    def __init__(self, cluster: clusters.Cluster, records: str = 'all'):
        self._cluster = cluster
        self.has_own_records = records == 'own'
        self._instance = 0
        self._own = np.zeros([0], np.int64)
        self.index, self.count = cluster.index, cluster.count
        # While TensorFlow connects, nothing else runs in this process, not even signal handlers.
        faulthandler.dump_traceback_later(_CONNECTING, exit=True)
        try:
            _set_heartbeat_timeout(_SILENCE)
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        finally:
            faulthandler.cancel_dump_traceback_later()
        Several.is_connected = True
        # TensorFlow installs its own handler of SIGTERM. The other workers wait for the chief in
        # TensorFlow, where Python's handler of Ctrl-C would not run.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self.is_chief:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._device = f'/job:{cluster.job}/replica:0/task:{cluster.task}/device:CPU:0'

    def name(self, index):
        """See `Alone`."""
        return self._cluster.name(index)

    def only_on_chief(self, make):
        """See `Alone`."""
        made = []

        def keep():
            made.append(make())

        self.of_chief(keep)
        return made[0] if made else None

    def of_chief(self, make):
        """See `Alone`."""
        message: dict[str, Any] = {}
        if self.is_chief:
            try:
                message = {'value': make()}
            except ConfigError as error:
                message = {'error': str(error)}
        message = json.loads(self.broadcast(json.dumps(message).encode()))
        if 'error' in message:
            self.leave()
            raise ConfigError(message['error'])
        return message['value']

    def settings_of_chief(self, make, own):
        """See `Alone`."""
        made: list[RunConfig] = []

        def as_flags():
            made.append(make())
            return made[0].to_flags() + ''.join(
                f'--{name}\n' for name in clusters.OF_START if getattr(made[0].run, name)
            )

        flags = self.of_chief(as_flags)
        return made[0] if made else clusters.with_own_places(flags, own)

    def plan_of_chief(self, make):
        """See `Alone`."""
        return plan_from_json(self.of_chief(lambda: plan_to_json(make())))

    def together(self, call):
        """See `Alone`."""
        result, problem = None, ''
        try:
            result = call()
        except ConfigError as error:
            problem = str(error)
        problems = self.all_gather(problem.encode())
        for index, text in enumerate(problems):
            if text:
                self.leave()
                raise ConfigError(f'{self.name(index)}: {text.decode()}')
        return result

    def broadcast(self, content):
        """See `Alone`."""
        size = self._sum(np.array([len(content) if self.is_chief else 0], np.int64))[0]
        words = np.zeros([-(-int(size) // 8)], np.int64)
        if self.is_chief:
            words.view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
        return self._sum(words).tobytes()[:size]

    def broadcast_array(self, array):
        """See `Alone`."""
        about = None if array is None else [array.dtype.str, list(array.shape)]
        about = json.loads(self.broadcast(json.dumps(about).encode()))
        if about is None:
            return None
        content = np.ascontiguousarray(array).tobytes() if self.is_chief else None
        return np.frombuffer(self.broadcast(content), np.dtype(about[0])).reshape(about[1]).copy()

    def all_reduce(self, array):
        """See `Alone`."""
        return self._sum(np.ascontiguousarray(array, np.int64).ravel()).reshape(array.shape)

    def all_gather(self, content):
        """See `Alone`."""
        sizes = np.zeros([self.count], np.int64)
        sizes[self.index] = len(content)
        sizes = self._sum(sizes)
        words = np.zeros([self.count, -(-int(sizes.max()) // 8)], np.int64)
        words[self.index].view(np.uint8)[: len(content)] = np.frombuffer(content, np.uint8)
        words = self._sum(words.ravel()).reshape(words.shape)
        return [row.tobytes()[:size] for row, size in zip(words, sizes)]

    def broadcast_variables(self, variables):
        """See `Alone`."""
        own = [variable.numpy() for variable in variables]
        content = self.broadcast(
            b''.join(value.tobytes() for value in own) if self.is_chief else None
        )
        start = 0
        for variable, value in zip(variables, own):
            part = np.frombuffer(content[start : start + value.nbytes], value.dtype)
            start += value.nbytes
            if not self.is_chief:
                variable.assign(part.reshape(value.shape))

    def all_reduce_max(self, number):
        """See `Alone`."""
        return max(
            int.from_bytes(content, 'little') for content in self.all_gather(bytes([number]))
        )

    def check_alike(self, variables):
        """See `Alone`."""
        digest = hashlib.sha256()
        for variable in variables:
            digest.update(variable.numpy().tobytes())
        digests = self.all_gather(digest.digest())
        others = [i for i, found in enumerate(digests) if found != digests[0]]
        if others:
            self.leave()
            raise WorkersDiffer(', '.join(map(self.name, others)))

    def noise_of_chief(self, source):
        """See `Alone`."""
        if isinstance(source, noise.SecureNoise):
            return _SecureNoiseOfChief(self, source)
        key = self.broadcast(source.key.numpy().tobytes() if self.is_chief else None)
        return source if self.is_chief else noise.NoiseKey(int(np.frombuffer(key, np.uint64)[0]))

    def divide(self, digests):
        """See `Alone`."""
        of_worker = digests[:, -1] % np.uint64(self.count)
        self._own = np.flatnonzero(of_worker == self.index)

    def share(self, array):
        """See `Alone`."""
        return array if self.has_own_records else Rows(array, self._own)

    def leave(self):
        """See `Alone`.

        A worker that comes here has the results of all earlier collectives. If it ended its process
        without waiting for the others, one of them could still lack the last result, and would
        count this worker as lost.
        """
        with contextlib.suppress(*_LOSSES):
            self.all_reduce_max(0)

    @contextlib.contextmanager
    def at_work(self):
        """See `Alone`. Workers other than the chief print nothing from here on.

        Raises:
          TensorFlowError: if another worker was lost.
        """
        with contextlib.ExitStack() as stack:
            if not self.is_chief:
                chief = self.name(0)
                print(f'This is {self.name(self.index)}; {chief} says how the run goes.')
                sys.stdout.flush()
                nowhere = stack.enter_context(open(os.devnull, 'w', encoding='utf-8'))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            try:
                yield
            except _LOSSES:
                raise WorkerLost() from None

    def _sum(self, array: np.ndarray) -> np.ndarray:
        """Adds int64 arrays of one shape over the workers, on the CPU, outside any graph."""
        self._instance += 1
        if self.count == 1 or not array.size:
            return array
        with tf.device(self._device):
            added = tf.raw_ops.CollectiveReduceV2(
                input=tf.constant(array),
                group_size=tf.constant(self.count),
                group_key=tf.constant(_GROUP),
                instance_key=tf.constant(self._instance),
                ordering_token=[],
                merge_op='Add',
                final_op='Id',
                communication_hint='ring',
            )
        return added.numpy()


def _set_heartbeat_timeout(seconds: float) -> None:
    """Sets up the coordination service as the strategy would, but for the heartbeat timeout."""
    spec = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec()
    context.context().configure_coordination_service(
        service_type='standalone',
        service_leader=multi_worker_util.coordination_leader(spec),
        heartbeat_timeout_in_ms=int(1000 * seconds),
        coordinated_jobs=[
            # Versions of TensorFlow have this module in different places.
            context.coordination_config_pb2.CoordinatedJob(name=job, num_tasks=spec.num_tasks(job))
            for job in (clusters.CHIEF, clusters.WORKER)
            if job in spec.jobs
        ],
    )


class WorkersDiffer(TensorFlowError):
    """The weights of the workers are no longer the same."""

    def __init__(self, others: str):
        super().__init__(
            f'The weights of {others} are no longer equal to those of the chief: use machines of '
            'one kind with one version of TensorFlow. The last checkpoint was written before.'
        )


class _SecureNoiseOfChief:
    """Noise whose every bit comes from the chief's operating system, broadcast step by step."""

    def __init__(self, workers: Several, source: noise.SecureNoise):
        self._workers = workers
        self._source = source

    def next(self, shapes: Sequence[tf.TensorShape]) -> noise.StepNoise:
        """As `noise.SecureNoise.next`, the same on every worker."""
        drawn = None
        if self._workers.is_chief:
            draws = self._source.next(shapes)['draws']
            drawn = np.concatenate([d.numpy().ravel() for of in draws for d in of])
        flat = self._workers.broadcast_array(drawn)
        sizes = [shape.num_elements() for shape in shapes]
        of_purposes = np.split(flat, len(flat) // sum(sizes)) if flat.size else []
        return {
            'draws': [
                [
                    tf.constant(part.reshape(shape))
                    for part, shape in zip(np.split(of, np.cumsum(sizes)[:-1]), shapes)
                ]
                for of in of_purposes
            ]
        }


def end_process(code: int) -> None:
    """Ends this process at once if it is one of several workers; otherwise does nothing.

    A process that ends in the usual way may wait in TensorFlow for a lost worker, and the others
    would count it as alive meanwhile. Call this when everything is closed.

    Args:
      code: of the exit.
    """
    if Several.is_connected:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def join(config: RunConfig) -> Alone:
    """Returns the workers of a run: this one alone, or all that TF_CONFIG names, connected.

    Args:
      config: the settings of this worker.

    Raises:
      ConfigError: if TF_CONFIG is wrong, a worker does not connect, or one was started with other
        settings. Nothing has been read or written then.
    """
    if not clusters.is_wanted(config.training.strategy):
        return Alone()
    cluster = clusters.read()
    clusters.check_own_records(config.data, config.training)
    clusters.meet(cluster, config)
    return Several(cluster, config.training.worker_records)
