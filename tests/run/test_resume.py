"""A run that was stopped continues, and one whose records, ledger or settings changed does not."""

import concurrent.futures
import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from helpers import account_by_hand as by_hand
from helpers import event_files, tiny_run
from tensorflow.python.framework import config as tf_config

from tf_efsgd import config, rounding
from tf_efsgd.privacy import accounting
from tf_efsgd.privacy.ledger import Ledger
from tf_efsgd.run import checkpoints, runner
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.context import Sources
from tf_efsgd.training import callbacks as monitoring


def _run_until(folder, step, number, *more, **changes):
    """Runs until a signal comes in the middle of a step."""
    on_end = monitoring.BeforeEachStep.on_train_batch_begin

    def on_begin(self, batch, logs=None):
        on_end(self, batch, logs)
        if int(self.model.private_steps.numpy()) == step - 1:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitoring.BeforeEachStep, 'on_train_batch_begin', on_begin)
        with pytest.raises(runner.Interrupted) as stopped:
            tiny_run.run(folder, *more, **changes)
    return stopped.value


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """A run that SIGTERM stopped in its fifth step; with its state folder."""
    base = tmp_path_factory.mktemp('stopped')
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    interrupted = _run_until(base / 'run', 5, signal.SIGTERM, f'--state_dir={base}/state')
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert interrupted.signal_number == signal.SIGTERM
    assert f'--flagfile={base}/run/config.flags --run_dir={base}/run --resume' in str(interrupted)
    return base


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of the stopped run and of what is remembered of it."""
    return tiny_run.copy(stopped, tmp_path)


def _resume(folder, *more, **changes):
    changes = {'state_dir': folder.parent / 'state', **changes}
    tiny_run.run(folder, '--resume', '--noevaluate', *more, **changes)


def _content(folder):
    """All files, but for the locks of the state folder."""
    files = [p for p in folder.parent.rglob('*') if p.is_file() and p.suffix != '.lock']
    return {path: path.read_bytes() for path in files}


def _refusal(folder, *more, **changes):
    before = _content(folder)
    with pytest.raises(config.ConfigError) as caught:
        _resume(folder, *more, **changes)
    assert _content(folder) == before, 'a refused resume must change nothing'
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_a_signal_saves_after_the_step_and_charges_what_was_reserved(stopped):
    saved = sorted(path.name for path in (stopped / 'run' / 'checkpoints').iterdir())
    assert saved == ['step_000003', 'step_000005']
    assert tiny_run.reserved(stopped / 'run') == [2, 2, 2]


def test_a_stopped_run_goes_on_to_the_end_of_its_budget(run):
    _resume(run)
    assert tiny_run.reserved(run) == [2, 2, 2, 2]
    statement = tiny_run.statement(run)
    # The sixth step was reserved and not run.
    assert (statement['steps'], statement['applied_steps']) == (8, 7)
    assert 0.99 * tiny_run.TARGET < statement['epsilon'] <= tiny_run.TARGET


def test_a_second_signal_stops_at_once(monkeypatch):
    stop = monitoring.StopOnSignal(lambda: pytest.fail('no time for a checkpoint'))
    before = signal.getsignal(signal.SIGINT)
    stop.on_train_begin()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize('is_ignored', [False, True])
def test_a_closed_terminal_stops_with_a_checkpoint_unless_that_is_ignored(is_ignored):
    before = signal.getsignal(signal.SIGHUP)
    ours = signal.SIG_IGN if is_ignored else signal.SIG_DFL  # `nohup` ignores it.
    signal.signal(signal.SIGHUP, ours)
    try:
        stop = monitoring.StopOnSignal(lambda: None)
        stop.on_train_begin()
        os.kill(os.getpid(), signal.SIGHUP)
        stop.restore_handlers()
        assert stop.received is (None if is_ignored else signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is ours
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_stay_as_they_are_where_another_thread_trains():
    stop = monitoring.StopOnSignal(lambda: None)
    before = signal.getsignal(signal.SIGINT)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(stop.on_train_begin).result()
        pool.submit(stop.restore_handlers).result()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ('change', 'back', 'said'),
    [
        (
            lambda: tf.keras.backend.set_floatx('float64'),
            lambda: tf.keras.backend.set_floatx('float32'),
            'floatx float32',
        ),
        (
            lambda: tf.keras.backend.set_image_data_format('channels_first'),
            lambda: tf.keras.backend.set_image_data_format('channels_last'),
            'channels_last',
        ),
        (
            lambda: tf.keras.mixed_precision.set_global_policy('mixed_float16'),
            lambda: tf.keras.mixed_precision.set_global_policy('float32'),
            'Received: mixed_float16',
        ),
        (
            tf.config.experimental.enable_op_determinism,
            tf_config.disable_op_determinism,
            'unset TF_DETERMINISTIC_OPS',
        ),
    ],
)
def test_global_settings_with_which_no_run_ends_well_are_refused(tmp_path, change, back, said):
    change()
    try:
        with pytest.raises(config.ConfigError, match=said):
            tiny_run.run(tmp_path / 'run', '--noevaluate')
    finally:
        back()
    assert not (tmp_path / 'run').exists()


# What a run is refused for.


def _changed(change):
    """Sources of other records: what `change` makes of images and labels."""
    load = run_folder.load_records

    def load_changed(settings):
        dataset = load(settings)
        images, labels = change(dataset.train.images.copy(), dataset.train.labels.copy())
        train = dataclasses.replace(dataset.train, images=images, labels=labels)
        return dataclasses.replace(dataset, train=train)

    return Sources(load=load_changed)


def _other_pixel(images, labels):
    images[700, 3, 3, 0] ^= 1
    return images, labels


def _one_fewer(images, labels):
    return images[1:], labels[1:]


def test_other_records_of_the_same_shape_are_refused(run):
    assert 'fingerprint' in _refusal(run, sources=_changed(_other_pixel))


def test_fewer_records_are_refused_and_named(run):
    sources = _changed(_one_fewer)
    assert 'fingerprint' in _refusal(run, sources=sources)
    said = _refusal(run, dataset_size=1601, sources=sources)
    assert '--dataset_size was 1602, is 1601' in said


def test_settings_that_were_edited_behind_a_runs_back_are_refused(run):
    path = run / 'config.flags'
    path.write_text(path.read_text().replace('--reconstruction_weight=0.01', ''))
    path.write_text(path.read_text() + '--reconstruction_weight=0.02\n')
    said = _refusal(run, reconstruction_weight=0.02)
    assert 'config.flags was changed' in said


def test_a_run_that_nobody_remembers_needs_a_flag(run, capsys):
    shutil.rmtree(run.parent / 'state')
    os.mkdir(run.parent / 'state')
    assert '--resume_unverified' in _refusal(run)
    # Then only the public facts are compared, their number too, and the run is remembered again.
    said = _refusal(run, '--resume_unverified', sources=_changed(_one_fewer))
    assert 'dataset_size was 1602, is 1601' in said
    _resume(run, '--resume_unverified', sources=_changed(_other_pixel))
    assert 'not checked' in capsys.readouterr().out
    run_id = Ledger.read(run / 'ledger.jsonl').run_id
    remembered = {path.name for path in (run.parent / 'state').glob('*.json')}
    assert remembered == {f'{run_id}.json', f'{run_id}.seen.json'}
    assert tiny_run.statement(run)['unverified_resumes'] == 1
    assert Ledger.read(run / 'ledger.jsonl').unverified_resumes == 1


def test_a_ledger_that_lost_its_last_entry_is_refused(run):
    # The last checkpoint was written with it, so that one is made to agree; the memory does not.
    path = run / 'ledger.jsonl'
    shutil.rmtree(run / 'checkpoints' / 'step_000005')
    path.write_text(''.join(path.open().readlines()[:-1]))
    assert Ledger.read(path).reserved_steps == 4
    assert 'does not continue' in _refusal(run)


def test_a_copy_of_a_run_that_was_trained_further_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / 'copy')
    old = (run / 'ledger.jsonl').read_bytes()
    _resume(run)
    assert 'does not continue' in _refusal(tmp_path / 'copy')
    # So is the old ledger, put back.
    (run / 'ledger.jsonl').write_bytes(old)
    assert 'does not continue' in _refusal(run)


def test_a_ledger_in_use_is_refused(run):
    ledger = Ledger(run / 'ledger.jsonl')
    assert 'another process' in _refusal(run)
    ledger.close()


def test_the_memory_of_a_run_is_kept_out_of_its_folder(run):
    for place in (run, run / 'state'):
        message = _refusal(run, state_dir=place)
        assert '--state_dir must be outside the run folder' in message


def test_damaged_checkpoints(run):
    (run / 'checkpoints' / 'step_000005' / 'variables.index').write_bytes(b'')
    _resume(run)
    # Back at step 3 with two steps left to reserve.
    assert tiny_run.statement(run)['applied_steps'] == 5
    for path in (run / 'checkpoints').glob('step_*'):
        (path / 'manifest.json').unlink()
    with pytest.raises(config.ConfigError, match='Every checkpoint'):
        _resume(run)


def test_without_any_checkpoint_what_was_spent_stays_spent(run, capsys):
    shutil.rmtree(run / 'checkpoints')
    _resume(run)
    assert 'no checkpoint' in capsys.readouterr().out
    statement = tiny_run.statement(run)
    assert (statement['steps'], statement['applied_steps']) == (8, 2)


def test_a_start_that_was_cut_off_before_its_ledger_starts_anew(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    settings = config.from_flagfile('\n'.join(tiny_run.flags(folder, '--strategy=one_device')))
    (folder / 'config.flags').write_text(settings.to_flags())
    (folder / '.ledger.jsonl.tmp-0123').write_bytes(b'{"ki')
    assert 'was never trained in' in _refusal(folder)
    tiny_run.run(folder, '--noevaluate', '--noexport', train_steps=1)
    assert tiny_run.reserved(folder) == [1]


def test_a_full_disk_stops_the_run_and_it_goes_on_later(run, monkeypatch):
    save = checkpoints.RunCheckpoints._write

    def fail(self, *_):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left'):
        patch.setattr(checkpoints.RunCheckpoints, '_write', fail)
        _resume(run)
    assert save is checkpoints.RunCheckpoints._write
    # Step 6 was charged and lost; it is charged no less than it was.
    assert sum(tiny_run.reserved(run)) == 8
    assert not list((run / 'checkpoints').glob('.*'))
    _resume(run)
    statement = tiny_run.statement(run)
    assert (statement['steps'], statement['applied_steps']) == (8, 5)


# A change of the mechanism.


def _filter_epsilon(run):
    """Of the first plan's 8 steps, at the noise that is accounted for what is drawn."""
    plan = Ledger.read(run / 'ledger.jsonl').first_plan
    sigma = by_hand.effective_step(plan.mechanism['noise_multiplier'], 2 * plan.private_parameters)
    planned = accounting.step_event(accounting.sampling_probability(160, 1602), sigma)
    return accounting.compute_epsilon(planned, 8, by_hand.accounted_delta(1e-5)).rdp


def test_a_change_of_the_mechanism_needs_a_flag_and_a_larger_target(run):
    said = _refusal(run, residual_share=0.3)
    assert '--residual_share was 0.1, is 0.3' in said
    said = _refusal(run, '--change_mechanism', residual_share=0.3)
    epsilon = rounding.up(_filter_epsilon(run))
    assert f'epsilon = {epsilon}: accept it with --target_epsilon={epsilon}, or' in said
    for setting, name in (
        ('--noprivate', 'private'),
        ('--target_delta=1e-4', 'target_delta'),
        ('--secure_noise', 'secure_noise'),
        ('--seed=9', 'seed'),
    ):
        said = _refusal(run, '--change_mechanism', setting, target_epsilon=2.0)
        assert f'--{name} was' in said
    said = _refusal(run, '--change_mechanism', error_feedback='hidden', target_epsilon=2.0)
    assert 'hidden' in said
    said = _refusal(run, '--change_mechanism', expected_batch_size=5000, target_epsilon=2.0)
    assert 'at most the number of records, 1602' in said


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ('changes', 'left'),
    [
        ({'residual_share': 0.3}, 2),
        # Twice the noise of a step: more steps fit, as many as --train_steps asks for.
        ({'noise_multiplier': 9.0, 'train_steps': 12}, 6),
        ({'expected_batch_size': 60, 'train_steps': 13}, 7),
    ],
)
def test_a_changed_run_stays_within_the_filter_of_the_first_plan(run, changes, left, capsys):
    target = round(_filter_epsilon(run) + 0.01, 2)
    _resume(run, '--change_mechanism', target_epsilon=target, **changes)
    ledger = Ledger.read(run / 'ledger.jsonl')
    assert (ledger.changes, ledger.reserved_steps) == (1, 6 + left)
    statement = tiny_run.statement(run)
    assert statement['accountant'] == 'RDP filter'
    assert statement['epsilon'] == pytest.approx(_filter_epsilon(run), rel=1e-7)
    assert statement['epsilon'] <= target == statement['target_epsilon']
    # What a sequence fixed in advance would have cost is less, and is shown apart.
    assert statement['epsilon_pld_fixed_in_advance_only'] < statement['epsilon']
    assert statement['epsilon_rdp_fixed_in_advance_only'] <= statement['epsilon'] + 1e-9
    assert 'epsilon_pld' not in statement
    assert [part['steps'] for part in statement['events']] in ([6, left], [6 + left])
    entries = monitoring.read_scalars(str(run / 'logs'))
    assert entries[-1]['dp/epsilon'] == pytest.approx(statement['epsilon'])
    # The settings now are the changed ones, and the run can be resumed with them.
    saved = config.from_flagfile(f'{(run / "config.flags").read_text()}--resume\n--run_dir=x')
    for name, value in changes.items():
        assert getattr(saved.privacy, name) == value
    capsys.readouterr()
    _resume(run, target_epsilon=target, **changes)
    assert Ledger.read(run / 'ledger.jsonl').reserved_steps == 6 + left
    shown = rounding.up(statement['epsilon'])
    assert f'ε of the whole run = {shown} (RDP filter)' in capsys.readouterr().out


def test_a_change_never_allows_more_than_the_filter(run):
    target = round(_filter_epsilon(run) + 0.01, 2)
    said = _refusal(
        run, '--change_mechanism', target_epsilon=target, residual_share=0.3, train_steps=9
    )
    assert '6 steps are spent' in said and '--train_steps=8 or less' in said


def test_a_change_that_was_cut_off_behind_its_ledger_entry(run):
    target = round(_filter_epsilon(run) + 0.01, 2)
    old = (run / 'config.flags').read_text()
    changes = {'target_epsilon': target, 'residual_share': 0.3}
    _run_until(
        run, 6, signal.SIGINT, '--resume', '--change_mechanism', '--noevaluate',
        f'--state_dir={run.parent}/state', **changes,
    )  # fmt: skip
    (run / 'config.flags').write_text(old)
    # With the old settings it would be another change; with the new ones it is none.
    assert '--change_mechanism' in _refusal(run)
    _resume(run, '--change_mechanism', **changes)
    assert Ledger.read(run / 'ledger.jsonl').changes == 1
    assert '--residual_share=0.3' in (run / 'config.flags').read_text()


# The published variant, and what it is told about.


def test_a_hidden_buffer_is_private_state_and_its_epsilon_is_the_honest_one(tmp_path, capsys):
    folder = tmp_path / 'run'
    hidden = {'error_feedback': 'hidden', 'train_steps': 3}
    tiny_run.run(folder, '--noevaluate', **hidden)
    statement = tiny_run.statement(folder)
    assert statement['private'] is True
    assert 0.999 * tiny_run.TARGET < statement['epsilon'] <= tiny_run.TARGET
    assert statement['accountant'] == 'closed form'
    assert statement['epsilon_unproven'] < 0.1 * statement['epsilon']
    assert 'unproven' in capsys.readouterr().out
    saved = list((folder / 'checkpoints').glob('step_*'))
    assert saved and all((path / 'PRIVATE.txt').exists() for path in saved)
    assert not [p for p in (folder / 'export').rglob('*') if 'PRIVATE' in p.name]


@pytest.mark.acceptance
def test_a_hidden_run_without_a_target_is_not_called_private(tmp_path, capsys):
    folder = tmp_path / 'run'
    flags = [f for f in tiny_run.flags(folder, '--noevaluate') if '--target_epsilon' not in f]
    flags += ['--strategy=one_device', '--noise_multiplier=1', '--error_feedback=hidden']
    flags += ['--train_steps=3']
    runner.run(config.from_flagfile('\n'.join(flags)))
    statement = tiny_run.statement(folder)
    assert statement['private'] is False
    # sqrt(3) (1 + 2 * 1) / 1 and what the grid costs, solved.
    parameters = statement['private_parameters']
    mu = 3**0.5 / by_hand.effective_step(1 / 3, parameters)
    assert mu > 27**0.5
    assert statement['epsilon'] == pytest.approx(
        accounting.gaussian_epsilon(mu, by_hand.accounted_delta(1e-5))
    )
    # What plain DP-SGD accounting would print.
    assert statement['epsilon_unproven'] < statement['epsilon'] / 3
    assert 'NOT PRIVATE' in (folder / 'report.html').read_text()
    assert 'NOT PRIVATE' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('flag', 'steps', 'said'),
    [
        ('--noise_multiplier=0.2', 3, 'at least 0.25'),
        ('--noise_multiplier=1e-170', 3, 'at least 0.25'),
        ('--noise_multiplier=0.5 --error_feedback=hidden', 3, 'Received: 0.167'),
    ],
)
def test_noise_that_hides_nothing_is_refused(flag, steps, said, tmp_path):
    flags = [f for f in tiny_run.flags(tmp_path / 'run') if '--target_epsilon' not in f]
    flags += [*flag.split(), f'--train_steps={steps}', '--strategy=one_device']
    with pytest.raises(config.ConfigError, match=said):
        runner.run(config.from_flagfile('\n'.join(flags)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.acceptance
def test_an_epsilon_beyond_reason_is_not_called_private(tmp_path, capsys):
    flags = [f for f in tiny_run.flags(tmp_path / 'run', '--noevaluate') if '--target_eps' not in f]
    flags += ['--noise_multiplier=0.25', '--expected_batch_size=1602', '--train_steps=20']
    runner.run(config.from_flagfile('\n'.join([*flags, '--strategy=one_device'])))
    statement = tiny_run.statement(tmp_path / 'run')
    assert statement['epsilon_of_the_ideal_mechanism'] > 100 and statement['private'] is False
    assert (statement['epsilon'], statement['accountant']) == (None, 'none')
    printed = capsys.readouterr()
    assert 'Spent ε = none at δ = 1e-05 (none)' in printed.out
    assert 'NOT PRIVATE' in printed.out and 'An ε this large cannot be proven' in printed.out
    assert 'ε≤none of none' in printed.err
    assert 'NOT PRIVATE' in (tmp_path / 'run/report.html').read_text()


# What TensorFlow says.


@pytest.mark.parametrize('show', [False, True])
def test_the_size_of_a_batch_is_not_in_what_an_error_says(run, show, monkeypatch):
    text = 'OOM when allocating tensor with shape[157,16,10]'

    def fail(self, *_):
        raise tf.errors.ResourceExhaustedError(None, None, text)

    monkeypatch.setattr(monitoring.BeforeEachStep, 'on_train_batch_begin', fail)
    more = ['--log_nonprivate_diagnostics'] if show else []
    with pytest.raises((runner.TensorFlowError, tf.errors.OpError)) as caught:
        _resume(run, *more)
    assert ('157' in str(caught.value)) == show
    if not show:
        assert 'ResourceExhaustedError' in str(caught.value) and 'memory' in str(caught.value)
        assert caught.value.__suppress_context__


# Randomness and diagnostics.


@pytest.mark.acceptance
def test_secure_noise_takes_every_bit_from_the_operating_system(tmp_path, monkeypatch):
    asked = []
    real = os.urandom

    def urandom(count):
        asked.append(count)
        return real(count)

    monkeypatch.setattr(os, 'urandom', urandom)
    folder = tmp_path / 'run'
    tiny_run.run(folder, '--noevaluate', '--secure_noise', train_steps=3)
    assert tiny_run.statement(folder)['randomness'] == 'operating system'
    # Of each step: 4 bytes per record to sample it, 3 words of 8 bytes per noisy number.
    assert asked.count(4 * 1602) >= 3
    plan = Ledger.read(folder / 'ledger.jsonl').plan
    of_noise = [count for count in asked if count % 24 == 0 and count != 4 * 1602]
    assert sum(of_noise) >= 3 * 2 * 24 * plan.private_parameters > 3 * 2 * 24 * 500


@pytest.mark.acceptance
def test_diagnostics_are_written_apart_and_warned_of(tmp_path, capsys):
    folder = tmp_path / 'run'
    tiny_run.run(folder, '--noevaluate', '--log_nonprivate_diagnostics', train_steps=4)
    assert 'NOT covered' in capsys.readouterr().out
    assert event_files.tags(folder / 'nonprivate' / 'logs') == {
        f'nonprivate/{name}'
        for name in (
            'batch_size', 'real_loss', 'real_accuracy', 'reconstruction_loss', 'gradient_norm',
            'clipped_fraction', 'not_finite_fraction',
        )
    }  # fmt: skip
    released = event_files.tags(folder / 'logs') - event_files.OVERVIEW
    assert released and all(tag.startswith('dp/') for tag in released)
    assert 'NOT covered' in (folder / 'nonprivate' / 'NOT_COVERED.txt').read_text()
    shared = [p for p in folder.rglob('*') if p.is_file() and 'nonprivate' not in p.parts]
    assert folder / 'ledger.jsonl' in shared
    for name in (b'real_loss', b'gradient_norm_mean', b'clipped_fraction'):
        assert not [p for p in shared if name in p.read_bytes()]
    events = event_files.read(folder / 'nonprivate' / 'logs')
    size = [np.frombuffer(e.tensor_proto.tensor_content, np.float32)[0]
            for e in events.Tensors('nonprivate/batch_size')]  # fmt: skip
    assert len(size) == 2 and all(80 < s < 250 for s in size)


def test_no_byte_of_a_stopped_run_holds_what_is_remembered_of_it(stopped):
    run_id = Ledger.read(stopped / 'run' / 'ledger.jsonl').run_id
    state = json.loads((stopped / 'state' / f'{run_id}.json').read_text())
    secrets = [state['key'].encode(), state['records'].encode(), bytes.fromhex(state['key'])]
    files = [path for path in (stopped / 'run').rglob('*') if path.is_file()]
    assert {'ledger.jsonl', 'config.flags', 'manifest.json'} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path
    # The same search finds them where they are.
    assert secrets[0] in (stopped / 'state' / f'{run_id}.json').read_bytes()
