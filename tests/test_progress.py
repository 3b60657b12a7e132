"""A bar moves on a terminal, and hardly writes anything elsewhere."""

import io
import re
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
    for _ in progress.Bar(range(_STEPS), desc='warm start', builds_graph=True):
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
        written = stderr.getvalue()
        assert ('\r' in written) == is_terminal
        return written.split('\r')[1:] if is_terminal else written.splitlines()

    return run


def test_a_log_file_gets_an_update_a_minute_and_the_end(show):
    updates = show(is_terminal=False)
    assert ' 0%' in updates[0] or 'building the graph ...' in updates[0]
    assert '100%' in updates[-1]
    assert 25 <= len(updates) <= 33
    assert max(map(len, updates)) < 120 and all(line.strip() == line for line in updates)


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


@pytest.mark.parametrize('is_terminal', [True, False])
@pytest.mark.parametrize('by', ['iterating', 'updates', 'resuming'])
def test_time_left_is_counted_from_the_second_step(by, is_terminal, seconds, monkeypatch):
    """The first takes 100 seconds here, each of the others one: 'left' is never above 99."""
    stderr = _Stderr(is_terminal)
    monkeypatch.setattr(sys, 'stderr', stderr)
    if by == 'iterating':
        for step in progress.Bar(range(100), builds_graph=True):
            seconds[0] += 100 if step == 0 else 1
    else:
        first = 50 if by == 'resuming' else 0
        with progress.Bar(total=100, initial=first, builds_graph=True) as bar:
            for step in range(first, 100):
                seconds[0] += 100 if step == first else 1
                bar.update()
    updates = stderr.getvalue().replace('\n', '\r').split('\r')
    assert any('building the graph ...' in update for update in updates)
    left = re.findall(r'<(?:(\d+):)?(\d+):(\d+)', stderr.getvalue())
    assert left and all(not hours and int(minutes) < 2 for hours, minutes, _ in left), left
    assert '100/100 [' in updates[-1] or '100/100 [' in updates[-2]


def test_a_wait_says_what_and_how_long_and_no_more(monkeypatch):
    for is_terminal, wanted in ((True, '\rLooking ... 0:00\n'), (False, 'Looking ...\n')):
        stderr = _Stderr(is_terminal)
        monkeypatch.setattr(sys, 'stderr', stderr)
        with progress.waiting('Looking'):
            pass
        assert stderr.getvalue() == wanted
