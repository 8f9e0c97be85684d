"""Referee: every mechanism by one protocol: who is fair, who gains, who loses, what cheating pays.

    fairness, tau      correlations of standalone and final accuracies, of values and of ranks
    best, gain         accuracy of the best agent; mean gain over standalone
    shortfall          the largest loss against standalone
    ... at best        the same figure in the round that looks best, as some tables choose it
    cheat, harm        what one agent gains by cheating at most, and costs one other at most

The last round counts. All but the last two are means over seeds.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from fairjax import metrics
from fairjax.experiments import WORDS, Experiment, Result, audit, sweep
from fairjax.figures import (
    correlation_axis,
    draw_correlation,
    draw_spread,
    name_lines,
    name_series,
    styled,
)
from fairjax.studies.base import Cell, Rows, Study, sweep_alone
from fairjax.studies.grid import COLOURS as SPLIT_COLOURS
from fairjax.studies.protocol import (
    AUDIT_SEEDS,
    BY_CLASSES,
    CHEATS,
    FULL,
    PUBLISHED,
    QUICK,
    READINGS,
    VARIANTS,
    Setting,
)
from fairjax.tables import Table, spreads

VALUES = (
    "fairness", "rank_fairness", "best_%", "mean_%", "gain_%", "gain_spread_%", "shortfall_%",
    "fairness_at_best", "best_%_at_best",
)  # fmt: skip
COLOURS = {**SPLIT_COLOURS, "dir3": "#009e73", "dir7": "#cc79a7"}
MEASURES = {
    "fairness": "fairness",
    "rank_fairness": "Kendall's tau",
    "best_%": "best agent (%)",
    "gain_%": "mean gain over\nstandalone (points)",
    "shortfall_%": "largest shortfall\n(points)",
    "cheat_%": "most that a cheat\ngains (points)",
    "harm_%": "most that it costs\none other (points)",
}


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every setting and variant; it has all splits in one program."""
    made = []
    for setting in QUICK if quick else FULL:
        names = [name for name in VARIANTS if name not in setting.without]
        if quick:
            names = [name for name in names if name not in READINGS]
        made += [_make_cell(setting, name) for name in names]
    return made


def _make_cell(setting: Setting, name: str) -> Cell:
    mechanism, options = VARIANTS[name]
    splits = tuple(setting.splits)
    plain = Experiment(split=splits[0], **setting.fields)
    more = PUBLISHED.get(mechanism, {})
    experiment = dataclasses.replace(plain.with_mechanism(mechanism), options=options, **more)
    parts = (*setting.name.split(","), *name.split(","))
    audited = [split for split in splits if split in setting.audited]
    runs_of_audit = len(audited) * len(setting.cheats) * len(setting.cheating)
    return Cell(
        name="-".join(("referee", *(part.strip().replace(" ", "_") for part in parts))),
        settings={
            **experiment.description(), "split": splits, "seed": list(setting.seeds),
            "cheats": list(setting.cheats), "audited": audited, "cheating": list(setting.cheating),
            **({"options, class_imbalance": BY_CLASSES} if mechanism == "cffl" else {}),
        },
        run=functools.partial(_run, setting, splits, name, experiment),
        experiment=experiment,
        num_runs=len(setting.seeds) * len(splits) + AUDIT_SEEDS * runs_of_audit,
    )  # fmt: skip


def _run(setting: Setting, splits: tuple[str, ...], name: str, experiment: Experiment) -> Rows:
    seeds = tuple(setting.seeds)
    alone = None
    if not experiment.is_standalone:
        alone = sweep_alone(experiment.alone(), seeds, splits)
    rows, found, start = [], [], time.monotonic()
    for one, some in _split_by_protocol(experiment, splits):
        swept = sweep(one, seeds=seeds, split=some, standalone=alone)
        found += [(swept[place], row) for place, row in enumerate(swept.rows())]
    seconds = (time.monotonic() - start) / (len(seeds) * len(splits))
    cheating = {
        split: _audit(setting, dataclasses.replace(one, split=split))
        for one, some in _split_by_protocol(experiment, splits)
        for split in some
    }
    where = {
        "setting": setting.name,
        "mechanism": name,
        "held_out": "yes" if needs_held_out(experiment) else "no",
        "seconds": seconds,
    }
    for result, row in found:
        split = result.experiment.split
        figures = {**row, **_choose_round(result), **cheating[split]}
        rows.append({**where, "split": split, **figures})
    return rows


def _split_by_protocol(
    experiment: Experiment, splits: tuple[str, ...]
) -> Iterator[tuple[Experiment, tuple[str, ...]]]:
    """Yields experiments with the published options for some splits."""
    if experiment.mechanism != "cffl":
        yield experiment, splits
        return
    for split in splits:
        more = BY_CLASSES if split == "class_imbalance" else {}
        yield (
            dataclasses.replace(experiment, options={**dict(experiment.options), **more}),
            (split,),
        )


def _choose_round(result: Result) -> dict[str, float]:
    """Returns the figures of the rounds that look best, each for itself."""
    evaluated = [row for row in result.history.accuracies if np.isfinite(row).all()]
    found = [metrics.fairness(result.standalone_accuracies, row) for row in evaluated]
    known = [one for one in found if np.isfinite(one)]
    return {
        "fairness_at_best": max(known, default=float("nan")),
        "best_%_at_best": float(100 * np.max(evaluated)),
    }


def _audit(setting: Setting, experiment: Experiment) -> dict[str, Any]:
    """Returns what cheating pays and costs at most, and which cheats do."""
    if experiment.split not in setting.audited:
        return {}
    seeds = setting.seeds[:AUDIT_SEEDS]
    found = audit(experiment, setting.cheats, setting.cheating, seeds=seeds)
    rows = found.rows()
    gaining = max(rows, key=lambda row: row["own_gain"])
    harming = min(rows, key=lambda row: row["worst_other"])
    return {
        "cheat_%": gaining["own_gain"],
        "cheat_%_se": gaining["own_gain_se"],
        "cheat": gaining["manipulation"],
        "harm_%": found.worst_harm,
        "harm": harming["manipulation"],
    }


def needs_held_out(experiment: Experiment) -> bool:
    """Says whether a mechanism asks for held-out data at the server."""
    shards, _ = experiment.make_shards()
    shards = dataclasses.replace(shards, validation=None)
    federation = experiment.federation(shards)

    def first_round(shards: Any) -> Any:
        state = federation.init(jax.random.key(0), shards, None, 1, shards.data)
        return federation.step(state, shards)

    try:
        jax.eval_shape(first_round, shards)
    except ValueError as error:
        if "validation" not in str(error):
            raise
        return True
    return False


def tables(rows: Rows) -> dict[str, Table]:
    """Returns the whole table, and for every setting and split one row per mechanism."""
    by = ("setting", "split", "mechanism")
    words = {**WORDS, "fairness_at_best": WORDS["fairness"]}
    whole = spreads(rows, by, VALUES, apart=by, words=words)
    for row in whole.rows:
        same = next(one for one in rows if all(one[name] == row[name] for name in by))
        for name in ("held_out", "seconds", "cheat_%", "cheat_%_se", "cheat", "harm_%", "harm"):
            row[name] = same.get(name, float("nan"))
    found = {"all": whole}
    for place in dict.fromkeys((row["setting"], row["split"]) for row in whole.rows):
        mine = [row for row in whole.rows if (row["setting"], row["split"]) == place]
        found[", ".join(place)] = Table([_show(row) for row in mine])
    return found


def _show(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns of a table for people."""
    shown = {"mechanism": row["mechanism"], "held-out": row["held_out"]}
    shown |= {name: row[name] for name in VALUES if name not in ("mean_%", "gain_spread_%")}
    shown["seconds"] = round(row["seconds"], 1)
    if isinstance(row["cheat"], str):
        error = f" ± {row['cheat_%_se']:.1f}" if np.isfinite(row["cheat_%_se"]) else ""
        shown["cheat gains"] = f"{row['cheat_%']:+.1f}{error} ({row['cheat']})"
        shown["cheat costs"] = f"{row['harm_%']:.1f} ({row['harm']})"
    return shown


def draw(found: Mapping[str, Table]) -> Figure:
    """Draws a row of panels per setting: a line for every mechanism, a colour for every split."""
    whole = found["all"]
    settings = list(dict.fromkeys(row["setting"] for row in whole.rows))
    splits = list(dict.fromkeys(row["split"] for row in whole.rows))
    names = list(dict.fromkeys(row["mechanism"] for row in whole.rows))
    audited = any(np.isfinite(row["cheat_%"]) for row in whole.rows)
    measures = MEASURES if audited else dict(list(MEASURES.items())[:-2])
    with styled():
        figure, axes = plt.subplots(
            len(settings), len(measures), sharey=True, squeeze=False, layout="constrained",
            figsize=(1.93 * len(measures), (0.22 * len(names) + 0.8) * len(settings) + 0.4),
        )  # fmt: skip
        for line, setting in zip(axes, settings, strict=True):
            mine = [row for row in whole.rows if row["setting"] == setting]
            for axis, (name, label) in zip(line, measures.items(), strict=True):
                for row in mine:
                    offset = 0.2 * (splits.index(row["split"]) - (len(splits) - 1) / 2)
                    place = names.index(row["mechanism"]) + offset
                    how = {"color": COLOURS[row["split"]], "marker": "o", "markersize": 3}
                    _draw_value(axis, name, row, place, how)
                axis.set(xlabel=label, title=setting if axis is line[0] else "")
                axis.set_visible(axis.has_data())  # some settings are not audited
                if name in ("fairness", "rank_fairness"):
                    correlation_axis(axis, WORDS[name])
                name_lines(axis, names)
        for split in splits:
            axes[0, 0].plot([], [], "o", color=COLOURS[split], label=split.replace("_", " "))
        name_series(figure, ncols=4)
    return figure


def _draw_value(
    axis: Any, name: str, row: Mapping[str, Any], place: float, how: dict[str, Any]
) -> None:
    if name in ("fairness", "rank_fairness"):
        draw_correlation(axis, row[name], place, **how)
    elif name in VALUES:
        draw_spread(axis, row[name], place, **how)
    elif np.isfinite(row[name]):
        axis.errorbar(row[name], place, xerr=row.get(f"{name}_se"), linewidth=0.8, **how)


REFEREE = Study(
    question="Who is fair, who gains, who loses, and what does cheating pay? Every mechanism by "
    "one protocol, on the same shards, in the last round.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks="(4 of 5; 1 all equal) is a mean over four of five seeds; in one all agents end equal, "
    "and fairness is undefined. `gain_%` is the mean over agents of the final less the standalone "
    "accuracy, `shortfall_%` the largest loss of an agent against standalone, both in points. "
    "`_at_best` is the figure in the evaluated round in which it is largest. `seconds` are those "
    "of one run, compiling included. `held-out` says whether the server needs held-out data. "
    f"Cheats are {', '.join(CHEATS)} by agents 1 and 4, one at a time, {AUDIT_SEEDS} seeds; with "
    f"`--quick` {' and '.join(QUICK[0].cheats)} by agent 1. Shown are the largest gain of a cheat "
    "with its standard error, and the largest loss of one other agent. fedave has the coefficients "
    "of its program; cffl those published, with MNIST's clip of .01 on all data, since at .001 a "
    "run of few rounds hardly moves; all others those of the preset. "
    "ECI would evaluate 1,024 models a round for ten agents; it is left out there.",
)
