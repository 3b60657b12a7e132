"""The networks of the benchmark are those of the flagfiles."""

import pathlib

from tf_efsgd import config
from tf_efsgd.benchmark import variants

_REPO = pathlib.Path(__file__).resolve().parents[2]


def test_celeba64_is_what_its_flagfile_says():
    path = _REPO / 'configs' / 'celeba.flags'
    of_flagfile = config.from_flagfile(path.read_text('utf-8'))
    networks, model = variants.MODELS['celeba64'], of_flagfile.model
    assert networks.image_shape == (of_flagfile.data.image_size,) * 2 + (3,)
    assert networks.width == model.discriminator_width
    assert networks.generator_width == model.generator_width
    assert networks.latent_dim == model.latent_dim
