"""Whole runs of two workers, each a process: to the end, stopped, lost, and continued by two."""

import json
import re
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_run, worker_processes

from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.run import verify

pytestmark = pytest.mark.acceptance

_SECONDS = 800  # Far more than it takes: the machine may be busy.
_STEPS = {'train_steps': 400, 'checkpoint_steps': 20, 'log_steps': 10, 'discriminator': 'pixels'}
_LOST = 1  # The exit code of a worker that has lost another.


class _Runs:
    """Starts of one run by two workers.

    Args:
      base: for the run folder, the state folders and what the workers say.
      settings: flags by name.
      own: flags of each worker alone.
    """

    def __init__(self, base, settings, *more, own=((), ())):
        self.folder = base / 'run'
        self._base, self._own = base, own
        self._flags = tiny_run.flags(
            self.folder, '--strategy=multi_worker', '--noevaluate', *more, **settings
        )

    def start(self, *more):
        """The workers; use them in a `with`."""
        own = [
            [*flags, f'--state_dir={self._base}/state_{index}']
            for index, flags in enumerate(self._own)
        ]
        command = ['-m', 'tf_efsgd.launch', *self._flags, *more]
        return worker_processes.Workers(command, self._base, own=own)

    def to_the_end(self, *more, codes=(0, 0)):
        """Waits for the end; returns what each has said."""
        with self.start(*more) as workers:
            found = tuple(workers.wait(_SECONDS))
            said = [workers.said(index) for index in range(2)]
        assert found == tuple(codes), [text[-2000:] for text in said]
        return said

    def until_steps_run(self, workers):
        """Waits until a start has run the steps of two reservations."""
        deadline = time.monotonic() + _SECONDS
        before = len(self.reserved)
        while len(self.reserved) < before + 3:
            assert time.monotonic() < deadline and workers.processes[0].poll() is None
            time.sleep(0.05)

    @property
    def reserved(self):
        """The counts of the whole entries so far."""
        path = self.folder / 'ledger.jsonl'
        lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
        return [entry['count'] for entry in map(json.loads, lines) if entry['kind'] == 'steps']


def _assert_complete(runs, steps):
    """Spent is what the ledger reserved, and what was planned."""
    statement = tiny_run.statement(runs.folder)
    assert sum(runs.reserved) == statement['steps'] == steps
    assert statement['epsilon'] <= statement['target_epsilon']
    found = verify.verify(runs.folder)
    assert found['faults'] == [] and found['epsilon'] == statement['epsilon']
    return statement


def _assert_says_how_to_continue(runs, workers):
    for index in range(2):
        line = workers.said(index).splitlines()[-1]
        found = re.search('stopped after step ([0-9]+), with a checkpoint. Continue with: ', line)
        assert f'--flagfile={runs.folder}/config.flags --run_dir={runs.folder} --resume' in line
        yield int(found[1])


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """A run that Ctrl-C has stopped on both workers, and then SIGTERM on one, with checkpoints."""
    runs = _Runs(tmp_path_factory.mktemp('stopped'), _STEPS)
    for number, at, more in ((signal.SIGINT, (0, 1), ()), (signal.SIGTERM, (1,), ('--resume',))):
        before = runs.reserved
        with runs.start(*more) as workers:
            runs.until_steps_run(workers)
            if not more:
                # As on a machine that is busy with other work: nobody takes it for lost.
                workers.processes[1].send_signal(signal.SIGSTOP)
                time.sleep(25)  # TensorFlow's own limit is 10.
                workers.processes[1].send_signal(signal.SIGCONT)
                runs.until_steps_run(workers)
            for index in at:
                workers.processes[index].send_signal(number)
            assert workers.wait(_SECONDS) == [128 + number] * 2
            steps = list(_assert_says_how_to_continue(runs, workers))
        assert runs.reserved[: len(before)] == before
        # Nothing that was paid for is thrown away.
        assert steps == [sum(runs.reserved)] * 2 and steps[0] < _STEPS['train_steps']
    return runs


def test_two_workers_continue_from_the_last_checkpoint_until_nothing_is_left(stopped):
    applied = sum(stopped.reserved)
    for lost in (1, 0):
        before = stopped.reserved
        with stopped.start('--resume') as workers:
            stopped.until_steps_run(workers)
            workers.processes[lost].kill()
            codes = workers.wait(_SECONDS)
            assert 'Another worker was lost' in workers.said(1 - lost)
        assert (codes[lost], codes[1 - lost]) == (-signal.SIGKILL, _LOST)
        assert stopped.reserved[: len(before)] == before and stopped.reserved != before
    before = stopped.reserved
    stopped.to_the_end('--resume', '--evaluate')
    assert stopped.reserved[: len(before)] == before
    assert (stopped.folder / 'nonprivate/metrics.json').exists()
    statement = _assert_complete(stopped, _STEPS['train_steps'])
    # Of each start that was lost, at most what stood between checkpoint and end of reservation.
    lost = statement['steps'] - statement['applied_steps']
    assert 0 < lost <= 2 * (_STEPS['checkpoint_steps'] + _STEPS['log_steps'])
    assert statement['applied_steps'] > applied


def _write_images(root, seed, count=40, shape=(8, 8, 1)):
    draws = np.random.default_rng(seed)
    for label, name in enumerate(('day', 'night')):
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = np.clip(draws.normal(190 - 120 * label, 30, shape), 0, 255)
            png = tf.io.encode_png(image.astype(np.uint8)).numpy()
            (root / name / f'{number}.png').write_bytes(png)


def test_workers_with_records_of_their_own_come_to_an_export(tmp_path):
    for index in range(2):
        _write_images(tmp_path / f'images_{index}', seed=index, count=200)
    runs = _Runs(
        tmp_path,
        {
            'dataset_size': 800,
            'classes': 'day,night',
            'image_size': 8,
            'channels': 1,
            'worker_records': 'own',
            'expected_batch_size': 20,
            'warm_start_share': 0.4,
            'warm_start_steps': 4,
            'learned_features_share': 0.5,
            'learned_features_steps': 4,
            'target_delta': 1e-4,
            'target_epsilon': 8,
        },
        own=[[f'--dataset=folder:{tmp_path}/images_{index}'] for index in range(2)],
    )
    runs.to_the_end()
    statement = _assert_complete(runs, 8)
    assert (statement['dataset_size'], statement['class_names']) == (800, ['day', 'night'])
    # Of all records, not of the chief's alone, which are half of them: far apart for the noise.
    assert 540 < sum(statement['released_class_counts']) < 1000
    assert tiny_run.kinds(runs.folder)[:3] == ['plan', 'warm_start', 'learned_features']
    ledger = Ledger.read(runs.folder / 'ledger.jsonl')
    remembered = [{path.stem for path in (tmp_path / f'state_{i}').glob('*.json')} for i in (0, 1)]
    assert ledger.run_id in remembered[0]
    assert remembered[1] == {f'{ledger.run_id}-worker-1'}
    # Where a worker remembers nothing, nobody can tell that its records are others now.
    for number in range(5):
        (tmp_path / f'images_1/day/{number}.png').unlink()
    (tmp_path / f'state_1/{ledger.run_id}-worker-1.json').unlink()
    said = runs.to_the_end('--resume', '--resume_unverified')
    assert 'what another worker has of the records is not checked' in said[0]
    ledger = Ledger.read(runs.folder / 'ledger.jsonl')
    assert ledger.unverified_resumes == 1 and ledger.reserved_steps == 8
    assert (tmp_path / f'state_1/{ledger.run_id}-worker-1.json').exists()


def test_two_workers_train_heads_on_a_public_network(tmp_path):
    _write_images(tmp_path / 'images', seed=2, shape=(16, 16, 3))
    runs = _Runs(
        tmp_path,
        {
            'dataset': f'folder:{tmp_path}/images',
            'expected_batch_size': 12,
            'target_epsilon': 5,
            'warm_start_share': 0.4,
            'warm_start_steps': 3,
            'warm_start_weight': 1,
            'train_steps': 6,
            'public_features': 'efficientnet_lite0',
            'discriminator': 'public_heads',
            'discriminator_steps': 1,
        },
    )
    runs.to_the_end()
    statement = _assert_complete(runs, 6)
    assert statement['applied_steps'] == 6 and 'ImageNet' in statement['public_images']
    assert not list(tmp_path.rglob('*.features.npy'))
