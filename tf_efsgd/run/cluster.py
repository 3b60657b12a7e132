"""Reads the workers of a run from TF_CONFIG and lets them meet before TensorFlow connects them.

TensorFlow waits for a missing worker without end, and ignores Ctrl-C meanwhile. So the workers
first meet on the ports that TF_CONFIG gives them: each sends the chief its settings, and none
continues before the chief has received all of them and found them equal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tf_efsgd.config import (
    MOVABLE,
    OWN_PLACES,
    ConfigError,
    DataConfig,
    RunConfig,
    TrainingConfig,
    from_flagfile,
    recipes,
    without_place,
)
from tf_efsgd.version import __version__

CHIEF, WORKER = 'chief', 'worker'

# Workers may differ in these settings.
_OWN = (*OWN_PLACES, 'worker_timeout')
# Flags of one start, which are not settings of the run.
OF_START = ('resume', 'change_mechanism', 'resume_unverified')

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)
_RETRY = 0.2  # seconds
_LONGEST_WORD = 2**20  # bytes


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, the chief first.

    Attributes:
      addresses: host:port of each.
      index: of this one.
      job: of this one in TF_CONFIG, 'chief' or 'worker'.
      task: its index there.
    """

    addresses: tuple[str, ...]
    index: int
    job: str
    task: int

    @property
    def count(self) -> int:
        """How many workers there are."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this worker is the chief, which writes."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Names a worker in messages: 'worker 1 (host1:2222)'."""
        return f'worker {index} ({self.addresses[index]})'


def is_wanted(strategy: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a run has several workers: as asked for, or by TF_CONFIG if `strategy` is 'auto'.

    Args:
      strategy: the setting.
      environment: with TF_CONFIG.

    Raises:
      ConfigError: if TF_CONFIG is wrong.
    """
    if strategy == 'multi_worker':
        return True
    return strategy == 'auto' and 'TF_CONFIG' in environment and read(environment).count > 1


def read(environment: Mapping[str, str] = os.environ) -> Cluster:
    """Reads the workers from TF_CONFIG, whose format TensorFlow documents.

    If TF_CONFIG names no chief, worker 0 is the chief.

    Args:
      environment: with TF_CONFIG.

    Raises:
      ConfigError: if it is missing or wrong.
    """
    text = environment.get('TF_CONFIG')
    if not text:
        raise ConfigError(
            '--strategy=multi_worker needs the environment variable TF_CONFIG on every worker, '
            f'with the addresses of all and its own index, e.g. {_EXAMPLE}; launch/multi_worker.sh '
            'sets it for workers on one machine. Received: none.'
        )
    try:
        values = json.loads(text)
        jobs, task = dict(values['cluster']), values['task']
        job, index = task['type'], task['index']
    except (ValueError, KeyError, TypeError) as error:
        raise _wrong(text, f'must be JSON like {_EXAMPLE}') from error
    if set(jobs) - {CHIEF, WORKER} or job not in jobs:
        raise _wrong(text, 'must name workers, and at most one chief, and this task among them')
    if any(not isinstance(jobs[name], list) for name in jobs) or len(jobs.get(CHIEF, [''])) != 1:
        raise _wrong(text, 'must have a list of addresses for each job, and one for the chief')
    if type(index) is not int or not 0 <= index < len(jobs[job]):
        raise _wrong(text, f'has an index that is none of the {len(jobs[job])} of its {job} task')
    addresses = (*jobs.get(CHIEF, []), *jobs.get(WORKER, []))
    if not all(map(_is_address, addresses)) or len(set(addresses)) != len(addresses):
        raise _wrong(text, 'must have a different address, host:port, for every worker')
    first = len(jobs.get(CHIEF, [])) if job == WORKER else 0
    return Cluster(addresses, first + index, job, index)


def _is_address(address: Any) -> bool:
    host, _, port = address.rpartition(':') if isinstance(address, str) else ('', '', '')
    return bool(host) and port.isdigit() and 1 <= int(port) <= 65535


def _wrong(text: str, what: str) -> ConfigError:
    return ConfigError(f'TF_CONFIG {what}. Received: {text}')


def shared_settings(config: RunConfig) -> list[str]:
    """Returns the settings that must be equal on all workers, as flags; paths are left out."""
    data = config.data
    instead: dict[str, str | None] = dict.fromkeys(_OWN)
    instead |= {name: without_place(getattr(data, name), name) for name in MOVABLE}
    instead['public_features'] = recipes.without_folder(config.privacy.public_features)
    return config.to_flags(**instead).splitlines()


def check_own_records(data: DataConfig, training: TrainingConfig) -> None:
    """Refuses settings that need all records if each worker has only its own.

    Args:
      data: this worker's settings of data.
      training: this worker's settings of training.

    Raises:
      ConfigError: if there are such settings.
    """
    if training.worker_records != 'own':
        return
    if data.dataset_size is None or data.classes is None:
        raise ConfigError(
            '--worker_records=own needs --dataset_size, the number of records of all workers '
            'together, and --classes: a worker cannot read them off the records of the others.'
        )
    if data.images_per_person is not None or data.limit_records is not None:
        raise ConfigError(
            '--worker_records=own takes neither --images_per_person nor --limit_records: a worker '
            'does not know what the others have of a person.'
        )


def meet(cluster: Cluster, config: RunConfig) -> None:
    """Waits for all workers and compares their settings with the chief's.

    Args:
      cluster: from `read`.
      config: the settings of this worker.

    Raises:
      ConfigError: on every worker that has come, if another one does not come within
        `worker_timeout` or has other settings or another version of this program.
    """
    deadline = time.monotonic() + config.training.worker_timeout
    word = {
        'index': cluster.index,
        'count': cluster.count,
        'version': _version(),
        'settings': shared_settings(config),
    }
    if cluster.count == 1:
        return
    if cluster.is_chief:
        _gather(cluster, word, deadline, config.training.worker_timeout)
    else:
        _ask(cluster, word, deadline, config.training.worker_timeout)


def _version() -> str:
    return __version__


@contextlib.contextmanager
def _own_port(cluster: Cluster) -> Iterator[socket.socket]:
    """Listens on the port that TensorFlow will use afterwards."""
    port = int(cluster.addresses[cluster.index].rpartition(':')[2])
    try:
        listener = socket.create_server(('', port), backlog=cluster.count)
    except OSError as error:
        raise ConfigError(
            f'Port {port}, which TF_CONFIG gives {cluster.name(cluster.index)}, cannot be used '
            f'({os.strerror(error.errno)}): another process may have it, perhaps of an '
            'earlier start. Stop it, or give another port to all workers.'
        ) from error
    with listener:
        yield listener


def _gather(cluster: Cluster, own: dict, deadline: float, seconds: float) -> None:
    """On the chief: receives the settings of all workers, then lets all or none continue."""
    come: dict[int, socket.socket] = {}
    with _own_port(cluster) as listener, contextlib.ExitStack() as stack:
        problem = None
        while problem is None and len(come) < cluster.count - 1:
            connection, word = _next_word(listener, deadline)
            for index in [i for i, earlier in come.items() if _has_gone(earlier)]:
                del come[index]  # Killed while it waited; it may be started again.
            if connection is not None:
                stack.enter_context(connection)
            if word is not None:  # Otherwise this was no worker.
                problem = _difference(cluster, own, word, come)
                if problem is None:
                    come[word['index']] = connection
                else:
                    _say(connection, {'error': problem})
            elif time.monotonic() >= deadline:
                missing = [cluster.name(i) for i in range(1, cluster.count) if i not in come]
                problem = (
                    f'{", ".join(missing)} did not come within {seconds:g} seconds '
                    '(--worker_timeout): start all workers, at the addresses of TF_CONFIG.'
                )
        for connection in come.values():
            _say(connection, {'error': problem})
        for connection in come.values():  # The others close first, so the port is free at once.
            with contextlib.suppress(OSError):
                connection.recv(1)
    if problem is not None:
        raise ConfigError(problem)


def _next_word(listener, deadline: float) -> tuple[socket.socket | None, dict | None]:
    """Returns the next connection and its message; None for what does not come within a second."""
    listener.settimeout(max(0.01, min(1.0, deadline - time.monotonic())))
    try:
        connection = listener.accept()[0]
    except OSError:
        return None, None
    connection.settimeout(10.0)
    return connection, _hear(connection)


def _has_gone(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b''
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(10.0)


def _difference(cluster, own: dict, word: dict, come: dict) -> str | None:
    """Says what is wrong with a worker that has come; None if nothing is."""
    index = word.get('index')
    if type(index) is not int or not 1 <= index < cluster.count or index in come:
        return f'TF_CONFIG gives two workers the same index, or a wrong one. Received: {index}.'
    name = cluster.name(index)
    if word['count'] != own['count']:
        return (
            f'TF_CONFIG of {name} has {word["count"]} workers, that of the chief {own["count"]}: '
            'give all workers the same cluster.'
        )
    if word['version'] != own['version']:
        return (
            f'{name} runs version {word["version"]} of this program, the chief {own["version"]}: '
            'install the same on all workers.'
        )
    here, there = own['settings'], word['settings']
    if here != there:
        changed = sorted(set(there) ^ set(here), key=lambda flag: (flag.partition('=')[0], flag))
        return (
            f'{name} was started with other settings than the chief: {" ".join(changed)}. Start '
            'all workers with the same flags.'
        )
    return None


def _ask(cluster: Cluster, word: dict, deadline: float, seconds: float) -> None:
    """On another worker: sends its settings to the chief and waits for the answer."""
    with _own_port(cluster):
        pass  # It is free.
    host, _, port = cluster.addresses[0].rpartition(':')
    answer = None
    while answer is None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ConfigError(
                f'The chief, {cluster.name(0)}, did not answer within {seconds:g} seconds '
                '(--worker_timeout): start all workers, at the addresses of TF_CONFIG.'
            )
        try:
            with socket.create_connection((host.strip('[]'), int(port)), timeout=left) as chief:
                _say(chief, word)
                # The chief answers when all have come, or when it gives up.
                chief.settimeout(left + 10.0)
                answer = _hear(chief)
        except OSError:
            pass
        if answer is None:
            time.sleep(_RETRY)
    if answer.get('error') is not None:
        raise ConfigError(str(answer['error']))


def _say(connection: socket.socket, word: dict) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(word).encode() + b'\n')


def _hear(connection: socket.socket) -> dict | None:
    """Receives one line of JSON; None if something else comes."""
    heard = b''
    try:
        while not heard.endswith(b'\n') and len(heard) < _LONGEST_WORD:
            more = connection.recv(2**16)
            if not more:
                return None
            heard += more
        word = json.loads(heard)
    except (OSError, ValueError):
        return None
    return word if isinstance(word, dict) else None


def with_own_places(flags: str, own: RunConfig) -> RunConfig:
    """Returns the chief's settings with the paths of this worker.

    Args:
      flags: of the chief, as `RunConfig.to_flags` gives them, and those of `OF_START`.
      own: the settings of this worker.
    """
    config = from_flagfile(f'{flags}--run_dir={own.run.run_dir or "."}\n')
    data = {name: getattr(own.data, name) for name in OWN_PLACES}
    for name in MOVABLE:
        if without_place(getattr(own.data, name), name) != getattr(own.data, name):
            data[name] = getattr(own.data, name)
    privacy = config.privacy
    if recipes.is_path(own.privacy.public_features):
        privacy = dataclasses.replace(privacy, public_features=own.privacy.public_features)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        privacy=privacy,
        run=dataclasses.replace(config.run, state_dir=own.run.state_dir),
    )
