"""Makes images with an exported generator, also with one of an earlier version."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import tensorflow as tf

from tf_efsgd import files
from tf_efsgd.export import checksums, versions

# A label that no generator has; the error for it says how many classes there are.
_NO_LABEL = 2**31 - 1


class ExportedGenerator:
    """A generator that is read from an export, and from nothing else.

    Args:
      path: the path of the export, as `versions.find` returns it.

    Raises:
      ExportError: if it cannot be read.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.statement = versions.read_statement(path)
        _check_whole(path, self.statement)
        try:
            # TensorFlow takes a path with [ or the like for a pattern.
            self._loaded = tf.saved_model.load(str(files.without_wildcards(path)))
            signatures = self._loaded.signatures
            self._draw = signatures['serving_default']
        except (OSError, LookupError, ValueError, tf.errors.OpError) as error:
            raise versions.ExportError(
                f'{path} cannot be read as an exported generator: export the run again.'
            ) from error
        self._from_seed = signatures.get('from_seed') if hasattr(signatures, 'get') else None
        shape = self._draw.structured_outputs['images'].shape
        # Height, width and channels of an image.
        self.image_shape = tuple(shape.as_list()[1:])
        self.class_names = tuple(self._read_names())

    @property
    def is_repeatable(self) -> bool:
        """Whether the same seed gives the same images; it does not in exports of old versions."""
        return self._from_seed is not None

    def generate(self, labels: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
        """Generates one image for each label.

        Args:
          labels: integers [n] in [0, number of classes).
          seed: seed of the draw, two numbers in [0, 2^31).

        Returns:
          The images, uint8 [n, H, W, C].
        """
        labels = tf.constant(np.asarray(labels, np.int32))
        if self._from_seed is not None:
            drawn = self._from_seed(labels=labels, seed=tf.constant(seed, tf.int32))
            return drawn['images'].numpy()
        images = self._draw(labels=labels)['images'].numpy()
        return np.round(images * 255.0).astype(np.uint8)

    def _read_names(self) -> list[str]:
        names = self.statement.get('class_names')
        if names is not None:
            return names
        try:
            self._draw(labels=tf.constant([_NO_LABEL]))
        except tf.errors.InvalidArgumentError as error:
            match = re.search(r'labels must be in \[0, (\d+)\]', error.message)
            if match:
                return [str(label) for label in range(int(match[1]) + 1)]
        raise versions.ExportError(
            f'{self.path} does not say which classes it has: export the run again.'
        )


def _check_whole(path: pathlib.Path, statement: dict) -> None:
    """Raises ExportError if files of an export are not those that were written with it."""
    if 'generator_sha256' not in statement:
        return  # Earlier versions of this program wrote no checksums.
    try:
        faults = checksums.differences(path, versions.CHECKSUMS)
    except checksums.ChecksumError as error:
        raise versions.ExportError(str(error)) from error
    if faults:
        raise versions.ExportError(
            f'{path} is not as it was exported: {faults[0]}. Copy it again, or export the run '
            'again.'
        )
