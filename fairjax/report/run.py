"""Run: the page of one result. What was run, who gave and got what, and how to run it again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairjax import checks, figures
from fairjax.experiments import Result, records
from fairjax.report import page, settings
from fairjax.report.page import Section
from fairjax.simulation import DATA, HONEST, UPLOADS
from fairjax.tables import number

PAGE = "report.html"
PARTS = {
    "data": "data and split",
    "compiling": "compiling",
    "rounds": "rounds",
    "records": "checkpoints and records",
}
TIMES = (
    "By the host's clock, over all sittings of the run; Python's start, figures and this page are "
    "not in it. Compiling is what the first chunk of rounds took longer than the median of the "
    "others, and short where JAX had kept the program. A round is one compiled program, so "
    "training, contributions and evaluation cannot be told apart here; benchmarks/round.py "
    "measures them."
)


def write_run(result: Result, out: Path) -> Path:
    """Writes the page of a run, and its figures as PNG, and returns the page's path.

    Args:
      result: of the run.
      out: the run's directory, with its records.

    Raises:
      ValueError: `result` is no result, or `out` is not its directory.
    """
    checks.kind("result", result, Result, "`fairjax.Experiment(...).run()`")
    out = page.checked_folder(out)
    experiment = result.experiment
    sections = (
        _outcome(result),
        _held(result, out),
        _contributed(result, out),
        _paid(result, out),
        _fair(result, out),
        _dishonest(result),
        _time(result, out),
        _run(result, records.read_json(out / records.EXPERIMENT)),
        _again(result),
    )
    title = f"{experiment.label('mechanism')} on {experiment.where}"
    said = settings.words(experiment, result.shard_sizes)
    lead = f"{said} The mechanism is {settings.mechanism(experiment)}"
    return page.write(out / PAGE, title, lead, sections)


def percent(value: Any) -> str:
    """Returns a share as percent; nan is a dash."""
    return "–" if np.isnan(value) else f"{100 * value:.2f}"


def interval(result: Result) -> str:
    """Returns the confidence interval of fairness; a dash where there is none."""
    low, high = result.fairness_interval
    return "–" if np.isnan(low) else f"{low:.3f}\u00a0to\u00a0{high:.3f}"


def held(result: Result, out: Path) -> list[str]:
    """Returns who held which data, as a table and a figure."""
    shards, _ = result.experiment.make_shards()
    counts = (shards.class_counts() > 0).sum(1)

    def row(agent: int) -> tuple[str, ...]:
        size = f"{result.shard_sizes[agent]:,}"
        return size, str(counts[agent]), result.behaviours[agent]

    drawn = page.figure(
        figures.partition(shards), "partition", "Examples of each class that each agent holds.",
        out / "figures",
    )  # fmt: skip
    headings = ("examples", "classes", "behaviour")
    return [page.pair(drawn, page.agent_table(headings, shards.num_agents, row))]


def _outcome(result: Result) -> Section:
    final, alone = result.accuracies, result.standalone_accuracies
    entries = {
        "fairness": (number(result.fairness), result.fairness_note or f"95%: {interval(result)}"),
        "mean final %": (percent(final.mean()), f"alone {percent(alone.mean())}"),
        "best final %": (percent(final.max()), f"alone {percent(alone.max())}"),
        "worst final %": (percent(final.min()), f"alone {percent(alone.min())}"),
    }
    return Section("outcome", "What came of it", [page.facts(entries)])


def _held(result: Result, out: Path) -> Section:
    return Section("held", "Who held which data", held(result, out))


def _contributed(result: Result, out: Path) -> Section:
    history = result.history

    def row(agent: int) -> tuple[str, ...]:
        judged = (history.contributions[-1, agent], history.importance[-1, agent])
        return *map(number, judged), str(history.excluded[:, agent].sum())

    headings = ("contribution", "importance", "rounds excluded")
    captions = {
        figures.contributions: "What every agent's upload was worth, round by round.",
        figures.importance: "How much every agent counts, by its contributions so far.",
    }
    pieces = [
        page.text("Contribution and importance in the last round; a dash: not judged."),
        page.agent_table(headings, len(result.shard_sizes), row),
        _drawn(result, captions, out),
    ]
    return Section("contributed", "Who contributed", pieces)


def _paid(result: Result, out: Path) -> Section:
    accuracies = (result.standalone_accuracies, result.accuracies, result.trained_accuracies)

    def row(agent: int) -> tuple[str, ...]:
        fraction = number(result.history.fractions[-1, agent])
        return fraction, *(percent(values[agent]) for values in accuracies)

    headings = ("reward fraction", "alone %", "final %", "trained %")
    captions = {
        figures.reward_fractions: "The part of the aggregate that every agent was paid.",
        figures.accuracy: "Test accuracy of the models that agents were paid; dotted: alone.",
    }
    server = percent(result.history.server_accuracies[-1])
    pieces = [
        page.text(
            "The last reward, and test accuracies of the models that agents reach alone, are paid "
            "in the end, and have after one more round's local epochs."
        ),
        page.agent_table(headings, len(result.shard_sizes), row),
        page.text(f"The server's own model ends at {server}%."),
        _drawn(result, captions, out),
    ]
    return Section("paid", "Who was paid", pieces)


def _drawn(result: Result, captions: Mapping[Callable, str], out: Path) -> str:
    """Returns figures of a result, by the functions that draw them."""
    return page.pair(
        *(
            page.figure(draw(result), draw.__name__, caption, out / "figures")
            for draw, caption in captions.items()
        )
    )


def _fair(result: Result, out: Path) -> Section:
    sentences = [
        page.text(
            "Fairness is Pearson's correlation, over agents, of the accuracies that they reach "
            "alone and are paid in the end. The interval is over agents too: other seeds are "
            "not in it."
        ),
        page.table(
            ("accuracies", "correlation"),
            [
                ("final", number(result.fairness)),
                ("final, 95% interval", interval(result)),
                ("after training", number(result.trained_fairness)),
            ],
        ),
    ]
    if result.fairness_note:
        sentences.append(page.text(f"Fairness is undefined: {result.fairness_note}."))
    elif np.isnan(result.fairness_interval[0]):
        sentences.append(page.text("Of fewer than four agents there is no interval."))
    caption = "One point per agent; above the line it is paid a better model than it has alone."
    drawn = page.figure(figures.fairness(result), "fairness", caption, out / "figures")
    return Section("fair", "Is it fair", [page.pair(drawn, "".join(sentences))])


def _dishonest(result: Result) -> Section:
    excluded = result.history.excluded
    pieces = []
    if excluded.any():
        rows = [
            (str(agent), str(excluded[:, agent].sum()), str(excluded[:, agent].argmax() + 1))
            for agent in np.flatnonzero(excluded.any(0))
        ]
        sentence = (
            "Uploads that held NaN, infinity or numbers too large to be added were dropped and "
            "count as nothing."
        )
        pieces.append(page.text(sentence))
        headings = ("agent", f"of {len(excluded):,} rounds", "first in round")
        pieces.append(page.table(headings, rows))
    else:
        pieces.append(page.text("No upload was excluded."))
    dishonest = [agent for agent, name in enumerate(result.behaviours) if name != HONEST]
    if dishonest:
        rows = [
            (
                str(agent),
                result.behaviours[agent],
                number(result.history.importance[-1, agent]),
                percent(result.accuracies[agent]),
            )
            for agent in dishonest
        ]
        pieces.append(page.table(("agent", "behaviour", "importance", "final %"), rows))
        names = dict.fromkeys(result.behaviours[agent] for agent in dishonest)
        kinds = {**DATA, **UPLOADS}
        pieces += [page.text(f"{name}: {kinds[name].words}.", soft=True) for name in names]
        pieces.append(
            page.text(
                f"Detection AUC: {number(result.detection_auc)}, the chance that an honest agent's "
                "last importance exceeds a dishonest one's. Fairness over honest agents alone: "
                f"{number(result.honest_fairness)}."
            )
        )
    else:
        pieces.append(page.text("All agents were honest."))
    return Section("dishonest", "Excluded and dishonest", pieces)


def _time(result: Result, out: Path) -> Section:
    seconds = {PARTS[name]: value for name, value in records.read_times(out).items()}
    alone = records.read_times(out / "standalone")
    if alone:
        seconds["standalone run beside it"] = sum(alone.values())
    if not seconds:
        pieces = [page.text("This run has no record of its time.")]
    else:
        rows = [(name, f"{value:.2f}") for name, value in seconds.items()]
        rows.append(("all", f"{sum(seconds.values()):.2f}"))
        pieces = [page.table(("part", "seconds"), rows), page.text(TIMES, soft=True)]
    return Section("time", "Where the time went", pieces)


def _run(result: Result, record: Any) -> Section:
    fields = settings.table(result.experiment)
    return Section("run", "What was run", [page.pair(fields, settings.environment(record))])


def _again(result: Result) -> Section:
    sentence = (
        "The same command gives the same bits with the same versions on the same machine. It "
        "finds the records again where it runs in the same directory; --out names another."
    )
    pieces = [page.text(sentence), *settings.again(result.experiment)]
    return Section("again", "Run it again", pieces)
