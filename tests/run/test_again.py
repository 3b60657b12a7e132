"""What a run leaves, made again from its folder: without its records."""

import json
import math
import shutil

import pytest
from helpers import tiny_run

from tf_efsgd.config import ConfigError
from tf_efsgd.export import checksums, versions
from tf_efsgd.reporting import report
from tf_efsgd.run import again, exports, verify


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run that exported nothing."""
    folder = tmp_path_factory.mktemp('again') / 'run'
    tiny_run.run(folder, '--noevaluate', '--noexport', warm_start_share=0.3, warm_start_steps=3)
    return folder


@pytest.fixture(autouse=True)
def _no_records(monkeypatch):
    monkeypatch.setattr('tf_efsgd.data.load.load', lambda *_, **__: pytest.fail('read records'))


@pytest.mark.acceptance
def test_an_export_is_made_once_of_the_last_checkpoint(folder):
    made = again.export(folder)
    assert made['is_new'] and made['export_dir'] == str(folder / 'export' / '1')
    statement = made['privacy_statement']
    assert statement['private'] and statement['steps'] == statement['applied_steps'] == 8
    assert 0 < statement['epsilon'] <= tiny_run.TARGET
    assert statement['class_names'] == list('0123456789')
    assert len(statement['released_class_counts']) == 10
    # About 160 each; the noise at this budget is some dozens.
    assert 1000 < sum(statement['released_class_counts']) < 2200
    # Nothing is known of other runs: the statement does not say that there are none.
    assert statement['together']['epsilon'] is None
    assert any('no comparison was made' in line for line in statement['not_covered'])
    assert not again.export(folder)['is_new']
    found = verify.verify(folder)
    assert (found['kind'], found['faults']) == ('run', [])
    assert found['epsilon'] == statement['epsilon']


def test_the_page_is_written_anew(folder):
    page = folder / 'report.html'
    before = page.read_text('utf-8')
    page.unlink()
    found = again.report(folder)
    assert found['report'] == str(page)
    after = page.read_text('utf-8')
    assert 'may be shared' in after and 'dp/fake_accuracy' in after
    epsilon = before[before.index('ε = ') :][:12]
    assert epsilon in after


def test_a_statement_that_says_less_than_the_ledger_is_found(folder, tmp_path):
    again.export(folder)
    path = folder / 'export' / '1' / versions.STATEMENT
    kept = path.read_bytes()
    statement = json.loads(kept)
    try:
        path.write_text(json.dumps({**statement, 'epsilon': statement['epsilon'] / 2}))
        faults = verify.verify(folder)['faults']
        assert any('by the ledger epsilon is' in line for line in faults)
        assert any('was changed' in line for line in faults)
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize('place', range(3))
def test_a_page_that_says_less_than_the_ledger_is_found(folder, tmp_path, place):
    again.export(folder)
    again.report(folder)
    copy = tmp_path / 'run'
    shutil.copytree(folder, copy)
    page = copy / 'report.html'
    text = page.read_text('utf-8')
    found = list(report._SAID.finditer(text))
    assert len(found) == 3  # In the banner, in short and in the table.
    group = found[place].lastindex
    start, end = found[place].span(group)
    page.write_text(text[:start] + '0.05' + text[end:], 'utf-8')
    (fault,) = verify.verify(copy)['faults']
    assert fault.startswith('by the ledger epsilon is')
    assert fault.endswith('report.html says 0.05')
    page.write_text('an empty page')
    assert verify.verify(copy)['faults'] == ['report.html does not say what was spent']


@pytest.mark.parametrize(
    ('said', 'claimed'), [('none', math.inf), ('9.28', 9.27911), ('1,000', 999.5)]
)
def test_a_page_may_say_what_the_ledger_says(tmp_path, said, claimed):
    page = tmp_path / 'report.html'
    page.write_text(f'<th>ε spent</th><td><b>{said}</b>', 'utf-8')
    assert not verify._faults_of_report(page, claimed)
    assert verify._faults_of_report(page, 1001) == [
        f'by the ledger epsilon is 1,001, and report.html says {said}'
    ]


def test_a_ledger_that_was_cut_is_refused(folder, tmp_path):
    """It would claim less than the checkpoint has learned from."""
    copy = tmp_path / 'run'
    shutil.copytree(folder, copy)
    path = copy / 'ledger.jsonl'
    path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[:-1]))
    for make in (again.export, again.report):
        with pytest.raises(ConfigError, match='does not continue the ledger'):
            make(copy)


def test_settings_that_were_changed_afterwards_are_refused(folder, tmp_path):
    copy = tmp_path / 'run'
    shutil.copytree(folder, copy)
    path = copy / 'config.flags'
    text = path.read_text()
    for setting, other, why in (
        ('--nosecure_noise', '--secure_noise', 'its ledger has another hash'),
        ('--target_epsilon=1.0', '--target_epsilon=0.5', 'are not those of its ledger'),
        ('--l2_norm_clip=1.0', '--l2_norm_clip=2.0', 'are not those of its ledger'),
        ('--train_steps=8', '--train_steps=9', 'are not those of its ledger'),
    ):
        assert text.count(f'{setting}\n') == 1
        path.write_text(text.replace(f'{setting}\n', f'{other}\n'))
        for make in (again.export, again.report):
            with pytest.raises(ConfigError, match=f'{why}, so .*config.flags was changed'):
                make(copy)


@pytest.mark.parametrize(
    ('name', 'value'),
    [('delta', 1e-20), ('unit_of_privacy', 'one person'), ('dataset_size', 5), ('dataset', 'x')],
)
def test_a_statement_that_contradicts_the_ledger_is_found(folder, tmp_path, name, value):
    """Even if somebody has made its checksums fit."""
    again.export(folder)
    copy = tmp_path / 'run'
    shutil.copytree(folder, copy)
    export = copy / 'export' / '1'
    path = export / versions.STATEMENT
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    checksums.write(export, versions.CHECKSUMS)
    assert any(f'the ledger says {name} = ' in line for line in verify.verify(copy)['faults'])
    (copy / 'ledger.jsonl').unlink()
    with pytest.raises(ConfigError, match='ledger.jsonl is missing'):
        verify.verify(copy)


def test_an_export_that_cannot_be_read_is_in_nobodys_way(folder, tmp_path):
    copy = tmp_path / 'run'
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / 'export', ignore_errors=True)
    (copy / 'export' / '7').mkdir(parents=True)
    shutil.rmtree(copy / 'logs')
    assert again.export(copy)['export_dir'] == str(copy / 'export' / '8')
    assert again.report(copy)['report'] == str(copy / 'report.html')


def test_what_is_no_run_is_said(tmp_path):
    for make in (again.export, again.report):
        with pytest.raises(ConfigError, match='is not a run folder'):
            make(tmp_path)
    assert exports.latest_of(tmp_path, {}) is None
