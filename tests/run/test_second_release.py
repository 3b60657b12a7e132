"""A run whose warm start makes two releases: what is charged, what is kept, how it continues."""

import numpy as np
import pytest
from helpers import account_by_hand as by_hand
from helpers import plans, processes, tiny_run

from tf_efsgd import config, files
from tf_efsgd.budget import statement
from tf_efsgd.data import load
from tf_efsgd.models.classifier import build_classifier
from tf_efsgd.privacy import class_sums, grid
from tf_efsgd.privacy.features import learned, pixels
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.training import fit as fitting
from tf_efsgd.training import gan, learn_features
from tf_efsgd.training import targets as fit_targets

_TWO = {
    'warm_start_share': 0.5,
    'warm_start_steps': 4,
    'learned_features_share': 0.3,
    'learned_features_steps': 3,
    'warm_start_weight': 1,
}


@pytest.fixture(autouse=True, scope='module')
def few_images():
    with pytest.MonkeyPatch.context() as patch:
        for name in ('_IMAGES', '_LEAST_IMAGES', '_MEASURED'):
            patch.setattr(learn_features, name, 200)
        patch.setattr(learn_features, '_EPOCHS', 1)
        yield


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two') / 'run'
    tiny_run.run(folder, '--noevaluate', **_TWO)
    return folder


@pytest.fixture(scope='module')
def truth(finished):
    """What the two releases would have been without noise."""
    train = load.load('digits').train
    release = learned.Release.from_bytes((finished / 'learned_features.npz').read_bytes())
    classifier = build_classifier(train.image_shape, 10)
    classifier.set_weights(release.classifier)
    maps = (
        pixels.FeatureMap(train.image_shape),
        learned.LearnedFeatures(classifier, release.distances, train.image_shape),
    )
    step = grid.class_sum_step(0.0)
    sums = [step * class_sums.release(train.images, train.labels, 10, m, 0.0, None) for m in maps]
    return release, sums


def test_both_are_charged_once_before_the_first(finished):
    assert tiny_run.kinds(finished) == ['plan', 'warm_start', 'learned_features'] + 4 * ['steps']
    statement = tiny_run.statement(finished)
    assert 0.99 < statement['epsilon'] <= tiny_run.TARGET
    said = statement['warm_start']
    assert 0.6 < said['epsilon_alone'] < 0.75
    assert 'two Gaussian releases' in said['mechanism']
    first, second = said['noise_multipliers']
    whole = said['event']['noise_multiplier']
    assert first**-2 + second**-2 == pytest.approx(whole**-2)
    assert (whole / second) ** 2 == pytest.approx(0.3)


def test_both_have_their_noise_each_its_own(finished, truth):
    release, (first, second) = truth
    sigmas = tiny_run.statement(finished)['warm_start']['noise_multipliers']
    released = [np.load(finished / 'warm_start.npy'), release.sums]
    assert all(sums.dtype == np.int64 for sums in released)
    # Whole numbers of steps, of which a standard deviation has 524,352.
    noises = [
        sums * (sigma / by_hand.STDDEV) - true
        for sums, sigma, true in zip(released, sigmas, (first, second))
    ]
    for noise, sigma in zip(noises, sigmas):
        error = 4 / np.sqrt(2 * noise.size)
        assert abs(noise.std() / sigma - 1) < error
        for wrong in (2 / 3, 3 / 2):
            assert abs(wrong * noise.std() / sigma - 1) > error
    n = min(noise.size for noise in noises)
    together = np.corrcoef(noises[0].ravel()[:n], noises[1].ravel()[:n])[0, 1]
    assert abs(together) < 4 / np.sqrt(n)


def test_without_privacy_it_releases_the_sums_themselves(tmp_path):
    tiny_run.run_until_steps(tmp_path / 'run', '--noprivate', **_TWO)
    assert tiny_run.kinds(tmp_path / 'run') == ['plan']
    content = (tmp_path / 'run/learned_features.npz').read_bytes()
    sums = learned.Release.from_bytes(content).sums * grid.class_sum_step(0.0)
    counts = sums[:, -1] / 0.1
    train = load.load('digits').train
    np.testing.assert_allclose(counts, np.bincount(train.labels), rtol=1e-3)


def test_the_classifier_is_given_what_the_generator_makes(tmp_path, monkeypatch):
    """Nothing of the records comes to it by another way: with others it is given the same."""
    seen = []

    def learn(classifier, generate, num_classes, **_):
        del classifier, num_classes
        seen.append(generate(np.arange(10, dtype=np.int32)))
        raise tiny_run.PowerCut

    monkeypatch.setattr(learn_features, 'learn', learn)
    monkeypatch.setattr(fitting, 'fit', lambda generator, *_, **__: generator.get_weights())
    for limit in (300, 800):
        with pytest.raises(tiny_run.PowerCut):
            tiny_run.run(tmp_path / str(limit), **{**_TWO, 'limit_records': limit})
    np.testing.assert_array_equal(seen[0], seen[1])


def test_it_comes_after_the_first_and_before_the_fit_to_both(tmp_path, monkeypatch):
    calls, release, fit = [], class_sums.release, fitting.fit

    def releasing(*arguments):
        calls.append(type(arguments[3]).__name__)
        return release(*arguments)

    def recorded_fit(generator, draw_inputs, targets, *, steps, **how):
        calls.append((len(targets), steps, how.get('first_step', 0)))
        return fit(generator, draw_inputs, targets, steps=steps, **how)

    monkeypatch.setattr(class_sums, 'release', releasing)
    monkeypatch.setattr(fitting, 'fit', recorded_fit)
    tiny_run.run_until_steps(tmp_path / 'run', **_TWO)
    assert calls == ['FeatureMap', (1, 4, 0), 'LearnedFeatures', (2, 3, 4)]


def _start_and_cut(folder, target, name, replacement):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, replacement)
        with pytest.raises(tiny_run.PowerCut):
            tiny_run.run(folder, **_TWO, state_dir=folder.parent / 'state')


def _resume(folder):
    """Continues to the private steps."""
    tiny_run.run_until_steps(folder, '--resume', **_TWO, state_dir=folder.parent / 'state')


def _resume_without_a_release(folder, **broken):
    """Continues, with `class_sums.release` out of order: nothing may be released again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_sums, 'release', tiny_run.cut)
        for name, replacement in broken.items():
            patch.setattr(learn_features, name, replacement)
        _resume(folder)


def _cut_before(name):
    """In place of `files.write_atomically`: a power cut when this file would be written."""
    write = files.write_atomically

    def write_or_cut(path, *arguments, **more):
        if path.name == name:
            more['when_there_is_room']()
            raise tiny_run.PowerCut
        write(path, *arguments, **more)

    return write_or_cut


@pytest.fixture(scope='module')
def cut_while_learning(tmp_path_factory):
    """A run that ended while its classifier learned, with its state folder; not to be changed."""
    base = tmp_path_factory.mktemp('learning')
    _start_and_cut(base / 'run', learn_features, 'learn', tiny_run.cut)
    return base


@pytest.fixture(scope='module')
def cut_after_both(tmp_path_factory):
    """A run that ended when it would be fitted to both releases; not to be changed."""
    base, fit = tmp_path_factory.mktemp('both'), fitting.fit

    def fit_or_cut(generator, draw_inputs, targets, **how):
        return tiny_run.cut() if len(targets) == 2 else fit(generator, draw_inputs, targets, **how)

    _start_and_cut(base / 'run', fitting, 'fit', fit_or_cut)
    return base


def test_a_crash_before_the_second_is_saved_loses_it_and_releases_nothing_twice(tmp_path, capsys):
    folder = tmp_path / 'run'
    _start_and_cut(folder, files, 'write_atomically', _cut_before('learned_features.npz'))
    assert tiny_run.kinds(folder) == ['plan', 'warm_start', 'learned_features']
    _resume_without_a_release(folder)
    assert 'the second release of the warm start was charged' in capsys.readouterr().out
    assert tiny_run.kinds(folder) == ['plan', 'warm_start', 'learned_features']


def test_what_was_never_released_is_told():
    lost, kept = {'sha256': None, 'version': None}, {'sha256': '4c1f', 'version': 1}
    plan = plans.plan(*tiny_run.flags('run', **_TWO))

    class Book:
        first_plan, warm_start_reserved, warm_start = plan, True, kept

    for entry, wanted in ((kept, []), (lost, ['second']), (None, [])):
        Book.learned_features = entry
        assert statement._warm_start_statement(Book)['never_released'] == wanted


def test_learning_that_failed_gives_the_second_up(tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'run'
    monkeypatch.setattr(learn_features, 'learn', lambda *_, **__: (float('nan'), 1.0))
    tiny_run.run_until_steps(folder, **_TWO)
    assert 'the second release is given up' in capsys.readouterr().out
    assert tiny_run.kinds(folder) == ['plan', 'warm_start', 'learned_features']
    ledger = Ledger.read(folder / 'ledger.jsonl')
    assert statement._warm_start_statement(ledger)['never_released'] == ['second']
    assert not (folder / 'learned_features.npz').exists()


def test_the_position_behind_the_second_release_is_remembered(cut_after_both, tmp_path):
    """An old copy of the ledger, from before it, would let it be made again."""
    folder = tiny_run.copy(cut_after_both, tmp_path)
    lines = (folder / 'ledger.jsonl').read_bytes().splitlines(keepends=True)
    (folder / 'ledger.jsonl').write_bytes(b''.join(lines[:-1]))
    with pytest.raises(config.ConfigError, match='does not continue'):
        tiny_run.run(folder, '--resume', **_TWO, state_dir=tmp_path / 'state')


def test_a_crash_while_the_classifier_learns_costs_nothing(cut_while_learning, tmp_path):
    folder = tiny_run.copy(cut_while_learning, tmp_path)
    assert tiny_run.kinds(folder) == ['plan', 'warm_start']
    _resume(folder)
    assert tiny_run.kinds(folder) == ['plan', 'warm_start', 'learned_features']
    assert (folder / 'learned_features.npz').exists()


def test_a_crash_in_the_fit_to_both_goes_on_from_the_file(cut_after_both, tmp_path):
    folder, fit = tiny_run.copy(cut_after_both, tmp_path), fitting.fit
    released = (folder / 'learned_features.npz').read_bytes()
    stored = learned.Release.from_bytes(released)
    started = []

    def fit_and_tell(generator, draw_inputs, targets, **how):
        started.append((len(targets), generator.get_weights()))
        return fit(generator, draw_inputs, targets, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, 'fit', fit_and_tell)
        _resume_without_a_release(folder, learn=tiny_run.cut)
    assert (folder / 'learned_features.npz').read_bytes() == released
    # From the generator that the classifier learned from, without its fit again.
    assert [count for count, _ in started] == [2]
    for a, b in zip(started[0][1], stored.generator):
        np.testing.assert_array_equal(a, b)


@pytest.mark.acceptance
def test_a_crash_in_either_fit_goes_on_from_its_checkpoint(tmp_path):
    """Of 4 and of 3 steps; with a checkpoint after each but the one that a power cut ends."""
    folder, fit = tmp_path / 'run', fitting.fit
    settings, to_go = {**_TWO, 'checkpoint_steps': 1}, []

    def cut_in_the_fit_to(count):
        def fit_or_cut(generator, draw_inputs, targets, **how):
            def numbers(steps):
                to_go.append(len(steps))
                yield from steps if len(targets) != count else list(steps)[:-1]
                if len(targets) == count:
                    tiny_run.cut()

            return fit(generator, draw_inputs, targets, **{**how, 'progress': numbers})

        return fit_or_cut

    with pytest.MonkeyPatch.context() as patch:
        for count, more in ((1, ()), (2, ('--resume',))):
            patch.setattr(fitting, 'fit', cut_in_the_fit_to(count))
            with pytest.raises(tiny_run.PowerCut):
                tiny_run.run(folder, *more, **settings)
        patch.setattr(fitting, 'fit', cut_in_the_fit_to(None))
        tiny_run.run_until_steps(folder, '--resume', **settings)
    assert to_go == [4, 1, 3, 1]
    # What the fits left is not kept beside the run's own checkpoints.
    assert [path.name for path in (folder / 'checkpoints').iterdir()] == ['step_000000']


def test_a_crash_before_the_first_is_saved_gives_the_second_up(tmp_path, capsys):
    folder = tmp_path / 'run'
    _start_and_cut(folder, files, 'write_atomically', _cut_before('warm_start.npy'))
    _resume_without_a_release(folder, learn=tiny_run.cut)
    assert 'the warm start was charged' in capsys.readouterr().out
    assert tiny_run.kinds(folder) == ['plan', 'warm_start', 'learned_features']
    assert not (folder / 'learned_features.npz').exists()


def test_a_file_that_the_ledger_does_not_know_is_refused(cut_while_learning, tmp_path):
    folder = tiny_run.copy(cut_while_learning, tmp_path)
    (folder / 'learned_features.npz').write_bytes(b'planted')
    with pytest.raises(config.ConfigError, match='knows of no such release. Start a new'):
        tiny_run.run(folder, '--resume', **_TWO, state_dir=tmp_path / 'state')


def test_a_finished_run_goes_on_with_both_targets(finished, monkeypatch, capsys):
    pulled = []
    monkeypatch.setattr(fitting, 'fit', tiny_run.cut)
    monkeypatch.setattr(fit_targets, 'SumOfTargets', lambda targets: pulled.append(len(targets)))
    monkeypatch.setattr(gan.EFSGDGan, 'set_target', lambda *_: None)
    tiny_run.run(finished, '--resume', '--noevaluate', **_TWO)
    assert pulled == [2]
    assert 'WARNING' not in capsys.readouterr().out


def test_the_share_cannot_change_when_a_run_goes_on(finished):
    changed = {**_TWO, 'learned_features_share': 0.4}
    with pytest.raises(config.ConfigError, match='learned_features_share was 0.3, is 0.4'):
        tiny_run.run(finished, '--resume', '--change_mechanism', '--noevaluate', **changed)


@pytest.mark.acceptance
def test_two_replicas_make_two_releases(tmp_path):
    lines = tiny_run.flags(tmp_path / 'run', '--noevaluate', **{**_TWO, 'train_steps': 2})
    lines = [line for line in lines if 'strategy' not in line]
    # Logical devices are set once in a process.
    more = ['--strategy=mirrored', '--logical_devices=2']
    finished = processes.run_module('launch', *lines, *more, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert tiny_run.kinds(tmp_path / 'run') == ['plan', 'warm_start', 'learned_features', 'steps']


@pytest.mark.acceptance
def test_without_a_warm_start_a_share_of_it_is_nothing(tmp_path):
    tiny_run.run(
        tmp_path / 'run', '--noevaluate', **{**_TWO, 'warm_start_share': 0, 'train_steps': 1}
    )
    assert set(tiny_run.kinds(tmp_path / 'run')) == {'plan', 'steps'}
    assert tiny_run.statement(tmp_path / 'run')['warm_start'] is None
