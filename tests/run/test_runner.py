"""Whole runs: what they leave behind, what they spend, and how they continue after a crash."""

import json
import math
import re
import secrets
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import account_by_hand as by_hand
from helpers import event_files, processes, read_page, tiny_run

from tf_efsgd import config, rounding
from tf_efsgd.export import checksums, versions, warmup
from tf_efsgd.privacy import accounting, layer_norms
from tf_efsgd.privacy.features import alone
from tf_efsgd.run import checkpoints, runner
from tf_efsgd.training import callbacks as monitoring
from tf_efsgd.training import samples

_TAGS = {
    'dp/fake_accuracy',
    'dp/fake_loss',
    'dp/released_gradient_norm',
    'dp/buffer_norm',
    'dp/fake_accuracy_average',
    'dp/discriminator_steps',
    'dp/generator_steps',
    'dp/epsilon',
    'dp/samples',
}
# A run folder, with <...> for what a run cannot know beforehand.
_FILES = {
    'config.flags',
    'ledger.jsonl',
    'logs/<events>',
    *(
        f'checkpoints/step_{step:06d}/{name}'
        for step in (6, 8)
        for name in ('manifest.json', 'variables.index', 'variables.<data>')
    ),
    'samples/step_000005.png',
    'samples/step_000008.png',
    'report.html',
    'export/1/saved_model.pb',
    'export/1/fingerprint.pb',
    'export/1/variables/variables.index',
    'export/1/variables/variables.<data>',
    'export/1/assets.extra/privacy_statement.json',
    'export/1/assets.extra/SHA256SUMS',
    *(['export/1/assets.extra/tf_serving_warmup_requests'] if warmup.is_possible() else []),
    'export/1/assets/class_names.txt',
    'nonprivate/logs/evaluation/<events>',
    'nonprivate/metrics.html',
    'nonprivate/metrics.json',
    'nonprivate/NOT_COVERED.txt',
    'nonprivate/other_runs.json',
}


def _files(folder):
    names = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}
    names = {re.sub(r'(?<=/)events\.out\.tfevents\..*', '<events>', name) for name in names}
    return {name.replace('data-00000-of-00001', '<data>') for name in names}


def _tags(folder):
    tags = event_files.tags(folder / 'logs')
    assert event_files.OVERVIEW <= tags
    return tags - event_files.OVERVIEW


# One run from start to end.


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run: its folder, the secrets it drew, and ledger and steps side by side."""
    folder = tmp_path_factory.mktemp('runs') / 'finished'
    drawn, side_by_side = [], []
    real = secrets.randbits
    applied = monitoring.Checkpoint.on_train_batch_end

    def randbits(bits):
        drawn.append((bits, real(bits)))
        return drawn[-1][1]

    def on_train_batch_end(self, batch, logs=None):
        applied(self, batch, logs)
        side_by_side.append((int(self.model.private_steps.numpy()), sum(tiny_run.reserved(folder))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, 'randbits', randbits)
        patch.setattr(monitoring.Checkpoint, 'on_train_batch_end', on_train_batch_end)
        tiny_run.run(folder)
    return folder, drawn, side_by_side


def test_a_run_leaves_exactly_its_folder(finished):
    assert _files(finished[0]) == _FILES


def test_the_settings_would_repeat_the_run(finished):
    folder = finished[0]
    saved = config.from_flagfile((folder / 'config.flags').read_text())
    # What was read off the records is declared from then on.
    read = {'dataset_size': 1602, 'read_off_records': 'dataset_size'}
    chosen = {'public_features': 'none', 'discriminator': 'pixels', 'generator': 'plain'}
    lines = tiny_run.flags(folder, '--strategy=one_device', **read, **chosen)
    wanted = config.from_flagfile('\n'.join(lines))
    assert [saved.data, saved.privacy, saved.model, saved.training] == [
        wanted.data, wanted.privacy, wanted.model, wanted.training
    ]  # fmt: skip


def test_the_statement_is_the_account_of_the_ledger(finished):
    folder = finished[0]
    statement, reserved = tiny_run.statement(folder), sum(tiny_run.reserved(folder))
    assert (reserved, statement['steps'], statement['applied_steps']) == (8, 8, 8)
    plan = json.loads((folder / 'ledger.jsonl').read_text().splitlines()[0])
    assert (plan['dataset'], plan['dataset_size']) == ('digits', 1602)
    sampling_probability = plan['event']['sampling_probability']
    assert 160 / 1602 <= sampling_probability < 160 / 1602 + 1e-9
    noise_multiplier = plan['event']['event']['noise_multiplier']
    delta = by_hand.accounted_delta(1e-5)
    spent = accounting.compute_epsilon(
        accounting.step_event(sampling_probability, noise_multiplier), 8, delta
    )
    assert statement['private'] is True
    assert statement['private_step_updates'] == 'discriminator'
    assert statement['epsilon'] == pytest.approx(spent.headline, abs=1e-9)
    assert 0.99 * tiny_run.TARGET < statement['epsilon'] <= tiny_run.TARGET
    assert (statement['delta'], statement['target_epsilon']) == (1e-5, tiny_run.TARGET)
    # The event is that of the noise that is drawn, less what the grid costs.
    assert statement['noise_multiplier_accounted'] == noise_multiplier
    drawn, parameters = statement['noise_multiplier'], statement['private_parameters']
    assert plan['mechanism']['noise_multiplier'] == drawn > 1.007 * noise_multiplier
    assert by_hand.effective_step(drawn, 2 * parameters) == pytest.approx(noise_multiplier)
    reader = tf.train.load_checkpoint(str(folder / 'checkpoints' / 'step_000008' / 'variables'))
    sizes = [
        math.prod(shape)
        for name, shape in reader.get_variable_to_shape_map().items()
        if name.startswith('gan/discriminator/') and '.OPTIMIZER_SLOT' not in name
    ]
    assert sum(sizes) == parameters == plan['private_parameters']
    assert statement['sampling_probability'] == sampling_probability


def test_steps_are_in_the_ledger_before_they_run(finished):
    folder, _, side_by_side = finished
    assert tiny_run.reserved(folder) == [2, 2, 2, 2]
    assert [applied for applied, _ in side_by_side] == list(range(1, 9))
    assert all(applied <= reserved <= applied + 1 for applied, reserved in side_by_side)


def test_only_what_is_released_is_logged(finished):
    folder = finished[0]
    assert _tags(folder) == _TAGS
    entries = monitoring.read_scalars(str(folder / 'logs'))
    assert [entry['step'] for entry in entries] == [2, 4, 6, 8]
    epsilons = [entry['dp/epsilon'] for entry in entries]
    assert 0 < epsilons[0] <= epsilons[1] <= epsilons[2] <= epsilons[3] <= tiny_run.TARGET
    assert epsilons[3] >= tiny_run.statement(folder)['epsilon'] - 1e-6


def test_the_report_says_what_the_statement_says(finished):
    folder = finished[0]
    page = (folder / 'report.html').read_text()
    assert 'NOT PRIVATE' not in page
    assert 'data:image/png;base64' in page
    assert str(folder) not in page, 'the report is for sharing'
    text, statement = read_page.text(page), tiny_run.statement(folder)
    top, _ = text.split(' Generated images ')
    epsilon = rounding.up(statement['epsilon'])
    assert 'Unit of privacy: one image with its label' in top
    assert f'ε = {epsilon}, δ = 1e-05; δ times the number of images, 1,602, is 0.017' in top
    for name in ('proven', 'tested_not_proven', 'not_covered'):
        assert statement[name]
        for sentence in statement[name]:
            assert text.count(sentence) == 1, sentence
    for images, found in statement['epsilon_by_images_per_person'].items():
        assert f'{images} images{rounding.up(math.inf if found is None else found)}' in text


def test_what_is_planted_in_the_logs_is_not_in_the_report(finished, tmp_path):
    pytest.importorskip('matplotlib')
    folder = tmp_path / 'again'
    shutil.copytree(finished[0], folder)
    writer = tf.summary.create_file_writer(str(folder / 'logs'), filename_suffix='.planted')
    with writer.as_default(step=8):
        for tag in ('nonprivate/planted', 'planted'):
            tf.summary.scalar(tag, 0.3)
    writer.close()
    tiny_run.run(folder, '--resume', '--noevaluate')
    page = (folder / 'report.html').read_text()
    assert 'planted' not in page
    assert 'dp/fake_accuracy' in page and 'may be shared' in page


def test_the_export_is_the_trained_generator(finished):
    folder = finished[0]
    loaded = tf.saved_model.load(str(folder / 'export' / '1'))
    serve = loaded.signatures['serving_default']
    images = serve(labels=tf.range(10))['images']
    assert images.shape == (10, 8, 8, 1)
    latents = tf.tile(tf.random.normal([1, 4]), [10, 1])
    of_latents = loaded.signatures['from_latent']
    # One latent, one image, whatever stands beside it.
    alone, beside = (
        of_latents(labels=tf.zeros([n], tf.int32), latents=latents[:n]) for n in (1, 9)
    )
    np.testing.assert_allclose(beside['images'], tf.tile(alone['images'], [9, 1, 1, 1]), atol=1e-5)
    statement = tiny_run.statement(folder)
    assert statement['class_names'] == list('0123456789')
    assert len(statement['generator_sha256']) == 64
    assert checksums.differences(folder / 'export' / '1', versions.CHECKSUMS) == []
    reader = tf.train.load_checkpoint(str(folder / 'checkpoints' / 'step_000008' / 'variables'))
    averages = [
        reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith('gan/ema_generator/') and '.OPTIMIZER_SLOT' not in name
    ]
    exported = tf.train.load_checkpoint(str(folder / 'export/1/variables/variables'))
    variables = [
        exported.get_tensor(name)
        for name in exported.get_variable_to_shape_map()
        if name.endswith('VARIABLE_VALUE')
    ]
    assert len(variables) > 5
    for variable in variables:
        assert any(np.array_equal(variable, average) for average in averages)


def test_the_evaluation_stays_apart(finished):
    folder = finished[0]
    metrics = json.loads((folder / 'nonprivate' / 'metrics.json').read_text())
    assert 'not covered' in metrics['note']
    assert (metrics['steps'], metrics['gen2real_cnn']['num_generated']) == (8, 100)
    assert 'gen2real' not in (folder / 'report.html').read_text()
    assert not [name for name in tiny_run.statement(folder) if 'accuracy' in name]


def _varint(value):
    """An integer as it stands in a protocol buffer, e.g. a constant of a graph."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _traces(bits, value):
    orders = [value.to_bytes(bits // 8, order) for order in ('little', 'big')]
    signed = value - 2**bits if value >= 2 ** (bits - 1) else value
    texts = [str(value), str(signed), f'{value:x}', f'{value:X}']
    return [*orders, _varint(value), *(text.encode() for text in texts)]


def _holding(folder, drawn):
    return [
        path.name
        for path in folder.rglob('*')
        if path.is_file()
        and any(trace in path.read_bytes() for secret in drawn for trace in _traces(*secret))
    ]


def test_no_file_holds_a_key(finished, tmp_path):
    folder, drawn, _ = finished
    # Of the noise, of the optimizer's own, of the sampler; short ones would be found by chance.
    assert sorted({bits for bits, _ in drawn}) == [64, 128]
    assert sum(bits == 64 for bits, _ in drawn) >= 2
    assert _holding(folder, drawn) == []
    # The same search finds a key that somebody saved.
    key = next(value for bits, value in drawn if bits == 64)
    variable = tf.Variable(tf.bitcast(tf.constant(key, tf.uint64), tf.int64))
    tf.train.Checkpoint(variable=variable).write(str(tmp_path / 'leak'))
    graph = tf.Graph()
    with graph.as_default():
        tf.constant([key], tf.uint64)
    (tmp_path / 'graph.pb').write_bytes(graph.as_graph_def().SerializeToString())
    (tmp_path / 'leak.json').write_text(json.dumps({'key': key}))
    assert set(_holding(tmp_path, drawn)) == {'leak.data-00000-of-00001', 'graph.pb', 'leak.json'}


def test_a_finished_run_trains_nothing_more(finished, tmp_path, capsys):
    folder = tmp_path / 'again'
    shutil.copytree(finished[0], folder)
    names = ('ledger.jsonl', 'config.flags', 'checkpoints/step_000008/variables.index')
    before = {name: (folder / name).read_bytes() for name in names}
    statement = tiny_run.statement(folder)
    tiny_run.run(folder, '--resume', '--noevaluate')
    assert 'nothing is left to train' in capsys.readouterr().out
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert tiny_run.statement(folder) == statement
    assert _tags(folder) == _TAGS


@pytest.mark.parametrize('damage', ['shorter', 'altered', 'missing'])
def test_a_ledger_that_does_not_fit_is_refused(finished, damage, tmp_path):
    folder = tmp_path / 'damaged'
    shutil.copytree(finished[0], folder)
    path = folder / 'ledger.jsonl'
    lines = path.read_text().splitlines(keepends=True)
    if damage == 'shorter':
        path.write_text(''.join(lines[:-1]))
    elif damage == 'altered':
        lines[1] = lines[1].replace('"count": 2', '"count": 1')
        path.write_text(''.join(lines))
    else:
        path.unlink()
    with pytest.raises(config.ConfigError, match='ledger.jsonl'):
        tiny_run.run(folder, '--resume', '--noevaluate')
    assert sum(tiny_run.reserved(folder) if path.exists() else []) in (0, 6, 7)


# A run that stops half way.


def test_a_run_goes_on_after_a_crash_within_its_budget(tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    at_save, at_restore, continued = {}, [], []
    save, restore = checkpoints.RunCheckpoints.save, checkpoints.RunCheckpoints.restore_latest

    def weights(gan):
        return [*gan.generator.get_weights(), *gan.discriminator.get_weights()]

    def spy_save(self, step, position):
        at_save[step] = weights(self._checkpoint.gan)
        return save(self, step, position)

    def spy_restore(self):
        position = restore(self)
        at_restore.append((position, weights(self._checkpoint.gan)))
        return position

    monkeypatch.setattr(checkpoints.RunCheckpoints, 'save', spy_save)
    monkeypatch.setattr(checkpoints.RunCheckpoints, 'restore_latest', spy_restore)
    with monkeypatch.context() as patch, pytest.raises(tiny_run.PowerCut):
        patch.setattr(samples.SampleGrid, 'on_due', tiny_run.cut)  # At step 5.
        tiny_run.run(folder, '--noevaluate')
    assert tiny_run.reserved(folder) == [2, 2, 2]
    assert set(at_save) == {3}

    on_begin = monitoring.BeforeEachStep.on_train_batch_begin
    monkeypatch.setattr(
        monitoring.BeforeEachStep,
        'on_train_batch_begin',
        lambda self, batch, logs=None: (
            continued.append(int(self.model.private_steps.numpy())),
            on_begin(self, batch, logs),
        ),
    )
    tiny_run.run(folder, '--resume', '--noevaluate')
    # Steps 4 to 6 were charged already when they were lost, so only two are left of eight.
    assert continued == [3, 4]
    assert tiny_run.reserved(folder) == [2, 2, 2, 2]
    position, restored = at_restore[-1]
    assert position['bytes'] < (folder / 'ledger.jsonl').stat().st_size
    for saved, found in zip(at_save[3], restored):
        np.testing.assert_array_equal(saved, found)
    statement = tiny_run.statement(folder)
    assert (statement['steps'], statement['applied_steps']) == (8, 5)
    assert 0.99 * tiny_run.TARGET < statement['epsilon'] <= tiny_run.TARGET
    # Two event files; what was shown never fell below what had been charged.
    entries = monitoring.read_scalars(str(folder / 'logs'))
    assert entries[-1]['step'] == 5
    assert entries[-1]['dp/epsilon'] >= statement['epsilon'] - 1e-6


# Without privacy, and on two devices.


def test_features_that_are_not_of_the_record_alone_stop_before_anything_is_written(
    tmp_path, monkeypatch
):
    def never(*_):
        raise alone.NotAlone('its place decides')

    monkeypatch.setattr(alone, 'choose_rows', never)
    state = tmp_path / 'state'
    with pytest.raises(config.ConfigError, match='its place decides. Train on another device'):
        tiny_run.run(tmp_path / 'run', warm_start_share=0.5, state_dir=state)
    assert not (tmp_path / 'run').exists()
    assert not state.exists() or not list(state.iterdir())


def test_everything_is_tried_in_the_arithmetic_of_the_run(tmp_path, monkeypatch):
    """What is tried with a GPU's rounded products says nothing of whole ones."""
    seen = []

    def load(_):
        seen.append('records')
        raise config.ConfigError('Looked at enough.')

    monkeypatch.setattr(layer_norms, 'switch_off_tensor_float_32', lambda: seen.append('off'))
    with pytest.raises(config.ConfigError, match='enough'):
        tiny_run.run(tmp_path / 'run', sources=runner.Sources(load=load))
    assert seen == ['off', 'records']


def test_the_report_names_the_classes_that_its_picture_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, '_MAX_COLUMNS', 3)
    folder = tmp_path / 'run'
    tiny_run.run(folder, '--noprivate', '--noevaluate', '--noexport', train_steps=1)
    page = (folder / 'report.html').read_text()
    assert 'One class per column, the first 3 of 10: 0, 1, 2<' in page


def test_a_run_without_privacy_says_so_everywhere(tmp_path, capsys):
    folder = tmp_path / 'run'
    # With a state folder of its own: other runs on these records would be named, with their ε.
    alone = {'state_dir': tmp_path / 'state'}
    tiny_run.run(folder, '--noprivate', '--noevaluate', train_steps=2, **alone)
    statement = tiny_run.statement(folder)
    assert statement['private'] is False
    assert not [name for name in statement if 'epsilon' in name or 'delta' in name]
    assert 'without clipping and noise' in statement['mechanism']
    assert 'NOT PRIVATE' in (folder / 'report.html').read_text()
    private_tags = _TAGS - {'dp/epsilon', 'dp/buffer_norm'}
    assert _tags(folder) == {tag.replace('dp/', 'nonprivate/') for tag in private_tags}
    assert 'NOT PRIVATE' in (folder / 'NOT_PRIVATE.txt').read_text()
    entries = monitoring.read_scalars(str(folder / 'logs'), is_private=False)
    assert entries[-1]['nonprivate/fake_loss'] > 0
    printed = capsys.readouterr()
    assert printed.out.count('NOT PRIVATE') == 2 and 'NOT PRIVATE' in printed.err
    assert 'ε' not in printed.out + printed.err
    assert '--noprivate' in (folder / 'config.flags').read_text()


@pytest.mark.acceptance
def test_a_mirrored_run_on_two_logical_devices(tmp_path):
    flags = tiny_run.flags('run', '--strategy=mirrored', '--logical_devices=2', '--noevaluate')
    flags = [flag for flag in flags if not flag.startswith(('--target_eps', '--train_steps'))]
    flags.append('--train_steps=3')
    (tmp_path / 'tiny.flags').write_text('\n'.join(flags))
    arguments = ['--flagfile=tiny.flags', '--noise_multiplier=2']
    finished = processes.run_module('launch', *arguments, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert 'Traceback' not in finished.stderr
    steps = re.compile(r'checkpoints/step_.*|samples/.*|nonprivate/.*')
    wanted = {name for name in _FILES if not steps.match(name)}
    assert {name for name in _files(tmp_path / 'run') if not steps.match(name)} == wanted
    statement = tiny_run.statement(tmp_path / 'run')
    assert (statement['steps'], statement['noise_multiplier']) == (3, 2.0)
    shown = rounding.up(statement['epsilon'])
    assert f'ε of the whole run = {shown} (PLD) at δ = 1e-05, for one image with its label. ' in (
        finished.stdout
    )
    assert 'δ times the number of images is 0.017.' in finished.stdout
    assert f'Spent ε = {shown} at δ = 1e-05 (PLD) in 3 steps' in finished.stdout
