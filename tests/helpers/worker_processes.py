"""Worker processes on this machine, each with its TF_CONFIG and a firm end."""

import json
import os
import socket
import subprocess
import sys
import time


def free_addresses(count):
    """Finds different addresses of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(('127.0.0.1', 0))
        return [f'127.0.0.1:{listener.getsockname()[1]}' for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def tf_config(addresses, index, job='worker'):
    """Returns the TF_CONFIG of a worker."""
    return json.dumps({'cluster': {'worker': addresses}, 'task': {'type': job, 'index': index}})


class Workers:
    """Processes of the same command, one a worker; all are gone at the end.

    Args:
      arguments: of Python.
      folder: for what each says.
      count: how many.
      own: further arguments of each, in their order.
    """

    def __init__(self, arguments, folder, count=2, own=None):
        addresses = free_addresses(count)
        self._logs = [folder / f'worker_{index}.log' for index in range(count)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, *map(str, [*arguments, *(own[index] if own else ())])],
                stdout=log.open('w'),
                stderr=subprocess.STDOUT,
                env={**os.environ, 'TF_CONFIG': tf_config(addresses, index)},
            )
            for index, log in enumerate(self._logs)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self, seconds):
        """Returns the exit codes once all have ended; fails after so many seconds."""
        deadline = time.monotonic() + seconds
        return [p.wait(timeout=max(0.1, deadline - time.monotonic())) for p in self.processes]

    def said(self, index):
        """Returns what a worker has said so far."""
        return self._logs[index].read_text(errors='replace')
