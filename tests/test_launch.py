"""launch/: what the scripts for several workers start, and with which TF_CONFIG."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tf_efsgd.run import cluster

_LAUNCH = pathlib.Path(__file__).resolve().parents[1] / 'launch'
_LONGEST = 120  # Seconds, far more than anything here takes: the machine may be busy.


@pytest.fixture
def python(tmp_path):
    """A program in place of Python, which writes down what a worker is started with, and waits.

    Worker i ends with the code in FOLDER/code_i, once that file is there; at SIGTERM with 143.
    """
    path = tmp_path / 'programs' / 'python'
    path.parent.mkdir()
    path.write_text(f"""#!/bin/bash
[[ $1 != - ]] || exec "{sys.executable}" "$@"
index=$(sed 's/.*"index": \\([0-9]*\\).*/\\1/' <<<"${{TF_CONFIG//[$'\\n']/}}")
printf '%s' "$TF_CONFIG" > "{tmp_path}/config_$index"
printf '%s\\n' "$@" > "{tmp_path}/flags_$index"
trap 'exit 143' TERM
until [[ -f "{tmp_path}/code_$index" ]]; do sleep 0.05; done
exit "$(<"{tmp_path}/code_$index")"
""")
    path.chmod(0o755)
    return path


def _clusters(folder, count):
    """The clusters that the workers were started with."""
    texts = [(folder / f'config_{index}').read_text() for index in range(count)]
    return [cluster.read({'TF_CONFIG': text}) for text in texts]


def _flags(folder, index):
    return (folder / f'flags_{index}').read_text().splitlines()


def _end(folder, codes):
    for index, code in enumerate(codes):
        (folder / f'code_{index}').write_text(str(code))


def _environment(python, **more):
    return {'PATH': f'{python.parent}:/usr/bin:/bin', 'PYTHON': str(python), **more}


def _start(python, *arguments):
    command = ['/bin/bash', str(_LAUNCH / 'multi_worker.sh'), *arguments]
    return subprocess.Popen(
        command,
        env=_environment(python),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background of a shell, SIGINT is ignored, and would stay so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _wait_for(paths):
    deadline = time.monotonic() + _LONGEST
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize('codes', [(0, 0, 0), (3, 1, 1), (0, 2, 1)])
def test_workers_on_one_machine_get_ports_and_flags_and_give_their_code(python, tmp_path, codes):
    _end(tmp_path, codes)
    started = _start(python, '3', '--flagfile=demo.flags', '--run_dir=a b')
    assert started.wait(_LONGEST) == next((code for code in codes if code), 0)
    found = _clusters(tmp_path, 3)
    assert [c.index for c in found] == [0, 1, 2]
    assert found[0].addresses == found[2].addresses and len(set(found[0].addresses)) == 3
    wanted = ['-m', 'tf_efsgd.launch', '--strategy=multi_worker', '--flagfile=demo.flags']
    assert _flags(tmp_path, 1) == [*wanted, '--run_dir=a b']


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_workers_on_one_machine(python, tmp_path, number):
    started = _start(python, '2')
    _wait_for([tmp_path / f'flags_{index}' for index in range(2)])
    time.sleep(0.2)  # For their traps.
    started.send_signal(number)
    assert started.wait(_LONGEST) == 143


@pytest.mark.parametrize(
    ('arguments', 'why'),
    [
        ([], 'usage'),
        (['0'], 'usage'),
        (['--flagfile=demo.flags'], 'usage'),
        (['2', '--strategy=mirrored'], 'the strategy is multi_worker'),
    ],
)
def test_wrong_use_is_refused_in_one_line(python, arguments, why):
    started = _start(python, *arguments)
    _, said = started.communicate(timeout=_LONGEST)
    assert started.returncode == 2 and why in said and len(said.splitlines()) == 1


def _slurm(python, *arguments, **environment):
    for name, text in (
        ('scontrol', '#!/bin/bash\n[[ $3 == "node[1-2]" ]] && printf "node1\\nnode2\\n"\n'),
        (
            'srun',
            '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n'
            'for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" & done; wait\n',
        ),
    ):
        (python.parent / name).write_text(text)
        (python.parent / name).chmod(0o755)
    return subprocess.run(
        ['/bin/bash', str(_LAUNCH / 'slurm.sbatch'), *arguments],
        env=_environment(python, **environment),
        capture_output=True,
        text=True,
        timeout=_LONGEST,
    )


_JOB = {'SLURM_JOB_ID': '41207', 'SLURM_JOB_NODELIST': 'node[1-2]'}


@pytest.mark.parametrize('is_begun', [False, True])
def test_slurm_starts_a_worker_a_node_and_resumes_what_was_begun(python, tmp_path, is_begun):
    _end(tmp_path, (0, 0))
    run = tmp_path / 'the run'
    if is_begun:
        run.mkdir()
        (run / 'ledger.jsonl').write_text('')
    done = _slurm(python, f'--run_dir={run}', '--seed=3', **_JOB)
    assert done.returncode == 0, done.stderr
    found = _clusters(tmp_path, 2)
    assert found[0].addresses == ('node1:21207', 'node2:21207') == found[1].addresses
    assert [c.index for c in found] == [0, 1]
    wanted = ['-m', 'tf_efsgd.launch', '--strategy=multi_worker', f'--run_dir={run}', '--seed=3']
    assert _flags(tmp_path, 1) == wanted + ['--resume'] * is_begun


def test_slurm_refuses_what_it_could_not_resume(python):
    done = _slurm(python, '--seed=3', **_JOB)
    assert done.returncode == 2 and '--run_dir=DIR' in done.stderr
    done = _slurm(python, '--run_dir=x')
    assert done.returncode == 2 and 'sbatch' in done.stderr


def _manifests():
    return list(yaml.safe_load_all((_LAUNCH / 'kubernetes.yaml').read_text('utf-8')))


@pytest.mark.parametrize('version', ['1.29', '1.33'])
def test_kubernetes_takes_the_manifest(version):
    kubernetes_validate = pytest.importorskip('kubernetes_validate')
    for manifest in _manifests():
        kubernetes_validate.validate(manifest, version, strict=True)
        manifest['spec']['planted'] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_parts_of_the_manifest_name_one_another():
    service, job = _manifests()
    pod = job['spec']['template']
    (container,) = pod['spec']['containers']
    environment = {entry['name']: entry['value'] for entry in container['env']}
    assert job['spec']['completionMode'] == 'Indexed'
    assert job['spec']['completions'] == job['spec']['parallelism'] == int(environment['WORKERS'])
    assert service['spec']['selector'].items() <= pod['metadata']['labels'].items()
    assert pod['spec']['subdomain'] == service['metadata']['name'] == job['metadata']['name']
    assert service['spec']['ports'][0]['port'] == container['ports'][0]['containerPort'] == 2222
    rules = job['spec']['podFailurePolicy']['rules']
    assert rules[0]['onExitCodes']['containerName'] == container['name']
    # A policy for failures goes with no other.
    assert pod['spec']['restartPolicy'] == 'Never'
    volumes = {volume['name'] for volume in pod['spec']['volumes']}
    assert volumes == {mount['name'] for mount in container['volumeMounts']}


@pytest.mark.parametrize('is_begun', [False, True])
def test_a_pod_starts_its_worker(python, tmp_path, is_begun):
    _, job = _manifests()
    (container,) = job['spec']['template']['spec']['containers']
    environment = {entry['name']: entry['value'] for entry in container['env']}
    run = tmp_path / 'run'
    if is_begun:
        run.mkdir()
        (run / 'ledger.jsonl').write_text('')
    _end(tmp_path, (0, 0))
    for index in range(2):
        subprocess.run(
            [*container['command'], *container['args']],
            env=_environment(python, **{**environment, 'RUN': str(run)})
            | {'JOB_COMPLETION_INDEX': str(index)},
            check=True,
            timeout=_LONGEST,
        )
    found = _clusters(tmp_path, 2)
    assert [c.index for c in found] == [0, 1]
    assert found[1].addresses == ('tf-efsgd-0.tf-efsgd:2222', 'tf-efsgd-1.tf-efsgd:2222')
    flags = _flags(tmp_path, 1)
    assert f'--run_dir={run}' in flags and flags[-2:] == environment['FLAGS'].split()
    assert ('--resume' in flags) == is_begun
