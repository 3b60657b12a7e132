"""Your own networks in `EFSGDGan`: they are checked before they see a record.

`LikeKeras` has what users of Keras do with a model: `fit`, `predict` and `save`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_efsgd.data.images import to_uint8
from tf_efsgd.models.generator import draw_inputs as draw_usual_inputs
from tf_efsgd.progress import progress_bar

_LOGITS, _LABELS = 'logits', 'labels'
# A generator is tried on images of so many classes.
_TRIED_CLASSES = 8
# Rounding may make a pixel larger than 1 by this.
_ROUNDING = 1e-3
_BATCH_SIZE = 500
_MADE = (
    'The generator must be a tf.keras.Model(inputs, images) with inputs by name, among them '
    "'labels', and all others standard normal, e.g. "
    "{'latents': tf.keras.Input([64]), 'labels': tf.keras.Input([], dtype=tf.int32)}"
)


def as_discriminator(network: tf.keras.Model) -> tf.keras.Model:
    """Gives the outputs of a discriminator names, if it has only logits.

    Args:
      network: maps images float32 [n, H, W, C] to {'logits': ...} or to float32 [n, classes].

    Returns:
      The network, or another one with the same layers and variables.

    Raises:
      ValueError: if it does not say its input and output, or has other outputs.
    """
    if not isinstance(network, tf.keras.Model) or not network.inputs:
        raise ValueError(
            'The discriminator must say what it is given: begin a Sequential with '
            'tf.keras.Input([H, W, C]), and call a Model of your own class on such an input: '
            "tf.keras.Model(images, {'logits': yours(images)}). Received: "
            f'{type(network).__name__} without an input.'
        )
    output = network.output
    if isinstance(output, dict):
        if _LOGITS in output:
            _refuse_probabilities(output[_LOGITS], 'Logits of the discriminator', 'leave it out')
            return network
        found = f'outputs {", ".join(map(repr, output))}'
    elif not isinstance(output, (list, tuple)) and output.shape.rank == 2:
        _refuse_probabilities(output, 'Logits of the discriminator', 'leave it out')
        return tf.keras.Model(network.inputs, {_LOGITS: output}, name=network.name)
    else:
        shapes = [tuple(one.shape) for one in tf.nest.flatten(output)]
        found = f'outputs of shape {", ".join(map(str, shapes))}'
    raise ValueError(
        "The discriminator must give one logit per class, float32 [n, classes], or {'logits': "
        f'that, ...}}. Received: {found}.'
    )


def check_generator(
    generator: tf.keras.Model,
    draw_inputs: Callable[..., Any],
    num_classes: int,
    record_shape: tuple[int, ...],
) -> None:
    """Tries a generator on drawn inputs: it must make images that look like records.

    Args:
      generator: as for `EFSGDGan`.
      draw_inputs: as for `EFSGDGan`.
      num_classes: of the discriminator.
      record_shape: of what the discriminator sees: (H, W, C), or another shape if it sees features
        instead of images.

    Raises:
      ValueError: if its inputs or its images are not what they must be.
    """
    if draw_inputs is draw_usual_inputs and not (
        isinstance(generator, tf.keras.Model)
        and generator.inputs
        and isinstance(generator.input, dict)
        and _LABELS in generator.input
    ):
        raise ValueError(f'{_MADE}. Received: {_describe_inputs(generator)}.')
    labels = np.unique(np.linspace(0, num_classes - 1, _TRIED_CLASSES).astype(np.int32))
    try:
        images = generator(draw_inputs(generator, tf.constant(labels), tf.constant([0, 0])))
    except (tf.errors.OpError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [''])[0]
        raise ValueError(
            f'The generator must make an image for every label from 0 to {num_classes - 1}, the '
            f'last class of the discriminator. Received: {type(error).__name__}: {reason}'
        ) from error
    _check_images(images, record_shape, len(labels))
    if tf.is_tensor(getattr(generator, 'output', None)):
        what = 'Images of the generator, in [-1, 1] (black is -1),'
        _refuse_probabilities(generator.output, what, "end it with activation='tanh'")


def _refuse_probabilities(output: Any, what: str, instead: str) -> None:
    """Raises ValueError if the last layer makes numbers in [0, 1]."""
    history = getattr(output, '_keras_history', None)
    activation = None if history is None else getattr(history.layer, 'activation', None)
    if activation in (tf.keras.activations.sigmoid, tf.keras.activations.softmax):
        raise ValueError(
            f'{what} must not end in an activation with numbers in [0, 1]: {instead}. Received: '
            f'{activation.__name__}.'
        )


def _check_images(images: tf.Tensor, record_shape: tuple[int, ...], count: int) -> None:
    is_image = len(record_shape) == 3
    if is_image and tuple(images.shape) != (count, *record_shape):
        raise ValueError(
            'The generator must make images of the shape that the discriminator is given, '
            f'{tuple(record_shape)}. Received: {tuple(images.shape[1:])}.'
        )
    largest = float(tf.reduce_max(tf.abs(images)))
    if not largest <= 1.0 + _ROUNDING:
        raise ValueError(
            'Images of the generator must be in [-1, 1], black is -1 and white 1: end it with '
            f"activation='tanh'. Received: numbers up to {largest:.3g}."
        )


def _describe_inputs(generator: Any) -> str:
    if not getattr(generator, 'inputs', None):
        return f'{type(generator).__name__} without an input'
    given = generator.input
    if isinstance(given, dict):
        return f'inputs {", ".join(map(repr, given))}'
    shapes = [tuple(one.shape) for one in tf.nest.flatten(given)]
    return f'{type(generator).__name__} of an input of shape {", ".join(map(str, shapes))}'


def check_batches(
    batches: Any,
    record_shape: tuple[int, ...],
    expected_batch_size: int | None = None,
    num_classes: int | None = None,
) -> None:
    """Checks what `fit` is given, without looking at a record.

    Args:
      batches: what `fit` is given.
      record_shape: of what the discriminator sees.
      expected_batch_size: of the optimizer; None is not compared.
      num_classes: of the discriminator; None is not compared.

    Raises:
      ValueError: if they are not batches of (uint8 images, integer labels), or certainly no Poisson
        samples, or samples of another expected size or with other labels.
    """
    spec = getattr(batches, 'element_spec', None)
    # A data set with an end goes through the records in turn.
    has_end = isinstance(batches, tf.data.Dataset) and int(batches.cardinality()) >= 0
    if spec is None or has_end:
        end = ' of a known length' if has_end else ''
        raise ValueError(
            'fit takes Poisson samples, because only they have an epsilon: '
            'fit(tf_efsgd.poisson_batches(images, labels, expected_batch_size=...), '
            f'steps_per_epoch=...). Received: {type(batches).__name__}{end}.'
        )
    sampled = getattr(batches, 'expected_batch_size', None)
    if None not in (sampled, expected_batch_size) and sampled != expected_batch_size:
        raise ValueError(
            'poisson_batches and the discriminator_optimizer must have the same '
            f'expected_batch_size: epsilon is that of the optimizer. Received: {sampled} and '
            f'{expected_batch_size}.'
        )
    labels = getattr(batches, 'range_of_labels', None)
    if None not in (labels, num_classes) and labels[1] >= num_classes:
        raise ValueError(
            f'The discriminator has {num_classes} classes, so labels must be from 0 to '
            f'{num_classes - 1}. Received: {labels[0]} to {labels[1]}.'
        )
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(f'A batch must be (images, labels). Received: {spec}.')
    images, labels = spec
    if not all(isinstance(one, tf.TensorSpec) for one in spec):
        return  # The program itself made shares for several replicas.
    if len(record_shape) == 3 and images.dtype != tf.uint8:
        raise ValueError(
            'Images of records must be uint8 in [0, 255]; for floats in [0, 1] use '
            f"(images * 255).round().astype('uint8'). Received: {images.dtype.name}."
        )
    if not images.shape[1:].is_compatible_with(record_shape):
        raise ValueError(
            f'Images of records must be of the shape that the discriminator is given, '
            f'{tuple(record_shape)}. Received: {tuple(images.shape[1:])}.'
        )
    if not labels.dtype.is_integer or labels.shape.rank not in (1, None):
        raise ValueError(
            'Labels must be integers [n], 0 for the first class. Received: '
            f'{labels.dtype.name} of shape {labels.shape}.'
        )


class LikeKeras:
    """A part of `EFSGDGan`: `fit`, `predict` and `save` as users of Keras expect them."""

    # Attributes of the whole model.
    ema_generator: tf.keras.Model
    num_classes: int
    generate: Callable[..., tf.Tensor]
    _record_shape: Callable[[], tuple[int, ...]]
    _expected_batch_size: int | None
    discriminator_optimizer: Any
    private_steps: tf.Variable
    is_private: bool

    def fit(self, x: Any = None, *args, **kwargs):
        """Trains on Poisson samples; one step is one private step.

        Args:
          x: from `tf_efsgd.poisson_batches`; it is endless, so give `steps_per_epoch` too.
          *args: of `tf.keras.Model.fit`.
          **kwargs: of `tf.keras.Model.fit`.

        Returns:
          Keras' history; it holds only what is released or depends on generated images.

        Raises:
          ValueError: if the batches are not (uint8 images, integer labels), or no Poisson samples
            of the expected size.
        """
        size = getattr(self, '_expected_batch_size', None)
        check_batches(x, self._record_shape(), size, self.num_classes)
        self._count_restored_steps()
        return super().fit(x, *args, **kwargs)  # type: ignore[misc]

    def load_weights(self, *args, **kwargs):
        """Loads weights that `save_weights` wrote; the optimizer counts the steps behind them.

        Args:
          *args: of `tf.keras.Model.load_weights`.
          **kwargs: of `tf.keras.Model.load_weights`.

        Returns:
          What Keras returns.
        """
        status = super().load_weights(*args, **kwargs)  # type: ignore[misc]
        self._count_restored_steps()
        return status

    def _count_restored_steps(self, is_new: bool = False) -> None:
        """Lets the optimizer count private steps that it does not know of."""
        made = int(self.private_steps.numpy())  # On several replicas the variable is no number.
        if not made or not getattr(self, 'is_private', False):
            return
        is_short = int(self.discriminator_optimizer.iterations.numpy()) < made
        if is_short:
            self.discriminator_optimizer.iterations.assign(made)
        if is_short or is_new:  # A new one may have counted steps of another model alone.
            warnings.warn(
                f'This GAN has made {made} private steps with another optimizer, or its weights '
                'were loaded without it. They are counted as steps of the new one, which is true '
                'only if both have the same noise, clips and expected_batch_size.',
                stacklevel=3,
            )

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = False,
        *,
        seed: int | None = None,
    ) -> np.ndarray:
        """Makes images from labels with the moving average of the generator; costs no privacy.

        Args:
          x: labels, integers [n] in [0, number of classes).
          batch_size: how many images to make at a time; None: 500.
          verbose: whether to draw a progress bar.
          seed: in [0, 2^31), makes the same images again, with the same `batch_size`; None draws
            new ones.

        Returns:
          uint8 [n, H, W, C].

        Raises:
          ValueError: if `x` is not such labels, or `seed` is out of range.
        """
        if seed is not None and not 0 <= seed < 2**31:
            raise ValueError(f'seed must be in [0, 2147483648). Received: {seed}.')
        labels = np.asarray(x)
        if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in 'iu':
            raise ValueError(
                'predict makes an image for each label: give integers [n]. Received: '
                f'{labels.dtype} of shape {labels.shape}.'
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f'Labels must be from 0 to {self.num_classes - 1}. Received: {labels.min()} to '
                f'{labels.max()}.'
            )
        size = batch_size or _BATCH_SIZE
        parts = []
        with progress_bar('generating' if verbose else None, len(labels)) as bar:
            for first in range(0, len(labels), size):
                part = tf.constant(labels[first : first + size], tf.int32)
                draw = None if seed is None else tf.constant([seed, first], tf.int32)
                parts.append(to_uint8(self.generate(part, draw)).numpy())
                bar.update(len(part))
        return np.concatenate(parts)

    def save(self, filepath: str | os.PathLike, *args, **kwargs) -> None:
        """Saves the moving average of the generator as a Keras model, which may be handed over.

        `tf.keras.models.load_model` reads it, and `tf_efsgd.draw_inputs(generator, labels)` draws
        its inputs. To continue training later, use `save_weights` instead.

        Args:
          filepath: a file, e.g. generator.keras, or a folder.
          *args: of `tf.keras.Model.save`.
          **kwargs: of `tf.keras.Model.save`.
        """
        self.ema_generator.save(filepath, *args, **kwargs)
