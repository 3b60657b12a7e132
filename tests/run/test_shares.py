"""Whose records are whose: what several workers refuse before anything is charged."""

import contextlib
import dataclasses
import threading

import numpy as np
import pytest
import tensorflow as tf
from helpers import plans, toy_images
from helpers.pairs import pairs

from tf_efsgd import config
from tf_efsgd.config import ConfigError
from tf_efsgd.data.records import Dataset
from tf_efsgd.privacy import run_state
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.run import shares, start
from tf_efsgd.run.alone import Alone
from tf_efsgd.run.workers import Several


class _InThreads(Alone):
    """A worker whose collectives go through the memory of one process."""

    def __init__(self, index, meeting, given, has_own_records):
        self.index, self.count = index, len(given)
        self._meeting, self._given = meeting, given
        self.has_own_records = has_own_records
        self.digests = None

    def divide(self, digests):
        self.digests = digests

    def all_gather(self, content):
        self._given[self.index] = content
        self._meeting.wait(60)
        found = list(self._given)
        self._meeting.wait(60)
        return found

    def broadcast(self, content):
        return self.all_gather(content)[0]


def _check(datasets, has_own_records=False, check=shares.check):
    """What `check` gives each worker, or its error."""
    meeting, given = threading.Barrier(len(datasets)), [None] * len(datasets)
    ends = [None] * len(datasets)

    def run(index):
        worker = _InThreads(index, meeting, given, has_own_records)
        try:
            ends[index] = check(worker, datasets[index])
        except ConfigError as error:
            ends[index] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(datasets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return ends


def _dataset(records, **changes):
    digests = np.stack([np.arange(len(records))] * 2, axis=1).astype(np.uint64)
    return Dataset('toy', records, None, 60, digests=digests, **changes)


@pytest.fixture(scope='module')
def records():
    return toy_images.toy(60, 1)


def _part(dataset, kept):
    train = dataset.train
    part = dataclasses.replace(train, images=train.images[kept], labels=train.labels[kept])
    return dataclasses.replace(dataset, train=part, digests=dataset.digests[kept])


def test_a_worker_alone_has_all(records):
    dataset = _dataset(records)
    assert shares.check(Alone(), dataset) is dataset
    assert Alone().share(records.images) is records.images


def test_the_same_records_on_all_are_taken_apart_without_overlap(records):
    datasets = [_dataset(records)] * 3
    assert _check(datasets) == datasets


def _changed(records, what):
    images, labels = records.images.copy(), records.labels.copy()
    if what == 'a pixel':
        images[41, 3, 2] ^= 1
    elif what == 'a label':
        labels[41] = (labels[41] + 1) % 3
    elif what == 'the order':
        images[[3, 4]], labels[[3, 4]] = images[[4, 3]], labels[[4, 3]]
    elif what == 'one fewer':
        images, labels = images[:-1], labels[:-1]
    return dataclasses.replace(records, images=images, labels=labels)


@pytest.mark.parametrize('what', ['a pixel', 'a label', 'the order', 'one fewer'])
def test_other_records_on_one_worker_are_refused_on_all(records, what):
    ends = _check([_dataset(records), _dataset(_changed(records, what))])
    assert ends[0] == ends[1] and 'worker 1 has other records' in ends[0]
    # How many there are is private.
    assert not any(number in ends[0] for number in ('60', '59', '30'))


def test_other_classes_are_refused(records):
    other = dataclasses.replace(records, class_names=('0', '1', 'two'))
    for end in _check([_dataset(records), _dataset(other)]):
        assert 'worker 1 has other records' in end and 'classes' in end


def test_far_more_records_of_all_workers_than_declared_are_refused(records):
    whole = dataclasses.replace(_dataset(records), declared_size=47)
    parts = [_part(whole, np.arange(17)), _part(whole, np.arange(17, 60))]
    for end in _check(parts, has_own_records=True):
        assert 'all workers together' in end and '1.25 times the 47 records' in end


def test_workers_with_records_of_their_own_hand_their_digests_on(records):
    whole = _dataset(records)
    parts = [_part(whole, np.arange(17)), _part(whole, np.arange(17, 60))]
    for end, part in pairs(_check(parts, has_own_records=True), parts):
        np.testing.assert_array_equal(end.digests, whole.digests)
        assert end.train is part.train


def test_a_picture_on_two_workers_is_refused(records):
    whole = _dataset(records)
    parts = [_part(whole, np.arange(17)), _part(whole, np.arange(16, 60))]
    for end in _check(parts, has_own_records=True):
        assert 'the same picture' in end
    # Twice on one worker is two records of that worker.
    twice = _part(whole, np.r_[16:60, 20])
    assert not isinstance(_check([_part(whole, np.arange(16)), twice], True)[0], str)


def test_whose_a_record_is_depends_on_it_alone_and_every_one_is_somebodys(records):
    digests = np.random.default_rng(3).integers(0, 2**63, (200, 2)).astype(np.uint64)
    numbers = np.arange(200)

    def owners(digests):
        found = np.full(len(digests), -1)
        for index in range(3):
            worker = Several.__new__(Several)
            worker.index, worker.count, worker.has_own_records = index, 3, False
            worker.divide(digests)
            own = worker.share(numbers[: len(digests)])[:]
            assert (found[own] == -1).all()
            found[own] = index
        return found

    whole = owners(digests)
    assert sorted(np.unique(whole)) == [0, 1, 2] and np.bincount(whole).min() > 40
    np.testing.assert_array_equal(owners(np.delete(digests, 17, axis=0)), np.delete(whole, 17))


def test_workers_have_the_same_public_network():
    def network(scale):
        model = tf.keras.Sequential([tf.keras.Input([3]), tf.keras.layers.Dense(2)])
        model.set_weights([np.full([3, 2], scale), np.zeros([2])])
        return model

    one, same, other = network(0.5), network(0.5), network(0.6)

    assert _check([one, same], check=shares.check_network) == [None, None]
    assert _check([None, None], check=shares.check_network) == [None, None]
    for end in _check([one, same, other], check=shares.check_network):
        assert 'worker 2 has another network under --public_features' in end


# What a worker with records of its own remembers of them.


class _OneOfTwo(Alone):
    """What is said to the other one is noted, not sent."""

    count, has_own_records = 2, True

    def __init__(self, index, largest=None):
        self.index, self._largest = index, largest

    def all_reduce_max(self, number):
        return number if self._largest is None else self._largest

    def only_on_chief(self, make):
        return make() if self.is_chief else None


@pytest.fixture
def ledger(tmp_path):
    with contextlib.closing(Ledger(tmp_path / 'ledger.jsonl', plans.in_ledger())) as opened:
        yield opened


def _remember(worker, base, ledger, state, records, *more):
    lines = ['--target_epsilon=1', f'--run_dir={base}/run', '--worker_records=own', *more]
    settings = config.from_flagfile('\n'.join(lines))
    folder = base / f'state_{worker.index}'
    run_state.prepare_folder(folder)
    with contextlib.ExitStack() as stack:
        start.remember_share(worker, settings, folder, ledger, state, _dataset(records), stack)


def test_other_records_of_a_worker_are_refused_also_where_the_chiefs_are_the_same(
    tmp_path, ledger, records
):
    _remember(_OneOfTwo(1), tmp_path, ledger, None, records)
    kept = list((tmp_path / 'state_1').glob('*.json'))
    assert [path.name for path in kept] == [f'{ledger.run_id}-worker-1.json']
    _remember(_OneOfTwo(1), tmp_path, ledger, None, records, '--resume')
    for more in ((), ('--resume_unverified',)):
        with pytest.raises(ConfigError, match='fingerprint'):
            _remember(
                _OneOfTwo(1),
                tmp_path,
                ledger,
                None,
                _changed(records, 'a pixel'),
                '--resume',
                *more,
            )
    kept[0].unlink()
    with pytest.raises(ConfigError, match='nothing of the records of this worker.*unverified'):
        _remember(_OneOfTwo(1), tmp_path, ledger, None, records, '--resume')
    assert not kept[0].exists()


def test_that_records_of_a_worker_were_not_verified_is_in_the_ledger_once(
    tmp_path, ledger, records
):
    unverified = ('--resume', '--resume_unverified')
    _remember(_OneOfTwo(1), tmp_path, ledger, None, records, *unverified)
    assert ledger.unverified_resumes == 0  # The chief has it.
    with contextlib.closing(run_state.RunState(tmp_path / 'state_1', ledger.run_id)) as state:
        state.remember_records(records.images, records.labels, ledger.position)
        _remember(_OneOfTwo(0, largest=0), tmp_path, ledger, state, records, *unverified)
        assert ledger.unverified_resumes == 0
        for _ in range(2):  # Its own were not verified either.
            _remember(_OneOfTwo(0, largest=1), tmp_path, ledger, state, records, *unverified)
        assert state.position == ledger.position
    assert Ledger.read(tmp_path / 'ledger.jsonl').unverified_resumes == 1
