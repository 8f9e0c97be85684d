"""Style: what all figures share. Sizes, colours, legends, and how a figure is written."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fairjax import checks, files
from fairjax.experiments import Result
from fairjax.tables import Spread

COLUMN = 3.4  # inches, one column of a two-column paper
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.4,
    "savefig.dpi": 200,
}
CORRELATIONS = (-1.05, 1.05)  # the ends of their bars
BEYOND: Any = {"color": "0.2", "markersize": 3, "label": "bar goes beyond the axis"}
ASIDE = (-1.78, -1.46)  # where, below correlations, undefined seeds are counted
MOST_LINES, MOST_NAMES = 20, 6  # agents that are drawn, and named, one by one


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Has what is drawn within look alike."""
    with plt.rc_context(STYLE):
        yield
        interactive = plt.isinteractive()
    # A notebook turns it on with its first figure: it must not be forgotten again.
    matplotlib.interactive(interactive)


def check_result(result: Any) -> None:
    """Raises unless there is a result to draw."""
    checks.kind("result", result, Result, "`fairjax.Experiment(...).run()`")


def check_results(results: Any) -> None:
    """Raises unless there are results by mechanism, of one number of agents."""
    if not isinstance(results, Mapping) or not results:
        raise ValueError(
            "`results` must be a dict of results by mechanism, at least one, as "
            f"`fairjax.compare` makes one, got {results!r:.100}."
        )
    for name, result in results.items():
        checks.kind(f"results[{name!r}]", result, Result, "`fairjax.compare`")
    numbers = {name: len(result.shard_sizes) for name, result in results.items()}
    if len(set(numbers.values())) > 1:
        raise ValueError(f"`results` must be of the same agents, got {numbers} agents.")


def axes_of(ax: Axes | None, height: float = 2.6) -> Axes:
    """Returns the axes, or those of a new figure one column wide and some inches high."""
    if ax is not None:
        checks.kind("ax", ax, Axes, "`matplotlib.pyplot.subplots`")
        return ax
    return plt.subplots(figsize=(COLUMN, height), layout="constrained")[1]


def title(result: Result) -> str:
    """Returns what a result is of."""
    experiment = result.experiment
    mechanism, dataset = experiment.label("mechanism"), experiment.label("dataset")
    return f"{mechanism}, {dataset}, {split(experiment)}"


def split(experiment: Any) -> str:
    """Returns how data were shared out."""
    return experiment.label("split").replace("_", " ")


def colours(num_agents: int) -> Any:
    """Returns one colour per agent, dark to light along its number; told apart without hue."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.88, num_agents))


def some(num_agents: int, most: int) -> Sequence[int]:
    """Returns all agents where they are not too many, else the first, middle and last."""
    return range(num_agents) if num_agents <= most else (0, num_agents // 2, num_agents - 1)


def legend(ax: Axes, result: Result, points: bool = False) -> None:
    """Names agents by their colours, below the figure; axes of one figure share the legend."""
    how: Any = {"linestyle": "", "marker": "o", "markersize": 5} if points else {}
    sizes = result.shard_sizes
    shades = colours(len(sizes))
    for agent in some(len(sizes), MOST_NAMES):
        label = f"agent {agent}: {sizes[agent]:,} examples"
        ax.plot([], [], color=shades[agent], label=label, **how)
    figure: Any = ax.figure
    for old in figure.legends:
        old.remove()
    name_series(figure, ncols=2)


def name_series(figure: Figure, ncols: int) -> None:
    """Names all that is labelled on the axes of a figure, once each, below them."""
    entries = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols)


def name_lines(axis: Axes, names: Sequence[str]) -> None:
    """Makes the vertical axis one line per name, the first on top."""
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", color="0.92", zorder=0)
    axis.tick_params(axis="y", length=0)


def draw_spread(
    axis: Axes,
    spread: Spread,
    place: float,
    *,
    color: Any,
    upright: bool = False,
    limits: tuple[float, float] = (-np.inf, np.inf),
    **marker: Any,
) -> None:
    """Draws a mean and a bar of one standard deviation to either side.

    Args:
      axis: where to draw.
      spread: what to draw; where it has no mean, its words are written at the axis's start.
      place: where along the axis that has no values.
      color: of all that is drawn.
      upright: values go up; False: to the right.
      limits: where the bar ends; an arrow there says that it goes on.
      marker: how the mean is drawn, as in `Axes.plot`.
    """
    if not spread.num:
        axis.annotate(
            str(spread), _in_order(0.03, place, upright), color=color, fontsize=5, va="center",
            xycoords=_in_order("axes fraction", "data", upright),
        )  # fmt: skip
        return
    whole = (spread.mean - spread.std, spread.mean + spread.std)
    ends = np.clip(whole, *limits)
    axis.plot(*_in_order(ends, [place] * 2, upright), color=color, linewidth=1, zorder=1.8)
    for end, beyond, arrow in zip(ends, whole, "v^" if upright else "<>", strict=True):
        if np.isfinite(beyond) and end != beyond:
            axis.plot(*_in_order(end, place, upright), arrow, **BEYOND)
    axis.plot(*_in_order(spread.mean, place, upright), color=color, linestyle="", **marker)


def draw_correlation(
    axis: Axes,
    spread: Spread,
    place: float,
    *,
    color: Any,
    upright: bool = False,
    aside: float = ASIDE[0],
    **marker: Any,
) -> None:
    """Draws a spread of correlations on a `correlation_axis`, and counts undefined seeds aside.

    Args:
      axis: where to draw.
      spread: what to draw.
      place: where along the axis that has no values.
      color: of all that is drawn.
      upright: values go up; False: to the right.
      aside: where along the axis of values undefined seeds are counted.
      marker: how the mean is drawn, as in `Axes.plot`.
    """
    how: Any = {"color": color, "upright": upright, **marker}
    if spread.num:
        draw_spread(axis, spread, place, limits=CORRELATIONS, **how)
    if spread.undefined or not spread.num:
        count = f"{spread.undefined} of {spread.of}" if spread.undefined else "no common seed"
        point = _in_order(aside, place, upright)
        axis.plot(*point, color=color, linestyle="", **marker)
        axis.annotate(
            count, point, (4, 0), textcoords="offset points", color=color, fontsize=5, va="center"
        )


def correlation_axis(axis: Axes, word: str, *, upright: bool = False) -> None:
    """Makes the axis of values one of correlations, with a place aside for undefined seeds.

    Args:
      axis: whose axis it is.
      word: what an undefined seed is.
      upright: values go up; False: to the right.
    """
    ticks, texts = [np.mean(ASIDE), -1, 0, 1], [word.replace(" ", "\n"), "−1", "0", "1"]
    how: Any = {"color": "0.85", "linewidth": 0.8, "zorder": 0}
    if upright:
        axis.set_ylim(-1.9, 1.12)
        axis.set_yticks(ticks, texts)
        axis.axhline(CORRELATIONS[0] - 0.07, **how)
    else:
        axis.set_xlim(-1.9, 1.12)
        axis.set_xticks(ticks, texts)
        axis.axvline(CORRELATIONS[0] - 0.07, **how)


def _in_order(value: Any, place: Any, upright: bool) -> Any:
    """Returns what belongs to the horizontal axis, then what belongs to the vertical one."""
    return (place, value) if upright else (value, place)


def number_ticks(axis: Axis, num: int) -> None:
    """Names all of a few places along an axis, or some of many."""
    if num <= 12:
        axis.set_ticks(range(num))
    else:
        axis.set_major_locator(MaxNLocator(6, integer=True))


def write(figure: Figure, path: Path) -> Path:
    """Writes a figure in the format that the path's ending names, closes it, returns the path.

    Raises:
      ValueError: there is no figure, or the path is no file of a known format in a directory.
    """
    checks.kind("figure", figure, Figure, "`matplotlib.pyplot.figure`")
    path = checks.path("path", path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"`path` must be a file in a directory that exists, got {path}.")
    known = figure.canvas.get_supported_filetypes()
    checks.choice("ending of `path`", path.suffix[1:] or "png", known)
    with styled(), files.replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png")
    plt.close(figure)
    return path


def svg(figure: Figure, prefix: str) -> str:
    """Returns a figure as an `<svg>` element to be put into HTML, its text as text.

    Args:
      figure: the figure; it is not closed.
      prefix: what its ids begin with, unlike those of other figures on the page.
    """
    checks.kind("figure", figure, Figure, "`matplotlib.pyplot.figure`")
    checks.kind("prefix", prefix, str, "'name'")
    page, metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with plt.rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": "fairjax"}):
        figure.savefig(page, format="svg", metadata=metadata)
    text = page.getvalue()
    # An element of HTML needs neither a document type nor namespaces.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
