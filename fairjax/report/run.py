"""Run: the page of one result: what was run, who contributed and was paid, how to run it again."""

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
    "Measured by the host's clock over all sittings of the run, without the start of Python, the "
    "figures and this page. Compiling is the extra time of the first chunk of rounds over the "
    "median of the others; it is short if JAX had cached the program. A round is one compiled "
    "program, so the times of training, contributions and evaluation cannot be separated here; "
    "benchmarks/round.py measures them."
)


def write_run(result: Result, out: Path) -> Path:
    """Writes the page of a run, and its figures as PNG, and returns the page's path.

    Args:
      result: the result of the run.
      out: the run's directory, with its records.

    Raises:
      ValueError: `result` is no `Result`,
        or `out` is no directory with its records.
    """
    checks.kind("result", result, Result, "`fairjax.Experiment(...).run()`")
    out = page.with_records(out)
    experiment = result.experiment
    sections = (
        _show_outcome(result),
        Section("held", "Who held which data", draw_data(result, out)),
        _show_contributions(result, out),
        _show_rewards(result, out),
        _show_fairness(result, out),
        _show_dishonest(result),
        _show_time(out),
        _show_settings(result, records.read_json(out / records.EXPERIMENT)),
        _show_commands(result),
    )
    title = f"{experiment.label('mechanism')} on {experiment.where}"
    words = settings.words(experiment, result.shard_sizes)
    lead = f"{words} The mechanism is {settings.mechanism(experiment)}"
    return page.write(out / PAGE, title, lead, sections)


def interval(result: Result) -> str:
    """Returns the confidence interval of fairness, or a dash if there is none."""
    low, high = result.fairness_interval
    return "–" if np.isnan(low) else f"{low:.3f}\u00a0to\u00a0{high:.3f}"


def draw_data(result: Result, out: Path) -> list[str]:
    """Returns a figure and a table of the data that each agent held."""
    shards, _ = result.experiment.kept_shards()
    has_classes = shards.data.num_classes is not None
    counts = (shards.class_counts() > 0).sum(1) if has_classes else []

    def row(agent: int) -> tuple[str, ...]:
        size, classes = f"{result.shard_sizes[agent]:,}", map(str, counts[agent : agent + 1])
        return size, *classes, result.behaviours[agent]

    drawn = page.figure(
        figures.partition(shards), "partition",
        f"Examples {'of each class ' * has_classes}that each agent holds.", out / "figures",
    )  # fmt: skip
    headings = ("examples", *("classes",) * has_classes, "behaviour")
    return [page.pair(drawn, page.agent_table(headings, shards.num_agents, row))]


def _show_outcome(result: Result) -> Section:
    shown = result.experiment.shown
    final, alone = map(shown.ends, (result.accuracies, result.standalone_accuracies))
    entries = {
        "fairness": (number(result.fairness), result.fairness_note or f"95%: {interval(result)}")
    }
    for place, end in ((1, "mean"), (0, "best"), (2, "worst")):
        texts = shown.text(final[place]), f"alone {shown.text(alone[place])}"
        entries[f"{end} final {shown.unit}"] = texts
    return Section("outcome", "Outcome", [page.facts(entries)])


def _show_contributions(result: Result, out: Path) -> Section:
    history, contributions = result.history, result.latest("contributions")

    def row(agent: int) -> tuple[str, ...]:
        judged = (contributions[agent], history.importance[-1, agent])
        rounds = (result.participants[:, agent].sum(), history.excluded[:, agent].sum())
        return *map(number, judged), *map(str, rounds)

    headings = ("contribution", "importance", "rounds present", "rounds excluded")
    captions = {
        figures.contributions: "Contribution of every agent, round by round.",
        figures.importance: "Importance of every agent, from its contributions so far.",
    }
    pieces = [
        page.text(
            "Contribution in the last round in which the agent took part, and importance in the "
            "end; a dash means not judged."
        ),
        page.agent_table(headings, len(result.shard_sizes), row),
        _draw_figures(result, captions, out),
    ]
    return Section("contributed", "Who contributed", pieces)


def _show_rewards(result: Result, out: Path) -> Section:
    accuracies = (result.standalone_accuracies, result.accuracies, result.trained_accuracies)
    fractions, shown = result.latest("fractions"), result.experiment.shown
    others = result.other_metrics()

    def row(agent: int) -> tuple[str, ...]:
        more = (one.text(values[agent]) for one, values in others)
        return (
            number(fractions[agent]), *(shown.text(values[agent]) for values in accuracies), *more,
        )  # fmt: skip

    units = [f"{name} {shown.unit}" for name in ("alone", "final", "trained")]
    headings = ("reward fraction", *units, *(f"final {one.axis}" for one, _ in others))
    captions = {
        figures.reward_fractions: "Share of the aggregate that every agent received.",
        figures.accuracy: f"Test {shown.words} of the models that agents received; dotted: alone.",
    }
    server = shown.text(result.history.server_accuracies[-1])
    pieces = [
        page.text(
            f"The last reward fraction, and test {shown.words} of the models that agents reach "
            "alone, receive in the last round (final), and have after one more round's local "
            "epochs (trained)."
        ),
        page.agent_table(headings, len(result.shard_sizes), row),
        page.text(f"The server's own model ends at {server}{'%' * shown.in_percent}."),
        *_show_communication(result),
        _draw_figures(result, captions, out),
    ]
    return Section("paid", "Who was paid", pieces)


def _show_communication(result: Result) -> list[str]:
    """Returns what agents with adapters send and receive in a round."""
    found, network = result.communication, result.history.network
    if network is None:
        return []

    def row(agent: int) -> tuple[str, ...]:
        own = {name: values[agent] for name, values in found.items()}
        return (
            f"{own['uploaded']:,.0f}", f"{100 * own['uploaded_share']:.3g}",
            f"{own['received']:,.0f}", f"{100 * own['received_share']:.3g}",
        )  # fmt: skip

    headings = ("numbers sent", "% of all", "numbers received", "% of all")
    words = (
        "Agents train low-rank adapters. What they send and receive in a round, on average, in "
        f"numbers and as a share of the network's {network[-1]:,} parameters, which full "
        "fine-tuning sends and receives."
    )
    return [page.text(words), page.agent_table(headings, len(result.shard_sizes), row)]


def _draw_figures(result: Result, captions: Mapping[Callable, str], out: Path) -> str:
    """Returns figures of a result; `captions` maps functions that draw them to captions."""
    return page.pair(
        *(
            page.figure(draw(result), draw.__name__, caption, out / "figures")
            for draw, caption in captions.items()
        )
    )


def _show_fairness(result: Result, out: Path) -> Section:
    shown = result.experiment.shown
    losses, (gain, spread) = np.nan_to_num(result.shortfall, nan=-1), result.collaboration_gain
    worst = losses.argmax()
    whose = f", of agent {worst}" if losses[worst] > 0 else ""
    sentences = [
        page.text(
            "Fairness is Pearson's correlation, over agents, of standalone and final "
            f"{shown.words}. The interval is over agents too; it does not cover other seeds."
        ),
        page.table(
            (f"of alone and final {shown.words}", ""),
            [
                ("correlation", number(result.fairness)),
                ("its 95% interval", interval(result)),
                ("correlation after training", number(result.trained_fairness)),
                ("Kendall's tau", number(result.rank_fairness)),
                (f"mean gain {shown.unit}", shown.text(gain)),
                (f"spread of the gain {shown.unit}", shown.text(spread)),
                (f"largest shortfall {shown.unit}{whose}", shown.text(result.shortfall[worst])),
            ],
        ),
        page.text(
            "The gain is what agents end better than alone, its spread a standard deviation over "
            "agents; a shortfall is what one ends worse."
        ),
    ]
    if result.fairness_note:
        sentences.append(page.text(f"Fairness is undefined: {result.fairness_note}."))
    elif np.isnan(result.fairness_interval[0]):
        sentences.append(page.text("There is no interval for fewer than four agents."))
    side = "below" if shown.lower_is_better else "above"
    caption = (
        f"One point per agent; {side} the line, agents receive a better model than they reach "
        "alone."
    )
    drawn = page.figure(figures.fairness(result), "fairness", caption, out / "figures")
    return Section("fair", "Is it fair", [page.pair(drawn, "".join(sentences))])


def _show_dishonest(result: Result) -> Section:
    excluded, shown = result.history.excluded, result.experiment.shown
    pieces = []
    if excluded.any():
        rows = [
            (str(agent), str(excluded[:, agent].sum()), str(excluded[:, agent].argmax() + 1))
            for agent in np.flatnonzero(excluded.any(0))
        ]
        sentence = (
            "Uploads that held NaN, infinity or numbers too large to be added were dropped and "
            "do not count."
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
                shown.text(result.accuracies[agent]),
            )
            for agent in dishonest
        ]
        pieces.append(page.table(("agent", "behaviour", "importance", f"final {shown.unit}"), rows))
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


def _show_time(out: Path) -> Section:
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


def _show_settings(result: Result, record: Any) -> Section:
    fields = settings.table(result.experiment)
    return Section("run", "What was run", [page.pair(fields, settings.environment(record))])


def _show_commands(result: Result) -> Section:
    lines = settings.again(result.experiment)
    place = " In the same directory the command finds the records again; --out chooses another."
    sentence = "The same lines give the same bits with the same versions on the same machine."
    said = page.text(sentence + place * (len(lines) > 1))
    return Section("again", "Run it again", [said, *lines])
