"""A data set from an export: what is in it, how it is loaded, continued and verified."""

import csv
import json
import os
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_export

from tf_efsgd.config import ConfigError
from tf_efsgd.export import formats, generated, synthetic_data, versions
from tf_efsgd.run import share, verify

_FOLDERS = ['cat', 'dog_puppy', 'röd fisk']


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'run'
    tiny_export.make(folder)
    return folder


def _generate(run_dir, output, **wanted):
    wanted = {'count': 450, 'seed': 3, **wanted}
    return share.generate(run_dir, output, synthetic_data.Wanted(**wanted), quiet=True)


@pytest.fixture(scope='module')
def made(run_dir, tmp_path_factory):
    """One data set of each format: its folder and what `generate` returns."""
    base = tmp_path_factory.mktemp('made')
    return {
        kind: (base / kind, _generate(run_dir, base / kind, kind=kind, balance='even'))
        for kind in formats.FORMATS
    }


def _rows(folder):
    with open(folder / 'labels.csv', encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def _images_of_png(folder):
    return np.stack(
        [tf.io.decode_png((folder / row['file_name']).read_bytes()) for row in _rows(folder)]
    )


def test_png_has_a_folder_for_each_class_and_a_line_for_each_image(made):
    folder, about = made['png']
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == _FOLDERS
    rows = _rows(folder)
    assert len(rows) == 450 and about['class_counts'] == [150, 150, 150]
    for row in rows:
        label = int(row['label'])
        assert row['class'] == tiny_export.NAMES[label]
        assert row['file_name'].startswith(f'{_FOLDERS[label]}/')
        assert (folder / row['file_name']).is_file()
    assert [row['label'] for row in rows] != sorted(row['label'] for row in rows)
    by_keras = tf.keras.utils.image_dataset_from_directory(folder, image_size=(8, 8))
    assert by_keras.class_names == _FOLDERS


def test_all_formats_hold_the_same_images(made):
    images = _images_of_png(made['png'][0])
    assert images.shape == (450, 8, 8, 1) and images.std() > 1
    with np.load(made['npz'][0] / 'images.npz') as arrays:
        np.testing.assert_array_equal(arrays['images'], images)
        labels = arrays['labels']
        assert tuple(arrays['class_names']) == tiny_export.NAMES
    assert labels.dtype == np.int32 and np.bincount(labels).tolist() == [150] * 3
    features = {
        'image/encoded': tf.io.FixedLenFeature([], tf.string),
        'image/class/label': tf.io.FixedLenFeature([], tf.int64),
        'image/class/text': tf.io.FixedLenFeature([], tf.string),
    }
    shards = sorted(str(path) for path in made['tfrecord'][0].glob('images-*.tfrecord'))
    for i, record in enumerate(tf.data.TFRecordDataset(shards)):
        example = tf.io.parse_single_example(record, features)
        np.testing.assert_array_equal(tf.io.decode_png(example['image/encoded']), images[i])
        assert example['image/class/label'] == labels[i]
        name = tiny_export.NAMES[labels[i]]
        assert example['image/class/text'].numpy().decode() == name


def test_tfds_loads_it_by_name_without_code(made):
    import tensorflow_datasets as tfds

    folder, about = made['tfds']
    assert about['name'] == 'synthetic_folder_pets'
    loaded, info = tfds.load(
        about['name'], data_dir=folder, split='train', with_info=True, as_supervised=True
    )
    assert info.features['label'].names == list(tiny_export.NAMES)
    assert info.splits['train'].num_examples == 450
    drawn = list(loaded.as_numpy_iterator())
    images = _images_of_png(made['png'][0])
    np.testing.assert_array_equal([image for image, _ in drawn], images)
    assert [int(row['label']) for row in _rows(folder)] == [label for _, label in drawn]


def test_shards_are_as_many_as_their_number_says(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, '_SHARD_BYTES', 200 * 64)
    about = _generate(run_dir, tmp_path / 'out', kind='tfds')
    import tensorflow_datasets as tfds

    inside = tmp_path / 'out' / about['name'] / '1.0.0'
    assert len(list(inside.glob('*.tfrecord-*-of-00003'))) == 3
    builder = tfds.builder(about['name'], data_dir=tmp_path / 'out')
    assert builder.info.splits['train'].shard_lengths == [200, 200, 50]
    assert len(list(builder.as_dataset(split='train'))) == 450


@pytest.mark.parametrize('kind', formats.FORMATS)
def test_each_belongs_together_and_says_its_epsilon(kind, made):
    folder, about = made[kind]
    found = verify.verify(folder)
    assert found['faults'] == [] and found['kind'] == 'data set' and found['epsilon'] == 3.1
    assert 'ε = 3.1, δ = 1e-05' in verify.describe(found)
    check = ['sha256sum', '--check', '--quiet', 'SHA256SUMS']
    assert subprocess.run(check, cwd=folder).returncode == 0
    card = (folder / 'README.md').read_text('utf-8')
    assert card.startswith('---\nlicense: other\n') and 'epsilon = 3.1, delta = 1e-05' in card
    page = (folder / 'PRIVACY.html').read_text('utf-8')
    assert 'may be shared' in page and 'data:image/png' in page
    croissant = json.loads((folder / 'croissant.json').read_text('utf-8'))
    assert croissant['name'] == about['name']
    # Croissant 1.0 requires these; what nobody knows is not made up.
    for required in ('@context', '@type', 'conformsTo', 'description', 'creator', 'datePublished'):
        assert croissant[required]
    assert croissant['license'] == {'@type': 'sc:CreativeWork', 'name': 'not chosen yet'}
    assert croissant['url'] == 'README.md' and 'citeAs' not in croissant
    assert '## Before you publish it' in card and 'No licence has been chosen' in card
    first = page[page.index('In short') : page.index('Images of this generator')]
    statement = json.loads((folder / 'privacy_statement.json').read_text('utf-8'))
    assert statement['generator_sha256'] in first and 'Date (UTC)' in first
    assert not [p for p in folder.iterdir() if p.name.startswith('.')]


def test_released_counts_decide_where_there_are_any(run_dir, tmp_path):
    # 60, -3 and 20 of the classes: none of the second, and 4 cannot be split 3 to 1 evenly.
    about = _generate(run_dir, tmp_path / 'out', count=7, kind='npz')
    assert about['balance'] == 'released' and about['class_counts'] == [5, 0, 2]
    assert (
        about['class_counts']
        != _generate(run_dir, tmp_path / 'even', count=7, kind='npz', balance='even')[
            'class_counts'
        ]
    )


def test_the_seed_decides_and_is_drawn_anew_otherwise(run_dir, tmp_path, made):
    _generate(run_dir, tmp_path / 'same', balance='even')
    np.testing.assert_array_equal(_images_of_png(tmp_path / 'same'), _images_of_png(made['png'][0]))
    seeds = {_generate(run_dir, tmp_path / str(i), count=1, seed=None)['seed'] for i in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize('kind', ['png', 'npz', 'tfds'])
def test_an_interrupted_one_is_continued(kind, run_dir, tmp_path, monkeypatch, made):
    monkeypatch.setattr(formats, '_SHARD_BYTES', 200 * 64)
    monkeypatch.setattr(synthetic_data, '_SAVED_EVERY', 0.0)
    output, drawn = tmp_path / 'out', []
    generate = generated.ExportedGenerator.generate

    def interrupted(self, labels, seed):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(seed)
        return generate(self, labels, seed)

    with monkeypatch.context() as patch:
        patch.setattr(generated.ExportedGenerator, 'generate', interrupted)
        with pytest.raises(KeyboardInterrupt):
            _generate(run_dir, output, kind=kind, seed=None, balance='even')
    assert not output.exists()
    with pytest.raises(ConfigError, match='interrupted data set with other settings .*count'):
        _generate(run_dir, output, kind=kind, count=451, seed=None, balance='even')
    again = []

    def counted(self, labels, seed):
        again.append(seed)
        return generate(self, labels, seed)

    monkeypatch.setattr(generated.ExportedGenerator, 'generate', counted)
    about = _generate(run_dir, output, kind=kind, seed=None, balance='even')
    assert again[0] == (drawn[0][0], 2) and about['seed'] == drawn[0][0]
    # The examples of the page are drawn at the end.
    assert len(again) == 2
    assert verify.verify(output)['faults'] == []
    assert sorted(os.listdir(tmp_path)) == ['out']


def test_what_exists_is_left_alone(run_dir, tmp_path):
    (tmp_path / 'out').mkdir()
    with pytest.raises(ConfigError, match='--output must not exist yet'):
        _generate(run_dir, tmp_path / 'out')
    (tmp_path / '.new.unfinished').mkdir()
    (tmp_path / '.new.unfinished' / 'mine').write_text('kept')
    with pytest.raises(ConfigError, match='is in the way'):
        _generate(run_dir, tmp_path / 'new')
    assert (tmp_path / '.new.unfinished' / 'mine').read_text() == 'kept'


@pytest.mark.parametrize(
    ('wanted', 'message'),
    [
        ({'count': 0}, '--count must be at least 1 and at most 100000000. Received: 0'),
        ({'count': 10**15}, '--count must be .* Received: a larger number'),
        ({'seed': -1}, '--seed must be in'),
        ({'seed': 2**31}, '--seed must be in'),
        ({'kind': 'jpg'}, '--format must be one of png, npz, tfrecord, tfds. Received: jpg'),
        ({'balance': 'x'}, '--balance must be one of'),
    ],
)
def test_a_wrong_setting_leaves_nothing(wanted, message, run_dir, tmp_path):
    with pytest.raises(ConfigError, match=message):
        _generate(run_dir, tmp_path / 'out', **wanted)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('output', 'message'),
    [
        ('file/out', 'file is a file'),
        ('n' * 250, 'its name is too long'),
        ('run/export/1/out', 'it would change the exports'),
        ('run/export/2', 'it would change the exports'),
    ],
)
def test_a_data_set_stands_where_it_can_and_changes_no_export(output, message, tmp_path):
    export = tiny_export.make(tmp_path / 'run')
    (tmp_path / 'file').write_text('')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(ConfigError, match=f'--output must be another folder: .*{message}'):
        _generate(export, tmp_path / output)
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('output', ['run/export/1/out', 'run/export/2'])
def test_an_export_with_a_relative_path_is_as_safe(output, tmp_path, monkeypatch):
    tiny_export.make(tmp_path / 'run')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='it would change the exports'):
        _generate('run', output)


def test_what_a_file_manager_left_in_an_export_is_no_fault(tmp_path):
    export = tiny_export.make(tmp_path / 'run')
    for name in ('.DS_Store', 'variables/Thumbs.db', '._saved_model.pb'):
        (export / name).write_bytes(b'x')
    _generate(export, tmp_path / 'out')
    (export / 'more').write_bytes(b'x')
    with pytest.raises(ConfigError, match='more is in no list of checksums'):
        _generate(export, tmp_path / 'again')


@pytest.mark.parametrize('what', ['epsilon', 'weights', 'list'])
def test_nothing_is_made_from_an_export_that_was_changed(what, tmp_path):
    """A smaller epsilon would be handed on with images that look as if they had it."""
    export = tiny_export.make(tmp_path / 'run')
    if what == 'epsilon':
        path = export / versions.STATEMENT
        path.write_text(json.dumps({**json.loads(path.read_text()), 'epsilon': 0.1}))
    elif what == 'weights':
        data = next((export / 'variables').glob('variables.data*'))
        data.write_bytes(data.read_bytes()[:100])
    else:
        (export / versions.CHECKSUMS).unlink()
    with pytest.raises(ConfigError, match='is not as it was exported|SHA256SUMS'):
        _generate(export, tmp_path / 'out')
    assert sorted(os.listdir(tmp_path)) == ['run']


@pytest.mark.parametrize(
    'spoil',
    [
        lambda folder: (folder / 'labels.csv').write_text(''),
        lambda folder: (folder / 'labels.csv').write_text('file_name,label,class\nx,seven,x\n'),
        lambda folder: (folder / 'labels.csv').write_text('file_name,label,class\n0.png\n'),
        lambda folder: _edit(folder / 'generation.json', class_counts=None),
        lambda folder: _edit(folder / 'privacy_statement.json', target_epsilon='10'),
        lambda folder: (folder / 'generation.json').write_text('[' * 100_000),
    ],
)
def test_other_values_than_the_program_writes_end_in_one_line(spoil, run_dir, tmp_path):
    _generate(run_dir, tmp_path / 'out')
    spoil(tmp_path / 'out')
    try:
        found = verify.verify(tmp_path / 'out')
    except ConfigError as error:
        assert 'cannot be verified' in str(error) or 'generation.json' in str(error)
    else:
        assert found['faults']


def _edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_export_of_an_earlier_version_is_enough(tmp_path, monkeypatch):
    export = tiny_export.make(tmp_path / 'run')
    statement = versions.read_statement(export)
    for name in ('class_names', 'generator_sha256', 'released_class_counts', 'proven'):
        del statement[name]
    (export / versions.STATEMENT).write_text(json.dumps(statement))
    load = tf.saved_model.load

    class Old:
        def __init__(self, loaded):
            self.loaded = loaded
            self.signatures = {'serving_default': loaded.signatures['serving_default']}

    monkeypatch.setattr(tf.saved_model, 'load', lambda path: Old(load(path)))
    about = _generate(export, tmp_path / 'out')
    assert about['class_names'] == ['0', '1', '2'] and not about['is_repeatable']
    assert about['class_counts'] == [150, 150, 150]
    assert verify.verify(tmp_path / 'out')['faults'] == []
    with pytest.raises(ConfigError, match='released no class counts'):
        _generate(export, tmp_path / 'other', balance='released')


def test_one_that_is_not_private_says_so_everywhere(tmp_path):
    tiny_export.make(tmp_path / 'run', private=False, epsilon=None)
    _generate(tmp_path / 'run', tmp_path / 'out')
    for name in ('README.md', 'PRIVACY.html', 'NOT_PRIVATE.txt', 'croissant.json'):
        assert 'NOT PRIVATE' in (tmp_path / 'out' / name).read_text('utf-8')
    found = verify.verify(tmp_path / 'out')
    assert found['faults'] == [] and 'NOT PRIVATE: do not share' in verify.describe(found)


def test_class_names_that_are_no_text_are_made_safe(tmp_path):
    names = ('a|b`<c>', os.fsdecode(b'caf\xe9'), 'x\ny')
    tiny_export.make(tmp_path / 'run', names=names)
    # TensorFlow takes brackets for a pattern.
    os.rename(tmp_path / 'run', tmp_path / 'run [2024]')
    _generate(tmp_path / 'run [2024]', tmp_path / 'out', balance='even')
    assert sorted(p.name for p in (tmp_path / 'out').iterdir() if p.is_dir()) == [
        *('a_b__c_', 'caf_', 'x_y')
    ]
    with open(tmp_path / 'out' / 'labels.csv', errors='surrogateescape', newline='') as file:
        assert {row['class'] for row in csv.DictReader(file)} == set(names)
    assert verify.verify(tmp_path / 'out')['faults'] == []
    card = (tmp_path / 'out' / 'README.md').read_text('utf-8')
    assert "| 0 | a/b'(c) | 150 |" in card and '| 2 | x y | 150 |' in card


def _spoil_statement(folder):
    path = folder / 'privacy_statement.json'
    path.write_text(path.read_text().replace('"epsilon": 3.1', '"epsilon": 1.1'))


def _spoil_statement_and_checksums(folder):
    _spoil_statement(folder)
    from tf_efsgd.export import checksums

    checksums.write(folder, 'SHA256SUMS')


def _swap_image(folder):
    rows = _rows(folder)
    os.replace(folder / rows[0]['file_name'], folder / rows[1]['file_name'])


def _add_image(folder):
    (folder / 'cat' / 'real.png').write_bytes(b'')


@pytest.mark.parametrize(
    ('spoil', 'messages'),
    [
        (_spoil_statement, ['privacy_statement.json was changed', 'README.md does not say']),
        (_spoil_statement_and_checksums, ['not the statement of the generator', 'PRIVACY.html']),
        (_swap_image, ['is missing', 'was changed']),
        (_add_image, ['cat/real.png is in no list', 'cat/real.png has no line in labels.csv']),
    ],
)
def test_what_does_not_belong_together_is_found(spoil, messages, run_dir, tmp_path):
    _generate(run_dir, tmp_path / 'out', count=30)
    spoil(tmp_path / 'out')
    found = verify.verify(tmp_path / 'out')
    for message in messages:
        assert any(message in line for line in found['faults']), found['faults']
    assert 'does NOT belong together' in verify.describe(found)


def test_an_export_is_verified(tmp_path):
    export = tiny_export.make(tmp_path / 'run')
    assert verify.verify(export)['kind'] == 'export'
    assert verify.verify(tmp_path / 'run')['faults'] == []
    with open(export / 'variables' / 'variables.index', 'ab') as file:
        file.write(b'x')
    assert verify.verify(export)['faults'] == [
        'variables/variables.index was changed: its checksum differs'
    ]
    for path, message in ((tmp_path, 'no exported generator'), (tmp_path / 'x', 'no folder')):
        with pytest.raises(ConfigError, match=message):
            verify.verify(path)
