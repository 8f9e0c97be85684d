"""Audits: a figure of what cheating pays."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fairjax import checks
from fairjax.experiments import Audit
from fairjax.figures import style, texts

LINEAR = 2.0  # points around zero that are drawn to scale; larger ones on a logarithmic one


def audit(audit: Audit, ax: Axes | None = None) -> Axes:
    """Draws what every manipulation gains the agent that cheats, and costs the others.

    A filled point is the gain of an agent that cheats, right of the line if cheating pays, with a
    bar of one standard error. A hollow one is the gain of the other agent that loses most by it.
    A gain that is infinite, since a model diverged, has no point.

    Args:
      audit: what `fairjax.audit` returned.
      ax: where to draw; None: a new figure.

    Returns:
      The axes, with one line per manipulation.

    Examples:
      >>> import fairjax as fj
      >>> experiment = fj.Experiment(num_agents=2, rounds=1, model="logistic", mechanism="fedavg")
      >>> found = fj.audit(experiment, ["sign_flip"], seeds=[0, 1])
      >>> fj.figures.audit(found).get_xlabel()
      'gain by cheating (points)'
    """
    checks.kind("audit", audit, Audit, "`fairjax.audit(fairjax.Experiment())`")
    rows, shown = audit.rows(), audit.experiment.shown
    names = list(dict.fromkeys(row["manipulation"] for row in rows))
    agents = list(dict.fromkeys(row["agent"] for row in rows))
    shades = style.colours(audit.experiment.num_agents)
    with style.styled():
        ax = style.axes_of(ax, height=1.2 + 0.24 * len(names), width=4.6)
        ax.set_xscale("symlog", linthresh=LINEAR)
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        for row in rows:
            shift = 0.5 * (agents.index(row["agent"]) + 0.5) / len(agents) - 0.25
            place, colour = names.index(row["manipulation"]) + shift, shades[row["agent"]]
            error = np.nan_to_num(row["own_gain_se"])
            ax.plot(row["own_gain"] + np.array([-error, error]), [place] * 2, color=colour)
            ax.plot(row["own_gain"], place, "o", color=colour, markersize=3.5)
            ax.plot(
                row["worst_other"], place, "o", color=colour, markersize=3.5, markerfacecolor="none"
            )
        if not any(row["own_gain"] or row["worst_other"] for row in rows):
            ax.set_xlim(-LINEAR, LINEAR)  # matplotlib would draw rounding errors
        style.name_lines(ax, names)
        unit = "points" if shown.in_percent else shown.words
        ax.set_xlabel(f"gain by cheating ({unit})")
        experiment = audit.experiment
        ax.set_title(
            f"{texts.mechanism(experiment)}, {texts.where(experiment)}, "
            f"{len(audit.seeds)} seed{'s' * (len(audit.seeds) > 1)}"
        )
        ax.plot([], [], "o", color="0.4", markersize=3.5, label="of the agent that cheats")
        ax.plot(
            [], [], "o", color="0.4", markersize=3.5, markerfacecolor="none",
            label="of the other agent that loses most",
        )  # fmt: skip
        if len(agents) <= style.MOST_LINES:
            for agent in agents:
                ax.plot([], [], "s", color=shades[agent], markersize=3.5, label=f"by agent {agent}")
        figure: Any = ax.figure
        if not figure.legends:  # axes of one figure share one
            style.name_series(figure, ncols=2)
    return ax
