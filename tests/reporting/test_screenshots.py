"""Both pages in a browser: nothing is wider than the window, and no number is broken."""

import copy
import functools
import re
import shutil
import struct
import subprocess
import zlib

import pytest
from reporting import test_metrics_page, test_report

from tf_efsgd.budget import statement
from tf_efsgd.reporting import metrics_page, report

_BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(_BROWSER is None, reason='no Chromium on the PATH'),
]

# What a page says of itself when it is shown: how wide it is, and in how many lines each number of
# a table stands. Pages of ours have no script, so it is added to a copy.
_MEASURE = """
<script>
const lines = [...document.querySelectorAll('.figures td')].map(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  const tops = [...range.getClientRects()].filter(r => r.width).map(r => Math.round(r.top / 8));
  return cell.querySelector('svg') ? 1 : new Set(tops).size;
});
const first = document.querySelector('.facts');
const image = document.querySelector('img').getBoundingClientRect();
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth,
  window: document.documentElement.clientWidth,
  lines: Math.max(0, ...lines),
  screen: window.innerHeight,
  facts: first ? Math.round(first.querySelector('tr').getBoundingClientRect().top) : 0,
  image: Math.round(image.width),
  height: Math.round(image.height),
  bottom: Math.round(image.bottom),
});
document.body.innerHTML += '<pre id="measured">' + document.title + '</pre>';
</script>
"""


def _grid(columns=5, rows=1):
    """A PNG of images of 64 x 64 gray pixels in stripes, made by hand."""
    width, height = 64 * columns, 64 * rows
    lines = (
        b'\0' + bytes(255 * ((x // 16 + y // 64) % 2) for x in range(width)) for y in range(height)
    )
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)),
        (b'IDAT', zlib.compress(b''.join(lines))),
        (b'IEND', b''),
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _write_pages(folder, classes=5, rows=1):
    """Writes the pages of a run, and of a data set, with so many classes."""
    (folder / 'samples.png').write_bytes(_grid(min(classes, 16), rows))
    of_all = {
        'title': 'photos: synthetic images',
        'statement': {
            **test_report._STATEMENT,
            'epsilon_by_images_per_person': {2: 21.7, 10: 300.0},
            'not_covered': [*statement.NOT_COVERED, *statement.NOT_COVERED_PER_IMAGE],
            'generator_sha256': 'cd' * 32,
        },
        'samples_png': str(folder / 'samples.png'),
        'sample_caption': 'One class per column: '
        + ', '.join(f'class {i}' for i in range(min(classes, 16))),
    }
    report.write_report(
        folder / 'report.html',
        private=True,
        history=[{'step': s, 'dp/epsilon': s / 7} for s in range(9)],
        config_text='--dataset=folder:photos\n',
        identity={'Date (UTC)': '2026-03-01 10:20', 'Run': 'ab' * 16, 'SHA-256': 'cd' * 32},
        **of_all,
    )
    report.write_privacy_page(folder / 'PRIVACY.html', about={'count': 60_000}, **of_all)
    metrics = copy.deepcopy(test_metrics_page._METRICS)
    metrics['domain_fid']['test'] = 12345.6789
    pairs = {'generated': _grid(classes, 2 if rows > 1 else 1)}
    metrics_page.write_metrics_page(
        folder / 'metrics.html', title='photos', metrics=metrics, pictures=pairs
    )


def _browse(page, width, height, folder, *more):
    """What the browser prints of a page in a window of this size."""
    browser = [_BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars']
    browser += [f'--user-data-dir={folder}/user', f'--window-size={width},{height}']
    command = [*browser, *more, '--dump-dom', f'file://{page}']
    return subprocess.run(command, capture_output=True, timeout=600, check=True).stdout.decode()


@functools.cache
def _frame(folder):
    """How much lower the page is than the window: the bars of the browser take some of it."""
    page = folder / 'empty.html'
    page.write_text('<script>document.title = window.innerHeight</script>')
    return 900 - int(re.findall(r'<title>(\d+)</title>', _browse(page, 500, 900, folder))[-1])


def _show(page, width, folder, height=900):
    """What the page measures of itself on a screen; a screenshot stays for whoever looks."""
    text = page.read_text(encoding='utf-8')
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', text)
    copy_of_page = folder / f'measured_{page.name}'
    copy_of_page.write_text(text.replace('</body>', f'{_MEASURE}</body>'), encoding='utf-8')
    picture = folder / f'{page.stem}_{width}.png'
    height += _frame(folder.parent)
    shown = _browse(copy_of_page, width, height, folder, f'--screenshot={picture}')
    assert picture.stat().st_size > 10_000
    # The first one is the line of the script that makes it.
    measured = re.findall(r'<pre id="measured">(.*?)</pre>', shown)[-1]
    return {name: int(value) for name, value in re.findall(r'"(\w+)":(\d+)', measured)}


@pytest.mark.parametrize('width', [1280, 500])
@pytest.mark.parametrize('name', ['report', 'metrics', 'PRIVACY'])
def test_a_page_fits_its_window(name, width, tmp_path):
    _write_pages(tmp_path)
    measured = _show(tmp_path / f'{name}.html', width, tmp_path)
    assert measured['width'] <= measured['window'], measured
    assert measured['lines'] <= 1, 'a number is broken'
    # Wide pictures are as wide as there is room for.
    assert measured['image'] > 0.85 * min(width, 880), measured


@pytest.mark.parametrize(
    ('classes', 'width', 'height'),
    [*((n, 1280, 800) for n in (1, 2, 3, 10, 100)), (2, 500, 900)],
)
def test_the_first_screen_has_the_whole_picture_and_the_beginning_of_in_short(
    classes, width, height, tmp_path
):
    _write_pages(tmp_path, classes, rows=8)
    measured = _show(tmp_path / 'report.html', width, tmp_path, height)
    assert measured['screen'] == height
    assert measured['width'] <= measured['window'], measured
    assert 0 < measured['facts'] < height and measured['bottom'] < height, measured
    # One image is neither a spot nor a poster.
    assert 35 <= measured['height'] / 8 <= 64, measured
    assert measured['image'] / measured['height'] == pytest.approx(min(classes, 16) / 8, rel=0.05)


@pytest.mark.parametrize('width', [1280, 500])
@pytest.mark.parametrize('name', ['metrics', 'PRIVACY'])
def test_a_picture_of_two_classes_is_no_taller_than_the_window_on_other_pages(
    name, width, tmp_path
):
    _write_pages(tmp_path, 2, rows=4)
    measured = _show(tmp_path / f'{name}.html', width, tmp_path)
    assert measured['width'] <= measured['window'], measured
    assert 100 <= measured['height'] <= 0.6 * measured['screen'], measured
    if name == 'PRIVACY':
        assert 0 < measured['facts'] < 400, 'In short is not at the top'
