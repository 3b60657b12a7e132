"""Both pages in a browser: nothing is wider than the window, and no number is broken."""

import copy
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
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth,
  window: document.documentElement.clientWidth,
  lines: Math.max(0, ...lines),
  facts: first ? Math.round(first.getBoundingClientRect().bottom) : 0,
  image: Math.round(document.querySelector('img').getBoundingClientRect().width),
});
document.body.innerHTML += '<pre id="measured">' + document.title + '</pre>';
</script>
"""


def _grid():
    """A PNG of 320 x 64 gray pixels in stripes, made by hand."""
    row = b'\0' + bytes(255 * (x // 32 % 2) for x in range(320))
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', 320, 64, 8, 0, 0, 0, 0)),
        (b'IDAT', zlib.compress(row * 64)),
        (b'IEND', b''),
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _write_pages(folder):
    not_covered = [*statement.NOT_COVERED, *statement.NOT_COVERED_PER_IMAGE]
    (folder / 'samples.png').write_bytes(_grid())
    report.write_report(
        folder / 'report.html',
        title='photos: synthetic images',
        private=True,
        statement={
            **test_report._STATEMENT,
            'epsilon_by_images_per_person': {2: 21.7, 10: 300.0},
            'not_covered': not_covered,
        },
        samples_png=str(folder / 'samples.png'),
        sample_caption='One class per column',
        history=[{'step': s, 'dp/epsilon': s / 7} for s in range(9)],
        config_text='--dataset=folder:photos\n',
        identity={'Date (UTC)': '2026-03-01 10:20', 'Run': 'ab' * 16, 'SHA-256': 'cd' * 32},
    )
    metrics = copy.deepcopy(test_metrics_page._METRICS)
    metrics['domain_fid']['test'] = 12345.6789
    metrics_page.write_metrics_page(
        folder / 'metrics.html', title='photos', metrics=metrics, pictures={'generated': _grid()}
    )


def _show(page, width, folder):
    """What the page measures of itself at a width; a screenshot stays for whoever looks."""
    text = page.read_text(encoding='utf-8')
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', text)
    copy_of_page = folder / f'measured_{page.name}'
    copy_of_page.write_text(text.replace('</body>', f'{_MEASURE}</body>'), encoding='utf-8')
    browser = [_BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars']
    browser += [f'--user-data-dir={folder}/user', f'--window-size={width},900']
    picture = folder / f'{page.stem}_{width}.png'
    for what, url in ((f'--screenshot={picture}', page), ('--dump-dom', copy_of_page)):
        done = subprocess.run(
            [*browser, what, f'file://{url}'], capture_output=True, timeout=120, check=True
        )
    assert picture.stat().st_size > 10_000
    # The first one is the line of the script that makes it.
    measured = re.findall(r'<pre id="measured">(.*?)</pre>', done.stdout.decode())[-1]
    return {name: int(value) for name, value in re.findall(r'"(\w+)":(\d+)', measured)}


@pytest.mark.parametrize('width', [1280, 500])
@pytest.mark.parametrize('name', ['report', 'metrics'])
def test_a_page_fits_its_window(name, width, tmp_path):
    _write_pages(tmp_path)
    measured = _show(tmp_path / f'{name}.html', width, tmp_path)
    assert measured['width'] <= measured['window'], measured
    assert measured['lines'] <= 1, 'a number is broken'
    # Pictures are as wide as there is room for.
    assert measured['image'] > 0.85 * min(width, 880), measured
    if name == 'report' and width == 1280:
        assert measured['facts'] <= 900, 'what is asked first is not on the first screen'
