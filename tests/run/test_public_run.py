"""Runs whose release has features of a public network, and whose discriminator is heads on it."""

import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import read_page, tiny_run
from tensorflow.core.protobuf import saved_model_pb2

from tf_efsgd import config
from tf_efsgd.privacy.features import public
from tf_efsgd.run import devices, runner

_SETTINGS = {
    'target_epsilon': 5,
    'warm_start_share': 0.4,
    'warm_start_steps': 3,
    'warm_start_weight': 1,
    'expected_batch_size': 12,
    'train_steps': 4,
    'latent_dim': 4,
    'generator_width': 8,
    'log_steps': 2,
    'checkpoint_steps': 2,
    'public_features': 'efficientnet_lite0',
    'discriminator': 'public_heads',
    'discriminator_steps': 1,
}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Two classes of 40 small colour images."""
    root = tmp_path_factory.mktemp('photos')
    draws = np.random.default_rng(3)
    for label, name in enumerate(('day', 'night')):
        (root / name).mkdir()
        for number in range(40):
            image = np.clip(draws.normal(190 - 120 * label, 30, [16, 16, 3]), 0, 255)
            png = tf.io.encode_png(image.astype(np.uint8)).numpy()
            (root / name / f'{number}.png').write_bytes(png)
    return root


def _run(photos, folder, *more, **changes):
    settings = {**_SETTINGS, 'run_dir': folder, 'state_dir': folder.parent / 'state', **changes}
    lines = [f'--{k}={v}' for k, v in settings.items()]
    lines += [f'--dataset=folder:{photos}', '--noevaluate', '--strategy=one_device', *more]
    runner.run(config.from_flagfile('\n'.join([*lines, '--noadaptive_discriminator_steps'])))


@pytest.fixture(scope='module')
def stopped(photos, tmp_path_factory):
    """A run that a power cut ended after two of its four steps; not to be changed."""
    base = tmp_path_factory.mktemp('stopped')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('tf_efsgd.training.callbacks.Checkpoint.on_due', tiny_run.cut)
        with pytest.raises(tiny_run.PowerCut):
            _run(photos, base / 'run')
    return base


@pytest.fixture(scope='module')
def finished(photos, stopped, tmp_path_factory):
    """The same run, continued to its end."""
    folder = tiny_run.copy(stopped, tmp_path_factory.mktemp('public'))
    _run(photos, folder, '--resume')
    return folder


@pytest.mark.acceptance
def test_a_run_is_continued_in_another_precision(photos, stopped, tmp_path):
    """Checkpoints hold float32 in any case, and what is exported computes in it anywhere."""
    folder = tiny_run.copy(stopped, tmp_path)
    before = (folder / 'config.flags').read_text()
    assert '--mixed_precision=none\n' in before
    _run(photos, folder, '--resume', mixed_precision='bfloat16')
    # The next start computes in it, too, when nobody says otherwise.
    after = before.replace('--mixed_precision=none', '--mixed_precision=bfloat16')
    assert (folder / 'config.flags').read_text() == after
    statement = tiny_run.statement(folder)
    assert statement['steps'] == 4 and statement['epsilon'] <= 5
    exported = saved_model_pb2.SavedModel()
    exported.ParseFromString((folder / 'export/1/saved_model.pb').read_bytes())
    # What ops could take stands beside the graph, and is no part of it.
    graph = str(exported.meta_graphs[0].graph_def)
    assert 'DT_FLOAT' in graph and 'DT_BFLOAT16' not in graph


def test_the_statement_and_the_report_say_what_was_used(finished):
    statement = tiny_run.statement(finished)
    assert statement['public_images'] == (
        'features of a network that learned from ImageNet (efficientnet_lite0)'
    )
    assert statement['steps'] == 4 and statement['epsilon'] <= 5
    text = read_page.text((finished / 'report.html').read_text())
    assert 'Public images used beside the records (†)' in text and 'ImageNet' in text


def test_the_release_is_of_these_features(finished):
    entries = [json.loads(line) for line in (finished / 'ledger.jsonl').open()]
    [release] = [e for e in entries if e['kind'] == 'warm_start']
    assert release['version'] >> 48 == public.VERSION
    sums = np.load(finished / 'warm_start.npy')
    assert sums.dtype == np.int64 and len(sums) == 2


def test_what_the_heads_saw_of_records_is_gone(finished):
    state = finished.parent / 'state'
    assert list(state.glob('*.json')) and (finished / 'warm_start.npy').exists()
    assert not list(state.rglob('*.features.npy'))
    assert not [p for p in finished.rglob('*') if 'features' in p.name]


def test_no_weight_of_the_network_is_in_a_checkpoint(finished):
    index = sorted((finished / 'checkpoints').rglob('*.index'))[-1]
    prefix = str(index.with_suffix(''))
    names = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    assert not [name for name in names if 'depthwise' in name or 'efficientnet' in name]


def test_a_stopped_run_continues(photos, stopped, finished):
    assert not list((stopped / 'state').glob('*.features.npy'))
    assert tiny_run.reserved(stopped / 'run') == [2]
    assert tiny_run.reserved(finished) == [2, 2]
    # A release of pixels in its place is refused.
    with pytest.raises(config.ConfigError, match='--public_features was efficientnet_lite0'):
        _run(photos, finished, '--resume', public_features='none', discriminator='pixels')


def test_heads_without_a_network_are_refused_before_anything_is_written(photos, tmp_path):
    with pytest.raises(config.ConfigError, match='public_heads needs the network'):
        _run(photos, tmp_path / 'run', public_features='none')
    assert not (tmp_path / 'run').exists()


def test_a_network_that_is_not_there_is_refused(photos, tmp_path):
    with pytest.raises(config.ConfigError, match='A public network is'):
        _run(photos, tmp_path / 'run', public_features='no_such_network')
    assert not (tmp_path / 'run').exists()


@pytest.mark.acceptance
def test_two_replicas_and_then_one_write_the_ledger_of_one_device(
    photos, finished, strategy, tmp_path, monkeypatch
):
    """Nothing in it tells how many there were; and a run continues on another number of them."""
    with monkeypatch.context() as patch:
        patch.setattr(devices, 'make_strategy', lambda _: strategy)
        patch.setattr('tf_efsgd.training.callbacks.Checkpoint.on_due', tiny_run.cut)
        with pytest.raises(tiny_run.PowerCut):
            _run(photos, tmp_path / 'run')
    _run(photos, tmp_path / 'run', '--resume')

    def without_its_own(found):  # Drawn, or made of what was drawn.
        own = ('run_id', 'time', 'released_class_counts')
        return {k: v for k, v in found.items() if k not in own and 'sha256' not in k}

    def ledger(folder):
        return [without_its_own(json.loads(line)) for line in (folder / 'ledger.jsonl').open()]

    def statement(folder):
        return without_its_own(tiny_run.statement(folder))

    assert ledger(tmp_path / 'run') == ledger(finished)
    assert statement(tmp_path / 'run') == statement(finished)
