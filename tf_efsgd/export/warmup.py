"""Writes requests that TF Serving answers once at its start, so that the first is not slow.

They are written if tensorflow-serving-api is installed (`pip install tf_efsgd[serving]`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import tensorflow as tf

# The name by which launch/tf_serving.sh serves a generator; TF Serving takes others, too.
MODEL_NAME = 'generator'


def is_possible() -> bool:
    """Whether tensorflow-serving-api is installed."""
    return importlib.util.find_spec('tensorflow_serving') is not None


def write(path: str, signatures: Sequence[str]) -> bool:
    """Writes one request for each signature for which there is one here.

    Args:
      path: the path of the file, `assets.extra/tf_serving_warmup_requests` of an export.
      signatures: names of the signatures of the export.

    Returns:
      Whether it was written; it is not without tensorflow-serving-api.
    """
    if not is_possible():
        return False
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    inputs = {
        'serving_default': {'labels': tf.zeros([1], tf.int32)},
        'serving_int64': {'labels': tf.zeros([1], tf.int64)},
        'png': {'labels': tf.zeros([1], tf.int32)},
        'sample': {'count': tf.constant(1, tf.int32)},
        'class_names': {},
    }
    with tf.io.TFRecordWriter(path) as writer:
        for name in (name for name in inputs if name in signatures):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = MODEL_NAME
            request.model_spec.signature_name = name
            for key, value in inputs[name].items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    return True
