"""The page of a run that may be shared: pictures, curves, and the privacy statement in words."""

from __future__ import annotations

import datetime
import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tf_efsgd import rounding
from tf_efsgd.reporting import pages

# What the entries of the statement are called in the table; others go by their key alone.
_LABELS = {
    'unit_of_privacy': 'Unit of privacy',
    'private': 'Private',
    'mechanism': 'Mechanism',
    'private_step_updates': 'Networks in the private step',
    'target_epsilon': 'ε at most (budget)',
    'epsilon': 'ε spent',
    'epsilon_if_the_stop_was_fixed_in_advance': 'ε if the stop was decided before the run',
    'epsilon_pld': 'ε by privacy loss distributions',
    'epsilon_rdp': 'ε by Rényi DP',
    'epsilon_pld_fixed_in_advance_only': 'ε by privacy loss distributions, had all changes been '
    'decided before the run',
    'epsilon_rdp_fixed_in_advance_only': 'ε by Rényi DP, had all changes been decided before the '
    'run',
    'epsilon_unproven': 'ε that plain DP-SGD would have, which is not proven here',
    'epsilon_of_the_ideal_mechanism': 'ε if the noise were real numbers',
    'delta': 'δ',
    'delta_times_units': 'δ times the number of images, or of persons',
    'neighboring_relation': 'Neighbouring data sets',
    'sampling': 'Sampling',
    'sampling_probability': 'Sampling probability',
    'noise_multiplier': 'Noise multiplier',
    'noise_multiplier_accounted': 'Noise multiplier that is accounted',
    'private_parameters': 'Parameters of a private step',
    'noise': 'How the noise is drawn',
    'l2_norm_clip': 'Clipping norm',
    'error_feedback': 'Error feedback',
    'residual_l2_norm_clip': 'Clipping norm of what the first clip cut',
    'residual_share': 'Share of the budget for what clipping cut',
    'feedback_decay': 'Decay of the feedback',
    'feedback_l2_norm_clip': 'Clipping norm of the feedback',
    'steps': 'Private steps',
    'applied_steps': 'Private steps that the generator has seen',
    'planned_steps': 'Private steps of the whole plan',
    'expected_batch_size': 'Expected batch size',
    'accountant': 'Accountant',
    'dataset': 'Data set',
    'dataset_size': 'Records',
    'persons': 'Persons',
    'record': 'One record',
    'other_runs': 'Other runs on a data set of the same name',
    'together': 'All of these runs together',
    'together_with_all': 'All runs that are remembered there together',
    'other_runs_not_known': 'Other runs of which nothing is known',
    'warm_start': 'Releases before the first step',
    'events': 'Events that epsilon composes',
    'unverified_resumes': 'Resumes whose records were not compared',
    'changes_of_mechanism': 'Changes of the mechanism',
    'randomness': 'Where the noise comes from',
    'class_names': 'Classes',
    'released_class_counts': 'Released numbers of images of each class',
    'generator_sha256': 'SHA-256 of the generator',
    'software': 'Software',
    'public_images': 'Public images used beside the records (†)',
}

# The tag of ε in a run's logs.
_EPSILON = 'dp/epsilon'

# Entries that a page with a promise shows in their own place; the table shows the rest.
_LISTS = {
    'proven': 'Proven',
    'tested_not_proven': 'Tested, not proven',
}
# The rate of false alarms of the test that serves as an example.
_FALSE_ALARMS = 0.01
# Entries of the section "In short".
_NOT_COVERED = 'not_covered'
_BY_IMAGES = 'epsilon_by_images_per_person'

_NEIGHBOURS = {
    'ADD_OR_REMOVE_ONE': 'One data set is the other with {} added or removed',
    'REPLACE_ONE': 'One data set is the other with {} replaced by another',
    'REPLACE_SPECIAL': 'One data set is the other with {} replaced by an empty one',
}


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    private: bool,
    statement: Mapping[str, Any],
    samples_png: str | None,
    sample_caption: str,
    history: Sequence[Mapping[str, Any]],
    config_text: str,
    identity: Mapping[str, str] | None = None,
) -> None:
    """Writes the page of a run as one HTML file, completely or not at all.

    A page that says it is private says so of everything on it: give it only what the run has
    released, and no evaluation against real images.

    Args:
      path: the file to write; an existing one is replaced.
      title: the heading.
      private: whether everything on the page is covered by (ε, δ)-differential privacy.
      statement: the run's privacy statement. With `private` it must have `epsilon` (finite,
        >= 0), `delta` (in [0, 1)), `delta_times_units` (>= 0), `unit_of_privacy` and the lists
        `proven`, `tested_not_proven` and `not_covered`, which are shown as they are.
      samples_png: path of a PNG of generated images, or None if there is none yet.
      sample_caption: the text below the picture.
      history: one mapping for each logged step: `step` (int), and floats by their tags, such as
        `dp/epsilon` and `dp/fake_accuracy`. Each tag becomes a curve over steps, or a number if it
        has one value only. Values that are not finite are left out. With `private`, all tags must
        begin with `dp/`.
      config_text: the flags of the run.
      identity: what distinguishes this run from others, by a label: its date, its id, a hash of its
        model.

    Raises:
      ValueError: if `private` is claimed with a statement or a curve that does not support it, or
        if `samples_png` is not a PNG.
      FileNotFoundError: if `samples_png` does not exist.
    """
    if private:
        _check_claim(statement, history)
    png = _read(samples_png)
    images = pages.section('Generated images', _samples(png, sample_caption))
    first = [images]
    if private:
        short = pages.section('In short', _in_short(statement, identity or {}))
        is_beside = png is not None and pages.is_narrow(png)
        first = [pages.beside(images, short)] if is_beside else [images, short]
    sections = [
        _banner(private, statement),
        *first,
        pages.section('What this means', _promise(statement) if private else _no_promise()),
        pages.section('Curves', _curves(history)),
        pages.section('Privacy statement', _facts(private, statement)),
        pages.section('Flags', _flags(config_text, statement)),
    ]
    pages.write_page(path, title, sections)


def write_privacy_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    statement: Mapping[str, Any],
    about: Mapping[str, Any],
    samples_png: str | None,
    sample_caption: str,
    date: datetime.date | None = None,
) -> None:
    """Writes the page of a synthetic data set as one HTML file.

    Args:
      path: the file to write.
      title: the heading.
      statement: the privacy statement of the generator. If it says `private`, it must have what
        `write_report` asks for.
      about: public facts about how the data set was generated, by name.
      samples_png: path of a PNG of generated images, or None.
      sample_caption: the text below the picture.
      date: when the data set was made; None: today, UTC.

    Raises:
      ValueError: as in `write_report`.
    """
    private = bool(statement.get('private'))
    short = ''
    if private:
        _check_claim(statement, [])
        date = date or datetime.datetime.now(datetime.timezone.utc).date()
        short = pages.section('In short', _data_set_in_short(statement, date))
    sections = [
        _banner(private, statement),
        short,
        pages.section('Images of this generator', _samples(_read(samples_png), sample_caption)),
        pages.section('What this means', _promise(statement) if private else _no_promise()),
        pages.section(
            'How the images were made',
            '<p>The images were drawn from a trained generator. Drawing uses the generator, a '
            'number of images and a seed, and nothing else, so any number of images reveals '
            'nothing more about the records that it learned from.</p>\n' + pages.facts(about, {}),
        ),
        pages.section('Privacy statement of the generator', _facts(private, statement)),
    ]
    pages.write_page(path, title, sections)


def _check_claim(statement: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError unless statement and history fit a page that may be shared."""
    epsilon, delta = statement.get('epsilon'), statement.get('delta')
    is_number = pages.is_number
    if not (is_number(epsilon) and epsilon >= 0 and is_number(delta) and 0 <= delta < 1):
        raise ValueError(
            'A private report needs a statement with a finite epsilon >= 0 and a delta in [0, 1). '
            f'Received: epsilon={epsilon!r}, delta={delta!r}.'
        )
    times_units, unit = statement.get('delta_times_units'), statement.get('unit_of_privacy')
    if not (is_number(times_units) and times_units >= 0 and unit):
        raise ValueError(
            'A private report needs a statement that says what its unit of privacy is, and what '
            f'delta times the number of units is. Received: unit_of_privacy={unit!r}, '
            f'delta_times_units={times_units!r}.'
        )
    empty = [name for name in (*_LISTS, _NOT_COVERED) if not statement.get(name)]
    if empty:
        raise ValueError(
            'A private report needs a statement that says what is proven, what is only tested and '
            f'what is not covered. Received none of: {", ".join(empty)}.'
        )
    if statement.get('private') is False:
        raise ValueError('private=True, but the statement says private: False.')
    uncovered = sorted(
        {k for entry in history for k in entry if k != 'step' and not k.startswith('dp/')}
    )
    if uncovered:
        raise ValueError(
            'A private report holds released curves only; leave the others to the non-private '
            f'folder. Received: {", ".join(uncovered)}.'
        )


# Where a page of a run says its ε: in the banner, in short, and in the table of the statement.
_SAID = re.compile(
    r'<div>ε = ([^,<]*(?:,\d{3})*), δ|<th>ε spent</th><td><b>([^<]*)</b>'
    r'|<code>epsilon</code></th><td>([^<]*)</td>'
)


def epsilons_of(page: str) -> list[str]:
    """Reads every ε that the page of a run says was spent, as it is written there."""
    return [next(filter(None, found), '') for found in _SAID.findall(page)]


def _banner(private: bool, statement: Mapping[str, Any]) -> str:
    if not private:
        return pages.banner(
            'NOT PRIVATE: do not share this page',
            'What it shows is not covered by differential privacy and may reveal training images.',
            may_be_shared=False,
        )
    return pages.banner(
        'This page may be shared: it holds only what is covered by (ε, δ)-differential privacy',
        f'<div>Unit of privacy: {html.escape(str(statement["unit_of_privacy"]))}</div>'
        f'<div>ε = {rounding.up(float(statement["epsilon"]))}, δ = {float(statement["delta"])!r}; '
        f'δ times the number of {_units(statement)} is '
        f'{rounding.up(float(statement["delta_times_units"]), 2)}</div>',
        may_be_shared=True,
    )


# What may be handed over of a run, and of a data set, whose statement says that it is private.
_RUN_HANDED_OVER = (
    'this page, the generated images (samples/) and the generator (export/). Not the folder '
    'nonprivate/, which is about real images, nor the records'
)
_DATA_SET_HANDED_OVER = (
    'this folder with all its images, the generator that drew them, and any number of its images. '
    'Not the records, nor the folder nonprivate/ of the run, which is about real images'
)
_SEVERAL = 'ε for several images of a person'


def _in_short(statement: Mapping[str, Any], identity: Mapping[str, str]) -> str:
    """Answers what a privacy officer asks first of a run."""
    return _short_table(
        {
            'Unit of privacy': html.escape(str(statement['unit_of_privacy'])),
            'ε spent': f'<b>{rounding.up(float(statement["epsilon"]))}</b>',
            'δ': f'{float(statement["delta"])!r}; {_delta_times_units(statement)}',
            _SEVERAL: _short_by_images(statement),
            'May be handed over': html.escape(_RUN_HANDED_OVER),
            **{html.escape(name): f'<code>{html.escape(v)}</code>' for name, v in identity.items()},
            'Not covered': pages.value(statement['not_covered']),
        }
    )


def _data_set_in_short(statement: Mapping[str, Any], date: datetime.date) -> str:
    """Answers what a privacy officer asks first of a data set, from the statement alone."""
    epsilon, delta = float(statement['epsilon']), float(statement['delta'])
    unit = html.escape(str(statement['unit_of_privacy']))
    one = _one(statement)
    generator = statement.get('generator_sha256')
    return _short_table(
        {
            'May be handed over': html.escape(_DATA_SET_HANDED_OVER),
            'ε': f'<b>{rounding.up(epsilon)}</b>, for {unit}: with or without {one}, the '
            'probability of whatever this folder shows differs by a factor of at most '
            f'{rounding.up(_exp(epsilon))}, plus δ.{_weak(epsilon, delta)}',
            'δ': f'<b>{delta!r}</b>: the probability that comes on top of that factor; '
            f'{_delta_times_units(statement)}',
            _SEVERAL: _short_by_images(statement),
            'Not covered': pages.value(statement['not_covered']),
            'Date (UTC)': f'<code>{date.isoformat()}</code>',
            'SHA-256 of the generator': 'not given by the version of the program that made it'
            if generator is None
            else f'<code>{html.escape(str(generator))}</code>',
        }
    )


def _short_table(rows: Mapping[str, str]) -> str:
    lines = ''.join(f'<tr><th>{name}</th><td>{shown}</td></tr>\n' for name, shown in rows.items())
    return f'<table class="facts">\n{lines}</table>'


def _delta_times_units(statement: Mapping[str, Any]) -> str:
    shown = rounding.up(float(statement['delta_times_units']), 2)
    return f'times the number of {_units(statement)} it is {shown}'


def _one(statement: Mapping[str, Any]) -> str:
    return 'one person' if _counts_persons(statement) else 'one record'


def _weak(epsilon: float, delta: float) -> str:
    """Says that a promise is weak if it is, else nothing."""
    if _detection_bound(_FALSE_ALARMS, epsilon, delta) <= 0.5:
        return ''
    return ' By itself that is a weak promise; only a smaller ε makes a stronger one.'


def _short_by_images(statement: Mapping[str, Any]) -> str:
    if _counts_persons(statement):
        return 'the same: the unit of privacy is the person'
    found = statement.get(_BY_IMAGES)
    if not found:
        return 'larger; how much was not computed for this run'
    shown = (
        f'{"no bound" if epsilon is None else rounding.up(float(epsilon))} for '
        f'{html.escape(str(images))} images'
        for images, epsilon in found.items()
    )
    return 'larger: ' + ', '.join(shown)


def _counts_persons(statement: Mapping[str, Any]) -> bool:
    return statement.get('persons') is not None


def _units(statement: Mapping[str, Any]) -> str:
    """Names the units that delta counts, with their declared number."""
    number, name = statement.get('dataset_size'), 'images'
    if _counts_persons(statement):
        number, name = statement['persons'], 'persons'
    return name if number is None else f'{name}, {number:,},'


def _facts(private: bool, statement: Mapping[str, Any]) -> str:
    """Returns the statement as a table, without the entries that the page shows elsewhere."""
    elsewhere = (*_LISTS, _NOT_COVERED, _BY_IMAGES) if private else ()
    return pages.facts(
        {key: item for key, item in statement.items() if key not in elsewhere}, _LABELS
    )


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, 'rb') as file:
        return file.read()


def _samples(png: bytes | None, caption: str) -> str:
    if png is None:
        return '<p>No samples have been drawn yet.</p>'
    return pages.picture(png, 'Grid of generated images', caption)


def _promise(statement: Mapping[str, Any]) -> str:
    """Explains the guarantee in plain words, with its numbers."""
    epsilon, delta = float(statement['epsilon']), float(statement['delta'])
    unit = html.escape(str(statement['unit_of_privacy']))
    record = html.escape(str(statement.get('record', 'one image with its label')))
    relation = str(statement.get('neighboring_relation', 'ADD_OR_REMOVE_ONE'))
    one = _one(statement)
    neighbours = html.escape(_NEIGHBOURS.get(relation, relation).format(one))
    whose = 'persons whose images' if _counts_persons(statement) else 'images that'
    detected = _detection_bound(_FALSE_ALARMS, epsilon, delta)
    lists = ''.join(
        f'<p><b>{heading}:</b></p>\n{pages.value(statement[name])}\n'
        for name, heading in _LISTS.items()
    )
    return f"""
<p><b>ε and δ</b> bound what anyone can learn about {unit} from all that this run
released, whatever else they know. With or without {one}, the probability of any outcome
differs by a factor of at most <span>e<sup>ε</sup> = {rounding.up(_exp(epsilon))}</span>, plus
<span>δ = {delta!r}</span>. The smaller both are, the better.</p>
<p><b>For example:</b> a test that wrongly accuses 1 in 100 {whose} were not used for training
can rightly name at most {_percent(detected)} of those that were.{_weak(epsilon, delta)}</p>
<p><b>One record</b> is {record}.</p>
{_several_images(statement)}
<p><b>Neighbouring data sets:</b> {neighbours} (<code>{html.escape(relation)}</code>).</p>
{lists}"""


def _several_images(statement: Mapping[str, Any]) -> str:
    """Says what is promised to a person with more than one image."""
    if _counts_persons(statement):
        return (
            '<p><b>Several images of one person</b> are covered: the unit of privacy is the '
            'person, with all of their images that were kept.</p>'
        )
    found = statement.get(_BY_IMAGES)
    if not found:
        return (
            '<p><b>Several images of one person</b> are protected less than a single one, and how '
            'much less was not computed for this run.</p>'
        )
    rows = ''.join(
        f'<tr><th>{html.escape(str(images))} images</th><td>'
        f'{rounding.up(math.inf if epsilon is None else float(epsilon))}</td></tr>'
        for images, epsilon in found.items()
    )
    none = ''
    if any(epsilon is None for epsilon in found.values()):
        none = (
            '<p>Where the table says none, the bound is so large that it cannot be proven for '
            'noise that is drawn with 128 bits: a person with so many images has no protection to '
            'rely on.</p>'
        )
    return (
        '<p><b>Several images of one person</b> are protected less than a single one. For all of '
        f'them together, at the same δ, ε for K images of one person is:</p>\n'
        f'<table class="figures">{rows}</table>\n{none}'
    )


def _no_promise() -> str:
    return (
        '<p>No guarantee of differential privacy holds for what this page shows: it may reveal '
        'which images were used, and generated images may repeat them. Keep the page, and '
        'everything it was made from, as confidential as the training data.</p>'
    )


def _flags(config_text: str, statement: Mapping[str, Any]) -> str:
    no_effect = ''
    if statement.get('steps') == 0:
        no_effect = '<p>There were no private steps, so their settings had no effect.</p>'
    return f'{no_effect}<pre>{html.escape(config_text)}</pre>'


def _detection_bound(false_alarms: float, epsilon: float, delta: float) -> float:
    """Returns the largest rate of detections of a test with this rate of false alarms.

    It follows from (ε, δ)-DP by both sides of the trade-off of Kairouz, Oh and Viswanath 2015,
    eq. 2.
    """
    return min(
        _exp(epsilon) * false_alarms + delta,
        1 - _exp(-epsilon) * (1 - delta - false_alarms),
        1.0,
    )


def _exp(x: float) -> float:
    """Returns the exponential of x, or infinity where floats end."""
    return math.exp(x) if x < 700 else math.inf


def _percent(share: float) -> str:
    """Returns a share in [0, 1] as a percentage, rounded up."""
    return f'{math.ceil(share * 1000) / 10:g} %'


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    """Draws one small plot for each tag in the history, ε first."""
    names = dict.fromkeys(k for entry in history for k in (_EPSILON, *entry) if k != 'step')
    curves = {name: points for name in names if (points := _points(history, name))}
    if not curves:
        return '<p>Nothing has been logged yet.</p>'
    try:
        if any(len(points) > 1 for points in curves.values()):
            import matplotlib.figure  # noqa: F401, it may be broken or missing.
    except Exception:  # E.g. a ValueError where MPLBACKEND names something unknown.
        return (
            '<p>The curves need matplotlib, which cannot be loaded. Install it with '
            '<code>pip install matplotlib</code>, or unset <code>MPLBACKEND</code>, and write the '
            'report again.</p>'
        )
    figures = [
        f'<figure><figcaption>{html.escape("ε spent" if name == _EPSILON else name)}</figcaption>'
        f'{_one_value(name, *points[0]) if len(points) == 1 else _svg(points, f"curve{i}-")}'
        '</figure>'
        for i, (name, points) in enumerate(curves.items())
    ]
    return '<div class="curves">\n' + '\n'.join(figures) + '\n</div>'


def _one_value(name: str, step: float, value: float) -> str:
    """Returns the text that replaces a curve of one point."""
    shown = rounding.up(value) if name == _EPSILON else f'{value:,.4g}'
    return f'<p>{shown} at step {step:,.0f}</p>'


def _points(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Returns the finite (step, value) pairs of one curve."""
    pairs = ((entry.get('step'), entry.get(name)) for entry in history)
    return [(float(x), float(y)) for x, y in pairs if pages.is_number(x) and pages.is_number(y)]


def _svg(points: Sequence[tuple[float, float]], id_prefix: str) -> str:
    """Draws a line plot as an SVG element."""
    # pyplot would keep figures, and choose a backend, for the whole process.
    from matplotlib import figure, ticker
    from matplotlib.backends import backend_svg

    fig = figure.Figure(figsize=(4.4, 2.6), layout='constrained')
    backend_svg.FigureCanvasSVG(fig)
    axes = fig.add_subplot()
    x, y = zip(*points)
    axes.plot(x, y, color='#1f5fa8', linewidth=1.6)
    axes.set_xlabel('step')
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
    axes.grid(color='#e3e7ec', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    fig.savefig(buffer, format='svg', metadata=no_metadata, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg') :].strip()  # HTML must not contain an XML header.
    # Ids must differ between the plots of one page.
    return re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{id_prefix}', svg)
