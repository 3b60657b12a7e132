"""Writes a generator as a SavedModel for TF Serving, with its privacy statement inside.

Plain TensorFlow reads the folder, without this package. It holds the generator's variables and
nothing else: no discriminator, no optimizer, no error feedback buffer.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_efsgd import files
from tf_efsgd.data.images import to_uint8
from tf_efsgd.export import checksums, versions, warmup

# The largest count of one `sample` request, so that no request takes all memory of a server.
LARGEST_SAMPLE = 10_000
# The numbers of channels that `tf.io.encode_png` takes.
_PNG_CHANNELS = (1, 2, 3, 4)

_Images = Callable[..., tf.Tensor]


class FromLatents(NamedTuple):
    """Images from latents that the caller chooses.

    Attributes:
      generate: maps labels, int32 [n], and latents, float32 [n, latent_dim], to images, float32
        [n, H, W, C] in [-1, 1]; the same latents give the same images.
      latent_dim: size of a latent vector.
    """

    generate: _Images
    latent_dim: int


def export_generator(
    generate_images: Callable[[tf.Tensor], tf.Tensor],
    generator_variables: Iterable[tf.Variable],
    export_dir: str | os.PathLike[str],
    *,
    num_classes: int,
    statement: dict,
    class_names: Sequence[str] | None = None,
    from_seed: _Images | None = None,
    from_latents: FromLatents | None = None,
) -> str:
    """Writes `export_dir` as a SavedModel that turns labels into images.

    Its signatures, with labels int32 [n] in [0, num_classes - 1]:
      serving_default: labels -> {"images": float32 [n, H, W, C] in [0, 1]};
      serving_int64: the same for labels of int64;
      png: labels -> {"image_bytes": string [n]}, PNG files (base64 over REST, by that name);
      sample: count int32 [], at most 10,000 -> {"images", "labels": int32 [count], drawn evenly};
      class_names: -> {"names": string [num_classes]}, in the order of the labels;
      from_seed: labels, seed int32 [2] -> {"images": uint8 [n, H, W, C]}, the same for the same
        labels and seed;
      from_latent: labels, latents float32 [n, latent_dim] -> {"images": as serving_default}.
    All but the last two draw fresh latents at each call. A label out of range raises an
    InvalidArgumentError that names the range; no labels give no images. The loaded object also has
    `generate(labels)`, which takes labels of int32 and of int64.

    The folder appears complete or not at all: it is written beside `export_dir` and then renamed.
    It holds `assets/class_names.txt` and, in `assets.extra/`, the privacy statement, a list of
    checksums and, if tensorflow-serving-api is installed, requests to warm up a server.

    Args:
      generate_images: maps labels, int32 [n], to images, float32 [n, H, W, C] in [-1, 1]. It
        consists of TensorFlow ops that read `generator_variables` and no other variable, and it
        draws the latents with `tf.random` ops without a seed.
      generator_variables: the variables that `generate_images` reads; no others are saved.
      export_dir: a local folder that does not exist yet, for TF Serving `.../<version number>`.
      num_classes: number of classes, at least 1.
      statement: the contents of `assets.extra/privacy_statement.json`; JSON values only, no NaN
        and no infinity.
      class_names: names of the classes, in the order of the labels; None names them by their
        numbers.
      from_seed: maps labels and a seed, int32 [2], to images like those of `generate_images`; None
        leaves that signature out.
      from_latents: the images for given latents; None leaves that signature out.

    Returns:
      The absolute path of the folder.

    Raises:
      ValueError: if `export_dir` exists; if `num_classes` is below 1 or not the number of names; if
        `statement` is not JSON or claims a privacy that its own numbers do not support; or if
        `generate_images` returns something else, is seeded, or reads another variable or tensor
        from outside. Nothing is left behind then.
    """
    export_dir = os.path.abspath(os.fspath(export_dir))
    if os.path.lexists(export_dir):
        raise ValueError(f'export_dir must not exist yet: choose another. Received: {export_dir}')
    if num_classes < 1:
        raise ValueError(f'num_classes must be at least 1. Received: num_classes={num_classes}')
    names = tuple(map(str, range(num_classes)) if class_names is None else class_names)
    if len(names) != num_classes:
        raise ValueError(
            f'class_names must have a name for each of the {num_classes} classes. '
            f'Received: {len(names)} names'
        )
    _check_claim(statement)
    statement_json = _to_json({**statement, 'class_names': list(names)})
    signatures = _trace_signatures(generate_images, names, from_seed, from_latents)

    parent, name = os.path.split(export_dir)
    os.makedirs(parent, exist_ok=True)
    # The work folder is readable by its owner only, so a folder inside it is renamed, which has
    # usual permissions. Its name is not a number, so TF Serving does not take it for a version.
    work_dir = tempfile.mkdtemp(prefix=f'.{name}.tmp-', dir=parent)
    try:
        unfinished = os.path.join(work_dir, 'saved_model')
        names_path = os.path.join(work_dir, os.path.basename(versions.CLASS_NAMES))
        with open(names_path, 'wb') as file:
            file.write(b''.join(b' '.join(_bytes_of(n).splitlines()) + b'\n' for n in names))
        _save(signatures, generator_variables, names_path, unfinished)
        statement_path = os.path.join(unfinished, versions.STATEMENT)
        os.makedirs(os.path.dirname(statement_path))
        with open(statement_path, 'w', encoding='utf-8') as file:
            file.write(statement_json)
        warmup.write(os.path.join(unfinished, versions.WARM_UP), list(signatures))
        checksums.write(unfinished, versions.CHECKSUMS)
        os.rename(unfinished, export_dir)
        files.sync(parent)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return export_dir


def _bytes_of(name: str) -> bytes:
    """Returns a class name as it is on disk, since names of folders need not be UTF-8."""
    return name.encode('utf-8', 'surrogateescape')


def _check_claim(statement: dict) -> None:
    """Raises ValueError if the statement says private without an epsilon that meets its target."""
    if not statement.get('private'):
        return
    epsilon, target = statement.get('epsilon'), statement.get('target_epsilon')
    meets = epsilon is not None and (target is None or epsilon <= target)
    # With a hidden buffer, epsilon is so large that only a target shows that this was intended.
    if not meets or (target is None and statement.get('error_feedback') == 'hidden'):
        raise ValueError(
            'statement must not say private: its epsilon does not meet a target_epsilon. '
            f'Received: epsilon={epsilon}, target_epsilon={target}, '
            f'error_feedback={statement.get("error_feedback")!r}.'
        )


def _to_json(statement: dict) -> str:
    """Returns the statement as JSON; raises ValueError if it is not made of JSON values."""
    try:
        return json.dumps(statement, indent=2, allow_nan=False) + '\n'
    except (TypeError, ValueError) as error:
        raise ValueError(
            'statement must hold JSON values only, no NaN and no infinity (write None instead): '
            f'{error}. Received: {statement!r}'
        ) from error


def _trace_signatures(
    generate_images: _Images,
    names: Sequence[str],
    from_seed: _Images | None,
    from_latents: FromLatents | None,
) -> dict[str, tf.types.experimental.ConcreteFunction]:
    """Traces and checks the functions to serve, by the names of their signatures.

    All that draw fresh latents call one function, so the SavedModel has the network once for them.
    """
    num_classes = len(names)
    labels_of = {
        dtype: tf.TensorSpec([None], dtype, name='labels') for dtype in (tf.int32, tf.int64)
    }

    @tf.function(input_signature=[labels_of[tf.int32]])
    def draw(labels):
        return _even_for_no_labels(generate_images, num_classes, labels)

    channels = _check_images(draw.get_concrete_function().structured_outputs)

    @tf.function(input_signature=[labels_of[tf.int32]])
    def serving_default(labels):
        return {'images': _in_unit_range(draw(labels))}

    @tf.function(input_signature=[labels_of[tf.int64]])
    def serving_int64(labels):
        # Checked before the cast, which would turn a label beyond int32 into another label.
        with tf.control_dependencies(_assert_in_range(labels, num_classes)):
            labels = tf.cast(labels, tf.int32)
        return {'images': _in_unit_range(draw(labels))}

    @tf.function(input_signature=[labels_of[tf.int32]])
    def png(labels):
        return {'image_bytes': _encode_png(to_uint8(draw(labels)))}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name='count')])
    def sample(count):
        tf.compat.v1.get_default_graph().seed = None
        message = f'count must be in [0, {LARGEST_SAMPLE}].'
        checks = [
            tf.debugging.assert_greater_equal(count, 0, message=message),
            tf.debugging.assert_less_equal(count, LARGEST_SAMPLE, message=message),
        ]
        with tf.control_dependencies(checks):
            labels = tf.random.uniform([count], 0, num_classes, tf.int32)
        return {'images': _in_unit_range(draw(labels)), 'labels': labels}

    @tf.function(input_signature=[])
    def class_names():
        return {'names': tf.constant([_bytes_of(name) for name in names])}

    functions = [serving_default, serving_int64, sample, class_names]
    functions += [png] if channels in _PNG_CHANNELS else []
    traced = {f.python_function.__name__: f.get_concrete_function() for f in functions}
    if from_seed is not None:
        traced['from_seed'] = _trace_from_seed(from_seed, num_classes)
    if from_latents is not None:
        traced['from_latent'] = _trace_from_latent(from_latents, num_classes)
    for concrete in traced.values():
        _check_captures(concrete)
        _check_unseeded(concrete)
    return traced


def _trace_from_seed(generate: _Images, num_classes: int):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int32, name='labels'),
            tf.TensorSpec([2], tf.int32, name='seed'),
        ]
    )
    def from_seed(labels, seed):
        images = _even_for_no_labels(generate, num_classes, labels, seed)
        _check_images(images)
        return {'images': to_uint8(images)}

    return from_seed.get_concrete_function()


def _trace_from_latent(latents_to_images: FromLatents, num_classes: int):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int32, name='labels'),
            tf.TensorSpec([None, latents_to_images.latent_dim], tf.float32, name='latents'),
        ]
    )
    def from_latent(labels, latents):
        message = 'There must be one row of latents for each label.'
        same = tf.debugging.assert_equal(tf.shape(labels)[0], tf.shape(latents)[0], message=message)
        with tf.control_dependencies([same]):
            # This row is for the extra image that is thrown away, see `_even_for_no_labels`.
            latents = tf.pad(latents, [[0, 1], [0, 0]])

        def generate(padded):
            return latents_to_images.generate(padded, latents[: tf.shape(padded)[0]])

        images = _even_for_no_labels(generate, num_classes, labels)
        _check_images(images)
        return {'images': _in_unit_range(images)}

    return from_latent.get_concrete_function()


def _even_for_no_labels(generate: _Images, num_classes: int, labels: tf.Tensor, *more) -> tf.Tensor:
    """Checks labels and makes their images in [-1, 1], also if there are no labels."""
    # A global seed (`tf.random.set_seed`) would be written into the graph, and every server
    # would hand out the same images after each start.
    tf.compat.v1.get_default_graph().seed = None
    with tf.control_dependencies(_assert_in_range(labels, num_classes)):
        labels = tf.identity(labels)
    count = tf.shape(labels)[0]
    # Not every layer takes an empty batch (cuDNN's convolutions do not). For an empty batch one
    # image is made that is thrown away.
    extra = tf.zeros([tf.cast(tf.equal(count, 0), tf.int32)], tf.int32)
    return generate(tf.concat([labels, extra], axis=0), *more)[:count]


def _in_unit_range(images: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value((images + 1.0) / 2.0, 0.0, 1.0)


def _encode_png(images: tf.Tensor) -> tf.Tensor:
    """Encodes uint8 [n, H, W, C] as string [n]."""
    return tf.io.encode_png(images)


def _assert_in_range(labels: tf.Tensor, num_classes: int) -> list[tf.Operation]:
    """Returns ops that fail unless all labels are in [0, num_classes - 1]."""
    message = f'labels must be in [0, {num_classes - 1}]: the generator has {num_classes} classes.'
    return [
        tf.debugging.assert_greater_equal(labels, tf.zeros([], labels.dtype), message=message),
        tf.debugging.assert_less(labels, tf.cast(num_classes, labels.dtype), message=message),
    ]


def _check_images(images: tf.Tensor) -> int:
    """Raises ValueError unless images are float32 [n, H, W, C] with known H, W, C; returns C."""
    shape = images.shape
    if images.dtype != tf.float32 or shape.rank != 4 or None in shape[1:].as_list():
        raise ValueError(
            'generate_images must return float32 [n, H, W, C] with known H, W and C. '
            f'Received: {images.dtype.name}, shape {shape}.'
        )
    return shape[-1]


def _check_captures(concrete: tf.types.experimental.ConcreteFunction) -> None:
    """Raises ValueError if a tensor from outside would be stored in the SavedModel."""
    outside = [t for t in concrete.captured_inputs if t.dtype != tf.resource]
    if outside:
        raise ValueError(
            'generate_images must not use tensors from outside: they would be stored in the '
            "SavedModel beside the generator's variables. Create them inside. Received: "
            + ', '.join(f'{t.dtype.name}{t.shape}' for t in outside)
        )


def _check_unseeded(concrete: tf.types.experimental.ConcreteFunction) -> None:
    """Raises ValueError if a random op carries a seed."""
    graph_def = concrete.graph.as_graph_def()
    nodes = [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]
    seeded = [n.name for n in nodes if n.attr['seed'].i or n.attr['seed2'].i]
    if seeded:
        raise ValueError(
            'generate_images must draw its latents with tf.random ops without a seed: with one, '
            'a server repeats its images after each start. Received seeded ops: '
            + ', '.join(sorted(seeded))
        )


def _save(
    signatures: dict[str, tf.types.experimental.ConcreteFunction],
    generator_variables: Iterable[tf.Variable],
    names_path: str,
    path: str,
) -> None:
    """Saves the signatures with these variables and no others."""
    module = tf.Module()
    module.generator_variables = list(generator_variables)
    module.class_names_file = tf.saved_model.Asset(names_path)
    of_dtype = {tf.int32: signatures['serving_default'], tf.int64: signatures['serving_int64']}

    @tf.function
    def generate(labels):
        return of_dtype[labels.dtype](labels=labels)

    for dtype in of_dtype:
        generate.get_concrete_function(tf.TensorSpec([None], dtype, name='labels'))
    module.generate = generate
    try:
        tf.saved_model.save(module, path, signatures=signatures)
    except AssertionError as error:  # TensorFlow raises this for a variable that is not tracked.
        raise ValueError(
            'generate_images must read no variable (or other resource) but generator_variables. '
            f'TensorFlow says: {error}'
        ) from error
