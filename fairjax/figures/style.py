"""Style: what all figures share: sizes, colours, legends, and writing to files."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fairjax import checks, files
from fairjax.experiments import Result
from fairjax.figures import texts
from fairjax.simulation import HONEST, History
from fairjax.tables import Spread
from fairjax.tasks import Shown

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
CORRELATIONS = (-1.05, 1.05)  # limits for bars of correlations
BEYOND: Any = {"color": "0.2", "markersize": 3, "label": "bar goes beyond the axis"}
ASIDE = (-1.78, -1.46)  # positions below correlations where undefined seeds are counted
MOST_LINES, MOST_NAMES = 20, 6  # most agents that are drawn, and named, one by one


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Applies fairjax's style to all that is drawn in the block."""
    with plt.rc_context(STYLE):
        yield
        interactive = plt.isinteractive()
    # A notebook turns interactive mode on with its first figure; leave it on after the block.
    matplotlib.interactive(interactive)


def check_result(result: Any) -> None:
    """Raises unless `result` is a `Result`."""
    checks.kind("result", result, Result, "`fairjax.Experiment(...).run()`")


def as_result(result: Any) -> Result:
    """Returns a result, made of a history without an experiment if that is given.

    Raises:
      ValueError: `result` is neither.
    """
    if not isinstance(result, History):
        check_result(result)
        return result
    num_agents = result.excluded.shape[1]
    history = jax.tree.map(np.asarray, result)
    nothing = np.full(num_agents, np.nan)
    return Result(None, history, None, nothing, nothing, (HONEST,) * num_agents)


def shown(result: Result) -> Shown:
    """Returns how a result's main metric is written."""
    if result.experiment is not None:
        return result.experiment.shown
    history = result.history
    for name, values in (history.metrics or {}).items():
        if np.array_equal(values, history.accuracies, equal_nan=True):
            return Shown.named(name)
    return Shown()


def check_results(results: Any) -> None:
    """Raises unless `results` maps mechanisms to results with the same number of agents."""
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


def axes_of(ax: Axes | None, height: float = 2.6, width: float = COLUMN) -> Axes:
    """Returns the axes, or axes of a new figure of this width and height in inches."""
    if ax is not None:
        checks.kind("ax", ax, Axes, "`matplotlib.pyplot.subplots`")
        return ax
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def colours(num_agents: int) -> Any:
    """Returns one colour per agent, from dark to light, so that they differ without hue."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.88, num_agents))


def some(num_agents: int, most: int) -> Sequence[int]:
    """Returns all agents if there are at most `most`, else the first, middle and last."""
    return range(num_agents) if num_agents <= most else (0, num_agents // 2, num_agents - 1)


def legend(ax: Axes, result: Result, points: bool = False) -> None:
    """Names agents by their colours below the figure; axes of one figure share the legend."""
    how: Any = {"linestyle": "", "marker": "o", "markersize": 5} if points else {}
    sizes = result.shard_sizes
    shades = colours(len(sizes))
    for agent in some(len(sizes), MOST_NAMES):
        label = f"agent {agent}"
        if result.experiment is not None:
            label += f": {sizes[agent]:,} examples"
        ax.plot([], [], color=shades[agent], label=label, **how)
    figure: Any = ax.figure
    for old in figure.legends:
        old.remove()
    name_series(figure, ncols=2)


def name_series(figure: Figure, ncols: int) -> None:
    """Adds a legend below a figure, with every label on its axes once."""
    entries = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols)


def name_lines(axis: Axes, names: Sequence[str]) -> None:
    """Gives the vertical axis one line per name, the first on top."""
    axis.set_yticks(range(len(names)), [texts.plain(name.replace("_", " ")) for name in names])
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
      spread: what to draw; if it has no mean, its text is written at the axis's start.
      place: the position on the axis without values.
      color: the colour of mean and bar.
      upright: whether values increase upwards; False: to the right.
      limits: where the bar is cut; an arrow marks a bar that goes further.
      marker: how the mean is drawn, as in `Axes.plot`.
    """
    if not spread.num:
        axis.annotate(
            str(spread), _order_by_axis(0.03, place, upright), color=color, fontsize=5, va="center",
            xycoords=_order_by_axis("axes fraction", "data", upright),
        )  # fmt: skip
        return
    whole = (spread.mean - spread.std, spread.mean + spread.std)
    ends = np.clip(whole, *limits)
    axis.plot(*_order_by_axis(ends, [place] * 2, upright), color=color, linewidth=1, zorder=1.8)
    for end, beyond, arrow in zip(ends, whole, "v^" if upright else "<>", strict=True):
        if np.isfinite(beyond) and end != beyond:
            axis.plot(*_order_by_axis(end, place, upright), arrow, **BEYOND)
    axis.plot(*_order_by_axis(spread.mean, place, upright), color=color, linestyle="", **marker)


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
      place: the position on the axis without values.
      color: the colour of mean, bar and count.
      upright: whether values increase upwards; False: to the right.
      aside: the position on the axis of values where undefined seeds are counted.
      marker: how the mean is drawn, as in `Axes.plot`.
    """
    how: Any = {"color": color, "upright": upright, **marker}
    if spread.num:
        draw_spread(axis, spread, place, limits=CORRELATIONS, **how)
    if spread.undefined or not spread.num:
        count = f"{spread.undefined} of {spread.of}" if spread.undefined else "no common seed"
        point = _order_by_axis(aside, place, upright)
        axis.plot(*point, color=color, linestyle="", **marker)
        axis.annotate(
            count, point, (4, 0), textcoords="offset points", color=color, fontsize=5, va="center"
        )


def correlation_axis(axis: Axes, word: str, *, upright: bool = False) -> None:
    """Prepares the axis of values for correlations, with a place aside for undefined seeds.

    Args:
      axis: the axes to prepare.
      word: the label for undefined seeds.
      upright: whether values increase upwards; False: to the right.
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


def _order_by_axis(value: Any, place: Any, upright: bool) -> Any:
    """Returns value and place in the order of horizontal and vertical axis."""
    return (place, value) if upright else (value, place)


def number_ticks(axis: Axis, num: int) -> None:
    """Puts ticks at all places of an axis if there are at most 12, else at some."""
    if num <= 12:
        axis.set_ticks(range(num))
    else:
        axis.set_major_locator(MaxNLocator(6, integer=True))


def write(figure: Figure, path: Path) -> Path:
    """Writes a figure in the format that the path's ending names, closes it, returns the path.

    Raises:
      ValueError: `figure` is not a figure, or `path` is not a file of a known format in an
        existing directory.
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
    """Returns a figure as an `<svg>` element for HTML, with text kept as text.

    Args:
      figure: the figure; it is not closed.
      prefix: the start of its ids, different for every figure on the page.
    """
    checks.kind("figure", figure, Figure, "`matplotlib.pyplot.figure`")
    checks.kind("prefix", prefix, str, "'name'")
    page, metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with plt.rc_context({**STYLE, "svg.fonttype": "none", "svg.hashsalt": "fairjax"}):
        figure.savefig(page, format="svg", metadata=metadata)
    text = page.getvalue()
    # Within HTML the element needs no document type and no namespaces.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
