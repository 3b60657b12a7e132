"""The settings of one run: its folder, what it writes, and when."""

from __future__ import annotations

import dataclasses

from tf_efsgd.config.fields import ConfigError, boolean, integer, string


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What a run writes, and when."""

    run_dir: str | None = string(
        None,
        'The run folder; it must be new or empty, except with --resume. Default: '
        'runs/<data set>-<time>.',
        on_resume='one_start',
    )
    resume: bool = boolean(
        False,
        'Continue the run in --run_dir from its last checkpoint, with the same settings.',
        on_resume='one_start',
    )
    change_mechanism: bool = boolean(
        False,
        'With --resume: allow other privacy settings from now on. Epsilon is then that of the RDP '
        'filter of the plan at the start, which is larger; --target_epsilon must allow it.',
        on_resume='one_start',
    )
    resume_unverified: bool = boolean(
        False,
        'With --resume: continue although --state_dir remembers nothing of the run, e.g. on '
        'another machine. Only the number, shape and classes of the records are compared then, '
        'and the privacy statement says so.',
        on_resume='one_start',
    )
    state_dir: str | None = string(
        None,
        'The folder, outside the run folder and readable only by you, where the program keeps the '
        "fingerprint of a run's records, its ledger's last position, what it may spend on which "
        'records, and classifiers of real images. tf-efsgd state lists and removes '
        'them. Default: $XDG_STATE_HOME/tf_efsgd or ~/.local/state/tf_efsgd.',
        on_resume='one_start',
    )
    checkpoint_steps: int = integer(
        500,
        'Number of steps between checkpoints, for private steps and for those that fit the warm '
        'start. A stopped run loses the private steps since its last checkpoint, although it has '
        'paid for them.',
        at_least=1,
        on_resume='may_change',
    )
    log_steps: int = integer(
        50,
        'Number of steps between log entries. At the first start of a run it is also the number '
        'of steps that its ledger reserves at a time.',
        at_least=1,
        on_resume='may_change',
    )
    sample_steps: int = integer(
        500,
        'Number of steps between sample pictures. A fit to a release draws at least four.',
        at_least=1,
        on_resume='may_change',
    )
    evaluate: bool = boolean(
        True,
        'At the end, measure the generator against real images and write the result to '
        'RUN/nonprivate: a short form of tf-efsgd evaluate.',
        on_resume='may_change',
    )
    evaluation_images: int = integer(
        20000,
        'Number of generated images that the evaluation measures. More images take longer and '
        'give steadier scores.',
        at_least=100,
        on_resume='may_change',
    )
    evaluation_runs: int = integer(
        1,
        'Number of classifiers that the evaluation trains for each score; give 2 or more to see '
        'their spread.',
        at_least=1,
        on_resume='may_change',
    )
    evaluation_epochs: int = integer(
        10,
        'Number of passes of each of these classifiers over its images.',
        at_least=1,
        on_resume='may_change',
    )
    export: bool = boolean(
        True, 'At the end, export the generator as a SavedModel.', on_resume='may_change'
    )

    def check_together(self) -> None:
        """Checks what must hold of several settings of this group.

        Raises:
          ConfigError: if they contradict each other.
        """
        if self.resume and self.run_dir is None:
            raise ConfigError('--resume needs --run_dir, the folder of the run to continue.')
        for name in ('change_mechanism', 'resume_unverified'):
            if getattr(self, name) and not self.resume:
                raise ConfigError(f'--{name} goes with --resume.')
