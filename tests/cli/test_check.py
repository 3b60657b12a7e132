"""tf-efsgd check: what is said of a folder; tf-efsgd plan on one; nothing is written."""

import json
import pathlib
import re

import pytest
from absl import flags
from helpers import nasty

from tf_efsgd import config
from tf_efsgd.cli import check, helps, plan
from tf_efsgd.config import expectations


def _ask(command, *arguments):
    values = flags.FlagValues()
    command.define_flags(values)
    values(['x', *arguments])
    return command.answer(values)


@pytest.fixture
def animals(tmp_path):
    """30 images 40x40 of each of 3 classes, one of them broken, some of them TIFF."""
    for label, name in enumerate(('cat', 'dog', 'emu')):
        (tmp_path / name).mkdir()
        for i in range(30):
            image = nasty.picture(100 * label + i, 40, 40)
            kind, ending = ('TIFF', 'tif') if label == 2 and i < 7 else ('PNG', 'png')
            (tmp_path / name / f'{i:04}.{ending}').write_bytes(nasty.encoded(image, kind))
    (tmp_path / 'dog' / '0017.jpg').write_bytes(b'no image')
    return tmp_path


def test_what_is_said_of_a_folder(animals):
    said = _ask(check, f'--dataset=folder:{animals}')
    assert said.splitlines()[:2] == ['90 images, 3 classes (30 each).', 'Classes: cat, dog, emu.']
    assert '1 unreadable: dog/0017.jpg: it is not an image' in said
    assert 'Read too: 7 .tif.' in said
    assert 'Suggested size: 32x32' in said
    assert 'about 30 minutes' in said
    assert '--images_per_person' in said and 'dicom' not in said


def test_what_to_expect_is_said_for_two_budgets(animals, monkeypatch):
    seen = []

    def expect(**facts):
        seen.append(facts)
        return f'words of {facts["epsilon"]:g}'

    monkeypatch.setattr(expectations, 'expect', expect)
    said = _ask(check, f'--dataset=folder:{animals}', '--minutes=7')
    assert 'epsilon = 10 expect words of 10, at epsilon = 1 words of 1; about 7 minutes' in said
    monkeypatch.setattr(expectations, 'expect', lambda **_: 'the same')
    said = _ask(check, f'--dataset=folder:{animals}')
    assert 'At epsilon = 10 and at 1 expect the same; about 30 minutes' in said
    assert seen[0] == {'records': 81, 'classes': 3, 'channels': 3, 'epsilon': 10}


def test_settings_of_the_run_to_come_are_answered(animals):
    folder = f'--dataset=folder:{animals}'
    said = _ask(check, folder, '--target_epsilon=3', '--image_size=28', '--skip_unreadable')
    assert 'They are resized to 28x28 (most images are about 40 pixels).' in said
    assert 'At epsilon = 3 expect ' in said and 'epsilon = 10' not in said
    assert 'no image of a known kind. They are left out.' in said.replace('it is not an', 'no')
    for setting, fault in (
        ('--image_size=33', 'the nearest such size is 32'),
        ('--target_epsilon=0', '--target_epsilon must be above 0'),
    ):
        with pytest.raises(config.ConfigError, match=fault):
            _ask(check, folder, setting)


def test_the_result_has_what_the_lines_say(animals):
    values = flags.FlagValues()
    check.define_flags(values)
    values(['x', f'--dataset=folder:{animals}', '--target_epsilon=3', '--json'])
    found, text = check.find(values)
    found = json.loads(json.dumps(found))
    assert found['note'].startswith('PRIVATE')
    assert found['images'] == 90 and found['trained_on'] == 81 and found['image_size'] == 32
    assert found['class_names'] == ['cat', 'dog', 'emu'] and found['counts'] == [30, 30, 30]
    assert found['kinds'] == {'.png': 83, '.tif': 7} and found['minutes'] == 30
    assert len(found['unreadable']) == 1 and 'dog/0017.jpg' in found['unreadable'][0]
    (expected,) = found['expected']
    assert expected['epsilon'] == 3 and f'At epsilon = 3 expect {expected["words"]};' in text


def test_the_help_describes_only_what_is_looked_at():
    values = flags.FlagValues()
    names = check.define_flags(values)
    said = helps.full_help('tf-efsgd check', check.__doc__, values, names)
    assert 'folder:PATH' in said and 'csv:FILE' in said and 'PRIVATE' in said
    for refused in ('mnist', 'digits', 'celeb_a', 'TFDS', 'idx', 'Male'):
        assert refused not in said, refused


def test_persons_who_are_told_apart_are_not_asked_for(animals):
    said = _ask(check, f'--dataset=folder:{animals}', '--person=name:^(.)', '--images_per_person=2')
    assert 'more than one image of a person' not in said


@pytest.mark.parametrize(
    ('rule', 'said'),
    [
        ('csv:gone.csv', 'gone.csv cannot be read'),
        ('folder', 'has no person by --person=folder'),
        ('name:(x)', 'has no person by --person=name'),
        ('dicom', 'has no person'),
    ],
)
def test_a_rule_that_gives_an_image_no_person_is_found_before_training(animals, rule, said):
    with pytest.raises(config.ConfigError, match=said):
        _ask(check, f'--dataset=folder:{animals}', f'--person={rule}', '--images_per_person=2')


def test_only_the_images_that_are_kept_of_a_person_count(animals):
    folder = f'--dataset=folder:{animals}'
    values = flags.FlagValues()
    check.define_flags(values)
    # Three persons, 0 to 2, with 30 images each; nine tenths of the kept ones are trained on.
    values(['x', folder, '--person=name:^..(.)', '--images_per_person=7'])
    assert check.find(values)[0]['trained_on'] == 19
    how = ['--person=name:^..(.)', '--images_per_person=7', '--target_epsilon=10']
    assert 'About 19 of them are trained on' in _ask(plan, folder, *how)


def test_a_plan_of_a_folder_takes_its_declared_size_and_draws_only_private_steps(animals):
    folder = f'--dataset=folder:{animals}'
    said = _ask(plan, folder, '--target_epsilon=10', '--dataset_size=70')
    assert 'About 70 of them are trained on' in said and 'Recipe' in said
    with pytest.raises(config.ConfigError, match='--warm_start_share=1 runs none: leave --plot'):
        _ask(plan, folder, '--target_epsilon=10', '--channels=1', '--plot=p.png')
    gone = ['--dataset=folder:gone', '--target_epsilon=10', '--dataset_size=7000']
    assert 'A run chooses them by its records' in _ask(plan, *gone)
    with pytest.raises(config.ConfigError, match='There is no folder'):
        _ask(plan, *gone[:-1])


def test_what_training_would_refuse_is_refused(animals):
    for alone in ('--person=name:^(.)', '--images_per_person=2'):
        with pytest.raises(config.ConfigError, match='go together'):
            _ask(check, f'--dataset=folder:{animals}', alone)


def test_a_file_of_flags_may_say_more_than_is_looked_at(animals):
    file = pathlib.Path(check.__file__).parents[2] / 'configs' / 'folder.flags'
    said = _ask(check, f'--flagfile={file}', f'--dataset=folder:{animals}')
    assert said.startswith('90 images')


def test_a_folder_of_nasty_files_is_told_in_full(tmp_path):
    good, bad = nasty.write(tmp_path)
    said = _ask(check, f'--dataset=folder:{tmp_path}')
    assert said.startswith(f'{good} images, 2 classes') and f'\n{bad} unreadable' in said
    assert 'Ignored: ' in said and '@eaDir' in said and 'heic' in said
    said.encode('utf-8')


@pytest.mark.parametrize('path', ['', '/no/such/folder'])
def test_a_folder_that_is_not_there_is_named(path):
    with pytest.raises(config.ConfigError, match='no folder'):
        _ask(check, f'--dataset=folder:{path}')
    with pytest.raises(config.ConfigError, match='takes the path'):
        _ask(check, '--dataset=mnist')


def test_a_folder_without_a_readable_image_is_named(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'x.png').write_bytes(b'no image')
    with pytest.raises(config.ConfigError, match=re.escape('a/x.png: it is not an image')):
        _ask(check, f'--dataset=folder:{tmp_path}')


def test_a_plan_counts_the_folder_and_shows_the_recipe(animals):
    before = {path: path.stat().st_mtime_ns for path in animals.rglob('*')}
    said = _ask(
        *(plan, f'--dataset=folder:{animals}', '--target_epsilon=9', '--target_delta=1e-3'),
        *('--minutes=2', '--channels=1'),
    )
    assert '90 images, 3 classes' in said and 'dog/0017.jpg' in said
    assert 'About 81 of them are trained on, as 32x32x1.' in said
    assert 'about 2 minutes' in said and '--warm_start_share=1.0' in said
    assert '\nExpect average brightness.\nWARNING: 27 images of a class are few' in said
    assert re.search(r'^ε +9 ', said, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in animals.rglob('*')} == before
    own = _ask(
        *(plan, f'--dataset=folder:{animals}', '--noise_multiplier=3', '--train_steps=30'),
        *('--expected_batch_size=9', '--image_size=16', '--target_delta=1e-3'),
    )
    assert 'the recipe is given' in own and '16x16x3' in own and '9 of 81 records' in own


def test_a_declared_size_needs_no_look_at_the_folder():
    said = _ask(
        *(plan, '--dataset=folder:/no/such', '--dataset_size=2000', '--noise_multiplier=3'),
        *('--expected_batch_size=20', '--train_steps=30'),
    )
    assert '20 of 2,000 records' in said


@pytest.mark.parametrize('epsilon', [0.0, 1e-300, 1e300])
def test_the_warning_takes_any_epsilon(epsilon):
    said = expectations.warning(records=30, classes=3, channels=3, epsilon=epsilon)
    assert (said is None) == (epsilon == 1e300) and (said is None or len(said) < 400)


def test_expectations_grow_with_the_budget_and_with_the_images_of_a_class():
    def said(records, epsilon, channels=3):
        return expectations.expect(records=records, classes=3, channels=channels, epsilon=epsilon)

    grades = [said(300, 1, 1), said(3000, 1, 1), said(3000, 4, 1), said(3000, 10, 1)]
    assert len(set(grades)) == 4 and grades[0] == 'average brightness'
    assert grades == [said(30, 10, 1), said(300, 10, 1), said(1200, 10, 1), said(30_000, 1, 1)]
    # Photographs in colour need more.
    in_colour = [said(3000, 1), said(3000, 10), said(9000, 10), said(20_000, 10)]
    assert in_colour == ['average colours', *grades[1:]]


def test_what_to_expect_is_what_was_measured():
    page = (pathlib.Path(__file__).parents[2] / 'docs/results.md').read_text('utf-8')
    table = page.split('## What to expect')[1].split('\n\n')[2]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()[2:]]
    assert len(rows) >= 8
    for data, records, classes, channels, epsilon, *_, words in rows:
        found = expectations.expect(
            records=int(records.replace(',', '')),
            classes=int(classes),
            channels={'gray': 1, 'colour': 3}[channels],
            epsilon=float(epsilon),
        )
        assert found == words, data


def test_too_few_images_are_warned_of_and_only_then():
    enough = {'records': 1500, 'classes': 3, 'channels': 1, 'epsilon': 1.0}
    assert expectations.warning(**enough) is None
    for fewer in ({'records': 1490}, {'classes': 4}, {'epsilon': 0.9}, {'channels': 3}):
        text = expectations.warning(**{**enough, **fewer})
        assert 'few for ε' in text and 'Nothing is spent yet' in text
        # So many images of a class are recognised.
        images = int(re.search(r'use about ([\d,]+) images each', text)[1].replace(',', ''))
        classes = {**enough, **fewer}['classes']
        better = {**enough, **fewer, 'records': images * classes, 'classes': classes}
        assert 'classes that are recognised' in expectations.expect(**better)
