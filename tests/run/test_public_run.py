"""Runs whose release has features of a public network, and whose discriminator is heads on it."""

import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import read_page, tiny_run

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


def test_several_devices_are_refused_or_one_is_taken(photos, tmp_path, strategy, capsys):
    settings = config.from_flagfile('--target_epsilon=5\n--discriminator=public_heads')
    one = devices.for_settings(strategy, settings)
    assert one.num_replicas_in_sync == 1 and 'on one device' in capsys.readouterr().out
    asked = config.from_flagfile(settings.to_flags() + '--strategy=mirrored')
    with pytest.raises(config.ConfigError, match='--strategy=mirrored with 2 devices'):
        devices.for_settings(strategy, asked)
    pixels = config.from_flagfile(asked.to_flags() + '--discriminator=pixels')
    assert devices.for_settings(strategy, pixels) is strategy
