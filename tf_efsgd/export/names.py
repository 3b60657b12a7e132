"""Turns names of classes into names of folders that every file system takes. No TensorFlow."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from tf_efsgd import file_names

# The longest name in bytes. File systems allow 255, and a path has several names.
_LONGEST = 80
# Readers of folders of images take these words in a path for names of splits.
_SPLITS = (
    *('train', 'training', 'test', 'testing', 'eval', 'evaluation', 'dev', 'val', 'valid'),
    'validation',
)
# Names of files beside the class folders, in lower case.
_FILES = tuple(
    name.casefold()
    for name in (
        *(file_names.LABELS, file_names.README, file_names.PAGE, file_names.CROISSANT),
        *(file_names.GENERATION, 'samples.png', file_names.CHECKSUMS, file_names.STATEMENT),
    )
)
# Names that Windows reserves, with any extension.
_DEVICES = ('con', 'prn', 'aux', 'nul', *(f'{p}{n}' for p in ('com', 'lpt') for n in range(10)))


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Names a folder for each class, after the class if its name is safe.

    Args:
      class_names: any names, in the order of the labels.

    Returns:
      Names that differ even if upper and lower case are the same. A name of which nothing is left,
      or that would be taken for a split, becomes `class_<label>`.
    """
    found: list[str] = []
    taken = set(_FILES)
    for label, class_name in enumerate(class_names):
        name = _safe(class_name) or f'class_{label}'
        if name.casefold() in taken:
            name = f'{name}_{label}'
        while name.casefold() in taken:
            name += '_'
        taken.add(name.casefold())
        found.append(name)
    return found


def _safe(class_name: str) -> str | None:
    text = class_name.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
    text = unicodedata.normalize('NFC', text)
    # Replaces all that is no letter or digit of any script, and not one of these.
    text = re.sub(r'[^\w .+()-]', '_', text)
    text = ' '.join(text.split()).strip(' .')
    text = text.encode()[:_LONGEST].decode('utf-8', 'ignore').rstrip(' .')
    if not re.search(r'[^\W_]', text) or text.casefold().split('.')[0] in _DEVICES:
        return None
    words = re.split(r'[^a-z]+', text.casefold())
    return None if text[0] in '-~' or any(word in _SPLITS for word in words) else text


def dataset_name(text: str) -> str:
    """Makes a name for a data set as TFDS wants it: lower-case letters, digits, underscores."""
    name = re.sub(r'[^a-z0-9]+', '_', text.casefold()).strip('_')
    return name if name[:1].isalpha() else f'data_{name}'.strip('_')
