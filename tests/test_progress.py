"""A bar moves on a terminal, and hardly writes anything elsewhere."""

import io
import sys
import time

import pytest
import tqdm

from tf_efsgd import progress
from tf_efsgd.training import callbacks as monitoring

_STEPS = 1800  # One a second.


class _Stderr(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


def _training():
    bar = monitoring.ProgressBar(0, _STEPS, every=100)
    bar.on_train_begin()
    for step in range(_STEPS):
        yield
        bar.on_train_batch_end(step)
    bar.on_train_end()


def _evaluation():
    with progress.progress_bar('features', _STEPS) as bar:
        for _ in range(_STEPS):
            yield
            bar.update()


def _fit():
    for _ in progress.Bar(range(_STEPS), desc='warm start'):
        yield


@pytest.fixture
def seconds(monkeypatch):
    """The clock of tqdm, in a list of one."""
    clock = [time.time()]
    monkeypatch.setattr(tqdm.std, 'time', lambda: clock[0])
    return clock


@pytest.fixture(params=[_training, _evaluation, _fit])
def show(request, seconds, monkeypatch):
    """Shows half an hour of steps of a second; returns every update."""

    def run(is_terminal):
        stderr = _Stderr(is_terminal)
        monkeypatch.setattr(sys, 'stderr', stderr)
        for _ in request.param():
            seconds[0] += 1
        return stderr.getvalue().split('\r')[1:]

    return run


def test_a_log_file_gets_an_update_a_minute_and_the_end(show):
    updates = show(is_terminal=False)
    assert ' 0%' in updates[0] and '100%' in updates[-1]
    assert 25 <= len(updates) <= 33


def test_a_terminal_gets_an_update_every_second(show):
    updates = show(is_terminal=True)
    assert '100%' in updates[-1]
    assert len(updates) >= _STEPS / 2


def test_the_monitor_of_tqdm_leaves_a_log_file_alone(seconds, monkeypatch):
    monkeypatch.setattr(sys, 'stderr', _Stderr(is_terminal=False))
    with progress.Bar(total=1000) as bar:
        seconds[0] += 61
        assert bar.update(500)
        # A bar with more than 1 is refreshed by tqdm's own thread, every 10 seconds.
        assert bar.miniters == 1
