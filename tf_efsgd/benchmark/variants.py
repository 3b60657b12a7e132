"""Lists what is measured: the networks, and the kinds of steps that are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

SCALING_BATCH_SIZES = tuple(64 * 2**i for i in range(7))
SCALING_MICROBATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the networks are built for; the defaults are those of the flags of training."""

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
      name: its name for --only and in the JSON file.
      optimizer: 'plain', 'dp_sgd', 'error_feedback' (ours) or 'tf_privacy'.
      clipping: 'none', 'fast', 'vectorized', or 'jacobian' for a drop-in step with a loss vector.
      batch_size: number of records and generated images together, half of each.
      against: name of the variant that it is compared with, which may be its own.
      with_generator: whether the step also makes the generated images.
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


def step_variants(
    batch_size: int, small_batch_size: int, microbatch_size: int | None = None
) -> list[Variant]:
    """Returns the steps to compare.

    Args:
      batch_size: the batch size, even.
      small_batch_size: the batch size, even, for the comparison with TF Privacy's optimizer, which
        needs far more memory.
      microbatch_size: the microbatch size of our steps at `batch_size`.

    Returns:
      The variants; in each group, the one that others are compared with comes first.
    """
    plain, whole, small = 'plain', 'plain_with_generator', 'error_feedback_small'
    ours: dict[str, Any] = {'batch_size': batch_size, 'microbatch_size': microbatch_size}
    strict, with_generator = {**ours, 'against': plain}, {**ours, 'against': whole}
    with_generator['with_generator'] = True
    few: dict[str, Any] = {'batch_size': small_batch_size, 'against': small}
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
    """Returns the error-feedback step on growing batches, each compared with the first."""
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
