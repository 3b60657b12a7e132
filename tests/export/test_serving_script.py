"""launch/tf_serving.sh: what it hands to docker or to the server, whatever the path is."""

import csv
import pathlib
import subprocess

import pytest

_SCRIPT = pathlib.Path(__file__).resolve().parents[2] / 'launch' / 'tf_serving.sh'


@pytest.fixture
def start(tmp_path):
    """Runs the script where docker, or the server, is a program that writes its arguments down."""

    def start(run, *more, program='docker', cwd=None, **environment):
        programs = tmp_path / 'programs'
        programs.mkdir(exist_ok=True)
        stub = programs / program
        stub.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > "{tmp_path}/arguments"\n')
        stub.chmod(0o755)
        finished = subprocess.run(
            ['/bin/bash', str(_SCRIPT), str(run), *more],
            cwd=cwd or tmp_path,
            # Without the programs that somebody installed.
            env={'PATH': f'{programs}:/usr/bin:/bin', **environment},
            capture_output=True,
            text=True,
        )
        if finished.returncode:
            return finished, None
        return finished, (tmp_path / 'arguments').read_text().split('\0')[:-1]

    return start


def _run_folder(path):
    (path / 'export' / '2').mkdir(parents=True)
    (path / 'export' / '2' / 'saved_model.pb').write_text('')
    return path


@pytest.mark.parametrize(
    'name', ['plain', 'a,readonly=false,b', 'a:b', 'a "b" c', "it's [2024] *?", '$(id)', 'ü 1']
)
def test_docker_mounts_the_folder_of_exports_whatever_its_name(name, start, tmp_path):
    finished, arguments = start(_run_folder(tmp_path / name))
    assert finished.returncode == 0, finished.stderr
    # docker reads the value of --mount with Go's reader of CSV.
    (fields,) = csv.reader([arguments[arguments.index('--mount') + 1]], strict=True)
    export = tmp_path / name / 'export'
    assert fields == ['type=bind', f'source={export}', 'target=/models/generator', 'readonly']
    published = [value for key, value in zip(arguments, arguments[1:]) if key == '--publish']
    assert published == ['127.0.0.1:8501:8501', '127.0.0.1:8500:8500']


def test_the_server_is_taken_where_there_is_one(start, tmp_path):
    _run_folder(tmp_path / '-x,y')
    start(tmp_path / '-x,y')  # docker is there, too.
    _, arguments = start(
        '-x,y', '9001', '9002', program='tensorflow_model_server', CDPATH='/usr:/tmp'
    )
    assert arguments == [
        *('--port=9002', '--rest_api_port=9001', '--model_name=generator'),
        f'--model_base_path={tmp_path / "-x,y" / "export"}',
    ]


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['0'], 'PORT must be a number from 1 to 65535. Received: 0'),
        (['65536'], 'Received: 65536'),
        (['80; id'], 'Received: 80; id'),
        (['8500'], 'must be two'),
        (['1', '2', '3'], 'usage'),
    ],
)
def test_a_mistake_is_one_line(more, message, start, tmp_path):
    finished, _ = start(_run_folder(tmp_path / 'run'), *more)
    assert finished.returncode == 2 and message in finished.stderr
    assert len(finished.stderr.splitlines()) == 1 and finished.stdout == ''


def test_what_cannot_be_served_is_refused(start, tmp_path):
    finished, _ = start(tmp_path / 'none')
    assert finished.returncode == 2 and 'no exported generator' in finished.stderr
    for name in ('a\nb', 'a\n', 'a\rb'):
        finished, _ = start(_run_folder(tmp_path / name))
        assert finished.returncode == 2 and 'line break' in finished.stderr
