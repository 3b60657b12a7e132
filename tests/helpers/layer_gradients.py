"""Gradients by layer, and the same ones taken one record at a time."""

import functools

import numpy as np
import tensorflow as tf
from hypothesis import Phase, settings
from hypothesis import strategies as st

from tf_efsgd.models.generator import build_generator
from tf_efsgd.privacy import clipping, layer_norms

# The same examples every time, and a failure is shown as it is: shrinking takes minutes.
PROPERTIES = settings(
    deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], max_examples=12
)
KERAS = tf.keras.layers
MODES = {
    'eager': lambda function: function,
    'graph': tf.function,
    'xla': lambda function: tf.function(function, jit_compile=True),
}
ACTIVATIONS = st.sampled_from([None, 'tanh', 'relu', 'softmax', 'elu'])
BATCHES = st.sampled_from([3, 1, 2, 5])


@functools.lru_cache
def has_grouped_gradients():
    """Says whether TensorFlow has gradients of grouped convolutions; on a CPU only oneDNN does."""
    images, kernel = tf.ones([1, 4, 4, 4]), tf.Variable(tf.ones([3, 3, 2, 4]))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, 'SAME'))
        return tape.gradient(total, kernel)

    try:
        return gradient().shape == kernel.shape
    except tf.errors.InvalidArgumentError:
        return False


def weights_of(batch):
    return np.float32(np.random.default_rng(3).normal(size=[2, batch]))


def losses_along(model, records, directions):
    """Returns a loss for every record: what comes out, along a direction of the record's own."""
    outputs = model(records) * directions
    return tf.reduce_sum(outputs, axis=list(range(1, outputs.shape.rank)))


def made_up(shape):
    """Draws records to try a loss on."""
    return np.random.default_rng(1).normal(size=[6, *shape]).astype(np.float32)


def by_layer(model, records, directions, loss_scales=None, mode='eager', variables=None):
    """Returns (norms, weighted sums), computed by layer."""
    variables = model.trainable_variables if variables is None else variables

    def norms_and_sums(records, directions):
        def losses_of():
            losses = losses_along(model, records, directions)
            return losses if loss_scales is None else losses * loss_scales

        parts = layer_norms.gradients_by_layer(model, losses_of, variables)
        gradients = clipping.BatchGradients(parts, variables)
        return gradients.norms, gradients.weighted_sums(tf.constant(weights_of(len(records))))

    function = MODES[mode](norms_and_sums)
    return tf.nest.map_structure(np.array, function(tf.constant(records), directions))


def one_by_one(model, records, directions, loss_scales=None, variables=None):
    """Returns (norms, weighted sums, what their rounding is relative to), from all gradients."""
    variables = model.trainable_variables if variables is None else variables
    scales = np.ones(len(records)) if loss_scales is None else loss_scales

    def loss_of_record(record):
        one, direction, scale = record
        return scale * losses_along(model, one[tf.newaxis], direction[tf.newaxis])[0]

    gradients = clipping.per_example_gradients(
        loss_of_record, (tf.constant(records), directions, np.float32(scales)), variables
    )
    return of_gradients(
        [np.zeros([len(records), *v.shape]) if g is None else g
         for g, v in zip(gradients, variables)]
    )  # fmt: skip


def of_gradients(gradients):
    gradients = [np.asarray(g, np.float64) for g in gradients]
    batch = len(gradients[0])
    squares = [np.square(g).reshape([batch, int(np.prod(g.shape[1:]))]).sum(1) for g in gradients]
    weights = np.float64(weights_of(batch))
    sums = [np.tensordot(weights, g, 1) for g in gradients]
    sizes = [np.max(np.tensordot(np.abs(weights), np.abs(g), 1), initial=0) for g in gradients]
    return np.sqrt(sum(squares)), sums, sizes


def assert_equal(actual, wanted, rtol=1e-5):
    norms, sums = actual
    wanted_norms, wanted_sums, sizes = wanted
    # Gradients are of size 1; where they vanish, both ways leave some rounding.
    np.testing.assert_allclose(norms, wanted_norms, rtol=rtol, atol=2e-6)
    assert len(sums) == len(wanted_sums)
    for one, other, size in zip(sums, wanted_sums, sizes):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * size + 2e-6)


def draw(model, batch, seed=1):
    """Draws (records, directions), and also all weights, so that no bias is zero."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) * 0.5 for w in model.get_weights()])
    shape = model.inputs[0].shape[1:]
    if model.inputs[0].dtype.is_integer:
        records = rng.integers(0, 5, size=[batch, *shape]).astype(np.int32)
    else:
        records = np.float32(rng.normal(size=[batch, *shape]))
    directions = np.float32(rng.normal(size=[batch, *model.output_shape[1:]]))
    return records, tf.constant(directions)


def model_of(layer, shape, dtype=tf.float32):
    inputs = tf.keras.Input(shape, dtype=dtype)
    return tf.keras.Model(inputs, layer(inputs))


def check(layer, shape, batch, dtype=tf.float32):
    model = model_of(layer, shape, dtype)
    drawn = draw(model, batch)
    assert_equal(by_layer(model, *drawn), one_by_one(model, *drawn))


def model_of_images():
    """Builds a small network on images."""
    return tf.keras.Sequential(
        [
            tf.keras.Input([6, 6, 2]),
            KERAS.Conv2D(4, 3, 2, 'same', activation='tanh'),
            KERAS.GroupNormalization(2),
            KERAS.Conv2DTranspose(3, 3, 2, 'same'),
            KERAS.LayerNormalization(),
            KERAS.DepthwiseConv2D(3),
            KERAS.LeakyReLU(0.2),
            KERAS.Flatten(),
            KERAS.Dense(2),
        ]
    )


def model_of_transposed():
    return tf.keras.Sequential(
        [
            tf.keras.Input([16], dtype=tf.int32),
            KERAS.Embedding(5, 4),
            KERAS.Reshape([4, 4, 4]),
            KERAS.GroupNormalization(2),
            KERAS.Conv2DTranspose(3, 3, 2, 'same', activation='tanh'),
            KERAS.LayerNormalization(),
            KERAS.Dense(2),
        ]
    )


def model_of_vectors():
    """Builds one without any convolution."""
    return tf.keras.Sequential(
        [
            tf.keras.Input([16], dtype=tf.int32),
            KERAS.Embedding(5, 4),
            KERAS.GroupNormalization(2),
            KERAS.Dense(3, activation='tanh'),
            KERAS.LayerNormalization(),
            KERAS.Dense(2),
        ]
    )


def encoder_and_decoder(architecture='plain'):
    """Builds two networks that records pass in turn; the second is one of this package."""
    tf.keras.utils.set_random_seed(5)
    encoder = model_of(KERAS.Dense(4, activation='tanh'), [6])
    decoder = build_generator((8, 8, 1), 3, latent_dim=4, width=8, architecture=architecture)
    rng = np.random.default_rng(1)
    # No weight is zero: injected noise acts, and biases count. No image is saturated.
    scale = {'plain': 0.5, 'skip': 0.25}[architecture]
    decoder.set_weights([rng.normal(size=w.shape) * scale for w in decoder.get_weights()])
    records = {
        'x': rng.normal(size=[5, 6]).astype(np.float32),
        'labels': np.int32([0, 2, 1, 1, 0]),
        'noise_8': rng.normal(size=[5, 8, 8, 1]).astype(np.float32),
        'direction': rng.normal(size=[5, 8, 8, 1]).astype(np.float32),
    }

    def losses(records):
        images = decoder({
            'latents': encoder(records['x']),
            'labels': records['labels'],
            'noise_8': records['noise_8'],
        })  # fmt: skip
        return tf.reduce_sum(images * records['direction'], axis=[1, 2, 3])

    return encoder, decoder, losses, tf.nest.map_structure(tf.constant, records)
