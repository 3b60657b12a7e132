"""The machine in words."""

import os
import subprocess
import sys

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


def test_the_variable_of_other_tensorflow_versions_does_no_harm():
    # Set in many users' shells: TensorFlow 2.15 then looks for a package that it does not need.
    code = (
        'import tf_efsgd, tensorflow as tf; print(tf.keras.layers.Dense(1)(tf.ones([1, 1])).shape)'
    )
    environment = {
        **os.environ,
        'TF_USE_LEGACY_KERAS': '1',
        'PYTHONPATH': os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == '(1, 1)\n', done.stderr
