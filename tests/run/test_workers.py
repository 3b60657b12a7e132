"""Two workers, each a process: they compute what one device does, and a lost one ends the run."""

import time

import numpy as np
import pytest
import tensorflow as tf
from helpers import one_worker, tiny_gan, tiny_run, toy_images, worker_processes

from tf_efsgd.audit import lattice
from tf_efsgd.config import ConfigError
from tf_efsgd.privacy import class_sums, grid
from tf_efsgd.privacy.features import pixels
from tf_efsgd.privacy.noise import NoiseKey
from tf_efsgd.run.workers import Several, WorkersDiffer

pytestmark = pytest.mark.acceptance

_SECONDS = 800  # Far more than it takes: the machine may be busy.


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """What each of two workers has found."""
    folder = tmp_path_factory.mktemp('workers')
    with worker_processes.Workers([one_worker.__file__, folder], folder) as workers:
        assert workers.wait(_SECONDS) == [0, 0], [workers.said(0)[-2000:], workers.said(1)[-2000:]]
    found = [dict(np.load(folder / f'{index}.npz')) for index in range(2)]
    for index, worker in enumerate(found):
        worker['waited'] = float((folder / f'waited_{index}').read_text())
    return found


def test_no_worker_leaves_before_all_have_come(found):
    # The chief comes 2 seconds later, when the others may be gone but for this.
    assert found[1]['waited'] > 1.0


def _of_two():
    """The second of two workers, connected to nobody."""
    team = Several.__new__(Several)
    team.index, team.count = 1, 2
    return team


@pytest.mark.parametrize('loss', Several.losses)
def test_one_who_is_lost_while_all_leave_is_not_missed(loss, monkeypatch):
    team = _of_two()

    def all_reduce_max(number):
        raise loss(None, None, 'gone')

    monkeypatch.setattr(team, 'all_reduce_max', all_reduce_max, raising=False)
    team.leave()


@pytest.mark.parametrize(
    ('end', 'error'),
    [
        (lambda team: team.of_chief(lambda: None), ConfigError),
        (lambda team: team.together(lambda: None), ConfigError),
        (lambda team: team.check_alike([tf.Variable(1.0)]), WorkersDiffer),
    ],
    ids=['of_chief', 'together', 'check_alike'],
)
def test_all_leave_before_they_end_by_what_one_has_found(end, error, monkeypatch):
    team, left = _of_two(), []
    monkeypatch.setattr(team, 'broadcast', lambda _: b'{"error": "full"}', raising=False)
    monkeypatch.setattr(team, 'all_gather', lambda _: [b'full', b''], raising=False)
    monkeypatch.setattr(team, 'name', str, raising=False)
    monkeypatch.setattr(team, 'leave', lambda: left.append(team), raising=False)
    with pytest.raises(error):
        end(team)
    assert left == [team]


def test_what_the_chief_tells_arrives_and_sums_are_exact(found):
    for worker in found:
        assert worker['told'].tobytes() == b'the chief'
        assert worker['collected'].tobytes() == b'x|xxxx'
        assert worker['sum'].tolist() == [[2**41 + 1, -10]]
        assert worker['largest'] == 15
        assert worker['array'].tolist() == [[1.5], [0.0]] and worker['array'].dtype == np.float32


def test_the_key_and_the_secure_noise_are_the_chiefs(found):
    one, two = found
    assert one['key'].tolist() == two['key'].tolist() and one['key'].shape == (1,)
    names = [name for name in one if name.startswith('secure')]
    assert len(names) == 4
    for name in names:
        np.testing.assert_array_equal(one[name], two[name])
        assert np.abs(one[name]).max() > 1000


@pytest.mark.parametrize(
    ('name', 'settings'), [('noiseless', {'noise_multiplier': 0.0}), ('noisy', {})]
)
def test_two_workers_give_the_weights_of_one_device(found, name, settings):
    gan = one_worker.make_gan(NoiseKey(one_worker.KEY), **settings)
    before = gan.get_weights()
    wanted = one_worker.train(gan, tiny_gan.samples(one_worker.SIZES))
    for worker in found:
        got = [worker[f'{name}_{i}'] for i in range(len(wanted))]
        assert max(np.abs(a - b).max() for a, b in zip(got, wanted)) < 1e-5
    assert max(np.abs(a - b).max() for a, b in zip(before, wanted)) > 1e-3
    for one, two in zip(*([w[f'{name}_{i}'] for i in range(len(wanted))] for w in found)):
        np.testing.assert_array_equal(one, two)


def test_the_noise_of_two_workers_has_the_variance_of_one(found):
    np.testing.assert_array_equal(found[0]['noise'], found[1]['noise'])
    # 5 standard errors; a noise for each worker has a variance of 2, half of one 0.5 or 0.25.
    error = 5 * np.sqrt(2 / one_worker.PARAMETERS)
    assert abs(np.var(found[0]['noise']) - 1.0) < error
    for wrong in (2.0, 0.5):
        assert abs(np.var(found[0]['noise']) * wrong - 1.0) > error


def test_the_lattice_attack_finds_nothing_in_what_two_workers_release(found):
    records = toy_images.toy(61, 2)
    features = pixels.FeatureMap(records.image_shape)

    def sums(kept):
        return class_sums.sum_over_records(
            records.images[kept], records.labels[kept], 3, features, one_worker.SIGMA
        )

    everybody = np.arange(61)
    np.testing.assert_array_equal(found[1]['F'], sums(everybody))  # It adds no noise there.
    released = found[0]['F']
    for guess in (everybody, everybody[:-1], np.where(everybody == 5, 7, everybody)):
        refuted, p_value = lattice.left_as_noise(released, sums(guess))
        assert refuted == 0 and p_value > 1e-9
    left = (released - sums(everybody)) / grid.STDDEV
    assert abs(np.std(left) - 1.0) < 5 / np.sqrt(2 * left.size)


def test_the_lattice_attack_finds_nothing_in_the_steps_of_two_workers(found):
    for worker in found:
        for release in 'AR':
            assert worker[f'refuted_{release}'].tolist() == [0, 0, 0]
            assert worker[f'lattice_{release}'].min() > 1e-9


_CHIEF, _OTHER = 0, 1


@pytest.mark.parametrize('lost', [_OTHER, _CHIEF])
def test_a_lost_worker_ends_the_run_and_one_device_continues_it(tmp_path, lost):
    flags = tiny_run.flags(
        tmp_path / 'run',
        '--strategy=multi_worker',
        '--noevaluate',
        f'--state_dir={tmp_path / "state"}',
        train_steps=1000,
        checkpoint_steps=20,
        log_steps=20,
        discriminator='pixels',
    )
    ledger = tmp_path / 'run' / 'ledger.jsonl'
    command = ['-m', 'tf_efsgd.launch', *flags]
    with worker_processes.Workers(command, tmp_path) as workers:
        deadline = time.monotonic() + _SECONDS
        while not (ledger.exists() and len(tiny_run.reserved(tmp_path / 'run')) >= 3):
            assert time.monotonic() < deadline and workers.processes[0].poll() is None
            time.sleep(0.1)
        workers.processes[lost].kill()
        codes = workers.wait(_SECONDS)
        assert codes[lost] < 0 and codes[1 - lost] == 1, workers.said(1 - lost)
        assert 'Another worker was lost' in workers.said(1 - lost)
    reserved = tiny_run.reserved(tmp_path / 'run')
    assert set(reserved) == {20}
    tiny_run.run_until_steps(
        tmp_path / 'run',
        '--resume',
        '--noevaluate',
        f'--state_dir={tmp_path / "state"}',
        train_steps=1000,
        checkpoint_steps=20,
        log_steps=20,
        discriminator='pixels',
    )
    assert tiny_run.reserved(tmp_path / 'run') == reserved
