"""Times the steps and compares their memory, on this machine: python -m tf_efsgd.benchmark.

  python -m tf_efsgd.benchmark --model=mnist --batch_size=512 --plot=bench.png
  python -m tf_efsgd.benchmark --scaling
  python -m tf_efsgd.benchmark --only=plain,dp_sgd,error_feedback --roofline

A step is one discriminator step as training runs it, without the input pipeline: forward, backward,
clipping, noise, error feedback and update, on records and as many generated images. The content of
the images has no influence; they are random.

How it measures:
  - Everything is built and traced first. Then, in each round, each kind of step is run for at least
    0.2 seconds, forwards in one round and backwards in the next.
  - A ratio is taken within a round, so that what slows the machine down for a while slows both
    sides; shown are the median over the rounds, the least and the largest.
  - Memory is what a step's batch takes: the most that a process of its own had in RAM at any time,
    without what it had after TensorFlow was loaded and the data made, less the same for a step on
    two images. So tracing, weights and optimizer are not in it; what a GPU holds is not either.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import multiprocessing
import os
import pathlib
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags, logging

from tf_efsgd import progress
from tf_efsgd.cli.arguments import exit_with, parse_arguments
from tf_efsgd.config import ConfigError

# Does so many steps and waits until they are done.
Run = Callable[[int], None]

_L2_NORM_CLIP, _RESIDUAL_L2_NORM_CLIP, _NOISE_MULTIPLIER = 1.0, 0.5, 1.0
_RECONSTRUCTION_WEIGHT = 0.01
# So small that the networks stay what they are, and every step does the same work.
_LEARNING_RATE = 1e-6
_ADAM_BETA_1 = 0.5

_LEAST_SECONDS = 0.2
_STEPS_FOR_MEMORY = 3
_SCALING_BATCH_SIZES = tuple(64 * 2**i for i in range(7))
_SCALING_MICROBATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the networks are built for; defaults as those of the flags of training."""

    image_shape: tuple[int, int, int]
    num_classes: int
    width: int = 32
    generator_width: int = 64
    latent_dim: int = 64


MODELS = {
    'demo': Networks((28, 28, 1), 10),
    'mnist': Networks((28, 28, 1), 10),
    'celeba32': Networks((32, 32, 3), 2),
    # As in configs/celeba.flags.
    'celeba64': Networks((64, 64, 3), 2, width=48, generator_width=256, latent_dim=128),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One kind of step.

    Attributes:
      name: for --only and in the JSON file.
      optimizer: 'plain', 'dp_sgd', 'error_feedback' (ours) or 'tf_privacy'.
      clipping: 'none', 'fast', 'vectorized', or 'jacobian': the drop-in way, a loss vector.
      batch_size: records and generated images together, half of each.
      against: name of the variant that it is compared with; its own where it is that one.
      with_generator: makes the generated images too, instead of having them given.
      microbatch_size: as in `EFSGDGan.compile`.
    """

    name: str
    optimizer: str
    clipping: str
    batch_size: int
    against: str
    with_generator: bool = False
    microbatch_size: int | None = None

    @property
    def records(self) -> int:
        """Number of records in a step."""
        return self.batch_size // 2


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and largest over the rounds."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one variant.

    Attributes:
      variant: which one.
      seconds: of one step, in every round.
      ratio: of the time of a record to that in `variant.against`.
      memory: bytes; None if it was not measured.
      memory_ratio: to that of `variant.against`.
    """

    variant: Variant
    seconds: Sequence[float]
    ratio: Spread
    memory: float | None = None
    memory_ratio: float | None = None


def step_variants(
    batch_size: int, small_batch_size: int, microbatch_size: int | None = None
) -> list[Variant]:
    """The steps to compare, those that others are compared with first.

    Args:
      batch_size: even.
      small_batch_size: even; of the comparison with TF Privacy's optimizer, which needs far more
        memory.
      microbatch_size: of our steps at `batch_size`.
    """
    plain, whole, small = 'plain', 'plain_with_generator', 'error_feedback_small'
    ours = {'batch_size': batch_size, 'microbatch_size': microbatch_size}
    strict, with_generator = {**ours, 'against': plain}, {**ours, 'against': whole}
    with_generator['with_generator'] = True
    few = {'batch_size': small_batch_size, 'against': small}
    return [
        Variant(plain, 'plain', 'none', **strict),
        Variant('dp_sgd', 'dp_sgd', 'fast', **strict),
        Variant('error_feedback', 'error_feedback', 'fast', **strict),
        Variant('dp_sgd_vectorized', 'dp_sgd', 'vectorized', **strict),
        Variant('error_feedback_vectorized', 'error_feedback', 'vectorized', **strict),
        Variant(whole, 'plain', 'none', **with_generator),
        Variant('dp_sgd_with_generator', 'dp_sgd', 'fast', **with_generator),
        Variant('error_feedback_with_generator', 'error_feedback', 'fast', **with_generator),
        Variant(small, 'error_feedback', 'fast', **few),
        Variant('error_feedback_drop_in', 'error_feedback', 'jacobian', **few),
        Variant('tf_privacy', 'tf_privacy', 'jacobian', **few),
    ]


def scaling_variants(batch_sizes: Sequence[int], microbatch_size: int) -> list[Variant]:
    """The error-feedback step on growing batches, against the first of them."""
    return [
        Variant(
            f'batch_{size}',
            'error_feedback',
            'fast',
            size,
            against=f'batch_{batch_sizes[0]}',
            microbatch_size=microbatch_size,
        )
        for size in batch_sizes
    ]


# The steps.


def make_data(networks: Networks, records: int):
    """Random data of one step.

    Returns:
      (images uint8 [records, H, W, C], labels int32 [records], generated images float32 in [-1, 1]
      like images).
    """
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(1)
    shape = [records, *networks.image_shape]
    images = rng.integers(0, 256, shape, np.uint8)
    labels = rng.integers(0, networks.num_classes, records, np.int32)
    generated = rng.uniform(-1, 1, shape).astype(np.float32)
    return tf.constant(images), tf.constant(labels), tf.constant(generated)


def build_gan(networks: Networks, variant: Variant, generated):
    """Builds and compiles the GAN of one variant, always with the same weights.

    Args:
      networks: its shapes.
      variant: not one of clipping 'jacobian'.
      generated: from `make_data`, for a step without the generator.

    Returns:
      An `EFSGDGan`.
    """
    import tensorflow as tf

    from tf_efsgd.models import discriminator, generator, losses
    from tf_efsgd.training.gan import EFSGDGan

    tf.keras.utils.set_random_seed(1)
    critic = discriminator.build_discriminator(
        networks.image_shape, networks.num_classes, width=networks.width
    )
    maker, draw_inputs = _given_images(generated), _draw_given(generated)
    if variant.with_generator:
        maker = generator.build_generator(
            networks.image_shape,
            networks.num_classes,
            latent_dim=networks.latent_dim,
            width=networks.generator_width,
        )
        draw_inputs = generator.draw_inputs
    gan = EFSGDGan(maker, critic, draw_inputs, seed=1)
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(_LEARNING_RATE),
        discriminator_optimizer=build_optimizer(variant),
        losses=losses.NonSaturatingLosses(),
        expected_batch_size=variant.records,
        reconstruction_weight=_RECONSTRUCTION_WEIGHT,
        clipping='vectorized' if variant.clipping == 'none' else variant.clipping,
        microbatch_size=variant.microbatch_size,
    )
    return gan


def _given_images(generated):
    """A generator that returns its inputs: what a step costs without one."""
    import tensorflow as tf

    images = tf.keras.Input(generated.shape[1:])
    return tf.keras.Model(images, tf.keras.layers.Activation('linear')(images))


def _draw_given(generated):
    import tensorflow as tf

    def draw_inputs(generator, labels, seed=None, rows=None):
        del generator, labels, seed
        return tf.gather(generated, rows)

    return draw_inputs


def build_optimizer(variant: Variant):
    """The discriminator's optimizer, Adam in every variant."""
    import tensorflow as tf

    adam = {'learning_rate': _LEARNING_RATE, 'beta_1': _ADAM_BETA_1}
    if variant.optimizer == 'plain':
        return tf.keras.optimizers.legacy.Adam(**adam)
    mechanism = {'l2_norm_clip': _L2_NORM_CLIP, 'noise_multiplier': _NOISE_MULTIPLIER}
    if variant.optimizer == 'tf_privacy':
        import tensorflow_privacy

        return tensorflow_privacy.VectorizedDPKerasAdamOptimizer(**mechanism, **adam)
    from tf_efsgd.privacy.optimizer import ErrorFeedbackDPKerasAdamOptimizer

    # In the drop-in way, generated images are examples of the batch like the records.
    drop_in = variant.clipping == 'jacobian'
    return ErrorFeedbackDPKerasAdamOptimizer(
        **mechanism,
        error_feedback='private' if variant.optimizer == 'error_feedback' else 'none',
        residual_l2_norm_clip=_RESIDUAL_L2_NORM_CLIP,
        expected_batch_size=variant.batch_size if drop_in else variant.records,
        **adam,
    )


def build_run(networks: Networks, variant: Variant, data=None) -> Run:
    """Builds one variant's step; it is traced at the first call.

    Args:
      networks: their shapes.
      variant: which step.
      data: from `make_data`; None makes it.
    """
    data = make_data(networks, variant.records) if data is None else data
    build = _build_drop_in_step if variant.clipping == 'jacobian' else _build_gan_step
    step, variables = build(networks, variant, data)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        variables[0].numpy()  # Waits for the last update.

    return run


def _build_gan_step(networks, variant, data):
    """(The step as training runs it, what it updates)."""
    import tensorflow as tf

    from tf_efsgd.privacy.optimizer import new_noise

    images, labels, generated = data
    gan = build_gan(networks, variant, generated)
    variables = gan.discriminator.trainable_variables
    shapes = [variable.shape for variable in variables]
    noise = new_noise()
    # Batches are Poisson samples: training traces them with an unknown size.
    signature = [
        (
            tf.TensorSpec([None, *networks.image_shape], tf.uint8),
            tf.TensorSpec([None], tf.int32),
        ),
        tf.nest.map_structure(tf.TensorSpec.from_tensor, noise.next(shapes)),
    ]

    @tf.function(input_signature=signature)
    def step(records, step_noise):
        return gan.distribute_strategy.run(gan.discriminator_step, args=(records, step_noise))

    return lambda: step((images, labels), noise.next(shapes)), variables


def _build_drop_in_step(networks, variant, data):
    """(The same loss as a vector for an optimizer's `minimize`, what it updates)."""
    import tensorflow as tf

    from tf_efsgd.models.discriminator import build_discriminator

    tf.keras.utils.set_random_seed(1)
    discriminator = build_discriminator(
        networks.image_shape, networks.num_classes, width=networks.width
    )
    optimizer = build_optimizer(variant)
    variables = discriminator.trainable_variables

    @tf.function
    def step(images, labels, generated):
        with tf.GradientTape(persistent=True) as tape:
            losses = drop_in_losses(discriminator, images, labels, generated)
        optimizer.minimize(losses, variables, tape=tape)

    return lambda: step(*data), variables


def drop_in_losses(discriminator, images, labels, generated):
    """The losses of a step, float32 [2 n]: of n records, then of n generated images."""
    import tensorflow as tf

    from tf_efsgd.data.images import to_float
    from tf_efsgd.models import discriminator as names
    from tf_efsgd.models.losses import NonSaturatingLosses as Losses

    images, count = to_float(images), images.shape[0]
    outputs = discriminator(tf.concat([images, generated], axis=0), training=True)
    realness = Losses.realness(outputs[names.LOGITS], tf.tile(labels, [2]))
    errors = Losses.reconstruction(images, outputs[names.RECONSTRUCTION][:count])
    real = Losses.real(realness[:count]) + _RECONSTRUCTION_WEIGHT * errors
    return tf.concat([real, Losses.fake(realness[count:])], axis=0)


# Measuring.


def measure_times(
    runs: Mapping[str, Run], rounds: int, after_each: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Times steps side by side.

    Args:
      runs: by name.
      rounds: at least 1.
      after_each: called when one of len(runs) * (rounds + 1) parts is done.

    Returns:
      Seconds of one step by name, one for every round.
    """
    repeats = {}
    for name, run in runs.items():
        run(1)  # Traces.
        repeats[name] = max(1, math.ceil(_LEAST_SECONDS / _seconds(run, 1)))
        after_each()
    seconds = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(runs):
            seconds[name].append(_seconds(runs[name], repeats[name]) / repeats[name])
            after_each()
    return seconds


def _seconds(run: Run, steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def spread_of_ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of the ratios within each round."""
    ratios = [a / b for a, b in zip(above, below)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def measure_memory(networks: Networks, variant: Variant) -> float | None:
    """What the batch of a step takes, see the top of this file.

    Returns:
      Bytes; None if a process did not survive or the system does not tell.
    """
    whole = _process_memory(networks, variant)
    fixed = _process_memory(networks, dataclasses.replace(variant, batch_size=2))
    return None if whole is None or fixed is None else max(0.0, whole - fixed)


def _process_memory(networks: Networks, variant: Variant) -> float | None:
    """What a few steps add to the memory of a process of their own, in bytes."""
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_memory, args=(sender, networks, variant), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.terminate()
        process.join()


def _send_memory(sender, networks, variant) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever waits ends this process.
    import tensorflow as tf

    tf.get_logger().setLevel('ERROR')
    data = make_data(networks, variant.records)
    before = _memory('VmRSS')
    build_run(networks, variant, data)(_STEPS_FOR_MEMORY)
    after = _memory('VmHWM')
    sender.send(None if before is None else float(after - before))


def _memory(field: str) -> int | None:
    """Bytes in RAM, 'VmRSS' now or 'VmHWM' at the most; elsewhere than on Linux always the latter.

    `ru_maxrss` alone would not do on Linux: a process inherits it from the one that started it.
    """
    status = pathlib.Path('/proc/self/status')
    if status.exists():
        lines = dict(line.split(':', 1) for line in status.read_text().splitlines())
        return 1024 * int(lines[field].split()[0])
    if importlib.util.find_spec('resource') is None:
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak


def measure(
    networks: Networks, variants: Sequence[Variant], rounds: int, memory: bool = True
) -> list[Result]:
    """Times all variants side by side, then measures the memory of each.

    Args:
      networks: their shapes.
      variants: with all that they are compared with.
      rounds: at least 1.
      memory: measure that too, in a new process for each.

    Returns:
      One result for each variant.
    """
    total = len(variants) * (rounds + 2 + memory)
    with progress.Bar(total=total, desc='benchmark', disable=None, leave=False) as bar:
        runs = {}
        for variant in variants:
            runs[variant.name] = build_run(networks, variant)
            bar.update()
        seconds = measure_times(runs, rounds, bar.update)
        runs.clear()
        used = dict.fromkeys(seconds)
        for variant in variants if memory else ():
            used[variant.name] = measure_memory(networks, variant)
            bar.update()
    return _results(variants, seconds, used)


def _results(variants, seconds, used) -> list[Result]:
    per_record = {v.name: [s / v.records for s in seconds[v.name]] for v in variants}
    results = []
    for variant in variants:
        name, against = variant.name, variant.against
        ratio = spread_of_ratios(per_record[name], per_record[against])
        known = used[name] and used[against]
        memory_ratio = used[name] / used[against] if known else None
        results.append(Result(variant, seconds[name], ratio, used[name], memory_ratio))
    return results


# What bounds a step.


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step needs, or what a machine does in a second.

    Attributes:
      operations: a multiplication with its addition is two.
      bytes: read or written.
      draws: numbers of noise.
    """

    operations: float
    bytes: float
    draws: float

    def least_seconds(self, machine: Work) -> float:
        """With all of it at the machine's full rate: bytes beside operations, then the draws."""
        beside = max(self.operations / machine.operations, self.bytes / machine.bytes)
        return beside + self.draws / machine.draws


def count_work(layers: Sequence[tuple[int, int, int, int]], variant: Variant) -> Work:
    """Work of a step on given generated images, counted from the shapes.

    Every layer has three matrix products, forward and backward, but for the first, which no
    gradient leaves. Each touches what goes in and what comes out; an activation touches the latter
    five times more. A private step adds the cheaper form of the norms, patches, written once and
    read twice, weights on the gradients, and, with error feedback, a second sum over the records.

    Args:
      layers: (positions, fan-in, fan-out, numbers going in), from the input on.
      variant: 'plain', or one of clipping 'fast'.
    """
    operations = numbers = parameters = 0
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
    """The discriminator's layers, as `count_work` takes them."""
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
    """What this machine reaches, at its best of five times.

    Args:
      size: of the square matrices to multiply.
      megabytes: of an array to copy, and of one of draws.
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
        return amount / min(_seconds(lambda _: function().numpy(), 1) for _ in range(5))

    # One number is fetched: to fetch all would be timed too.
    return Work(
        operations=rate(2 * size**3, tf.function(lambda: (matrix @ matrix)[0, 0])),
        bytes=rate(8 * array.shape[0], tf.function(lambda: tf.negative(array)[0])),
        draws=rate(numbers, lambda: draw(step_noise)[0]),
    )


def format_roofline(networks: Networks, results: Sequence[Result], machine: Work) -> str:
    """What the steps need at the least, beside what they took; only those it can count."""
    lines = [
        f'This machine: {machine.operations / 1e9:.0f} GFLOP/s in a matrix product, '
        f'{machine.bytes / 1e9:.1f} GB/s in a copy, {machine.draws / 1e6:.0f} M numbers of noise/s',
        _ROOFLINE.format('step', 'GFLOP', 'MB', 'draws', 'least ms', 'ms'),
    ]
    for result in results:
        variant = result.variant
        if variant.clipping in ('none', 'fast') and not variant.with_generator:
            work = count_work(layers_of(networks), variant)
            lines.append(
                _ROOFLINE.format(
                    _TITLES[variant.optimizer],
                    f'{work.operations / 1e9:.2f}',
                    f'{work.bytes / 1e6:.0f}',
                    f'{work.draws:,}',
                    f'{1e3 * work.least_seconds(machine):.1f}',
                    f'{1e3 * statistics.median(result.seconds):.1f}',
                )
            )
    return '\n'.join(lines)


# Showing.

_ROOFLINE = '{:<24} {:>7} {:>7} {:>9} {:>9} {:>7}'
_TITLES = {
    'plain': 'plain, not private',
    'dp_sgd': 'DP-SGD',
    'error_feedback': 'error feedback',
    'tf_privacy': "TF Privacy's optimizer",
}
_CLIPPINGS = {'none': '', 'fast': 'fast', 'vectorized': 'vectorized', 'jacobian': 'jacobian'}
_COLUMNS = '{:<24} {:<12} {:>7} {:>10} {:>10} {:>7} {:>13} {:>8} {:>7}'
_HEADER = ('step', 'clipping', 'batch', 'ms', 'µs/record', '× time', 'min–max', 'MB', '× MB')


def machine() -> dict[str, object]:
    """What the figures were made on."""
    import tensorflow as tf

    is_limited = hasattr(os, 'sched_getaffinity')
    return {
        'cores': len(os.sched_getaffinity(0)) if is_limited else os.cpu_count(),
        'processor': _processor(),
        'gpus': len(tf.config.list_physical_devices('GPU')),
        'tensorflow': tf.__version__,
        'python': platform.python_version(),
    }


def _processor() -> str:
    path = pathlib.Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def describe_machine(facts: Mapping[str, object]) -> str:
    """`machine` in words."""
    gpus = f', {facts["gpus"]} GPUs' if facts['gpus'] else ''
    return (
        f'{facts["cores"]} cores of {facts["processor"]}{gpus}, TensorFlow {facts["tensorflow"]}, '
        f'Python {facts["python"]}'
    )


def describe_networks(networks: Networks) -> str:
    """The images and the size of the networks in words."""
    from tf_efsgd.models.discriminator import build_discriminator

    shape, classes = networks.image_shape, networks.num_classes
    discriminator = build_discriminator(shape, classes, width=networks.width)
    return (
        f'{"x".join(map(str, shape))}, {classes} classes; discriminator '
        f'{discriminator.count_params():,} parameters'
    )


def group_title(base: Variant, scaling: bool = False) -> str:
    """What the steps compared with `base` have in common."""
    if scaling:
        size = base.microbatch_size
        return f'Error feedback, {size} records at a time; × is of the first, time by record'
    half = f'batch {base.batch_size} ({base.records} records)'
    if base.optimizer == 'error_feedback':
        return f'Against TF Privacy, {half}; × is of our fast error feedback'
    if base.with_generator:
        return f'With the generator making its images, {half}; × is of plain'
    return f'Generated images given, {half}; × is of plain'


def format_table(results: Sequence[Result], scaling: bool = False) -> str:
    """The results as a table, one part for each variant that others are compared with."""
    lines = [_COLUMNS.format(*_HEADER)]
    for base, group in _groups(results):
        lines += ['', group_title(base, scaling)]
        lines += [_format_row(result) for result in group]
    return '\n'.join(lines)


def _groups(results: Sequence[Result]) -> list[tuple[Variant, list[Result]]]:
    bases = [r.variant for r in results if r.variant.name == r.variant.against]
    return [(base, [r for r in results if r.variant.against == base.name]) for base in bases]


def _format_row(result: Result) -> str:
    variant, ratio = result.variant, result.ratio
    seconds = statistics.median(result.seconds)
    is_base = variant.name == variant.against
    return _COLUMNS.format(
        _TITLES[variant.optimizer],
        _CLIPPINGS[variant.clipping],
        variant.batch_size,
        f'{1e3 * seconds:.1f}',
        f'{1e6 * seconds / variant.records:.0f}',
        f'{ratio.median:.2f}',
        '' if is_base else f'{ratio.low:.2f}–{ratio.high:.2f}',
        '' if result.memory is None else f'{result.memory / 1e6:.0f}',
        '' if result.memory_ratio is None else f'{result.memory_ratio:.2f}',
    ).rstrip()


def describe_scaling(results: Sequence[Result]) -> str:
    """What a step costs whatever its batch, what a record costs more, and how steady that is.

    Args:
      results: of `scaling_variants`, in growing order, at least two.

    Returns:
      One line: least squares of the relative errors of fixed + records * marginal, and the least
      and largest marginal time between neighbouring sizes of full microbatches.
    """
    import numpy as np

    records = np.array([r.variant.records for r in results], float)
    seconds = np.array([statistics.median(r.seconds) for r in results])
    marginal, fixed = np.polyfit(records, seconds, 1, w=1 / seconds)
    line = f'{1e3 * fixed:.1f} ms for every step and {1e6 * marginal:.0f} µs for every record'
    is_full = records >= results[0].variant.microbatch_size
    if sum(is_full) < 2:
        return line
    between = 1e6 * np.diff(seconds[is_full]) / np.diff(records[is_full])
    return (
        f'{line}; from {records[is_full][0]:.0f} records on {between.min():.0f} to '
        f'{between.max():.0f} µs for one more'
    )


def to_json(results: Sequence[Result], **about) -> str:
    """All that was measured, every round of it, for notes and scripts."""
    steps = [
        {**dataclasses.asdict(r), 'milliseconds': 1e3 * statistics.median(r.seconds)}
        for r in results
    ]
    return json.dumps({**about, 'steps': steps}, indent=1) + '\n'


def plot(results: Sequence[Result], path: str, caption: str, scaling: bool = False) -> None:
    """Draws the ratios as bars, least to largest as a line on each.

    Args:
      results: as in `format_table`.
      path: of the picture.
      caption: stands below.
      scaling: as in `format_table`.
    """
    from matplotlib.figure import Figure

    groups = _groups(results)
    heights = [len(group) + 0.8 for _, group in groups]
    figure = Figure(figsize=(9, 1.2 + 0.45 * sum(heights)), layout='constrained')
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (base, group) in zip(panels, groups):
        _plot_group(axes, group, scaling)
        axes.set_title(group_title(base, scaling), fontsize=9, loc='left')
    figure.supxlabel(caption, fontsize=8)
    figure.savefig(path, dpi=120)


def _plot_group(axes, group: Sequence[Result], scaling: bool) -> None:
    names = []
    for result in group:
        variant = result.variant
        clipping = _CLIPPINGS[variant.clipping]
        name = _TITLES[variant.optimizer] + (f', {clipping}' if clipping else '')
        names.append(f'batch {variant.batch_size}' if scaling else name)
    medians = [r.ratio.median for r in group]
    below = [r.ratio.median - r.ratio.low for r in group]
    above = [r.ratio.high - r.ratio.median for r in group]
    colors = ['gray' if r.variant.name == r.variant.against else 'C0' for r in group]
    axes.barh(range(len(group)), medians, xerr=[below, above], color=colors, capsize=3)
    axes.set_yticks(range(len(group)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(r.ratio.high for r in group))
    for position, result in enumerate(group):
        text = f'  {result.ratio.median:.2f}'
        axes.annotate(text, (result.ratio.high, position), va='center', fontsize=9)
    axes.grid(True, axis='x', alpha=0.4)


# The command line.


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags."""
    shared = {'flag_values': flag_values}
    flags.DEFINE_enum(
        'model', 'mnist', list(MODELS), 'The networks of these flagfiles; demo is mnist.', **shared
    )
    flags.DEFINE_integer(
        'batch_size',
        512,
        'Examples in a step, even: half are records, half generated images. Not for --scaling.',
        **shared,
    )
    flags.DEFINE_integer(
        'tf_privacy_batch_size',
        64,
        "The same for the comparison with TF Privacy's optimizer, which needs much memory.",
        **shared,
    )
    flags.DEFINE_integer(
        'microbatch_size',
        None,
        'Records, and generated images beside them, that go through the networks at a time, at '
        f'least 1. Default: all; {_SCALING_MICROBATCH_SIZE} with --scaling.',
        **shared,
    )
    flags.DEFINE_integer('rounds', 7, 'Rounds to measure, at least 1.', **shared)
    flags.DEFINE_boolean(
        'memory', True, 'Measure memory too; takes some ten seconds for each step.', **shared
    )
    flags.DEFINE_boolean(
        'scaling',
        False,
        'Measure the time of a record in the error-feedback step as the batch grows from '
        f'{_SCALING_BATCH_SIZES[0]} to {_SCALING_BATCH_SIZES[-1]} instead.',
        **shared,
    )
    flags.DEFINE_boolean(
        'roofline',
        False,
        'Also count the operations and bytes of the steps, and print the least time that this '
        'machine needs for them.',
        **shared,
    )
    flags.DEFINE_list(
        'only', None, 'Steps to measure, by their names in the JSON file. Default: all.', **shared
    )
    flags.DEFINE_string('plot', None, 'Picture to write, e.g. bench.png.', **shared)
    flags.DEFINE_string('json', None, 'File to write all figures to, e.g. bench.json.', **shared)


def _check(values: flags.FlagValues) -> None:
    """Whatever can be checked without TensorFlow."""

    def require(ok, name, allowed):
        if not ok:
            raise ConfigError(f'--{name} must be {allowed}. Received: {values[name].value}.')

    for name in ('batch_size', 'tf_privacy_batch_size'):
        size = values[name].value
        require(size >= 2 and size % 2 == 0, name, 'even and at least 2')
    size = values.microbatch_size
    require(size is None or size >= 1, 'microbatch_size', 'at least 1')
    require(values.rounds >= 1, 'rounds', 'at least 1')
    if values.plot is not None:
        _check_plot_path(values.plot)
    if values.json is not None:
        _check_target('json', values.json, ['json'])


def _check_plot_path(path: str) -> None:
    if importlib.util.find_spec('matplotlib') is None:
        raise ConfigError('--plot needs matplotlib: pip install tf_efsgd[report]')
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _check_target('plot', path, sorted(FigureCanvasAgg.get_supported_filetypes()))


def _check_target(flag: str, path: str, endings: Sequence[str]) -> None:
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        raise ConfigError(f'--{flag}: there is no folder {target.parent}. Received: {path}.')
    if target.is_dir() or target.suffix[1:].lower() not in endings:
        raise ConfigError(
            f'--{flag} must be a file that ends in one of {", ".join(endings)}. Received: {path}.'
        )


def _choose_variants(values: flags.FlagValues) -> list[Variant]:
    """What the flags ask for, and what that is compared with."""
    if values.scaling:
        size = values.microbatch_size or _SCALING_MICROBATCH_SIZE
        variants = scaling_variants(_SCALING_BATCH_SIZES, size)
    else:
        variants = step_variants(
            values.batch_size, values.tf_privacy_batch_size, values.microbatch_size
        )
    if values.only is None:
        return variants
    known = {variant.name: variant for variant in variants}
    for name in values.only:
        if name not in known:
            raise ConfigError(f'--only takes {", ".join(known)}. Received: {name or "nothing"}.')
    wanted = {*values.only, *(known[name].against for name in values.only)}
    return [variant for variant in variants if variant.name in wanted]


def run(values: flags.FlagValues) -> list[Result]:
    """Measures what the flags ask for, prints it and writes the files.

    Args:
      values: parsed flags.

    Returns:
      One result for each step.

    Raises:
      ConfigError: if a flag is wrong; nothing has been measured then.
    """
    _check(values)
    variants = _choose_variants(values)
    networks = MODELS[values.model]
    facts = machine()
    about_machine = describe_machine(facts)
    about_networks = f'{values.model}: {describe_networks(networks)}; {values.rounds} rounds'
    print(f'{about_machine}\n{about_networks}', flush=True)
    results = measure(networks, variants, values.rounds, values.memory)
    print('\n' + format_table(results, values.scaling), flush=True)
    if values.scaling and len(results) > 1:
        print('\n' + describe_scaling(results), flush=True)
    if values.roofline:
        print('\n' + format_roofline(networks, results, measure_machine()), flush=True)
    if values.json is not None:
        about = {'machine': facts, 'model': values.model, 'rounds': values.rounds}
        text = to_json(results, **about, networks=dataclasses.asdict(networks))
        pathlib.Path(values.json).write_text(text, encoding='utf-8')
    if values.plot is not None:
        plot(results, values.plot, f'{about_networks}\n{about_machine}', values.scaling)
    return results


def _main(arguments: list[str]) -> None:
    del arguments
    # Below 3 TensorFlow greets with three errors about GPU plug-ins; real ones are raised. And
    # vectorized_map says of every norm that it is a loop.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    logging.set_verbosity(logging.ERROR)
    try:
        run(flags.FLAGS)
    except (ConfigError, OSError) as error:
        exit_with(error)
    except KeyboardInterrupt:
        print('\ntf_efsgd: interrupted.', file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """Entry point of the command line."""
    define_flags()
    app.run(_main, flags_parser=parse_arguments)


if __name__ == '__main__':
    main()
