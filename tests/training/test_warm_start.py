"""The public warm start: one release, what it was, and a generator that follows it."""

import math
import pathlib
import re

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_gan
from helpers.tiny_gan import CLASSES, SHAPE

import tf_efsgd
from tf_efsgd.models.generator import build_generator
from tf_efsgd.privacy import accounting, class_sums, grid
from tf_efsgd.privacy.features.pixels import FeatureMap
from tf_efsgd.training import warm_start as warm_starts

_DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'
_SIGMA, _COUNT = 0.7, 600


def _records():
    """Class 0 is dark, class 1 half, class 2 bright; a fifth is of class 0."""
    draws = np.random.default_rng(5)
    labels = np.repeat([0, 1, 2], [120, 240, 240])
    images = draws.integers(0, 40, [_COUNT, *SHAPE]) + 100 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def _build():
    tf.keras.utils.set_random_seed(5)
    return build_generator(SHAPE, CLASSES, latent_dim=4, width=8, embedding_stddev=2.0)


@pytest.fixture(scope='module')
def started():
    generator = _build()
    start = tf_efsgd.warm_start(
        generator,
        *_records(),
        num_classes=CLASSES,
        noise_multiplier=_SIGMA,
        steps=150,
        verbose=False,
    )
    return generator, start


def test_the_generator_follows_the_release(started):
    generator, start = started
    gan = tiny_gan.build(generator=generator)
    means = [gan.predict(np.full(60, label), seed=1).mean() for label in range(CLASSES)]
    assert means[0] < means[1] - 40 and means[1] < means[2] - 40
    assert start.class_counts == pytest.approx([120, 240, 240], abs=6 * _SIGMA * 10)


def test_its_event_is_that_of_one_gaussian_over_all_records(started):
    _, start = started
    assert start.dp_event == dp_accounting.GaussianDpEvent(
        grid.effective_noise_multiplier(_SIGMA, None)
    )
    assert start.draws == start.sums.size == CLASSES * FeatureMap(SHAPE).size
    assert start.sums.dtype == np.int64


def test_the_sums_are_noised_with_what_is_accounted(started):
    _, start = started
    images, labels = _records()
    exact = class_sums.sum_over_records(
        images, labels.astype(np.int32), CLASSES, FeatureMap(SHAPE), _SIGMA
    )
    noise = (start.sums - exact) * grid.class_sum_step(_SIGMA)
    scale = np.std(noise) / _SIGMA
    assert 0.97 < scale < 1.03  # 31,000 numbers; 2/3 and 3/2 are far outside.


def test_its_epsilon_is_part_of_the_whole(started):
    _, start = started
    optimizer = tiny_gan.private(noise_multiplier=1.1, expected_batch_size=30)
    how = {
        'steps': 70,
        'dataset_size': _COUNT,
        'target_delta': 1e-5,
        'variables': [tf.Variable(tf.zeros([3, 5]))],
    }
    alone = tf_efsgd.epsilon(optimizer, **how)
    both = tf_efsgd.epsilon(optimizer, **how, warm_start=start)
    release = accounting.compute_epsilon(
        None, 0, grid.accounted_delta(1e-5), start.dp_event
    ).headline
    assert max(alone, release) < both < alone + release
    expected = accounting.compute_epsilon(
        dp_accounting.PoissonSampledDpEvent(
            accounting.sampling_probability(30, _COUNT), optimizer.dp_event
        ),
        70,
        grid.accounted_delta(1e-5),
        start.dp_event,
    )
    assert both == expected.headline


@pytest.fixture
def without_fit(monkeypatch):
    """Leaves the generator as it is: tracing the fit takes longer than all else."""
    monkeypatch.setattr(
        warm_starts.fitting, 'fit', lambda generator, *_, **how: generator.get_weights()
    )


def test_without_noise_there_is_no_epsilon(without_fit):
    start = tf_efsgd.warm_start(
        _build(), *_records(), num_classes=CLASSES, noise_multiplier=0.0, steps=1, verbose=False
    )
    found = tf_efsgd.epsilon(
        tiny_gan.private(),
        steps=3,
        dataset_size=_COUNT,
        target_delta=1e-5,
        variables=[tf.Variable([0.3])],
        warm_start=start,
    )
    assert found == math.inf
    assert start.class_counts == pytest.approx([120, 240, 240], rel=1e-6)


def test_every_call_draws_noise_of_its_own(without_fit):
    made = [
        tf_efsgd.warm_start(
            _build(),
            *_records(),
            num_classes=CLASSES,
            noise_multiplier=_SIGMA,
            steps=1,
            verbose=False,
            secure_noise=secure,
        ).sums
        for secure in (False, False, True)
    ]
    assert all(np.mean(a == b) < 1e-3 for a, b in zip(made, made[1:]))


def test_the_snippet_of_the_docs_runs(without_fit, capsys):
    text = (_DOCS / 'feature_release.md').read_text('utf-8')
    snippet = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
    exec(compile(snippet, 'feature_release.md', 'exec'), {})  # noqa: S102
    assert 'GaussianDpEvent' in capsys.readouterr().out


def test_the_target_may_go_on_pulling(started):
    _, start = started
    gan = tiny_gan.make()
    gan.set_target(start.target, 0.5)
    gan.fit(
        tf_efsgd.poisson_batches(*_records(), expected_batch_size=4), steps_per_epoch=3, verbose=0
    )
    assert int(gan.generator_steps) == 1


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'images': np.zeros([4, *SHAPE])}, 'uint8.*Received: float64'),
        ({'images': np.zeros([4, 8, 8], np.uint8)}, r'Received: uint8 of shape \(4, 8, 8\)'),
        ({'labels': np.zeros([3], int)}, 'one integer for each of the 4'),
        ({'labels': np.zeros([4])}, 'one integer for each of the 4'),
        ({'labels': np.array([0, 1, 2, 3])}, 'from 0 to num_classes - 1, which is 2'),
        ({'labels': np.array([0, 1, 2, -1])}, 'from 0 to num_classes - 1, which is 2'),
        ({'noise_multiplier': 0.1}, 'at least 0.25'),
        ({'noise_multiplier': -1.0}, 'at least 0.25'),
        ({'noise_multiplier': math.nan}, 'at least 0.25'),
        ({'steps': 0}, 'steps must be at least 1'),
    ],
)
def test_wrong_arguments_are_refused_before_the_records_are_used(changes, message, monkeypatch):
    monkeypatch.setattr(class_sums, 'release', None)
    given = {
        'images': np.zeros([4, *SHAPE], np.uint8),
        'labels': np.zeros([4], int),
        'num_classes': CLASSES,
        'noise_multiplier': _SIGMA,
        'steps': 1,
        **changes,
    }
    with pytest.raises(ValueError, match=f'(?s){message}'):
        tf_efsgd.warm_start(None, **given)


def test_one_that_was_interrupted_leaves_the_generator_as_it_was():
    """Else it would carry a release that nobody counts once the call is made again."""
    generator = _build()
    before = [w.copy() for w in generator.get_weights()]

    class Stopped(Exception):
        pass

    def stop(numbers):
        for number in numbers:
            if number == 3:
                raise Stopped
            yield number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_starts, '_bar', stop)
        with pytest.raises(Stopped):
            tf_efsgd.warm_start(
                generator, *_records(), num_classes=CLASSES, noise_multiplier=_SIGMA, steps=9
            )

    for one, other in zip(before, generator.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_epsilon_of_two_is_that_of_both(started):
    _, start = started
    optimizer = tf_efsgd.ErrorFeedbackDPKerasSGDOptimizer(
        l2_norm_clip=1.0, noise_multiplier=4.0, expected_batch_size=30
    )

    def epsilon(warm_start):
        return tf_efsgd.epsilon(
            optimizer,
            steps=5,
            dataset_size=_COUNT,
            target_delta=1e-4,
            variables=[tf.Variable([0.3])],
            warm_start=warm_start,
        )

    assert epsilon([start]) == epsilon(start)
    assert epsilon([]) == epsilon(None) < epsilon(start) < epsilon([start, start])
    # Two of sigma are one of sigma / sqrt(2).
    event = dp_accounting.GaussianDpEvent(grid.effective_noise_multiplier(_SIGMA, None) / 2**0.5)
    both = accounting.compute_epsilon(
        dp_accounting.PoissonSampledDpEvent(
            accounting.sampling_probability(30, _COUNT), optimizer.dp_event
        ),
        5,
        grid.accounted_delta(1e-4),
        event,
    )
    assert epsilon([start, start]) == pytest.approx(both.headline, rel=0.02)
