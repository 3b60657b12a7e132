"""The page of a run: what it claims, what is on it, and that it stands alone."""

import base64
import builtins
import datetime
import math
import os
import re
import struct
import sys

import numpy as np
import pytest
from helpers import read_page

from tf_efsgd.reporting import report

# The smallest PNG: one gray pixel.
_PNG = base64.b64decode(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=='
)
_STATEMENT = {
    'unit_of_privacy': 'one image & its label',
    'private': True,
    'dataset_size': 60_000,
    'persons': None,
    'mechanism': 'Gaussian on a <Poisson> sample',
    'epsilon': 9.2791,
    'epsilon_of_the_ideal_mechanism': 9.2791,
    'epsilon_pld': None,
    'delta': 1e-5,
    'delta_times_units': 0.6,
    'epsilon_by_images_per_person': {2: 21.72341, 5: None},
    'neighboring_relation': 'ADD_OR_REMOVE_ONE',
    'record': 'one image & its label',
    'target_epsilon': None,
    'proven': ['a <proof>', 'another'],
    'tested_not_proven': ['a <test>'],
    'not_covered': ['the <first> thing', 'the second'],
    'other_runs': {'runs': ['a & b']},
    'software': {'tensorflow': '2.15.1'},
}
_HISTORY = [
    {'step': 100 * i, 'dp/epsilon': 0.3 * i**0.5, 'dp/fake_accuracy': 0.7, 'dp/note': 'text'}
    for i in range(1, 9)
]


def _write(folder, **changes):
    samples = folder / 'samples.png'
    samples.write_bytes(_PNG)
    arguments = {
        'title': 'Digits <1>',
        'private': True,
        'statement': _STATEMENT,
        'samples_png': str(samples),
        'sample_caption': 'Step 800, one row per class & more',
        'history': _HISTORY,
        'config_text': '--dataset=digits\n--label=<script>alert(1)</script>\n',
        **changes,
    }
    report.write_report(folder / 'report.html', **arguments)
    return (folder / 'report.html').read_text(encoding='utf-8')


def test_private_page_says_at_its_top_that_it_may_be_shared(tmp_path):
    text = read_page.text(_write(tmp_path))
    claim = (
        'This page may be shared: it holds only what is covered by (ε, δ)-differential privacy'
        'Unit of privacy: one image & its labelε = 9.28, δ = 1e-05; '
        'δ times the number of images, 60,000, is 0.6'
    )
    assert text.startswith(f'Digits <1> {claim}')
    assert 'NOT PRIVATE' not in text


@pytest.mark.parametrize('claimed', [True, False])
def test_page_of_a_run_without_privacy_says_so_and_promises_nothing(tmp_path, claimed):
    statement = {'private': claimed, 'epsilon': None}
    text = read_page.text(_write(tmp_path, private=False, statement=statement))
    assert text.startswith('Digits <1> NOT PRIVATE: do not share')
    for promise in ('may be shared', 'covered by (ε', 'at most'):
        assert promise not in text


def test_what_is_asked_first_is_answered_below_the_picture(tmp_path):
    identity = {'Date (UTC)': '2026-03-01 10:20', 'Run': 'ab12', 'SHA-256 of the generator': 'cd34'}
    text = read_page.text(_write(tmp_path, identity=identity))
    first = text[text.index('In short') : text.index('What this means')]
    assert text.index('may be shared') < text.index('Generated images') < text.index('In short')
    for shown in (
        'Unit of privacyone image & its label',
        'ε spent9.28',
        'δ1e-05; times the number of images, 60,000, it is 0.6',
        'ε for several images of a personlarger: 21.73 for 2 images, no bound for 5 images',
        'May be handed overthis page, the generated images (samples/) and the generator',
        'Date (UTC)2026-03-01 10:20',
        'Runab12',
        'SHA-256 of the generatorcd34',
        'Not coveredthe <first> thingthe second',
    ):
        assert shown in first.replace(' Run', 'Run').replace(': export', ':export'), shown
    statement = {**_STATEMENT, 'persons': 700, 'epsilon_by_images_per_person': None}
    text = read_page.text(_write(tmp_path, statement=statement))
    assert 'of a personthe same: the unit of privacy is the person' in text
    statement = {**_STATEMENT, 'epsilon_by_images_per_person': None}
    assert 'of a personlarger; how much' in read_page.text(_write(tmp_path, statement=statement))
    # A page without privacy answers none of it.
    page = _write(tmp_path, private=False, statement={'private': False, 'epsilon': None})
    assert 'In short' not in read_page.text(page)


def test_page_needs_nothing_from_outside(tmp_path):
    read_page.check_stands_alone(_write(tmp_path))


def test_picture_is_on_the_page(tmp_path):
    page = _write(tmp_path)
    [data] = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(data) == _PNG
    assert 'Step 800, one row per class & more' in read_page.text(page)


def _grid(classes, side=68, rows=8):
    """The beginning of a PNG of this many columns, which says how large it is."""
    size = struct.pack('>II', min(classes, 16) * side, rows * side)
    return _PNG[:16] + size + _PNG[24:]


@pytest.mark.parametrize(('classes', 'stands'), [(1, 1), (2, 1), (3, 1), (10, 0), (100, 0)])
def test_a_picture_is_a_part_of_the_first_screen_however_few_its_classes(classes, stands, tmp_path):
    (tmp_path / 'grid.png').write_bytes(_grid(classes))
    page = _write(tmp_path, samples_png=str(tmp_path / 'grid.png'))
    columns = min(classes, 16)
    assert f'<figure style="--aspect:{columns / 8:.4g}"><img class="crisp"' in page
    assert f'width="{68 * columns}" height="544"' in page
    # A narrow one stands beside the summary: in the first of two columns.
    assert page.count('<div class="beside">\n<section>\n<h2>Generated images') == stands
    # No picture is higher than such a part of the window, whatever its width.
    rules = re.findall(r'^(.*?img)\{[^}]*width:min\(100%,(.*?)\*var', page, re.MULTILINE)
    assert {name for name, _ in rules} == {'img', '.beside img'}
    for _, height in rules:
        assert 30 <= int(re.fullmatch(r'max\((\d+)vh,14rem\)', height)[1]) <= 60
    assert 'width:100%;image-rendering' not in page and 'image-rendering:pixelated' in page


def test_a_picture_that_must_be_made_much_smaller_is_drawn_smoothly(tmp_path):
    for side, kind in ((68, 'crisp'), (132, 'smooth')):
        (tmp_path / 'grid.png').write_bytes(_grid(2, side))
        page = _write(tmp_path, samples_png=str(tmp_path / 'grid.png'))
        assert f'<img class="{kind}" width="{2 * side}"' in page


def test_the_page_of_a_data_set_says_first_what_may_be_handed_over(tmp_path):
    (tmp_path / 'samples.png').write_bytes(_grid(2))

    def text(**changes):
        statement = {**_STATEMENT, 'generator_sha256': 'cd<34>', **changes}
        report.write_privacy_page(
            tmp_path / 'PRIVACY.html',
            title='Digits <1>',
            statement=statement,
            about={'count': 70},
            samples_png=str(tmp_path / 'samples.png'),
            sample_caption='One class per column',
            date=datetime.date(2026, 3, 1),
        )
        page = (tmp_path / 'PRIVACY.html').read_text(encoding='utf-8')
        read_page.check_stands_alone(page)
        return read_page.text(page)

    said = text()
    first = said[said.index('In short') : said.index('Images of this generator')]
    assert said.index('may be shared') < said.index('In short')
    for shown in (
        'May be handed overthis folder with all its images, the generator',
        'Not the records, nor the folder nonprivate/',
        'ε9.28, for one image & its label: with or without one record, the probability of whatever '
        'this folder shows differs by a factor of at most 10,720, plus δ. By itself that is a weak',
        'δ1e-05: the probability that comes on top of that factor; times the number of images, '
        '60,000, it is 0.6',
        'ε for several images of a personlarger: 21.73 for 2 images, no bound for 5 images',
        'Not coveredthe <first> thingthe second',
        'Date (UTC)2026-03-01',
        'SHA-256 of the generatorcd<34>',
    ):
        assert shown in first, shown
    assert 'weak' not in text(epsilon=1.0)
    unit = 'one person, with up to 5 images and their labels'
    persons = {'unit_of_privacy': unit, 'persons': 700, 'epsilon_by_images_per_person': None}
    said = text(**persons)
    assert f'ε9.28, for {unit}: with or without one person, the' in said
    assert 'of a personthe same: the unit of privacy is the person' in said
    assert 'the number of persons, 700, it is' in said
    # An early version did not say which generator it was; a page without privacy says nothing.
    assert 'SHA-256 of the generatornot given by' in text(generator_sha256=None)
    assert 'In short' not in text(private=False)


def test_no_picture_yet(tmp_path):
    page = _write(tmp_path, samples_png=None)
    assert '<img' not in page
    assert 'No samples' in page


def test_all_text_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>&\"$\\frac$"
    page = _write(
        tmp_path,
        title=evil,
        sample_caption=evil,
        config_text=evil,
        statement={
            **_STATEMENT,
            **{evil: evil, 'record': evil, 'neighboring_relation': evil},
            **{'unit_of_privacy': evil, 'proven': [evil], 'tested_not_proven': [evil]},
            **{'not_covered': [evil], 'epsilon_by_images_per_person': {evil: 1.0}},
            **{'list': [evil], 'dict': {evil: evil}},
        },
        history=[{'step': 1, f'dp/{evil}': 0.3}],
    )
    assert 'script' not in read_page.Parsed(page).tags
    # Heading, caption, flags, record; relation twice; list, dict (2), a row (2); the table's record
    # and relation; curve; the unit in banner, summary, words and table; three lists; a number of
    # images, twice.
    assert read_page.Parsed(page).text.count(evil) == 1 + 1 + 1 + 1 + 2 + 5 + 2 + 1 + 4 + 3 + 2


def test_meaning_is_told_in_words_with_the_numbers_of_the_run(tmp_path):
    text = read_page.text(_write(tmp_path, statement={**_STATEMENT, 'epsilon': 1.0}))
    assert 'factor of at most eε = 2.719, plus δ = 1e-05' in text  # e = 2.7183, rounded up
    assert 'rightly name at most 2.8 % of' in text  # 0.01 e + 1e-5 = 2.72 %
    assert 'weak promise' not in text
    assert 'one image & its label' in text
    assert 'with one record added or removed (ADD_OR_REMOVE_ONE)' in text
    assert 'bound what anyone can learn about one image & its label from' in text
    assert 'accuses 1 in 100 images that were not used' in text


def test_lists_are_those_of_the_statement(tmp_path):
    text = read_page.text(_write(tmp_path))
    for shown in (
        'Proven:a <proof>another',
        'Tested, not proven:a <test>',
        'Not coveredthe <first> thingthe second',
    ):
        assert text.replace(': ', ':').count(shown) == 1
    # They have a place of their own, so the table leaves them out.
    for name in ('not_covered', 'tested_not_proven', 'epsilon_by_images_per_person'):
        assert name not in text


def test_epsilon_for_several_images_of_one_person_is_a_table(tmp_path):
    text = read_page.text(_write(tmp_path))
    assert 'ε for K images of one person is:2 images21.735 imagesnone' in text.replace(
        'is: ', 'is:'
    )
    assert text.count('has no protection to rely on') == 1
    assert 'k·ε' not in text and 'K·ε' not in text
    # As JSON has it, and with nothing that needs to be explained.
    by_images = {'2': 3.14159, '10': 30.0}
    statement = {**_STATEMENT, 'epsilon_by_images_per_person': by_images}
    text = read_page.text(_write(tmp_path, statement=statement))
    assert '2 images3.14210 images30' in text and 'protection to rely on' not in text
    # After a change of the mechanism there is none.
    statement = {**_STATEMENT, 'epsilon_by_images_per_person': None}
    text = read_page.text(_write(tmp_path, statement=statement))
    assert (
        'protected less than a single one, and how much less was not computed for this run' in text
    )


def test_with_a_person_as_unit_several_images_are_covered(tmp_path):
    unit = 'one person, with up to 5 images and their labels'
    statement = {
        **_STATEMENT,
        **{'unit_of_privacy': unit, 'persons': 700, 'delta_times_units': 0.007},
        'epsilon_by_images_per_person': None,
    }
    text = read_page.text(_write(tmp_path, statement=statement))
    assert f'Unit of privacy: {unit}ε = 9.28' in text
    assert 'δ times the number of persons, 700, is 0.007' in text
    assert 'Several images of one person are covered: the unit of privacy is the person' in text
    assert f'bound what anyone can learn about {unit} from' in text
    assert 'accuses 1 in 100 persons whose images were not used' in text
    assert 'with one person added or removed (ADD_OR_REMOVE_ONE)' in text
    assert 'images2' not in text and 'protected less' not in text


def test_large_epsilon_is_called_weak(tmp_path):
    assert 'weak promise' in read_page.text(_write(tmp_path))


def test_statement_is_a_table(tmp_path):
    text = read_page.text(_write(tmp_path))
    for row in (
        *('ε spentepsilon9.2791', 'δdelta1e-05', 'Privateprivateyes', 'target_epsilonnot given'),
        *('softwaretensorflow: 2.15.1', 'other_runsruns: a & b', 'epsilon_pldnone'),
        *('unit_of_privacyone image & its label', 'delta_times_units0.6', 'dataset_size60000'),
    ):
        assert row in text.replace(' ε', 'ε')


@pytest.mark.parametrize(
    ('epsilon', 'expected'),
    [
        *((9.2791, '9.28'), (9.28, '9.28'), (0.30001, '0.3001'), (0.0, '0'), (1.1, '1.1')),
        (123456.0, '123,500'),
    ],
)
def test_epsilon_is_never_rounded_down(tmp_path, epsilon, expected):
    text = read_page.text(
        _write(tmp_path, statement={**_STATEMENT, 'epsilon': np.float64(epsilon)})
    )
    assert f'labelε = {expected}, δ' in text


def test_detection_bound_is_the_trade_off_of_differential_privacy():
    bound = report._detection_bound
    assert bound(0.01, 0.0, 0.0) == pytest.approx(0.01)
    assert bound(0.01, math.log(3), 0.002) == pytest.approx(0.032)
    # The other side: 1 - (1 - 0.01) / e^ε, where 0.01 e^ε is far above 1.
    assert bound(0.01, math.log(300), 0.0) == pytest.approx(1 - 0.99 / 300)
    assert bound(0.01, 5000.0, 0.1) == 1.0


def test_each_released_curve_is_an_svg_of_its_own(tmp_path):
    pytest.importorskip('matplotlib')
    page = _write(tmp_path)
    parsed = read_page.Parsed(page)
    assert parsed.tags.count('svg') == 2
    assert re.findall(r'<figure><figcaption>(.*?)</figcaption><svg', page) == [
        *('ε spent', 'dp/fake_accuracy')
    ]
    ids = [value for key, value in parsed.attributes if key == 'id']
    assert len(set(ids)) == len(ids)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(ids)


def test_curve_goes_through_its_points(tmp_path):
    pytest.importorskip('matplotlib')
    history = [{'step': s, 'dp/epsilon': e} for s, e in [(0, 0.0), (10, 3.0), (40, 6.0)]]
    svg = re.search(r'<svg.*</svg>', _write(tmp_path, history=history), re.DOTALL).group()
    # The curve is the one path in its colour.
    [d] = re.findall(r'<path d="([^"]*)"[^>]*stroke: #1f5fa8', svg)
    (x0, y0), (x1, y1), (x2, y2) = np.array(re.findall(r'[-\d.]+', d), float).reshape(-1, 2)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.5, abs=1e-3)
    assert y2 < y0  # SVG counts downwards


def test_a_curve_of_one_point_is_a_number(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)  # It takes none.
    page = _write(tmp_path, history=[{'step': 0, 'dp/epsilon': 0.99991, 'dp/a': 0.12341}])
    assert '<svg' not in page
    assert 'ε spent1 at step 0' in read_page.text(page)  # Rounded up.
    assert 'dp/a0.1234 at step 0' in read_page.text(page)


def test_values_that_are_no_finite_numbers_are_left_out(tmp_path):
    history = [
        {'step': 1, 'dp/epsilon': float('inf'), 'dp/loss': float('nan'), 'dp/a': 0.1},
        {'step': 2, 'dp/epsilon': None, 'dp/loss': 0.3, 'dp/a': True},
        {'step': 3, 'dp/loss': np.float32(0.2)},
    ]
    assert report._points(history, 'dp/epsilon') == []
    assert report._points(history, 'dp/loss') == [(2, 0.3), (3, pytest.approx(0.2))]
    assert report._points(history, 'dp/a') == [(1, 0.1)]
    assert 'ε spent</figcaption>' not in _write(tmp_path, history=history)


def test_empty_history(tmp_path):
    assert 'Nothing has been logged yet' in _write(tmp_path, history=[])


# A ValueError comes where MPLBACKEND names a backend that there is not.
@pytest.mark.parametrize('error', [ImportError, ValueError])
def test_without_matplotlib_the_page_says_how_to_get_it(tmp_path, monkeypatch, error):
    real_import = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.split('.')[0] == 'matplotlib':
            raise error(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', no_matplotlib)
    page = _write(tmp_path)
    assert 'pip install matplotlib' in page
    assert '<svg' not in page
    assert 'ε = 9.28' in page
    assert '<img' in page


def test_drawing_leaves_the_global_state_of_matplotlib_alone(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip('matplotlib')
    monkeypatch.delitem(sys.modules, 'matplotlib.pyplot', raising=False)

    def settings():
        # Reading "backend" picks one, and imports pyplot.
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}

    before = settings()
    _write(tmp_path)
    assert 'matplotlib.pyplot' not in sys.modules
    assert settings() == before


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'statement': {**_STATEMENT, 'epsilon': float('inf')}}, 'epsilon=inf'),
        ({'statement': {**_STATEMENT, 'epsilon': None}}, 'epsilon=None'),
        ({'statement': {**_STATEMENT, 'delta': 1.0}}, 'delta=1.0'),
        ({'statement': {**_STATEMENT, 'private': False}}, 'says private: False'),
        ({'statement': {**_STATEMENT, 'unit_of_privacy': ''}}, "unit_of_privacy=''"),
        ({'statement': {**_STATEMENT, 'delta_times_units': None}}, 'delta_times_units=None'),
        ({'statement': {**_STATEMENT, 'proven': []}}, 'none of: proven'),
        ({'statement': {**_STATEMENT, 'tested_not_proven': None}}, 'none of: tested_not_proven'),
        ({'statement': {**_STATEMENT, 'not_covered': []}}, 'none of: not_covered'),
        ({'history': [{'step': 1, 'nonprivate/loss': 0.3}]}, 'nonprivate/loss'),
        ({'history': [{'step': 1, 'dp/a': 0.1}, {'step': 2, 'loss': 0.3}]}, 'Received: loss'),
        ({'samples_png': __file__}, 'must be a PNG'),
    ],
)
def test_claims_that_are_not_borne_out_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _write(tmp_path, **changes)
    assert not (tmp_path / 'report.html').exists()


def test_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    before = _write(tmp_path)
    plain = tmp_path / 'plain'
    plain.touch()
    assert os.stat(tmp_path / 'report.html').st_mode == os.stat(plain).st_mode
    assert _write(tmp_path, title='Second') != before
    after = (tmp_path / 'report.html').read_text()

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        _write(tmp_path, title='Third')
    assert (tmp_path / 'report.html').read_text() == after
    assert sorted(os.listdir(tmp_path)) == ['plain', 'report.html', 'samples.png']
