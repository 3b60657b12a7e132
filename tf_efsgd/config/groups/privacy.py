"""The settings of the mechanism and its budget."""

from __future__ import annotations

import dataclasses

from tf_efsgd.config.fields import ConfigError, boolean, integer, number, string


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """The mechanism and its budget."""

    private: bool = boolean(
        True,
        'Train with clipping and noise. --noprivate trains without either, for comparison; the '
        'run is then marked NOT PRIVATE.',
    )
    target_epsilon: float | None = number(
        None,
        'Epsilon of the whole run; the noise is calibrated so that the run stays within it. A '
        'smaller one is more private and gives worse images. Give either this or '
        '--noise_multiplier.',
        above=0.0,
        on_resume='mechanism',
    )
    target_delta: float = number(
        1e-5,
        'Delta of the guarantee. It must also be below 1 / number of records, or below 1 / number '
        'of persons with --images_per_person: lower it for larger data sets.',
        above=0.0,
        below=1.0,
    )
    allow_large_delta: bool = boolean(
        False,
        'Accept a --target_delta of 1 / number of records or more, for experiments. A mechanism '
        'that gives one whole record away would fulfil such a guarantee.',
        on_resume='mechanism',
    )
    noise_multiplier: float | None = number(
        None,
        'Standard deviation of the noise of one step, divided by its sensitivity; epsilon is then '
        'computed and reported. Give either this or --target_epsilon.',
        above=0.0,
        on_resume='mechanism',
    )
    l2_norm_clip: float = number(
        1.0,
        "Length to which each record's gradient is clipped. The noise grows with it; lower it "
        'when gradients are shorter.',
        at_least=1e-9,
        at_most=1e9,
        on_resume='mechanism',
    )
    expected_batch_size: int = integer(
        128,
        'Mean number of records in a step. More records mean less noise in each step, fewer epochs '
        'for the same epsilon, and slower steps.',
        at_least=1,
        on_resume='mechanism',
    )
    train_steps: int = integer(
        5000,
        'Number of private steps. More steps need more noise in each, for the same epsilon.',
        at_least=1,
        on_resume='mechanism',
    )
    error_feedback: str = string(
        'private',
        'What happens to the part of the gradients that clipping cuts. private: it is released '
        'with noise too, and later steps give it back; none: it is lost (plain DP-SGD); hidden: '
        'the published variant, for research. Its buffer has no noise, so its true epsilon is '
        'large, its checkpoints are private and --target_epsilon needs far more noise.',
        choices=('private', 'none', 'hidden'),
        on_resume='mechanism',
    )
    residual_l2_norm_clip: float = number(
        1.0,
        'Length to which the part that clipping cut from one gradient is itself clipped. Choose '
        'it about as large as that part. With --error_feedback=hidden: the largest norm that '
        'one step gives back, in units of the sum of gradients.',
        at_least=1e-9,
        at_most=1e9,
        on_resume='mechanism',
    )
    residual_share: float = number(
        0.1,
        'Share of the budget (in 1/sigma^2) that is spent on releasing what clipping cut; 0 is '
        'plain DP-SGD.',
        at_least=0,
        below=1.0,
        on_resume='mechanism',
    )
    feedback_decay: float = number(
        0.9,
        'Part of the error buffer that each step keeps; the rest is given back. A larger part '
        'spreads the noise of the buffer over more steps.',
        at_least=0,
        below=1.0,
        on_resume='mechanism',
    )
    feedback_l2_norm_clip: float | None = number(
        None,
        'Largest norm of what one step gives back from the error buffer, in units of the mean '
        'gradient. Give it when training diverges. Default: no limit.',
        at_least=1e-9,
        at_most=1e9,
        on_resume='mechanism',
    )
    clip_fake: bool = boolean(
        True,
        'Clip the gradients of generated images like those of records, so that both pull with '
        'equal force. It costs no privacy either way.',
        on_resume='mechanism',
    )
    clipping: str = string(
        'auto',
        'How the clipped gradients are computed; the result is the same. fast: from one backward '
        'pass over the batch; vectorized: from a small backward pass for every record, slower, '
        'for networks with a layer that has no rule; auto: fast where that is possible.',
        choices=('auto', 'fast', 'vectorized'),
        on_resume='stays',
    )
    warm_start_share: float = number(
        0.0,
        'Share of the budget that is spent once, before the first step: noisy mean features of '
        'each class are released and the generator is fitted to them. Measured in 1/sigma^2, '
        'relative to one Gaussian release that would spend the whole --target_epsilon. At 1 '
        'nothing is left for private steps, and none are run. Raise it when the budget is small.',
        at_least=0,
        at_most=1,
    )
    warm_start_noise_multiplier: float | None = number(
        None,
        'Noise of the feature release, divided by its sensitivity. It goes with --noise_multiplier '
        'and replaces the share. Default: no feature release.',
        above=0.0,
    )
    learned_features_share: float = number(
        0.0,
        'Share of the feature release that is spent on a second one. A small classifier learns '
        'from images of the generator that was fitted to the first release; the mean features of '
        'its layers are released like those of pixels, and the generator is fitted to both. 0: no '
        'second release.',
        at_least=0,
        below=1.0,
    )
    dataset_budget: float | None = number(
        None,
        'Epsilon that all runs on this machine may spend together on these records. A run that '
        'would pass it is refused before it spends anything. Other runs are found in --state_dir '
        'by their records; a run that shares any record counts with all that it may spend. For '
        'runs on more than 10,000 records a sample of them is kept, which can miss a few dozen '
        'shared records. Default: no limit; the sum is shown.',
        above=0.0,
        on_resume='may_change',
    )
    secure_noise: bool = boolean(
        False,
        "Take every bit of noise and sampling from the operating system's cryptographic generator "
        'instead of Philox under a secret key. This is slower; use it when the guarantee must not '
        'depend on Philox.',
    )
    log_nonprivate_diagnostics: bool = boolean(
        False,
        'Write losses, gradient norms, clipping fractions and batch sizes on real records to '
        'RUN/nonprivate/logs, to look for a fault. Epsilon does NOT cover them; steps take longer.',
        on_resume='may_change',
    )

    public_features: str = string(
        'auto',
        'Features of a network that learned from public images, which the feature release has '
        'beside those of pixels. efficientnet_lite0: the network that comes with the package (it '
        'learned from ImageNet); the name of a model in tf.keras.applications, e.g. MobileNetV2: '
        'it is downloaded; PATH: a saved Keras model from images, float32 [n, H, W, 3] in [-1, '
        '1], to a dict of feature maps; none: only pixels; auto: efficientnet_lite0 for colour '
        'images, and if the program chooses the recipe, for gray images above 32 pixels; else '
        'none. The statement, the report and every table say that public images were used.',
        earlier='none',
    )

    @property
    def has_warm_start(self) -> bool:
        """Whether a generator is fitted to class sums before the first step."""
        return self.warm_start_share > 0 or self.warm_start_noise_multiplier is not None

    def check_together(self) -> None:
        """Checks what must hold of several settings of this group.

        Raises:
          ConfigError: if they contradict each other.
        """
        if not self.private:
            return
        share, noise = self.warm_start_share, self.warm_start_noise_multiplier
        if share and self.target_epsilon is None:
            raise ConfigError(
                '--warm_start_share is a share of --target_epsilon, which is not given: give '
                f'--warm_start_noise_multiplier instead. Received: {share}.'
            )
        if noise is not None and (share or self.noise_multiplier is None):
            raise ConfigError(
                '--warm_start_noise_multiplier goes with --noise_multiplier; with --target_epsilon '
                f'give --warm_start_share. Received: {noise}.'
            )
