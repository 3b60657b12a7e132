"""A warm start: what is charged and when, what is kept, how a run continues after a crash."""

import numpy as np
import pytest
from helpers import account_by_hand as by_hand
from helpers import event_files, read_page, tiny_run

from tf_efsgd import budget, config, files
from tf_efsgd.data import load
from tf_efsgd.privacy import class_sums, grid, releases, run_state
from tf_efsgd.privacy.features import pixels
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.training import callbacks as monitoring
from tf_efsgd.training import fit as fitting

_WARM = {'warm_start_share': 0.5, 'warm_start_steps': 4}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('warm') / 'run'
    tiny_run.run(folder, '--noevaluate', **_WARM)
    return folder


def test_it_is_charged_once_and_counted_in_epsilon(finished):
    assert tiny_run.kinds(finished) == ['plan', 'warm_start', 'steps', 'steps', 'steps', 'steps']
    statement = tiny_run.statement(finished)
    assert 0.99 < statement['epsilon'] <= tiny_run.TARGET
    assert 0.6 < statement['warm_start']['epsilon_alone'] < 0.75
    assert statement['warm_start']['event']['class_name'] == 'GaussianDpEvent'
    assert [entry['steps'] for entry in statement['events']] == [8]


def test_the_curve_of_epsilon_begins_with_the_release(finished):
    statement = tiny_run.statement(finished)
    entries = monitoring.read_scalars(str(finished / 'logs'))
    assert [entry['step'] for entry in entries] == [0, 2, 4, 6, 8]
    alone = statement['warm_start']['epsilon_alone']
    assert entries[0] == {'step': 0, 'dp/epsilon': pytest.approx(alone)}
    epsilons = [entry['dp/epsilon'] for entry in entries]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] >= statement['epsilon'] - 1e-6


def test_what_was_released_is_kept_and_is_noisy(finished):
    sums = np.load(finished / 'warm_start.npy')
    train = load.load('digits').train
    features = pixels.FeatureMap(train.image_shape)
    true = class_sums.release(train.images, train.labels, 10, features, 0.0, None)
    said = tiny_run.statement(finished)['warm_start']
    (sigma,) = said['noise_multipliers']
    assert said['event']['noise_multiplier'] == pytest.approx(sigma) and sums.dtype == np.int64
    # Whole numbers of steps, of which a standard deviation has 524,352.
    noise = sums * (sigma / by_hand.STDDEV) - true * grid.class_sum_step(0.0)
    error = 4 / np.sqrt(2 * noise.size)
    assert abs(noise.std() / sigma - 1) < error
    assert abs(2 / 3 * noise.std() / sigma - 1) > error


def test_alone_it_takes_no_steps(tmp_path):
    tiny_run.run(tmp_path / 'run', '--noevaluate', **{**_WARM, 'warm_start_share': 1})
    assert tiny_run.kinds(tmp_path / 'run') == ['plan', 'warm_start']
    statement = tiny_run.statement(tmp_path / 'run')
    assert 0.9999 < statement['epsilon'] <= tiny_run.TARGET
    assert (statement['steps'], statement['accountant']) == (0, 'closed form')
    for name in ('noise_multiplier', 'l2_norm_clip', 'sampling', 'sampling_probability'):
        assert name not in statement
    assert 'expected_batch_size' not in statement
    pictures = sorted(path.name for path in (tmp_path / 'run/samples').iterdir())
    steps = _WARM['warm_start_steps']
    assert pictures[-1] == 'step_000000.png'
    assert pictures[:-1] == [f'fit_{steps * i // 4:06d}.png' for i in (1, 2, 3, 4)]
    tags = event_files.tags(tmp_path / 'run/logs')
    assert {'dp/samples_of_fit', 'dp/samples', *event_files.OVERVIEW} <= tags
    entries = monitoring.read_scalars(str(tmp_path / 'run/logs'))
    assert entries[0] == {'step': 0, 'dp/epsilon': pytest.approx(statement['epsilon'])}
    assert [entry['step'] for entry in entries[1:]] == [2, 4]
    assert all(set(entry) == {'step', 'dp/distance_to_release'} for entry in entries[1:])
    told, flags = read_page.text((tmp_path / 'run/report.html').read_text()).split(' Flags ')
    assert 'ε spent1 at step 0' in told and 'the warm start alone: no private steps' in told
    for of_every_run in (*budget.PROVEN, *budget.TESTED):
        assert of_every_run in told
        told = told.replace(of_every_run, '')
    for never_happened in ('Poisson', 'batch', 'Sampling', 'clip', 'gradient'):
        assert never_happened not in told
    assert 'no private steps, so their settings had no effect' in flags


def test_with_steps_the_statement_says_how_they_sample(finished):
    statement = tiny_run.statement(finished)
    assert (statement['sampling'], statement['expected_batch_size']) == ('Poisson', 160)
    assert statement['sampling_probability'] == pytest.approx(160 / 1602, abs=1e-6)
    told = read_page.text((finished / 'report.html').read_text())
    assert 'samplingPoisson' in told and 'had no effect' not in told


def test_without_privacy_it_releases_the_sums_themselves(tmp_path):
    tiny_run.run(tmp_path / 'run', '--noprivate', '--noevaluate', **{**_WARM, 'train_steps': 2})
    assert tiny_run.kinds(tmp_path / 'run') == ['plan', 'steps']
    train = load.load('digits').train
    features = pixels.FeatureMap(train.image_shape)
    true = class_sums.release(train.images, train.labels, 10, features, 0.0, None)
    np.testing.assert_allclose(np.load(tmp_path / 'run/warm_start.npy'), true, rtol=1e-5)
    assert 'dp/epsilon' not in (tmp_path / 'run/report.html').read_text()
    assert monitoring.read_scalars(str(tmp_path / 'run/logs')) == []


def test_a_crash_before_the_release_is_saved_loses_it_and_releases_nothing_twice(tmp_path, capsys):
    folder, write = tmp_path / 'run', files.write_atomically

    def write_or_cut(path, *arguments, **more):
        if path.name == 'warm_start.npy':
            more['when_there_is_room']()
            raise tiny_run.PowerCut
        write(path, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, 'write_atomically', write_or_cut)
        with pytest.raises(tiny_run.PowerCut):
            tiny_run.run(folder, **_WARM)
    assert tiny_run.kinds(folder) == ['plan', 'warm_start']  # Paid for before it was made.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_sums, 'release', tiny_run.cut)
        tiny_run.run(folder, '--resume', '--noevaluate', **_WARM)
    assert 'continues without it' in capsys.readouterr().out
    assert tiny_run.kinds(folder)[:3] == ['plan', 'warm_start', 'steps']
    assert tiny_run.statement(folder)['warm_start'] is not None
    entries = monitoring.read_scalars(str(folder / 'logs'))
    assert entries[0]['step'] == 0 and entries[0]['dp/epsilon'] > 0.6


def test_a_crash_while_fitting_fits_again_to_what_was_released(tmp_path):
    folder = tmp_path / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, 'fit', tiny_run.cut)
        with pytest.raises(tiny_run.PowerCut):
            tiny_run.run(folder, **_WARM)
    released = (folder / 'warm_start.npy').read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_sums, 'release', tiny_run.cut)
        tiny_run.run_until_steps(folder, '--resume', **_WARM)
    assert (folder / 'warm_start.npy').read_bytes() == released
    assert tiny_run.kinds(folder).count('warm_start') == 1


def test_a_finished_fit_is_not_repeated(finished, monkeypatch):
    monkeypatch.setattr(fitting, 'fit', tiny_run.cut)
    tiny_run.run(finished, '--resume', '--noevaluate', **_WARM)


def test_a_crash_before_the_charge_costs_nothing(tmp_path):
    folder = tmp_path / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_sums, 'release', tiny_run.cut)
        with pytest.raises(tiny_run.PowerCut):
            tiny_run.run(folder, **_WARM)
    assert tiny_run.kinds(folder) == ['plan']
    # What lies there was not released by this run.
    (folder / 'warm_start.npy').write_bytes(b'planted')
    with pytest.raises(config.ConfigError, match='knows of no such release. Start a new'):
        tiny_run.run(folder, '--resume', '--noevaluate', **_WARM)
    (folder / 'warm_start.npy').unlink()
    # A change of the mechanism meanwhile does not hand out its part of the budget as steps.
    changed = {**_WARM, 'target_epsilon': 2, 'train_steps': 30}
    with pytest.raises(config.ConfigError, match='the budget allows --train_steps='):
        tiny_run.run(folder, '--resume', '--change_mechanism', **changed)
    tiny_run.run_until_steps(folder, '--resume', **_WARM)
    assert tiny_run.kinds(folder) == ['plan', 'warm_start']


@pytest.mark.parametrize('content', [b'', b'other sums'])
def test_a_release_that_is_not_the_charged_one_is_refused(tmp_path, content):
    noted = {'sha256': releases._sha256(b'the sums'), 'version': 7}
    releases._check_release(noted, b'the sums', tmp_path, 7)
    with pytest.raises(releases.ReleaseError, match='its ledger has another hash'):
        releases._check_release(noted, content, tmp_path, 7)


def test_a_release_of_other_features_is_refused(tmp_path):
    noted = {'sha256': releases._sha256(b'the sums'), 'version': 8}
    with pytest.raises(releases.ReleaseError, match='another version'):
        releases._check_release(noted, b'the sums', tmp_path, 7)


def test_a_lost_release_with_nothing_left_is_no_generator(tmp_path):
    folder, alone = tmp_path / 'run', {**_WARM, 'warm_start_share': 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, 'fit', tiny_run.cut)
        with pytest.raises(tiny_run.PowerCut):
            tiny_run.run(folder, **alone)
    (folder / 'warm_start.npy').unlink()
    with pytest.raises(config.ConfigError, match='nothing of the budget is left: start a new'):
        tiny_run.run(folder, '--resume', '--noevaluate', **alone)
    assert not (folder / 'export').exists()


def test_nothing_is_written_that_could_not_be_charged(tmp_path, monkeypatch):
    monkeypatch.setattr(Ledger, 'reserve_warm_start', tiny_run.cut)
    with pytest.raises(tiny_run.PowerCut):
        tiny_run.run(tmp_path / 'run', **_WARM)
    assert not [path for path in (tmp_path / 'run').iterdir() if 'warm_start' in path.name]


def test_nothing_is_charged_that_a_full_disk_could_not_take(tmp_path, monkeypatch):
    folder = tmp_path / 'run'

    def sync_or_fail(handle):  # The ledger is not synced by this module.
        del handle
        raise OSError(28, 'No space left on device')

    store = run_state.RunState.store_position

    def store_then_fill_the_disk(self, position):
        store(self, position)
        monkeypatch.setattr(files.os, 'fsync', sync_or_fail)

    monkeypatch.setattr(run_state.RunState, 'store_position', store_then_fill_the_disk)
    with pytest.raises(OSError, match='No space left'):
        tiny_run.run(folder, **_WARM)
    monkeypatch.undo()
    assert tiny_run.kinds(folder) == ['plan']
    tiny_run.run_until_steps(folder, '--resume', **_WARM)
    assert tiny_run.kinds(folder) == ['plan', 'warm_start']


def test_a_damaged_release_stops_a_change_before_it_is_written_down(tmp_path):
    folder = tmp_path / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, 'fit', tiny_run.cut)
        with pytest.raises(tiny_run.PowerCut):
            tiny_run.run(folder, **_WARM)
    (folder / 'warm_start.npy').write_bytes(b'damaged')
    changed = {**_WARM, 'target_epsilon': 2, 'residual_share': 0.3}
    with pytest.raises(ValueError, match='its ledger has another hash. Put the file back'):
        tiny_run.run(folder, '--resume', '--change_mechanism', '--noevaluate', **changed)
    assert 'change' not in tiny_run.kinds(folder)


def test_room_is_made_before_what_must_not_be_in_vain(tmp_path):
    found = []

    def look():
        found.extend(path.read_bytes() for path in tmp_path.iterdir())

    files.write_atomically(tmp_path / 'a', b'content', when_there_is_room=look)
    assert found == [bytes(7)]
    assert (tmp_path / 'a').read_bytes() == b'content'


@pytest.mark.parametrize(
    'flags, message',
    [
        ('--warm_start_share=0.3 --noise_multiplier=1', 'share of --target_epsilon'),
        ('--warm_start_noise_multiplier=3 --target_epsilon=1', 'goes with --noise_multiplier'),
        ('--warm_start_share=1.1 --target_epsilon=1', 'at least 0 and at most 1'),
        ('--warm_start_share=-0.1 --target_epsilon=1', 'at least 0 and at most 1'),
        ('--warm_start_steps=0 --target_epsilon=1', 'at least 1'),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(config.ConfigError, match=message):
        config.from_flagfile(flags.replace(' ', '\n'))


def test_files_take_bytes(tmp_path):
    files.write_atomically(tmp_path / 'a', b'\xff\x00')
    assert (tmp_path / 'a').read_bytes() == b'\xff\x00'
