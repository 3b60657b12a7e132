"""The command line of the benchmark: what it measures, shows, writes and refuses."""

import json

import pytest
import tensorflow as tf
from absl import flags
from helpers import processes
from helpers.tiny_benchmark import NETWORKS, VARIANTS

from tf_efsgd import config
from tf_efsgd.benchmark import measure, roofline, timing, variants
from tf_efsgd.cli import bench as command


def _parse(*arguments):
    values = flags.FlagValues()
    command.define_flags(values)
    values(['benchmark', *arguments])
    return values


@pytest.fixture
def run(monkeypatch):
    """Runs it on tiny networks with flags, one round of short runs, without memory."""
    monkeypatch.setitem(variants.MODELS, 'mnist', NETWORKS)
    monkeypatch.setattr(timing, '_LEAST_SECONDS', 0.001)
    return lambda *arguments: command.run(_parse('--nomemory', '--rounds=1', *arguments))


@pytest.mark.acceptance
def test_every_kind_of_step_is_timed_shown_and_written(run, tmp_path, capsys):
    picture, figures = tmp_path / 'bench.png', tmp_path / 'bench.json'
    sizes = ['--batch_size=12', '--tf_privacy_batch_size=8']
    assert command._choose_variants(_parse(*sizes)) == list(VARIANTS.values())
    # One of each kind; the others are built below.
    names = ['plain', 'error_feedback', 'dp_sgd_vectorized', 'plain_with_generator']
    names += ['error_feedback_with_generator', 'error_feedback_small', 'tf_privacy']
    only = f'--only={",".join(names)}'
    results = run(*sizes, only, f'--plot={picture}', f'--json_file={figures}')
    assert [result.variant.name for result in results] == names
    for result in results:
        assert len(result.seconds) == 1 and 0 < result.seconds[0] < 1000
        assert 0.01 < result.ratio.low <= result.ratio.median <= result.ratio.high < 1000
        if result.variant.name == result.variant.against:
            assert result.ratio == timing.Spread(1, 1, 1)
    printed = capsys.readouterr().out
    for words in ('batch 12 (6 records)', 'batch 8 (4 records)', 'vectorized', "TF Privacy's"):
        assert words in printed
    written = json.loads(figures.read_text('utf-8'))
    assert [step['variant']['name'] for step in written['steps']] == names
    assert all(step['milliseconds'] > 0 for step in written['steps'])
    assert written['machine']['tensorflow'] == tf.__version__
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_only_brings_what_a_step_is_compared_with():
    chosen = command._choose_variants(_parse('--only=dp_sgd,tf_privacy'))
    names = [variant.name for variant in chosen]
    assert names == ['plain', 'dp_sgd', 'error_feedback_small', 'tf_privacy']
    growing = command._choose_variants(_parse('--scaling', '--only=batch_64,batch_256'))
    assert [(v.records, v.microbatch_size) for v in growing] == [(32, 256), (128, 256)]


def test_roofline_stands_beside_what_was_measured(run, monkeypatch, capsys):
    def made_up(networks, chosen, rounds, with_memory):
        seconds = {variant.name: [0.0123] for variant in chosen}
        return measure.results_of(chosen, seconds, dict.fromkeys(seconds))

    small = roofline.measure_machine(size=64, megabytes=1)
    assert min(small.operations, small.bytes, small.draws) > 1e5
    monkeypatch.setattr(measure, 'measure', made_up)
    monkeypatch.setattr(roofline, 'measure_machine', lambda: small)
    run('--batch_size=12', '--only=plain,dp_sgd,plain_with_generator', '--roofline')
    _, _, *rows = capsys.readouterr().out.split('This machine: ')[1].splitlines()
    assert [row.split('  ')[0] for row in rows] == ['plain, not private', 'DP-SGD']
    for row, name in zip(rows, ('plain', 'dp_sgd')):
        work = roofline.count_work(roofline.layers_of(NETWORKS), VARIANTS[name])
        least = f'{1e3 * work.least_seconds(small):.1f}'
        assert row.split()[-3:] == [f'{work.draws:,}', least, '12.3']


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
        ('--json_file=bench.csv', '--json_file must be a file that ends in one of json.'),
    ],
)
def test_a_wrong_flag_is_told_before_anything_is_measured(argument, message, monkeypatch):
    monkeypatch.setattr(measure, 'measure', None)
    with pytest.raises(config.ConfigError) as error:
        command.run(_parse(argument))
    assert message in str(error.value)


@pytest.mark.parametrize('argument', ['--batch_size=7', '--model=imagenet', '--batchsize=8'])
def test_a_wrong_flag_ends_in_one_line_and_exit_code_2(argument):
    done = processes.run_module('benchmark', argument)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('tf_efsgd: ') and done.stderr.count('\n') == 1
