"""Page: makes pieces of HTML from sentences, tables and figures, and a page from pieces.

These functions escape all text that they receive; only they write tags.
"""

import html
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from fairjax import checks, figures, files
from fairjax.experiments import records

TEMPLATE = Path(__file__).with_name("page.html")
MOST_ROWS = 50  # tables with more agents show only some of them


class Section(NamedTuple):
    """A part of a page: its name for links, its heading and its HTML."""

    name: str
    heading: str
    pieces: Sequence[str]


def checked_folder(out: Any) -> Path:
    """Returns a directory as a path; raises if it is none."""
    folder = checks.path("out", out)
    if not folder.is_dir():
        raise ValueError(f"`out` must be a directory, got {folder}.")
    return folder


def with_records(out: Any) -> Path:
    """Returns a directory, or raises if it does not hold the records of a run or comparison."""
    out = checked_folder(out)
    if not any((out / name).exists() for name in (records.EXPERIMENT, records.COMPARISON)):
        raise ValueError(f"`out` must be the directory of a run or comparison, got {out}.")
    return out


def text(sentence: str, soft: bool = False) -> str:
    """Returns a paragraph; a soft one is small and grey, for remarks."""
    return f"<p{' class=soft' * soft}>{html.escape(sentence)}</p>"


def facts(entries: Mapping[str, tuple[str, str]]) -> str:
    """Returns cards with the main figures; `entries` maps names to pairs (figure, remark)."""
    cards = [
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(figure)}"
        f"<small>{html.escape(remark)}</small></dd></div>"
        for name, (figure, remark) in entries.items()
    ]
    return f'<dl class="facts">{"".join(cards)}</dl>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    """Returns a table of numbers, or of words, with a heading per column."""
    lines = [_row("th", headings), *(_row("td", row) for row in rows)]
    body = f"<thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody>"
    return f'<div class="box"><table{" class=words" * words}>{body}</table></div>'


def agent_table(
    headings: Sequence[str], num_agents: int, row: Callable[[int], Sequence[str]]
) -> str:
    """Returns a table with one row per agent; if there are many, only some have a row."""
    agents, remark = range(num_agents), ""
    if num_agents > MOST_ROWS:
        agents = np.linspace(0, num_agents - 1, MOST_ROWS // 2).round().astype(int).tolist()
        remark = text(
            f"{len(agents)} of {num_agents:,} agents, evenly spread; the records have all.",
            soft=True,
        )
    return table(("agent", *headings), [(str(one), *row(one)) for one in agents]) + remark


def figure(axes: Axes, name: str, caption: str, folder: Path) -> str:
    """Returns a figure as SVG with a caption, writes it as PNG to a folder, and closes it."""
    drawn: Any = axes.figure
    drawing = figures.svg(drawn, name).replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(caption)}"', 1
    )
    drawn.set_layout_engine("none")  # it is laid out already
    folder.mkdir(parents=True, exist_ok=True)
    figures.write(drawn, folder / f"{name}.png")
    return f"<figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"


def pair(*pieces: str) -> str:
    """Returns pieces side by side, if the page is wide enough."""
    return f'<div class="pair">{"".join(f"<div>{piece}</div>" for piece in pieces)}</div>'


def code(lines: str) -> str:
    """Returns lines of code; one click selects all of them."""
    return f"<pre><code>{html.escape(lines)}</code></pre>"


def write(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes a page, and returns its path."""
    links = "".join(f'<a href="#{one.name}">{html.escape(one.heading)}</a>' for one in sections)
    body = [f"<h1>{html.escape(title)}</h1>", text(lead, soft=True), f"<nav>{links}</nav>"]
    for one in sections:
        heading = f"<h2>{html.escape(one.heading)}</h2>"
        body.append(f'<section id="{one.name}">{heading}{"".join(one.pieces)}</section>')
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    content = template.substitute(title=html.escape(title), body="\n".join(body))
    files.write(path, content)
    return path


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
