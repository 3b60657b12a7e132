"""The networks of the benchmark are those of the flagfiles."""

import pathlib

from tf_efsgd import config
from tf_efsgd.benchmark import variants

_REPO = pathlib.Path(__file__).resolve().parents[2]


def test_celeba64_has_the_images_of_its_flagfile():
    path = _REPO / 'configs' / 'celeba.flags'
    of_flagfile = config.from_flagfile(path.read_text('utf-8'))
    networks = variants.MODELS['celeba64']
    assert networks.image_shape == (of_flagfile.data.image_size,) * 2 + (3,)
