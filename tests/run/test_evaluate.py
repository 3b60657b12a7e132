"""The evaluation of a run folder: repeatable, apart from the rest, and never in the way."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from helpers import event_files, processes, read_page, tiny_inception, tiny_run
from helpers.pairs import pairs

from tf_efsgd import config
from tf_efsgd.cli import arguments
from tf_efsgd.cli import evaluate as command
from tf_efsgd.data import load
from tf_efsgd.evaluation import inception
from tf_efsgd.models import sampling
from tf_efsgd.privacy import run_state
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.run import build, context, evaluate
from tf_efsgd.run import folder as run_folder
from tf_efsgd.training import samples

_SMALL = {'evaluation_images': 100, 'evaluation_runs': 1, 'evaluation_epochs': 1}


def _evaluate(folder, *more, **changes):
    values = flags.FlagValues()
    command.define_flags(values)
    arguments = {**_SMALL, 'run_dir': folder, **changes}
    values(['evaluate', *(f'--{k}={v}' for k, v in arguments.items()), *more])
    return command.run(values)


def _snapshot(folder):
    """Content and time of every file, but for the evaluation's own."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob('*')
        if path.is_file() and 'nonprivate' not in path.parts
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run without evaluation and export."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    tiny_run.run(folder, '--noevaluate', '--noexport', train_steps=5)
    return folder


@pytest.fixture(scope='module')
def evaluated(folder, tmp_path_factory):
    """Its evaluation: the metrics, and what else was in the folder before and after."""
    weights = tmp_path_factory.mktemp('weights') / 'classify_image_graph_def.pb'
    weights.write_bytes(tiny_inception.graph_def())
    before = _snapshot(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, '_SIZE', 16)  # quicker than 299
        page = _evaluate(folder, f'--inception_weights={weights}')
    assert page == str(folder / 'nonprivate' / 'metrics.html')
    return json.loads((folder / 'nonprivate/metrics.json').read_text()), before, _snapshot(folder)


def test_an_evaluation_writes_to_its_own_folder_alone(evaluated, folder):
    _, before, after = evaluated
    assert before == after
    nonprivate = [path for path in folder.rglob('nonprivate/**/*') if path.is_file()]
    names = {path.relative_to(folder / 'nonprivate').as_posix() for path in nonprivate}
    (events,) = (name for name in names if 'tfevents' in name)
    assert os.path.dirname(events) == 'logs/evaluation'
    assert names - {events} == {
        *('metrics.json', 'metrics.html', 'NOT_COVERED.txt', 'other_runs.json')
    }


def test_metrics_have_the_names_that_others_read(evaluated):
    metrics = evaluated[0]
    for group, key in (
        *(('gen2real_cnn', 'accuracy'), ('gen2real_mlp', 'accuracy')),
        *(('domain_fid', 'test'), ('domain_fid', 'train'), ('fid', 'test'), ('fid', 'train')),
    ):
        assert isinstance(metrics[group][key], float)
    cnn = metrics['gen2real_cnn']
    assert cnn['accuracies'] == [cnn['accuracy']] and cnn['spread'] is None
    assert metrics['gen2real_cnn']['real']['accuracy'] > 0.9
    assert metrics['gen2real_cnn']['untrained']['accuracy'] < 0.5
    found = metrics['provenance']
    assert 0 < found['epsilon_pld'] == found['epsilon'] < 1.2 and found['delta'] == 1e-5
    # 1e-5 times 1,602.
    assert found['unit_of_privacy'] == 'one image with its label'
    assert found['delta_times_units'] == 0.01602
    assert (found['steps'], found['checkpoint_step'], metrics['steps']) == (5, 5, 5)
    assert 0 < found['training_minutes'] < 60 and 'cores' in found['machine']


def test_page_says_that_it_may_not_be_shared(evaluated, folder):
    page = (folder / 'nonprivate' / 'metrics.html').read_text()
    assert 'digits: measured against real images Do NOT share' in read_page.text(page)
    read_page.check_stands_alone(page)


def test_hparams_hold_settings_and_scores(evaluated, folder):
    events = event_files.read(folder / 'nonprivate/logs/evaluation')
    summary = events.PluginTagToContent('hparams')['_hparams_/session_start_info']
    assert b'l2_norm_clip' in summary and b'generator_width' in summary
    [score] = events.Tensors('nonprivate/gen2real_cnn')
    accuracy = evaluated[0]['gen2real_cnn']['accuracy']
    assert (score.step, tf.make_ndarray(score.tensor_proto)) == (5, pytest.approx(accuracy))


def test_a_second_evaluation_finds_the_same_and_trains_on_no_real_image(
    evaluated, folder, tmp_path, capfd
):
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    _evaluate(copy)
    again = json.loads((copy / 'nonprivate/metrics.json').read_text())
    for metrics in (evaluated[0], again):
        metrics.pop('provenance')
    expected = {k: v for k, v in evaluated[0].items() if k not in ('fid', 'kid')}
    assert again == expected
    assert 'learns from real images' not in capfd.readouterr().err
    assert len(list((copy / 'nonprivate/logs/evaluation').iterdir())) == 1


def test_the_generator_is_the_one_that_drew_the_samples(folder):
    settings = run_folder.read_settings(folder)
    train = run_folder.load_records(settings).train
    generator, restored = evaluate._trained_generator(settings, folder, train)
    labels = np.tile(np.arange(10, dtype=np.int32), 8)
    grid = samples.image_grid(sampling.generate(generator, labels, context._SAMPLE_SEED), 10)
    drawn = tf.io.decode_png((folder / 'samples/step_000005.png').read_bytes())
    assert restored.step == 5
    np.testing.assert_array_equal(grid, drawn)
    untrained = build.untrained_generator(settings, train)
    other = sampling.generate(untrained, labels, context._SAMPLE_SEED)
    assert not np.array_equal(samples.image_grid(other, 10), drawn)


def test_the_untrained_generator_has_the_initial_weights_of_the_run(folder):
    settings = run_folder.read_settings(folder)
    dataset = run_folder.load_records(settings)
    gan, _ = build.build_gan(settings, dataset.train)
    untrained = build.untrained_generator(settings, dataset.train)
    for one, other in pairs(gan.generator.get_weights(), untrained.get_weights()):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ('flags', 'stddev'),
    [
        ('--target_epsilon=3', 0.03),
        ('--target_epsilon=3\n--warm_start_share=0.1', 2.0),
        ('--noise_multiplier=1\n--warm_start_noise_multiplier=1', 2.0),
        ('--noprivate', 0.03),
        ('--noprivate\n--warm_start_share=0.1', 2.0),
    ],
)
def test_classes_begin_apart_for_a_warm_start_only(folder, flags, stddev):
    settings = config.from_flagfile(f'--dataset=mnist_10k\n--generator=plain\n{flags}')
    train = run_folder.load_records(run_folder.read_settings(folder)).train
    untrained = build.untrained_generator(settings, train)
    (embedding,) = untrained.get_layer('classes').get_weights()
    assert embedding.std() == pytest.approx(stddev, rel=0.2)


def test_of_a_damaged_checkpoint_the_one_before_is_used_and_nothing_is_moved(
    folder, tmp_path, capsys
):
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    (copy / 'checkpoints/step_000005/variables.index').write_bytes(b'')
    before = _snapshot(copy)
    settings = run_folder.read_settings(copy)
    train = run_folder.load_records(settings).train
    assert evaluate._trained_generator(settings, copy, train)[1].step == 3
    assert 'damaged' in capsys.readouterr().out
    assert _snapshot(copy) == before


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'run_dir': 'nowhere'}, 'nowhere is not a run folder'),
        ({'dataset': 'mnist_10k'}, r'not the data set of the run.*\(8, 8, 1\).*\(28, 28, 1\)'),
        ({'dataset': 'idx:nowhere'}, "'nowhere'.*elsewhere now, give --dataset"),
        ({'evaluation_images': 99}, '--evaluation_images must be at least 100'),
        ({'evaluation_runs': 0}, '--evaluation_runs must be at least 1'),
        ({'inception_weights': 'nowhere.pb'}, '--inception_weights.*nowhere.pb'),
        ({'inception_weights': 'x', 'download_inception': True}, 'not both'),
    ],
)
def test_mistakes_are_told_in_a_line_and_nothing_is_written(folder, tmp_path, changes, message):
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns('nonprivate'))
    with pytest.raises(config.ConfigError, match=message) as raised:
        _evaluate(copy, **changes)
    assert '\n' not in str(raised.value)
    assert not (copy / 'nonprivate').exists()


# The records are those of the run.


def _state_file(folder):
    run_id = Ledger.read(folder / 'ledger.jsonl').run_id
    return run_state.default_folder() / f'{run_id}.json'


def _other_digits():
    """The digits with one pixel of one image changed."""
    dataset = load.load('digits')
    dataset.train.images[3, 4, 4, 0] ^= 1
    return dataset


def test_other_records_of_the_same_size_are_refused(folder, tmp_path, monkeypatch, capsys):
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns('nonprivate'))
    state = _snapshot(run_state.default_folder())
    other = _other_digits()
    monkeypatch.setattr(run_folder, 'load_records', lambda settings: other)
    with pytest.raises(config.ConfigError, match='fingerprint differs.*--dataset') as raised:
        _evaluate(copy)
    assert '\n' not in str(raised.value)
    assert not (copy / 'nonprivate').exists()
    assert _snapshot(run_state.default_folder()) == state
    with pytest.raises(SystemExit) as ended, arguments.one_line_errors():
        raise raised.value
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith('tf_efsgd: The records are not the ones')


def test_records_are_checked_while_the_run_is_trained(folder):
    path, train = _state_file(folder), load.load('digits').train
    before = _snapshot(path.parent)
    training = run_state.RunState(path.parent, path.stem)
    try:
        assert run_folder.check_records(path.parent, path.stem, train)
        other = _other_digits().train
        with pytest.raises(config.ConfigError, match='fingerprint'):
            run_folder.check_records(path.parent, path.stem, other)
    finally:
        training.close()
    changed = {name for name, seen in _snapshot(path.parent).items() if before.get(name) != seen}
    assert changed <= {f'{path.stem}.lock'}, 'the lock is of the training'


@pytest.mark.parametrize('content', ['{', '[]', '{}', '{"key": "x", "records": ""}', 'null x'])
def test_a_damaged_state_is_told_in_a_line(tmp_path, content):
    (tmp_path / 'run.json').write_text(content)
    with pytest.raises(config.ConfigError, match='run.json is damaged') as raised:
        run_folder.check_records(tmp_path, 'run', load.load('digits').train)
    assert '\n' not in str(raised.value)


def test_where_nothing_is_remembered_the_records_are_not_checked_and_it_says_so(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(evaluate, 'evaluate_run', lambda *_, **__: 'page')
    assert _evaluate(folder) == 'page'
    assert 'not checked' not in capsys.readouterr().out
    state = tmp_path / 'state'
    assert _evaluate(folder, state_dir=state) == 'page'
    said = [line for line in capsys.readouterr().out.splitlines() if 'not checked' in line]
    assert said == [
        f'{state} remembers nothing of this run, so it is not checked whether these are its '
        'records.'
    ]
    assert list(state.iterdir()) == []


@pytest.mark.parametrize('wrong', ['width', 'checkpoints', 'state_dir'])
def test_a_folder_that_does_not_fit_is_refused(folder, tmp_path, wrong):
    copy, more = tmp_path / 'copy', {}
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns('nonprivate'))
    if wrong == 'width':
        flagfile = copy / 'config.flags'
        text = flagfile.read_text().replace('--generator_width=8', '--generator_width=16')
        flagfile.write_text(text)
        message = 'other networks'
    elif wrong == 'checkpoints':
        shutil.rmtree(copy / 'checkpoints')
        message = 'no whole checkpoint'
    else:
        more['state_dir'] = copy / 'nonprivate'
        message = 'outside the run folder'
    with pytest.raises(config.ConfigError, match=message):
        _evaluate(copy, **more)
    assert not (copy / 'nonprivate').exists()


def test_the_command_line_asks_for_a_run():
    done = processes.run_module('evaluate')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'tf_efsgd: Give --run_dir, the folder of the run to evaluate.\n'
