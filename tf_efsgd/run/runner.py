"""One run, in order: prepare, release and fit, private steps, report, export, evaluation.

`prepare` finds what can be wrong before the run folder exists and before any privacy is spent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from tf_efsgd import budget, rounding, terminal
from tf_efsgd.config import RunConfig
from tf_efsgd.config.recipes import EVERYTHING
from tf_efsgd.privacy.plan import Plan
from tf_efsgd.run import finish, log_filters, prepare, private_steps, start, workers
from tf_efsgd.run import folder as run_folder
from tf_efsgd.run.context import Context, Sources
from tf_efsgd.run.errors import (
    Interrupted,
    TensorFlowError,
    with_how_to_continue,
    without_private_text,
)
from tf_efsgd.run.warm_start import WarmStart

__all__ = ['Interrupted', 'Sources', 'TensorFlowError', 'run']


def run(
    config: RunConfig, sources: Sources | None = None, given: Collection[str] = EVERYTHING
) -> str:
    """Trains, evaluates and exports.

    Args:
      config: the settings.
      sources: of records, samples and noise; None: the usual ones.
      given: names of the settings that somebody gave. `config.recipes` chooses the others; in a
        resumed run they stay what they were. By default nothing is chosen.

    Returns:
      The run folder.

    Raises:
      ConfigError: if a setting does not fit the data, the machine or the run folder; nothing has
        been written then, and no privacy spent.
      Interrupted: if SIGINT or SIGTERM stopped training.
      OSError: e.g. if the disk is full; if the run had begun, --resume continues it, see
        `errors.with_how_to_continue`.
      TensorFlowError: if TensorFlow failed; --resume continues then too.
    """
    terminal.use_words()
    run_dir = run_folder.choose(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_filters.quiet_libraries())
        stack.enter_context(
            with_how_to_continue(lambda: run_folder.how_to_continue(config, run_dir))
        )
        # This comes first: TensorFlow can connect workers only before it does anything else.
        team = workers.join(config)
        stack.enter_context(team.at_work())
        context, warm_start = _prepare(config, run_dir, given, sources or Sources(), stack, team)
        show = context.config.privacy.log_nonprivate_diagnostics
        with without_private_text(show, team.losses):
            warm_start.make()
            private_steps.train(context)
            team.only_on_chief(lambda: finish.finish(context))
            team.leave()
    return str(context.folder)


def _prepare(config, run_dir, given, sources, stack, team) -> tuple[Context, WarmStart]:
    """Everything that comes before the first privacy is spent."""
    settled = prepare.settle(config, run_dir, given, sources, team, stack)
    built = prepare.build_networks(settled, sources, team)
    opened = prepare.open_run(settled, built, run_dir, team, stack)
    context = Context(
        config=settled.config,
        folder=run_dir,
        state_dir=settled.state_dir,
        dataset=settled.dataset,
        ledger=opened.ledger,
        state=opened.state,
        gan=built.gan,
        strategy=settled.strategy,
        other_runs=opened.other_runs,
        sources=sources,
        workers=team,
        network=built.network,
        head_inputs=built.head_inputs,
        features=built.features,
    )
    return context, _restore(context, built.plan)


def _restore(context: Context, plan: Plan) -> WarmStart:
    """Continues where an earlier start stopped, by the plan that holds from now on."""
    team = context.workers
    if team.count > 1:
        # Several workers make every variable together. If the chief restored first, it would make
        # these variables alone and wait for the other workers without end.
        context.gan._make_slots()
    context.is_restored = team.of_chief(lambda: private_steps.restore(context))
    warm_start = WarmStart(context)
    team.only_on_chief(warm_start.check)
    team.only_on_chief(lambda: private_steps.check_what_is_left(context))
    if plan != context.ledger.plan:
        _change(context, plan)
    if team.is_chief:
        run_folder.note_settings(context.folder, context.config)
        start.note_other_runs(context.folder, context.other_runs)
    return warm_start


def _change(context: Context, plan: Plan) -> None:
    """Continues by another plan, and says what epsilon is from now on."""
    context.ledger.change_plan(plan)
    context.state.store_position(context.ledger.position)
    epsilon = budget.spent_epsilon(context.ledger)
    print(
        'The mechanism is changed from here on. Epsilon of the whole run, whatever is done '
        f'within the budget: {rounding.up(epsilon.headline)} (RDP filter, fixed at '
        'the start).'
    )
