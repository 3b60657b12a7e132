"""Writes a generator as a SavedModel for TF Serving, with its privacy statement inside.

The folder needs plain TensorFlow and nothing of this package. It holds the generator's variables
and nothing else: no discriminator, no optimizer, no error feedback buffer.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable

import tensorflow as tf

_STATEMENT_PATH = os.path.join('assets.extra', 'privacy_statement.json')


def export_generator(
    generate_images: Callable[[tf.Tensor], tf.Tensor],
    generator_variables: Iterable[tf.Variable],
    export_dir: str | os.PathLike[str],
    *,
    num_classes: int,
    statement: dict,
) -> str:
    """Writes `export_dir` as a SavedModel that turns labels into images.

    Its signature `serving_default` takes `labels`, int32 [n] in [0, num_classes - 1], and returns
    {"images": float32 [n, H, W, C] in [0, 1]}. Each call draws fresh latents. A label out of range
    is an InvalidArgumentError that names the range; no labels give no images.

    The folder appears whole or not at all: it is written beside `export_dir` and then renamed.

    Args:
      generate_images: from labels, int32 [n], to images, float32 [n, H, W, C] in [-1, 1]; made of
        TensorFlow ops that read `generator_variables` and no other variable, and draw the
        latents with `tf.random` ops that have no seed.
      generator_variables: the variables `generate_images` reads: all that is saved.
      export_dir: a local folder that does not exist yet, for TF Serving `.../<version number>`.
      num_classes: how many classes there are, at least 1.
      statement: what is written to `assets.extra/privacy_statement.json`; JSON values only, no
        NaN and no infinity.

    Returns:
      The absolute path of the folder that was written.

    Raises:
      ValueError: if `export_dir` exists, `num_classes` is below 1, `statement` is not JSON or
        claims a privacy that its own numbers do not bear out, or
        `generate_images` returns something else, is seeded, or reads another variable or
        tensor from outside. Nothing is left behind then.
    """
    export_dir = os.path.abspath(os.fspath(export_dir))
    if os.path.lexists(export_dir):
        raise ValueError(
            f'export_dir must not exist yet; choose another or remove it. Received: {export_dir}'
        )
    if num_classes < 1:
        raise ValueError(f'num_classes must be at least 1. Received: num_classes={num_classes}')
    _check_claim(statement)
    statement_json = _to_json(statement)
    signature = _trace_signature(generate_images, num_classes)

    parent, name = os.path.split(export_dir)
    os.makedirs(parent, exist_ok=True)
    # The work folder is readable by its owner only, so what is renamed is a folder inside it, which
    # has usual permissions. Its name is no number: TF Serving does not take it for a version.
    work_dir = tempfile.mkdtemp(prefix=f'.{name}.tmp-', dir=parent)
    try:
        unfinished = os.path.join(work_dir, 'saved_model')
        _save(signature, generator_variables, unfinished)
        statement_path = os.path.join(unfinished, _STATEMENT_PATH)
        os.makedirs(os.path.dirname(statement_path))
        with open(statement_path, 'w', encoding='utf-8') as file:
            file.write(statement_json)
        os.rename(unfinished, export_dir)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return export_dir


def _check_claim(statement: dict) -> None:
    """Raises ValueError if the statement says private without an epsilon that meets its target."""
    if not statement.get('private'):
        return
    epsilon, target = statement.get('epsilon'), statement.get('target_epsilon')
    meets = epsilon is not None and (target is None or epsilon <= target)
    # With a hidden buffer epsilon is so large that only a target says that this was meant.
    if not meets or (target is None and statement.get('error_feedback') == 'hidden'):
        raise ValueError(
            'statement must not say private: its epsilon does not meet a target_epsilon. '
            f'Received: epsilon={epsilon}, target_epsilon={target}, '
            f'error_feedback={statement.get("error_feedback")!r}.'
        )


def _to_json(statement: dict) -> str:
    """The statement as JSON text, or a ValueError that says what is wrong with it."""
    try:
        return json.dumps(statement, indent=2, allow_nan=False) + '\n'
    except (TypeError, ValueError) as error:
        raise ValueError(
            'statement must hold JSON values only, no NaN and no infinity (write None instead): '
            f'{error}. Received: {statement!r}'
        ) from error


def _trace_signature(
    generate_images: Callable[[tf.Tensor], tf.Tensor], num_classes: int
) -> tf.types.experimental.ConcreteFunction:
    """The function that is served, traced and checked."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name='labels')])
    def serving_default(labels: tf.Tensor) -> dict[str, tf.Tensor]:
        # A global seed (`tf.random.set_seed`) would be written into the graph, and each server
        # would then hand out the same images after each start.
        tf.compat.v1.get_default_graph().seed = None
        with tf.control_dependencies(_assert_in_range(labels, num_classes)):
            labels = tf.identity(labels)
        count = tf.shape(labels)[0]
        # Not every layer takes an empty batch (cuDNN's convolutions do not): make one image for
        # nobody then, and hand out none.
        extra = tf.zeros([tf.cast(tf.equal(count, 0), tf.int32)], tf.int32)
        images = generate_images(tf.concat([labels, extra], axis=0))
        _check_images(images)
        return {'images': tf.clip_by_value((images[:count] + 1.0) / 2.0, 0.0, 1.0)}

    concrete = serving_default.get_concrete_function()
    _check_captures(concrete)
    _check_unseeded(concrete)
    return concrete


def _assert_in_range(labels: tf.Tensor, num_classes: int) -> list[tf.Operation]:
    """Ops that fail unless all labels are in [0, num_classes - 1]."""
    message = f'labels must be in [0, {num_classes - 1}]: the generator has {num_classes} classes.'
    return [
        tf.debugging.assert_greater_equal(labels, 0, message=message),
        tf.debugging.assert_less(labels, num_classes, message=message),
    ]


def _check_images(images: tf.Tensor) -> None:
    """Raises ValueError unless images are float32 [n, H, W, C] with known H, W, C."""
    shape = images.shape
    if images.dtype != tf.float32 or shape.rank != 4 or None in shape[1:].as_list():
        raise ValueError(
            'generate_images must return float32 [n, H, W, C] with known H, W and C. '
            f'Received: {images.dtype.name}, shape {shape}.'
        )


def _check_captures(concrete: tf.types.experimental.ConcreteFunction) -> None:
    """Raises ValueError if a tensor from outside would be packed into the SavedModel."""
    outside = [t for t in concrete.captured_inputs if t.dtype != tf.resource]
    if outside:
        raise ValueError(
            'generate_images must not use tensors made outside of it: they would be packed into '
            "the SavedModel beside the generator's variables. Make them inside. Received: "
            + ', '.join(f'{t.dtype.name}{t.shape}' for t in outside)
        )


def _check_unseeded(concrete: tf.types.experimental.ConcreteFunction) -> None:
    """Raises ValueError if a random op carries a seed."""
    graph_def = concrete.graph.as_graph_def()
    nodes = [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]
    seeded = [n.name for n in nodes if n.attr['seed'].i or n.attr['seed2'].i]
    if seeded:
        raise ValueError(
            'generate_images must draw its latents with tf.random ops that have no seed: with one, '
            'a server repeats its images after each start. Received seeded ops: '
            + ', '.join(sorted(seeded))
        )


def _save(
    signature: tf.types.experimental.ConcreteFunction,
    generator_variables: Iterable[tf.Variable],
    path: str,
) -> None:
    """Saves the signature with these variables and no others."""
    module = tf.Module()
    module.generator_variables = list(generator_variables)
    try:
        tf.saved_model.save(module, path, signatures={'serving_default': signature})
    except AssertionError as error:  # TensorFlow's word for a variable that is not tracked.
        raise ValueError(
            'generate_images must read no variable (or other resource) but generator_variables. '
            f'TensorFlow says: {error}'
        ) from error
