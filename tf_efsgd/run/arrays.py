"""Arrays as the records of a run, for `Sources.load`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_efsgd.config import ConfigError, RunConfig, recipes
from tf_efsgd.data import arrays, records
from tf_efsgd.run import folder as run_folder

_NOT_FOR_ARRAYS = ('images_per_person', 'person', 'dataset_persons')


class Arrays:
    """Images and labels that the caller gave.

    Args:
      images: as for `arrays.check_images`. PRIVATE.
      labels: as for `arrays.check_labels`. PRIVATE.

    Raises:
      ConfigError: if they cannot be used.
    """

    name = arrays.NAME

    def __init__(self, images: Any, labels: Any):
        try:
            checked = arrays.check_images(images)
            self._labels = arrays.check_labels(labels, len(checked))
        except records.DataError as error:
            raise ConfigError(str(error)) from error
        has_channels = np.ndim(images) == 4
        self._images = checked
        # Whether labels are 'integers' or 'names', and whether images had an axis of channels.
        self.form = ('names' if self._labels.dtype.kind == 'U' else 'integers', has_channels)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that follow from the shape of the arrays: an image size, if nobody gave one.

        Args:
          given: settings by name.

        Raises:
          ConfigError: if one of them does not work with arrays.
        """
        for name in _NOT_FOR_ARRAYS:
            if given.get(name) is not None:
                raise ConfigError(
                    f'{name} is for data sets that say whose an image is, folder: and TFDS: write '
                    'the images into a folder. Received: arrays.'
                )
        side = min(self._images.shape[1:3])
        size = recipes.image_size(side)
        if given.get('image_size') is not None or given.get('resume') or size in (None, side):
            return {}
        print(f'Images are resized to {size}x{size}; give image_size for another size.')
        return {'image_size': size, 'read_off_records': 'image_size'}

    def load(self, config: RunConfig) -> records.Dataset:
        """Makes the records that the settings ask for, like `folder.load_records`.

        Raises:
          ConfigError: if the settings do not fit the arrays.
        """
        data = config.data
        try:
            dataset = arrays.make_dataset(
                self._images,
                self._labels,
                classes=data.class_names,
                image_size=data.image_size,
                channels=data.channels,
                limit_records=data.limit_records,
                dataset_size=data.dataset_size,
                size_was_counted=run_folder.size_was_counted(config),
            )
        except records.DataError as error:
            raise ConfigError(str(error)) from error
        return run_folder.marked_as_read(dataset, data)
