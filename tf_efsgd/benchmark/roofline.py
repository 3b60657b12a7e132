"""Bounds the time of a step by its operations, bytes and draws, and by the speed of a machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tf_efsgd.benchmark.timing import seconds_of
from tf_efsgd.benchmark.variants import Networks, Variant


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step needs, or what a machine does in a second.

    Attributes:
      operations: floating-point operations; a multiplication with its addition counts as two.
      bytes: bytes that are read or written.
      draws: random numbers for the noise.
    """

    operations: float
    bytes: float
    draws: float

    def least_seconds(self, machine: Work) -> float:
        """Returns the time at a machine's full rate: operations beside bytes, then draws.

        Args:
          machine: what the machine does in a second.
        """
        beside = max(self.operations / machine.operations, self.bytes / machine.bytes)
        return beside + self.draws / machine.draws


def count_work(layers: Sequence[tuple[int, int, int, int]], variant: Variant) -> Work:
    """Counts the work of a step on given generated images from the shapes.

    Every layer has three matrix products, forward and backward, except the first, which needs no
    gradient of its input. Each product reads or writes the input and the output once; an activation
    does so with the output five times more. A private step adds the cheaper form of the norms; the
    patches, which are written once and read twice; weights on the gradients; and, with error
    feedback, a second sum over the records.

    Args:
      layers: (positions, fan-in, fan-out, input size) of each layer, starting at the input.
      variant: 'plain', or a variant with clipping 'fast'.

    Returns:
      The work.
    """
    operations: float = 0
    numbers: float = 0
    parameters = 0
    is_private, feeds_back = variant.optimizer != 'plain', variant.optimizer == 'error_feedback'
    for index, (positions, fan_in, fan_out, going_in) in enumerate(layers):
        product = 2 * positions * fan_in * fan_out
        patches, coming_out = positions * fan_in, positions * fan_out
        operations += (3 if index else 2) * product
        numbers += 3 * (going_in + coming_out) + 5 * coming_out
        if is_private:
            operations += min(product, 2 * positions**2 * (fan_in + fan_out))
            numbers += 3 * patches * (patches > going_in) + 2 * coming_out
        if feeds_back:  # Records are half of the batch.
            operations += product / 2
            numbers += (going_in + 3 * coming_out) / 2
        parameters += (fan_in + 1) * fan_out
    draws = parameters * (is_private + feeds_back)
    return Work(operations * variant.batch_size, 4 * numbers * variant.batch_size, draws)


def layers_of(networks: Networks) -> list[tuple[int, int, int, int]]:
    """Returns the discriminator's layers in the form that `count_work` takes."""
    from tf_efsgd.models.discriminator import build_discriminator

    model = build_discriminator(networks.image_shape, networks.num_classes, width=networks.width)
    return [
        (
            math.prod(layer.output_shape[1:-1]),
            math.prod(layer.kernel.shape[:-1]),
            layer.kernel.shape[-1],
            math.prod(layer.input_shape[1:]),
        )
        for layer in model.layers
        if layer.trainable_weights
    ]


def measure_machine(size: int = 1024, megabytes: int = 64) -> Work:
    """Measures what this machine reaches: the best of five measurements.

    Args:
      size: height and width of the matrices to multiply.
      megabytes: size of the array to copy, and of the array of draws.

    Returns:
      The work that the machine does in a second.
    """
    import tensorflow as tf

    from tf_efsgd.privacy import noise

    numbers = megabytes * 2**17
    draw = tf.function(
        lambda step_noise: noise.integers([numbers], step_noise=step_noise, purpose=0, variable=0)
    )
    step_noise = noise.NoiseKey().next()
    matrix, array = tf.random.normal([size, size]), tf.random.normal([megabytes * 2**18])

    def rate(amount, function):
        function().numpy()
        return amount / min(seconds_of(lambda _: function().numpy(), 1) for _ in range(5))

    # Only one number is fetched, because fetching all would be timed too.
    return Work(
        operations=rate(2 * size**3, tf.function(lambda: (matrix @ matrix)[0, 0])),
        bytes=rate(8 * array.shape[0], tf.function(lambda: tf.negative(array)[0])),
        draws=rate(numbers, lambda: draw(step_noise)[0]),
    )
