"""What a wheel and an sdist of the project hold, and that every flagfile is a valid run."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from absl import flags

from tf_efsgd import config

_REPO = pathlib.Path(__file__).resolve().parent.parent
_FLAGFILES = sorted((_REPO / 'configs').glob('*.flags'))
_EMBEDDED = _REPO / 'tf_efsgd' / 'data' / 'embedded'
_PUBLIC = _REPO / 'tf_efsgd' / 'models' / 'embedded'


def _run(command, cwd, **environ):
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f'{command} failed:\n{done.stdout}'
    return done.stdout


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A copy of the project as a clean clone would have it: no .venv, no build leftovers."""
    target = tmp_path_factory.mktemp('clone') / 'project'
    ignore = shutil.ignore_patterns(
        *('.git', '.venv', '.*_cache', '.hypothesis', '__pycache__'),
        *('*.egg-info', 'build', 'dist', 'runs'),
    )
    shutil.copytree(_REPO, target, ignore=ignore)
    return target


@pytest.fixture(scope='module')
def installed(clone, tmp_path_factory):
    """The folder of an installed wheel, built with no network and from nothing but the clone."""
    out = tmp_path_factory.mktemp('wheel')
    pip = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index']
    _run([*pip, '--wheel-dir', str(out), '.'], cwd=clone)
    (wheel,) = out.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / 'site')
    return out / 'site'


@pytest.fixture(scope='module')
def wheel_names(installed):
    files = [path for path in installed.rglob('*') if path.is_file()]
    return {path.relative_to(installed).as_posix() for path in files}


def test_wheel_has_every_module(wheel_names):
    modules = {path.relative_to(_REPO).as_posix() for path in (_REPO / 'tf_efsgd').rglob('*.py')}
    assert modules and modules <= wheel_names


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in (_REPO / 'tf_efsgd').rglob('*.py')}
    assert [str(folder) for folder in folders if not (folder / '__init__.py').exists()] == []


def test_wheel_has_the_configs(wheel_names):
    assert _FLAGFILES
    assert {f'tf_efsgd/configs/{path.name}' for path in _FLAGFILES} <= wheel_names


def test_wheel_has_the_embedded_data_and_its_licence(wheel_names):
    names = {path.name for path in _EMBEDDED.iterdir()}
    assert 'LICENSE.md' in names and any(name.endswith('.gz') for name in names)
    assert {f'tf_efsgd/data/embedded/{name}' for name in names} <= wheel_names
    names = {path.name for path in _PUBLIC.iterdir()}
    assert {'LICENSE.md', 'efficientnet_lite0.npz', 'public_photographs.jpg'} <= names
    assert {f'tf_efsgd/models/embedded/{name}' for name in names} <= wheel_names


def test_wheel_says_that_it_has_types(wheel_names):
    assert 'tf_efsgd/py.typed' in wheel_names


def test_wheel_has_nothing_else(wheel_names):
    others = {
        name
        for name in wheel_names
        if not name.startswith('tf_efsgd/') and '.dist-info/' not in name
    }
    assert others == set()
    assert [name for name in wheel_names if 'test' in name.rpartition('/')[2]] == []


def test_wheel_has_the_console_command(installed):
    (entry_points,) = installed.glob('*.dist-info/entry_points.txt')
    lines = entry_points.read_text().split()
    assert ''.join(lines) == '[console_scripts]tf-efsgd=tf_efsgd.cli.main:main'


def test_sdist_has_the_configs_and_the_embedded_data(clone):
    _run([sys.executable, 'setup.py', '--quiet', 'sdist'], cwd=clone)
    (sdist,) = (clone / 'dist').glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    wanted = [
        *_FLAGFILES,
        *_EMBEDDED.iterdir(),
        *_PUBLIC.iterdir(),
        _REPO / 'tf_efsgd' / 'py.typed',
        _REPO / 'setup.py',
        _REPO / 'pyproject.toml',
    ]
    assert {path.relative_to(_REPO).as_posix() for path in wanted} <= names


_FIND = 'from tf_efsgd import config; print(config.find_flagfiles(["--flagfile=demo.flags"]))'


def test_an_installed_wheel_finds_its_configs(installed, tmp_path):
    printed = _run([sys.executable, '-c', _FIND], cwd=tmp_path, PYTHONPATH=str(installed))
    assert f'--flagfile={installed}/tf_efsgd/configs/demo.flags' in printed


@pytest.mark.parametrize('flagfile', _FLAGFILES, ids=lambda path: path.name)
def test_flagfile_is_found_by_its_name_and_makes_a_valid_run(flagfile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    config.define_flags(values)
    found = config.find_flagfiles([f'--flagfile={flagfile.name}'])
    assert values(['launch', *found]) == ['launch']
    assert isinstance(config.from_flags(values), config.RunConfig)
