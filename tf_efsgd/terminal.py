"""What standard output and errors can show, and what happens when their reader ends.

Terminals and log files that cannot show every character get sigma for σ.

With `PYTHONIOENCODING=ascii`, with `LC_ALL=C`, and on terminals with an encoding other than UTF-8,
a letter that is not in the encoding would otherwise end the program or be garbled.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

_WORDS = {
    'σ': 'sigma',
    'ε': 'epsilon',
    'δ': 'delta',
    'ρ': 'rho',
    'β': 'beta',
    'γ': 'gamma',
    'μ': 'mu',  # The letter; the next line is the sign of a millionth.
    'µ': 'u',
    'λ': 'lambda',
    '·': '*',
    '×': 'x',
    '±': '+/-',
    '≤': '<=',
    '≥': '>=',
    '≈': '~',
    '−': '-',
    '–': '-',
    '—': '-',
    '…': '...',
    '→': '->',
    '←': '<-',
    '√': 'sqrt',
    '∞': 'infinity',
    '†': '+',
    '‘': "'",
    '’': "'",
    '“': '"',
    '”': '"',
    '\u00a0': ' ',
    '\u202f': ' ',
    '█': '#',
}
_FOR_WORDS, _OR_UTF8 = 'tf_efsgd.words', 'tf_efsgd.words_or_utf8'
# The file descriptor of standard error in every process.
_STDERR = 2
# The variables of the locale; the first that is set counts.
_LOCALE = ('LC_ALL', 'LC_CTYPE', 'LANG')


def hide_libraries() -> None:
    """Drops what libraries in C write to standard error, and keeps what Python writes.

    If `sys.stderr` is not the standard error of the process, as in a notebook, nothing changes.
    """
    stream = sys.stderr
    try:
        if stream is None or stream.fileno() != _STDERR:
            return
    except (OSError, ValueError):  # The stream has no file descriptor.
        return
    stream.flush()
    kept = os.dup(_STDERR)
    kept_stream = open(kept, 'w', buffering=1, encoding=stream.encoding, errors=stream.errors)
    goes_on = isinstance(stream, _GoesOn)
    sys.stderr = _GoesOn(kept_stream) if goes_on else kept_stream  # type: ignore[assignment]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)


class _GoesOn:
    """A stream whose output is dropped once its reader has ended.

    Args:
      stream: with a file descriptor.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text; returns the number of its letters."""
        with self._whoever_reads():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is held back."""
        with self._whoever_reads():
            self._stream.flush()

    @contextlib.contextmanager
    def _whoever_reads(self):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal was closed.
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def whoever_reads() -> Iterator[None]:
    """Lets the work inside continue when the reader of its output ends, as in `| head`.

    A stream without a file descriptor, as in a notebook, does not change.
    """
    before = sys.stdout, sys.stderr
    try:
        for stream in before:
            stream.fileno()
    except (AttributeError, OSError, ValueError):
        yield
        return
    ours = tuple(map(_GoesOn, before))
    sys.stdout, sys.stderr = ours  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in ours:
            stream.flush()
        # `hide_libraries` may have replaced one in the meantime.
        sys.stdout, sys.stderr = (
            old if now is own else now
            for old, own, now in zip(before, ours, (sys.stdout, sys.stderr))
        )


def open_closed_streams() -> None:
    """Opens standard output and errors to nowhere if they were closed, as with `>&-`."""
    for number, name in ((1, 'stdout'), (_STDERR, 'stderr')):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        setattr(sys, name, os.fdopen(number, 'w'))


def use_words() -> None:
    """Makes standard output and errors write words for letters that they cannot show.

    A letter without a word is written as its number. The function may be called several times. A
    stream that is neither a terminal nor a file, as in a notebook, does not change.
    """
    codecs.register_error(_FOR_WORDS, _words)
    codecs.register_error(_OR_UTF8, _words_or_utf8)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, 'reconfigure', None)
        if reconfigure is None:
            continue
        if _is_plain(os.environ) and codecs.lookup(stream.encoding).name == 'utf-8':
            # Python writes UTF-8 in this locale. Names of files are bytes, and stay as they are.
            reconfigure(encoding='ascii', errors=_OR_UTF8)
        elif stream.errors not in (_FOR_WORDS, _OR_UTF8):
            reconfigure(errors=_FOR_WORDS)


def _is_plain(environ: Mapping[str, str]) -> bool:
    """Whether the locale says that only ASCII can be shown."""
    if environ.get('PYTHONIOENCODING') or environ.get('PYTHONUTF8'):
        return False
    locale = next((environ[name] for name in _LOCALE if environ.get(name)), '')
    return locale in ('C', 'POSIX')


def _words(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return ''.join(_WORDS.get(c) or ascii(c)[1:-1] for c in characters), error.end


def _words_or_utf8(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if character in _WORDS:
        return _WORDS[character], error.start + 1
    # Names of files that are not UTF-8 are written with the bytes that Python read.
    is_of_file = '\udc80' <= character <= '\udcff'
    how = 'surrogateescape' if is_of_file else 'backslashreplace'
    return character.encode('utf-8', how), error.start + 1
