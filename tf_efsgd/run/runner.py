"""One run, in order: data, plan, strategy, model, fit, evaluate, export, report.

Everything that can be wrong is found out before the run folder exists and before any privacy is
spent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from tf_efsgd import budget, progress, rounding, terminal
from tf_efsgd.config import RunConfig
from tf_efsgd.config.recipes import EVERYTHING
from tf_efsgd.privacy import ledger
from tf_efsgd.run import (
    build,
    devices,
    evaluate,
    finish,
    log_filters,
    messages,
    private_steps,
    start,
)
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
      given: names of the settings that somebody gave: the others are chosen by `config.recipes`, or
        stay what they were where a run is resumed. By default none is chosen.

    Returns:
      The run folder.

    Raises:
      ConfigError: if a setting does not fit the data, the machine or the run folder; nothing has
        been written then, and no privacy spent.
      Interrupted: if SIGINT or SIGTERM stopped training.
      OSError: if the disk is full, say; `resume` continues then, if the run had begun: see
        `errors.with_how_to_continue`.
      TensorFlowError: if TensorFlow failed; `resume` continues then, too.
    """
    terminal.use_words()
    run_dir = run_folder.choose(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_filters.quiet_libraries())
        stack.enter_context(
            with_how_to_continue(lambda: run_folder.how_to_continue(config, run_dir))
        )
        context, warm_start = _prepare(config, run_dir, given, sources or Sources(), stack)
        with without_private_text(context.config.privacy.log_nonprivate_diagnostics):
            warm_start.make()
            private_steps.train(context)
            finish.finish(context)
    return str(context.folder)


def _prepare(config, run_dir, given, sources, stack) -> tuple[Context, WarmStart]:
    """All that comes before the first privacy is spent."""
    config = run_folder.with_whole_paths(config)
    config = run_folder.check(run_dir, config, given)
    state_dir = run_folder.state_dir(config, run_dir)
    strategy = devices.make_strategy(config.training)
    messages.begin(devices.describe(strategy), config, given)
    book = state = None
    if config.run.resume:
        book = start.open_ledger(run_dir)
        stack.callback(book.close)
    else:
        config = start.choose_image_size(config, given)
    dataset = sources.load(config)
    config = run_folder.declare(config, dataset)
    if config.run.evaluate:
        evaluate.check_records(dataset)
    if book is not None:
        state = start.remembered(config, run_dir, state_dir, book, dataset)
        stack.callback(state.close)
    if book is None:
        config = start.choose_settings(config, given, dataset)
    strategy = devices.for_settings(strategy, config)
    network = build.build_public_network(config, dataset.train)
    with progress.waiting('Building the networks'), strategy.scope():
        gan, head_inputs = build.build_gan(config, dataset.train, network)
    parameters = sum(v.shape.num_elements() for v in gan.private_variables)
    plan = start.make_plan(config, book, dataset, parameters)
    with progress.waiting('Trying the private step'), strategy.scope():
        noise = sources.new_noise(secure=config.privacy.secure_noise)
        build.compile_gan(gan, config, plan, noise)
    promised = None if plan.event is None else budget.promised_epsilon(plan, book)
    messages.describe(plan, gan, run_dir, promised)
    if book is None:
        messages.warn_of_few(plan, promised)
        book, state, other_runs = start.start(config, run_dir, state_dir, plan, promised, dataset)
        stack.callback(book.close)
        stack.callback(state.close)
    else:
        other_runs = start.count_run(config, state_dir, book.run_id, plan, promised, dataset)
    context = Context(
        config,
        run_dir,
        state_dir,
        dataset,
        book,
        state,
        gan,
        strategy,
        other_runs,
        sources,
        network,
        head_inputs,
    )
    return context, _restore(context, plan)


def _restore(context: Context, plan: ledger.Plan) -> WarmStart:
    """Continues where an earlier start has stopped, by the plan that holds from now on."""
    private_steps.restore(context)
    warm_start = WarmStart(context)
    warm_start.check()
    private_steps.check_what_is_left(context)
    if plan != context.ledger.plan:
        _change(context, plan)
    run_folder.note_settings(context.folder, context.config)
    start.note_other_runs(context.folder, context.other_runs)
    return warm_start


def _change(context: Context, plan: ledger.Plan) -> None:
    """Continues by another plan, and says what epsilon is from now on."""
    context.ledger.change_plan(plan)
    context.state.store_position(context.ledger.position)
    epsilon = budget.spent_epsilon(context.ledger)
    print(
        'The mechanism is changed from here on. Epsilon of the whole run, whatever is done '
        f'within the budget: {rounding.up(epsilon.headline)} (RDP filter, fixed at '
        'the start).'
    )
