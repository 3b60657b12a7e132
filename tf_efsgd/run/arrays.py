"""Arrays as the records of a run: what `Sources.load` hands to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_efsgd.config import ConfigError, RunConfig, recipes
from tf_efsgd.data import arrays, records

_NOT_FOR_ARRAYS = ('images_per_person', 'person', 'dataset_persons')


class Arrays:
    """Images and labels that somebody handed over.

    Args:
      images: as of `arrays.check_images`. PRIVATE.
      labels: as of `arrays.check_labels`. PRIVATE.

    Raises:
      ConfigError: if they cannot be used.
    """

    name = arrays.NAME

    def __init__(self, images: Any, labels: Any):
        try:
            checked = arrays.check_images(images)
            self._labels = arrays.check_labels(labels, len(checked))
        except records.DataError as error:
            raise ConfigError(f'{error}.') from error
        has_channels = np.ndim(images) == 4
        self._images = checked
        # Whether labels are 'integers' or 'names', and whether images had channels.
        self.form = ('names' if self._labels.dtype.kind == 'U' else 'integers', has_channels)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What follows from the shape of the arrays, where nobody gave it: an image size.

        Args:
          given: settings by name.

        Raises:
          ConfigError: if one of them is not for arrays.
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
        return {'image_size': size}

    def load(self, config: RunConfig) -> records.Dataset:
        """The records that the settings ask for, as `folder.load_records`.

        Raises:
          ConfigError: if they cannot be had.
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
            )
        except records.DataError as error:
            raise ConfigError(f'{error}.') from error
        # Those of an earlier start are declared by now, and were read all the same.
        read_off = tuple(
            name for name in records.READ_OFF if name in data.read_off or name in dataset.read_off
        )
        return dataclasses.replace(dataset, read_off=read_off)
