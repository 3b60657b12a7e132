"""Terminals and log files that cannot show every character: there σ is written sigma.

With `PYTHONIOENCODING=ascii`, with `LC_ALL=C` and on terminals in other encodings than UTF-8 a
letter that is not in the encoding would otherwise end the program, or be shown as rubbish.
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
    'μ': 'mu',  # The letter; below, the sign of a millionth.
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
# What a user says without saying an encoding: the first that is set counts.
_LOCALE = ('LC_ALL', 'LC_CTYPE', 'LANG')


def use_words() -> None:
    """Lets standard output and errors write words for letters that they cannot show.

    Whatever has no word stands there as its number. It may be called several times; a
    stream that is none of a terminal or file, as in a notebook, stays as it is.
    """
    codecs.register_error(_FOR_WORDS, _words)
    codecs.register_error(_OR_UTF8, _words_or_utf8)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, 'reconfigure', None)
        if reconfigure is None:
            continue
        if _is_plain(os.environ) and codecs.lookup(stream.encoding).name == 'utf-8':
            # Python writes UTF-8 there. Names of files are bytes, and stay as they are.
            reconfigure(encoding='ascii', errors=_OR_UTF8)
        elif stream.errors not in (_FOR_WORDS, _OR_UTF8):
            reconfigure(errors=_FOR_WORDS)


def _is_plain(environ: Mapping[str, str]) -> bool:
    """Whether the locale says that only ASCII is shown."""
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
    # What Python read from names of files that are no UTF-8 goes back as it was.
    is_of_file = '\udc80' <= character <= '\udcff'
    how = 'surrogateescape' if is_of_file else 'backslashreplace'
    return character.encode('utf-8', how), error.start + 1
