"""Self-contained HTML pages: one file, one style, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["document", "facts", "section", "table"]

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --muted: #777; }
@media (prefers-color-scheme: dark) { :root { --muted: #999; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p { margin: .3rem 0; } .muted { color: var(--muted); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--soft); white-space: nowrap; }
th { font-weight: 600; border-bottom-color: var(--line); } .text { text-align: left; }
.scroll { overflow-x: auto; } .row { display: flex; flex-wrap: wrap; gap: 1.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; }
svg { max-width: 100%; height: auto; } svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
.bar { fill: #0072b2; } details { margin-top: 1rem; } summary { cursor: pointer; }
"""


def document(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """A whole page; `sections` are HTML, everything else is text and gets escaped."""
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="muted">{escape(subtitle)}</p>\n'
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A heading and the HTML below it."""
    return f"<h2>{escape(heading)}</h2>\n" + "\n".join(parts)


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """What, and how much, in two columns of text."""
    inside = "".join(f"<dt>{escape(what)}</dt><dd>{escape(much)}</dd>" for what, much in rows)
    return f"<dl>{inside}</dl>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Text cells; after `text_columns`, columns hold numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        classes = [' class="text"' if k < text_columns else "" for k in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{c}>{escape(x)}</{tag}>" for c, x in zip(classes, cells, strict=True)) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>\n<thead>{line(columns, "th")}</thead>\n<tbody>\n{body}\n</tbody></table></div>'
