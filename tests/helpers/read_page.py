"""Reads a page of a run as a browser would: tags, attributes, visible text."""

import html.parser
import re


class Parsed(html.parser.HTMLParser):
    """Checks nesting; collects tags, attributes, ids and visible text."""

    _VOID = {'meta', 'img'}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ''
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {'style', 'title'} & set(self.open):
            self.text += data


def text(page):
    """Returns the visible text, with single spaces."""
    return ' '.join(Parsed(page).text.split())


def check_stands_alone(page):
    """Fails unless the page needs nothing from outside."""
    parsed = Parsed(page)
    assert not {'script', 'link', 'iframe', 'object'} & set(parsed.tags)
    links = [v for k, v in parsed.attributes if k in ('src', 'href', 'xlink:href', 'action')]
    assert links
    assert all(link.startswith(('#', 'data:image/png;base64,')) for link in links)
    assert "default-src 'none'" in page
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', '', page)
    assert '://' not in without_namespaces
    assert '@import' not in page
