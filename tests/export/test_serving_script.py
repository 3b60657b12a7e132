"""launch/tf_serving.sh: what it hands to docker or to the server, whatever the path is."""

import csv
import json
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


def _export(path, version, statement):
    folder = path / 'export' / version
    (folder / 'assets.extra').mkdir(parents=True, exist_ok=True)
    (folder / 'saved_model.pb').write_text('')
    (folder / 'assets.extra' / 'privacy_statement.json').write_text(statement)


_SAYS = {
    'class_names': ['"software": {"tensorflow": "9.9.9"}', 'tensorflow'],
    'software': {'tf_efsgd': '0.1', 'tensorflow': '2.19.1', 'tensorflow_privacy': '0.9.0'},
}


@pytest.mark.parametrize('indent', [2, None])
def test_the_image_is_that_of_the_tensorflow_that_made_the_latest_export(indent, start, tmp_path):
    run = _run_folder(tmp_path / 'a run')
    _, arguments = start(run)
    assert arguments[-1] == 'tensorflow/serving:2.15.1'  # It has no statement.
    _export(run, '9', json.dumps({'software': {'tensorflow': '2.16.1'}}, indent=indent))
    _export(run, '10', json.dumps(_SAYS, indent=indent))
    finished, arguments = start(run)
    assert arguments[-1] == 'tensorflow/serving:2.19.1', finished.stderr
    assert 'Docker image: tensorflow/serving:2.19.1.' in finished.stdout
    _, arguments = start(run, TF_SERVING_IMAGE='mine:3')
    assert arguments[-1] == 'mine:3'


@pytest.mark.parametrize(
    'statement',
    [
        *('', '{', 'null', '{"software": {}}', '{"software": {"python": "3.9.1"}}'),
        *('{"software": {"tensorflow": "2.20.0-rc0"}}', '{"software": {"tensorflow": "$(id)"}}'),
        *('{"software": {}, "other": {"tensorflow": "2.19.1"}}', '\0\xff'),
    ],
)
def test_a_statement_that_does_not_say_it_leaves_the_default(statement, start, tmp_path):
    _export(tmp_path / 'run', '3', statement)
    finished, arguments = start(tmp_path / 'run')
    assert finished.returncode == 0 and arguments[-1] == 'tensorflow/serving:2.15.1'


def test_a_folder_that_is_no_version_is_not_served(start, tmp_path):
    _export(tmp_path / 'run', '2.unfinished', '{}')
    finished, _ = start(tmp_path / 'run')
    assert finished.returncode == 2 and 'no exported generator' in finished.stderr
