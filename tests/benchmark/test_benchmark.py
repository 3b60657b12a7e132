"""The benchmark: every step runs, what is timed is right, and its command line."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from tf_efsgd import config
from tf_efsgd.benchmark import measure, roofline, show, steps
from tf_efsgd.cli import bench

_REPO = pathlib.Path(__file__).resolve().parents[2]
_TINY = steps.Networks((8, 8, 1), 3, width=4, generator_width=8, latent_dim=4)
_RECORDS = 6
_VARIANTS = {variant.name: variant for variant in steps.step_variants(2 * _RECORDS, 8)}


def _parse(*arguments):
    values = flags.FlagValues()
    bench.define_flags(values)
    values(['benchmark', *arguments])
    return values


@pytest.fixture
def run(monkeypatch):
    """Runs it on tiny networks with flags, one round of short runs, without memory."""
    monkeypatch.setitem(steps.MODELS, 'mnist', _TINY)
    monkeypatch.setattr(measure, '_LEAST_SECONDS', 0.001)
    return lambda *arguments: bench.run(_parse('--nomemory', '--rounds=1', *arguments))


def test_every_kind_of_step_is_timed_shown_and_written(run, tmp_path, capsys):
    picture, figures = tmp_path / 'bench.png', tmp_path / 'bench.json'
    sizes = ['--batch_size=12', '--tf_privacy_batch_size=8']
    assert bench._choose_variants(_parse(*sizes)) == list(_VARIANTS.values())
    # One of each kind; the others are built below.
    names = ['plain', 'error_feedback', 'dp_sgd_vectorized', 'plain_with_generator']
    names += ['error_feedback_with_generator', 'error_feedback_small', 'tf_privacy']
    only = f'--only={",".join(names)}'
    results = run(*sizes, only, f'--plot={picture}', f'--json={figures}')
    assert [result.variant.name for result in results] == names
    for result in results:
        assert len(result.seconds) == 1 and 0 < result.seconds[0] < 10
        assert 0.01 < result.ratio.low <= result.ratio.median <= result.ratio.high < 1000
        if result.variant.name == result.variant.against:
            assert result.ratio == measure.Spread(1, 1, 1)
    printed = capsys.readouterr().out
    for text in ('batch 12 (6 records)', 'batch 8 (4 records)', 'vectorized', "TF Privacy's"):
        assert text in printed
    written = json.loads(figures.read_text('utf-8'))
    assert [step['variant']['name'] for step in written['steps']] == names
    assert all(step['milliseconds'] > 0 for step in written['steps'])
    assert written['machine']['tensorflow'] == tf.__version__
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_scaling_is_by_record():
    variants = bench._choose_variants(_parse('--scaling', '--only=batch_64,batch_256'))
    assert [(v.records, v.microbatch_size) for v in variants] == [(32, 256), (128, 256)]
    seconds, memory = {'batch_64': [3.2], 'batch_256': [6.4]}, {'batch_64': 4e6, 'batch_256': 6e6}
    small, large = measure._results(variants, seconds, memory)
    assert (small.ratio.median, large.ratio.median) == pytest.approx((1.0, 0.5))
    assert large.memory_ratio == 1.5
    first, *_, last = show.format_table([small, large], scaling=True).splitlines()
    assert '256 records at a time' in show.format_table([small, large], scaling=True)
    row = dict(zip(first.replace('× ', '×').split(), last.replace('error ', '').split()))
    assert row['µs/record'] == '50000' and row['×time'] == '0.50' and row['×MB'] == '1.50'


def test_scaling_tells_what_is_fixed_from_what_a_record_costs():
    variants = steps.scaling_variants(steps.SCALING_BATCH_SIZES, 256)

    def described(seconds_of, count=7):
        seconds = {v.name: [seconds_of(v.records)] * 3 for v in variants}
        results = measure._results(variants, seconds, dict.fromkeys(seconds))
        return show.describe_scaling(results[:count])

    def straight(records):
        return 0.0123 + 104e-6 * records

    text = '12.3 ms for every step and 104 µs for every record'
    assert described(straight) == f'{text}; from 256 records on 104 to 104 µs for one more'
    assert described(straight, count=3) == text  # Up to 128 records.
    bent = described(lambda records: straight(records) + 26e-6 * max(0, records - 1024))
    assert bent.endswith('from 256 records on 104 to 130 µs for one more')


def test_only_brings_what_a_step_is_compared_with():
    chosen = bench._choose_variants(_parse('--only=dp_sgd,tf_privacy'))
    names = [variant.name for variant in chosen]
    assert names == ['plain', 'dp_sgd', 'error_feedback_small', 'tf_privacy']


def test_celeba64_is_what_its_flagfile_says():
    path = _REPO / 'configs' / 'celeba.flags'
    of_flagfile = config.from_flagfile(path.read_text('utf-8'))
    networks, model = steps.MODELS['celeba64'], of_flagfile.model
    assert networks.image_shape == (of_flagfile.data.image_size,) * 2 + (3,)
    assert networks.width == model.discriminator_width
    assert networks.generator_width == model.generator_width
    assert networks.latent_dim == model.latent_dim


# What is timed is right.


@pytest.fixture(scope='module')
def data():
    """The benchmark's own batch."""
    return steps.make_data(_TINY, _RECORDS)


def _gan(name, data, **changes):
    return steps.build_gan(_TINY, dataclasses.replace(_VARIANTS[name], **changes), data[2])


def _sums(gan, data):
    """(clipped sum, residual sum without privacy [], sum of generated images), flat."""
    sums = tf.function(lambda *records: gan._sums_of_step(*records)[:3])(*data[:2])
    return [np.concatenate([np.zeros(0), *(s.numpy().ravel() for s in part)]) for part in sums]


def test_clipping_methods_sum_the_same_gradients(data):
    vectorized = _gan('error_feedback_vectorized', data)
    fast, parts = _gan('error_feedback', data), _gan('error_feedback', data, microbatch_size=4)
    assert (vectorized.clipping, fast.clipping, parts.clipping) == ('vectorized', 'fast', 'fast')
    expected = _sums(vectorized, data)
    for found in _sums(fast, data), _sums(parts, data):
        for part, expected_part in zip(found, expected):
            length = np.linalg.norm(expected_part)
            assert length > 0.1
            assert np.linalg.norm(part - expected_part) < 1e-4 * length


def test_plain_steps_do_not_clip(data):
    (plain, residual, _), (clipped, *_) = (_sums(_gan(n, data), data) for n in ('plain', 'dp_sgd'))
    assert len(residual) == 0
    assert np.linalg.norm(clipped) <= _RECORDS * steps._L2_NORM_CLIP * 1.0001
    assert np.linalg.norm(plain) > 1.5 * np.linalg.norm(clipped)


def test_tf_privacy_takes_the_same_loss(data, monkeypatch):
    monkeypatch.setattr(steps, '_NOISE_MULTIPLIER', 0.0)
    images, labels, generated = data
    gan = _gan('dp_sgd', data)
    # Generated images draw labels of their own; here they have those of the records.
    monkeypatch.setattr(gan, '_generate_share', lambda: (generated, labels))
    clipped, _, of_generated = _sums(gan, data)
    variables = gan.discriminator.trainable_variables
    optimizer = steps.build_optimizer(_VARIANTS['tf_privacy'])
    with tf.GradientTape(persistent=True) as tape:
        losses = steps.drop_in_losses(gan.discriminator, images, labels, generated)
    gradients = optimizer._compute_gradients(losses, variables, tape=tape)
    theirs = np.concatenate([gradient.numpy().ravel() for gradient, _ in gradients])
    np.testing.assert_allclose(theirs * 2 * _RECORDS, clipped + of_generated, atol=1e-4)


@pytest.mark.parametrize(
    'name', ['plain', 'error_feedback', 'error_feedback_drop_in', 'tf_privacy']
)
def test_a_step_updates_every_variable(name, monkeypatch):
    monkeypatch.setattr(steps, '_LEARNING_RATE', 0.01)
    variant = _VARIANTS[name]
    is_drop_in = variant.clipping == 'jacobian'
    build = steps._build_drop_in_step if is_drop_in else steps._build_gan_step
    step, variables = build(_TINY, variant, steps.make_data(_TINY, variant.records))
    before = [variable.numpy() for variable in variables]
    step()
    assert all(np.abs(v.numpy() - b).max() > 1e-4 for v, b in zip(variables, before))


# What bounds a step.


def test_work_is_counted_by_hand():
    # A Dense 3 -> 5 at 2 positions, then a 2x2 convolution of all to 7 numbers.
    layers, variants = [(2, 3, 5, 6), (1, 20, 7, 10)], steps.step_variants(8, 8)
    plain, private, feedback = (roofline.count_work(layers, v) for v in variants[:3])
    # 60 operations twice, 280 three times; what goes in and out, and five times the activation.
    assert plain == roofline.Work(
        8 * (2 * 60 + 3 * 280), 8 * 4 * (3 * 16 + 5 * 10 + 3 * 17 + 5 * 7), 0
    )
    # The first layer's norm is cheaper direct, the second's as a Gram form; it alone has patches.
    assert private.operations - plain.operations == 8 * (60 + 2 * 27)
    assert private.bytes - plain.bytes == 8 * 4 * (2 * 10 + 3 * 20 + 2 * 7)
    assert private.draws == 4 * 5 + 21 * 7 == feedback.draws / 2
    assert feedback.operations - private.operations == 4 * (60 + 280)
    assert feedback.bytes - private.bytes == 4 * 4 * (6 + 3 * 10 + 10 + 3 * 7)


def test_the_least_time_is_of_what_takes_longest_and_of_the_draws():
    machine = roofline.Work(100.0, 10.0, 4.0)
    assert roofline.Work(300.0, 20.0, 2.0).least_seconds(machine) == 3.5
    assert roofline.Work(300.0, 40.0, 0.0).least_seconds(machine) == 4.0


def test_layers_are_those_of_the_discriminator():
    layers = roofline.layers_of(steps.MODELS['mnist'])
    assert layers[:2] == [(49, 16, 32, 784), (16, 512, 64, 7 * 7 * 32)]
    assert sum((m + 1) * p for _, m, p, _ in layers) == 47_786


def test_roofline_stands_beside_what_was_measured(run, monkeypatch, capsys):
    def made_up(networks, variants, rounds, memory):
        seconds = {variant.name: [0.0123] for variant in variants}
        return measure._results(variants, seconds, dict.fromkeys(seconds))

    small = roofline.measure_machine(size=64, megabytes=1)
    assert min(small.operations, small.bytes, small.draws) > 1e5
    monkeypatch.setattr(measure, 'measure', made_up)
    monkeypatch.setattr(roofline, 'measure_machine', lambda: small)
    run('--batch_size=12', '--only=plain,dp_sgd,plain_with_generator', '--roofline')
    _, _, *rows = capsys.readouterr().out.split('This machine: ')[1].splitlines()
    assert [step.split('  ')[0] for step in rows] == ['plain, not private', 'DP-SGD']
    for step, name in zip(rows, ('plain', 'dp_sgd')):
        work = roofline.count_work(roofline.layers_of(_TINY), _VARIANTS[name])
        least = f'{1e3 * work.least_seconds(small):.1f}'
        assert step.split()[-3:] == [f'{work.draws:,}', least, '12.3']


# Measuring.


def test_times_are_of_one_step_in_alternating_order(monkeypatch):
    now, order = [0.0], []

    def runs(name, seconds):
        def run(steps):
            order.append((name, steps))
            now[0] += steps * seconds

        return run

    monkeypatch.setattr(measure.time, 'perf_counter', lambda: now[0])
    found = measure.measure_times({'a': runs('a', 0.03), 'b': runs('b', 0.7)}, rounds=2)
    assert found == {'a': pytest.approx([0.03] * 2), 'b': pytest.approx([0.7] * 2)}
    assert order[:4] == [('a', 1), ('a', 1), ('b', 1), ('b', 1)]
    assert order[4:] == [('a', 7), ('b', 1), ('b', 1), ('a', 7)]


def test_ratios_are_taken_within_a_round():
    # The machine is three times slower in the second round.
    assert measure.spread_of_ratios([2.2, 6.0, 2.0], [1.0, 3.0, 1.0]) == measure.Spread(
        2.0, 2.0, 2.2
    )


def test_memory_is_of_another_process():
    found = measure._process_memory(_TINY, _VARIANTS['plain'])
    assert 1e6 < found < 1e9
    assert found % 1024 == 0


def test_memory_is_that_of_the_batch(monkeypatch):
    monkeypatch.setattr(
        measure, '_process_memory', lambda _, variant: 7e6 + 3e3 * variant.batch_size
    )
    assert measure.measure_memory(_TINY, _VARIANTS['plain']) == 3e3 * (2 * _RECORDS - 2)


def test_a_process_that_dies_has_no_figure():
    broken = dataclasses.replace(_VARIANTS['plain'], batch_size=-2)
    assert measure.measure_memory(_TINY, broken) is None


# The command line.


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--batch_size=7', '--batch_size must be even and at least 2. Received: 7.'),
        ('--tf_privacy_batch_size=0', '--tf_privacy_batch_size must be even'),
        ('--rounds=0', '--rounds must be at least 1. Received: 0.'),
        ('--microbatch_size=0', '--microbatch_size must be at least 1'),
        ('--only=plain,fastest', '--only takes plain, dp_sgd,'),
        ('--plot=bench.txt', '--plot must be a file that ends in one of'),
        ('--plot=nowhere/bench.png', '--plot: there is no folder nowhere.'),
        ('--json=bench.csv', '--json must be a file that ends in one of json.'),
    ],
)
def test_a_wrong_flag_is_told_before_anything_is_measured(argument, message, monkeypatch):
    monkeypatch.setattr(measure, 'measure', None)
    with pytest.raises(config.ConfigError) as error:
        bench.run(_parse(argument))
    assert message in str(error.value)


@pytest.mark.parametrize('argument', ['--batch_size=7', '--model=imagenet', '--batchsize=8'])
def test_a_wrong_flag_ends_in_one_line_and_exit_code_2(argument):
    done = subprocess.run(
        [sys.executable, '-m', 'tf_efsgd.benchmark', argument],
        cwd=_REPO,
        env={**os.environ, 'PYTHONPATH': str(_REPO)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('tf_efsgd: ') and done.stderr.count('\n') == 1
