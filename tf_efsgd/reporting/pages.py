"""Makes the parts that the pages of a run share: style, banner, sections, tables, pictures.

A page is one HTML file that needs no network, because it contains its pictures, curves and style.
"""

from __future__ import annotations

import base64
import html
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

from tf_efsgd import files

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# A picture of more pixels is made smaller on most screens: then pixels that are left out would show
# as broken lines, and it is drawn smoothly.
_SMOOTH_WIDTH, _SMOOTH_HEIGHT = 1400, 700
# A picture whose width is a smaller part of its height stands beside text, not above it.
_NARROW = 0.7

_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:#f6f7f9;color:#1d2733;font:16px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.25rem}
h1{font-size:1.6rem;line-height:1.25;margin:.25rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .75rem}
section{background:#fff;border:1px solid #dde2e8;border-radius:.5rem;padding:1.25rem;
margin:1.25rem 0}
.banner{border-radius:.5rem;padding:1rem 1.25rem;font-size:1.05rem;color:#fff}
.banner strong{display:block;font-size:1.2rem}
.private{background:#17663a}.not-private{background:#a3161f}
figure{margin:0}
figcaption{color:#52606d;font-size:.9rem;margin:.4rem 0}
img{display:block;width:min(100%,max(38vh,14rem)*var(--aspect));height:auto;
image-rendering:pixelated;border:1px solid #dde2e8}
img.smooth{image-rendering:auto}
.beside{display:grid;grid-template-columns:auto 1fr;gap:1.25rem;align-items:start}
.beside>*{min-width:0;margin-bottom:0}
.beside>:first-child{max-width:24rem}
.beside figure{width:max(11rem,max(52vh,14rem)*var(--aspect));max-width:100%}
.beside img{width:min(100%,max(52vh,14rem)*var(--aspect))}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1.25rem}
.curves figcaption{font-weight:600;color:#1d2733;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto}
table{width:100%;border-collapse:collapse;font-size:.95rem}
th,td{text-align:left;vertical-align:top;padding:.45rem .75rem .45rem 0;
border-top:1px solid #e8ecf0;overflow-wrap:anywhere}
tr:first-child>*{border-top:0}
th{font-weight:600;width:38%}
code{font-family:ui-monospace,monospace;font-size:.85em}
th code{display:block;font-weight:400;color:#6b7783}
ul{margin:0;padding-left:1.2rem}
p{margin:0 0 .75rem}
svg.scale{width:8rem}
.wide{overflow-x:auto;margin:0 0 .75rem}
.figures th{width:auto;overflow-wrap:break-word}
.figures td{font-variant-numeric:tabular-nums;white-space:nowrap;overflow-wrap:normal}
.facts th{width:16rem}
.facts th,.facts td{padding-top:.3rem;padding-bottom:.3rem}
.facts ul{font-size:.85rem;line-height:1.35}
@media(min-width:60rem){.facts ul{columns:2;column-gap:2rem}}
a{color:inherit}
.beside .facts th{width:38%}
.beside .facts ul{columns:1}
@media(max-width:40rem){
.beside{display:block}
.beside>:first-child{max-width:none}
.beside>*{margin-bottom:1.25rem}
.beside figure{width:auto}
.beside img{width:min(100%,max(38vh,14rem)*var(--aspect))}
main{padding:.6rem}
section{padding:.9rem}
.facts th{width:38%}
.figures th,.figures td{padding-right:.5rem;font-size:.85rem}
.figures .of-scale{display:none}
}
p:last-child,figcaption:last-child{margin-bottom:0}
p span{white-space:nowrap}
sup{line-height:0}
pre{margin:0;overflow-x:auto;font:.85rem/1.5 ui-monospace,monospace}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def write_page(path: str | os.PathLike[str], title: str, parts: list[str]) -> None:
    """Writes a page as one HTML file, completely or not at all.

    Args:
      path: the file to write; an existing one is replaced.
      title: the heading, plain text.
      parts: the parts of the page in order, as HTML.
    """
    page = _PAGE.format(title=html.escape(title), style=_STYLE, body='\n'.join(parts))
    # Names of folders need not be UTF-8.
    files.write_atomically(path, page.encode('utf-8', 'replace'))


def banner(heading: str, text: str, *, may_be_shared: bool) -> str:
    """Returns the HTML at the top of a page, which says whether it may be shared, and why."""
    kind = 'private"' if may_be_shared else 'not-private" role="alert"'
    return f'<div class="banner {kind}><strong>{heading}</strong>{text}</div>'


def section(heading: str, content: str) -> str:
    """Returns a part of a page from its heading and content, all HTML."""
    return f'<section>\n<h2>{heading}</h2>\n{content}\n</section>'


def beside(picture: str, text: str) -> str:
    """Returns two sections beside each other where there is room: a narrow picture, and text."""
    return f'<div class="beside">\n{picture}\n{text}\n</div>'


def is_narrow(png: bytes) -> bool:
    """Whether a PNG is so much higher than wide that text should stand beside it.

    Raises:
      ValueError: if it is not a PNG.
    """
    width, height = _size(png)
    return width < _NARROW * height


def _size(png: bytes) -> tuple[int, int]:
    """Returns the width and the height of a PNG, in pixels, each at least 1."""
    # The signature, then the header: its length, its name, width and height.
    if not png.startswith(_PNG_SIGNATURE) or png[12:16] != b'IHDR' or len(png) < 24:
        raise ValueError(f'A picture must be a PNG. Received: {png[:8]!r}')
    width, height = struct.unpack('>II', png[16:24])
    return max(width, 1), max(height, 1)


def picture(png: bytes, alt: str, caption: str) -> str:
    """Returns a PNG as a figure that contains the picture itself.

    It is shown as wide as there is room for, but not higher than a part of the window.

    Args:
      png: the PNG file.
      alt: plain text in place of the picture.
      caption: plain text below the picture.

    Returns:
      HTML.

    Raises:
      ValueError: if it is not a PNG.
    """
    width, height = _size(png)
    data = base64.b64encode(png).decode('ascii')
    kind = 'smooth' if width > _SMOOTH_WIDTH or height > _SMOOTH_HEIGHT else 'crisp'
    return (
        f'<figure style="--aspect:{width / height:.4g}"><img class="{kind}" width="{width}" '
        f'height="{height}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
        f'<figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def facts(values: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Returns a table of values by key, with a label beside each key that has one, as HTML.

    A bound on epsilon that does not exist is null in JSON and 'none' in the table.
    """
    rows = []
    for key, content in values.items():
        code = f'<code>{html.escape(str(key))}</code>'
        shown = value(_with_none(key, content))
        rows.append(f'<tr><th>{labels.get(key, "")}{code}</th><td>{shown}</td></tr>')
    return '<table>\n' + '\n'.join(rows) + '\n</table>'


def _with_none(key: str, content: Any) -> Any:
    is_bound = str(key).startswith('epsilon')
    if isinstance(content, Mapping):
        return {k: _with_none(key if is_bound else k, item) for k, item in content.items()}
    return 'none' if content is None and is_bound else content


def value(content: Any) -> str:
    """Returns one value as HTML; lists and mappings become lists."""
    if isinstance(content, Mapping):
        items = [f'{html.escape(str(key))}: {value(item)}' for key, item in content.items()]
    elif isinstance(content, (list, tuple)):
        items = [value(item) for item in content]
    else:
        items = None
    if items is not None:
        return '<ul>' + ''.join(f'<li>{item}</li>' for item in items) + '</ul>'
    if content is None:
        return 'not given'
    if isinstance(content, bool):
        return 'yes' if content else 'no'
    return html.escape(str(content))


def is_number(content: Any) -> bool:
    """Whether this is a finite number of Python or NumPy; a boolean is not."""
    if isinstance(content, (bool, str, bytes)):
        return False
    try:
        return math.isfinite(content)
    except (TypeError, ValueError):
        return False
