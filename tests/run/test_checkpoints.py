"""A run continues from its checkpoint as if nothing had happened, and no key is in it."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_gan
from helpers.pairs import pairs

from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.privacy import noise
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer
from tf_efsgd.run import checkpoints
from tf_efsgd.training.gan import EFSGDGan

_POSITION = {'bytes': 12, 'sha256': 'abc'}


def _make_gan(weights_seed=5, reconstruction='head', error_feedback='private', **settings):
    # Without noise, so that what follows depends on the state alone.
    optimizer = tiny_gan.private(
        ErrorFeedbackDPKerasAdamOptimizer,
        noise_multiplier=0.0,
        error_feedback=error_feedback,
        learning_rate=0.01,
    )
    return tiny_gan.make(optimizer, reconstruction, weights_seed=weights_seed, **settings)


def _fit(gan, first, last):
    draws = np.random.default_rng(1)
    images = draws.integers(0, 256, (10, 4, 8, 8, 1)).astype(np.uint8)[first:last]
    labels = draws.integers(0, 2, (10, 4)).astype(np.int32)[first:last]
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).repeat()
    gan.fit(dataset, steps_per_epoch=last - first, verbose=0)


def _state(gan):
    """Every array that a run consists of, by a name."""
    state = {}
    for name in ('generator', 'ema_generator', 'discriminator'):
        for i, value in enumerate(getattr(gan, name).get_weights()):
            state[f'{name}/{i}'] = value
    learned = {
        'generator': gan.generator.trainable_variables,
        'discriminator': gan.private_variables,
    }
    for name, variables in learned.items():
        optimizer = getattr(gan, f'{name}_optimizer')
        state[f'{name}_optimizer/iterations'] = optimizer.iterations.numpy()
        # By name: restored slots come in another order.
        for slot in optimizer.get_slot_names():
            for i, variable in enumerate(variables):
                state[f'{name}_optimizer/{slot}/{i}'] = optimizer.get_slot(variable, slot).numpy()
    for name in (
        'private_steps',
        'generator_steps',
        'steps_since_generator',
        'discriminator_steps',
        'fake_accuracy',
    ):
        state[name] = getattr(gan, name).numpy()
    return state


def _differing(one, other):
    assert set(one) == set(other)
    return [name for name in one if not np.array_equal(one[name], other[name])]


def _far_apart(one, other):
    """More than rounding: TensorFlow's threads add up in the order in which they end."""
    assert set(one) == set(other)
    return [n for n in one if not np.allclose(one[n], other[n], rtol=1e-3, atol=1e-4)]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A run that was saved after five steps and then went on, with its two states."""
    folder = tmp_path_factory.mktemp('checkpoints')
    key = noise.NoiseKey(0xFEDCBA9876543210)
    gan = _make_gan(noise=key)
    _fit(gan, 0, 5)
    checkpoints.RunCheckpoints(str(folder), gan).save(5, _POSITION)
    at_save = _state(gan)
    _fit(gan, 5, 8)
    return folder, at_save, _state(gan)


def test_the_state_has_moved_before_and_after_the_save(saved):
    _, at_save, at_end = saved
    assert at_save['generator_steps'] >= 1 and at_save['steps_since_generator'] >= 1
    unmoved = set(at_save) - set(_differing(at_save, at_end))
    assert unmoved == {'discriminator_steps'}


def test_every_variable_comes_back_exactly(saved):
    folder, at_save, _ = saved
    gan = _make_gan(weights_seed=6)
    _fit(gan, 0, 4)  # Makes all slots, with other values.
    slots = [name for name in at_save if 'error_feedback' in name or '/v/' in name]
    assert len(slots) == 6 + 6 + 12
    assert set(slots) <= set(_differing(_state(gan), at_save))
    position = checkpoints.RunCheckpoints(str(folder), gan).restore_latest()
    assert position == _POSITION
    assert _differing(_state(gan), at_save) == []


def test_a_new_process_goes_on_as_the_old_one_did(saved):
    folder, _, at_end = saved
    gan = _make_gan(weights_seed=6)  # Its slots do not exist yet when the checkpoint is read.
    checkpoints.RunCheckpoints(str(folder), gan).restore_latest()
    _fit(gan, 5, 8)
    assert _far_apart(_state(gan), at_end) == []
    # Without what was saved it would be elsewhere.
    assert len(_far_apart(saved[1], at_end)) > 20


def test_a_run_goes_on_with_the_generator_in_its_private_steps(tmp_path):
    def make_gan(weights_seed, steps_drawn):
        # Records are decoded with random inputs, which are read off the key step by step.
        key = noise.NoiseKey(7)
        for _ in range(steps_drawn):
            key.next()
        return _make_gan(weights_seed, 'generator', 'hidden', noise=key, run_eagerly=True)

    gan = make_gan(5, 0)
    _fit(gan, 0, 3)
    checkpoints.RunCheckpoints(tmp_path, gan).save(3, _POSITION)
    buffers = [gan.discriminator_optimizer.get_slot(v, 'error_feedback')
               for v in gan.generator.trainable_variables]  # fmt: skip
    assert all(tf.reduce_any(buffer != 0) for buffer in buffers)
    _fit(gan, 3, 5)
    again = make_gan(6, 3)
    checkpoints.RunCheckpoints(tmp_path, again).restore_latest()
    _fit(again, 3, 5)
    assert _differing(_state(again), _state(gan)) == []


def test_the_last_of_several_is_restored_and_two_are_kept(tmp_path):
    gan = _make_gan()
    saver = checkpoints.RunCheckpoints(str(tmp_path), gan)
    for step in (3, 6, 10):
        gan.private_steps.assign(step)
        saver.save(step, {'bytes': step, 'sha256': ''})
    gan.private_steps.assign(0)
    again = checkpoints.RunCheckpoints(str(tmp_path), gan)
    assert again.restore_latest()['bytes'] == 10
    assert int(gan.private_steps) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ['step_000006', 'step_000010']


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    gan = _make_gan()
    before = _state(gan)
    assert checkpoints.RunCheckpoints(str(tmp_path), gan).restore_latest() is None
    assert _differing(_state(gan), before) == []


def test_a_checkpoint_of_another_model_is_refused(saved):
    tf.keras.utils.set_random_seed(1)
    gan = EFSGDGan(
        build_generator((16, 16, 1), 2, latent_dim=3, width=8),
        build_discriminator((16, 16, 1), 2, width=4),
        draw_inputs,
    )
    for restore in (
        checkpoints.RunCheckpoints(str(saved[0]), gan).restore_latest,
        lambda: checkpoints.restore_generator(saved[0], gan.ema_generator),
    ):
        with pytest.raises(checkpoints.CheckpointError, match='other networks.*another version'):
            restore()


def test_no_checkpoint_names_or_holds_a_key(saved):
    value = 0xFEDCBA9876543210
    searched = [value.to_bytes(8, order) for order in ('little', 'big')] + [str(value).encode()]
    files = [path for path in saved[0].rglob('*') if path.is_file()]
    assert len(files) == 3
    for path in files:
        content = path.read_bytes()
        assert not any(text in content for text in searched)
    reader = tf.train.load_checkpoint(str(saved[0] / 'step_000005' / 'variables'))
    names = [name.lower() for name in reader.get_variable_to_shape_map()]
    assert any('error_feedback' in name for name in names)
    assert not [name for name in names if 'secret' in name or 'key' in name or 'random' in name]


# Crashes and bad disks.


@pytest.fixture
def twice(tmp_path):
    """A model with two checkpoints, of steps 3 and 6, and its saver."""
    gan = _make_gan()
    saver = checkpoints.RunCheckpoints(tmp_path, gan)
    for step in (3, 6):
        gan.private_steps.assign(step)
        saver.save(step, {'bytes': step, 'sha256': ''})
    return tmp_path, gan, saver


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    'damage',
    [
        lambda path: _flip(path / 'variables.data-00000-of-00001'),
        lambda path: (path / 'variables.index').write_bytes(b''),
        lambda path: (path / 'variables.index').unlink(),
        lambda path: (path / 'manifest.json').unlink(),
        lambda path: (path / 'manifest.json').write_text('{"step": 6'),
        lambda path: (path / 'manifest.json').write_text('{"step": 6, "sha256": {}}'),
        lambda path: (path / 'manifest.json').write_text('[]'),
        lambda path: _change(path / 'manifest.json', ledger='x'),
        lambda path: _change(path / 'manifest.json', ledger={'bytes': '3', 'sha256': ''}),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(twice, damage, capsys):
    folder, gan, saver = twice
    damage(folder / 'step_000006')
    gan.private_steps.assign(0)
    assert saver.restore_latest()['bytes'] == 3
    assert int(gan.private_steps) == 3
    assert str(folder / 'step_000006') in capsys.readouterr().out
    # It does not stand in the way of the same step, trained again.
    saver.save(6, {'bytes': 7, 'sha256': ''})
    assert saver.restore_latest()['bytes'] == 7
    assert (folder / 'damaged_step_000006').is_dir()


def test_when_all_are_damaged_it_says_so_and_restores_nothing(twice):
    folder, gan, saver = twice
    for step in (3, 6):
        _flip(folder / f'step_{step:06d}' / 'variables.data-00000-of-00001')
    gan.private_steps.assign(41)
    # The second time, too: a start that trained anew would pay for all steps once more.
    for _ in range(2):
        with pytest.raises(checkpoints.CheckpointError, match='Every checkpoint'):
            saver.restore_latest()
    assert int(gan.private_steps) == 41
    assert sorted(path.name for path in folder.iterdir()) == ['step_000003', 'step_000006']
    # As an earlier version left them.
    for step in (3, 6):
        (folder / f'step_{step:06d}').rename(folder / f'damaged_step_{step:06d}')
    with pytest.raises(checkpoints.CheckpointError, match='Every checkpoint'):
        saver.restore_latest()


@pytest.mark.parametrize('at', ['fsync', 'rename'])
def test_a_save_that_fails_leaves_nothing_and_keeps_the_others(twice, at, monkeypatch):
    folder, gan, saver = twice

    def fail(*_):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, at, fail)
        with pytest.raises(OSError, match='No space left'):
            saver.save(9, {'bytes': 9, 'sha256': ''})
    assert sorted(path.name for path in folder.iterdir()) == ['step_000003', 'step_000006']
    gan.private_steps.assign(0)
    assert saver.restore_latest()['bytes'] == 6


def test_tensorflows_word_for_a_full_disk_is_pythons(twice, monkeypatch):
    folder, _, saver = twice

    def fail(*_):
        raise tf.errors.ResourceExhaustedError(None, None, '/x; No space left on device')

    monkeypatch.setattr(saver._checkpoint, 'write', fail)
    with pytest.raises(OSError, match='No space left.*step_000009'):
        saver.save(9, {'bytes': 9, 'sha256': ''})
    assert sorted(path.name for path in folder.iterdir()) == ['step_000003', 'step_000006']


def test_what_a_kill_left_half_written_is_removed(twice):
    folder, _, saver = twice
    (folder / '.step_000009.tmp-abc').mkdir()
    (folder / '.step_000009.tmp-abc' / 'variables.index').write_bytes(b'half')
    assert saver.restore_latest()['bytes'] == 6
    assert sorted(path.name for path in folder.iterdir()) == ['step_000003', 'step_000006']


@pytest.mark.parametrize('holds_private_state', [True, False])
def test_private_state_is_marked(tmp_path, holds_private_state):
    saver = checkpoints.RunCheckpoints(
        tmp_path, _make_gan(), holds_private_state=holds_private_state
    )
    path = pathlib.Path(saver.save(3, _POSITION))
    assert (path / 'PRIVATE.txt').exists() == holds_private_state
    manifest = json.loads((path / 'manifest.json').read_text())
    assert manifest['holds_private_state'] is holds_private_state
    assert (manifest['step'], manifest['ledger']) == (3, _POSITION)
    assert saver.restore_latest() == _POSITION


def test_a_run_whose_folder_now_looks_like_a_pattern_is_restored(tmp_path):
    """Also what its optimizers make later: they read their slots when they make them."""
    saved, read = _make_gan(), _make_gan(weights_seed=6)
    _fit(saved, 0, 2)
    weights = saved.ema_generator.get_weights()
    checkpoints.RunCheckpoints(tmp_path / 'run', saved).save(2, _POSITION)
    folder = (tmp_path / 'run').rename(tmp_path / 'run [1]')
    assert checkpoints.RunCheckpoints(folder, read).restore_latest() == _POSITION
    _fit(saved, 2, 4)
    _fit(read, 2, 4)
    assert _differing(_state(read), _state(saved)) == []
    generator = _make_gan(weights_seed=7).generator
    assert checkpoints.restore_generator(folder, generator) == (2, _POSITION)
    for one, other in pairs(generator.get_weights(), weights):
        np.testing.assert_array_equal(one, other)
