"""What the optimizer keeps: its buffer is saved and comes back, its keys never are."""

import copy

import numpy as np
import pytest
import tensorflow as tf
from helpers.pairs import pairs
from helpers.small_step import (
    ADAM,
    BATCH_SIZE,
    SGD,
    X,
    Y,
    buffer_of,
    drop_in_step,
    fitted_classifier,
    flat,
    make,
    make_variables,
    make_weights,
    random_gradients,
    release,
)

from tf_efsgd.privacy import optimizer as optimizers


def test_the_buffer_is_in_the_checkpoint_and_comes_back(tmp_path):
    variables, optimizer = make_variables(), make(noise_multiplier=0.5)
    gradients = random_gradients(np.random.default_rng(4), 3)
    optimizer.apply_gradients(zip(release(optimizer, variables, gradients), variables))
    saved = tf.train.Checkpoint(optimizer=optimizer, variables=variables)
    path = saved.write(str(tmp_path / 'checkpoint'))
    names = [name for name, _ in tf.train.list_variables(path)]
    assert sum('error_feedback' in name for name in names) == len(variables)

    again, other = make_variables(), make(noise_multiplier=0.5)
    tf.train.Checkpoint(optimizer=other, variables=again).read(path)
    released = [
        flat(release(o, v, gradients, step=1)) for o, v in ((optimizer, variables), (other, again))
    ]
    np.testing.assert_array_equal(*released)
    np.testing.assert_array_equal(
        flat(buffer_of(optimizer, variables)), flat(buffer_of(other, again))
    )


def test_keys_are_nowhere_in_what_is_saved(tmp_path):
    weights, optimizer = make_weights(), make(noise_multiplier=0.5)
    drop_in_step(optimizer, weights)
    key = int(optimizer._own_randomness._key)
    checkpoint = tf.train.Checkpoint(optimizer=optimizer, weights=weights)
    path = checkpoint.write(str(tmp_path / 'checkpoint'))
    assert not [name for name, _ in tf.train.list_variables(path) if 'secret' in name]
    for file in tmp_path.iterdir():
        assert key.to_bytes(8, 'little', signed=True) not in file.read_bytes()
    assert not [v.name for v in optimizer.variables() if 'secret' in v.name]
    for value in optimizer.get_weights():
        assert not np.any(np.equal(value, key))
    assert str(key) not in str(optimizer.get_config())
    with pytest.raises(TypeError, match='never pickled or copied'):
        copy.deepcopy(optimizer)


def test_every_optimizer_has_its_own_key():
    one = make(noise_multiplier=1.3)
    others = [make(noise_multiplier=1.3), SGD.from_config(one.get_config())]
    moved = []
    for optimizer in (one, *others):
        weights = make_weights()
        drop_in_step(optimizer, weights)
        drop_in_step(optimizer, weights)
        moved.append(flat(weights))
    assert len({m.tobytes() for m in moved}) == 3


@pytest.mark.parametrize('cls', [SGD, ADAM])
def test_config_round_trip(cls):
    optimizer = make(
        cls, noise_multiplier=1.3, num_microbatches=6, feedback_l2_norm_clip=0.4, learning_rate=0.3
    )
    again = cls.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.mechanism == optimizer.mechanism
    assert again.expected_batch_size == BATCH_SIZE
    assert isinstance(again, optimizers.PrivateOptimizer)


def _saved_and_loaded(optimizer, path):
    model = fitted_classifier(optimizer)
    model.save(path)
    name = type(optimizer).__name__
    return model, tf.keras.models.load_model(path, custom_objects={name: type(optimizer)})


@pytest.mark.parametrize('error_feedback', ['private', 'none', 'hidden'])
@pytest.mark.parametrize('cls', [SGD, ADAM])
def test_an_hdf5_file_keeps_the_state_of_the_optimizer(tmp_path, cls, error_feedback):
    optimizer = make(cls, noise_multiplier=0.5, error_feedback=error_feedback, learning_rate=0.1)
    _, again = _saved_and_loaded(optimizer, tmp_path / 'model.h5')
    assert isinstance(again.optimizer, cls)
    assert int(again.optimizer.iterations) == int(optimizer.iterations) == 6
    for one, other in pairs(optimizer.get_weights(), again.optimizer.get_weights()):
        np.testing.assert_array_equal(one, other)
    if error_feedback == 'private':
        assert np.all(flat(buffer_of(again.optimizer, again.trainable_variables)) != 0)


@pytest.mark.parametrize('name', ['saved_model', 'model.keras', 'model.h5'])
def test_a_saved_model_trains_again_and_no_step_is_forgotten(tmp_path, name):
    # Of its own legacy optimizers, too, Keras keeps nothing but the settings in the first two.
    model, again = _saved_and_loaded(make(noise_multiplier=0.5), tmp_path / name)
    assert again.optimizer.counted_parameters == model.optimizer.counted_parameters
    np.testing.assert_array_equal(flat(again.get_weights()), flat(model.get_weights()))
    assert again.optimizer.mechanism == model.optimizer.mechanism
    again.fit(X, Y, batch_size=3, verbose=0)
    assert int(again.optimizer.iterations) == 6 + 2
