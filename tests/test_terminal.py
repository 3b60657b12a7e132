"""On a terminal that cannot show a letter its name stands there, and nothing ends over it."""

import io
import os
import pathlib
import subprocess
import sys

import pytest
from helpers import processes

from tf_efsgd import progress, terminal

_REPO = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def show(monkeypatch):
    """Prints a text to a terminal with an encoding; returns the bytes that come there."""

    def print_to(text, encoding, errors='strict', **environ):
        for name in ('PYTHONIOENCODING', 'PYTHONUTF8', 'LC_ALL', 'LC_CTYPE', 'LANG'):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, 'stdout', stream)
        terminal.use_words()
        terminal.use_words()
        print(text, end='', flush=True)
        monkeypatch.undo()
        return written.getvalue()

    return print_to


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('ε≤3 at δ = 1e-5', 'epsilon<=3 at delta = 1e-5'),
        ('σ·2 ± 1…', 'sigma*2 +/- 1...'),
        ('5 µs × 2–3', '5 us x 2-3'),
        ('Köln', 'K\\xf6ln'),
        ('\udce9.png \U0001f600', '\\udce9.png \\U0001f600'),
    ],
)
def test_ascii_gets_words(text, shown, show):
    assert show(text, 'ascii') == shown.encode()
    assert show(text, 'ascii', 'surrogateescape', PYTHONIOENCODING='ascii') == shown.encode()


def test_what_an_encoding_has_stays(show):
    assert show('Köln, σ', 'latin-1') == b'K\xf6ln, sigma'
    assert show('Köln, σ', 'utf-8', LC_ALL='de_DE.UTF-8') == 'Köln, σ'.encode()


def test_a_plain_locale_gets_words_and_names_of_files_as_they_are(show):
    """Python writes UTF-8 in the locale C, whatever the terminal shows."""
    shown = 'epsilon, Köln, '.encode() + b'\xe9.png'
    for environ in ({'LC_ALL': 'C'}, {'LC_ALL': 'POSIX'}, {'LC_CTYPE': 'C', 'LANG': 'de_DE'}):
        assert show('ε, Köln, \udce9.png', 'utf-8', 'surrogateescape', **environ) == shown
    assert show('ε', 'utf-8', LC_ALL='de_DE.UTF-8', LANG='C') == 'ε'.encode()
    assert show('ε', 'utf-8', LC_ALL='C', PYTHONUTF8='1') == 'ε'.encode()


def test_a_stream_that_has_no_encoding_to_set_is_left_alone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', stream)
    terminal.use_words()
    print('ε', end='')
    assert stream.getvalue() == 'ε'


def test_every_letter_of_ours_has_a_word():
    """All that the package can print; pages, pictures and comments are not for terminals."""
    unknown = {}
    for path in sorted((_REPO / 'tf_efsgd').rglob('*.py')):
        if {'reporting'} & set(path.parts):
            continue
        letters = {c for c in path.read_text('utf-8') if ord(c) > 127} - set(terminal._WORDS)
        if letters - set('éäń⁻⁰¹²³⁴⁵⁶⁷⁸⁹'):  # Of names and of powers in comments.
            unknown[path.name] = letters
    assert unknown == {}


def test_a_bar_moves_on_an_ascii_terminal(monkeypatch):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding='ascii')
    monkeypatch.setattr(sys, 'stderr', stream)
    terminal.use_words()
    with progress.Bar(total=2, desc='ε') as bar:
        bar.set_postfix_str('ε≤1 of 2')
        bar.update(2)
    stream.flush()
    assert b'epsilon<=1 of 2' in written.getvalue()


@pytest.mark.acceptance
def test_a_command_ends_well_on_an_ascii_terminal(tmp_path):
    """`plan` writes more of these letters than any other command."""
    arguments = ['--target_epsilon=9', '--dataset_size=6000', '--train_steps=30']
    arguments += ['--expected_batch_size=60', '--warm_start_share=0']
    done = processes.run_module('plan', *arguments, cwd=tmp_path, PYTHONIOENCODING='ascii')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.isascii() and 'epsilon' in done.stdout and '\\u' not in done.stdout


def test_what_a_library_writes_is_dropped_and_what_python_writes_is_not():
    code = (
        'import os, sys\n'
        'from tf_efsgd import terminal\n'
        'print("before", file=sys.stderr)\n'
        'terminal.hide_libraries()\n'
        'terminal.hide_libraries()\n'
        'os.write(2, b"of a library\\n")\n'
        'os.system("echo of a child >&2")\n'
        'print("σ", file=sys.stderr)\n'
        'raise SystemExit("an error")\n'
    )
    ended = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': str(_REPO), 'PYTHONIOENCODING': 'utf-8'},
        capture_output=True,
    )
    assert ended.stderr.decode('utf-8').splitlines() == ['before', 'σ', 'an error']
    assert ended.returncode == 1


def test_where_standard_errors_are_not_the_process_s_they_stay(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', stream)
    terminal.hide_libraries()
    assert sys.stderr is stream


def _shell(command, **environ):
    """Runs a command of a shell in which {python} is this Python."""
    return subprocess.run(
        ['bash', '-c', command.format(python=f"'{sys.executable}'")],
        env={**os.environ, 'PYTHONPATH': str(_REPO), **environ},
        capture_output=True,
        text=True,
    )


_TALKS = """
import pathlib, sys
from tf_efsgd import terminal
with terminal.whoever_reads():
    if sys.argv[1:]:
        terminal.hide_libraries()
    for _ in range(9999):
        print('x' * 99)
        print('y', file=sys.stderr)
    pathlib.Path('done').touch()
sys.exit(3)
"""


@pytest.mark.parametrize('hides_libraries', ['', 'too'])
def test_work_goes_on_when_nobody_reads_its_output(tmp_path, hides_libraries):
    (tmp_path / 'talks.py').write_text(_TALKS)
    talk = f'{{python}} talks.py {hides_libraries} 2>&1 | true'
    ended = _shell(f'cd {tmp_path}; {talk}; echo ${{{{PIPESTATUS[0]}}}}')
    assert ended.stdout == '3\n' and (tmp_path / 'done').exists(), ended


@pytest.mark.parametrize(
    ('command', 'code'), [('--help >&-', 0), ('--help 2>&-', 0), ('nothing 2>&- >&-', 2)]
)
def test_closed_streams_are_as_good_as_nowhere(command, code):
    assert _shell(f'{{python}} -m tf_efsgd {command}').returncode == code


@pytest.mark.parametrize('command', ['--help', 'plan --help', 'plan --helpfull'])
def test_help_whose_reader_has_read_enough_is_no_error(command):
    ended = _shell(f'{{python}} -m tf_efsgd {command} | true; echo ${{{{PIPESTATUS[0]}}}}')
    assert (ended.stdout, ended.stderr) == ('0\n', '')
