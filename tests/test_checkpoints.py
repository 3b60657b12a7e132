"""A run goes on from its checkpoint as if nothing had happened, and no key is in it."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd import checkpoints
from tf_efsgd.models.discriminator import build_discriminator
from tf_efsgd.models.gan import EFSGDGan
from tf_efsgd.models.generator import build_generator, draw_inputs
from tf_efsgd.models.losses import NonSaturatingLosses
from tf_efsgd.privacy import noise
from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer

_POSITION = {'bytes': 12, 'sha256': 'abc'}


def _make_gan(weights_seed=5, **settings):
    tf.keras.utils.set_random_seed(weights_seed)
    gan = EFSGDGan(
        build_generator((8, 8, 1), 2, latent_dim=3, width=8),
        build_discriminator((8, 8, 1), 2, width=4),
        draw_inputs,
        seed=3,
    )
    # Without noise, so that what follows depends on the state alone.
    optimizer = ErrorFeedbackDPKerasAdamOptimizer(
        l2_norm_clip=0.3, noise_multiplier=0.0, expected_batch_size=4, learning_rate=0.01
    )
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(0.01),
        discriminator_optimizer=optimizer,
        losses=NonSaturatingLosses(),
        discriminator_steps=2,
        adaptive_discriminator_steps=False,
        **settings,
    )
    return gan


def _fit(gan, first, last):
    draws = np.random.default_rng(1)
    images = draws.integers(0, 256, (10, 4, 8, 8, 1)).astype(np.uint8)[first:last]
    labels = draws.integers(0, 2, (10, 4)).astype(np.int32)[first:last]
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    gan.fit(dataset, steps_per_epoch=last - first, verbose=0)


def _state(gan):
    """Every array that a run consists of, by a name."""
    state = {}
    for name in ('generator', 'ema_generator', 'discriminator'):
        for i, value in enumerate(getattr(gan, name).get_weights()):
            state[f'{name}/{i}'] = value
    for name in ('generator', 'discriminator'):
        optimizer = getattr(gan, f'{name}_optimizer')
        state[f'{name}_optimizer/iterations'] = optimizer.iterations.numpy()
        # By name: restored slots come in another order.
        for slot in optimizer.get_slot_names():
            for i, variable in enumerate(getattr(gan, name).trainable_variables):
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
    assert _differing(_state(gan), at_end) == []


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
    kept = sorted(path.name for path in tmp_path.glob('*.index'))
    assert kept == ['ckpt-10.index', 'ckpt-6.index']


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
    with pytest.raises((AssertionError, ValueError)):
        checkpoints.RunCheckpoints(str(saved[0]), gan).restore_latest()


def test_no_checkpoint_names_or_holds_a_key(saved):
    value = 0xFEDCBA9876543210
    searched = [value.to_bytes(8, order) for order in ('little', 'big')] + [str(value).encode()]
    files = [path for path in saved[0].iterdir() if path.is_file()]
    assert len(files) == 3
    for path in files:
        content = path.read_bytes()
        assert not any(text in content for text in searched)
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(saved[0])))
    names = [name.lower() for name in reader.get_variable_to_shape_map()]
    assert any('error_feedback' in name for name in names)
    assert not [name for name in names if 'secret' in name or 'key' in name or 'random' in name]
