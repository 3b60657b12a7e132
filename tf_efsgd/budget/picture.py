"""A forecast as a picture: epsilon against the steps and against the noise. No TensorFlow."""

from __future__ import annotations

from tf_efsgd import rounding
from tf_efsgd.budget.epsilon import rdp_epsilon
from tf_efsgd.budget.forecast import Forecast


def plot(plan: Forecast, path: str) -> None:
    """Draws epsilon against the steps and against the noise.

    Args:
      plan: the forecast, which is marked in both.
      path: where to write the picture, in an existing folder, with an extension that matplotlib
        knows.
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
    epsilons = [rdp_epsilon(plan.plan, steps, value) for value in noise_multipliers]
    axes.plot(noise_multipliers, epsilons, color='black', linewidth=2.2)
    axes.set(xlabel='noise multiplier σ', title=f'ε by noise, {steps:,} steps')
    _finish_axes(axes, plan, plan.table.noise_multipliers, plan.noise_multiplier)


def _finish_axes(axes, plan: Forecast, ticks: list, asked: float) -> None:
    """Sets log scales with plain numbers, and draws the target and the point asked for."""
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
