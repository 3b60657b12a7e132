"""Classifiers that learn from real images, trained once and kept for the user alone.

They have seen the real training images. So they are private, as is whatever is measured with them,
and they are kept outside every run folder, where only the user can read them.
"""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from tf_efsgd import files
from tf_efsgd.evaluation import classifiers

if TYPE_CHECKING:
    from tf_efsgd.data.records import Records

# Part of a stored classifier's name: raise it when anything changes that the weights depend on.
_RECIPE = 1
# This does not depend on the epochs of other classifiers, because distances in the features of one
# classifier cannot be compared with those in the features of another.
_EPOCHS = 10


class RealClassifiers:
    """Classifiers that are trained on real images, once for each data set, and kept in a folder.

    They learn from real training images and are NOT covered by any epsilon, so the folder must be
    outside the run folder. Only the user may read it and its files (modes 0700 and 0600).

    Args:
      train: the records to train on.
      folder: where to keep them; made if it is missing.
      epochs: number of passes over the training images, at least 1.
      verbose: whether to show progress.
    """

    def __init__(
        self,
        train: Records,
        folder: str | os.PathLike,
        *,
        epochs: int = _EPOCHS,
        verbose: bool = False,
    ):
        self._train = train
        self._folder = pathlib.Path(folder)
        self._epochs = epochs
        self._verbose = verbose
        self._content = _content_hash(train)

    def get(self, build: classifiers.Build, *, seed: int) -> classifiers.Trained:
        """Returns the classifier with this seed: reads it, or else trains and keeps it.

        Args:
          build: `classifiers.build_cnn` or `classifiers.build_mlp`.
          seed: seed of everything random in its training.

        Returns:
          The trained classifier.
        """
        settings = repr((_RECIPE, self._content, build.__name__, self._epochs, seed))
        path = self._folder / f'{hashlib.sha256(settings.encode()).hexdigest()}.npz'
        kept = self._read(path, build, seed)
        if kept is not None:
            return kept
        name = build.__name__[len('build_') :]
        trained = classifiers.train(
            self._train,
            build=build,
            epochs=self._epochs,
            seed=seed,
            progress=f'{name} learns from real images, once' if self._verbose else None,
        )
        _keep(path, trained)
        return trained

    def _read(self, path: pathlib.Path, build: classifiers.Build, seed: int):
        """Returns the classifier in a file; None if there is none, or if it is damaged."""
        if not path.exists():
            return None
        model = build(self._train.image_shape, self._train.num_classes, seed=seed)
        try:
            with np.load(path, allow_pickle=False) as stored:
                model.set_weights([stored[f'weight_{i}'] for i in range(len(model.weights))])
                return classifiers.Trained(
                    model, int(stored['chosen_epoch']), float(stored['held_out_accuracy'])
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            print(f'{path} is damaged, so its classifier is trained again.')
            return None


def _content_hash(records: Records) -> str:
    """Returns the SHA-256 of records in their order, with their shape and classes."""
    digest = hashlib.sha256(repr((records.images.shape, records.num_classes)).encode())
    digest.update(np.ascontiguousarray(records.images).data)
    digest.update(records.labels.astype('<i4').tobytes())
    return digest.hexdigest()


def _keep(path: pathlib.Path, trained: classifiers.Trained) -> None:
    os.makedirs(path.parent, mode=0o700, exist_ok=True)
    buffer = io.BytesIO()
    weights = {f'weight_{i}': weight for i, weight in enumerate(trained.model.get_weights())}
    np.savez(
        buffer,
        chosen_epoch=trained.chosen_epoch,
        held_out_accuracy=trained.held_out_accuracy,
        **weights,
    )
    files.write_atomically(path, buffer.getvalue(), mode=0o600)
