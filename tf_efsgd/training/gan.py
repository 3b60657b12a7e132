"""The differentially private GAN as a Keras model.

`train_step` is one private discriminator step and, when it is due, one public generator step.
Records act through the clipped sums of the private step alone; everything else, the moving average
and the step schedule too, is a function of what was released.

With a discriminator that has a 'posterior' the generator decodes records in the private step, as
in a variational autoencoder, and is then among what that step updates: one norm, one release and
one update for both networks.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_efsgd.privacy import optimizer as private_optimizer
from tf_efsgd.training.private_model import (
    Box,
    PrivateModel,
    all_reduce,
    gradient_of_sum,
    mean_over_replicas,
    refuse_other_precision,
    refuse_wrapped,
    zeros_like,
)
from tf_efsgd.training.schedule import Schedule

LOGITS = 'logits'
RECONSTRUCTION = 'reconstruction'
POSTERIOR = 'posterior'
LATENTS = 'latents'
LABELS = 'labels'

# Of public seeds; 0 and 1 are for generated images of the two steps.
_TARGET = 2


class EFSGDGan(PrivateModel, Schedule):
    """A class-conditional GAN whose discriminator is trained privately.

    ```python
    gan = EFSGDGan(build_generator(...), build_discriminator(...), draw_inputs, seed=1)
    gan.compile(
        generator_optimizer=tf.keras.optimizers.legacy.Adam(...),
        discriminator_optimizer=ErrorFeedbackDPKerasAdamOptimizer(..., expected_batch_size=256),
        losses=NonSaturatingLosses())
    gan.fit(poisson_batches(...), steps_per_epoch=train_steps)
    ```

    One step of `fit` is one private step. Batches are (images uint8 [n, H, W, C], labels int32
    [n]), Poisson samples; n may be 0.

    Args:
      generator: from `build_generator`; maps drawn inputs to images float32 in [-1, 1].
      discriminator: from `build_discriminator`; maps images float32 [n, H, W, C] in [-1, 1] to
        {'logits': float32 [n, classes]} and, if it has the head, {'reconstruction': like images}
        or, if the generator is to decode, {'posterior': float32 [n, 2 latent_dim]}.
      draw_inputs: (generator, labels int32 [n], seed int32 [2] or None, rows int32 [m] or None) ->
        inputs of the generator, [m] of them; see `models.generator.draw_inputs`.
      seed: of what is public: latents and labels of generated images.

    Raises:
      ValueError: if a network that sees records keeps state, if one computes in anything but
        float32, or if the posterior is of other latents than the generator's.
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
        self._decodes_records = POSTERIOR in discriminator.output
        self.generator = generator
        self.discriminator = discriminator
        self._check_networks()
        if self._decodes_records:
            _check_posterior(discriminator, generator)
        self.ema_generator = tf.keras.models.clone_model(generator)
        self.ema_generator.set_weights(generator.get_weights())
        self.num_classes = discriminator.output[LOGITS].shape[-1]
        self._draw_inputs = draw_inputs
        self._target = Box()
        self._seed = seed
        self._make_counters()

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
        **kwargs,
    ):
        """Configures training.

        Args:
          generator_optimizer: a legacy Keras optimizer.
          discriminator_optimizer: an error-feedback DP optimizer with `expected_batch_size`; any
            other legacy Keras optimizer trains WITHOUT privacy. It applies the whole private step,
            so the generator's part too where that decodes records, with slots of its own for it.
          losses: per-example losses, a `models.losses.NonSaturatingLosses` or the like.
          expected_batch_size: mean number of records in a batch and number of generated images
            beside them. None takes the optimizer's.
          generated_per_step: how many generated images there are in a private step, at least 1, a
            public constant; they weigh as much as `expected_batch_size` records. None: as many.
          reconstruction_weight: lambda >= 0 of the squared error of the reconstruction; where the
            generator decodes, of that and the posterior's divergence.
          discriminator_steps: private steps per generator step, at least; 1 to 64.
          adaptive_discriminator_steps: raise them, up to 64, for as long as the discriminator's
            accuracy on generated images (on nothing else) is below 60%.
          discriminator_only_steps: first private steps without any of the generator, >= 0.
          generator_ema: decay in [0, 1) of the generator's moving average, per generator step.
          clip_fake: clip the gradients of generated images as those of records, to C1 and, with
            error feedback, C2 more, so that real and generated images pull with equal force.
          noise: what `privacy.optimizer.new_noise` makes. None makes one with a fresh key.
          measure_records: keep `nonprivate_diagnostics` of every step; steps take longer.
          clipping: 'fast' clips from one backward pass over the batch, for layers with a rule in
            `privacy.layer_norms`; 'vectorized' takes a small one for every example; 'auto' is
            'fast' where that is possible. The result is the same.
          microbatch_size: None, or how many records, and how many generated images beside them,
            go through the networks at a time, at least 1: bounds the memory, not the result.
          **kwargs: of `tf.keras.Model.compile`, e.g. `run_eagerly`.

        Raises:
          ValueError: without any `expected_batch_size`, or with two; if 'fast' is not possible; if
            the loss of a record depends on other records, or is random by itself: it is tried on
            made-up records, see `privacy.independence`.
        """
        super().compile(**kwargs)
        self._check_networks()
        for optimizer in (generator_optimizer, discriminator_optimizer):
            refuse_wrapped(optimizer)
        self.is_private = isinstance(discriminator_optimizer, private_optimizer.PrivateOptimizer)
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
        self.discriminator_optimizer = discriminator_optimizer
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
        self._prepare_private_step(clipping)

    def _check_networks(self) -> None:
        super()._check_networks()
        refuse_other_precision(self.generator)

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
        """One private discriminator step, then, when it is due, one public generator step.

        Args:
          data: (records, step noise); records are one Poisson sample (images uint8 [n, H, W, C],
            labels int32 [n]), distributed over the replicas; see `noise.StepNoise`.

        Returns:
          What may be written down: scalars that depend on releases and generated images only.
        """
        records, step_noise = data
        strategy = self.distribute_strategy
        logs = strategy.run(self.discriminator_step, args=(records, step_noise))
        # All-reduced already: every replica has the same.
        logs = {k: strategy.experimental_local_results(v)[0] for k, v in logs.items()}
        self._count_private_step(logs['fake_accuracy'])
        tf.cond(self._generator_is_due(), self._whole_generator_step, lambda: None)
        return {
            **logs,
            'fake_accuracy_average': tf.identity(self.fake_accuracy),
            'discriminator_steps': tf.identity(self.discriminator_steps),
            'generator_steps': tf.identity(self.generator_steps),
        }

    def _whole_generator_step(self) -> None:
        self.distribute_strategy.run(self.generator_step)
        self._after_generator_step()

    def discriminator_step(self, records, step_noise) -> dict[str, tf.Tensor]:
        """The private step, in a replica context: clip, all-reduce, release, feed back, update."""
        images, labels = records
        optimizer = self.discriminator_optimizer
        variables = self.private_variables
        clipped, residual, public, seen = self._sums_of_step(images, labels, step_noise)
        public = [s / self._generated_per_step for s in all_reduce(public)]
        fake_accuracy, fake_loss = tf.unstack(all_reduce(seen) / self._generated_per_step)
        if self.is_private:
            private = optimizer.release(clipped, residual, variables, step_noise=step_noise)
        else:
            private = [
                tf.cast(s / self._expected_batch_size, tf.float32) for s in all_reduce(clipped)
            ]
        # Generated images teach the discriminator alone, whose variables come first.
        gradients = [r + f for r, f in zip(private, public)] + private[len(public) :]
        optimizer.apply_gradients(
            list(zip(gradients, variables)), experimental_aggregate_gradients=False
        )
        return {
            'fake_accuracy': fake_accuracy,
            'fake_loss': fake_loss,
            # Reduced although it is the same everywhere: replicas whose results differ in use are
            # optimized into different graphs, round differently, and their weights drift apart.
            'released_gradient_norm': mean_over_replicas(tf.linalg.global_norm(private)),
        }

    def set_target(self, target, weight: float):
        """Adds a public term to the generator's loss; call it before `fit`.

        The generator's own steps then make the images that the target asks for, for both terms:
        on every replica all of them, since the target looks at them together.

        Args:
          target: has `draw_labels` and `distance` of `training.targets.Target`; it may look at no
            record, but at what was released of them.
          weight: of the distance, >= 0; that of the adversarial term is 1, per image.
        """
        self._target.value = target, weight
        self.train_function = None

    def generator_step(self) -> None:
        """The public step, in a replica context: no record is near it."""
        variables = self.generator.trainable_variables
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync

        def gradient():
            return gradient_of_sum(self._loss_of_generator, variables)

        if self._target.value is None and self._generated_per_step < replicas:
            # On no images at all, TensorFlow's convolutions fail.
            gradients = tf.cond(
                tf.shape(self._own_rows())[0] > 0,
                gradient,
                lambda: zeros_like(variables),
            )
        else:
            gradients = gradient()
        self.generator_optimizer.apply_gradients(zip(gradients, variables))

    def _loss_of_generator(self) -> tf.Tensor:
        """This replica's part, []: the optimizer adds them up."""
        if self._target.value is None:
            generated, labels = self._generate_share(for_generator=True)
            return tf.reduce_sum(self._adversarial(generated, labels)) / self._generated_per_step
        target, weight = self._target.value
        seeds = tf.random.experimental.stateless_split(self._public_seed(_TARGET), 3)
        labels = target.draw_labels(seeds[0])
        inputs = self._draw_inputs(self.generator, labels, seeds[1])
        generated = self.generator(inputs, training=True)
        loss = tf.reduce_mean(self._adversarial(generated, labels))
        loss += weight * target.distance(generated, labels, seeds[2])
        return loss / tf.distribute.get_replica_context().num_replicas_in_sync

    def _adversarial(self, generated, labels) -> tf.Tensor:
        logits = self.discriminator(generated, training=False)[LOGITS]
        return self._losses.generator(self._losses.realness(logits, labels))

    def call(self, inputs, training=None):
        """Generates images from `draw_inputs` with the moving average of the generator."""
        return self.ema_generator(inputs, training=training)

    def generate(self, labels: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """One image per label from the moving average of the generator.

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

        The two never meet in a pass: what is seen of generated images must not depend on how many
        records there are, not even in its last digit.

        Returns:
          (clipped sum of records over all private variables, float64, their residual sum ([]
          without privacy), sum of generated images over the discriminator's, [2]: how many of
          those the discriminator recognises as generated, and their loss).
        """
        size = self._microbatch_size
        if size is None:
            records = images, labels, self._draw_for_records(labels, step_noise)
            return self._sums_of(records, self._generate_share())

        def add_part(start, sums):
            part = slice(start, start + size)
            draws = self._draw_for_records(labels[part], step_noise, start)
            records = images[part], labels[part], draws
            more = self._sums_of(records, self._generate_share(part=part))
            return start + size, tf.nest.map_structure(tf.add, sums, more)

        replica = tf.distribute.get_replica_context()
        # Replica 0 has the largest share.
        generated = -(-self._generated_per_step // replica.num_replicas_in_sync)
        count = tf.maximum(tf.shape(labels)[0], generated)
        private = zeros_like(self.private_variables, tf.float64)
        public = zeros_like(self.discriminator.trainable_variables)
        nothing = (private, private if self.is_private else [], public, tf.zeros([2]))
        _, sums = tf.while_loop(
            lambda start, _: start < count,
            add_part,
            (tf.constant(0), nothing),
            parallel_iterations=1,
        )
        return sums

    def _sums_of(self, records, generated):
        """As `_sums_of_step`, of a part of it at once."""
        images, labels, draws = records
        records = self._records_to_float(images), labels, draws
        learns_of_generated = self.discriminator.trainable_variables

        def of_generated():
            seen = []

            def losses_of():
                losses, logits = self._losses_of_generated(*generated)
                recognised = tf.cast(logits < 0, tf.float32)
                seen.append(tf.stack([tf.reduce_sum(recognised), tf.reduce_sum(losses)]))
                return losses

            public = self._sum_of_generated(losses_of, generated, learns_of_generated)
            if not seen:  # Every example had a pass of its own.
                losses_of()
            return public, seen[0]

        def of_nothing():
            zeros = zeros_like(self.private_variables, tf.float64)
            return zeros, zeros if self.is_private else []

        # On no images at all, TensorFlow's convolutions fail.
        clipped, residual = tf.cond(
            tf.shape(labels)[0] > 0, lambda: self._sums_of_records(records), of_nothing
        )
        # One after the other: side by side both would hold what they stored at once.
        with tf.control_dependencies(tf.nest.flatten((clipped, residual))):
            public, seen = tf.cond(
                tf.shape(generated[1])[0] > 0,
                of_generated,
                lambda: (zeros_like(learns_of_generated), tf.zeros([2])),
            )
        return clipped, residual, public, seen

    def _sum_of_generated(self, losses_of, generated, variables) -> list[tf.Tensor]:
        """Clipped per image like records with `clip_fake`; it needs no privacy.

        A record's residual arrives in the end, so a generated image's must arrive too: with C1
        alone on this side, everything generated is soon called real.
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
        """Of every record, [n]; None if nothing is reconstructed."""
        if RECONSTRUCTION in outputs:
            return self._losses.reconstruction(images, outputs[RECONSTRUCTION])
        if POSTERIOR not in outputs:
            return None
        mean, log_variance = self._losses.posterior(outputs[POSTERIOR])
        latents = mean + tf.exp(0.5 * log_variance) * draws[LATENTS]
        # In the mode that images are generated in, always: nothing is written.
        decoded = self.generator({**draws, LATENTS: latents, LABELS: labels}, training=False)
        divergence = self._losses.divergence(mean, log_variance)
        return self._losses.reconstruction(images, decoded) + divergence

    def _losses_of_generated(self, images, labels) -> tuple[tf.Tensor, tf.Tensor]:
        """(Adversarial losses, logits of their realness), each [n]."""
        logits = self._losses.realness(self.discriminator(images, training=True)[LOGITS], labels)
        return self._losses.fake(logits), logits

    def _loss_of_generated(self, generated) -> tf.Tensor:
        return self._losses_of_generated(generated[0][tf.newaxis], generated[1][tf.newaxis])[0][0]

    def _generate_share(
        self, for_generator: bool = False, part: slice = slice(None)
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """This replica's part of `generated_per_step` generated images, or a part of that.

        Every replica draws all inputs from the same public seed and takes its own rows, so the
        images of a step do not depend on the number of replicas.
        """
        seed = self._public_seed(int(for_generator))
        labels = tf.random.stateless_uniform(
            [self._generated_per_step], seed, 0, self.num_classes, tf.int32
        )
        own = self._own_rows()[part]
        inputs = self._draw_inputs(self.generator, labels, seed, own)
        return self.generator(inputs, training=False), tf.gather(labels, own)

    def _own_rows(self) -> tf.Tensor:
        """Which of a step's generated images are this replica's; none, if there are too few."""
        replica = tf.distribute.get_replica_context()
        return tf.range(
            replica.replica_id_in_sync_group,
            self._generated_per_step,
            replica.num_replicas_in_sync,
        )

    def _public_seed(self, purpose: int) -> tf.Tensor:
        """Of this step's public draws, int32 [2]."""
        return tf.random.experimental.stateless_fold_in(
            tf.constant([self._seed, purpose], tf.int32), self.private_steps
        )


def _check_posterior(discriminator: tf.keras.Model, generator: tf.keras.Model) -> None:
    numbers = discriminator.output[POSTERIOR].shape[-1]
    latent_dim = generator.input[LATENTS].shape[-1]
    if numbers != 2 * latent_dim:
        raise ValueError(
            f'The posterior must be of the {latent_dim} latents of the generator, so '
            f'{2 * latent_dim} numbers. Received: {numbers}.'
        )
