"""The releases of several workers: summed together, with one noise, paid for and written once.

Each worker is a thread here; `tests/run/test_runs_of_workers.py` has processes.
"""

import threading
from concurrent import futures

import numpy as np
import pytest
from helpers import starts, tiny_run
from helpers.small_images import CLASSES

from tf_efsgd.privacy import class_sums, grid, shared_releases
from tf_efsgd.privacy.ledger_copy import LedgerCopy, NothingRemembered

_WORKERS = 3


class _Team:
    """The workers of a run, in one process; `seen` is all that ever left one of them."""

    def __init__(self):
        self._barrier = threading.Barrier(_WORKERS, timeout=300)
        self._given, self.seen = [None] * _WORKERS, []

    def exchange(self, index, what):
        self._given[index] = what
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        if index == 0:
            self.seen.append(given)
        return given


class _Worker:
    def __init__(self, team, index):
        self._team, self._index = team, index

    def of_chief(self, make):
        return self._team.exchange(self._index, make() if self._index == 0 else None)[0]

    def broadcast(self, content):
        return self._team.exchange(self._index, content)[0]

    broadcast_array = broadcast

    def all_reduce(self, array):
        return sum(self._team.exchange(self._index, array))


def _no_noise():
    raise AssertionError('only the chief draws noise')


def _share(index):
    return slice(index, None, _WORKERS)


def _make_all(base, features):
    """Both releases of a team, as each worker has them; with the chief's start and the team."""
    team = _Team()

    def chief(worker, *arguments, **_):
        folder, ledger, state, images, labels, sigmas, new_noise, version = arguments
        own = _share(0)
        return shared_releases.ReleasesOfChief(
            *(worker, folder, ledger, state, images[own], labels[own]),
            *(sigmas, new_noise, version),
        )

    with starts.Start(base, kind=lambda *args, **more: chief(_Worker(team, 0), *args)) as start:
        content = start.ledger.content

        def other(index):
            ledger, own = LedgerCopy(content), _share(index)
            releases = shared_releases.ReleasesOfOthers(
                *(_Worker(team, index), base / 'nowhere', ledger, NothingRemembered()),
                *(starts.IMAGES[own], starts.LABELS[own], starts.SIGMAS, _no_noise, starts.VERSION),
            )
            return _both(releases, features), ledger

        with futures.ThreadPoolExecutor(_WORKERS) as pool:
            others = [pool.submit(other, index) for index in range(1, _WORKERS)]
            own = _both(start.releases, features)
            found = [own, *(one.result()[0] for one in others)]
            ledgers = [start.ledger, *(one.result()[1] for one in others)]
        for ledger in ledgers:
            assert not ledger.warm_start_is_due and not ledger.learned_features_are_due
    return found, team


def _both(releases, features):
    releases.check()
    first = releases.class_sums(features)
    stored = releases.stored_learned_features()
    second = stored or releases.release_learned_features(features, **starts.WEIGHTS)
    return first, second.sums


@pytest.fixture(scope='module')
def features():
    return starts.Columns()


def test_all_workers_have_one_release_of_all_records(tmp_path, features):
    found, _ = _make_all(tmp_path, features)
    for sigma, of_all in zip(starts.SIGMAS, zip(*found)):
        exact = class_sums.sum_over_records(starts.IMAGES, starts.LABELS, CLASSES, features, sigma)
        noise = (of_all[0] - exact) * grid.class_sum_step(sigma)
        # One noise, not one of each worker: its square would be three times as large.
        assert abs(noise.std() / sigma - 1) < 4 / np.sqrt(2 * noise.size)
        for other in of_all[1:]:
            np.testing.assert_array_equal(of_all[0], other)


def test_it_is_paid_for_and_written_once_by_the_chief(tmp_path, features):
    _make_all(tmp_path, features)
    assert tiny_run.kinds(tmp_path / 'run') == starts.KINDS['second']
    assert not (tmp_path / 'nowhere').exists()
    written = sorted(path.name for path in (tmp_path / 'run').iterdir())
    assert written == sorted(['ledger.jsonl', *starts.NAMES.values()])


def test_a_later_start_reads_it_and_sums_nothing(tmp_path, features):
    made, _ = _make_all(tmp_path, features)
    spent = (tmp_path / 'run/ledger.jsonl').read_bytes()
    read, team = _make_all(tmp_path, features)
    assert (tmp_path / 'run/ledger.jsonl').read_bytes() == spent
    for one, other in zip(read, made):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    # What left a worker came from the chief: no share was added up.
    assert all(given[1:] == [None] * (_WORKERS - 1) for given in team.seen)


def test_the_other_workers_give_sums_of_their_own_records_alone(tmp_path, features):
    _, team = _make_all(tmp_path, features)
    given_by_others = [given[1:] for given in team.seen if given[1] is not None]
    assert len(given_by_others) == len(starts.SIGMAS)
    for sigma, given in zip(starts.SIGMAS, given_by_others):
        for index, array in enumerate(given, start=1):
            own = _share(index)
            expected = class_sums.sum_over_records(
                starts.IMAGES[own], starts.LABELS[own], CLASSES, features, sigma
            )
            np.testing.assert_array_equal(array, expected)
