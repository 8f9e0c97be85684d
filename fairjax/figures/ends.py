"""Ends: figures of the data before the first round and of results after the last."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from fairjax import checks
from fairjax.data import Shards
from fairjax.experiments import Comparison, Result
from fairjax.figures import style, texts
from fairjax.tables import number

ENDS = {"best": ("^", "#1b9e77"), "mean": ("o", "0.2"), "worst": ("v", "#d95f02")}
WITH_TEXT = 4.6  # inches, with a line of text beside the axes
MOST_NAMES = 20  # more names of classes would overlap
MOST_CELLS = 12  # most rows and columns of cells with counts written into them


def partition(shards: Shards, ax: Axes | None = None) -> Axes:
    """Draws how many examples each agent holds, of each class if there are classes.

    Args:
      shards: the shards of N agents, with C classes.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes, with a cell per agent and class, white where the agent has no example; without
      classes, one cell per agent.

    Examples:
      >>> import numpy as np
      >>> import fairjax as fj
      >>> train = fj.data.Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
      >>> partition(fj.data.Shards.from_indices(train, [[0, 1, 2], [5]])).get_xlabel()
      'class'
    """
    checks.kind("shards", shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
    has_classes = shards.data.num_classes is not None
    counts = shards.class_counts() if has_classes else np.asarray(shards.sizes)[:, None]
    num_agents, num_classes = counts.shape
    with style.styled():
        ax = style.axes_of(ax, height=float(np.clip(0.9 + 0.17 * num_agents, 1.6, 3.2)))
        # Start at a blue that is visible in print.
        shades = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0.15, 1, 256)))
        image = ax.imshow(
            np.ma.masked_equal(counts, 0), cmap=shades, vmin=0, aspect="auto",
            interpolation="none",
        )  # fmt: skip
        if max(counts.shape) <= MOST_CELLS:
            for (agent, label), count in np.ndenumerate(counts):
                shade = "white" if count > 0.6 * counts.max() else "0.15"
                ax.text(
                    label, agent, f"{count}" if count else "", color=shade, ha="center",
                    va="center", fontsize=6,
                )  # fmt: skip
        names = shards.data.class_names
        if names is not None and len(names) <= MOST_NAMES:
            named = [texts.plain(name, 14) for name in names]
            crowded = sum(map(len, named)) > 40
            ax.set_xticks(range(len(named)), named, rotation=45 if crowded else 0)
        elif has_classes:
            style.number_ticks(ax.xaxis, num_classes)
        else:
            ax.set_xticks([])
        style.number_ticks(ax.yaxis, num_agents)
        ax.set(xlabel="class" if has_classes else "all", ylabel="agent")
        ax.set_title(f"{num_agents:,} agent{'s' * (num_agents > 1)}, {counts.sum():,} examples")
        figure: Any = ax.figure
        bar = figure.colorbar(image, ax=ax, label="examples", pad=0.02, aspect=25)
        bar.outline.set_visible(False)
        bar.ax.yaxis.get_major_locator().set_params(integer=True)
    return ax


def fairness(result: Result, ax: Axes | None = None) -> Axes:
    """Draws final against standalone accuracy, one point per agent.

    The title gives the correlation and its 95% confidence interval over agents, of four or
    more; see `fairjax.metrics.fairness_interval`. Above the line an agent gains.

    Args:
      result: the result of an experiment.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes.

    Examples:
      >>> import fairjax as fj
      >>> result = fj.Experiment(num_agents=2, rounds=1, model="logistic").run()
      >>> fairness(result).get_xlabel()
      'standalone test accuracy (%)'
    """
    style.check_result(result)
    with style.styled():
        ax = style.axes_of(ax)
        shown = style.shown(result)
        alone, final = map(shown.scaled, (result.standalone_accuracies, result.accuracies))
        size, alpha = (36, 1.0) if len(alone) <= style.MOST_LINES else (10, 0.6)
        shades = style.colours(len(alone))
        ax.scatter(alone, final, s=size, c=shades, alpha=alpha, zorder=2, linewidths=0)
        level = float(shown.ends(alone)[0])
        ax.axline((level, level), slope=1, color="0.6", linewidth=0.8, zorder=0, label="as alone")
        ax.set(
            xlabel=f"standalone test {shown.axis}",
            ylabel=f"final test {shown.axis}",
            title=f"{texts.title(result)}\n{_describe_fairness(result)}",
        )
        ax.margins(0.12)
        style.legend(ax, result, points=True)
    return ax


def comparison(results: Mapping[str, Result], ax: Axes | None = None) -> Axes:
    """Draws final accuracies per mechanism, one point per agent, and its fairness beside them.

    A mechanism is fair if it spreads agents in the order of the first line, where they train
    alone. Its price is how far they end below the best mechanism. A bar is the mean over agents.
    Below fairness stand the mean gain over standalone and the largest shortfall.

    Args:
      results: results by mechanism, on the same shards.
      ax: where to draw; None: a new figure.

    Returns:
      The axes.

    Examples:
      >>> import fairjax as fj
      >>> experiment = fj.Experiment(num_agents=2, rounds=1, model="logistic")
      >>> comparison(fj.compare(experiment, ["cgsv", "fedavg"])).get_xlabel()
      'final test accuracy (%)'
    """
    style.check_results(results)
    first = next(iter(results.values()))
    rows = {"standalone": first.standalone_accuracies}
    rows |= {name: result.accuracies for name, result in results.items() if name not in rows}
    num_agents = len(first.shard_sizes)
    shown = style.shown(first)
    size, alpha = (26, 0.9) if num_agents <= style.MOST_LINES else (8, 0.4)
    with style.styled():
        ax = style.axes_of(ax, height=1.3 + 0.26 * len(rows), width=WITH_TEXT)
        for line, values in enumerate(map(shown.scaled, rows.values())):
            ax.scatter(
                values, np.full(num_agents, line), s=size, alpha=alpha, linewidths=0,
                c=style.colours(num_agents), zorder=2,
            )  # fmt: skip
            ax.plot(values.mean(), line, "|", color="0.1", markersize=11, zorder=3)
        style.name_lines(ax, list(rows))
        ax.set_xlabel(f"final test {shown.axis}")
        _write_beside(
            ax, [_describe_run(results[name]) if name in results else "" for name in rows]
        )
        experiment = first.experiment
        ax.set_title(texts.where(experiment))
        ax.plot([], [], "|", color="0.1", markersize=8, label="mean")
        style.legend(ax, first, points=True)
    return ax


def over_seeds(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Draws final accuracies per mechanism over seeds, and its fairness beside them.

    Each line has the best agent, the mean over agents and the worst agent: the mean over seeds,
    with a bar of one standard deviation to either side. Below fairness stand the means of the mean
    gain over standalone and of the largest shortfall.

    Args:
      comparison: what `fairjax.compare(..., seeds=...)` returned.
      ax: where to draw; None: a new figure.

    Returns:
      The axes.

    Examples:
      >>> import fairjax as fj
      >>> experiment = fj.Experiment(num_agents=2, rounds=1, model="logistic")
      >>> over_seeds(fj.compare(experiment, ["cgsv", "fedavg"], seeds=[0, 1])).get_xlabel()
      'final test accuracy (%)'
    """
    checks.kind("comparison", comparison, Comparison, "`fairjax.compare(..., seeds=range(5))`")
    rows = comparison.table().rows
    experiment = next(iter(comparison.sweeps.values())).experiments[0]
    column = experiment.shown.column
    with style.styled():
        ax = style.axes_of(ax, height=1.3 + 0.3 * len(rows), width=WITH_TEXT)
        for number, (name, (marker, shade)) in enumerate(ENDS.items()):
            for line, row in enumerate(rows):
                place = line + (number - 1) * 0.18
                style.draw_spread(
                    ax, row[f"{name}_{column}"], place, color=shade, marker=marker, markersize=4
                )
            ax.plot([], [], marker, color=shade, markersize=4, label=f"{name} of agents")
        style.name_lines(ax, [row["mechanism"] for row in rows])
        ax.set_xlabel(f"final test {experiment.shown.axis}")
        _write_beside(ax, [_describe_row(row, column) for row in rows])
        ax.set_title(f"{texts.where(experiment)}, {len(comparison.seeds)} seeds")
        figure: Any = ax.figure
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return ax


def _write_beside(ax: Axes, texts: list[str]) -> None:
    """Writes a text to the right of every line of an axis."""
    beside = ax.secondary_yaxis("right")
    beside.set_yticks(range(len(texts)), texts)
    beside.tick_params(length=0, labelsize=6)
    beside.spines["right"].set_visible(False)


def _describe_run(result: Result) -> str:
    """Returns fairness, and below it the mean gain and the largest shortfall."""
    return f"fairness {number(result.fairness)}\n{_describe_change(result)}"


def _describe_change(result: Result) -> str:
    shown, (gain, _) = style.shown(result), result.collaboration_gain
    return f"gain {shown.text(gain)}, shortfall {shown.text(result.shortfall.max())}"


def _describe_row(row: Mapping[str, Any], column: str) -> str:
    """Returns fairness over seeds, and below it the means of mean gain and largest shortfall."""
    gain, loss = (row[f"{name}_{column}"].mean for name in ("gain", "shortfall"))
    return f"fairness {row['fairness']}\ngain {gain:.3g}, shortfall {loss:.3g}"


def _describe_fairness(result: Result) -> str:
    """Returns a text with fairness and its interval, or why fairness is undefined."""
    if result.fairness_note:
        return f"undefined: {result.fairness_note}"
    low, high = result.fairness_interval
    interval = "" if np.isnan(low) else f", 95% interval {low:.3f} to {high:.3f}"
    correlation = f"fairness {result.fairness:.3f}{interval}"
    return f"{correlation}\ntau {result.rank_fairness:.3f}, {_describe_change(result)}"
