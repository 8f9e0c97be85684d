"""Comparison: the page that shows several mechanisms on the same shards side by side."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from fairjax import figures
from fairjax.experiments import COEFFICIENTS, Experiment, Result, records
from fairjax.report import page, settings
from fairjax.report.page import Section
from fairjax.report.run import PAGE, PARTS, TIMES, draw_data, interval
from fairjax.tables import number


def write_comparison(results: Mapping[str, Result], out: Path) -> Path:
    """Writes the page of a comparison, and its figures as PNG, and returns the page's path.

    Args:
      results: results by name of mechanism, on the same shards.
      out: the comparison's directory, with one run per mechanism below it.

    Raises:
      ValueError: `results` is no mapping of names to results,
        or `out` is no directory with its records.
    """
    figures.check_results(results)
    out = page.with_records(out)
    first = next(iter(results.values()))
    experiment = common_experiment(results)
    runs = {name: result.experiment for name, result in results.items()}
    sections = (
        _show_mechanisms(results, out),
        _show_agents(results),
        Section("held", "Who held which data", draw_data(first, out)),
        _show_settings(experiment, results, out),
        _show_time(results, out),
        Section("again", "Run it again", settings.again(experiment, runs)),
    )
    title = f"{len(results)} mechanisms on {experiment.where}"
    return page.write(out / PAGE, title, settings.words(experiment, first.shard_sizes), sections)


def common_experiment(results: Mapping[str, Result]) -> Experiment:
    """Returns the experiment that all share, with the coefficients that any mechanism takes."""
    runs = [result.experiment for result in results.values()]
    # The standalone run is evaluated only at the end, so take the fields of another run.
    sharing = [run for run in runs if not run.is_standalone] or runs
    coefficients = {
        name: next((value for run in runs if (value := getattr(run, name)) is not None), None)
        for name in COEFFICIENTS
    }
    if sharing[0].server_optimizer is not None:  # which most mechanisms refuse
        return sharing[0].resolved()
    common = dataclasses.replace(sharing[0], mechanism="cgsv", options=(), **coefficients)
    return common.resolved()


def _show_mechanisms(results: Mapping[str, Result], out: Path) -> Section:
    fair, paid, shown = [], [], next(iter(results.values())).experiment.shown
    for name, result in results.items():
        trained, order = number(result.trained_fairness), number(result.rank_fairness)
        fair.append((name, number(result.fairness), interval(result), trained, order))
        changes = (*result.collaboration_gain, result.shortfall.max())
        paid.append((name, *map(shown.text, (*changes, *shown.ends(result.accuracies)))))
    headings = ("mechanism", "fairness", "95% interval", "after training", "tau")
    ends = ("gain", "its spread", "shortfall", "best", "mean", "worst")
    ends = [f"{end} {shown.unit}" for end in ends]
    caption = (
        "One point per agent, dark to light by number; a bar is their mean. A fair mechanism keeps "
        "the order of the first line. Its price is its distance below other mechanisms."
    )
    tables = (
        page.table(headings, fair),
        page.table(("mechanism", *ends), paid),
    )
    figure = page.figure(figures.comparison(results), "comparison", caption, out / "figures")
    pieces = [
        page.pair(figure, "".join(tables)),
        page.text(
            "Fairness is Pearson's correlation, over agents, of standalone and final test "
            f"{shown.words}; the interval is over agents too; tau is Kendall's of the same. "
            "Gain is what agents end better than alone, the mean and its spread over agents; "
            "shortfall is what the worst off of them ends worse. One seed is not enough to rank "
            "mechanisms."
        ),
    ]
    pieces += [
        page.text(f"Fairness of {name} is undefined: {result.fairness_note}.")
        for name, result in results.items()
        if result.fairness_note
    ]
    return Section("mechanisms", "Which mechanism pays fairly, and at what price", pieces)


def _show_agents(results: Mapping[str, Result]) -> Section:
    first = next(iter(results.values()))
    sharing = {name: result for name, result in results.items() if name != "standalone"}
    shown = first.experiment.shown
    columns = {
        "standalone": first.standalone_accuracies,
        **{name: result.accuracies for name, result in sharing.items()},
    }

    def row(agent: int) -> tuple[str, ...]:
        return tuple(shown.text(accuracies[agent]) for accuracies in columns.values())

    pieces = [
        page.text(f"Final test {shown.words}{' in percent' * shown.in_percent}."),
        page.agent_table(tuple(columns), len(first.shard_sizes), row),
    ]
    return Section("agents", "What every agent ends with", pieces)


def _show_settings(experiment: Experiment, results: Mapping[str, Result], out: Path) -> Section:
    record = records.read_json(out / next(iter(results)) / records.EXPERIMENT)
    pieces = [page.text(settings.mechanism(one.experiment)) for one in results.values()]
    fields = settings.table(experiment, without=["mechanism"])
    pieces.append(page.pair(fields, settings.environment(record)))
    return Section("run", "What was run", pieces)


def _show_time(results: Mapping[str, Result], out: Path) -> Section:
    rows = []
    for name in results:
        times = records.read_times(out / name)
        if times:
            seconds = [times[part] for part in PARTS]
            rows.append((name, *(f"{value:.2f}" for value in (*seconds, sum(seconds)))))
    if not rows:
        return Section("time", "Where the time went", [page.text("No time was recorded.")])
    table = page.table(("seconds", *PARTS, "all"), rows)
    return Section("time", "Where the time went", [table, page.text(TIMES, soft=True)])
