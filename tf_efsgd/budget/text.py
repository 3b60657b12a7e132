"""Formats a forecast, and a ledger, as text. No TensorFlow."""

from __future__ import annotations

import dataclasses
import itertools
import math
import textwrap

import dp_accounting

from tf_efsgd import rounding
from tf_efsgd.budget import epsilon as epsilons
from tf_efsgd.budget.events import delta_times_units, noise_of_releases
from tf_efsgd.budget.forecast import Forecast
from tf_efsgd.privacy import accounting
from tf_efsgd.privacy.ledger import Entry, Ledger
from tf_efsgd.privacy.plan import Plan

_WHY_UNPROVEN = (
    'the buffer is not noised: a record sampled once moves every later step, so sampling\n'
    '  hides nothing. Plain DP-SGD accounting does not see the buffer; its ε is no bound.'
)
_WHY_NONE = (
    'WARNING: ε is far above anything private, and an ε this large cannot be proven for noise\n'
    '  that is drawn with 128 bits.'
)


def format_forecast(plan: Forecast, parameters: int | None = None) -> str:
    """Formats a forecast as text.

    Args:
      plan: the forecast.
      parameters: number of coordinates of a gradient, for the length of the noise; with None, the
        noise on one coordinate is printed instead.

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


def _describe_delta(plan: Plan) -> str:
    times_units = rounding.up(delta_times_units(plan), 2)
    return f'times {plan.units:,} {plan.name_of_units} is {times_units}, which must be below 1'


def _step_values(plan: Forecast) -> list[tuple[str, str, str]]:
    settings = plan.settings
    if plan.event is None:
        return []
    noise_multiplier, source = f'{plan.noise_multiplier:g}', 'given'
    if settings.noise_multiplier is None:  # Rounded up, so that a copied value meets the target.
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
        alone = rounding.up(epsilons.warm_start_epsilon(plan.plan).headline)
        what = f'one release before the steps; alone ε = {alone}'
    values = [('warm start σ', rounding.up(noise, 6), what)]
    of_releases = [rounding.up(value, 6) for value in noise_of_releases(plan.plan)]
    if len(of_releases) > 1:
        values.append(
            ('', '', f'made as two, with σ = {" and ".join(of_releases)}, charged as one')
        )
    return values


def _remarks(plan: Forecast) -> list[str]:
    """Lists what a reader should know about the budget, if anything."""
    remarks, epsilon = [], plan.epsilon
    if plan.unproven:
        remarks.append(f'Why: {_WHY_UNPROVEN}')
    if plan.settings.target_delta >= 1 / plan.plan.units:
        remarks.append(
            f'WARNING: δ is not below 1 / {plan.plan.name_of_units}: a mechanism that gives away '
            f'{plan.plan.one_unit}\n  whole would satisfy the guarantee.'
        )
    if not epsilon.is_proven:
        remarks.append(_WHY_NONE)
    if epsilon.accountant == 'RDP':
        remarks.append(
            f'WARNING: PLD gives {rounding.up(epsilon.pld)}, more than RDP. Both are upper bounds, '
            'so the smaller one holds.'
        )
    return remarks


def _describe_bounds(epsilon: accounting.Epsilon) -> str:
    """Says which accountant the headline comes from, and what the others give."""
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
    if settings.error_feedback == 'hidden':  # One record can leave the buffer in every later step.
        what, moved = 'every update', clip + 2 * settings.residual_l2_norm_clip
    lines.append(
        f'  For comparison: the mean of gradients clipped at {clip:g} is at most about {clip:g} '
        f'long; one record\n  moves {what} by at most {moved / settings.expected_batch_size:.3g}. '
        'A steady gradient grows with the steps, noise with their\n  square root.'
    )
    if parameters is None:
        lines.append(
            '  The length of the noise is this times the square root of the number of parameters\n'
            '  (--parameters).'
        )
    if settings.error_feedback == 'private':
        lines.append(
            '  Error feedback delays noise and removes none: see the sums, which include what is '
            'still in its\n  buffer. Its one step is a step in the long run.'
        )
        if settings.feedback_l2_norm_clip is not None:
            lines.append('  The effect of --feedback_l2_norm_clip is not included.')
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


def format_ledger(ledger: Ledger, every_entry: bool) -> str:
    """Formats a ledger as text; its epsilons, at the target_delta of its plan, take seconds.

    Args:
      ledger: the ledger.
      every_entry: whether to list equal entries in a row one by one.

    Returns:
      Lines of text.

    Raises:
      ValueError: if an event is not that of a private step.
    """
    parts = [f'Ledger of run {ledger.run_id}']
    for number, plan in enumerate(ledger.plans):
        title = f'Plan since change {number}, made during the run' if number else 'Plan'
        parts.append(_format_plan(title, plan))
    parts += [_format_entries(ledger, every_entry), _format_spent(ledger)]
    return '\n\n'.join(parts)


def _format_plan(title: str, plan: Plan) -> str:
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
        noise = [f'{value:.6g}' for value in noise_of_releases(plan)]
        if len(noise) > 1:
            lines.append(f'  made as two releases, with noise multipliers {" and ".join(noise)}')
    if not plan.train_steps:
        return '\n'.join(lines)
    lines.append(f'  one step: {_describe_event(plan.event)}')
    if plan.mechanism:
        values = ', '.join(f'{name} {value}' for name, value in plan.mechanism.items())
        lines += textwrap.wrap(values, 98, initial_indent='  ', subsequent_indent='  ')
    return '\n'.join(lines)


def _describe_event(event: dp_accounting.DpEvent | None) -> str:
    if event is None:
        return 'NOT PRIVATE: no clipping, no noise'
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


def _format_entries(ledger: Ledger, every_entry: bool) -> str:
    lines, first = [f'{"Reserved steps":<25}{"entries":<22}time'], 1
    if ledger.warm_start_reserved:
        lines.append('  the warm start, all of it')
    for event, of_event in itertools.groupby(ledger.entries, lambda entry: entry.event):
        if len(ledger.events) > 1:
            lines.append(f'  one step: {_describe_event(event)}')
        numbered = enumerate(of_event)
        for _, group in itertools.groupby(
            numbered, lambda item: (item[1].count, item[1].torn, every_entry and item[0])
        ):
            entries = [entry for _, entry in group]
            lines.append(_format_group(entries, first))
            first += sum(entry.count for entry in entries)
    if not ledger.entries and not ledger.warm_start_reserved:
        lines.append('  none')
    return '\n'.join(lines)


def _format_group(entries: list[Entry], first: int) -> str:
    count, number = entries[0].count, len(entries)
    steps = f'{first:,} to {first + count * number - 1:,}'
    times = ' to '.join(dict.fromkeys([entries[0].time, entries[-1].time]))
    if entries[0].torn:
        times += '  torn line: charged as the most that it can have been'
    return f'  {steps:<23}{f"{number:,} of {count:,}":<22}{times}'


def _format_spent(ledger: Ledger) -> str:
    steps = (
        f'{ledger.reserved_steps:,} steps reserved, {ledger.remaining_steps:,} of '
        f'{ledger.plan.train_steps:,} remain'
    )
    if ledger.first_plan.event is None:
        return f'NOT PRIVATE: no ε holds\n  {steps}'
    spent = epsilons.spent_epsilon(ledger)
    headline = f'Spent: ε = {rounding.up(spent.headline)} at δ = {ledger.first_plan.target_delta:g}'
    if spent.rdp_filter is None:
        if not ledger.changes:
            planned = epsilons.planned_epsilon(ledger.first_plan)
            steps += f'; the whole plan: ε = {rounding.up(planned.headline)}'
        lines = [f'{headline}, {_describe_bounds(spent)}', f'  {steps}']
    else:
        lines = [f'{headline}, by the RDP filter of the first plan', f'  {steps}']
        fixed = dataclasses.replace(spent, rdp_filter=None)
        lines.append(
            f'  fixed in advance only: ε = {rounding.up(fixed.headline)}, {_describe_bounds(fixed)}'
        )
        if math.isinf(spent.rdp_filter):
            lines.append(
                '  WARNING: the steps were chosen after seeing outputs and exceed the budget of\n'
                '  the first plan: no ε is proven.'
            )
    unproven = epsilons.unproven_epsilon(ledger.first_plan, ledger.reserved_steps)
    if unproven:
        lines.append(f'  unproven, by plain DP-SGD accounting: ε = {rounding.up(unproven)}')
        lines.append(f'  Why: {_WHY_UNPROVEN}')
    lines.append(
        '  ε covers this run alone; other runs on the same records, and copies of it, add to it.'
    )
    return '\n'.join(lines)
