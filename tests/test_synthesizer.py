"""fit, sample, save and load, on arrays: the same run underneath, and errors of ours."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_export, tiny_run

import tf_efsgd
from tf_efsgd import ConfigError, Synthesizer
from tf_efsgd import synthesizer as synthesizers
from tf_efsgd.data import arrays
from tf_efsgd.data.records import DataError
from tf_efsgd.run import arrays as run_arrays
from tf_efsgd.run import private_steps

_TINY = {
    name.removeprefix('no'): (False if value is None else value)
    for name, value in tiny_run.SETTINGS.items()
    if name not in ('dataset', 'target_epsilon')
}
_TINY |= {'noise_injection': True, 'strategy': 'one_device', 'evaluate': False}
# 700 records, the batch as large a share of them as of the tiny run's.
_TINY |= {'expected_batch_size': 64, 'warm_start_share': 0.3, 'warm_start_steps': 3}


def _records(count=700, shape=(8, 8)):
    """Images of two shades, with labels 3 and 11 by their shade."""
    generator = np.random.default_rng(7)
    labels = generator.choice([3, 11], count)
    images = generator.integers(0, 60, [count, *shape])
    return (images + np.where(labels == 11, 150, 0)[:, None, None]).astype(np.uint8), labels


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    base = tmp_path_factory.mktemp('synthesizer')
    synthesizer = Synthesizer(
        target_epsilon=1, run_dir=base / 'run', state_dir=base / 'state', **_TINY
    )
    images, labels = _records()
    assert synthesizer.fit(images, labels) is synthesizer
    return base, synthesizer


def test_samples_come_back_as_the_records_were_given(fitted):
    _, synthesizer = fitted
    images, labels = synthesizer.sample(300)
    assert images.shape == (300, 8, 8) and images.dtype == np.uint8
    assert labels.shape == (300,) and labels.dtype.kind == 'i' and set(labels) == {3, 11}
    again, same = synthesizer.sample(300, seed=5), synthesizer.sample(300, seed=5)
    np.testing.assert_array_equal(again[0], same[0])
    np.testing.assert_array_equal(again[1], same[1])
    assert (images != again[0]).any()


def test_it_is_a_run_with_a_ledger_a_statement_and_a_report(fitted):
    base, synthesizer = fitted
    assert synthesizer.run_dir == base / 'run'
    assert tiny_run.kinds(base / 'run')[0] == 'plan'
    assert 0 < synthesizer.epsilon <= 1
    statement = synthesizer.statement
    assert statement['dataset'] == 'arrays' and statement['class_names'] == ['3', '11']
    read_off = [line for line in statement['not_covered'] if 'read off the records once' in line]
    assert read_off and 'classes, channels, image size, dataset size' in read_off[0]
    assert 'may be shared' in synthesizer.report().read_text()
    assert len(statement['released_class_counts']) == 2


def test_a_colleague_samples_without_the_records(fitted):
    base, synthesizer = fitted
    synthesizer.save(base / 'saved')
    with pytest.raises(ConfigError, match='must not exist yet'):
        synthesizer.save(base / 'saved')
    for folder in (base / 'saved', base / 'run'):
        loaded = Synthesizer.load(folder)
        assert loaded.statement == synthesizer.statement
        assert loaded.epsilon == synthesizer.epsilon
        assert loaded.sample(3)[1].dtype.kind == 'i'
    loaded = Synthesizer.load(base / 'saved')
    images, labels = loaded.sample(50, seed=5)
    expected = synthesizer.sample(50, seed=5)
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])
    assert labels.dtype.kind == 'i'
    with pytest.raises(ConfigError, match='loaded from an export alone'):
        loaded.report()
    from tf_efsgd.run import verify

    assert verify.verify(base / 'saved')['faults'] == []


def test_images_are_saved_as_the_command_does(fitted, tmp_path):
    made = fitted[1].save_images(tmp_path / 'out', count=30, format='npz', balance='even')
    assert made['class_counts'] == [15, 15]
    with np.load(tmp_path / 'out' / 'images.npz') as data:
        assert data['images'].shape == (30, 8, 8, 1)
        assert list(data['class_names']) == ['3', '11']


def test_an_interrupted_fit_knows_its_folder_and_how_to_continue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(private_steps, 'restore', interrupt)
    synthesizer = Synthesizer(target_epsilon=1, run_dir='run', state_dir='state', **_TINY)
    with pytest.raises(KeyboardInterrupt) as stopped:
        synthesizer.fit(*_records())
    assert synthesizer.run_dir == tmp_path / 'run'
    said = stopped.value.how_to_continue
    how = f"Synthesizer(run_dir='{tmp_path}/run', resume=True).fit(the same arrays)"
    assert said == f'Continue with: {how}'


def test_a_fit_that_fails_leaves_nothing_of_an_earlier_one(fitted, tmp_path, monkeypatch):
    """Otherwise images of the earlier run would go with the page of the later."""
    base, _ = fitted
    synthesizer = Synthesizer.load(base / 'run')
    synthesizer._settings = {
        **_TINY,
        'target_epsilon': 1,
        'run_dir': base / 'run',
        'state_dir': base / 'state',
    }
    images, labels = _records()
    with pytest.raises(ConfigError):
        synthesizer.fit(images, labels)  # The folder is taken: nothing has changed.
    assert synthesizer.run_dir == base / 'run' and len(synthesizer.sample(3)[0]) == 3

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(private_steps, 'restore', interrupt)
    synthesizer._settings |= {'run_dir': tmp_path / 'run', 'state_dir': tmp_path / 'state'}
    with pytest.raises(KeyboardInterrupt):
        synthesizer.fit(images, labels)
    assert synthesizer.run_dir == tmp_path / 'run'
    with pytest.raises(ConfigError, match='call fit'):
        synthesizer.sample(3)


def _resume(base, images, labels, **changes):
    settings = {'run_dir': base / 'run', 'state_dir': base / 'state', 'resume': True}
    return Synthesizer(**{**settings, **changes}).fit(images, labels)


def test_a_resumed_run_knows_its_records_in_another_order_and_no_others(fitted, capsys):
    base, synthesizer = fitted
    images, labels = _records()
    order = np.random.default_rng(3).permutation(len(images))
    resumed = _resume(base, images[order], labels[order])
    assert 'The budget is spent' in capsys.readouterr().out
    assert resumed.epsilon == synthesizer.epsilon
    changed = images.copy()
    changed[0] = 255 - changed[0]
    for others in (changed, images[:-1]):
        with pytest.raises(ConfigError, match='(?i)records|data'):
            _resume(base, others, labels[: len(others)])
    with pytest.raises(ConfigError, match='target_epsilon'):
        _resume(base, images, labels, target_epsilon=2)


def test_another_run_on_the_same_records_is_counted(fitted, tmp_path, capsys):
    base, _ = fitted
    images, labels = _records()
    settings = {**_TINY, 'state_dir': base / 'state', 'dataset_budget': 1.5}
    with pytest.raises(ConfigError, match='The budget of these records would be passed'):
        Synthesizer(target_epsilon=1, run_dir=tmp_path / 'other', **settings).fit(
            images[::-1], labels[::-1]
        )
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros([4, 8, 8], np.float32), r'in \[0, 1\]: use \(images \* 255\)'),
        (np.full([4, 8, 8], -0.5), r'in \[-1, 1\]: use'),
        (np.full([4, 8, 8], np.nan), 'NaN'),
        (np.full([4, 8, 8], 130.0), r'use images.round\(\).* Received: float64'),
        (np.full([4, 8, 8], 300.0), 'uint8 in .* Received: float64'),
        (np.zeros([4, 8, 8], np.int64), 'use images.astype'),
        (np.zeros([4, 8, 8], bool), 'Received: bool'),
        (np.zeros([4, 3, 8, 8], np.uint8), 'channels come last'),
        (np.zeros([4, 8, 8, 4], np.uint8), 'C 1 .gray. or 3'),
        (np.zeros([4, 64], np.uint8), r'Received: \(4, 64\)'),
        (np.zeros([4, 0, 8], np.uint8), r'Received: \(4, 0, 8'),
        (np.zeros([0, 8, 8], np.uint8), 'at least one image'),
        ([[1, 2]], 'with np.stack. Received: list'),
    ],
)
def test_images_that_cannot_be_used_are_refused_before_anything_is_made(images, message, tmp_path):
    synthesizer = Synthesizer(run_dir=tmp_path / 'run', state_dir=tmp_path / 'state')
    with pytest.raises(ConfigError, match=message):
        synthesizer.fit(images, np.zeros([4], int))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (None, 'Labels are missing'),
        ([0, 1, 2], r'one label for each of the 4 images. Received: labels of shape \(3,\)'),
        ([0.0, 1.0, 1.0, 0.5], 'use labels.astype'),
        ([True, False, True, True], 'integers or names'),
        ([None, 'a', 'b', 'c'], 'integers or names'),
        (['a', 'b', '', 'c'], 'an empty one'),
        (np.zeros([4, 2], int), r'of one-hot labels, labels.argmax\(axis=1\)'),
        (np.zeros([3, 2], int), 'one label for each of the 4 images. Received'),
    ],
)
def test_labels_that_cannot_be_used_are_refused(labels, message, tmp_path):
    synthesizer = Synthesizer(run_dir=tmp_path / 'run', state_dir=tmp_path / 'state')
    with pytest.raises(ConfigError, match=message):
        synthesizer.fit(np.zeros([4, 8, 8], np.uint8), labels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'target_epsilon': -1}, '--target_epsilon must be above 0'),
        ({'no_such_setting': 1}, 'no_such_setting'),
        ({'minutes': 'x'}, 'minutes'),
        ({'export': False}, 'leave export=False out'),
        ({'dataset_budget': 'a\nb'}, 'one line'),
    ],
)
def test_a_wrong_setting_is_found_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        Synthesizer(**settings)


def test_what_does_not_go_together_is_said(tmp_path):
    settings = {'run_dir': tmp_path / 'run', 'state_dir': tmp_path / 'state'}
    images = np.zeros([4, 8, 8], np.uint8)
    with pytest.raises(ConfigError, match='leave labels out'):
        Synthesizer(**settings).fit('digits', [1])
    with pytest.raises(ConfigError, match='images_per_person is for data sets'):
        Synthesizer(images_per_person=2, person='folder', **settings).fit(images, [0] * 4)
    with pytest.raises(ConfigError, match='one of the classes a, b. Received: .c'):
        Synthesizer(classes=['a', 'b'], **settings).fit(images, ['a', 'b', 'c', 'a'])
    with pytest.raises(ConfigError, match='(?i)there is no folder'):
        Synthesizer(**settings).fit(f'folder:{tmp_path}/none')
    for path in (tmp_path / 'none', f'{tmp_path}/none'):  # A path is that of a folder.
        with pytest.raises(ConfigError, match='(?i)there is no folder'):
            Synthesizer(**settings).fit(path)
    with pytest.raises(ConfigError, match="no setting 'train_step'. Do you mean train_steps?"):
        Synthesizer(train_step=3)
    assert not (tmp_path / 'run').exists()


def test_before_fit_there_is_nothing_to_ask_for(tmp_path):
    synthesizer = Synthesizer()
    for ask in (
        lambda: synthesizer.sample(3),
        lambda: synthesizer.epsilon,
        synthesizer.report,
        lambda: synthesizer.save(tmp_path / 'x'),
        lambda: synthesizer.save_images(tmp_path / 'x'),
    ):
        with pytest.raises(ConfigError, match='call fit'):
            ask()
    with pytest.raises(ConfigError, match='There is no folder'):
        Synthesizer.load(tmp_path / 'none')


def test_an_export_of_names_gives_names(tmp_path):
    loaded = Synthesizer.load(tiny_export.make(tmp_path / 'run'))
    images, labels = loaded.sample(8, seed=1)
    assert images.shape == (8, 8, 8, 1)
    assert labels.dtype.kind == 'U' and set(labels) == {'cat', 'röd fisk'}  # 60, -3 and 20.
    assert loaded.run_dir is None
    for count in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match='count'):
            loaded.sample(count)


def test_importing_is_cheap_and_needs_no_tensorflow():
    code = (
        'import sys, tf_efsgd\n'
        'tf_efsgd.Synthesizer, tf_efsgd.ConfigError\n'
        'print(json.dumps(sorted(n for n in sys.modules if n in ("tensorflow", "keras", "scipy"))))'
    )
    shown = subprocess.run(
        [sys.executable, '-c', f'import json\n{code}'], capture_output=True, text=True
    )
    assert json.loads(shown.stdout) == [], shown.stderr
    assert set(tf_efsgd.__all__) >= {'Synthesizer', 'epsilon', 'poisson_batches'}


# The records themselves.


def test_arrays_become_the_records_that_a_folder_would_have():
    gray, labels = _records(200)
    as_colours = np.repeat(gray[..., None], 3, axis=-1)
    ours = arrays.make_dataset(arrays.check_images(gray), labels)
    theirs = arrays.make_dataset(as_colours, labels)
    # Gray stored as RGB is the same record, so other runs on it are found.
    np.testing.assert_array_equal(ours.digests, theirs.digests)
    assert ours.train.class_names == ('3', '11') and ours.train.image_shape == (8, 8, 1)
    assert theirs.train.image_shape == (8, 8, 3)
    assert len(ours.train) + len(ours.test) == 200 and 0 < len(ours.test) < 60
    assert ours.read_off == ('classes', 'channels', 'image_size', 'dataset_size')


def test_a_data_set_is_given_to_fit_alone():
    with pytest.raises(ConfigError, match='Give the data set to fit, e.g. fit'):
        Synthesizer(dataset='folder:photos')


@pytest.mark.parametrize('seed', [1.5, 'a', True, 2**31])
def test_a_seed_is_a_whole_number(tmp_path, seed):
    loaded = Synthesizer.load(tiny_export.make(tmp_path / 'run'))
    with pytest.raises(ConfigError, match='seed'):
        loaded.sample(1, seed=seed)
    with pytest.raises(ConfigError, match='seed'):
        loaded.save_images(tmp_path / 'out', 1, seed=seed)
    loaded.save_images(tmp_path / 'out', 2, seed=np.int64(4))


def test_what_was_loaded_by_a_relative_path_is_found_from_everywhere(tmp_path, monkeypatch):
    tiny_export.make(tmp_path / 'run')
    monkeypatch.chdir(tmp_path)
    loaded = Synthesizer.load('run')
    (tmp_path / 'other').mkdir()
    monkeypatch.chdir(tmp_path / 'other')
    loaded.save('saved')
    loaded.save_images('images', 2)


def test_a_damaged_file_beside_the_export_is_named(tmp_path):
    export = tiny_export.make(tmp_path / 'run')
    Synthesizer.load(export).save(tmp_path / 'saved')
    (tmp_path / 'saved' / 'assets.extra' / 'synthesizer.json').write_text('{')
    with pytest.raises(ConfigError, match='synthesizer.json is damaged'):
        Synthesizer.load(tmp_path / 'saved')


@pytest.mark.parametrize('tf_seed', [None, 7])
def test_the_generators_of_the_caller_are_not_seeded(tf_seed):
    """A run seeds them with a public number; the caller may draw DP noise from them afterwards."""
    tf.random.set_seed(tf_seed)
    before = random.getstate(), np.random.get_state()[1].tolist()
    seen = []
    for _ in range(2):
        with synthesizers._callers_randomness():
            tf.keras.utils.set_random_seed(1)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
        seen.append(float(tf.random.normal([])))
    assert (seen[0] == seen[1]) is (tf_seed is not None)
    tf.random.set_seed(None)


def test_a_size_that_follows_from_arrays_is_said_to_be_read_off_them():
    source = run_arrays.Arrays(np.zeros([4, 9, 9], np.uint8), [0, 1, 0, 1])
    assert source.settings({}) == {'image_size': 8, 'read_off_records': 'image_size'}
    assert source.settings({'image_size': 16}) == {}


def test_integers_in_an_array_of_objects_are_integers():
    labels = arrays.check_labels(np.array([3, np.int32(11)], object), 2)
    assert labels.dtype == np.int64 and labels.tolist() == [3, 11]


def test_the_order_of_arrays_changes_nothing_and_one_record_more_moves_no_other():
    images, labels = _records(200)
    images = images[..., None]
    one = arrays.make_dataset(images, labels)
    order = np.random.default_rng(1).permutation(200)
    other = arrays.make_dataset(images[order], labels[order])
    np.testing.assert_array_equal(one.train.images, other.train.images)
    np.testing.assert_array_equal(one.test.labels, other.test.labels)
    less = arrays.make_dataset(images[1:], labels[1:], classes=['3', '11'])
    kept = {image.tobytes() for image in less.train.images}
    before = {image.tobytes() for image in one.train.images}
    assert kept <= before and len(before - kept) <= 1


def test_declared_facts_are_not_read_off():
    images, labels = _records(200)
    found = arrays.make_dataset(
        images[..., None],
        labels,
        classes=['11', '3', '5'],
        image_size=16,
        channels=3,
        dataset_size=190,
        limit_records=95,
    )
    assert found.read_off == () and found.found == {}
    assert found.train.image_shape == (16, 16, 3) and found.train.num_classes == 3
    assert found.declared_size == 95 and 50 < len(found.train) < 130
    # Labels by the declared order: 11 is bright, and is class 0.
    bright = found.train.images.mean(axis=(1, 2, 3)) > 100
    np.testing.assert_array_equal(found.train.labels, np.where(bright, 0, 1))
    with pytest.raises(DataError, match='one of the classes 3. Received'):
        arrays.make_dataset(images[..., None], labels, classes=['3'])
