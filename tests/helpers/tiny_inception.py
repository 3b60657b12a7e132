"""A frozen graph with the names of the 2015 Inception network: its `pool_3` is mean and corner."""

import tensorflow as tf


def graph_def(without=()):
    """Returns the graph, serialized.

    Args:
      without: nodes that have another name.
    """
    graph = tf.Graph()
    with graph.as_default():
        encoded = tf.compat.v1.placeholder(tf.string, name='DecodeJpeg/contents')
        decoded = tf.cast(tf.io.decode_jpeg(encoded, channels=3), tf.float32)
        centred = tf.identity(decoded[tf.newaxis] - 128.0, name='Sub')
        scaled = tf.multiply(centred, 0.0078125, name='Mul' if 'Mul' not in without else 'Other')
        means = tf.reduce_mean(scaled, [1, 2], keepdims=True)
        both = tf.concat([means, scaled[:, :1, :1]], axis=3)
        tf.identity(both, name='pool_3' if 'pool_3' not in without else 'another')
    return graph.as_graph_def().SerializeToString()
