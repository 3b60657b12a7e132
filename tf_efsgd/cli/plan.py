"""What a privacy budget buys, before it is spent, and what a run has spent.

  python -m tf_efsgd.plan --flagfile=mnist.flags --dataset_size=60000 --plot=plan.png
  python -m tf_efsgd.plan --target_epsilon=10 --dataset_size=60000 --train_steps=10000
  python -m tf_efsgd.plan --ledger=RUN/ledger.jsonl

Takes all flags of tf_efsgd.launch and looks at those about privacy. --error_feedback=hidden plans
the published variant, whose error buffer is not noised.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import pathlib
import sys
import textwrap

import dp_accounting
from absl import app, flags, logging

from tf_efsgd import budget, config, rounding
from tf_efsgd.cli import arguments
from tf_efsgd.privacy import accounting, ledger
from tf_efsgd.privacy.mechanism import ASSUMED_PARAMETERS

# The table and the picture go over these multiples of what was asked for.
_STEP_FACTORS = (0.125, 0.25, 0.5, 1, 2, 4)
_NOISE_FACTORS = (0.5, 0.7, 1, 1.4, 2)

_WHY_UNPROVEN = (
    'the buffer is not noised: a record sampled once moves every later step, so sampling\n'
    '  hides nothing. Plain DP-SGD accounting does not see the buffer; its ε is no bound.'
)


_WHY_NONE = (
    'WARNING: ε is far above anything private, and none that large can be proven for noise that\n'
    '  is drawn with 128 bits.'
)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Standard deviation of the noise on one coordinate, in the unit of `l2_norm_clip`.

    Attributes:
      one_step: on what is divided by the expected batch size in one step, stationary.
      accumulated: on the sum of that over all steps.
    """

    one_step: float
    accumulated: float


@dataclasses.dataclass(frozen=True)
class Table:
    """Upper bounds on epsilon around what was asked for, by what takes milliseconds: RDP.

    Attributes:
      steps: numbers of steps, ascending.
      noise_multipliers: ascending.
      epsilons: one row for each number of steps, one column for each noise multiplier; of a hidden
        buffer by the closed form, exact.
    """

    steps: list[int]
    noise_multipliers: list[float]
    epsilons: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a run will spend, and the noise it gets for it.

    Attributes:
      settings: the mechanism and its budget, as asked for.
      plan: what a run would write into its ledger.
      dataset_size: declared number of records, N.
      sampling_probability: of each record in each step, q.
      noise_multiplier: sigma, given or calibrated; None where the warm start takes everything.
      event: of one step; None likewise.
      warm_start: the event of what is released before the first step, or None.
      epsilon: of everything, at `settings.target_delta`.
      unproven: `hidden` only: what plain DP-SGD accounting would say.
      epochs: expected number of times that a record is sampled.
      noise: by what it is on, for a person.
      table: around what was asked for; None without steps.
    """

    settings: config.PrivacyConfig
    plan: ledger.Plan
    dataset_size: int
    sampling_probability: float
    noise_multiplier: float | None
    event: dp_accounting.DpEvent | None
    warm_start: dp_accounting.DpEvent | None
    epsilon: accounting.Epsilon
    unproven: float | None
    epochs: float
    noise: dict[str, Noise]
    table: Table | None


@dataclasses.dataclass(frozen=True)
class Spending:
    """What a ledger says was spent.

    Attributes:
      spent: of all reserved steps.
      planned: of the whole plan, fixed before the first step.
      unproven: of all reserved steps of a hidden buffer, by plain DP-SGD accounting; else None.
    """

    spent: accounting.Epsilon
    planned: accounting.Epsilon
    unproven: float | None


def forecast(
    settings: config.PrivacyConfig,
    dataset_size: int,
    parameters: int | None = None,
    images_per_person: int | None = None,
    persons: int | None = None,
) -> Forecast:
    """Computes what a run spends and how noisy it is; takes seconds.

    Args:
      settings: exactly one of target_epsilon and noise_multiplier is set; error_feedback may be
        'hidden', with residual_l2_norm_clip in units of the sum.
      dataset_size: declared number of records, at least `settings.expected_batch_size`.
      parameters: how many parameters private steps update; None: 2^20, more than the networks of
        the configs have, so that their runs spend no more than this says.
      images_per_person: K, where the unit of privacy is a person.
      persons: declared number of persons then.

    Returns:
      The forecast.

    Raises:
      config.ConfigError: whatever the launcher would say of these settings.
    """
    facts = {
        'dataset': '',
        'dataset_size': dataset_size,
        'image_shape': (0, 0, 0),
        'num_classes': 0,
        'images_per_person': images_per_person,
        'persons': persons,
    }
    run_config = config.RunConfig(privacy=settings)
    plan = budget.make_plan(
        run_config, facts, parameters or ASSUMED_PARAMETERS, say=lambda *_, **__: None
    )
    has_steps = bool(plan.train_steps)
    noise_multiplier = plan.mechanism['noise_multiplier'] if has_steps else None
    return Forecast(
        settings=settings,
        plan=plan,
        dataset_size=dataset_size,
        sampling_probability=accounting.sampling_probability(
            settings.expected_batch_size, dataset_size
        ),
        noise_multiplier=noise_multiplier,
        event=accounting.event_from_dict(plan.event) if has_steps else None,
        warm_start=budget.warm_start_of(plan),
        epsilon=budget.planned_epsilon(plan),
        unproven=budget.unproven_epsilon(plan, plan.train_steps) if has_steps else None,
        epochs=plan.train_steps * settings.expected_batch_size / dataset_size,
        noise=compute_noise(settings, noise_multiplier) if has_steps else {},
        table=compute_table(plan) if has_steps else None,
    )


def compute_noise(settings: config.PrivacyConfig, noise_multiplier: float) -> dict[str, Noise]:
    """The noise of one step and of all steps together, and that of plain DP-SGD for comparison.

    With A and R the noisy sums of clipped gradients and residuals, error feedback keeps a buffer
    E <- feedback_decay (E + R/B) and the update is v = A/B + (1 - feedback_decay)(E + R/B).

    Args:
      settings: the mechanism; `feedback_l2_norm_clip` is not taken into account.
      noise_multiplier: sigma > 0.

    Returns:
      By description. Accumulated is the sum over all steps, what is still in E included.
    """
    clip, residual_clip = settings.l2_norm_clip, settings.residual_l2_norm_clip
    share, decay = settings.residual_share, settings.feedback_decay
    unit = noise_multiplier / settings.expected_batch_size
    root_steps = math.sqrt(settings.train_steps)

    def noise(one_step, accumulated=None):
        accumulated = one_step if accumulated is None else accumulated
        return Noise(unit * one_step, unit * root_steps * accumulated)

    plain = {f'plain DP-SGD, clipped at {clip:g}': noise(clip)}
    if settings.error_feedback == 'hidden':
        return {'update, hidden error feedback': noise(clip)}
    if settings.error_feedback == 'none':
        return plain
    # In units of sigma: the noise of A, and of what R brings in the long run.
    gradient = clip / math.sqrt(1 - share)
    residual = residual_clip / math.sqrt(share) if share else 0.0
    slowed = residual * math.sqrt((1 - decay) / (1 + decay))
    both = clip + residual_clip
    return {
        'averaged gradient A/B': noise(gradient),
        'update with error feedback, A/B + d': noise(
            math.hypot(gradient, slowed), math.hypot(gradient, residual)
        ),
        **plain,
        f'plain DP-SGD, clipped at {both:g}': noise(both),
    }


def compute_table(plan: ledger.Plan) -> Table:
    """Epsilon around what a private plan asks for.

    Args:
      plan: of a run with steps; its noise is kept to the digit, the others are round numbers.

    Returns:
      The table; that of the plan's own steps and noise is one of the cells.
    """
    noise_multiplier = plan.mechanism['noise_multiplier']
    steps = sorted({max(1, round(factor * plan.train_steps)) for factor in _STEP_FACTORS})
    noise_multipliers = [
        noise_multiplier if factor == 1 else float(f'{factor * noise_multiplier:.3g}')
        for factor in _NOISE_FACTORS
    ]
    epsilons = [
        [budget.rdp_epsilon(plan, count, value) for value in noise_multipliers] for count in steps
    ]
    return Table(steps, noise_multipliers, epsilons)


def compute_spending(book: ledger.Ledger) -> Spending | None:
    """What was spent, from the ledger alone; takes seconds.

    Args:
      book: a ledger.

    Returns:
      The epsilons, at the target_delta of the plan; None when not all steps are private.

    Raises:
      ValueError: if an event is not one of a private step.
    """
    if book.first_plan.event is None:
        return None
    return Spending(
        spent=budget.spent_epsilon(book),
        planned=budget.planned_epsilon(book.first_plan),
        unproven=budget.unproven_epsilon(book.first_plan, book.reserved_steps),
    )


# What is printed.


def format_forecast(plan: Forecast, parameters: int | None = None) -> str:
    """The forecast as text.

    Args:
      plan: what to print.
      parameters: number of coordinates of a gradient, for the length of the noise; None prints
        the noise of one coordinate only.

    Returns:
      Lines of at most 100 characters.
    """
    if plan.event is None:
        return _format_budget(plan)
    return '\n\n'.join([_format_budget(plan), _format_noise(plan, parameters), _format_table(plan)])


def _format_budget(plan: Forecast) -> str:
    settings = plan.settings
    values = [
        *_step_values(plan),
        *_warm_start_values(plan),
        ('δ', f'{settings.target_delta:g}', _describe_delta(plan.plan)),
        ('ε', rounding.up(plan.epsilon.headline), _describe_bounds(plan.epsilon)),
    ]
    if plan.unproven:
        values.append(('ε, unproven', rounding.up(plan.unproven), 'by plain DP-SGD accounting'))
    lines = [f'{name:<22}{value:<12}{text}'.rstrip() for name, value, text in values]
    title = f'Error feedback: {settings.error_feedback}'
    if plan.event is None:
        title = 'The warm start alone: it takes the whole budget, and no private steps are run'
    unit = f'Unit of privacy: {plan.plan.unit_of_privacy}'
    return '\n'.join([unit, title, *lines, *_remarks(plan)])


def _describe_delta(plan: ledger.Plan) -> str:
    times_units = rounding.up(budget.delta_times_units(plan), 2)
    return f'times {plan.units:,} {plan.name_of_units} that is {times_units}; it must be below 1'


def _step_values(plan: Forecast) -> list[tuple[str, str, str]]:
    settings = plan.settings
    if plan.event is None:
        return []
    noise_multiplier, source = f'{plan.noise_multiplier:g}', 'given'
    if settings.noise_multiplier is None:  # Up, so that who copies it keeps to the target.
        noise_multiplier = rounding.up(plan.noise_multiplier, 6)
        source = f'calibrated for ε ≤ {settings.target_epsilon:g}'
    return [
        (
            'sampling probability',
            f'{plan.sampling_probability:.6g}',
            f'{settings.expected_batch_size:,} of {plan.dataset_size:,} records expected in a step',
        ),
        ('epochs', f'{plan.epochs:,.4g}', f'{settings.train_steps:,} private steps'),
        ('noise multiplier σ', noise_multiplier, source),
        ('', f'{_accounted(plan.event):.6g}', _describe_accounted(plan)),
    ]


def _accounted(event: dp_accounting.DpEvent) -> float:
    gaussian = event if isinstance(event, dp_accounting.GaussianDpEvent) else event.event
    return gaussian.noise_multiplier


def _describe_accounted(plan: Forecast) -> str:
    text = f'is accounted: the grid of the releases, {plan.plan.private_parameters:,} parameters'
    if plan.plan.images_per_person is not None:
        text += f', {plan.plan.images_per_person} images of a person'
    return text


def _warm_start_values(plan: Forecast) -> list[tuple[str, str, str]]:
    if plan.warm_start is None:
        return []
    noise = plan.plan.warm_start_noise_multiplier
    what = 'one release of all records; not sampled'
    if plan.event is not None:
        alone = rounding.up(budget.warm_start_epsilon(plan.plan).headline)
        what = f'one release before the steps; alone ε = {alone}'
    values = [('warm start σ', rounding.up(noise, 6), what)]
    noise_of_releases = [rounding.up(value, 6) for value in budget.noise_of_releases(plan.plan)]
    if len(noise_of_releases) > 1:
        values.append(
            ('', '', f'made as two, with σ = {" and ".join(noise_of_releases)}, charged as one')
        )
    return values


def _remarks(plan: Forecast) -> list[str]:
    """What a reader should know about the budget, if anything."""
    remarks, epsilon = [], plan.epsilon
    if plan.unproven:
        remarks.append(f'Why: {_WHY_UNPROVEN}')
    if plan.settings.target_delta >= 1 / plan.plan.units:
        remarks.append(
            f'WARNING: δ is not below 1 / {plan.plan.name_of_units}: giving away '
            f'{plan.plan.one_unit} whole would pass.'
        )
    if not epsilon.is_proven:
        remarks.append(_WHY_NONE)
    if epsilon.accountant == 'RDP':
        remarks.append(
            f'WARNING: PLD gives {rounding.up(epsilon.pld)}, more than RDP; both are upper bounds '
            'and the smaller one holds.'
        )
    return remarks


def _describe_bounds(epsilon: accounting.Epsilon) -> str:
    """Where the headline is from, and what the other accountants say."""
    bounds = {'PLD': epsilon.pld, 'RDP': epsilon.rdp, 'closed form': epsilon.closed_form}
    if not epsilon.is_proven:
        return f'of exact real-valued noise: {rounding.up(epsilon.smallest_bound)}'
    others = ', '.join(
        f'{name} {rounding.up(value)}'
        for name, value in bounds.items()
        if math.isfinite(value) and name != epsilon.accountant
    )
    return f'by {epsilon.accountant}, the smallest bound ({others or "the only one"})'


def _format_noise(plan: Forecast, parameters: int | None) -> str:
    settings = plan.settings
    scale = math.sqrt(parameters or 1)
    title = 'Noise on each parameter, standard deviation'
    if parameters is not None:
        title = f'Noise over {parameters:,} parameters, length'
    steps = f'{settings.train_steps:,} steps added up'
    lines = [f'{title:<46}{"one step":>12}{steps:>26}']
    for name, noise in plan.noise.items():
        one_step, accumulated = noise.one_step * scale, noise.accumulated * scale
        lines.append(f'  {name:<44}{one_step:>12.4g}{accumulated:>26.4g}')
    clip = settings.l2_norm_clip
    what, moved = 'it', clip
    if settings.error_feedback == 'hidden':  # It comes out of the buffer again and again.
        what, moved = 'every update', clip + 2 * settings.residual_l2_norm_clip
    lines.append(
        f'  Compare with: the mean of gradients clipped at {clip:g} is at most about {clip:g} '
        f'long; one record\n  moves {what} by at most {moved / settings.expected_batch_size:.3g}. '
        'A steady gradient adds up like the steps, noise like\n  their root.'
    )
    if parameters is None:
        lines.append(
            '  The length of the noise is this times the root of the number of parameters '
            '(--parameters).'
        )
    if settings.error_feedback == 'private':
        lines.append(
            '  Error feedback slows noise and removes none: see the sums, which hold what its '
            'buffer still\n  keeps. Its one step is one in the long run.'
        )
        if settings.feedback_l2_norm_clip is not None:
            lines.append('  Without the effect of --feedback_l2_norm_clip.')
    return '\n'.join(lines)


def _format_table(plan: Forecast) -> str:
    settings, table = plan.settings, plan.table
    head = ''.join(f'{f"σ={value:.3g}":>11} ' for value in table.noise_multipliers)
    lines = [f'{"steps":>13}{"epochs":>10}{head}'.rstrip()]
    for steps, row in zip(table.steps, table.epsilons):
        cells = ''
        for noise_multiplier, epsilon in zip(table.noise_multipliers, row):
            asked = (steps, noise_multiplier) == (settings.train_steps, plan.noise_multiplier)
            cells += (
                f'{f"[{rounding.up(epsilon)}]":>12}' if asked else f'{rounding.up(epsilon):>11} '
            )
        epochs = steps * settings.expected_batch_size / plan.dataset_size
        lines.append(f'{steps:>13,}{epochs:>10,.4g}{cells}'.rstrip())
    return '\n'.join([_table_title(plan), *lines])


def _table_title(plan: Forecast) -> str:
    if plan.settings.error_feedback == 'hidden':
        return 'ε by steps and noise multiplier, closed form; [asked for]'
    title = 'ε by steps and noise multiplier, by RDP: an upper bound; [asked for]'
    if plan.epsilon.accountant == 'PLD':
        title += f', where PLD is {rounding.up(plan.epsilon.pld)}'
    return title


def format_spending(book: ledger.Ledger, spending: Spending | None, every_entry: bool) -> str:
    """What a ledger says, as text.

    Args:
      book: a ledger.
      spending: of it.
      every_entry: whether equal entries in a row are listed one by one.

    Returns:
      Lines of text.
    """
    parts = [f'Ledger of run {book.run_id}']
    for number, plan in enumerate(book.plans):
        title = f'Plan since change {number}, made while it ran' if number else 'Plan'
        parts.append(_format_plan(title, plan))
    parts += [_format_entries(book, every_entry), _format_spent(book, spending)]
    return '\n\n'.join(parts)


def _format_plan(title: str, plan: ledger.Plan) -> str:
    shape = 'x'.join(str(size) for size in plan.image_shape)
    lines = [
        f'{title}, for {plan.unit_of_privacy}:',
        f'  {plan.dataset}, {plan.dataset_size:,} records of {shape} in {plan.num_classes} classes',
        f'  {plan.train_steps:,} steps with {plan.expected_batch_size:,} records expected in each, '
        f'reserved {plan.steps_per_entry:,} at a time at most',
    ]
    if plan.event is not None:
        goal = 'noise given'
        if plan.target_epsilon is not None:
            goal = f'noise calibrated for ε ≤ {plan.target_epsilon:g}'
        lines.append(f'  {goal}, δ = {plan.target_delta:g}, {_describe_delta(plan)}')
    if plan.warm_start_event is not None:
        lines.append(
            '  warm start: one Gaussian release with noise multiplier '
            f'{plan.warm_start_noise_multiplier:.6g}, not sampled'
        )
        noise = [f'{value:.6g}' for value in budget.noise_of_releases(plan)]
        if len(noise) > 1:
            lines.append(f'  made as two releases, with noise multipliers {" and ".join(noise)}')
    if not plan.train_steps:
        return '\n'.join(lines)
    lines.append(f'  one step: {_describe_event(plan.event)}')
    if plan.mechanism:
        values = ', '.join(f'{name} {value}' for name, value in plan.mechanism.items())
        lines += textwrap.wrap(values, 98, initial_indent='  ', subsequent_indent='  ')
    return '\n'.join(lines)


def _describe_event(event: dict | None) -> str:
    if event is None:
        return 'NOT PRIVATE: no clipping, no noise'
    event = accounting.event_from_dict(event)
    if isinstance(event, dp_accounting.GaussianDpEvent):
        return (
            f'Gaussian noise of {event.noise_multiplier:.6g} times the sensitivity, as accounted, '
            'not sampled (hidden buffer)'
        )
    return (
        f'Gaussian with noise multiplier {event.event.noise_multiplier:.6g}, as accounted, on a '
        'Poisson sample, '
        f'probability {event.sampling_probability:.6g}'
    )


def _format_entries(book: ledger.Ledger, every_entry: bool) -> str:
    lines, first = [f'{"Reserved steps":<25}{"entries":<22}time'], 1
    if book.warm_start_reserved:
        lines.append('  the warm start, all of it')
    for event, of_event in itertools.groupby(book.entries, lambda entry: entry.event):
        if len(book.spent) > 1:
            lines.append(f'  one step: {_describe_event(event)}')
        numbered = enumerate(of_event)
        for _, group in itertools.groupby(
            numbered, lambda item: (item[1].count, item[1].torn, every_entry and item[0])
        ):
            entries = [entry for _, entry in group]
            lines.append(_format_group(entries, first))
            first += sum(entry.count for entry in entries)
    if not book.entries and not book.warm_start_reserved:
        lines.append('  none')
    return '\n'.join(lines)


def _format_group(entries: list[ledger.Entry], first: int) -> str:
    count, number = entries[0].count, len(entries)
    steps = f'{first:,} to {first + count * number - 1:,}'
    times = ' to '.join(dict.fromkeys([entries[0].time, entries[-1].time]))
    if entries[0].torn:
        times += '  torn line: charged the most it can have been'
    return f'  {steps:<23}{f"{number:,} of {count:,}":<22}{times}'


def _format_spent(book: ledger.Ledger, spending: Spending | None) -> str:
    steps = (
        f'{book.reserved_steps:,} steps reserved, {book.remaining_steps:,} of '
        f'{book.plan.train_steps:,} remain'
    )
    if spending is None:
        return f'NOT PRIVATE: no ε holds\n  {steps}'
    spent = spending.spent
    headline = f'Spent: ε = {rounding.up(spent.headline)} at δ = {book.first_plan.target_delta:g}'
    if spent.rdp_filter is None:
        if not book.changes:
            steps += f'; the whole plan: ε = {rounding.up(spending.planned.headline)}'
        lines = [f'{headline}, {_describe_bounds(spent)}', f'  {steps}']
    else:
        lines = [f'{headline}, by the RDP filter of the first plan', f'  {steps}']
        fixed = dataclasses.replace(spent, rdp_filter=None)
        lines.append(
            f'  fixed in advance only: ε = {rounding.up(fixed.headline)}, {_describe_bounds(fixed)}'
        )
        if math.isinf(spent.rdp_filter):
            lines.append(
                '  WARNING: chosen after seeing outputs, and beyond the budget of the first plan: '
                'no ε is proven.'
            )
    if spending.unproven:
        lines.append(
            f'  unproven, by plain DP-SGD accounting: ε = {rounding.up(spending.unproven)}'
        )
        lines.append(f'  Why: {_WHY_UNPROVEN}')
    lines.append('  ε covers this run; other runs on the same records, and copies of it, add up.')
    return '\n'.join(lines)


# The picture.


def check_plot_path(path: str) -> None:
    """Checks that a picture can be written, before anything is computed.

    Args:
      path: of the file to be.

    Raises:
      config.ConfigError: if matplotlib is missing, the folder is, or the ending names no picture.
    """
    if importlib.util.find_spec('matplotlib') is None:
        raise config.ConfigError('--plot needs matplotlib: pip install tf_efsgd[report]')
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    target = pathlib.Path(path)
    if not target.parent.is_dir():
        raise config.ConfigError(f'--plot: there is no folder {target.parent}. Received: {path}.')
    endings = sorted(FigureCanvasAgg.get_supported_filetypes())
    if target.is_dir() or target.suffix[1:].lower() not in endings:
        raise config.ConfigError(
            f'--plot must be a file that ends in one of {", ".join(endings)}. Received: {path}.'
        )


def plot(plan: Forecast, path: str) -> None:
    """Draws epsilon against the steps and against the noise.

    Args:
      plan: marked in both.
      path: of the picture; see `check_plot_path`.
    """
    from matplotlib.figure import Figure

    settings = plan.settings
    figure = Figure(figsize=(12, 4.8), layout='constrained')
    by_steps, by_noise = figure.subplots(1, 2, sharey=True)
    _plot_steps(by_steps, plan)
    _plot_noise(by_noise, plan)
    by_steps.set_ylabel(f'ε at δ = {settings.target_delta:g}')
    handles, labels = by_steps.get_legend_handles_labels()
    bound = 'closed form' if plan.unproven else 'RDP, an upper bound'
    figure.legend(handles[::-1], labels[::-1], loc='outside right upper', title=f'Lines: {bound}')
    figure.suptitle(
        f'{plan.dataset_size:,} records, {settings.expected_batch_size:,} expected in a step, '
        f'error feedback: {settings.error_feedback}'
    )
    figure.savefig(path, dpi=120)


def _plot_steps(axes, plan: Forecast) -> None:
    table = plan.table
    for column in reversed(range(len(table.noise_multipliers))):
        noise_multiplier = table.noise_multipliers[column]
        is_asked = noise_multiplier == plan.noise_multiplier
        axes.plot(
            table.steps,
            [row[column] for row in table.epsilons],
            marker='.',
            color='black' if is_asked else f'C{column}',
            linewidth=2.2 if is_asked else 1.3,
            label=f'σ = {noise_multiplier:.3g}',
        )
    axes.set(xlabel='private steps', title='ε by steps')
    _finish_axes(axes, plan, table.steps, plan.settings.train_steps)


def _plot_noise(axes, plan: Forecast) -> None:
    steps = plan.settings.train_steps
    low, *_, high = plan.table.noise_multipliers
    noise_multipliers = [low * (high / low) ** (i / 12) for i in range(13)]
    epsilons = [budget.rdp_epsilon(plan.plan, steps, value) for value in noise_multipliers]
    axes.plot(noise_multipliers, epsilons, color='black', linewidth=2.2)
    axes.set(xlabel='noise multiplier σ', title=f'ε by noise, {steps:,} steps')
    _finish_axes(axes, plan, plan.table.noise_multipliers, plan.noise_multiplier)


def _finish_axes(axes, plan: Forecast, ticks: list, asked: float) -> None:
    """Log scales with plain numbers, the target and the point that was asked for."""
    from matplotlib import ticker

    epsilon, target = plan.epsilon, plan.settings.target_epsilon
    axes.set(xscale='log', yscale='log')
    axes.set_xticks(ticks, [f'{tick:,}' if type(tick) is int else f'{tick:.3g}' for tick in ticks])
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:,g}'))
    for axis in axes.xaxis, axes.yaxis:
        axis.set_minor_locator(ticker.NullLocator())
    axes.grid(True, alpha=0.4)
    if target is not None:
        axes.axhline(target, color='gray', linestyle='--', zorder=1, label=f'target ε = {target:g}')
    name = f'asked for: ε = {rounding.up(epsilon.headline)} ({epsilon.accountant})'
    axes.plot([asked], [epsilon.headline], 'o', markersize=9, color='crimson', zorder=3, label=name)


# The command line.


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of a run, of which those about privacy are read, and those of the plan."""
    config.define_flags(flag_values)
    flags.DEFINE_integer(
        'parameters',
        None,
        'Number of parameters that private steps update, at least 1: for the length of the noise, '
        'and for what the grid of the releases costs. Default: the noise on one parameter, and '
        'the cost of 2^20, more than the networks of the configs have.',
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_string('plot', None, 'Picture to write, e.g. plan.png.', flag_values=flag_values)
    flags.DEFINE_string(
        'ledger', None, 'Print what this ledger spent instead.', flag_values=flag_values
    )
    flags.DEFINE_boolean(
        'ledger_entries',
        False,
        'List every entry of the ledger, instead of equal ones in a row as one line.',
        flag_values=flag_values,
    )
    arguments.show_in_help(
        [
            *(field.name for field in dataclasses.fields(config.PrivacyConfig)),
            *('dataset_size', 'images_per_person', 'dataset_persons'),
            *('parameters', 'plot', 'ledger', 'ledger_entries'),
        ],
        flag_values,
    )


def settings_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> config.PrivacyConfig:
    """Reads and checks the privacy settings; those of data, model and training are left alone.

    Raises:
      config.ConfigError: if one is wrong, or it is not one of target_epsilon and noise_multiplier.
    """
    names = [field.name for field in dataclasses.fields(config.PrivacyConfig)]
    settings = config.PrivacyConfig(**{name: flag_values[name].value for name in names})
    if not settings.private:
        raise config.ConfigError('--noprivate spends nothing: there is nothing to plan.')
    config.RunConfig(privacy=settings)
    return settings


def answer(flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """What the flags ask for, as text; writes the picture.

    Raises:
      config.ConfigError: if a flag is wrong.
      ledger.LedgerError: if the ledger cannot be trusted.
      ValueError: if no noise fits the target, or the batch does not fit the records.
    """
    if flag_values.ledger is not None:
        if flag_values.plot is not None:
            raise config.ConfigError('--plot draws a plan, not a ledger: leave one of them out.')
        book = ledger.Ledger.read(flag_values.ledger)
        return format_spending(book, compute_spending(book), flag_values.ledger_entries)
    settings = settings_from_flags(flag_values)
    if flag_values.dataset_size is None or flag_values.dataset_size < 1:
        raise config.ConfigError(
            '--dataset_size is missing: the number of training records, e.g. 60000 for mnist.'
        )
    if flag_values.plot is not None:
        check_plot_path(flag_values.plot)
        if settings.warm_start_share == 1:
            raise config.ConfigError(
                '--plot draws private steps, and --warm_start_share=1 runs none: leave it out.'
            )
    images_per_person, persons = flag_values.images_per_person, flag_values.dataset_persons
    if (images_per_person is None) != (persons is None):
        raise config.ConfigError(
            '--images_per_person and --dataset_persons, the number of persons, go together here. '
            f'Received: --images_per_person={images_per_person} --dataset_persons={persons}.'
        )
    plan = forecast(
        settings, flag_values.dataset_size, flag_values.parameters, images_per_person, persons
    )
    text = format_forecast(plan, flag_values.parameters)
    if flag_values.plot is not None:
        plot(plan, flag_values.plot)
        text += f'\n\nPicture: {flag_values.plot}'
    return text


def _main(rest: list[str]) -> None:
    del rest
    logging.set_verbosity(logging.WARNING)  # Matplotlib tells of its fonts.
    try:
        print(answer())
    except (ValueError, OSError) as error:
        arguments.exit_with(error)
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """Entry point of the command line."""
    define_flags()
    app.run(_main, flags_parser=arguments.parse_arguments)


if __name__ == '__main__':
    main()
