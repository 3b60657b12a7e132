"""The machine in words."""

import pytest
import tensorflow as tf

from tf_efsgd import machine


def test_the_facts_are_those_of_this_machine():
    facts = machine.machine()
    assert facts['cores'] >= 1 and facts['processor']
    assert facts['tensorflow'] == tf.__version__
    assert facts['gpus'] == 0  # They are hidden from the tests.


@pytest.mark.parametrize(('gpus', 'words'), [(0, ''), (2, ', 2 GPUs')])
def test_facts_in_words(gpus, words):
    facts = {'cores': 3, 'processor': 'A', 'gpus': gpus, 'tensorflow': '2', 'python': '3'}
    assert machine.describe_machine(facts) == f'3 cores of A{words}, TensorFlow 2, Python 3'


def test_anything_of_a_driver_is_seen(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(
        machine, '_DRIVER_FILES', (str(tmp_path / 'nvidia'), str(tmp_path / 'dev' / 'nvidia*'))
    )
    assert not machine.has_nvidia_driver()
    for path in (tmp_path / 'nvidia', tmp_path / 'dev' / 'nvidia0', tmp_path / 'nvidia-smi'):
        path.parent.mkdir(exist_ok=True)
        path.write_text('')
        path.chmod(0o755)
        assert machine.has_nvidia_driver(), path
        path.unlink()
