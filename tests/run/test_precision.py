"""Which network of a run with `--mixed_precision` sees records, and which generated images."""

import numpy as np
import pytest
import tensorflow as tf

from tf_efsgd import config
from tf_efsgd.data.records import Records
from tf_efsgd.run import build

_SHAPE = (16, 16, 3)


def _computes_in(model):
    layers = model._flatten_layers(include_self=False)
    return {layer.compute_dtype for layer in layers} - {'int32'}


def test_records_meet_the_network_in_float32_and_generated_images_the_one_in_bfloat16():
    text = '--target_epsilon=5\n--warm_start_share=0.4\n--discriminator=public_heads\n'
    text += '--generator=skip\n--latent_dim=4\n--generator_width=8\n'
    text += '--public_features=efficientnet_lite0\n'
    settings = config.from_flagfile(text + '--mixed_precision=bfloat16')
    empty = Records(np.zeros([0, *_SHAPE], np.uint8), np.zeros([0], np.int32), 2, ('day', 'night'))
    network = build.build_public_network(settings.privacy, empty)

    gan, inputs = build.build_gan(settings, empty, network)

    assert _computes_in(network) == {'float32'}
    assert _computes_in(gan.discriminator) == _computes_in(gan.ema_generator) == {'float32'}
    assert _computes_in(gan.generator) == {'float32', 'bfloat16'}
    images = tf.random.stateless_uniform([3, *_SHAPE], [1, 2], -1.0, 1.0)
    maps = network(images)
    for of_records, of_generated, name in (
        (inputs.maps(images)[name], gan._get_inputs().maps(images)[name], name) for name in maps
    ):
        np.testing.assert_array_equal(of_records, maps[name])
        assert np.any(of_generated != maps[name])
    # Without the setting both are the same network.
    assert build.for_generated_images(network, config.from_flagfile(text).training) is network


class _Own(tf.keras.Model):
    def call(self, inputs):
        return inputs


def test_a_network_that_cannot_be_copied_is_refused_in_one_line():
    settings = config.from_flagfile('--target_epsilon=5\n--mixed_precision=bfloat16')
    with pytest.raises(
        config.ConfigError, match='give --mixed_precision=none, or another'
    ) as error:
        build.for_generated_images(_Own(), settings.training)
    assert '\n' not in str(error.value)
