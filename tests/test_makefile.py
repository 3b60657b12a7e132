"""How make finds a Python, with stubs in place of all of them and of uv.

What uv downloads cannot be tried everywhere: the stub makes what `uv venv --seed` would.
"""

import pathlib
import shutil
import subprocess

import pytest

_REPO = pathlib.Path(__file__).resolve().parent.parent
_TOOLS = ['sh', 'make', 'rm', 'mkdir', 'touch', 'cat', 'chmod', 'dirname', 'cp', 'env']

# A Python of a version: it answers what the Makefile asks, and writes down everything else.
_PYTHON = """#!/bin/sh
case "$*" in
*"(3, 9) <= "*) test {fits} = yes; exit;;
*"%d.%d"*) echo {version}; exit;;
*python_version*) echo {version}.1; exit;;
--version) echo "Python {version}.1"; exit;;
*"import venv"*) exit 0;;
esac
echo "python{version} $*" >> "$LOG"
case "$*" in
*"-m venv "*) eval folder=\\${{$#}}; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python";;
*"-m pip install -qq uv") test -z "$NO_NETWORK" && cp "$STUBS/uv" "$(dirname "$0")/uv";;
esac
"""
_UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
test -z "$NO_NETWORK" || exit 1
eval folder=\\${$#}
mkdir -p "$folder/bin"
cp "$STUBS/python3.11" "$folder/bin/python"
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a copy of the Makefile where only these commands exist."""
    for name in ('Makefile', 'setup.py'):
        shutil.copy(_REPO / name, tmp_path)
    path, stubs, log = tmp_path / 'path', tmp_path / 'stubs', tmp_path / 'log'
    path.mkdir()
    stubs.mkdir()
    for tool in _TOOLS:
        (path / tool).symlink_to(shutil.which(tool))

    def write(folder, name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def python(version):
        fits = 'yes' if version in ('3.9', '3.10', '3.11', '3.12') else 'no'
        return _PYTHON.format(version=version, fits=fits)

    write(stubs, 'python3.11', python('3.11'))
    write(stubs, 'uv', _UV)

    def run(*arguments, pythons=(), uv=False, **environ):
        for name, version in dict(pythons).items():
            write(path, name, python(version))
        if uv:
            write(path, 'uv', _UV)
        environ = {'PATH': str(path), 'LOG': str(log), 'STUBS': str(stubs), **environ}
        done = subprocess.run(
            ['make', *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True
        )
        return done, log.read_text().splitlines() if log.exists() else []

    return run


def test_a_python_that_fits_is_taken_before_any_other(make):
    done, calls = make(
        'demo', pythons={'python3': '3.14', 'python3.12': '3.12', 'python3.10': '3.10'}
    )
    assert done.returncode == 0, done.stderr
    assert calls[0] == 'python3.10 -m venv .venv' and 'with Python 3.10.1' in done.stdout
    assert calls[-1] == 'python3.10 -m tf_efsgd.launch --flagfile=demo.flags'
    assert 'uv' not in done.stdout


@pytest.mark.parametrize('name', ['python3.12', 'python3'])
def test_python_312_is_taken_where_it_is_the_only_one(name, make):
    done, calls = make('demo', pythons={name: '3.12'}, uv=True)
    assert done.returncode == 0, done.stderr
    assert calls[0] == 'python3.12 -m venv .venv'
    privacy = '--no-deps --ignore-requires-python tensorflow-privacy==0.9.0'
    assert f'python3.12 -m pip install -qq {privacy}' in calls
    assert calls[-1] == 'python3.12 -m tf_efsgd.launch --flagfile=demo.flags'


@pytest.mark.parametrize('pythons', [{}, {'python3': '3.14'}, {'python3.11': '3.8'}])
def test_uv_brings_a_python_along_where_none_fits(pythons, make):
    done, calls = make('demo', pythons=pythons, uv=True)
    assert done.returncode == 0, done.stderr
    assert calls[0] == 'uv venv --quiet --seed --python 3.11 .venv'
    assert calls[-1] == 'python3.11 -m tf_efsgd.launch --flagfile=demo.flags'
    first = done.stdout.splitlines()[0]
    assert first.startswith('No Python 3.9 to 3.12 was found: uv brings Python 3.11 along')
    assert 'UV=no refuses' in first
    assert make('demo')[1][len(calls) :] == [calls[-1]]  # And once only.


def test_uv_is_installed_by_the_python_that_is_there(make):
    done, calls = make('demo', pythons={'python3': '3.14'})
    assert done.returncode == 0, done.stderr
    assert calls[:3] == [
        'python3.14 -m venv .uv',
        'python3.14 -m pip install -qq uv',
        'uv venv --quiet --seed --python 3.11 .venv',
    ]
    assert calls[-1] == 'python3.11 -m tf_efsgd.launch --flagfile=demo.flags'


def test_uv_may_be_named(make, tmp_path):
    done, calls = make('demo', f'UV={tmp_path}/stubs/uv')
    assert done.returncode == 0, done.stderr
    assert calls[0].startswith('uv venv ')


@pytest.mark.parametrize(
    ('arguments', 'how'),
    [
        (['UV=no'], {'uv': True, 'pythons': {'python3': '3.14'}}),
        (['PYTHON=python3.14'], {'uv': True, 'pythons': {'python3.14': '3.14'}}),
        ([], {'uv': True, 'NO_NETWORK': '1'}),
        ([], {'pythons': {'python3': '3.14'}, 'NO_NETWORK': '1'}),
        ([], {}),
    ],
)
def test_without_any_the_way_out_is_said(arguments, how, make):
    done, calls = make('demo', *arguments, **how)
    assert done.returncode == 2
    assert 'Python 3.9 to 3.12 is needed' in done.stderr
    assert 'make demo PYTHON=python3.11' in done.stderr
    assert not [call for call in calls if 'launch' in call]
    if arguments:
        assert calls == []
