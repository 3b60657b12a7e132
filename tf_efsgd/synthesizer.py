"""Private synthetic images in three lines of Python, for scripts and notebooks.

```python
synthesizer = tf_efsgd.Synthesizer(target_epsilon=10, minutes=30)
synthesizer.fit(images, labels)  # uint8 [N, H, W, C]; or .fit('folder:photos')
new_images, new_labels = synthesizer.sample(1000)
```

A fit is a run of `tf-efsgd train`: it has the same run folder and ledger, it can be resumed, and it
refuses the same settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import pathlib
import random
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from tf_efsgd import config, file_names, files
from tf_efsgd.config import ConfigError, recipes

# The form of the given labels and images, in a saved synthesizer beside the privacy statement.
_FORM = f'{file_names.EXTRA}/synthesizer.json'
# The same file in a run folder.
_FORM_OF_RUN = 'synthesizer.json'
_DEFAULT_EPSILON = 10.0


@dataclasses.dataclass(frozen=True)
class _Form:
    """The form in which images and labels were given, and are returned.

    Attributes:
      labels: 'integers' or 'names'.
      has_channels: whether images were [N, H, W, C], not [N, H, W].
    """

    labels: str = 'names'
    has_channels: bool = True

    def write(self, path: pathlib.Path) -> None:
        """Writes the form as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)) + '\n')


class Synthesizer:
    """Learns from images under differential privacy, and makes new ones.

    Args:
      target_epsilon: the epsilon of the whole run. None means 10; for a resumed run it means the
        epsilon of that run, and with a `noise_multiplier` the epsilon that follows from it.
      run_dir: the run folder, new or empty; None makes `runs/<data set>-<time>`.
      minutes: about how many minutes to train; None means 30.
      **settings: any other setting of `tf-efsgd train`, by the name of its flag, such as
        `image_size=32`, `images_per_person=3`, `resume=True` or `evaluate=False`.

    Raises:
      ConfigError: if a setting is unknown or wrong.
    """

    def __init__(
        self,
        target_epsilon: float | None = None,
        run_dir: str | os.PathLike | None = None,
        minutes: int | None = None,
        **settings,
    ):
        others = ('noise_multiplier', 'resume', 'private')
        if target_epsilon is None and not any(name in settings for name in others):
            target_epsilon = _DEFAULT_EPSILON
        given = {'target_epsilon': target_epsilon, 'run_dir': run_dir, 'minutes': minutes}
        self._settings = {
            name: value for name, value in {**given, **settings}.items() if value is not None
        }
        for name in self._settings:
            if name not in recipes.EVERYTHING:
                near = difflib.get_close_matches(name, recipes.EVERYTHING, 1)
                meant = f' Do you mean {near[0]}?' if near else ''
                raise ConfigError(
                    f'There is no setting {name!r}.{meant} tf-efsgd train --helpfull lists them.'
                )
        if 'dataset' in self._settings:
            raise ConfigError("Give the data set to fit, e.g. fit('folder:photos').")
        if self._settings.get('export') is False:
            raise ConfigError('A synthesizer needs its export to sample: leave export=False out.')
        self._form = _Form()
        self._export: pathlib.Path | None = None
        self._run_dir: pathlib.Path | None = None
        self._generator: Any = None
        self._parse('digits')  # Finds settings that are wrong whatever the data set is.

    def fit(self, images: Any, labels: Any = None) -> Synthesizer:
        """Trains a generator; privacy is spent.

        Args:
          images: uint8 [N, H, W, C] or [N, H, W]; or a name that `--dataset` takes, such as
            'folder:photos', 'mnist' or 'celeb_a'; or the path of a folder, such as 'photos/'.
          labels: integers or names, [N]; None if `images` is a name.

        Returns:
          The synthesizer.

        Raises:
          ConfigError: if the images, the labels or a setting cannot be used; nothing was spent.
          Interrupted: if Ctrl-C stopped training; `resume=True` continues.
          TensorFlowError: if TensorFlow failed; `resume=True` continues.
          OSError: for example if the disk is full; `resume=True` continues.
        """
        # TensorFlow's warnings tell sizes of tensors, and so of a batch; they are hidden here, too.
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
        from tf_efsgd.export import versions
        from tf_efsgd.run import arrays, runner
        from tf_efsgd.run import folder as run_folder

        if isinstance(images, (str, os.PathLike)):
            if labels is not None:
                raise ConfigError(
                    'A data set with a name brings its own labels: leave labels out. '
                    f'Received: {os.fspath(images)!r} and labels.'
                )
            sources, form, more = runner.Sources(), _Form(), {}
            dataset = _name_of(images)
        else:
            source = arrays.Arrays(images, labels)
            sources, form = runner.Sources(load=source.load), _Form(*source.form)
            dataset, more = source.name, source.settings(self._settings)
        run_config, given = self._parse(dataset, **more)
        # It stays the same folder when the program changes to another one.
        run_dir = pathlib.Path(os.path.abspath(run_folder.choose(run_config)))
        run = dataclasses.replace(run_config.run, run_dir=str(run_dir))
        ledger = run_dir / file_names.LEDGER
        is_others = ledger.exists() and not run.resume
        try:
            with _callers_randomness():
                runner.run(dataclasses.replace(run_config, run=run), sources, given=given)
        except BaseException:  # Also Ctrl-C.
            if ledger.exists() and not is_others and run_dir != self._run_dir:
                # Images of an earlier fit must not go with the page of this one.
                self._generator = self._export = None
                self._run_dir = run_dir
            raise
        self._run_dir = run_dir
        form.write(self._run_dir / _FORM_OF_RUN)
        self._use(versions.find(self._run_dir), form)
        return self

    def sample(self, count: int, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Makes new images, which costs no privacy, however many they are.

        Args:
          count: the number of images, at least 1.
          seed: in [0, 2^31); the same seed gives the same images. None draws one.

        Returns:
          (images uint8 [count, H, W, C], or [count, H, W] if they were given in this form; labels
          [count], integers or names as they were given).

        Raises:
          ConfigError: if there is no generator yet, or a number is out of its range.
        """
        from tf_efsgd.export import formats, synthetic_data
        from tf_efsgd.run import share

        generator = self._fitted()
        wanted = synthetic_data.Wanted(count=_whole('count', count), seed=_seed(seed))
        share.check(wanted)
        seed = secrets.randbelow(2**31) if seed is None else seed
        counts, _ = synthetic_data.class_counts(
            wanted, len(generator.class_names), generator.statement
        )
        labels = synthetic_data.labels_of(counts, seed)
        parts = [
            generator.generate(labels[first : first + formats.PART], (seed, first // formats.PART))
            for first in range(0, count, formats.PART)
        ]
        images = np.concatenate(parts)
        if not self._form.has_channels and images.shape[-1] == 1:
            images = images[..., 0]
        names = np.array(generator.class_names)
        if self._form.labels == 'integers':
            names = names.astype(np.int64)
        return images, names[labels]

    def save_images(
        self,
        directory: str | os.PathLike,
        count: int = 60_000,
        format: str = 'png',
        *,
        balance: str = 'auto',
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Writes a data set that may be shared, as `tf-efsgd generate` does.

        Args:
          directory: the folder to make.
          count: the number of images, at least 1.
          format: 'png', 'npz', 'tfrecord' or 'tfds'.
          balance: 'auto', 'even' or 'released', see `export.synthetic_data.Wanted`.
          seed: as in `sample`.

        Returns:
          The contents of its `generation.json`, and the privacy statement.

        Raises:
          ConfigError: if there is no generator yet, or a setting is wrong.
          OSError: for example if the disk is full; the same call continues.
        """
        from tf_efsgd.export import synthetic_data
        from tf_efsgd.run import share

        self._fitted()
        wanted = synthetic_data.Wanted(_whole('count', count), format, balance, _seed(seed))
        return share.generate(self._export, directory, wanted)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the generator and its privacy statement; they may be shared like the images.

        Args:
          directory: the folder to make, a SavedModel. For TF Serving its name must be a number.

        Raises:
          ConfigError: if there is no generator yet, or the folder exists.
        """
        from tf_efsgd.export import checksums, versions

        self._fitted()
        target = pathlib.Path(os.path.abspath(files.expanded(directory)))
        if os.path.lexists(target):
            raise ConfigError(f'The folder to save to must not exist yet. Received: {target}.')
        work = target.with_name(f'.{target.name}.tmp-save')
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self._export, work)
        self._form.write(work / _FORM)
        checksums.write(work, versions.CHECKSUMS)
        os.rename(work, target)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> Synthesizer:
        """Reads what `save` wrote, a run folder or an export; no records are needed to sample.

        Args:
          directory: the folder.

        Returns:
          A synthesizer that can sample.

        Raises:
          ConfigError: if there is no generator in the folder.
        """
        from tf_efsgd.export import versions

        loaded = cls()
        path = pathlib.Path(os.path.abspath(files.expanded(directory)))
        try:
            export = versions.find(path)
            noted = [p for p in (export / _FORM, path / _FORM_OF_RUN) if p.is_file()]
            form = _Form(**json.loads(noted[0].read_text())) if noted else _Form()
        except versions.ExportError as error:
            raise ConfigError(str(error)) from error
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f'{noted[0]} is damaged: copy the folder again. Received: {error}.'
            ) from error
        loaded._use(export, form)
        if (path / file_names.REPORT).is_file():
            loaded._run_dir = path
        return loaded

    @property
    def run_dir(self) -> pathlib.Path | None:
        """The run folder; None before `fit`, and if only an export was loaded."""
        return self._run_dir

    @property
    def statement(self) -> dict[str, Any]:
        """The privacy statement."""
        return self._fitted().statement

    @property
    def epsilon(self) -> float:
        """The epsilon that was spent; infinite where none is proven."""
        epsilon = self.statement.get('epsilon')
        return float('inf') if epsilon is None else float(epsilon)

    def report(self) -> pathlib.Path:
        """Returns the path of the page of the run, which may be shared.

        Raises:
          ConfigError: if there is no run, because only an export was loaded.
        """
        self._fitted()
        if self._run_dir is None:
            raise ConfigError(
                'The report is in the run folder, but this synthesizer was loaded from an export '
                'alone: use PRIVACY.html, which save_images writes beside its images.'
            )
        return self._run_dir / file_names.REPORT

    def _parse(self, dataset: str, **more: Any) -> tuple[config.RunConfig, frozenset[str]]:
        """Returns the settings of the run, and the names of those that were given."""
        settings = {**self._settings, **more, 'dataset': dataset}
        lines = [_flag(name, value) for name, value in settings.items()]
        if settings.get('resume') and settings.get('run_dir') is not None:
            # The command resumes in the same way: with the run's settings and what is given now.
            flagfile = files.expanded(settings['run_dir']) / file_names.FLAGFILE
            if flagfile.is_file():
                lines = [*files.read_text(flagfile).splitlines(), *lines]
        return config.parse_given('\n'.join(lines))

    def _use(self, export: pathlib.Path, form: _Form) -> None:
        from tf_efsgd.export import generated, versions

        try:
            self._generator = generated.ExportedGenerator(export)
        except versions.ExportError as error:
            raise ConfigError(str(error)) from error
        self._export, self._form = export, form

    def _fitted(self):
        if self._generator is None:
            raise ConfigError('There is no generator yet: call fit, or Synthesizer.load.')
        return self._generator


@contextlib.contextmanager
def _callers_randomness() -> Iterator[None]:
    """Gives the caller's random generators back as they were.

    A run seeds them with a public number. Whoever draws from them afterwards, e.g. for DP noise,
    must not draw what everybody can.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    before = random.getstate(), np.random.get_state(), context.global_seed()
    try:
        yield
    finally:
        tf_seed = before[2]
        # Keras and TensorFlow cannot be set back: they begin anew, from a seed that nobody knows.
        fresh = secrets.randbelow(2**31) if tf_seed is None else tf_seed
        tf.keras.utils.set_random_seed(fresh)
        tf.random.set_seed(tf_seed)
        random.setstate(before[0])
        np.random.set_state(before[1])


def _name_of(dataset: str | os.PathLike) -> str:
    """The value of --dataset for a name, or for the path of a folder."""
    name = os.fspath(dataset)
    is_path = isinstance(dataset, os.PathLike) or os.sep in name
    has_scheme = ':' in name.split(os.sep)[0]
    return f'folder:{name}' if is_path and not has_scheme else name


def _flag(name: str, value: Any) -> str:
    """Returns a setting as a line of a flagfile."""
    if isinstance(value, (bool, np.bool_)):
        return f'--{"" if value else "no"}{name}'
    if isinstance(value, (list, tuple)):
        value = config.join_classes([str(item) for item in value])
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if '\n' in text:
        raise ConfigError(f'{name} must be one line. Received: {text!r}.')
    return f'--{name}={text}'


def _seed(value: Any) -> int | None:
    return None if value is None else _whole('seed', value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigError(f'{name} must be a whole number. Received: {value!r}.')
    return int(value)
