"""Which files a folder has, whose class they are, and what is said of the rest."""

import os

import pytest
from helpers.data_sets import error_of, gray_files, gray_image, png, rows_of, write_folder

from tf_efsgd.data import listing, load
from tf_efsgd.data.records import DataError


def _write(root, *paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(gray_image(number)))


def test_numbers_in_names_of_classes_sort_as_numbers(tmp_path):
    names = ['10', '2', '1', 'a10b', 'a9b', '02']
    _write(tmp_path, *(f'{name}/0.png' for name in names))
    found = listing.find(tmp_path)
    assert found.class_names == ('1', '02', '2', '10', 'a9b', 'a10b')
    assert listing.find(tmp_path, names).class_names == tuple(names)


@pytest.mark.parametrize('count', [43, 1000])
def test_many_classes(tmp_path, count):
    for number in range(count):
        (tmp_path / str(number)).mkdir()
    _write(tmp_path, *(f'{number}/0.png' for number in range(0, count, 7)))
    found = listing.find(tmp_path)
    assert found.class_names == tuple(map(str, range(count)))
    assert [file.label for file in found.train] == list(range(0, count, 7))


def test_images_of_one_class_need_no_folder(tmp_path):
    _write(tmp_path, 'x.png', 'y.png')
    loaded = load.load(f'folder:{tmp_path}')
    assert loaded.train.class_names == (listing.ONLY_CLASS,)
    again = load.load(f'folder:{tmp_path}', classes=loaded.found['classes'])
    assert rows_of(again.train) == rows_of(loaded.train)
    assert load.load(f'folder:{tmp_path}', classes=['faces']).train.class_names == ('faces',)


def test_loose_images_beside_class_folders_are_told(tmp_path):
    _write(tmp_path, 'a/1.png', 'b/1.png', 'loose.png')
    found = listing.find(tmp_path)
    assert len(found.train) == 2
    assert found.notes == ('Ignored: images beside the class folders (1).',)


@pytest.mark.parametrize('name', ['val', 'Validation', 'valid'])
def test_a_validation_folder_is_used_or_told(tmp_path, name):
    _write(tmp_path, 'train/a/1.png', f'{name}/a/2.png', 'extra/a/3.png')
    found = listing.find(tmp_path)
    assert [file.path for file in found.test] == [str(tmp_path / name / 'a' / '2.png')]
    assert found.notes[0] == f'{name}/ is used for testing: there is no test/.'
    assert 'extra/ (neither train, test nor val)' in found.notes[1]
    _write(tmp_path, 'test/a/4.png')
    found = listing.find(tmp_path)
    assert [file.path for file in found.test] == [str(tmp_path / 'test' / 'a' / '4.png')]
    assert found.notes[0].startswith(f'{name}/ is not used')


def test_parts_may_be_called_training_and_testing(tmp_path):
    _write(tmp_path, 'Training/a/1.png', 'Testing/a/2.png')
    found = listing.find(tmp_path)
    assert (len(found.train), len(found.test)) == (1, 1)


def test_a_class_may_be_called_train(tmp_path):
    _write(tmp_path, 'car/1.png', 'train/2.png', 'bus/3.png')
    assert listing.find(tmp_path).class_names == ('bus', 'car', 'train')
    flat = tmp_path / 'flat'
    _write(flat, 'train/1.png', 'test/2.png')
    found = listing.find(flat)
    assert found.class_names == (listing.ONLY_CLASS,) and len(found.test) == 1


def test_a_second_folder_of_the_same_part_is_told(tmp_path):
    _write(tmp_path, 'train/a/1.png', 'Train/a/2.png')
    found = listing.find(tmp_path)
    assert len(found.train) == 1 and '/ (neither train, test nor val)' in found.notes[0]


def test_links_are_followed_to_files_and_classes_and_never_in_a_circle(tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    _write(elsewhere, 'c/1.png', 'loose.png')
    root = tmp_path / 'root'
    _write(root, 'a/1.png', 'b/2.png')
    os.symlink(elsewhere / 'c', root / 'c')
    os.symlink(elsewhere / 'loose.png', root / 'a' / 'linked.png')
    os.symlink(root, root / 'all')
    os.symlink(root / 'b', root / 'a' / 'b')
    os.symlink('..', root / 'a' / 'up')
    found = listing.find(root)
    assert found.class_names == ('a', 'b', 'c')
    assert [file.label for file in found.train] == [0, 0, 1, 2]
    (said,) = found.notes
    assert 'circle (2)' in said and 'links to folders within class folders (1)' in said


# A table of labels.


def _table(root, text, name='labels.csv'):
    (root / name).write_text(text, encoding='utf-8')
    return f'csv:{name}'


def test_a_table_says_the_labels(tmp_path):
    _write(tmp_path, 'x/1.png', 'x/2.png', 'y/3.png', 'y/4.png')
    label = _table(tmp_path, 'file,label\nx/1.png,10\nx/2.png,2\n3.png,10\n')
    found = listing.find(tmp_path, label=label)
    assert found.class_names == ('2', '10') and found.is_read_off
    assert [(os.path.basename(f.path), f.label) for f in found.train] == [
        ('1.png', 1), ('2.png', 0), ('3.png', 1)
    ]  # fmt: skip
    assert 'images without a row in the table of labels (1)' in found.notes[0]
    declared = listing.find(tmp_path, ['none', '10', '2'], label)
    assert [file.label for file in declared.train] == [1, 2, 1] and not declared.is_read_off


def test_a_table_may_come_from_a_spreadsheet(tmp_path):
    _write(tmp_path, 'ä.png')
    (tmp_path / 'labels.csv').write_bytes('file,label\r\nä.png,gefährlich\r\n'.encode('utf-16'))
    assert listing.find(tmp_path, label='csv:labels.csv').class_names == ('gefährlich',)


def test_a_row_more_changes_no_other_image(tmp_path):
    _write(tmp_path, 'x/1.png', 'y/3.png', 'y/2.png')
    rows = 'file,label\n1.png,a\n3.png,a\n'
    before = listing.find(tmp_path, ['a', 'b'], _table(tmp_path, rows))
    more = _table(tmp_path, f'{rows}y/3.png,b\ny/2.png,b\n')
    after = {file.path: file.label for file in listing.find(tmp_path, ['a', 'b'], more).train}
    assert {file.path: file.label for file in before.train} == {
        str(tmp_path / 'x' / '1.png'): 0, str(tmp_path / 'y' / '3.png'): 0
    }  # fmt: skip
    # Only the image whose own row was added has another label.
    assert after == {
        str(tmp_path / 'x' / '1.png'): 0,
        str(tmp_path / 'y' / '3.png'): 1,
        str(tmp_path / 'y' / '2.png'): 1,
    }


def test_classes_of_a_table_are_read_off_unless_they_are_declared(tmp_path):
    files = gray_files(30, 0)
    dataset = write_folder(tmp_path, {'all': files})
    rows = ''.join(f'all/{name},{"ab"[i % 2]}\n' for i, name in enumerate(files))
    label = _table(tmp_path, 'file,label\n' + rows)
    read = load.load(dataset, label=label)
    assert 'classes' in read.read_off and read.found['classes'] == ('a', 'b')
    again = load.load(dataset, label=label, **read.found)
    assert rows_of(again.train) == rows_of(read.train) and again.read_off == ()
    error_of(["'b'", '--classes', 'its row'], dataset, label=label, classes=['a', 'c'])


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('name,label\n', 'file and label'),
        ('file,label\na.png,1\na.png,2\n', 'two labels'),
        ('', 'nothing'),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, text, words):
    _write(tmp_path, 'a.png')
    with pytest.raises(DataError, match=words):
        listing.find(tmp_path, label=_table(tmp_path, text))
    with pytest.raises(DataError, match='--label=csv:FILE'):
        listing.find(tmp_path, label='csv:gone.csv')


def test_a_bare_name_in_a_table_means_one_image(tmp_path):
    _write(tmp_path, 'train/0.png', 'train/1.png', 'test/0.png', 'test/2.png')
    with pytest.raises(DataError, match='names 0.png without its folder.*train/0.png and test/0'):
        listing.find(tmp_path, label=_table(tmp_path, 'file,label\n0.png,a\n1.png,b\n'))
    label = _table(tmp_path, 'file,label\ntrain/0.png,a\n1.png,b\n2.png,a\n')
    found = listing.find(tmp_path, label=label)
    assert (len(found.train), len(found.test)) == (2, 1)


def test_a_table_without_csv_before_its_name_is_no_label(tmp_path):
    _write(tmp_path, 'a.png')
    _table(tmp_path, 'file,label\na.png,x\n')
    for label in ('labels.csv', 'lables.csv', str(tmp_path / 'labels.csv'), 'Smiling'):
        with pytest.raises(DataError, match=f'takes --label=csv:FILE.*Received: {label}'):
            listing.find(tmp_path, label=label)
    assert len(listing.find(tmp_path, label='Male').train) == 1  # The default, for celeb_a.


def test_a_file_in_a_table_may_be_written_in_another_form(tmp_path):
    _write(tmp_path, 'e\N{COMBINING ACUTE ACCENT}.png')
    label = _table(tmp_path, 'file,label\n\N{LATIN SMALL LETTER E WITH ACUTE}.png,x\n')
    assert len(listing.find(tmp_path, label=label).train) == 1


@pytest.mark.parametrize(
    'parts', [('train_images', 'test_images'), ('fold1', 'fold2'), ('x-train', 'x-test')]
)
def test_parts_that_are_taken_for_classes_are_warned_of(tmp_path, parts):
    _write(tmp_path, *(f'{part}/{i}.png' for i, part in enumerate(parts)))
    assert any('look like parts of a data set' in note for note in listing.find(tmp_path).notes)
    _write(tmp_path, 'cat/9.png')
    assert not any('look like parts' in note for note in listing.find(tmp_path).notes)


def test_rows_without_an_image_are_told(tmp_path):
    _write(tmp_path, 'a.png')
    label = _table(tmp_path, 'file,label\na.png,x\nb.png,x\n')
    (said,) = [n for n in listing.find(tmp_path, label=label).notes if 'rows' in n]
    assert 'without an image, e.g. b.png (1)' in said


def test_a_named_pipe_is_no_image(tmp_path):
    """Reading it would wait for ever."""
    write_folder(tmp_path, {'a': gray_files(2, 0), 'b': gray_files(2, 5)})
    os.mkfifo(tmp_path / 'a' / 'pipe.png')
    found = listing.find(tmp_path)
    assert len(found.train) == 4
    assert any('special files' in note for note in found.notes)


def test_a_table_that_names_no_image_says_so(tmp_path):
    write_folder(tmp_path, {'a': gray_files(2, 0)})
    (tmp_path / 'labels.csv').write_text('file,label\n/elsewhere/000.png,x\n')
    error_of(['No row of', 'labels.csv', 'a/000.png'], f'folder:{tmp_path}', label='csv:labels.csv')
