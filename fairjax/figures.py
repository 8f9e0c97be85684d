"""Figures: draw results; compute nothing. One question each, matplotlib axes returned.

accuracy     how good are the agents' models, round by round?
importance   who matters, round by round?
fairness     who is better alone, is he paid the better model?
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fairjax.results import Result

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


def accuracy(result: Result, ax: Axes | None = None) -> Axes:
    """Draws every agent's test accuracy over rounds, and what it reaches alone.

    Args:
      result: of an experiment.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes.

    Examples:
      >>> import fairjax as fj
      >>> result = fj.Experiment(num_agents=2, rounds=1, model="logistic").run()
      >>> accuracy(result).get_ylabel()
      'test accuracy (%)'
    """
    with plt.rc_context(STYLE):
        ax = _axes(ax)
        evaluated = np.flatnonzero(np.isfinite(result.history.accuracies).all(1))
        for agent, colour in enumerate(_colours(result)):
            values = 100 * result.history.accuracies[evaluated, agent]
            ax.plot(evaluated + 1, values, color=colour, marker="o" * (len(evaluated) == 1))
            alone = 100 * result.standalone_accuracies[agent]
            ax.axhline(alone, color=colour, linestyle=(0, (1, 2)), linewidth=1)
        ax.set(xlabel="round", ylabel="test accuracy (%)", title=_title(result))
        ax.plot([], [], color="0.4", linestyle=(0, (1, 2)), linewidth=1, label="alone")
        _legend(ax, result)
    return ax


def importance(result: Result, ax: Axes | None = None) -> Axes:
    """Draws every agent's importance coefficient over rounds.

    Args:
      result: of an experiment whose mechanism judges.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes; they say so where the mechanism does not judge.

    Examples:
      >>> import fairjax as fj
      >>> result = fj.Experiment(num_agents=2, rounds=1, model="logistic").run()
      >>> importance(result).get_ylabel()
      'importance'
    """
    with plt.rc_context(STYLE):
        ax = _axes(ax)
        values = result.history.importance
        num_rounds, num_agents = values.shape
        for agent, colour in enumerate(_colours(result)):
            marker = "o" * (num_rounds == 1)
            ax.plot(np.arange(num_rounds) + 1, values[:, agent], color=colour, marker=marker)
        ax.axhline(1 / num_agents, color="0.6", linewidth=0.8, zorder=0, label="equal")
        if np.isnan(values).all():
            ax.text(0.5, 0.4, "this mechanism does not judge", transform=ax.transAxes, ha="center")
        ax.set(xlabel="round", ylabel="importance", title=_title(result))
        _legend(ax, result)
    return ax


def fairness(result: Result, ax: Axes | None = None) -> Axes:
    """Draws final against standalone accuracy, one point per agent.

    Args:
      result: of an experiment.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes.

    Examples:
      >>> import fairjax as fj
      >>> result = fj.Experiment(num_agents=2, rounds=1, model="logistic").run()
      >>> fairness(result).get_xlabel()
      'standalone test accuracy (%)'
    """
    with plt.rc_context(STYLE):
        ax = _axes(ax)
        alone, final = 100 * result.standalone_accuracies, 100 * result.accuracies
        for agent, colour in enumerate(_colours(result)):
            ax.scatter(alone[agent], final[agent], s=36, color=colour, zorder=2)
        value = result.fairness_note or f"fairness {result.fairness:.3f}"
        ax.set(
            xlabel="standalone test accuracy (%)",
            ylabel="final test accuracy (%)",
            title=f"{_title(result)}: {value}",
        )
        ax.margins(0.12)
        _legend(ax, result)
    return ax


def save(result: Result, folder: Path) -> list[Path]:
    """Writes all figures of a result as PNG below `folder`, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for draw in (accuracy, importance, fairness):
        figure: Any = draw(result).figure
        paths.append(write(figure, folder / f"{draw.__name__}.png"))
    return paths


def name_lines(axis: Axes, names: Sequence[str]) -> None:
    """Makes the vertical axis one line per name, the first on top."""
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(axis="y", color="0.92", zorder=0)
    axis.tick_params(axis="y", length=0)


def write(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, closes it, and returns the path."""
    with plt.rc_context(STYLE):
        figure.savefig(path)
    plt.close(figure)
    return path


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    return plt.subplots(figsize=(COLUMN, 2.6), layout="constrained")[1]


def _title(result: Result) -> str:
    experiment = result.experiment
    return f"{experiment.mechanism}, {experiment.dataset}, {experiment.split.replace('_', ' ')}"


def _colours(result: Result) -> Any:
    """Returns one colour per agent, dark to light along its number; told apart without hue."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(result.shard_sizes)))


def _legend(ax: Axes, result: Result) -> None:
    sizes, colours = result.shard_sizes, _colours(result)
    shown = range(len(sizes)) if len(sizes) <= 10 else (0, len(sizes) // 2, len(sizes) - 1)
    for agent in shown:
        ax.plot([], [], color=colours[agent], label=f"agent {agent}: {sizes[agent]:,} examples")
    figure: Any = ax.figure
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
