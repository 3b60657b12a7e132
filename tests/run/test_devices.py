"""What a start says about the devices that it trains on."""

import pytest

from tf_efsgd import config, machine
from tf_efsgd.run import devices, messages

_INSTALL = "pip install 'tf_efsgd[gpu]'"


def _warning(*flags):
    settings = config.from_flagfile('\n'.join(['--target_epsilon=5', *flags]))
    return devices.warning(settings.training)


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(machine, 'has_nvidia_driver', lambda: True)


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(machine, 'has_nvidia_driver', lambda: False)


def test_mirrored_without_a_gpu_says_what_to_install(no_driver):
    said = _warning('--strategy=mirrored')
    assert 'finds no GPU' in said and _INSTALL in said and '\n' not in said
    # To try it without GPUs, and without being asked for them, is no mistake.
    assert _warning('--strategy=mirrored', '--logical_devices=2') is None
    assert _warning() is None and _warning('--strategy=one_device') is None


@pytest.mark.parametrize('strategy', ['auto', 'mirrored', 'one_device'])
def test_a_driver_without_a_gpu_says_what_to_install(driver, strategy, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    said = _warning(f'--strategy={strategy}')
    assert 'has an NVIDIA driver' in said and _INSTALL in said and '\n' not in said
    assert 'CUDA_VISIBLE_DEVICES' not in said
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    assert 'CUDA_VISIBLE_DEVICES=-1' in _warning(f'--strategy={strategy}')


def test_the_warning_is_the_second_line(capsys):
    settings = config.from_flagfile('--target_epsilon=5')
    messages.begin('CPU, 2 cores', settings, set(), 'WARNING: no GPU.')
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('Training on CPU, 2 cores, ') and second == 'WARNING: no GPU.'
