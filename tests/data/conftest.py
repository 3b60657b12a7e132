"""What several tests of the data share."""

import numpy as np
import pytest

from tf_efsgd.data import load as loading
from tf_efsgd.data.sources import tfds as source


@pytest.fixture
def own_tfds(tmp_path, monkeypatch):
    """Prepares a small data set with TFDS: 200 images 5x7 of 3 classes; returns how to load it.

    Four images in a row are of one person, by `identity/number` and `name`.
    """
    import tensorflow_datasets as tfds

    images = np.random.default_rng(7).integers(0, 256, (200, 5, 7, 3), dtype=np.uint8)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = 'own_set'
        VERSION = tfds.core.Version('1.0.0')
        pkg_dir_path = tmp_path

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=self.shape),
                'label': tfds.features.ClassLabel(names=['x', 'y', 'z']),
                'id': np.int64,
                'identity': {'number': np.int64},
                'name': tfds.features.Text(),
                'weight': np.float32,
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return self.splits

        def _generate_examples(self, numbers):
            for i in numbers:
                yield (
                    i,
                    {
                        'image': images[i],
                        'label': i % 3,
                        'id': i,
                        'identity': {'number': i // 4},
                        'name': '' if i == 7 else f'person {i // 4}',
                        'weight': 0.3,
                    },
                )

    def load(splits, shape=(5, 7, 3), **kwargs):
        folder = tmp_path / f'{"_".join(splits)}{len(list(tmp_path.iterdir()))}'
        Builder.shape = shape
        builder = Builder(data_dir=folder)
        builder.splits = {
            name: builder._generate_examples(numbers) for name, numbers in splits.items()
        }
        monkeypatch.setattr(source, '_builder', lambda *_: builder)
        return loading.load('own_set', **kwargs)

    return load, images
