"""TF_CONFIG, and the meeting of the workers before TensorFlow starts."""

import contextlib
import dataclasses
import json
import socket
import threading

import pytest
from helpers import worker_processes

from tf_efsgd import config
from tf_efsgd.config import ConfigError
from tf_efsgd.run import cluster, runner, workers

_HOSTS = ['a:2222', 'b:2222', 'c:2223']


def _environment(jobs, job='worker', index=0):
    return {'TF_CONFIG': json.dumps({'cluster': jobs, 'task': {'type': job, 'index': index}})}


def _config(*lines):
    return config.from_flagfile('\n'.join(['--target_epsilon=1', *lines]))


# TF_CONFIG.


def test_the_first_worker_is_the_chief_where_none_is_named():
    found = [cluster.read(_environment({'worker': _HOSTS}, index=i)) for i in range(3)]
    assert [c.index for c in found] == [0, 1, 2] and [c.task for c in found] == [0, 1, 2]
    assert [c.is_chief for c in found] == [True, False, False]
    assert found[2].addresses == tuple(_HOSTS) and found[2].name(1) == 'worker 1 (b:2222)'


def test_a_chief_that_is_named_comes_first():
    jobs = {'worker': _HOSTS[1:], 'chief': _HOSTS[:1]}
    chief = cluster.read(_environment(jobs, 'chief'))
    other = cluster.read(_environment(jobs, 'worker', 1))
    assert chief.is_chief and chief.addresses == tuple(_HOSTS)
    assert (other.index, other.job, other.task) == (2, 'worker', 1)


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('', 'needs the environment variable TF_CONFIG'),
        ('{', 'must be JSON'),
        ('[]', 'must be JSON'),
        ('{"cluster": {"worker": ["a:1"]}}', 'must be JSON'),
        (_environment({'worker': _HOSTS}, index=3)['TF_CONFIG'], 'none of the 3'),
        (_environment({'worker': _HOSTS}, index='0')['TF_CONFIG'], 'none of the 3'),
        (_environment({'worker': _HOSTS}, 'chief')['TF_CONFIG'], 'this task among them'),
        (_environment({'worker': _HOSTS, 'ps': ['d:1']})['TF_CONFIG'], 'at most one chief'),
        (_environment({'worker': ['a:1'], 'chief': _HOSTS})['TF_CONFIG'], 'one for the chief'),
        (_environment({'worker': 'a:1'})['TF_CONFIG'], 'a list of addresses'),
        (_environment({'worker': ['a:1', 'a:1']})['TF_CONFIG'], 'a different address'),
        (_environment({'worker': ['a', 'b:1']})['TF_CONFIG'], 'host:port'),
        (_environment({'worker': ['a:70000', 'b:1']})['TF_CONFIG'], 'host:port'),
    ],
)
def test_a_wrong_tf_config_is_refused_in_one_line(text, why):
    with pytest.raises(ConfigError, match=why) as refused:
        cluster.read({'TF_CONFIG': text})
    assert '\n' not in str(refused.value)


def test_auto_takes_several_workers_and_nothing_else_does():
    several, one = _environment({'worker': _HOSTS}), _environment({'worker': _HOSTS[:1]})
    assert cluster.is_wanted('auto', several) and not cluster.is_wanted('auto', one)
    assert not cluster.is_wanted('auto', {}) and cluster.is_wanted('multi_worker', {})
    assert not cluster.is_wanted('mirrored', several)
    with pytest.raises(ConfigError):
        cluster.is_wanted('auto', {'TF_CONFIG': '{'})


def test_without_tf_config_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.delenv('TF_CONFIG', raising=False)
    settings = _config('--strategy=multi_worker', f'--run_dir={tmp_path / "run"}')
    with pytest.raises(ConfigError, match='TF_CONFIG'):
        runner.run(settings)
    assert list(tmp_path.iterdir()) == []


# The settings of a worker.


def test_places_are_the_workers_own_and_everything_else_the_chiefs():
    chief = _config('--dataset=folder:/a/x', '--cache_dir=/a/c', '--seed=5', '--state_dir=/a/s')
    own = _config('--dataset=folder:/b/x', '--cache_dir=/b/c', '--seed=5', '--state_dir=/b/s')
    assert cluster.shared_settings(chief) == cluster.shared_settings(own)
    declared = dataclasses.replace(chief, data=dataclasses.replace(chief.data, dataset_size=77))
    found = cluster.with_own_places(declared.to_flags(), own)
    assert (found.data.dataset, found.data.cache_dir) == ('folder:/b/x', '/b/c')
    assert (found.run.state_dir, found.data.dataset_size) == ('/b/s', 77)
    assert not found.run.resume
    resumed = cluster.with_own_places(declared.to_flags() + '--resume\n', own)
    assert resumed.run.resume and not resumed.run.resume_unverified


def test_what_a_start_is_told_reaches_the_others(monkeypatch):
    """Nothing of it stands in the flags of a run."""
    chief = _config('--resume', '--run_dir=/a/r', '--resume_unverified', '--change_mechanism')
    worker = workers.Several.__new__(workers.Several)
    own = _config('--run_dir=/b/r')
    told = []
    monkeypatch.setattr(worker, 'of_chief', lambda make: told.append(make()) or told[0])
    assert worker.settings_of_chief(lambda: chief, own) == chief
    monkeypatch.setattr(worker, 'of_chief', lambda _: told[0])
    found = worker.settings_of_chief(lambda: None, own)
    assert found.run.resume and found.run.resume_unverified and found.run.change_mechanism
    assert found.run.run_dir == '/b/r'


# The meeting.


def _meet(configs, addresses=None, indices=None):
    """What each worker of a meeting ends in: None, or its error."""
    addresses = addresses or worker_processes.free_addresses(len(configs))
    ends = [None] * len(configs)

    def come(place, index, settings):
        try:
            cluster.meet(cluster.Cluster(tuple(addresses), index, 'worker', index), settings)
        except ConfigError as error:
            ends[place] = str(error)

    threads = [
        threading.Thread(target=come, args=(place, index, settings))
        for place, (index, settings) in enumerate(zip(indices or range(len(configs)), configs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return ends


def test_workers_alike_meet():
    assert _meet([_config('--seed=5', '--worker_timeout=60')] * 3) == [None] * 3


def test_the_port_is_free_after_the_meeting():
    addresses = worker_processes.free_addresses(2)
    assert _meet([_config('--worker_timeout=60')] * 2, addresses) == [None] * 2
    for address in addresses:
        socket.create_server(('', int(address.rpartition(':')[2]))).close()


def test_other_settings_are_refused_on_all_and_named():
    ends = _meet([_config('--worker_timeout=60'), _config('--worker_timeout=9', '--seed=2')])
    assert len(ends) == 2
    for end in ends:
        assert 'worker 1' in end and '--seed=1 --seed=2' in end and 'same flags' in end
        assert 'timeout' not in end


def test_another_version_is_refused(monkeypatch):
    versions = iter(['0.1.0', '0.2.0'])
    monkeypatch.setattr(cluster, '_version', lambda: next(versions))
    for end in _meet([_config('--worker_timeout=60')] * 2):
        assert 'runs version' in end and 'install the same' in end


def test_the_same_index_twice_is_refused():
    addresses = worker_processes.free_addresses(3)
    ends = _meet([_config('--worker_timeout=5')] * 3, addresses, indices=(0, 1, 1))
    assert 'the same index' in ends[0] or 'cannot be used' in ' '.join(filter(None, ends))
    assert all(ends)


def test_a_worker_that_does_not_come_is_named_on_all_that_did():
    addresses = worker_processes.free_addresses(3)
    ends = _meet([_config('--worker_timeout=5')] * 2, addresses)
    for end in ends:
        assert f'worker 2 ({addresses[2]}) did not come within 5 seconds' in end
    ends = _meet([_config('--worker_timeout=1')], addresses, indices=(1,))
    assert 'The chief' in ends[0] and 'did not answer within 1 seconds' in ends[0]


def test_a_port_in_use_is_named():
    addresses = worker_processes.free_addresses(2)
    port = addresses[0].rpartition(':')[2]
    with socket.create_server(('', int(port))):
        ends = _meet([_config('--worker_timeout=1')], addresses)
    assert f'Port {port}' in ends[0] and 'cannot be used' in ends[0]


def test_who_knocks_and_says_nothing_of_ours_is_left_alone():
    addresses = worker_processes.free_addresses(2)
    port = int(addresses[0].rpartition(':')[2])
    done = threading.Event()

    def knock():
        while not done.wait(0.01):
            with contextlib.suppress(OSError):
                with socket.create_connection(('127.0.0.1', port), timeout=1) as connection:
                    connection.sendall(b'GET / HTTP/1.0\n\n')

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        assert _meet([_config('--worker_timeout=60')] * 2, addresses) == [None] * 2
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ('lines', 'why'),
    [
        ([], '--dataset_size'),
        (['--dataset_size=100'], '--classes'),
        (['--dataset_size=100', '--classes=a,b', '--limit_records=9'], '--limit_records'),
        (
            *[['--dataset_size=100', '--classes=a,b', '--person=folder', '--images_per_person=2']],
            '--images_per_person',
        ),
    ],
)
def test_own_records_need_what_no_worker_can_read_alone(lines, why):
    with pytest.raises(ConfigError, match=why):
        _check_own_records('--worker_records=own', *lines)
    _check_own_records(*lines)
    _check_own_records('--worker_records=own', '--dataset_size=100', '--classes=a,b')


def _check_own_records(*lines):
    settings = _config(*lines)
    cluster.check_own_records(settings.data, settings.training)
