"""gen2real: learns what can be learned, and never chooses by the real test split."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.toy_images import toy as _toy

from tf_efsgd.data.records import Records
from tf_efsgd.evaluation import classifiers

_NUM_CLASSES = 3


def _relabel(records, labels):
    return dataclasses.replace(records, labels=np.asarray(labels, np.int32))


@pytest.mark.parametrize('policy', ['float32', 'mixed_float16'])
def test_cnn_has_the_layers_of_the_protocol(policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = classifiers.build_cnn((28, 28, 1), 10)
    finally:
        tf.keras.mixed_precision.set_global_policy('float32')
    # By hand: conv 9*1*32 + 32, conv 9*32*64 + 64, dense 7*7*64*128 + 128, dense 128*10 + 10.
    assert model.count_params() == 320 + 18_496 + 401_536 + 1_290
    kinds = ' '.join(type(layer).__name__ for layer in model.layers)
    assert kinds == 'Conv2D MaxPooling2D Conv2D MaxPooling2D Flatten Dense Dropout Dense'
    assert model.input_shape == (None, 28, 28, 1)
    logits = model(tf.zeros([2, 28, 28, 1]))
    assert logits.shape == (2, 10)
    assert logits.dtype == tf.float32
    assert model.layers[-1].activation is tf.keras.activations.linear


def test_cnn_weights_follow_the_seed_and_leave_the_global_state_alone():
    def first_kernel(seed):
        return classifiers.build_cnn((8, 8, 1), 3, seed=seed).get_weights()[0]

    tf.random.set_seed(1)
    kernel = first_kernel(0)
    draw_after_build = tf.random.uniform([4]).numpy()
    tf.random.set_seed(2)
    np.testing.assert_array_equal(first_kernel(0), kernel)
    assert not np.array_equal(first_kernel(1), kernel)
    tf.random.set_seed(1)
    np.testing.assert_array_equal(tf.random.uniform([4]), draw_after_build)


def test_separable_classes_are_learned():
    result = classifiers.gen2real(_toy(600, 0), _toy(301, 1), epochs=4, batch_size=32)
    assert result.accuracy > 0.9
    assert result.held_out_accuracy > 0.9
    assert 1 <= result.chosen_epoch <= 4
    assert (result.epochs, result.num_generated, result.num_test) == (4, 600, 301)


def test_shuffled_labels_stay_near_chance():
    generated = _toy(600, 0)
    shuffled = _relabel(generated, np.random.default_rng(7).permutation(generated.labels))
    result = classifiers.gen2real(shuffled, _toy(600, 1), epochs=3, batch_size=32)
    assert result.accuracy < 0.6


def test_pixels_reach_the_network_as_floats_between_minus_one_and_one():
    images = np.array([0, 255, 51], np.uint8).reshape(3, 1, 1, 1)
    records = Records(images, np.array([0, 1, 2], np.int32), 3, ('0', '1', '2'))
    [(pixels, labels)] = classifiers._loader(records)(classifiers._in_order(np.array([2, 0, 1])))
    assert pixels.dtype == tf.float32
    np.testing.assert_allclose(pixels.numpy().ravel(), [-0.6, -1, 1], atol=1e-6)
    np.testing.assert_array_equal(labels, [2, 0, 1])


def test_each_epoch_takes_every_index_once_in_another_order():
    batches = [b.numpy() for b in classifiers._shuffled(np.arange(100, 110), 4, 2, seed=3)]
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4, 2]
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    assert sorted(first) == sorted(second) == list(range(100, 110))
    assert not np.array_equal(first, second)


def test_epoch_choice_never_looks_at_the_test_split():
    generated, test = _toy(400, 0, noise=200, signal=50), _toy(200, 1, noise=200, signal=50)
    honest = classifiers.gen2real(generated, test, epochs=4, batch_size=32)
    # On a test split whose labels are all wrong the worst, i.e. first, epoch would win.
    wrong = _relabel(test, (test.labels + 1) % _NUM_CLASSES)
    misled = classifiers.gen2real(generated, wrong, epochs=4, batch_size=32)
    assert honest.chosen_epoch > 1, 'the toy set must need more than one epoch for this test'
    assert misled.chosen_epoch == honest.chosen_epoch
    assert misled.held_out_accuracy == honest.held_out_accuracy
    assert misled.accuracy < 0.3 < 0.6 < honest.accuracy


def test_earliest_best_epoch_is_kept_with_its_weights():
    chooser = classifiers._EpochChooser()
    chooser.set_model(tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False)]))
    chooser.model.build([None, 1])
    for epoch, accuracy in enumerate([0.3, 0.7, 0.7, 0.6]):
        chooser.model.set_weights([np.full([1, 1], epoch)])
        chooser.on_epoch_end(epoch, {'val_accuracy': accuracy, 'accuracy': 1.0})
    assert (chooser.epoch, chooser.accuracy) == (2, 0.7)
    assert chooser.weights[0].item() == 1


def test_held_out_images_are_not_trained_on(monkeypatch):
    trained_on, chosen_on = [], []

    def spy(function, seen):
        def wrapped(indices, *args, **kwargs):
            seen.append(indices)
            return function(indices, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(classifiers, '_shuffled', spy(classifiers._shuffled, trained_on))
    monkeypatch.setattr(classifiers, '_in_order', spy(classifiers._in_order, chosen_on))
    classifiers.gen2real(_toy(50, 0), _toy(9, 1), epochs=1)
    assert len(chosen_on[0]) == 5  # a tenth
    assert sorted([*trained_on[0], *chosen_on[0]]) == list(range(50))


def test_same_seed_same_result_whatever_the_global_seed():
    def run(global_seed, seed):
        tf.random.set_seed(global_seed)
        generated, test = (_toy(n, n, noise=200, signal=30) for n in (200, 997))
        return classifiers.gen2real(generated, test, epochs=1, batch_size=16, seed=seed)

    assert run(1, seed=0) == run(2, seed=0)
    assert run(1, seed=0) != run(1, seed=5)


def test_progress_is_shown_on_request_only(capfd):
    generated, test = _toy(40, 0), _toy(9, 1)
    classifiers.gen2real(generated, test, epochs=1)
    assert capfd.readouterr().err.count('gen2real') == 0
    classifiers.gen2real(generated, test, epochs=1, progress='gen2real')
    assert 'gen2real: 100%' in capfd.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'held_out': 0}, 'held_out=0 of 40'),
        ({'held_out': 40}, 'held_out=40 of 40'),
        ({'epochs': 0}, 'epochs=0'),
        ({'batch_size': 0}, 'batch_size=0'),
        ({'test': _toy(0, 1)}, 'at least 1 test image'),
        ({'test': _toy(9, 1, num_classes=2)}, 'test .* with 2 classes'),
        ({'generated': _toy(1, 0)}, 'of 1 images'),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifiers.gen2real(**{'generated': _toy(40, 0), 'test': _toy(9, 1), **arguments})


def test_images_too_small_for_two_poolings_are_refused():
    with pytest.raises(ValueError, match=r'image_shape=\(3, 8, 1\)'):
        classifiers.build_cnn((3, 8, 1), 2)


def test_mlp_has_the_layers_of_the_protocol():
    model = classifiers.build_mlp((28, 28, 1), 10)
    assert model.count_params() == 784 * 256 + 256 + 256 * 10 + 10
    logits = model(tf.zeros([2, 28, 28, 1]))
    assert (logits.shape, logits.dtype) == ((2, 10), tf.float32)
    first = model.get_weights()[0]
    np.testing.assert_array_equal(
        classifiers.build_mlp((28, 28, 1), 10, seed=0).get_weights()[0], first
    )
    assert not np.array_equal(
        classifiers.build_mlp((28, 28, 1), 10, seed=1).get_weights()[0], first
    )


def test_mlp_learns_what_is_separable():
    result = classifiers.gen2real(
        _toy(600, 0), _toy(301, 1), build=classifiers.build_mlp, epochs=3, batch_size=32
    )
    assert result.accuracy > 0.9


def test_accuracy_is_the_share_of_right_labels():
    def always_one(pixels):
        return tf.one_hot(tf.ones(tf.shape(pixels)[0], tf.int32), _NUM_CLASSES)

    inputs = tf.keras.Input([8, 8, 1])
    model = tf.keras.Model(inputs, tf.keras.layers.Lambda(always_one)(inputs))
    records = _relabel(_toy(1030, 0), np.arange(1030) % 10 // 9)  # more than a batch
    assert classifiers.accuracy(model, records) == 0.1


def test_spread_is_the_sample_standard_deviation():
    assert classifiers.summarize([0.5, 0.7]) == {
        'accuracy': pytest.approx(0.6),
        'spread': pytest.approx(0.1 * 2**0.5),
        'accuracies': [0.5, 0.7],
    }
    assert classifiers.summarize([0.5])['spread'] is None


def test_accuracy_by_class():
    records = _toy(90, 4)
    always_one = tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer(records.image_shape),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(
                3, kernel_initializer='zeros', bias_initializer=lambda *_, **__: [0.0, 1.0, 0.0]
            ),
        ]
    )
    only_two = dataclasses.replace(
        records,
        images=records.images[records.labels < 2],
        labels=records.labels[records.labels < 2],
    )

    assert classifiers.accuracy_by_class(always_one, records) == [0.0, 1.0, 0.0]
    assert classifiers.accuracy_by_class(always_one, only_two) == [0.0, 1.0, None]


def test_a_mapped_file_is_not_copied(tmp_path):
    """A classifier learns from images where they are: of 200,000 a copy would not fit."""
    records = _toy(60, 5)
    mapped = np.lib.format.open_memmap(tmp_path / 'i.npy', 'w+', np.uint8, records.images.shape)
    mapped[:] = records.images
    asked = []

    class Watched(np.memmap):
        def __getitem__(self, index):
            asked.append(len(index) if isinstance(index, np.ndarray) else None)
            return np.asarray(super().__getitem__(index))

    watched = dataclasses.replace(records, images=mapped.view(Watched))
    found = classifiers.train(watched, epochs=1, batch_size=16)
    plain = classifiers.train(records, epochs=1, batch_size=16)

    assert asked and max(asked) <= 54
    for one, other in zip(found.model.get_weights(), plain.model.get_weights()):
        np.testing.assert_array_equal(one, other)
