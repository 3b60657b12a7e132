"""Epsilon of a model of one's own: what the optimizer and its batches say."""

import math
import pathlib
import re

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf

import tf_efsgd
from tf_efsgd.data import poisson
from tf_efsgd.privacy import accounting, grid

_DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'


def _optimizer(**changes):
    arguments = {'l2_norm_clip': 1.0, 'noise_multiplier': 1.1, 'expected_batch_size': 30}
    return tf_efsgd.ErrorFeedbackDPKerasSGDOptimizer(**{**arguments, **changes})


def _by_hand(steps, probability, delta):
    event = dp_accounting.PoissonSampledDpEvent(probability, dp_accounting.GaussianDpEvent(1.1))
    return accounting.compute_epsilon(event, steps, delta).headline


def test_it_is_that_of_the_steps_at_the_noise_that_counts():
    variables = [tf.Variable(tf.zeros([3, 5]))]
    found = tf_efsgd.epsilon(
        _optimizer(), steps=70, dataset_size=1000, target_delta=1e-5, variables=variables
    )
    ideal = _by_hand(70, 0.03, 1e-5)
    # The grid of the release costs a little.
    assert ideal < found < 1.05 * ideal
    assert found < tf_efsgd.epsilon(
        _optimizer(), steps=140, dataset_size=1000, target_delta=1e-5, variables=variables
    )
    larger = [tf.Variable(tf.zeros([3000, 1000]))]
    assert found < tf_efsgd.epsilon(
        _optimizer(), steps=70, dataset_size=1000, target_delta=1e-5, variables=larger
    )


def test_the_steps_that_were_made_count_and_no_fewer():
    optimizer, variable = _optimizer(), tf.Variable([0.3, 0.5])
    for _ in range(3):
        optimizer.minimize(lambda: tf.reduce_sum(variable) * tf.ones([4]), [variable])
    how = {'dataset_size': 1000, 'target_delta': 1e-5}
    made = tf_efsgd.epsilon(optimizer, **how)
    assert made == tf_efsgd.epsilon(optimizer, steps=3, **how)
    assert made < tf_efsgd.epsilon(optimizer, steps=30, **how)
    with pytest.raises(ValueError, match='at least the 3 .* Received: 2'):
        tf_efsgd.epsilon(optimizer, steps=2, **how)


@pytest.mark.parametrize(
    ('changes', 'how', 'message'),
    [
        ({'expected_batch_size': None}, {}, 'no expected_batch_size'),
        ({}, {'target_delta': 0.0}, r'target_delta must be in \(0, 1\)'),
        ({}, {'target_delta': 1.0}, r'target_delta must be in \(0, 1\)'),
        ({}, {'variables': None}, 'give variables=model.trainable_variables'),
        ({}, {'dataset_size': 29}, 'expected_batch_size must be between 1'),
        ({}, {'steps': -1}, 'steps must be at least'),
    ],
)
def test_what_has_no_epsilon_is_refused(changes, how, message):
    usual = {'steps': 7, 'dataset_size': 1000, 'target_delta': 1e-5}
    with pytest.raises(ValueError, match=message):
        tf_efsgd.epsilon(
            _optimizer(**changes), **{'variables': [tf.Variable([0.3])], **usual, **how}
        )


@pytest.mark.parametrize(
    'changes',
    [
        {'noise_multiplier': 0.0},
        {'error_feedback': 'hidden'},
        # So little noise that no epsilon can be proven for draws of 128 bits.
        {'noise_multiplier': 0.05},
    ],
)
def test_where_nothing_is_promised_it_is_infinite(changes):
    found = tf_efsgd.epsilon(
        _optimizer(**changes),
        steps=7,
        dataset_size=1000,
        target_delta=1e-5,
        variables=[tf.Variable([0.3])],
    )
    assert found == math.inf


def test_a_delta_that_promises_nothing_is_warned_of():
    with pytest.warns(UserWarning, match='gives away one whole record'):
        tf_efsgd.epsilon(
            _optimizer(),
            steps=7,
            dataset_size=1000,
            target_delta=1e-3,
            variables=[tf.Variable([0.3])],
        )


def test_batches_by_their_expected_size_are_those_that_are_accounted():
    images, labels = np.zeros([1000, 2, 2, 1], np.uint8), np.zeros([1000], np.int64)
    by_size = poisson.poisson_batches(images, labels, expected_batch_size=30, key=7)
    threshold = accounting.sampling_threshold(30, 1000)
    by_threshold = poisson.poisson_batches(images, labels, threshold, key=7)
    sizes = [[len(x) for x, _ in batches.take(40)] for batches in (by_size, by_threshold)]
    assert sizes[0] == sizes[1] and len(set(sizes[0])) > 3
    declared = poisson.poisson_batches(
        images, labels, expected_batch_size=30, dataset_size=3000, key=7
    )
    assert sum(len(x) for x, _ in declared.take(40)) < 0.6 * sum(sizes[0])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({}, 'one of them'),
        ({'expected_batch_size': 3, 'threshold': 7}, 'one of them'),
        ({'expected_batch_size': 0}, 'between 1 and'),
        ({'expected_batch_size': 5}, 'between 1 and'),
        ({'expected_batch_size': 3, 'labels': np.zeros([3], int)}, 'one integer for each'),
        ({'expected_batch_size': 3, 'labels': np.zeros([4])}, 'one integer for each'),
    ],
)
def test_batches_that_cannot_be_made_are_refused(arguments, message):
    images = np.zeros([4, 2, 2, 1], np.uint8)
    with pytest.raises(ValueError, match=message):
        tf_efsgd.poisson_batches(images, **{'labels': np.zeros([4], int), **arguments})


def test_the_snippet_of_the_docs_prints_an_epsilon_that_is_true(capsys):
    text = (_DOCS / 'optimizer.md').read_text('utf-8')
    snippet = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
    exec(compile(snippet, 'optimizer.md', 'exec'), {})  # noqa: S102
    printed = float(re.search(r'epsilon = ([\d.]+)', capsys.readouterr().out)[1])
    event = dp_accounting.PoissonSampledDpEvent(0.064, dp_accounting.GaussianDpEvent(1.1))
    ideal = accounting.compute_epsilon(event, 100, grid.accounted_delta(1e-5)).headline
    assert ideal <= printed < 1.05 * ideal
