"""Rounds: figures of one result whose horizontal axis is the round.

A cross marks a round in which an agent's upload was excluded.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairjax.experiments import Result
from fairjax.figures import style, texts
from fairjax.simulation import History

DOTTED: Any = {"linestyle": (0, (1, 2)), "linewidth": 1}


def accuracy(result: Result | History, ax: Axes | None = None) -> Axes:
    """Draws every agent's test accuracy over rounds, and its standalone accuracy.

    If the task's main metric is another one, it is drawn.

    Args:
      result: the result of an experiment, or the history that `fairjax.run` returned.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes.

    Examples:
      >>> import fairjax as fj
      >>> result = fj.Experiment(num_agents=2, rounds=1, model="logistic").run()
      >>> accuracy(result).get_ylabel()
      'test accuracy (%)'
    """
    result = style.as_result(result)
    with style.styled():
        ax = style.axes_of(ax)
        shown = style.shown(result)
        _draw_lines(ax, result, shown.scaled(result.history.accuracies))
        num_agents = len(result.shard_sizes)
        shades = style.colours(num_agents)
        for agent in style.some(num_agents, style.MOST_LINES):
            alone = shown.scaled(result.standalone_accuracies[agent])
            ax.axhline(alone, color=shades[agent], **DOTTED)
        ax.set(xlabel="round", ylabel=f"test {shown.axis}", title=texts.title(result))
        if np.isfinite(result.standalone_accuracies).any():
            ax.plot([], [], color="0.4", label="alone", **DOTTED)
        style.legend(ax, result)
    return ax


def contributions(result: Result | History, ax: Axes | None = None) -> Axes:
    """Draws what every agent's upload was worth, round by round.

    Args:
      result: the result of an experiment whose mechanism judges, or its history.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes, with a note if the mechanism does not judge.

    Examples:
      >>> import fairjax as fj
      >>> result = fj.Experiment(num_agents=2, rounds=1, model="logistic").run()
      >>> contributions(result).get_ylabel()
      'contribution'
    """
    result = style.as_result(result)
    with style.styled():
        ax = style.axes_of(ax)
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        _draw_judgement(ax, result, result.history.contributions, "contribution")
        style.legend(ax, result)
    return ax


def importance(result: Result | History, ax: Axes | None = None) -> Axes:
    """Draws every agent's importance coefficient over rounds.

    Args:
      result: the result of an experiment whose mechanism judges, or its history.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes, with a note if the mechanism does not judge.

    Examples:
      >>> import fairjax as fj
      >>> result = fj.Experiment(num_agents=2, rounds=1, model="logistic").run()
      >>> importance(result).get_ylabel()
      'importance'
    """
    result = style.as_result(result)
    with style.styled():
        ax = style.axes_of(ax)
        equal = 1 / len(result.shard_sizes)
        ax.axhline(equal, color="0.6", linewidth=0.8, zorder=0, label="equal")
        _draw_judgement(ax, result, result.history.importance, "importance")
        style.legend(ax, result)
    return ax


def reward_fractions(result: Result | History, ax: Axes | None = None) -> Axes:
    """Draws the share of the aggregate that every agent was paid, round by round.

    Args:
      result: the result of an experiment, or the history that `fairjax.run` returned.
      ax: where to draw; None: a new figure one column wide.

    Returns:
      The axes, with a note if the mechanism does not judge.

    Examples:
      >>> import fairjax as fj
      >>> result = fj.Experiment(num_agents=2, rounds=1, model="logistic").run()
      >>> reward_fractions(result).get_ylabel()
      'reward fraction'
    """
    result = style.as_result(result)
    with style.styled():
        ax = style.axes_of(ax)
        _draw_judgement(ax, result, result.history.fractions, "reward fraction")
        ax.set_ylim(-0.03, 1.05)
        style.legend(ax, result)
    return ax


def _draw_judgement(ax: Axes, result: Result, values: np.ndarray, name: str) -> None:
    _draw_lines(ax, result, values)
    if np.isnan(values).all():
        ax.text(0.5, 0.4, "this mechanism does not judge", transform=ax.transAxes, ha="center")
    ax.set(xlabel="round", ylabel=name, title=texts.title(result))


def _draw_lines(ax: Axes, result: Result, values: np.ndarray) -> None:
    """Draws values `[T, N]` over rounds, a line per agent; nan marks rounds without a value.

    With many agents only some have a line. Two bands show all agents: from the least to the
    greatest value, and the middle half.
    """
    finite = np.isfinite(values)
    known = np.flatnonzero(finite.any(1))
    num_rounds, num_agents = values.shape
    shown = style.some(num_agents, style.MOST_LINES)
    if len(shown) < num_agents and len(known):
        levels = np.nanquantile(values[known], (0, 0.25, 0.75, 1), axis=1)
        band: Any = {"color": "0.5", "linewidth": 0, "zorder": 0.5}
        ax.fill_between(known + 1, levels[0], levels[3], alpha=0.2, label="all agents", **band)
        ax.fill_between(known + 1, levels[1], levels[2], alpha=0.35, label="middle half", **band)
    shades = style.colours(num_agents)
    crosses: Any = {"marker": "x", "s": 14, "linewidth": 1}
    for agent in shown:
        own = np.flatnonzero(finite[:, agent])
        ax.plot(own + 1, values[own, agent], color=shades[agent], marker="o" * (len(own) == 1))
        excluded = np.flatnonzero(result.history.excluded[:, agent])
        if len(excluded) and len(own):
            heights = np.interp(excluded, own, values[own, agent])
            ax.scatter(excluded + 1, heights, color=shades[agent], zorder=3, **crosses)
    if result.history.excluded.any():
        ax.scatter([], [], color="0.4", label="upload excluded", **crosses)
    # Crosses of agents without a line, or without known values, go to the bottom.
    hidden = [agent for agent in range(num_agents) if agent not in shown or not len(known)]
    rest = np.flatnonzero(result.history.excluded[:, hidden].any(1))
    ax.scatter(
        rest + 1, np.full(len(rest), 0.02), color="0.4", transform=ax.get_xaxis_transform(),
        **crosses,
    )  # fmt: skip
    ax.set_xlim(0.5, num_rounds + 0.5)
    ax.xaxis.set_major_locator(
        MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
