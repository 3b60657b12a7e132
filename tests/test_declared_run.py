"""A run on a folder of images: what was read off them is written down, and never read again."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd import config, run_folder, runner
from tf_efsgd.privacy import ledger

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


def _run(base, *more):
    lines = [f'--dataset=folder:{base}/images', '--person=folder', '--images_per_person=2', *_LINES]
    lines += [f'--run_dir={base}/run', f'--state_dir={base}/state', *more]
    return runner.run(config.from_flagfile('\n'.join(lines)))


@pytest.fixture
def base(started, tmp_path):
    """A copy of the images, the run and what is remembered of it, as if it had moved."""
    shutil.copytree(started, tmp_path / 'moved')
    path = tmp_path / 'moved/run/config.flags'
    path.write_text(path.read_text().replace(str(started), str(tmp_path / 'moved')))
    return tmp_path / 'moved'


def test_what_was_read_off_is_written_down(started):
    settings = config.from_flagfile((started / 'run/config.flags').read_text())
    plan = ledger.Ledger.read(started / 'run/ledger.jsonl').plan
    data = settings.data
    assert data.read_off_records == _READ
    assert data.class_names == ('cat, wild', 'dog', 'owl')
    assert (data.channels, data.image_size) == (1, 8)
    assert data.dataset_size == plan.dataset_size == 2 * data.dataset_persons
    assert (plan.images_per_person, plan.persons) == (2, data.dataset_persons)
    assert (plan.image_shape, plan.num_classes) == ((8, 8, 1), 3)
    assert run_folder.load_records(settings).read_off == tuple(_READ.split(','))


def test_no_person_is_named_in_the_run_folder(started):
    for path in (started / 'run').rglob('*'):
        assert not path.is_file() or b'patient-' not in path.read_bytes()


@pytest.mark.parametrize('how', ['its flagfile', 'its first command line'])
def test_a_run_is_resumed_without_reading_them_again(base, how, monkeypatch):
    before = (base / 'run/config.flags').read_text()
    asked = []
    load = runner._load

    def load_and_note(settings):
        asked.append(settings.data)
        dataset = load(settings)
        assert dataset.found == {}
        return dataset

    monkeypatch.setattr(runner, '_load', load_and_note)
    if how == 'its flagfile':
        lines = [f'--dataset=folder:{base}/images', f'--run_dir={base}/run', '--resume']
        text = '\n'.join([before, *lines, f'--state_dir={base}/state'])
        runner.run(config.from_flagfile(text))
    else:
        _run(base, '--train_steps=2', '--resume')
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
    monkeypatch.setattr(runner, '_check_count', lambda *_: None)
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
        ('--classes=dog,owl', "is of the class 'cat, wild'"),
        ('--person=name:^x(.)', 'folders in it and no .*--person=folder'),
        ('--person=csv:gone.csv', 'cannot read .*gone.csv'),
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
    assert 'if there are any, are turned to grey' in said and 'At most 2 images of a person' in said
    assert 'patient-' not in said


def test_a_shared_report_does_not_say_where_a_table_is():
    assert runner._public_rule('csv:/home/me/who.csv') == 'csv:who.csv'
    assert runner._public_rule('name:^(a)/') == 'name:^(a)/'
    assert runner._public_rule(None) is None
