"""Free-riders: are careless, dishonest and broken agents found, and how much are they paid?"""

import functools
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from fairjax.experiments import Experiment, Result, sweep
from fairjax.figures import draw_spread, name_lines, styled
from fairjax.simulation import behaviours
from fairjax.studies.base import SEEDS, Cell, Rows, Study, sweep_cell
from fairjax.tables import Table, spreads

NUM_AGENTS, NUM_DISHONEST, ROUNDS = 10, 2, 20
MEASURES = ("cosine", "mean_field")
VALUES = ("detection_auc", "dishonest_fraction", "honest_%", "dishonest_%")
WORDS = {name: "all honest" for name in VALUES}  # what an undefined value means


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every behaviour and measure of contributions."""
    made = []
    for measure in MEASURES[:1] if quick else MEASURES:
        for name in ("honest", *behaviours.DATA, *behaviours.UPLOADS):
            experiment = Experiment(
                dataset="digits" if quick else "mnist",
                split="uniform",
                num_agents=NUM_AGENTS,
                rounds=ROUNDS,
                eval_every=ROUNDS,
                options={"contribution": measure},
                behaviours={} if name == "honest" else {name: NUM_DISHONEST},
            )
            run = functools.partial(_run, experiment, name)
            title = f"riders-{experiment.dataset}-{measure}-{name}"
            made.append(sweep_cell(title, experiment, run, SEEDS))
    return made


def _run(experiment: Experiment, name: str) -> Rows:
    measure = dict(experiment.options)["contribution"]
    where = {"dataset": experiment.dataset, "measure": measure, "behaviour": name}
    return [
        {**where, "seed": one.experiment.seed, **_measure_detection(one)}
        for one in sweep(experiment, seeds=SEEDS)
    ]


def _measure_detection(result: Result) -> dict[str, Any]:
    """Returns detection, accuracies, and dishonest agents' pay over the mean pay of all."""
    honest = np.array(result.behaviours) == behaviours.HONEST
    fractions, accuracies = result.history.fractions[-1], 100 * result.accuracies
    found = {"detection_auc": result.detection_auc, "honest_%": float(accuracies[honest].mean())}
    found["dishonest_fraction"] = found["dishonest_%"] = float("nan")
    if not honest.all():
        found["dishonest_fraction"] = float(fractions[~honest].mean() / fractions.mean())
        found["dishonest_%"] = float(accuracies[~honest].mean())
    return found


def tables(rows: Rows) -> dict[str, Table]:
    """Returns one row for every behaviour and measure."""
    by = ("dataset", "measure", "behaviour")
    return {"Free-riders": spreads(rows, by, VALUES, apart=("dataset",), words=WORDS)}


def draw(found: Mapping[str, Table]) -> Figure:
    """Draws detection, pay and accuracy, a line per behaviour."""
    (table,) = found.values()
    names = list(dict.fromkeys(row["behaviour"] for row in table.rows))
    measures = list(dict.fromkeys(row["measure"] for row in table.rows))
    panels = {
        "detection_auc": "area under the ROC curve",
        "dishonest_fraction": "dishonest agents' reward\n(fraction / mean of all)",
        "honest_%": "test accuracy (%; hollow: dishonest)",
    }
    colours = dict(zip(MEASURES, ("#d55e00", "#0072b2"), strict=True))
    with styled():
        figure, axes = plt.subplots(
            1, 3, figsize=(8.4, 0.25 * len(names) + 1.3), sharey=True, layout="constrained"
        )
        for axis, (column, label) in zip(axes, panels.items(), strict=True):
            for row in table.rows:
                offset = 0.2 * (measures.index(row["measure"]) - (len(measures) - 1) / 2)
                place, colour = names.index(row["behaviour"]) + offset, colours[row["measure"]]
                for name in (column, "dishonest_%") if column == "honest_%" else (column,):
                    face = "white" if name == "dishonest_%" else colour
                    draw_spread(
                        axis, row[name], place, color=colour, marker="o", markersize=4,
                        markerfacecolor=face,
                    )  # fmt: skip
            axis.set_xlabel(label)
            name_lines(axis, names)
        axes[0].axvline(0.5, color="0.6", linewidth=0.8)
        axes[1].axvline(1, color="0.6", linewidth=0.8)
        if len(measures) > 1:
            for measure in measures:
                axes[0].plot([], [], "o", color=colours[measure], label=measure.replace("_", " "))
            figure.legend(loc="outside lower center", ncols=2)
    return figure


FREE_RIDERS = Study(
    question=f"Are dishonest agents found? {NUM_DISHONEST} of {NUM_AGENTS} agents are dishonest "
    "under CGSV with a uniform split. The study shows the area under the ROC curve of importance "
    "as a test of honesty, and dishonest agents' pay as a multiple of the mean over all agents.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks="An area of 1 finds all dishonest agents, .5 is a guess, and 0 takes all honest agents "
    "for dishonest ones. Colluders agree with each other, so the aggregate agrees with them. "
    "`rescale` changes nothing, since CGSV rescales all uploads.",
)
