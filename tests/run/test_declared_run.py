"""A run on a folder of images: what was read off them is written down, and never read again."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny_run

from tf_efsgd import config
from tf_efsgd.data import split
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run import private_steps, runner, start
from tf_efsgd.run.context import Sources

_LINES = (
    '--noise_multiplier=1', '--expected_batch_size=20', '--discriminator_steps=1',
    '--noadaptive_discriminator_steps', '--latent_dim=4', '--generator_width=8',
    '--discriminator_width=8', '--checkpoint_steps=2', '--noevaluate', '--noexport',
    '--strategy=one_device', '--target_delta=1e-4',
)  # fmt: skip
_READ = 'channels,image_size,dataset_size,dataset_persons'


def _png(rng, channels=1):
    return tf.io.encode_png(rng.integers(0, 256, (8, 8, channels)).astype(np.uint8)).numpy()


@pytest.fixture(scope='module')
def started(tmp_path_factory):
    """Images of 40 persons in two classes and an empty one, and a run; not to be changed."""
    base, rng = tmp_path_factory.mktemp('declared'), np.random.default_rng(3)
    for n in range(40):
        for i in range(3):
            path = base / 'images' / ('cat, wild', 'dog')[i % 2] / f'patient-{n}' / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(rng))
    (base / 'images' / 'owl').mkdir()
    _run(base, '--train_steps=2')
    return base


def _run(base, *more, sources=None):
    lines = [f'--dataset=folder:{base}/images', '--person=folder', '--images_per_person=2', *_LINES]
    lines += [f'--run_dir={base}/run', f'--state_dir={base}/state', *more]
    return runner.run(config.from_flagfile('\n'.join(lines)), sources)


@pytest.fixture
def base(started, tmp_path):
    """A copy of the images, the run and what is remembered of it, as if it had moved."""
    shutil.copytree(started, tmp_path / 'moved')
    path = tmp_path / 'moved/run/config.flags'
    path.write_text(path.read_text().replace(str(started), str(tmp_path / 'moved')))
    return tmp_path / 'moved'


def test_what_was_read_off_is_written_down(started):
    settings = config.from_flagfile((started / 'run/config.flags').read_text())
    plan = Ledger.read(started / 'run/ledger.jsonl').plan
    data = settings.data
    assert data.read_off_records == _READ
    assert data.class_names == ('cat, wild', 'dog', 'owl')
    assert (data.channels, data.image_size) == (1, 8)
    assert data.dataset_size == plan.dataset_size == 2 * data.dataset_persons
    assert (plan.images_per_person, plan.persons) == (2, data.dataset_persons)
    assert (plan.image_shape, plan.num_classes) == ((8, 8, 1), 3)
    assert run_folder.load_records(settings).read_off == tuple(_READ.split(','))


def test_no_person_is_named_in_the_run_folder(started):
    files = [path for path in (started / 'run').rglob('*') if path.is_file()]
    assert started / 'run/ledger.jsonl' in files
    assert not [path for path in files if b'patient-' in path.read_bytes()]


def test_a_new_run_with_the_settings_of_another_refuses_far_more_records(base):
    rng = np.random.default_rng(4)
    for n in range(40, 80):
        for i in range(2):
            path = base / 'images' / ('cat, wild', 'dog')[i] / f'patient-{n}' / 'new.png'
            path.parent.mkdir(parents=True)
            path.write_bytes(_png(rng))
    lines = [(base / 'run/config.flags').read_text(), f'--state_dir={base}/state']
    with pytest.raises(config.ConfigError, match=r'1\.25 times .* --dataset_size declares'):
        runner.run(config.from_flagfile('\n'.join([*lines, f'--run_dir={base}/new'])))
    assert not (base / 'new').exists()


@pytest.mark.parametrize('how', ['its flagfile', 'its first command line'])
def test_a_run_is_resumed_without_reading_them_again(base, how):
    before = (base / 'run/config.flags').read_text()
    asked = []
    load = run_folder.load_records

    def load_and_note(settings):
        asked.append(settings.data)
        dataset = load(settings)
        assert dataset.found == {}
        return dataset

    sources = Sources(load=load_and_note)
    if how == 'its flagfile':
        lines = [f'--dataset=folder:{base}/images', f'--run_dir={base}/run', '--resume']
        text = '\n'.join([before, *lines, f'--state_dir={base}/state'])
        runner.run(config.from_flagfile(text), sources)
    else:
        _run(base, '--train_steps=2', '--resume', sources=sources)
    assert (asked[0].channels, asked[0].image_size) == (1, 8)
    assert asked[0].read_off_records == _READ
    assert (base / 'run/config.flags').read_text() == before


def test_images_that_came_later_change_no_public_fact(base, monkeypatch):
    rng = np.random.default_rng(4)
    for name in ('dog', 'owl'):
        path = base / 'images' / name / 'patient-new' / '1.png'
        path.parent.mkdir()
        path.write_bytes(_png(rng, channels=3))
    # They are other records, and by that alone the run is refused.
    with pytest.raises(config.ConfigError, match='fingerprint'):
        _run(base, '--train_steps=2', '--resume')
    shutil.rmtree(base / 'state')
    # Where nothing is remembered, by their number.
    with pytest.raises(config.ConfigError, match='dataset_size was [0-9]+, is '):
        _run(base, '--train_steps=2', '--resume', '--resume_unverified')
    monkeypatch.setattr(start, '_check_count', lambda *_: None)
    _run(base, '--train_steps=2', '--resume', '--resume_unverified')
    plan = json.loads((base / 'run/ledger.jsonl').read_text().splitlines()[0])
    assert (plan['image_shape'], plan['num_classes']) == ([8, 8, 1], 3)


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('--channels=3', '--channels was 1, is 3'),
        ('--image_size=4', '--image_size was 8, is 4'),
        ('--images_per_person=3', '--images_per_person was 2, is 3'),
        ('--dataset_persons=7', '--dataset_persons was [0-9]+, is 7'),
        ('--classes=a,b', '--classes was .*cat, wild.*, is a,b'),
        ('--read_off_records=classes', f'--read_off_records was {_READ}, is classes'),
    ],
)
def test_other_public_facts_are_refused(base, line, said):
    with pytest.raises(config.ConfigError, match=said):
        _run(base, '--train_steps=2', '--resume', line)


def test_that_they_were_read_off_cannot_be_edited_away(base):
    path = base / 'run/config.flags'
    path.write_text(path.read_text().replace(f'--read_off_records={_READ}\n', ''))
    text = '\n'.join([path.read_text(), f'--run_dir={base}/run', f'--state_dir={base}/state'])
    with pytest.raises(config.ConfigError, match='config.flags was changed'):
        runner.run(config.from_flagfile(f'{text}\n--resume\n--dataset=folder:{base}/images'))


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('--classes=dog,owl', "has the class 'cat, wild', which is not declared"),
        ('--person=name:^x(.)', 'has no person by --person=name'),
        ('--person=csv:gone.csv', 'gone.csv cannot be read'),
        ('--expected_batch_size=999', '--expected_batch_size'),
    ],
)
def test_what_is_wrong_is_found_before_there_is_a_folder(base, line, said):
    shutil.rmtree(base / 'run')
    with pytest.raises(config.ConfigError, match=said):
        _run(base, '--train_steps=2', line)
    assert not (base / 'run').exists()


def test_what_is_said_does_not_depend_on_the_records(started, capsys):
    lines = [f'--dataset=folder:{started}/images', '--noise_multiplier=1', '--channels=1']
    lines += ['--person=folder', '--images_per_person=2']
    run_folder.load_records(config.from_flagfile('\n'.join(lines)))
    said = capsys.readouterr().out
    assert 'if there are any, are turned to gray' in said and 'At most 2 images of a person' in said
    assert 'patient-' not in said


def test_a_shared_report_does_not_say_where_a_table_is():
    assert run_folder.public_rule('csv:/home/me/who.csv') == 'csv:who.csv'
    assert run_folder.public_rule('name:^(a)/') == 'name:^(a)/'
    assert run_folder.public_rule(None) is None


# Records that moved.


def _content(folder):
    return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.suffix != '.lock'}


def test_records_that_moved_are_the_same_records(base, tmp_path):
    (base / 'images').rename(tmp_path / 'pictures')
    before = (base / 'run/ledger.jsonl').read_text()
    moved = f'--dataset=folder:{tmp_path}/pictures'
    _run(base, '--train_steps=2', '--resume', '--export', moved)
    assert (base / 'run/ledger.jsonl').read_text() == before
    settings = run_folder.read_settings(base / 'run')
    assert settings.data.dataset == f'folder:{tmp_path}/pictures'
    # The data set keeps its name, and later starts know the place.
    statement = base / 'run/export/1/assets.extra/privacy_statement.json'
    assert json.loads(statement.read_text())['dataset'] == 'folder:images'
    assert 'pictures' not in (base / 'run/report.html').read_text()
    lines = [f'--run_dir={base}/run', f'--state_dir={base}/state', '--resume']
    runner.run(config.from_flagfile('\n'.join([(base / 'run/config.flags').read_text(), *lines])))


def test_other_records_in_another_folder_are_refused(base, tmp_path):
    shutil.copytree(base / 'images', tmp_path / 'pictures')
    # The same number of records of the same names and sizes.
    for path in (tmp_path / 'pictures').rglob('*.png'):
        path.write_bytes(_png(np.random.default_rng(len(path.name))))
    before = _content(base)
    for how in ('one other', 'all others'):
        if how == 'one other':
            folder = tmp_path / 'nearly'
            shutil.copytree(base / 'images', folder)
            settings = config.from_flagfile((base / 'run/config.flags').read_text())
            path = _trained_on(settings, folder)
            path.unlink()
        else:
            folder = tmp_path / 'pictures'
        with pytest.raises(config.ConfigError, match='records are not the ones') as caught:
            _run(base, '--train_steps=2', '--resume', f'--dataset=folder:{folder}')
        assert '\n' not in str(caught.value) and 'fingerprint' in str(caught.value)
    assert _content(base) == before


def _trained_on(settings, folder):
    """One of the images that a run on this folder keeps to train on."""
    kept = {image.tobytes() for image in run_folder.load_records(settings).train.images}
    for path in sorted(folder.rglob('*.png')):
        if tf.io.decode_png(path.read_bytes(), 1).numpy().tobytes() in kept:
            return path
    raise AssertionError('no image')


def test_another_data_set_is_no_place(base):
    for dataset in ('digits', f'idx:{base}/images'):
        with pytest.raises(config.ConfigError, match='--dataset was folder:'):
            _run(base, '--train_steps=2', '--resume', f'--dataset={dataset}')


def test_where_nothing_is_remembered_a_moved_folder_keeps_its_name(base, tmp_path):
    (base / 'images').rename(tmp_path / 'pictures')
    shutil.rmtree(base / 'state')
    more = ['--train_steps=2', '--resume', '--resume_unverified']
    with pytest.raises(config.ConfigError, match='dataset was folder:images, is folder:pictures'):
        _run(base, *more, f'--dataset=folder:{tmp_path}/pictures')
    (tmp_path / 'pictures').rename(tmp_path / 'images')
    _run(base, *more, f'--dataset=folder:{tmp_path}/images')


def test_a_table_of_persons_may_move_and_not_change(base, tmp_path, monkeypatch):
    monkeypatch.setattr(private_steps, 'restore', tiny_run.cut)
    text = 'file,person\n'
    for number, path in enumerate(sorted((base / 'images').rglob('*.png'))):
        row = f'{"ab"[number % 2]}/{number}.png'
        (base / 'flat' / row).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, base / 'flat' / row)
        text += f'{row},{path.parent.name}\n'
    (base / 'who.csv').write_text(text)
    lines = [f'--run_dir={base}/by_table', '--train_steps=2']
    moved = ['--resume', f'--dataset=folder:{tmp_path}/pictures', *lines]

    with pytest.raises(tiny_run.PowerCut):
        _run(base, f'--dataset=folder:{base}/flat', f'--person=csv:{base}/who.csv', *lines)
    (base / 'who.csv').rename(tmp_path / 'persons.csv')
    (base / 'flat').rename(tmp_path / 'pictures')
    table = f'--person=csv:{tmp_path}/persons.csv'
    with pytest.raises(tiny_run.PowerCut):
        _run(base, *moved, table)

    # The same records, of which some are another person's.
    is_trained = {
        name: not split.is_tested_on(split.digests_of_persons([name]))[0]
        for name in ('patient-3', *(f'new-{i}' for i in range(99)))
    }
    new = next(name for name in is_trained if name != 'patient-3' and is_trained[name])
    assert is_trained['patient-3']
    changed = text.replace(',patient-3\n', f',{new}\n')
    assert changed != text
    before = _content(base)
    for content in (changed, text + 'a/none.png,nobody\n'):
        (tmp_path / 'persons.csv').write_text(content)
        with pytest.raises(config.ConfigError, match='persons of this run are not'):
            _run(base, *moved, table)
        assert _content(base) == before
    with pytest.raises(config.ConfigError, match='--person was csv:.*, is folder'):
        _run(base, *moved, '--person=folder')
    # The order of the rows says nothing.
    header, *rows = text.splitlines()
    (tmp_path / 'persons.csv').write_text('\n'.join([header, *sorted(rows, reverse=True)]))
    with pytest.raises(tiny_run.PowerCut):
        _run(base, *moved, table)
