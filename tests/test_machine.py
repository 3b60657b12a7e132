"""The machine in words: what stands beside a figure."""

import os

import tensorflow as tf

from tf_efsgd import machine


def test_facts_are_of_this_machine():
    found = machine.facts()
    assert found['cores'] == len(os.sched_getaffinity(0)) and found['gpus'] == 0
    assert found['tensorflow'] == tf.__version__ and found['processor']


def test_a_machine_in_words():
    found = {'cores': 3, 'processor': 'Abacus 7', 'gpus': 0, 'tensorflow': '2.9', 'python': '3.8'}
    assert machine.describe(found) == '3 cores of Abacus 7, TensorFlow 2.9, Python 3.8'
    assert ', 2 GPUs, ' in machine.describe({**found, 'gpus': 2})
