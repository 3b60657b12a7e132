"""Which image files a folder: data set has, and the class of each. No TensorFlow.

Formal guarantee:
  - Whether a file is an image of the data set, and its part and class, depend on its own path, on
    the names of folders and on its own row in a table of labels, never on another file.

The names of files, and how many there are, are private: they are shown only on the terminal.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import pathlib
import posixpath
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from tf_efsgd import files
from tf_efsgd.data import dicom
from tf_efsgd.data.records import DataError

SUFFIXES = (
    *('.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.bmp', '.gif', '.tif', '.tiff'),
    *('.heic', '.heif', '.avif', '.jp2', '.j2k'),
    *('.pgm', '.ppm', '.pnm', '.dcm', '.dicom'),
)
KINDS = '.png, .jpg, .webp, .bmp, .gif, .tif, .heic or .dcm'
# Programs leave these in folders of images. Names that begin with a dot are left out too.
_LITTER_FOLDERS = (
    *('@eadir', '@tmp', '#recycle', '#snapshot', '__macosx', '$recycle.bin'),
    *('system volume information', 'lost+found', '__pycache__'),
)
_LITTER_FILES = ('thumbs.db', 'desktop.ini', 'icon\r', 'dicomdir')
# The names of the parts of a data set.
_TRAIN, _TEST = ('train', 'training'), ('test', 'testing')
_VALIDATION = ('val', 'valid', 'validation', 'dev')
_OF_PART = re.compile(
    r'(^|[ _.-])(train|training|test|testing|val|valid|validation|dev|fold|split)'
    r'[ _.-]?\d*($|[ _.-])',
    re.IGNORECASE,
)
# The class of images that lie in no class folder.
ONLY_CLASS = 'images'
_CSV = 'csv:'
# The default of --label, which is an attribute of celeb_a.
_OF_OTHERS = 'Male'
_INNER = 'lie in folders within'
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class File:
    """One image file.

    Attributes:
      path: of the file.
      label: the number of its class.
      below: its path below its class folder; with a table of labels, below the folder of its part.
    """

    path: str
    label: int
    below: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The image files of a data set.

    Attributes:
      class_names: in the order of their labels.
      train: the files to train on, sorted by path.
      test: the files to test on, sorted by path; None if the data set has no such part.
      is_read_off: whether the classes were read off a table of labels.
      notes: whole sentences about what was ignored. Private: only for the terminal.
    """

    class_names: tuple[str, ...]
    train: tuple[File, ...]
    test: tuple[File, ...] | None
    is_read_off: bool
    notes: tuple[str, ...]


def shown(name: str) -> str:
    """A file's name in characters that can be printed and written, whatever bytes it has."""
    try:
        name.encode('utf-8')
    except UnicodeEncodeError:  # A name from an older system, most often in Latin-1.
        name = os.fsencode(name).decode('cp1252', 'replace')
    return ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in name)


def composed(name: str) -> str:
    """A name in the one Unicode form in which names are compared: macOS writes é as two signs."""
    return unicodedata.normalize('NFC', name)


def class_name(folder: str) -> str:
    """The name of the class whose images are in a folder of this name."""
    return composed(shown(folder))


def natural_key(name: str) -> tuple:
    """A key that sorts 2 before 10."""
    parts = re.split(r'([0-9]+)', name)
    return ([(int(p), '') if i % 2 else (-1, p) for i, p in enumerate(parts)], name)


class _Ignored:
    """Counts what is left out, for one line of notes."""

    def __init__(self):
        self._kinds: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        self._kinds[what] += count

    def notes(self) -> list[str]:
        if not self._kinds:
            return []
        most = self._kinds.most_common(_SHOWN)
        parts = [what if what[-1:] == ')' else f'{what} ({count:,})' for what, count in most]
        return [f'Ignored: {", ".join(parts)}.']


def table_of(label: str) -> str | None:
    """The file that a value of --label names as csv:FILE; None for another value."""
    return label[len(_CSV) :] if label.startswith(_CSV) else None


def find(
    root: pathlib.Path,
    classes: Sequence[str] | None = None,
    label: str = '',
    *,
    has_folders_of_persons: bool = False,
) -> Listing:
    """Finds the image files.

    Args:
      root: holds class folders, or the parts train, test and val with class folders in them, or
        images of one class; with a table of labels, images in any folders.
      classes: the declared classes, in order; None takes the names of the folders, also of empty
        ones, in natural order, or what the table says.
      label: 'csv:FILE' for a table with the columns file and label; '', and the default of
        --label, which is an attribute of celeb_a, mean folders.
      has_folders_of_persons: whether folders within class folders are known to be persons.

    Raises:
      DataError: if there is no image, or one has no declared class.
    """
    if classes is not None:
        classes = tuple(map(composed, classes))
    ignored = _Ignored()
    notes: list[str] = []
    table = table_of(label)
    if table is None and label not in ('', _OF_OTHERS):
        raise DataError(
            'A folder takes --label=csv:FILE, a table with the columns file and label, or no '
            f'--label, if its class folders are the labels. Received: {shown(label)}.'
        )
    train_root, test_root = _parts(root, ignored, notes, table is not None)
    roots = [r for r in (train_root, test_root) if r is not None]
    if table is not None:
        names, of_parts = _by_table(root, roots, classes, root / files.expanded(table))
        for _, walk in of_parts:
            walk.report(ignored)
        found = [listed for listed, _ in of_parts]
    else:
        if classes is None and train_root == root and not has_folders_of_persons:
            _check_depth(root)
        names = classes or _names_of_folders(train_root)
        found = [_by_folder(r, names, classes is not None, ignored, notes) for r in roots]
        notes = [note for note in notes if not (has_folders_of_persons and _INNER in note)]
    for part_root, part in zip(roots, found):
        if not part and table is not None and _Walk(part_root).files:
            raise DataError(
                f'No row of {shown(str(table))} names an image in {shown(str(part_root))}. Its '
                'column file must hold their paths below that folder, with /, for example '
                f'{shown(os.path.relpath(_Walk(part_root).files[0][0], part_root))}.'
            )
        if not part:
            where = 'or below it' if table is not None else 'in its class folders'
            instead = '' if part_root == train_root else ', or rename or remove that folder'
            raise DataError(
                f'{shown(str(part_root))} has no images ({KINDS}) {where}. Put images there'
                f'{instead}.'
            )
    if classes is None and len(names) > 1 and all(_OF_PART.search(name) for name in names):
        notes.append(
            f'WARNING: {", ".join(map(repr, names[:_SHOWN]))} look like parts of a data set, and '
            'are taken for classes: give the folder that holds the class folders, or name the '
            'parts train and test.'
        )
    return Listing(
        names,
        tuple(found[0]),
        tuple(found[1]) if test_root is not None else None,
        is_read_off=table is not None and classes is None,
        notes=(*notes, *ignored.notes()),
    )


def images_below(root: pathlib.Path) -> list[str]:
    """All image files in a folder, sorted; if it has parts, those to train on."""
    if not root.is_dir():
        return []
    train_root, _ = _parts(root, _Ignored(), [], False)
    return [path for path, _ in _Walk(train_root).files]


def _parts(
    root: pathlib.Path, ignored: _Ignored, notes: list[str], has_table: bool
) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The folders to train on and to test on; the second is None if there is none."""
    folders = _subfolders(root)
    by_name = {path.name.lower(): path for path in folders}
    train = next((by_name[name] for name in _TRAIN if name in by_name), None)
    # If there are other class folders, train/ with images directly in it is a class too.
    is_part = train is not None and (
        bool(_subfolders(train)) or has_table or set(by_name) <= {*_TRAIN, *_TEST, *_VALIDATION}
    )
    if not is_part:
        return root, None
    test = next((by_name[name] for name in _TEST if name in by_name), None)
    validation = next((by_name[name] for name in _VALIDATION if name in by_name), None)
    _Walk(root, deep=False).report(ignored)
    for path in folders:
        if path not in (train, test, validation):
            ignored.add(f'{shown(path.name)}/ (neither train, test nor val)')
    if validation is None:
        return train, test
    name = shown(validation.name)
    if test is None:
        notes.append(f'{name}/ is used for testing: there is no test/.')
        return train, validation
    notes.append(
        f'{name}/ is not used: {shown(test.name)}/ is used for testing. Move the images of {name}/ '
        f'into {shown(train.name)}/ to train on them too.'
    )
    return train, test


def _is_litter(name: str) -> bool:
    return name.startswith('.') or name.lower() in _LITTER_FOLDERS


def _is_circle(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a path in a folder is a link to that folder, or to one that contains it."""
    return path.is_symlink() and folder.resolve().is_relative_to(path.resolve())


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders that may be classes or parts, in natural order."""
    try:
        found = [
            path
            for path in folder.iterdir()
            if path.is_dir() and not _is_litter(path.name) and not _is_circle(path, folder)
        ]
    except OSError as error:
        raise DataError(f'{shown(str(folder))} cannot be read: {error.strerror}.') from error
    return sorted(found, key=lambda path: natural_key(class_name(path.name)))


def _names_of_folders(root: pathlib.Path) -> tuple[str, ...]:
    folders = _subfolders(root)
    names = tuple(class_name(path.name) for path in folders)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f'{shown(str(root))} has two folders whose names are shown alike, {twice[0]!r}. Rename '
            'one of them.'
        )
    if names:
        return names
    if _images_in(root):
        return (ONLY_CLASS,)
    raise DataError(
        f'{shown(str(root))} has no class folders and no images. Put images into '
        f'{shown(str(root))}/<class>/.'
    )


def _check_depth(root: pathlib.Path) -> None:
    """Raises DataError for a folder that holds nothing but the folder that was probably meant."""
    only, *others = _subfolders(root) or [root]
    if only == root or others or _images_in(root) or _images_in(only) or len(_subfolders(only)) < 2:
        return
    raise DataError(
        f'{shown(str(root))} has one folder, {shown(only.name)}, with folders in it. If these are '
        f'the classes, give folder:{shown(str(only))}. If {shown(only.name)} is one class, give '
        f'--classes with its name. Received: folder:{shown(str(root))}.'
    )


def _by_folder(
    root: pathlib.Path,
    names: tuple[str, ...],
    is_declared: bool,
    ignored: _Ignored,
    notes: list[str],
) -> list[File]:
    """The images below the class folders of a part."""
    loose = _Walk(root, deep=False)
    if len(names) == 1 and not _subfolders(root):
        loose.report(ignored)
        return [File(path, 0, below) for path, below in loose.files]
    if loose.files:
        ignored.add('images beside the class folders', len(loose.files))
    loose.report(ignored)
    labels = {name: label for label, name in enumerate(names)}
    found: list[File] = []
    nested = 0
    for folder in _subfolders(root):
        walk = _Walk(folder)
        walk.report(ignored)
        name = class_name(folder.name)
        if walk.files and name not in labels:
            declared = ', '.join(names[:_SHOWN])
            raise DataError(
                f'{shown(walk.files[0][0])} has the class {name!r}, which is not '
                + (
                    f'declared by --classes, {declared}. Declare the class or remove the image.'
                    if is_declared
                    else f'a folder of the training images, {declared}. Every class of the test '
                    'images must be one of the training images.'
                )
            )
        nested += sum(os.sep in below for _, below in walk.files)
        found += [File(path, labels[name], below) for path, below in walk.files]
    if nested:
        notes.append(
            f'{nested:,} images {_INNER} the class folders of {shown(root.name)}: '
            'they have the class of the outer folder. If the inner folders are persons, give '
            '--person=folder --images_per_person.'
        )
    return found


class _Walk:
    """Finds the image files in a folder and the folders within, and what else is there.

    Args:
      root: the folder.
      deep: whether to look into folders within.

    Attributes:
      files: (path, path below `root`), sorted.
    """

    def __init__(self, root: pathlib.Path, *, deep: bool = True):
        self.files: list[tuple[str, str]] = []
        self._others: Counter[str] = Counter()
        self._visit(root, '', deep)
        self.files.sort()

    def report(self, ignored: _Ignored) -> None:
        """Adds what is left out."""
        for what, count in self._others.items():
            ignored.add(what, count)

    def _visit(self, folder: pathlib.Path, below: str, deep: bool) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            self._others['folders that cannot be read'] += 1
            return
        for entry in entries:
            path = os.path.join(below, entry.name)
            kind = _kind_of(entry)
            if kind == 'folder':
                if _is_litter(entry.name):
                    self._others[f'{shown(entry.name)} folders'] += 1
                elif _is_circle(pathlib.Path(entry.path), folder):
                    self._others['links that lead in a circle'] += 1
                elif deep and entry.is_symlink():
                    # It may lead to another class, or back here. A link that takes the place of a
                    # class folder is followed.
                    self._others['links to folders within class folders'] += 1
                elif deep:
                    self._visit(pathlib.Path(entry.path), path, deep)
            elif kind == 'image':
                self.files.append((entry.path, path))
            else:
                self._others[kind] += 1


def _kind_of(entry: os.DirEntry) -> str:
    """'folder', 'image', or what is left out."""
    name = entry.name.lower()
    try:
        mode = entry.stat().st_mode
    except OSError:  # A link to nowhere; if it looks like an image, reading it reports the error.
        return 'image' if _has_suffix(name) else 'links to nowhere'
    if stat.S_ISDIR(mode):
        return 'folder'
    if name.startswith('.') or name in _LITTER_FILES:
        return 'hidden files'
    if not stat.S_ISREG(mode):  # Reading a named pipe would never end.
        return 'special files'
    if _has_suffix(name):
        return 'image'
    suffix = os.path.splitext(name)[1]
    # Files of hospitals often have no ending, or a number as their ending.
    if (not suffix or suffix[1:].isdigit()) and _is_dicom(entry.path):
        return 'image'
    return f'{shown(suffix)} files' if 1 < len(suffix) <= 10 else 'files without an ending'


def _has_suffix(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith('.')


def _is_dicom(path: str) -> bool:
    try:
        with open(path, 'rb') as file:
            return dicom.is_dicom(file.read(dicom.HEADER))
    except OSError:
        return False


def _images_in(folder: pathlib.Path) -> bool:
    return bool(_Walk(folder, deep=False).files)


# Labels from a table.


def _by_table(
    root: pathlib.Path,
    roots: Iterable[pathlib.Path],
    classes: tuple[str, ...] | None,
    path: pathlib.Path,
) -> tuple[tuple[str, ...], list[tuple[list[File], _Walk]]]:
    table = read_table(path, 'label', '--label')
    names = classes or tuple(sorted(set(filter(None, table.values())), key=natural_key))
    labels = {name: number for number, name in enumerate(names)}
    parts, used = [], set()
    bare: dict[str, str] = {}
    for part_root in roots:
        walk, listed = _Walk(part_root), []
        for file, below in walk.files:
            name = composed(pathlib.Path(os.path.relpath(file, root)).as_posix())
            # A bare name stands for files of that name in any folder.
            if name not in table:
                path_of, name = name, posixpath.basename(name)
                if name in table and bare.setdefault(name, path_of) != path_of:
                    raise DataError(
                        f'The table of labels names {shown(name)} without its folder, and there '
                        f'are {shown(bare[name])} and {shown(path_of)}. Give paths in the table.'
                    )
            label = table.get(name)
            if not label:
                what = 'with an empty label' if name in table else 'without a row'
                walk._others[f'images {what} in the table of labels'] += 1
                used.add(name)
                continue
            if label not in labels:
                raise DataError(
                    f'{shown(file)} has the class {label!r}, which is not declared by --classes, '
                    f'{", ".join(names[:_SHOWN])}. Declare the class or remove its row.'
                )
            used.add(name)
            listed.append(File(file, labels[label], below))
        parts.append((listed, walk))
    missing = sorted(set(table) - used)
    if missing:
        parts[0][1]._others[
            f'rows of the table of labels without an image, e.g. {shown(missing[0])}'
        ] += len(missing)
    return names, parts


def read_table(path: pathlib.Path, column: str, flag: str) -> dict[str, str]:
    """Reads a table: a CSV file with a header and the columns `file` and `column`.

    Args:
      path: of the CSV file, in UTF-8.
      column: the name of the column of values.
      flag: the setting that names the table, for messages.

    Returns:
      The value of each file, both in the form of `composed`.

    Raises:
      DataError: if it cannot be read, or gives a file two values.
    """
    try:
        rows = csv.DictReader(io.StringIO(files.read_text(path), newline=''), strict=True)
        columns = [name.strip() for name in rows.fieldnames or []]
        if not {'file', column} <= set(columns):
            raise DataError(
                f'{path} needs a header with the columns file and {column}, separated by '
                f'commas. Received: {", ".join(columns)[:100] or "nothing"}.'
            )
        rows.fieldnames = columns
        table: dict[str, str] = {}
        for row in rows:
            name = composed(posixpath.normpath((row['file'] or '').strip()))
            value = composed((row[column] or '').strip())
            if table.setdefault(name, value) != value:
                raise DataError(
                    f'{path} gives {name} to two {column}s, the second time in line '
                    f'{rows.line_num}. An image belongs to one {column}.'
                )
        return table
    except OSError as error:
        raise DataError(
            f'{path} cannot be read: {error.strerror}. The path of {flag}=csv:FILE is absolute, or '
            'relative to the folder of the data set.'
        ) from error
    except DataError:
        raise
    except (csv.Error, ValueError) as error:
        raise DataError(f'{path} is not a CSV file in UTF-8: {error}.') from error
