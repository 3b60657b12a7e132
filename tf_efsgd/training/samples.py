"""Sample pictures, drawn while a run trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_efsgd.training import callbacks

# The smallest height of one image in a grid, in pixels: small images are enlarged.
_CELL_SIZE = 64
_MAX_COLUMNS = 16
_MARGIN = 2


class SampleGrid(callbacks.EveryStep):
    """Writes a grid of generated images to samples/step_<step>.png and to TensorBoard.

    Args:
      writer: summary writer of RUN/logs.
      folder: RUN/samples.
      generate: maps labels int32 [n] to images uint8 [n, H, W, C], with the same latents each time.
      num_classes: number of labels; there is one column per class, for at most 16; see `caption`.
      first_step: as in `ProgressBar`.
      last_step: as in `ProgressBar`.
      every: steps between grids.
      is_private: whether the images are covered by an epsilon.
      rows: images per class.
    """

    def __init__(
        self,
        writer,
        folder: str,
        generate: Callable[[np.ndarray], np.ndarray],
        num_classes: int,
        first_step: int,
        last_step: int,
        every: int,
        is_private: bool = True,
        rows: int = 8,
    ):
        super().__init__(first_step, last_step, every)
        self._writer = writer
        self._folder = folder
        self._generate = generate
        self._columns = min(num_classes, _MAX_COLUMNS)
        self._rows = rows
        self._is_private = is_private

    def on_due(self, logs):
        """Writes one grid."""
        self.draw(self.step)

    def draw(self, step: int, of_fit: bool = False):
        """Writes a grid of the images after some steps.

        Args:
          step: how many steps were made.
          of_fit: whether these were steps of the fit to a release: then the file is
            fit_<step>.png, and TensorBoard shows it apart.
        """
        labels = np.tile(np.arange(self._columns, dtype=np.int32), self._rows)
        grid = image_grid(self._generate(labels), self._columns)
        path = self.path(self._folder, step, 'fit' if of_fit else 'step')
        tf.io.write_file(f'{path}.tmp', tf.io.encode_png(grid))
        os.replace(f'{path}.tmp', path)
        tag = f'{callbacks.prefix(self._is_private)}/{callbacks.PICTURES[of_fit]}'
        with self._writer.as_default(step=step):
            tf.summary.image(tag, grid[np.newaxis])
        self._writer.flush()

    @staticmethod
    def path(folder: str, step: int, kind: str = 'step') -> str:
        """The path of the grid of a step."""
        return os.path.join(folder, f'{kind}_{step:06d}.png')

    @staticmethod
    def caption(class_names: Sequence[str]) -> str:
        """The text below a grid: the classes that it shows, by column."""
        shown = class_names[:_MAX_COLUMNS]
        of_all = f', the first {len(shown)} of {len(class_names)}'
        which = of_all if len(shown) < len(class_names) else ''
        return f'One class per column{which}: {", ".join(shown)}'


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Lays out images in rows, with a margin, and enlarges small ones.

    Args:
      images: uint8 [rows * columns, H, W, C], row by row.
      columns: images per row.

    Returns:
      uint8 [height, width, C].
    """
    factor = max(1, _CELL_SIZE // images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    margins = [(0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)]
    images = np.pad(images, margins, constant_values=255)
    count, height, width, channels = images.shape
    rows = count // columns
    grid = images.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)
