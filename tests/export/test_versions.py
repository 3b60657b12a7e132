"""Where exports are found, and how their checksums are told."""

import json
import os
import subprocess

import pytest

from tf_efsgd.export import checksums, versions


def _make(path, statement=None):
    (path / 'assets.extra').mkdir(parents=True)
    (path / 'saved_model.pb').write_text('')
    (path / versions.STATEMENT).write_text(json.dumps(statement or {'private': True}))


def test_versions_count_on_and_ten_comes_after_nine(tmp_path):
    assert versions.next_version(tmp_path / 'none').name == '1'
    for name in ('9', '10', '.11.tmp-x', '012', '٣', 'old'):
        (tmp_path / name).mkdir()
    assert [path.name for path in versions.all_versions(tmp_path)] == ['9', '10']
    assert versions.next_version(tmp_path).name == '11'


def test_a_run_its_exports_and_one_of_them_are_found(tmp_path):
    run = tmp_path / 'run'
    _make(run / 'export' / '1')
    _make(run / 'export' / '2')
    (run / 'export' / '3').mkdir()  # Of something else.
    for path in (run, run / 'export', run / 'export' / '2'):
        assert versions.find(path) == run / 'export' / '2'
    assert versions.find(run / 'export' / '1') == run / 'export' / '1'


def test_what_is_no_export_is_said(tmp_path):
    with pytest.raises(versions.ExportError, match='There is no folder'):
        versions.find(tmp_path / 'missing')
    with pytest.raises(versions.ExportError, match='holds no exported generator'):
        versions.find(tmp_path)
    _make(tmp_path / '1')
    for text in ('{}', '[]', 'x', '{"private": 1}'):
        (tmp_path / '1' / versions.STATEMENT).write_text(text)
        with pytest.raises(versions.ExportError, match='damaged'):
            versions.read_statement(tmp_path / '1')
    (tmp_path / '1' / versions.STATEMENT).unlink()
    with pytest.raises(versions.ExportError, match='must not be shared'):
        versions.read_statement(tmp_path / '1')


def test_checksums_tell_what_is_missing_new_or_changed(tmp_path):
    names = ['a.txt', 'b/c d.txt', 'b/back\\slash\nline', os.fsdecode(b'caf\xe9')]
    (tmp_path / 'b').mkdir()
    for name in names:
        (tmp_path / name).write_text(name, errors='surrogateescape')
    checksums.write(tmp_path, 'SHA256SUMS')
    assert checksums.differences(tmp_path, 'SHA256SUMS') == []
    check = ['sha256sum', '--check', '--quiet', 'SHA256SUMS']
    assert subprocess.run(check, cwd=tmp_path).returncode == 0
    (tmp_path / 'a.txt').unlink()
    (tmp_path / 'new').write_text('')
    (tmp_path / names[2]).write_text('other')
    assert checksums.differences(tmp_path, 'SHA256SUMS') == [
        'a.txt is missing',
        'new is in no list of checksums',
        f'{names[2]} was changed: its checksum differs',
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [(None, 'no list of checksums'), ('', 'lists no file'), ('abc  x\n', 'damaged')],
)
def test_a_list_that_is_none_is_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / 'SHA256SUMS').write_text(text)
    with pytest.raises(checksums.ChecksumError, match=message):
        checksums.differences(tmp_path, 'SHA256SUMS')
