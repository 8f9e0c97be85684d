"""When is CGSV fair? Change one thing at a time and measure every link of the chain.

    standalone accuracy -> contribution -> reward fraction -> accuracy of the paid model

Fairness is the correlation of the first with the last. The links between them show where it is
lost.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from fairjax import metrics
from fairjax.experiments import WORDS, Experiment, Result, sweep
from fairjax.figures import (
    correlation_axis,
    draw_correlation,
    draw_spread,
    name_lines,
    name_series,
    styled,
)
from fairjax.studies import grid
from fairjax.studies.base import SEEDS, Cell, Rows, Study, sweep_alone, sweep_cell
from fairjax.studies.variant import Variant
from fairjax.tables import Table, spreads

SPLITS = ("power_law", "class_imbalance")
FIRST = "as published"
CORRELATIONS = ("contribution", "fraction", "fairness")
LINKS = (
    *CORRELATIONS, "fairness_change", "best_%", "mean_%", "spread_%", "gain_%", "shortfall_%",
)  # fmt: skip
UNDEFINED = {  # what an undefined value means
    "contribution": "not judged",
    "fraction": "all equal",
    "fairness": WORDS["fairness"],
    "fairness_change": WORDS["fairness"],
}
LABELS = {
    "contribution": "correlation of standalone\naccuracy and contribution",
    "fraction": "... and reward fraction",
    "fairness": "... and final accuracy:\nfairness",
    "fairness_change": "fairness less that\nas published, same seeds",
    "spread_%": "best less worst\nfinal accuracy (%)",
}


def variants(base: Variant) -> dict[str, Experiment]:
    """Returns the experiments to compare, by name; each differs from the first in one thing."""
    resolved: Any = base.resolved()
    rate, gamma, rounds = resolved.learning_rate, resolved.gamma, resolved.rounds
    # The same decay, so that the rate falls as often as there are local epochs.
    by_epoch = {"decay_per": "epoch", "learning_rate_decay": resolved.learning_rate_decay}

    def change(**fields: Any) -> Variant:
        return dataclasses.replace(base, **fields)

    def nested(catch_up: str) -> Experiment:
        made = base.with_mechanism("nested")
        return dataclasses.replace(made, options={"catch_up": catch_up})

    return {
        FIRST: base,
        "alpha .5": change(alpha=0.5),
        "alpha .95": change(alpha=0.95),
        "gamma / 4": change(gamma=_scale_length(gamma, 1 / 4)),
        "gamma x 4": change(gamma=_scale_length(gamma, 4)),
        "learning rate / 4": change(learning_rate=rate / 4),
        "learning rate x 4": change(learning_rate=rate * 4),
        "1 local epoch": change(local_epochs=1),
        "10 local epochs": change(local_epochs=10),
        "one step an epoch": change(local_steps="last_batch"),
        "a third of the rounds": change(rounds=rounds // 3, eval_every=rounds // 3),
        "three times the rounds": change(rounds=3 * rounds, eval_every=3 * rounds),
        "importance starts equal": change(start="equal"),
        "mean-field contributions": change(options={"contribution": "mean_field"}),
        "exact contributions": change(options={"contribution": "shapley"}),
        "a mask per tensor": change(options={"mask": "leaf"}),
        "one mask of all rounds": nested("kept"),
        "... and catch-up removed": nested("removed"),
        "own update kept": change(keep_own=True),
        "measured at the server's model": change(measured="server"),
        "as the released program": change(mechanism="cgsv_released"),
        "... and its decay per epoch": change(mechanism="cgsv_released", **by_epoch),
        "... and one step an epoch": change(
            mechanism="cgsv_released", local_steps="last_batch", **by_epoch
        ),
        "proportional, ours": base.with_mechanism("proportional"),
        "fedavg": base.with_mechanism("fedavg"),
    }


def _scale_length(gamma: Any, factor: float) -> Any:
    """Multiplies a length, or the ends of a cosine, by a factor."""
    if not isinstance(gamma, str):
        return gamma * factor
    shape, *ends = gamma.split(":")
    return ":".join([shape, *(str(float(end) * factor) for end in ends)])


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every variant and data set."""
    made = []
    full: list[tuple[str, int, tuple[int, ...], dict[str, Any]]] = [
        ("digits", 5, SEEDS, {"rounds": 80}),
        ("mnist", 10, SEEDS, {"rounds": 40, "model": "mlp"}),
        ("mnist", 10, SEEDS[:3], {"rounds": 60}),  # the paper's network
    ]
    settings = [("digits", 5, SEEDS, grid.DIGITS)] if quick else full
    for dataset, num_agents, seeds, fields in settings:
        base = Variant(
            dataset=dataset, num_agents=num_agents, eval_every=fields["rounds"], **fields
        )
        where = f"{dataset}-{num_agents}-{base.resolved().model}"
        for name, variant in variants(base).items():
            title = f"when-{where}-{name.replace(' ', '_').replace('/', 'over')}"
            run = functools.partial(_run, name, variant, seeds)
            made.append(sweep_cell(title, variant, run, seeds, split=SPLITS))
    return made


def _run(name: str, variant: Experiment, seeds: tuple[int, ...]) -> Rows:
    full = variant.resolved()
    where = {
        "setting": f"{full.dataset}, {full.num_agents} agents, {full.model}",
        "variant": name,
    }
    alone = sweep_alone(variant.alone(), seeds, SPLITS)  # most variants have the same
    return [
        {**where, "split": one.experiment.split, "seed": one.experiment.seed, **_measure_links(one)}
        for one in sweep(variant, seeds=seeds, split=SPLITS, standalone=alone)
    ]


def _measure_links(result: Result) -> dict[str, float]:
    """Returns correlations of the chain's links with standalone accuracy, and accuracies in %."""
    alone, accuracies = result.standalone_accuracies, 100 * result.accuracies
    late = result.history.contributions[-max(1, len(result.history.contributions) // 4) :]
    return {
        "contribution": metrics.fairness(alone, late.mean(0)),
        "fraction": metrics.fairness(alone, result.history.fractions[-1]),
        "fairness": result.fairness,
        "best_%": float(accuracies.max()),
        "mean_%": float(accuracies.mean()),
        "spread_%": float(np.ptp(accuracies)),
        "gain_%": 100 * result.collaboration_gain[0],
        "shortfall_%": 100 * float(result.shortfall.max()),
    }


def tables(rows: Rows) -> dict[str, Table]:
    """Returns the whole table, and per data set and split one row for every variant.

    Few seeds are defined in all variants, so each variant has means over its own seeds. It is
    compared with the first by `fairness_change`: the difference, over the seeds in which both
    are defined.
    """
    first = {
        (row["setting"], row["split"], row["seed"]): row["fairness"]
        for row in rows
        if row["variant"] == FIRST
    }

    def change(row: Mapping[str, Any]) -> dict[str, float]:
        place = (row["setting"], row["split"], row["seed"])
        difference = row["fairness"] - first.get(place, float("nan"))
        return {"fairness_change": round(difference, 9)}  # equal ones differ by rounding

    by = ("setting", "split", "variant")
    words = UNDEFINED if first else {**UNDEFINED, "fairness_change": f"without {FIRST!r}"}
    whole = spreads([{**row, **change(row)} for row in rows], by, LINKS, apart=by, words=words)
    found = {"all": whole}
    for place in dict.fromkeys((row["setting"], row["split"]) for row in whole.rows):
        found[", ".join(place)] = Table(
            [
                {name: row[name] for name in ("variant", *LINKS)}
                for row in whole.rows
                if (row["setting"], row["split"]) == place
            ]
        )
    return found


def draw(found: Mapping[str, Table]) -> Figure:
    """Draws the links, a line for every variant, a colour for every split."""
    whole = found["all"]
    names = list(dict.fromkeys(row["variant"] for row in whole.rows))
    settings = list(dict.fromkeys(row["setting"] for row in whole.rows))
    with styled():
        figure, axes = plt.subplots(
            len(settings), len(LABELS), sharey=True, squeeze=False, layout="constrained",
            figsize=(11.5, (0.24 * len(names) + 0.8) * len(settings) + 0.4),
        )  # fmt: skip
        for line, setting in zip(axes, settings, strict=True):
            for axis, (link, label) in zip(line, LABELS.items(), strict=True):
                for row in (row for row in whole.rows if row["setting"] == setting):
                    place = names.index(row["variant"]) + (
                        0.14 if row["split"] == SPLITS[1] else -0.14
                    )
                    add = draw_correlation if link in CORRELATIONS else draw_spread
                    colour = grid.COLOURS[row["split"]]
                    add(axis, row[link], place, color=colour, marker="o", markersize=3.5)
                axis.set(xlabel=label, title=setting if axis is line[0] else "")
                if link in CORRELATIONS:
                    correlation_axis(axis, UNDEFINED[link])
                name_lines(axis, names)
        for split in SPLITS:
            axes[0, 0].plot([], [], "o", color=grid.COLOURS[split], label=split.replace("_", " "))
        name_series(figure, ncols=3)
    return figure


WHEN_FAIR = Study(
    question="When is CGSV fair? The study changes one thing at a time. It correlates standalone "
    "accuracy with every later link of the chain: contribution, reward fraction and final "
    "accuracy.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks="(3 of 5; 2 all equal) is a mean over three of five seeds; in the other two all agents "
    "end equal, contribution is not rewarded, and fairness is undefined. Each variant has means "
    "over its own defined seeds, so compare variants by `fairness_change`, the difference to "
    f"{FIRST!r} over the seeds in which both are defined. Contributions are means over the last "
    "quarter of the rounds. `spread_%` is the best less the worst final accuracy: where it is "
    "small, fairness is noise. Measuring at the server's model gives that model to agents, and "
    "shows what contributions would be without the differences that rewards made.",
)
