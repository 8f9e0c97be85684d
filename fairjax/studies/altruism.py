"""Altruism: how the altruism degree beta changes fairness and accuracy."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fairjax.experiments import WORDS, Experiment, sweep
from fairjax.figures import (
    ASIDE,
    correlation_axis,
    draw_correlation,
    draw_spread,
    name_series,
    styled,
)
from fairjax.studies import grid
from fairjax.studies.base import SEEDS, Cell, Rows, Study, sweep_cell
from fairjax.tables import Spread, Table, spreads

BETAS = (0.5, 1.0, 1.2, 1.5, 2.0, 1e7)  # the paper's
FAIRNESS = {
    "fairness": ("paid models", "#0072b2"),
    "fairness_trained": ("after local epochs", "#999999"),
}
ACCURACIES = {
    "best_%": ("best agent", "o"),
    "mean_%": ("mean", "s"),
    "worst_%": ("worst agent", "^"),
}
SHIFTS = (-0.09, 0.0, 0.09)  # shifts of bars, so that they do not hide each other


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every data set and split of images."""
    made = []
    for setting in grid.QUICK[:1] if quick else grid.PAPER[:4]:
        for split in ("power_law", "class_imbalance"):
            experiment = Experiment(
                dataset=setting.dataset,
                num_agents=setting.num_agents,
                split=split,
                eval_every=setting.fields["rounds"],
                **setting.fields,
            )
            name = f"beta-{setting.dataset}-{setting.num_agents}-{split}"
            run = functools.partial(_run, experiment)
            made.append(sweep_cell(name, experiment, run, SEEDS, beta=BETAS))
    return made


def _run(experiment: Experiment) -> Rows:
    where = {
        "dataset": experiment.dataset,
        "num_agents": experiment.num_agents,
        "split": experiment.split,
    }
    rows = sweep(experiment, seeds=SEEDS, beta=BETAS).rows()
    return [{**where, **row} for row in rows]


def tables(rows: Rows) -> dict[str, Table]:
    """Returns one row for every data set, split and beta."""
    panel = ("dataset", "num_agents", "split")
    return {"Altruism": spreads(rows, (*panel, "beta"), grid.VALUES, apart=panel, words=WORDS)}


def draw(found: Mapping[str, Table]) -> Figure:
    """Draws fairness, and worst, mean and best accuracy, over beta."""
    (table,) = found.values()
    keys = ("dataset", "num_agents", "split")
    panels = list(dict.fromkeys(tuple(row[key] for key in keys) for row in table.rows))
    places = list(range(len(BETAS)))
    labels = [f"{beta:g}" for beta in BETAS[:-1]] + ["10⁷"]
    with styled():
        figure, axes = plt.subplots(
            2, len(panels), figsize=(0.6 + 2.9 * len(panels), 4.4), sharex=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for column, panel in enumerate(panels):
            rows = [row for row in table.rows if tuple(row[key] for key in keys) == panel]
            top, bottom = axes[:, column]
            for (name, (label, colour)), aside in zip(FAIRNESS.items(), ASIDE, strict=True):
                add = functools.partial(draw_correlation, aside=aside, marker="o")
                _draw_line(top, [row[name] for row in rows], 0.0, add, color=colour, label=label)
            correlation_axis(top, WORDS["fairness"], upright=True)
            for (name, (label, marker)), shift in zip(ACCURACIES.items(), SHIFTS, strict=True):
                add = functools.partial(draw_spread, marker=marker)
                line = [row[name] for row in rows]
                _draw_line(bottom, line, shift, add, color="#d55e00", label=label)
            top.set_title(f"{panel[0]}, {panel[1]} agents, {panel[2].replace('_', ' ')}")
            bottom.set(xlabel="altruism degree beta", xticks=places, xticklabels=labels)
        axes[0, 0].set_ylabel("fairness")
        axes[1, 0].set_ylabel("test accuracy (%)")
        name_series(figure, ncols=min(5, 2 + len(panels)))
    return figure


def _draw_line(
    axis: Axes, found: Sequence[Spread], shift: float, add: Any, *, color: str, label: str
) -> None:
    places = np.arange(len(found)) + shift
    axis.plot(places, [spread.mean for spread in found], color=color)
    for place, spread in zip(places, found, strict=True):
        add(axis, spread, place, upright=True, color=color, markersize=4)
    marker = add.keywords["marker"]
    axis.plot([], [], color=color, marker=marker, markersize=4, label=label)


ALTRUISM = Study(
    question="How much fairness does altruism cost? CGSV with the paper's altruism degrees: a "
    "small beta pays in proportion to importance, a huge one gives everybody everything.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks=f"{grid.UNDEFINED_FAIRNESS} Fairness is noise where agents end nearly equal, so "
    "compare the best and the worst agent too.",
)
