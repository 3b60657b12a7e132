"""Where features come from: a classifier of real images, the 2015 Inception network, pixels.

The classifier has seen the real training images: it is private, like whatever is measured with it,
and is kept where only the user can read it, outside every run folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import socket
import tarfile
import zipfile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.special
import tensorflow as tf

from tf_efsgd import files
from tf_efsgd.evaluation import classifiers
from tf_efsgd.evaluation.progress import progress_bar

if TYPE_CHECKING:
    from tf_efsgd.data.records import Records

# Part of a stored classifier's name: raise it when anything that makes the weights changes.
_RECIPE = 1
# The same whatever other classifiers get: distances in the features of one classifier cannot be
# compared with those of another.
_EPOCHS = 10

INCEPTION_URL = 'http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz'
_INCEPTION_GRAPH = 'classify_image_graph_def.pb'
# What goes in, scaled, and what comes out, in the network's own names.
_INCEPTION_INPUT, _INCEPTION_FEATURES = 'Mul', 'pool_3'
_INCEPTION_SIZE = 299
_INCEPTION_BATCH_SIZE = 32
_DOWNLOAD_TIMEOUT_SECONDS = 20

# Pixels as features are averaged down to at most so many a side.
_PIXELS_SIDE = 16


class ExtractorError(ValueError):
    """A network cannot be had; the message is one line that says what to do."""


class Seen(NamedTuple):
    """What a classifier makes of n images: float32 [n, d] and float64 [n, classes]."""

    features: np.ndarray
    probabilities: np.ndarray


class Look:
    """What a classifier sees: the features and class probabilities of images.

    Args:
      model: from `classifiers.build_cnn` or `build_mlp`, trained.
    """

    def __init__(self, model: tf.keras.Model):
        features = model.get_layer(classifiers.FEATURES).output
        self._model = tf.keras.Model(model.inputs, [features, model.output])

    def __call__(self, images: np.ndarray, progress: str | None = None) -> Seen:
        """Looks at images.

        Args:
          images: uint8 [n, H, W, C], n >= 1.
          progress: what the progress bar is called; None draws none.
        """
        batches = []
        with progress_bar(progress, len(images)) as bar:
            for batch in classifiers.outputs(self._model, images):
                batches.append(batch)
                bar.update(len(batch[0]))
        features, logits = (np.concatenate(column) for column in zip(*batches))
        return Seen(features, scipy.special.softmax(logits.astype(np.float64), axis=1))


def pixel_features(images: np.ndarray) -> np.ndarray:
    """The pixels themselves, averaged down: features without any network.

    Args:
      images: uint8 [n, H, W, C].

    Returns:
      float32 [n, d] in [-1, 1].
    """
    side = min(_PIXELS_SIDE, images.shape[1])
    parts = [
        tf.image.resize(images[start : start + 1024], [side, side], method='area').numpy()
        for start in range(0, len(images), 1024)
    ]
    return np.concatenate(parts).reshape(len(images), -1) / 127.5 - 1.0


class RealClassifiers:
    """Classifiers trained on real images, once per data set, kept in a folder.

    They are made of real training images and NOT covered by any epsilon: the folder must lie
    outside the run folder. It and its files are for the user alone (modes 0700 and 0600).

    Args:
      train: what they are trained on.
      folder: where they are kept; made when it is missing.
      epochs: passes over the training images, at least 1.
      verbose: whether progress is shown.
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
        """The classifier with this seed: read if it is kept, else trained and kept.

        Args:
          build: `classifiers.build_cnn` or `classifiers.build_mlp`.
          seed: of everything random in its training.
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
        """The classifier in a file; None when there is none, or it is damaged."""
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
            print(f'{path} is damaged: its classifier is trained again.')
            return None


def _content_hash(records: Records) -> str:
    """SHA-256 of records, in their order, with their shape and classes."""
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


class Inception:
    """The 2015 Inception network: the features that published FIDs are made of.

    Keras' InceptionV3 is another network with other weights, and a FID with it cannot be compared
    with a published one. This reads the frozen graph itself, `classify_image_graph_def.pb` (also
    inside the archive it is published in), or TF-GAN's copy of it without the part that resizes.

    Args:
      path: of the frozen graph, or of a .tgz that holds it.

    Raises:
      ExtractorError: if there is no such graph.
    """

    def __init__(self, path: str | os.PathLike):
        graph_def = tf.compat.v1.GraphDef()
        try:
            graph_def.ParseFromString(_read_graph(pathlib.Path(path).expanduser()))
        except (OSError, tarfile.TarError, ValueError, RuntimeError, EOFError) as error:
            raise ExtractorError(_no_inception(path, str(error))) from error
        except Exception as error:  # protobuf's DecodeError is no subclass of the above.
            raise ExtractorError(_no_inception(path, 'not a frozen graph')) from error
        names = {node.name for node in graph_def.node}
        missing = {_INCEPTION_INPUT, _INCEPTION_FEATURES} - names
        if missing:
            raise ExtractorError(
                _no_inception(path, f'the graph has no node {" and no ".join(sorted(missing))}')
            )
        self._run = tf.compat.v1.wrap_function(
            lambda images: _import(graph_def, images),
            [tf.TensorSpec([None, None, None, 3], tf.float32)],
        )

    def __call__(self, images: np.ndarray, progress: str | None = None) -> np.ndarray:
        """The 2,048 features of `pool_3`.

        Args:
          images: uint8 [n, H, W, C], C is 1 or 3; resized to 299 x 299 as the network was trained.
          progress: what the progress bar is called; None draws none.

        Returns:
          float32 [n, d].
        """
        parts = []
        with progress_bar(progress, len(images)) as bar:
            for start in range(0, len(images), _INCEPTION_BATCH_SIZE):
                batch = images[start : start + _INCEPTION_BATCH_SIZE].astype(np.float32)
                if batch.shape[-1] == 1:
                    batch = np.repeat(batch, 3, axis=-1)
                parts.append(self._run(tf.constant(batch)).numpy())
                bar.update(len(batch))
        return np.concatenate(parts)


def _import(graph_def: tf.compat.v1.GraphDef, images: tf.Tensor) -> tf.Tensor:
    # As the graph itself does it before this node: resized without half-pixel centres, then
    # (x - 128) / 128.
    resized = tf.compat.v1.image.resize_bilinear(images, [_INCEPTION_SIZE, _INCEPTION_SIZE])
    (features,) = tf.graph_util.import_graph_def(
        graph_def,
        input_map={f'{_INCEPTION_INPUT}:0': (resized - 128.0) / 128.0},
        return_elements=[f'{_INCEPTION_FEATURES}:0'],
    )
    return tf.reshape(features, [tf.shape(images)[0], -1])


def _read_graph(path: pathlib.Path) -> bytes:
    if path.is_dir():
        path = path / _INCEPTION_GRAPH
    if not tarfile.is_tarfile(path):
        return path.read_bytes()
    with tarfile.open(path) as archive:
        for member in archive:
            if pathlib.PurePosixPath(member.name).name == _INCEPTION_GRAPH:
                return archive.extractfile(member).read()
    raise ValueError(f'the archive holds no {_INCEPTION_GRAPH}')


def _no_inception(path: str | os.PathLike, reason: str) -> str:
    return (
        f'--inception_weights must be {_INCEPTION_GRAPH} of the 2015 Inception network, or the '
        f'archive from {INCEPTION_URL}: {reason}. Received: {path}'
    )


def download_inception(folder: str | os.PathLike) -> str:
    """Downloads the 2015 Inception network, once.

    Args:
      folder: where it is kept.

    Returns:
      The path of the archive.

    Raises:
      ExtractorError: if it cannot be downloaded.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        return tf.keras.utils.get_file(
            origin=INCEPTION_URL, cache_dir=os.fspath(folder), cache_subdir='inception'
        )
    except Exception as error:  # get_file raises plain Exceptions.
        raise ExtractorError(
            f'The Inception network cannot be downloaded ({" ".join(str(error).split())}): '
            'download it elsewhere and give --inception_weights=PATH.'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
