"""Terminal: prints results as tables and sentences to standard output."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fairjax.experiments import Comparison, Result
from fairjax.simulation import HONEST
from fairjax.tables import number

FILE_WIDTH = 1000  # characters of a line in a file


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Lets `endings` end the command: rich would do so with another exit code."""
        raise BrokenPipeError


def output() -> Console:
    """Returns standard output; if it is not a terminal, lines are wide enough for any table."""
    console = _Output(emoji=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def print_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    words: int = 1,
) -> None:
    """Prints a table, or one block per row if the terminal is too narrow.

    Args:
      title: title above the table.
      headings: headings of the columns; the first column names the row.
      rows: one text per column.
      words: number of first columns that hold words instead of numbers.
    """
    named = Text(title)  # brackets in a name are no markup
    table = Table(title=named, title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if place < words else "right")
    rows, console = list(rows), output()
    for row in rows:
        table.add_row(*map(Text, row))
    needed = console.measure(table, options=console.options.update(max_width=FILE_WIDTH)).maximum
    if needed <= console.width:
        console.print(table)
        return
    console.print(named, style="italic")
    for row in rows:
        console.print(Text(f"{headings[0]} {row[0]}"), style="bold")
        print_lines(dict(zip(headings[1:], row[1:], strict=True)))


def print_lines(lines: Mapping[str, str]) -> None:
    """Prints names and the line that explains each, aligned."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for name, line in lines.items():
        table.add_row(Text(f"  {name}"), Text(line))
    output().print(table)


def print_result(result: Result) -> None:
    """Prints what every agent contributed and received."""
    experiment, history, console = result.experiment, result.history, output()
    title = (
        f"{experiment.label('mechanism')} on {experiment.where}, "
        f"{experiment.rounds} rounds, seed {experiment.seed}"
    )
    present, shown = result.participants.sum(0), experiment.shown
    columns = {
        "agent": map(str, range(experiment.num_agents)),
        "examples": (f"{size:,}" for size in result.shard_sizes),
        "rounds": map(str, present),
        f"alone {shown.unit}": map(shown.text, result.standalone_accuracies),
        "contribution": map(number, result.latest("contributions")),
        "importance": map(number, history.importance[-1]),
        "reward": map(number, result.latest("fractions")),
        f"final {shown.unit}": map(shown.text, result.accuracies),
    }
    for one, values in result.other_metrics():
        columns[f"final {one.axis}"] = map(one.text, values)
    for heading, name in (("sent %", "uploaded_share"), ("received %", "received_share")):
        if name in result.communication:
            columns[heading] = (f"{100 * share:.2g}" for share in result.communication[name])
    if (present == len(result.participants)).all():
        del columns["rounds"]
    print_table(title, list(columns), list(zip(*columns.values(), strict=True)), words=0)
    figure = f"{result.fairness:.3f}; Kendall's tau: {result.rank_fairness:.3f}"
    figure = result.fairness_note or figure
    console.print(f"Fairness, correlation of alone and final: {figure}", highlight=False)
    console.print(describe_gain(result), highlight=False)
    if result.communication:
        console.print(describe_communication(result), highlight=False)
    dishonest = [
        f"{agent} {name}" for agent, name in enumerate(result.behaviours) if name != HONEST
    ]
    if dishonest:
        console.print(f"Dishonest agents: {', '.join(dishonest)}", highlight=False)
        figure = number(result.honest_fairness)
        console.print(f"Fairness over honest agents alone: {figure}", highlight=False)
        area = number(result.detection_auc)
        console.print(f"Detection, area under the ROC curve of importance: {area}", highlight=False)
    excluded = history.excluded.sum(0)
    for agent in excluded.nonzero()[0]:
        console.print(
            f"Agent {agent}'s upload held NaN, infinity or numbers too large to be added, and was "
            f"dropped, in {excluded[agent]} of {experiment.rounds} rounds."
        )


def describe_gain(result: Result) -> str:
    """Returns a sentence on what collaboration gained, and who ends worse than alone."""
    shown, (gain, _) = result.experiment.shown, result.collaboration_gain
    losses = np.nan_to_num(result.shortfall, nan=-1)  # not known
    worst = int(losses.argmax())
    below = "nobody ends worse than alone" if (losses == 0).all() else "who ends worse is not known"
    if losses[worst] > 0:
        loss = shown.change(losses[worst]).removeprefix("+")
        below = f"worse than alone: {(losses > 0).sum()}, most of all agent {worst}, by {loss}"
    return f"Gain over alone: {shown.change(gain)} on average; {below}"


def describe_communication(result: Result) -> str:
    """Returns a sentence on what agents send and receive in a round."""
    sent, received = (result.communication[name].mean() for name in ("uploaded", "received"))
    network: Any = result.history.network
    return (
        f"An agent sends {sent:,.0f} numbers a round and receives {received:,.0f} on average, of "
        f"the network's {network[-1]:,}; % are shares of these"
    )


def print_over_seeds(comparison: Comparison) -> None:
    """Prints one row per mechanism: means and standard deviations, and paired differences."""
    table, seeds = comparison.table(), ", ".join(map(str, comparison.seeds))
    title = f"Mechanisms on the same shards, seeds {seeds}: mean ± standard deviation"
    print_table(title, table.columns, table.cells())


def print_comparison(results: Mapping[str, Result]) -> None:
    """Prints one row per mechanism."""
    shown = next(iter(results.values())).experiment.shown
    ends = [f"{end} {shown.unit}" for end in ("best", "mean", "worst")]
    changes = [f"{change} {shown.unit}" for change in ("gain", "shortfall")]
    headings = ("mechanism", "fairness", "tau", *changes, *ends)
    rows = []
    for name, result in results.items():
        figures = (number(result.fairness), number(result.rank_fairness))
        changes = (result.collaboration_gain[0], result.shortfall.max())
        values = (*changes, *shown.ends(result.accuracies))
        rows.append((name, *figures, *map(shown.text, values)))
    console = output()
    print_table("Mechanisms on the same shards", headings, rows)
    for name, result in results.items():
        if result.fairness_note:
            console.print(f"Fairness of {name} is undefined: {result.fairness_note}.")
