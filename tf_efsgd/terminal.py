"""Writes σ as sigma on terminals and in log files that cannot show every character.

With `PYTHONIOENCODING=ascii`, with `LC_ALL=C`, and on terminals with an encoding other than UTF-8,
a letter that is not in the encoding would otherwise end the program or be garbled.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Mapping

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
    sys.stderr = open(kept, 'w', buffering=1, encoding=stream.encoding, errors=stream.errors)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)


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
