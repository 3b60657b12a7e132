"""Which person an image belongs to, which ones a person keeps, and that no person is parted."""

import collections

import numpy as np
import pytest
import tensorflow as tf
from helpers.data_sets import error_of
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_efsgd.data import load, parts, persons, split
from tf_efsgd.data.persons import Rule
from tf_efsgd.data.records import DataError
from tf_efsgd.data.sources import folder, tfds


def _image(seed):
    return np.random.default_rng(seed).integers(0, 256, (4, 4, 1), dtype=np.uint8)


def _write(root, files):
    """Writes images, {path below root: seed}; returns the data set's name."""
    for path, seed in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(tf.io.encode_png(_image(seed)).numpy())
    return f'folder:{root}'


def _seeds(part, files):
    """The seeds of the images of a part."""
    of_pixels = {_image(seed).tobytes(): seed for seed in files.values()}
    return {of_pixels[image.tobytes()] for image in part.images}


# Rules.


@pytest.mark.parametrize(
    ('text', 'kind', 'value'),
    [
        ('folder', 'folder', ''),
        ('csv:a b/persons.csv', 'csv', 'a b/persons.csv'),
        ('name:^([^_]+)_', 'name', '^([^_]+)_'),
        ('name:(a:b)', 'name', '(a:b)'),
        ('feature:identity/Identity_No', 'feature', 'identity/Identity_No'),
        ('identity', 'feature', 'identity'),
    ],
)
def test_rules(text, kind, value):
    rule = Rule.parse(text)
    assert (rule.kind, rule.value) == (kind, value)
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('', '--person must be folder'),
        ('csv:', '--person must be folder'),
        ('column:patient', '--person must be folder'),
        ('name:(', 'regular expression'),
        ('name:^[^_]+_', 'needs a group'),
    ],
)
def test_what_is_no_rule_is_refused(text, said):
    with pytest.raises(DataError, match=said) as caught:
        Rule.parse(text)
    assert 'Received: ' in str(caught.value)


# Which images are kept.


def _kept(rows, images_per_person):
    """Rows are (person, digest, label)."""
    names, digests, labels = zip(*rows)
    words = np.array([[d, 7] for d in digests], np.uint64)
    mask = persons.first_images(np.array(names, object), words, np.array(labels), images_per_person)
    return [row for row, kept in zip(rows, mask) if kept]


def test_a_person_keeps_the_images_with_the_smallest_hashes():
    rows = [('b', 9, 0), ('a', 2, 1), ('b', 1, 0), ('a', 8, 0), ('a', 5, 0), ('b', 3, 2)]
    assert _kept(rows, 2) == [('a', 2, 1), ('b', 1, 0), ('a', 5, 0), ('b', 3, 2)]
    assert _kept(rows, 1) == [('a', 2, 1), ('b', 1, 0)]
    assert _kept(rows, 3) == rows
    # Of one picture under two labels the smaller label is kept, wherever it stands.
    assert _kept([('a', 4, 2), ('a', 4, 1)], 1) == [('a', 4, 1)]


_ROWS = st.lists(
    st.tuples(st.sampled_from('abc'), st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=20
)


@settings(deadline=None, max_examples=200)
@given(rows=_ROWS, others=_ROWS, images_per_person=st.integers(1, 4), seed=st.integers(0, 9))
def test_another_person_and_the_order_have_no_part_in_it(rows, others, images_per_person, seed):
    alone = collections.Counter(_kept(rows, images_per_person))
    assert max(collections.Counter(row[0] for row in alone.elements()).values()) <= (
        images_per_person
    )
    crowd = [*rows, *(('another', *rest) for _, *rest in others)]
    crowd = [crowd[i] for i in np.random.default_rng(seed).permutation(len(crowd))]
    kept = [row for row in _kept(crowd, images_per_person) if row[0] != 'another']
    assert collections.Counter(kept) == alone


# Folders.


def _many(count=40, images=4):
    """Persons p0.. with images in two classes, by the folder and by the name of the file."""
    return {
        f'{"ab"[i % 2]}/p{n}/p{n}_{i}.png': 1000 * n + i
        for n in range(count)
        for i in range(images)
    }


def test_each_way_to_say_whose_an_image_is_gives_the_same_records(tmp_path):
    nested = _many()
    flat = {f'{path[0]}/{path.split("/")[2]}': seed for path, seed in nested.items()}
    by_folder = _write(tmp_path / 'nested', nested)
    by_name = _write(tmp_path / 'flat', flat)
    rows = [f'{path},{path.split("/")[1].split("_")[0]}\n' for path in flat]
    table = tmp_path / 'flat' / 'persons.csv'
    rows = [row.replace(',', ',"x, y",') for row in ['file,person\n', *rows]]
    table.write_text(''.join(rows).replace('"x, y"', ' note ', 1), encoding='utf-8-sig')
    loaded = [
        load.load(dataset, person=rule, images_per_person=2)
        for dataset, rule in (
            (by_folder, 'folder'),
            (by_name, 'name:^([^_]+)_'),
            (by_name, 'csv:persons.csv'),
            (by_name, f'csv:{table}'),
        )
    ]
    for other in loaded[1:]:
        assert _seeds(other.train, flat) == _seeds(loaded[0].train, flat)
        assert _seeds(other.test, flat) == _seeds(loaded[0].test, flat)
    first = loaded[0]
    assert len(first.train) + len(first.test) == 40 * 2
    of_train = {seed // 1000 for seed in _seeds(first.train, flat)}
    of_test = {seed // 1000 for seed in _seeds(first.test, flat)}
    assert not of_train & of_test and len(of_train | of_test) == 40
    # By the person's name alone, in both classes.
    digests = split.digests_of_persons(f'p{n}' for n in range(40))
    assert of_test == set(np.flatnonzero(split.is_tested_on(digests)).tolist())
    assert of_test
    assert (first.images_per_person, first.persons) == (2, len(of_train))
    assert first.declared_size == len(first.train) == 2 * len(of_train)
    assert first.read_off == ('channels', 'image_size', 'dataset_size', 'dataset_persons')
    declared = load.load(
        by_folder, person='folder', images_per_person=2, **{**first.found, 'dataset_persons': 35}
    )
    assert (declared.read_off, declared.persons) == ((), 35)


def test_a_person_whose_name_is_written_in_two_forms_is_one_person(tmp_path):
    one, two = 'Jos\N{LATIN SMALL LETTER E WITH ACUTE}', 'Jose\N{COMBINING ACUTE ACCENT}'
    files = {f'a/{one}/1_{one}.png': 1, f'a/{one}/2_{one}.png': 2, f'b/{two}/3_{two}.png': 3}
    files |= {f'{"ab"[n % 2]}/p{n}/{n}_p{n}.png': 10 + n for n in range(30)}
    dataset = _write(tmp_path, files)
    rows = [f'{path},{path.split("/")[1]}' for path in files]
    table = tmp_path / 'persons.csv'
    swapped = [row.replace(one, two) for row in rows[:2]] + rows[2:]
    table.write_text('\n'.join(['file,person', *swapped]), encoding='utf-8')
    for rule in ('folder', r'name:^\d+_(.+)\.png', f'csv:{table}'):
        loaded = load.load(dataset, person=rule, images_per_person=2)
        kept = [seed for part in (loaded.train, loaded.test) for seed in _seeds(part, files)]
        assert len(kept) == 2 + 30 and len({1, 2, 3} & set(kept)) == 2, rule


def test_one_person_more_or_less_moves_nobody_else(tmp_path):
    files = _many()
    declared = {'images_per_person': 3, 'dataset_size': 100, 'dataset_persons': 33}
    how = {'person': 'folder', 'classes': ('a', 'b'), 'channels': 1, **declared}
    for limit in (None, 50):
        before = load.load(_write(tmp_path, files), limit_records=limit, **how)
        more = {**files, **{f'a/new/{i}.png': 10**6 + i for i in range(9)}}
        after = load.load(_write(tmp_path, more), limit_records=limit, **how)
        for one, other in ((before.train, after.train), (before.test, after.test)):
            others = {seed for seed in _seeds(other, more) if seed < 10**6}
            assert _seeds(one, files) == others and others
        assert len(after.train) + len(after.test) - len(before.train) - len(before.test) in (0, 3)
        assert after.persons == before.persons == (33 if limit is None else 17)
        for path in more.keys() - files.keys():
            (tmp_path / path).unlink()


def test_a_limit_keeps_persons_whole(tmp_path):
    files = _many()
    loaded = load.load(
        _write(tmp_path, files), person='folder', images_per_person=4, limit_records=70
    )
    counts = collections.Counter(seed // 1000 for seed in _seeds(loaded.train, files))
    assert set(counts.values()) == {4} and 5 < len(counts) < 30
    assert loaded.declared_size == 70
    assert loaded.persons == -(
        -loaded.found['dataset_persons'] * 70 // loaded.found['dataset_size']
    )


def test_a_person_in_both_parts_is_trained_on_and_not_tested_on(tmp_path):
    files = {f'train/a/p{n}/{i}.png': 10 * n + i for n in range(3) for i in range(2)}
    more = {f'test/a/p{n}/{i}.png': 1000 + 10 * n + i for n in range(5) for i in range(2)}
    how = {'person': 'folder', 'images_per_person': 1}
    alone = load.load(_write(tmp_path / 'one', files), **how)
    loaded = load.load(_write(tmp_path / 'two', {**files, **more}), **how)
    everything = {**files, **more}
    assert _seeds(loaded.test, everything) <= {1030, 1031, 1040, 1041}
    assert len(loaded.test) == 2
    # What is trained on does not depend on what is tested on.
    assert len(loaded.train) == 3
    by_hash = {min((*split.digest(_image(10 * n + i)).tolist(), 10 * n + i) for i in range(2))[-1]
               for n in range(3)}  # fmt: skip
    assert _seeds(loaded.train, everything) == by_hash
    assert _seeds(alone.train, files) <= by_hash


def test_folders_within_a_person_s_are_the_person_s(tmp_path):
    files = {'a/p/1.png': 1, 'a/p/visit 2/2.png': 2, 'a/p/visit 2/left/3.png': 3, 'a/q/4.png': 4}
    _write(tmp_path / 'test', files)
    _write(tmp_path / 'train', files)
    wanted = parts.Wanted(rule=Rule('folder', ''))
    part = folder.read(f'folder:{tmp_path}', tmp_path, wanted).train
    assert part.persons.tolist() == ['p', 'p', 'p', 'q']


# Images without a person.


def test_an_image_without_a_person_is_named(tmp_path):
    _write(tmp_path, {'a/p/p_1.png': 1, 'a/2.png': 2, 'a/_3.png': 3})
    dataset = f'folder:{tmp_path}'
    loose = str(tmp_path / 'a' / '2.png')
    error_of([loose, '--person=folder'], dataset, person='folder', images_per_person=1)
    rule = {'person': 'name:^([^_]*)_', 'images_per_person': 1}
    error_of([loose, '--person=name'], dataset, **rule)
    (tmp_path / 'a' / '2.png').unlink()
    error_of([str(tmp_path / 'a' / '_3.png')], dataset, **rule)


def test_faults_of_a_table_are_named(tmp_path):
    dataset = _write(tmp_path, {'a/1.png': 1, 'a/2.png': 2})
    how = {'person': 'csv:who.csv', 'images_per_person': 1}
    table = tmp_path / 'who.csv'
    error_of([str(table), 'cannot be read', 'relative to the folder'], dataset, **how)
    for text, words in (
        ('', ['columns file and person', 'nothing']),
        ('file;person\na/1.png;x\n', ['separated by commas', 'file;person']),
        ('file,person\na/1.png,x\n', [str(tmp_path / 'a' / '2.png'), 'no person']),
        ('file,person\na/1.png,x\na/2.png,\n', [str(tmp_path / 'a' / '2.png'), 'no person']),
        ('file,person\na/1.png,x\na/2.png\n', [str(tmp_path / 'a' / '2.png'), 'no person']),
        ('file,person\na/1.png,Ada\na/2.png,x\n./a/1.png,Bob\n', ['a/1.png', 'two', 'line 4']),
        ('file,person\na/1.png,"Ada\n', ['not a CSV file']),
    ):
        table.write_text(text)
        said = error_of(words, dataset, **how)
        assert 'Ada' not in said and 'Bob' not in said
    table.write_bytes(b'file,person\na/1.png,\xff\n')
    error_of(['not a CSV file in UTF-8'], dataset, **how)
    table.write_text('file,person\na/1.png,z\na/2.png, z \na/gone.png,b\n./a/1.png,z\n')
    loaded = load.load(dataset, **how)
    assert loaded.persons == 1


@pytest.mark.parametrize('name', ['digits', 'mnist_10k'])
def test_sets_without_persons_are_refused(name, tmp_path):
    how = {'person': 'folder', 'images_per_person': 1}
    error_of([name, 'which person an image belongs to'], name, **how)
    error_of(['which person an image belongs to'], f'idx:{tmp_path}', **how)


def test_a_rule_of_another_kind_of_set_is_refused(tmp_path, own_tfds):
    dataset = _write(tmp_path / 'set', {'a/1.png': 1})
    error_of(['TFDS data sets', 'folder, csv'], dataset, person='identity', images_per_person=1)
    with pytest.raises(DataError, match='is for folder: data sets'):
        own_tfds[0]({'train': range(9)}, person='folder', images_per_person=1)


@pytest.mark.parametrize(
    'how', [{'person': 'folder'}, {'images_per_person': 2}, {'person': 'x', 'images_per_person': 0}]
)
def test_persons_and_how_many_images_they_keep_go_together(how):
    error_of(['images_per_person'], 'digits', **how)


# TensorFlow Datasets.


@pytest.mark.parametrize('rule', ['identity', 'feature:identity/number', 'id'])
def test_a_feature_says_whose_a_record_is(own_tfds, rule):
    load, images = own_tfds
    images_per_person = 1 if rule == 'id' else 3
    loaded = load({'train': range(160)}, person=rule, images_per_person=images_per_person)
    number = {image[:, 1:6].tobytes(): i for i, image in enumerate(images)}
    of_train, of_test = (
        [number[image.tobytes()] // (1 if rule == 'id' else 4) for image in part.images]
        for part in (loaded.train, loaded.test)
    )
    assert not set(of_train) & set(of_test) and of_test
    assert set(collections.Counter(of_train + of_test).values()) == {images_per_person}
    digests = split.digests_of_persons(str(i) for i in range(160))
    tested = set(np.flatnonzero(split.is_tested_on(digests)).tolist())
    assert set(of_test) == tested & set(range(160 if rule == 'id' else 40))
    assert loaded.persons == len(set(of_train))


def test_a_text_feature_names_persons_and_an_empty_one_is_refused(own_tfds):
    load, _ = own_tfds
    how = {'person': 'name', 'images_per_person': 2}
    assert load({'train': range(8, 88), 'test': range(80, 96)}, **how).persons == 20
    with pytest.raises(DataError, match='record [0-9] of own_set, split train, has no|no person'):
        load({'train': range(9)}, **how)


@pytest.mark.parametrize(
    ('rule', 'said'),
    [
        ('patient', "no feature 'patient'.*identity/number"),
        ('identity/name', "no feature 'identity/name'"),
        ('id/number', "no feature 'id/number'"),
        ('weight', 'one whole number or text'),
        ('image', 'one whole number or text'),
    ],
)
def test_what_cannot_be_a_person_is_named(own_tfds, rule, said):
    with pytest.raises(DataError, match=said) as caught:
        own_tfds[0]({'train': range(9)}, person=rule, images_per_person=2)
    assert '\n' not in str(caught.value)


def test_the_identities_of_celeb_a_are_found(test_data):
    prepared = test_data / 'tfds_drawn'
    if not (prepared / 'celeb_a').is_dir():
        pytest.skip(f'no celeb_a in {test_data}')
    builder = tfds._builder('celeb_a', prepared)
    for rule in ('identity', 'identity/Identity_No'):
        partial, get_person = persons.find_feature(
            Rule.parse(rule), builder.info.features, 'celeb_a'
        )
        assert partial == {'identity': {'Identity_No': True}}
    partial = tfds._both({'image': True, 'attributes': {'Male': True}}, partial)
    stream = tfds._stream(
        builder, 'test', partial, lambda record: record['attributes']['Male'], get_person
    )
    found = [person for _, _, person in stream.take(50).as_numpy_iterator()]
    assert all(person.isdigit() for person in found) and len(set(found)) > 30
