"""The settings of training: steps, learning rates, devices, precision."""

from __future__ import annotations

import dataclasses

from tf_efsgd.config.fields import ConfigError, boolean, integer, number, string


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the networks are trained, and on what."""

    warm_start_steps: int = integer(
        1500,
        'Number of generator steps of the warm start, the fit to the feature release. They cost '
        'time but no privacy; more of them give better images.',
        at_least=1,
    )
    learned_features_steps: int = integer(
        3000,
        'Number of generator steps that fit both releases, with --learned_features_share. They '
        'cost time but no privacy.',
        at_least=1,
    )
    warm_start_weight: float = number(
        0.0,
        "Weight of the distance to the released class means in the generator's loss while "
        'private steps run, added to the loss from the discriminator. Raise it when private steps '
        'undo the warm start; 0 leaves the distance out.',
        at_least=0,
    )
    discriminator_only_steps: int = integer(
        0,
        'Number of private steps at the start without generator steps. Give it after a warm start: '
        'the discriminator has to catch up first.',
        at_least=0,
    )
    discriminator_steps: int = integer(
        5,
        'Number of private steps for each generator step; with --adaptive_discriminator_steps the '
        'number at the start of training. Raise it when the noise is large. With '
        '--discriminator=public_heads the default is 1.',
        at_least=1,
        at_most=64,
    )
    adaptive_discriminator_steps: bool = boolean(
        True,
        'Raise the number of --discriminator_steps, up to 64, while the discriminator falls '
        'behind on generated images. With --discriminator=public_heads the default is off.',
    )
    generator_learning_rate: float = number(
        1e-3, "Learning rate of Adam in the generator's own steps.", above=0.0
    )
    discriminator_learning_rate: float = number(
        1e-3,
        'Learning rate of Adam in the private steps; with --reconstruction=generator these move '
        'the generator too. Lower it when the noise is large.',
        above=0.0,
    )
    microbatch_size: int | None = integer(
        None,
        'The largest number of records, and of generated images, that go through the networks at a '
        'time. It bounds the memory and does not change the result; lower it when memory runs out. '
        'Default: parts of 96 records (on a GPU all of a step), and all generated images.',
        at_least=1,
        on_resume='stays',
    )
    seed: int = integer(
        1,
        'Seed of what is public: initial weights and latent vectors. It never fixes the sampling '
        'or the noise that protects records.',
        at_least=0,
        at_most=2**31 - 1,
    )
    strategy: str = string(
        'auto',
        'Which devices train. one_device: the first one; mirrored: all devices of this machine, '
        'each on its part of the records; multi_worker: the devices of all workers that the '
        'environment variable TF_CONFIG names, see docs/clusters.md; auto: multi_worker when '
        'TF_CONFIG names several workers, mirrored when there are several GPUs (or '
        '--logical_devices), else one_device.',
        choices=('auto', 'one_device', 'mirrored', 'multi_worker'),
        on_resume='may_change',
    )
    logical_devices: int = integer(
        1,
        'Split the CPU into this many devices, to try --strategy=mirrored without GPUs.',
        at_least=1,
        at_most=64,
        on_resume='may_change',
    )

    minutes: int = integer(
        30,
        'About how long to train, in minutes, if the number of steps is not given: the program '
        'measures the speed of this machine and chooses the number before it starts.',
        at_least=1,
        on_resume='may_change',
    )
    worker_timeout: int = integer(
        600,
        'With several workers: how long they wait for one another at the start, in seconds.',
        at_least=1,
        on_resume='may_change',
    )
    worker_records: str = string(
        'all',
        'With several workers: what --dataset is on each of them. all: the same whole data set, of '
        'which each takes a part; own: a part of its own, which no other worker has; '
        '--dataset_size is then the number for all workers together.',
        choices=('all', 'own'),
        on_resume='may_change',
    )
    mixed_precision: str = string(
        'none',
        'The precision in which the generator and the public network compute on generated images. '
        'What sees a record or enters a release stays in float32, float64 and integers, and so do '
        'weights and exports. Try bfloat16 on GPUs that compute in it (A100, L4, H100); on the CPU '
        'where it was measured, a step took twice as long. float16 is not offered: it would need '
        'loss scaling.',
        choices=('none', 'bfloat16'),
        on_resume='stays',
    )
    jit_compile: str = string(
        'auto',
        'Whether XLA compiles the sums over the records of a step. Records come in padded parts of '
        'one size, so XLA does not log how many there are. The result is the same except for the '
        'last digits. auto: if there is a GPU and XLA works; on: always; off: never. It is tried '
        'before anything is spent. On a CPU the sums took 1.5 times as long.',
        choices=('auto', 'on', 'off'),
        on_resume='stays',
    )

    def check_together(self) -> None:
        """Checks what must hold of several settings of this group.

        Raises:
          ConfigError: if they contradict each other.
        """
        strategy, devices = self.strategy, self.logical_devices
        if strategy in ('one_device', 'multi_worker') and devices > 1:
            raise ConfigError(
                '--logical_devices above 1 needs --strategy=mirrored or auto. Received: '
                f'--strategy={strategy} --logical_devices={devices}.'
            )
