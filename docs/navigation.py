"""A hook of mkdocs: pages of docs/ that mkdocs.yml does not name come last in the navigation."""

from __future__ import annotations

import pathlib
from typing import Any


def on_config(config: Any) -> Any:
    """Adds them; mkdocs calls it before it builds."""
    named = set(_pages(config['nav']))
    pages = sorted(path.name for path in pathlib.Path(config['docs_dir']).glob('*.md'))
    others = [name for name in pages if name not in named]
    if others:
        config['nav'].append({'More': others})
    return config


def _pages(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    items = item.values() if isinstance(item, dict) else item
    return [name for one in items for name in _pages(one)]
