"""--help; a user's mistakes on the command line: one line each, exit code 2, nothing written."""

import os
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from helpers import processes

from tf_efsgd import config
from tf_efsgd.cli import arguments, audit, bench, evaluate, results, state, train
from tf_efsgd.run import runner

_BUDGET = ['--dataset=digits', '--noise_multiplier=1']


def _launch(*arguments, cwd, module='launch'):
    """Runs the launcher, or another module, in its own process."""
    # Conftest sets it for itself; the launcher has its own idea of it.
    return processes.run_module(module, *arguments, cwd=cwd, TF_CPP_MIN_LOG_LEVEL=None)


def _assert_one_line(finished, *said):
    assert finished.returncode == 2, finished.stderr
    # Nothing but the line that says what is trained on, once the settings are right.
    assert all(line.startswith('Training on ') for line in finished.stdout.splitlines())
    assert finished.stderr.startswith('tf_efsgd: ')
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    for text in said:
        assert text in finished.stderr


def _pictures(folder, count=3):
    """A folder: data set with an image that is none."""
    rng = np.random.default_rng(1)
    for name in ('cat', 'dog'):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 1)).astype(np.uint8)
            tf.io.write_file(str(folder / name / f'{i}.png'), tf.io.encode_png(pixels))
    (folder / 'dog' / '9.png').write_bytes(b'no image at all')


def test_a_run_is_resumed_by_its_folder_alone(tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    given = ['tf-efsgd train', '--resume', f'--run_dir={run}', '--seed=3']
    assert train.with_settings_of_run(given) == given  # It has no settings.
    (run / 'config.flags').write_text('--seed=2\n')
    assert train.with_settings_of_run(given) == [
        given[0],
        f'--flagfile={run / "config.flags"}',
        *given[1:],
    ]
    apart = ['x', '--run_dir', str(run), '--resume']
    assert train.with_settings_of_run(apart)[1] == f'--flagfile={run / "config.flags"}'
    for own in ([*given, '--flagfile=x.flags'], [a for a in given if a != '--resume']):
        assert train.with_settings_of_run(own) == own


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_is_an_interruption(number, capsys):
    before = signal.getsignal(number)
    tidied = []
    with pytest.raises(SystemExit) as ended:
        with arguments.one_line_errors(), arguments.signals_as_interrupts():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except BaseException:
                tidied.append(True)
                raise
    assert ended.value.code == 128 + number and tidied
    assert capsys.readouterr().err == '\ntf_efsgd: interrupted.\n'
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ('module', 'define_flags'),
    [
        ('launch', config.define_flags),
        ('evaluate', evaluate.define_flags),
        ('audit', audit.define_flags),
        ('benchmark', bench.define_flags),
        ('results', results.define_flags),
        ('state', state.define_flags),
    ],
)
def test_help_lists_every_flag(module, define_flags, tmp_path):
    values = flags.FlagValues()
    define_flags(values)
    shown = _launch('--helpfull', cwd=tmp_path, module=module).stdout
    shown = ''.join(shown.split())  # Lines are wrapped.
    assert len(values) >= 2
    for name in values:
        prefix = '[no]' if values[name].boolean else ''
        assert f'--{prefix}{name}{"".join(values[name].help.split())}' in shown
    assert list(tmp_path.iterdir()) == []


# Found before TensorFlow is loaded: fast enough for a process each.


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([*_BUDGET, '--target_epsilon=3'], ['--target_epsilon', '--noise_multiplier', 'both']),
        (['--dataset=digits'], ['--target_epsilon', '--noise_multiplier', 'neither']),
        (['--flagfile=no_such.flags'], ["'no_such.flags'", 'demo.flags']),
        ([*_BUDGET, '--no_such_flag=1'], ['no_such_flag']),
        ([*_BUDGET, '--train_step=1'], ['train_step', 'train_steps']),
        ([*_BUDGET, '--train_steps=many'], ['train_steps', 'many']),
        ([*_BUDGET, '--l2_norm_clip=-1'], ['--l2_norm_clip', 'at least 1e-09', '-1']),
        ([*_BUDGET, '--strategy=two'], ['--strategy', 'mirrored', 'two']),
        ([*_BUDGET, 'mnist'], ['PATH and --dataset say the same', 'mnist']),
        ([*_BUDGET, '--resume'], ['--run_dir']),
    ],
    ids=lambda value: value[-1] if value[0].startswith('--') else '',
)
def test_wrong_flags(arguments, said, tmp_path):
    _assert_one_line(_launch(*arguments, cwd=tmp_path), *said)
    assert list(tmp_path.iterdir()) == []


# Found afterwards: the launcher prints what runner.run raises, which two processes show.


def test_an_unreadable_image_is_named(tmp_path):
    _pictures(tmp_path / 'pets')
    before = sorted(tmp_path.rglob('*'))
    finished = _launch('--dataset=folder:pets', '--noise_multiplier=1', cwd=tmp_path)
    _assert_one_line(finished, os.path.join('dog', '9.png'), 'Repair or remove it')
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.acceptance
def test_an_unknown_data_set_is_named(tmp_path):
    finished = _launch('--dataset=fashion_mnits', '--noise_multiplier=1', cwd=tmp_path)
    _assert_one_line(finished, "'fashion_mnits'", 'fashion_mnist', 'folder:PATH')
    assert list(tmp_path.iterdir()) == []


def _refusal(arguments, folder, monkeypatch):
    """What runner.run says, run in `folder`, which it must leave as it was."""
    monkeypatch.chdir(folder)
    before = {path: path.is_dir() or path.read_bytes() for path in folder.rglob('*')}
    with pytest.raises(config.ConfigError) as caught:
        lines = [*_BUDGET, '--strategy=one_device', *arguments]
        runner.run(config.from_flagfile('\n'.join(lines)))
    assert {p: p.is_dir() or p.read_bytes() for p in folder.rglob('*')} == before
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--dataset=no_such'], ["'no_such'", 'folder:PATH']),
        (['--dataset=folder:no/such'], ["/no/such'"]),
        (['--dataset=idx:no/such'], ["/no/such'"]),
        (['--expected_batch_size=1603'], ['--expected_batch_size', '1602', '1603']),
        (['--image_size=30'], ['30', 'size is 28']),
        (['--image_size=9'], ['9', 'size is 8']),
        (['--resume', '--run_dir=no_such_run'], ['resume', 'no_such_run']),
    ],
    ids=lambda value: value[-1].lstrip('-'),
)
@pytest.mark.parametrize('private', ['--private', '--noprivate'])
def test_what_does_not_fit_the_data(arguments, said, private, tmp_path, monkeypatch):
    message = _refusal([*arguments, private], tmp_path, monkeypatch)
    for text in said:
        assert text in message


def test_a_run_folder_that_is_used_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / 'used').mkdir()
    (tmp_path / 'used' / 'mine.txt').write_text('kept')
    message = _refusal(['--run_dir=used'], tmp_path, monkeypatch)
    assert 'used' in message and '--resume' in message
    message = _refusal(['--run_dir=used/mine.txt'], tmp_path, monkeypatch)
    assert 'must be a folder' in message


def _started(folder, *arguments):
    (folder / 'run').mkdir()
    settings = config.from_flagfile('\n'.join([*_BUDGET, '--strategy=one_device', *arguments]))
    (folder / 'run' / 'config.flags').write_text(settings.to_flags())
    (folder / 'run' / 'logs').mkdir()


@pytest.mark.parametrize(
    ('changed', 'said'),
    [
        ('--train_steps=7', ['--train_steps was 6, is 7']),
        ('--l2_norm_clip=0.7', ['--l2_norm_clip was 0.3, is 0.7']),
        ('--seed=2', ['--seed was 1, is 2']),
        ('--latent_dim=5', ['--latent_dim']),
        ('--noprivate', ['--private was True, is False']),
    ],
)
def test_a_run_goes_on_with_the_same_settings_only(changed, said, tmp_path, monkeypatch):
    settings = ['--train_steps=6', '--l2_norm_clip=0.3', '--seed=1']
    _started(tmp_path, *settings)
    resumed = [*settings, changed, '--run_dir=run', '--resume']
    message = _refusal(resumed, tmp_path, monkeypatch)
    for text in [*said, os.path.join('run', 'config.flags')]:
        assert text in message


def test_a_run_without_its_ledger_does_not_go_on(tmp_path, monkeypatch):
    _started(tmp_path)
    message = _refusal(['--run_dir=run', '--resume'], tmp_path, monkeypatch)
    assert 'ledger.jsonl is missing' in message
