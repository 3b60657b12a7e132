"""The differentially private GAN as a Keras model.

`train_step` is one private discriminator step (this file) and, when it is due, one public generator
step (`generator_step`). Records act only through the clipped sums of the private step; everything
else, including the moving average and the step schedule, is a function of what was released.

If the discriminator has a 'posterior', the generator decodes records in the private step, as in a
variational autoencoder, and that step updates it too: one norm, one release and one update for both
networks.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_efsgd import replicas
from tf_efsgd.models import precision
from tf_efsgd.models.discriminator import LOGITS, POSTERIOR, RECONSTRUCTION
from tf_efsgd.models.generator import LABELS, LATENTS
from tf_efsgd.privacy.optimizer import PrivateOptimizer
from tf_efsgd.training.generator_step import GeneratorStep
from tf_efsgd.training.own_networks import LikeKeras, as_discriminator, check_generator
from tf_efsgd.training.private_model import (
    Box,
    PrivateModel,
    gradient_of_sum,
    refuse_other_precision,
    refuse_wrapped,
    zeros_like,
)


class EFSGDGan(LikeKeras, PrivateModel, GeneratorStep):
    """A class-conditional GAN whose discriminator is trained privately.

    ```python
    gan = EFSGDGan(build_generator(...), build_discriminator(...), draw_inputs, seed=1)
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(...),
        discriminator_optimizer=ErrorFeedbackDPKerasAdamOptimizer(..., expected_batch_size=256),
        losses=NonSaturatingLosses())
    gan.fit(poisson_batches(...), steps_per_epoch=train_steps)
    ```

    One step of `fit` is one private step. Batches are Poisson samples (images uint8 [n, H, W, C],
    labels int32 [n]); n may be 0. `predict` makes images from labels, `save` saves the generator.

    Args:
      generator: from `build_generator`, or any model that maps drawn inputs to images float32 in
        [-1, 1]. It may compute in bfloat16 (`models.precision`) if it decodes no record; its moving
        average, which is exported, computes in float32.
      discriminator: from `build_discriminator`, or any model, e.g. a Sequential, that maps images
        float32 [n, H, W, C] in [-1, 1] to logits float32 [n, classes], or to a dict with these as
        'logits'. The dict may also have a 'reconstruction' like the images or, if the generator is
        to decode records, a 'posterior' float32 [n, 2 latent_dim].
      draw_inputs: maps (generator, labels int32 [n], seed int32 [2] or None, rows int32 [m] or
        None) to the inputs of the generator for these rows; see `models.generator.draw_inputs`.
      seed: of what is public: latents and labels of generated images.

    Raises:
      ValueError: if a network that sees records keeps state or computes in anything but float32,
        if the generator computes in anything but float32 and bfloat16, if the posterior does not
        have the generator's latents, or if the networks do not fit each other: the generator is
        tried once.
    """

    def __init__(
        self,
        generator: tf.keras.Model,
        discriminator: tf.keras.Model,
        draw_inputs: Callable[..., dict[str, tf.Tensor]],
        *,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        discriminator = as_discriminator(discriminator)
        self._decodes_records = POSTERIOR in discriminator.output
        self.generator = generator
        self.discriminator = discriminator
        self._check_networks()
        if self._decodes_records:
            _check_posterior(discriminator, generator)
        self.num_classes = discriminator.output[LOGITS].shape[-1]
        check_generator(generator, draw_inputs, self.num_classes, self._record_shape())
        self.ema_generator = precision.copy_in(generator, 'float32')
        # Weights in HDF5 go by these names.
        self.ema_generator._name = f'ema_{generator.name}'
        self._draw_inputs = draw_inputs
        self._target = Box()
        self._seed = seed
        self._make_counters()
        self.built = True  # All variables are made: Keras may load weights from HDF5.

    def compile(
        self,
        generator_optimizer: tf.keras.optimizers.legacy.Optimizer,
        discriminator_optimizer: tf.keras.optimizers.legacy.Optimizer,
        *,
        losses,
        expected_batch_size: int | None = None,
        generated_per_step: int | None = None,
        reconstruction_weight: float = 0.01,
        discriminator_steps: int = 5,
        adaptive_discriminator_steps: bool = True,
        discriminator_only_steps: int = 0,
        generator_ema: float = 0.99,
        clip_fake: bool = True,
        noise=None,
        measure_records: bool = False,
        clipping: str = 'auto',
        microbatch_size: int | None = None,
        jit_compile: str = 'off',
        **kwargs,
    ):
        """Configures training.

        Args:
          generator_optimizer: a legacy Keras optimizer.
          discriminator_optimizer: an error-feedback DP optimizer with `expected_batch_size`; any
            other legacy Keras optimizer trains WITHOUT privacy. It applies the whole private step.
            If the generator decodes records, that includes its part, with slots of its own.
          losses: per-example losses, e.g. a `models.losses.NonSaturatingLosses`.
          expected_batch_size: mean number of records in a batch and number of generated images
            beside them. None takes the optimizer's.
          generated_per_step: how many generated images there are in a private step, at least 1, a
            public constant; together they weigh as much as `expected_batch_size` records. None: as
            many as that.
          reconstruction_weight: lambda >= 0, the weight of the squared error of the reconstruction;
            if the generator decodes records, also of the posterior's divergence.
          discriminator_steps: private steps for each generator step, or the least number of them;
            1 to 64.
          adaptive_discriminator_steps: whether to raise that number, up to 64, while the
            discriminator's accuracy on generated images (on nothing else) is below 60%.
          discriminator_only_steps: private steps at the start without generator steps, >= 0.
          generator_ema: decay in [0, 1) of the generator's moving average, per generator step.
          clip_fake: whether to clip the gradients of generated images like those of records, to C1
            and, with error feedback, C2 more, so that real and generated images pull with equal
            force.
          noise: from `privacy.optimizer.new_noise`. None makes a source with a fresh key.
          measure_records: whether to keep `nonprivate_diagnostics` of every step; steps take
            longer.
          clipping: 'fast' clips from one backward pass over the batch, for layers with a rule in
            `privacy.layer_norms`; 'vectorized' takes a small backward pass for every example;
            'auto' is 'fast' where that is possible. The result is the same.
          microbatch_size: the largest number of records, and of generated images, that go through
            the networks at a time, at least 1. It bounds the memory and does not change the result.
            None: parts of 96 records (on a GPU all of a step), and all generated images.
          jit_compile: 'on' lets XLA compile the sums over records, which are padded to one size;
            'auto' does so where there is a GPU and XLA works. The result is the same except for the
            last digits.
          **kwargs: of `tf.keras.Model.compile`, e.g. `run_eagerly`.

        Raises:
          ValueError: if there is no `expected_batch_size`, or two that differ; if 'fast' or XLA is
            asked for and not possible; if the loss of a record depends on other records, or is
            random by itself: it is tried on made-up records, see `privacy.independence`.
        """
        super().compile(**kwargs)
        self._check_networks()
        for optimizer in (generator_optimizer, discriminator_optimizer):
            refuse_wrapped(optimizer)
        self.is_private = isinstance(discriminator_optimizer, PrivateOptimizer)
        if self.is_private:
            given = expected_batch_size or discriminator_optimizer.expected_batch_size
            expected_batch_size = discriminator_optimizer.expected_batch_size
            if given != expected_batch_size:
                raise ValueError(
                    'The discriminator_optimizer must have the same expected_batch_size. Received: '
                    f'{given} and {expected_batch_size}.'
                )
        if expected_batch_size is None:
            raise ValueError(
                'Give expected_batch_size to the discriminator_optimizer (or here, when training '
                'without privacy): the divisor of the sums must be a public constant.'
            )
        self.generator_optimizer = generator_optimizer
        before = getattr(self, 'discriminator_optimizer', None)
        self.discriminator_optimizer = discriminator_optimizer
        self._count_restored_steps(is_new=discriminator_optimizer is not before)
        self._losses = losses
        self._expected_batch_size = expected_batch_size
        self._generated_per_step = generated_per_step or expected_batch_size
        self._reconstruction_weight = reconstruction_weight
        self._discriminator_steps = discriminator_steps
        self._adaptive_discriminator_steps = adaptive_discriminator_steps
        self._discriminator_only_steps = discriminator_only_steps
        self._generator_ema = generator_ema
        self._clip_fake = clip_fake
        self._noise = noise
        self._measure_records = measure_records
        self._microbatch_size = microbatch_size
        self._prepare_private_step(clipping, jit_compile)

    def _check_networks(self) -> None:
        super()._check_networks()
        # A generator that decodes records is among the private models, which need float32.
        refuse_other_precision(self.generator, (tf.float32, tf.bfloat16))

    def _make_slots(self) -> None:
        super()._make_slots()
        self.generator_optimizer._create_all_weights(self.generator.trainable_variables)

    def _measured_sums_of_share(self, images, labels, draws) -> dict[str, tf.Tensor]:
        outputs = self.discriminator(images, training=False)
        logits = self._losses.realness(outputs[LOGITS], labels)
        sums = {
            'batch_size': tf.cast(tf.shape(labels)[0], tf.float32),
            'real_loss': tf.reduce_sum(self._losses.real(logits)),
            'real_accuracy': tf.reduce_sum(tf.cast(logits > 0, tf.float32)),
        }
        errors = self._reconstruction_losses(outputs, images, labels, draws)
        if errors is not None:
            sums['reconstruction_loss'] = tf.reduce_sum(errors)
        if self.is_private:
            sums |= self.discriminator_optimizer.measured_sums(
                self._loss_of_record, (images, labels, draws), self.private_variables
            )
        return sums

    def train_step(self, data) -> dict[str, tf.Tensor]:
        """Makes one private discriminator step and, when it is due, one public generator step.

        Args:
          data: (records, step noise); records are one Poisson sample (images uint8 [n, H, W, C],
            labels int32 [n]), distributed over the replicas; see `noise.StepNoise`.

        Returns:
          Scalars by name that depend on releases and generated images only: they may be logged.
        """
        records, step_noise = data
        strategy = self.distribute_strategy
        logs = strategy.run(self.discriminator_step, args=(records, step_noise))
        # The numbers are all-reduced already: every replica has the same.
        logs = {k: strategy.experimental_local_results(v)[0] for k, v in logs.items()}
        self._count_private_step(logs['fake_accuracy'])
        tf.cond(self._generator_is_due(), self._whole_generator_step, lambda: None)
        return {
            **logs,
            'fake_accuracy_average': tf.identity(self.fake_accuracy),
            'discriminator_steps': tf.identity(self.discriminator_steps),
            'generator_steps': tf.identity(self.generator_steps),
        }

    def discriminator_step(self, records, step_noise) -> dict[str, tf.Tensor]:
        """The private step, in a replica context: clip, all-reduce, release, feed back, update."""
        images, labels = records
        optimizer = self.discriminator_optimizer
        variables = self.private_variables
        clipped, residual, public, seen = self._sums_of_step(images, labels, step_noise)
        public, seen = replicas.all_reduce((public, seen))
        public = [s / self._generated_per_step for s in public]
        fake_accuracy, fake_loss = tf.unstack(seen / self._generated_per_step)
        if self.is_private:
            private = optimizer.release(clipped, residual, variables, step_noise=step_noise)
        else:
            private = [
                tf.cast(s / self._expected_batch_size, tf.float32)
                for s in replicas.all_reduce(clipped)
            ]
        # Generated images teach only the discriminator, whose variables come first.
        gradients = [r + f for r, f in zip(private, public)] + private[len(public) :]
        optimizer.apply_gradients(
            list(zip(gradients, variables)), experimental_aggregate_gradients=False
        )
        return {
            'fake_accuracy': fake_accuracy,
            'fake_loss': fake_loss,
            # It is all-reduced although it is the same everywhere. If the results of replicas were
            # used differently, TensorFlow would optimize their graphs differently, they would round
            # differently, and their weights would drift apart.
            'released_gradient_norm': replicas.mean(tf.linalg.global_norm(private)),
        }

    def call(self, inputs, training=None):
        """Generates images from drawn inputs with the moving average of the generator."""
        return self.ema_generator(inputs, training=training)

    def generate(self, labels: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Generates one image per label with the moving average of the generator.

        Args:
          labels: int32 [n].
          seed: int32 [2], or None for fresh images.

        Returns:
          float32 [n, H, W, C] in [-1, 1].
        """
        return self.ema_generator(self._draw_inputs(self.ema_generator, labels, seed))

    def _private_models(self) -> list[tf.keras.Model]:
        """The networks that see records."""
        return [self.discriminator, *([self.generator] if self._decodes_records else [])]

    def _sums_of_step(self, images, labels, step_noise=None):
        """Sums over this replica's records and over its share of the generated images.

        The two never share a pass: what is observed of generated images must not depend on how many
        records there are, not even in its last digit.

        Returns:
          (the clipped sum of records for all private variables, float64; their residual sum, []
          without privacy; the sum of generated images for the discriminator's variables; float32
          [2]: how many of them the discriminator recognises as generated, and their loss).
        """
        clipped, residual = self._sums_of_records(images, labels, step_noise)
        # One after the other: side by side, both would hold their activations in memory at once.
        with tf.control_dependencies(tf.nest.flatten((clipped, residual))):
            public, seen = self._sums_of_share()
        return clipped, residual, public, seen

    def _sums_of_share(self):
        """The last two of what `_sums_of_step` returns."""
        size = self._microbatch_size
        if size is None:
            return self._sums_of_generated(self._generate_share())

        def add_part(start, sums):
            part = slice(start, start + size)
            more = self._sums_of_generated(self._generate_share(part=part))
            return start + size, tf.nest.map_structure(tf.add, sums, more)

        # Replica 0 has the largest share.
        count = -(-self._generated_per_step // replicas.count())
        nothing = (zeros_like(self.discriminator.trainable_variables), tf.zeros([2]))
        _, sums = tf.while_loop(
            lambda start, _: start < count,
            add_part,
            (tf.constant(0), nothing),
            parallel_iterations=1,
        )
        return sums

    def _sums_of_generated(self, generated):
        """What `_sums_of_share` returns, for some generated images."""
        variables = self.discriminator.trainable_variables

        def of_generated():
            seen = []

            def losses_of():
                losses, logits = self._losses_of_generated(*generated)
                recognised = tf.cast(logits < 0, tf.float32)
                seen.append(tf.stack([tf.reduce_sum(recognised), tf.reduce_sum(losses)]))
                return losses

            public = self._sum_of_generated(losses_of, generated, variables)
            if not seen:  # Every image had a backward pass of its own.
                losses_of()
            return public, seen[0]

        # TensorFlow's convolutions fail on no images at all.
        return tf.cond(
            tf.shape(generated[1])[0] > 0,
            of_generated,
            lambda: (zeros_like(variables), tf.zeros([2])),
        )

    def _sum_of_generated(self, losses_of, generated, variables) -> list[tf.Tensor]:
        """The sum of gradients of generated images, with `clip_fake` clipped like those of records.

        It needs no privacy. A record's residual is delivered in the end, so a generated image's
        must be delivered too: with C1 alone on this side, the discriminator soon calls everything
        real.
        """
        optimizer = self.discriminator_optimizer
        if not (self.is_private and self._clip_fake):
            return gradient_of_sum(losses_of, variables)
        if self.clipping == 'fast':
            return optimizer.batch_delivered_sum(self.discriminator, losses_of, variables)
        sums = optimizer.clipped_sums(self._loss_of_generated, generated, variables)
        return optimizer.delivered_sums(*sums)

    def _drawn_shapes(self) -> dict[str, tf.TensorShape]:
        if not self._decodes_records:
            return {}
        return {name: x.shape[1:] for name, x in self.generator.input.items() if name != LABELS}

    def _record_shape(self) -> tuple[int, ...]:
        return self.discriminator.input_shape[1:]

    def _losses_of_records(self, images, labels, draws=None) -> tf.Tensor:
        """The WHOLE private loss of every record, [n]: adversarial and reconstruction."""
        outputs = self.discriminator(images, training=True)
        losses = self._losses.real(self._losses.realness(outputs[LOGITS], labels))
        errors = self._reconstruction_losses(outputs, images, labels, draws)
        return losses if errors is None else losses + self._reconstruction_weight * errors

    def _reconstruction_losses(self, outputs, images, labels, draws) -> tf.Tensor | None:
        """The reconstruction loss of every record, [n]; None if nothing is reconstructed."""
        if RECONSTRUCTION in outputs:
            return self._losses.reconstruction(images, outputs[RECONSTRUCTION])
        if POSTERIOR not in outputs:
            return None
        mean, log_variance = self._losses.posterior(outputs[POSTERIOR])
        latents = mean + tf.exp(0.5 * log_variance) * draws[LATENTS]
        # Always in the mode in which images are generated: no variable is written.
        decoded = self.generator({**draws, LATENTS: latents, LABELS: labels}, training=False)
        divergence = self._losses.divergence(mean, log_variance)
        return self._losses.reconstruction(images, decoded) + divergence

    def _losses_of_generated(self, images, labels) -> tuple[tf.Tensor, tf.Tensor]:
        """(The adversarial losses, the logits of realness) of generated images, each [n]."""
        logits = self._losses.realness(self.discriminator(images, training=True)[LOGITS], labels)
        return self._losses.fake(logits), logits

    def _loss_of_generated(self, generated) -> tf.Tensor:
        return self._losses_of_generated(generated[0][tf.newaxis], generated[1][tf.newaxis])[0][0]


def _check_posterior(discriminator: tf.keras.Model, generator: tf.keras.Model) -> None:
    numbers = discriminator.output[POSTERIOR].shape[-1]
    latent_dim = generator.input[LATENTS].shape[-1]
    if numbers != 2 * latent_dim:
        raise ValueError(
            f'The posterior must have a mean and a variance for each of the {latent_dim} latents '
            f'of the generator, so {2 * latent_dim} numbers. Received: {numbers}.'
        )
