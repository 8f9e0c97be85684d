"""Fairness and performance: every mechanism on the paper's data sets, splits and agents.

Both studies read the same runs. A cell is one mechanism on one data set, over splits and
seeds.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fairjax.experiments import WORDS, Experiment, sweep
from fairjax.figures import (
    ASIDE,
    correlation_axis,
    draw_correlation,
    draw_spread,
    name_lines,
    name_series,
    styled,
)
from fairjax.studies.base import (
    SEEDS,
    Cell,
    Rows,
    Study,
    compared_mechanisms,
    sweep_alone,
    sweep_cell,
)
from fairjax.tables import Table, spreads

IMAGES, TEXT = ("power_law", "uniform", "class_imbalance"), ("power_law",)
ENDS = ("best_%", "mean_%", "worst_%")
CHANGES = ("gain_%", "gain_spread_%", "shortfall_%")
VALUES = ("fairness", "fairness_trained", "rank_fairness", *ENDS, *CHANGES)
UNDEFINED_FAIRNESS = (
    "Rows are compared, so their means are over the same seeds. (3 of 5; 1 all equal) is a mean "
    "over the three of five seeds in which no row is undefined; in one seed this row is undefined, "
    "since all agents end equal and contribution is not rewarded. A row that is undefined in most "
    "seeds has no mean and does not change the means of other rows."
)
COLOURS = {"power_law": "#0072b2", "uniform": "#999999", "class_imbalance": "#d55e00"}


class Setting(NamedTuple):
    """One panel: a data set, a number of agents, splits, and fields that are not default."""

    dataset: str
    num_agents: int
    splits: Sequence[str]
    fields: Mapping[str, Any] = {}

    @property
    def title(self) -> str:
        """The panel's name."""
        return f"{self.dataset}, {self.num_agents} agents"


# Twenty rounds need a greater learning rate and shorter steps than the defaults' eighty rounds.
DIGITS: dict[str, Any] = {
    "rounds": 20, "model": "mlp", "learning_rate": 0.003, "learning_rate_decay": 0.977,
    "alpha": 0.8, "gamma": 0.5,
}  # fmt: skip
QUICK = (
    Setting("digits", 5, IMAGES, DIGITS),
    Setting("mnist", 5, IMAGES, {"rounds": 10, "model": "mlp"}),
)
PAPER = (
    Setting("mnist", 5, IMAGES, {"rounds": 200}),
    Setting("mnist", 10, IMAGES, {"rounds": 200}),
    Setting("mnist", 20, IMAGES, {"rounds": 200}),
    Setting("cifar10", 10, IMAGES, {"rounds": 200}),
    Setting("rt_polarity", 5, TEXT, {"rounds": 200}),
    Setting("sst_fine", 5, TEXT, {"rounds": 200}),
)


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every mechanism and setting; in the full version also per split."""
    made = []
    for setting in QUICK if quick else PAPER:
        for splits in [setting.splits] if quick else [(split,) for split in setting.splits]:
            for name in compared_mechanisms():
                made.append(_make_cell(setting, name, tuple(splits), quick))
    return made


def _make_cell(setting: Setting, mechanism: str, splits: tuple[str, ...], quick: bool) -> Cell:
    experiment = Experiment(
        dataset=setting.dataset,
        num_agents=setting.num_agents,
        eval_every=setting.fields["rounds"],
        **setting.fields,
    ).with_mechanism(mechanism)
    parts = (setting.dataset, str(setting.num_agents), mechanism, *(() if quick else splits))
    run = functools.partial(_run, experiment, splits)
    return sweep_cell("-".join(parts), experiment, run, SEEDS, split=splits)


def _run(experiment: Experiment, splits: tuple[str, ...]) -> Rows:
    alone = sweep_alone(experiment.alone(), SEEDS, splits)
    result = alone
    if not experiment.is_standalone:
        result = sweep(experiment, seeds=SEEDS, split=splits, standalone=alone)
    where = {
        "dataset": experiment.dataset,
        "num_agents": experiment.num_agents,
        "mechanism": experiment.mechanism,
    }
    return [{**where, **row} for row in result.rows()]


def tables(rows: Rows, shown: Mapping[str, str]) -> dict[str, Table]:
    """Returns the whole table, and per panel a table with one row for every mechanism.

    Args:
      rows: the rows of all cells.
      shown: maps the columns of the whole table that panels show to their names there.
    """
    panel = ("dataset", "num_agents", "split")
    whole = spreads(rows, (*panel, "mechanism"), VALUES, apart=panel, words=WORDS)
    found = {"all": whole}
    for dataset, num_agents in dict.fromkeys((row["dataset"], row["num_agents"]) for row in rows):
        panel = Table(
            [
                {
                    "mechanism": row["mechanism"],
                    "column": f"{row['split']}{name}",
                    "value": row[key],
                }
                for key, name in shown.items()
                for row in whole.rows
                if (row["dataset"], row["num_agents"]) == (dataset, num_agents)
            ]
        )
        found[f"{dataset}, {num_agents} agents"] = panel.pivot("mechanism", ["column"], "value")
    return found


def draw(found: Mapping[str, Table], label: str, filled: str, hollow: str) -> Figure:
    """Draws a panel per setting: a line for every mechanism, a colour for every split.

    Args:
      found: what `tables` returned.
      label: the label of the horizontal axis.
      filled: the column of filled markers, with the spread over seeds.
      hollow: the column of hollow markers.
    """
    whole, panels = found["all"], [title for title in found if title != "all"]
    names = list(dict.fromkeys(row["mechanism"] for row in whole.rows))
    height = 0.3 * len(names) + 1.2
    add: Any = [draw_spread, draw_spread]
    if filled == "fairness":
        add = [functools.partial(draw_correlation, aside=aside) for aside in ASIDE]
    with styled():
        figure, axes = plt.subplots(
            1, len(panels), figsize=(1.2 + 2.9 * len(panels), height), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axis, title in zip(axes[0], panels, strict=True):
            splits = list(dict.fromkeys(row["split"] for row in whole.rows if _title(row) == title))
            for row in (row for row in whole.rows if _title(row) == title):
                offset = 0.24 * (splits.index(row["split"]) - (len(splits) - 1) / 2)
                place = names.index(row["mechanism"]) + offset
                how = {"color": COLOURS[row["split"]], "marker": "o", "markersize": 4}
                add[1](axis, row[hollow], place, markerfacecolor="white", **how)
                add[0](axis, row[filled], place, **how)
            axis.set(title=title, xlabel=label)
            name_lines(axis, names)
            if filled == "fairness":
                correlation_axis(axis, WORDS[filled])
        for split, colour in COLOURS.items():
            figure.axes[0].plot([], [], "o", color=colour, label=split.replace("_", " "))
        name_series(figure, ncols=4)
    return figure


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['dataset']}, {row['num_agents']} agents"


FAIRNESS = Study(
    question="Does the agent that is better alone receive the better model? Fairness is Pearson's "
    "correlation of standalone and final test accuracies over agents, per mechanism, data set and "
    "split. Beside it are the mean gain over standalone, and the largest shortfall, in points.",
    cells=cells,
    tables=functools.partial(
        tables,
        shown={
            "fairness": "",
            "fairness_trained": ", after local epochs",
            "gain_%": ", gain",
            "shortfall_%": ", shortfall",
        },
    ),
    draw=functools.partial(
        draw,
        label="fairness (hollow: after local epochs)",
        filled="fairness",
        hollow="fairness_trained",
    ),
    remarks=f"{UNDEFINED_FAIRNESS} Under the uniform split standalone accuracies are nearly "
    "equal, and their correlation with anything is noise.",
)
PERFORMANCE = Study(
    question="How good do models get? Best and mean test accuracy (%) over agents, per mechanism, "
    "data set and split.",
    cells=cells,
    tables=functools.partial(tables, shown={"best_%": ", best", "mean_%": ", mean"}),
    draw=functools.partial(
        draw,
        label="mean test accuracy (%; hollow: best agent)",
        filled="mean_%",
        hollow="best_%",
    ),
)
