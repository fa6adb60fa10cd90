"""HTML that stands by itself: the style, and tables whose texts are escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What the page may load: nothing."""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document."""
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}\n</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A heading and what is below it; nothing where there is no content."""
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False, kind: str = "") -> str:
    """A table of texts; with `numbers` all cells but the first of a row are aligned as numbers. Empty without rows."""
    body = "".join(f"<tr>{_cells(row, numbers)}</tr>" for row in rows)
    if not body:
        return ""
    head = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>" if header else ""
    return f'<div class="wide {kind}"><table>{head}{body}</table></div>'


def _cells(row: Sequence[str], numbers: bool) -> str:
    first, *others = row
    mark = ' class="number"' if numbers else ""
    return f"<td>{escape(first)}</td>" + "".join(f"<td{mark}>{escape(cell)}</td>" for cell in others)


def card(name: str, value: str, below: str = "") -> str:
    """A headline figure."""
    return f'<div class="card"><span class="soft">{escape(name)}</span><b>{escape(value)}</b><small>{escape(below)}</small></div>'
