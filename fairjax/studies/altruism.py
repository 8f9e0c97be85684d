"""Altruism: what the altruism degree beta does to fairness and accuracy."""

import functools
from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fairjax.experiment import Experiment
from fairjax.figures import styled
from fairjax.studies import grid
from fairjax.studies.base import SEEDS, Cell, Rows, Study
from fairjax.sweeps import sweep
from fairjax.tables import Table, spreads

BETAS = (0.5, 1.0, 1.2, 1.5, 2.0, 1e7)  # the paper's
MARKERS = ("o", "s", "^")


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
            made.append(
                Cell(
                    name=f"beta-{setting.dataset}-{setting.num_agents}-{split}",
                    settings={
                        **experiment.description(), "beta": list(BETAS), "seed": list(SEEDS),
                    },
                    run=functools.partial(_run, experiment),
                    experiment=experiment,
                    num_runs=len(BETAS) * len(SEEDS),
                )
            )  # fmt: skip
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
    by = ("dataset", "num_agents", "split", "beta")
    return {"Altruism": spreads(rows, by, grid.VALUES)}


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
            for name, colour in (("fairness", "#0072b2"), ("fairness_trained", "#999999")):
                label = "paid models" if name == "fairness" else "after local epochs"
                _line(top, places, [row[name] for row in rows], colour, "o", label)
            for name, marker in zip(("best_%", "mean_%", "worst_%"), MARKERS, strict=True):
                label = f"{name.removesuffix('_%')} agent" if name != "mean_%" else "mean"
                _line(bottom, places, [row[name] for row in rows], "#d55e00", marker, label)
            top.set(
                ylim=(-1.05, 1.05),
                title=f"{panel[0]}, {panel[1]} agents, {panel[2].replace('_', ' ')}",
            )
            bottom.set(xlabel="altruism degree beta", xticks=places, xticklabels=labels)
        axes[0, 0].set_ylabel("fairness")
        axes[1, 0].set_ylabel("test accuracy (%)")
        both = [axis.get_legend_handles_labels() for axis in axes[:, 0]]
        handles, names = both[0][0] + both[1][0], both[0][1] + both[1][1]
        figure.legend(handles, names, loc="outside lower center", ncols=5)
    return figure


def _line(axis, places, spreads_of, colour, marker, label) -> None:
    axis.errorbar(
        places,
        [spread.mean for spread in spreads_of],
        yerr=[spread.std for spread in spreads_of],
        color=colour, marker=marker, ms=4, elinewidth=1, capsize=0, label=label,
    )  # fmt: skip


ALTRUISM = Study(
    question="What does generosity cost in fairness? CGSV with the paper's altruism degrees: a "
    "small beta pays in proportion to importance, a huge one gives everybody everything.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks="Fairness is undefined (–) where all agents hold the same model, and noise where they "
    "hold nearly the same: look at it beside the distance of best and worst.",
)
