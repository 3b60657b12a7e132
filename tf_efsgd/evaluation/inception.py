"""The 2015 Inception network, whose features published FIDs use."""

from __future__ import annotations

import os
import pathlib
import socket
import tarfile

import numpy as np
import tensorflow as tf

from tf_efsgd import files
from tf_efsgd.progress import progress_bar

URL = 'http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz'
_GRAPH = 'classify_image_graph_def.pb'
# What goes in, scaled, and what comes out, in the network's own names.
_INPUT, _FEATURES = 'Mul', 'pool_3'
_SIZE = 299
_BATCH_SIZE = 32
_TIMEOUT_SECONDS = 20


class InceptionError(ValueError):
    """The network cannot be obtained; the message is one line that says what to do."""


class Inception:
    """The 2015 Inception network, whose features published FIDs use.

    Keras' InceptionV3 is another network with other weights, and an FID with it cannot be compared
    with a published one. This class reads the frozen graph itself, `classify_image_graph_def.pb`
    (also inside the archive in which it is published), or TF-GAN's copy of it without the part that
    resizes.

    Args:
      path: the path of the frozen graph, or of a .tgz that contains it.

    Raises:
      InceptionError: if there is no such graph.
    """

    def __init__(self, path: str | os.PathLike):
        graph_def = tf.compat.v1.GraphDef()
        try:
            graph_def.ParseFromString(_read_graph(files.expanded(path)))
        except (OSError, tarfile.TarError, ValueError, RuntimeError, EOFError) as error:
            raise InceptionError(_refusal(path, str(error))) from error
        except Exception as error:  # protobuf's DecodeError is no subclass of the above.
            raise InceptionError(_refusal(path, 'not a frozen graph')) from error
        names = {node.name for node in graph_def.node}
        missing = {_INPUT, _FEATURES} - names
        if missing:
            raise InceptionError(
                _refusal(path, f'the graph has no node {" and no ".join(sorted(missing))}')
            )
        self._run = tf.compat.v1.wrap_function(
            lambda images: _import(graph_def, images),
            [tf.TensorSpec([None, None, None, 3], tf.float32)],
        )

    def __call__(self, images: np.ndarray, progress: str | None = None) -> np.ndarray:
        """Computes the 2,048 features of `pool_3`.

        Args:
          images: uint8 [n, H, W, C], C is 1 or 3. They are resized to 299 x 299, as in the
            training of the network.
          progress: title of the progress bar; None draws none.

        Returns:
          The features, float32 [n, 2048].
        """
        parts = []
        with progress_bar(progress, len(images)) as bar:
            for start in range(0, len(images), _BATCH_SIZE):
                batch = images[start : start + _BATCH_SIZE].astype(np.float32)
                if batch.shape[-1] == 1:
                    batch = np.repeat(batch, 3, axis=-1)
                parts.append(self._run(tf.constant(batch)).numpy())
                bar.update(len(batch))
        return np.concatenate(parts)


def _import(graph_def: tf.compat.v1.GraphDef, images: tf.Tensor) -> tf.Tensor:
    # The graph itself does the same before this node: it resizes without half-pixel centres and
    # then computes (x - 128) / 128.
    resized = tf.compat.v1.image.resize_bilinear(images, [_SIZE, _SIZE])
    (features,) = tf.graph_util.import_graph_def(
        graph_def,
        input_map={f'{_INPUT}:0': (resized - 128.0) / 128.0},
        return_elements=[f'{_FEATURES}:0'],
    )
    return tf.reshape(features, [tf.shape(images)[0], -1])


def _read_graph(path: pathlib.Path) -> bytes:
    if path.is_dir():
        path = path / _GRAPH
    if not tarfile.is_tarfile(path):
        return path.read_bytes()
    with tarfile.open(path) as archive:
        for member in archive:
            if pathlib.PurePosixPath(member.name).name == _GRAPH:
                return archive.extractfile(member).read()
    raise ValueError(f'the archive holds no {_GRAPH}')


def _refusal(path: str | os.PathLike, reason: str) -> str:
    return (
        f'--inception_weights must be {_GRAPH} of the 2015 Inception network, or the '
        f'archive from {URL}: {reason}. Received: {path}'
    )


def download(folder: str | os.PathLike) -> str:
    """Downloads the 2015 Inception network, once.

    Args:
      folder: the folder to keep it in.

    Returns:
      The path of the archive.

    Raises:
      InceptionError: if it cannot be downloaded.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        return tf.keras.utils.get_file(
            origin=URL, cache_dir=os.fspath(folder), cache_subdir='inception'
        )
    except Exception as error:  # get_file raises plain Exceptions.
        raise InceptionError(
            f'The Inception network cannot be downloaded ({" ".join(str(error).split())}): '
            'download it on another machine and give --inception_weights=PATH.'
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
