"""Over seeds: the page that compares several mechanisms over several seeds."""

from pathlib import Path

from fairjax import checks, figures, files
from fairjax.experiments import Comparison, records
from fairjax.report import page, settings
from fairjax.report.comparison import common_experiment
from fairjax.report.page import Section
from fairjax.report.run import PAGE, draw_data

TABLES = {"md": "markdown", "csv": "csv", "tex": "latex"}


def write_over_seeds(comparison: Comparison, out: Path) -> Path:
    """Writes the page of a comparison over seeds, its table in three formats, and its figures.

    The table is `comparison.md`, `.csv` and `.tex`; figures are PNG.

    Args:
      comparison: what `fairjax.compare(..., seeds=...)` returned.
      out: the comparison's directory.

    Returns:
      The page's path.

    Raises:
      ValueError: `comparison` is no `Comparison`,
        or `out` is no directory with its records.
    """
    checks.kind("comparison", comparison, Comparison, "`fairjax.compare(..., seeds=range(5))`")
    out = page.with_records(out)
    table = comparison.table()
    for ending, form in TABLES.items():
        files.write(out / f"comparison.{ending}", f"{getattr(table, form)()}\n")
    firsts = {name: swept[0] for name, swept in comparison.sweeps.items()}
    first, experiment = next(iter(firsts.values())), common_experiment(firsts)
    runs = {name: one.experiment for name, one in firsts.items()}
    seeds = ", ".join(map(str, comparison.seeds))
    record = records.read_json(out / next(iter(firsts)) / records.EXPERIMENT)
    fields = settings.table(experiment, without=["mechanism", "seed"])
    lines = [settings.mechanism(one.experiment) for one in firsts.values()]
    run = [
        *map(page.text, lines),
        page.text(f"Seeds: {seeds}."),
        page.pair(fields, settings.environment(record)),
    ]
    sections = (
        _show_mechanisms(comparison, out),
        Section("held", "Who held which data, with the first seed", draw_data(first, out)),
        Section("run", "What was run", run),
        Section("again", "Run it again", settings.again(experiment, runs, comparison.seeds)),
    )
    title = f"{len(firsts)} mechanisms on {experiment.where}, {len(comparison.seeds)} seeds"
    words = settings.words(experiment, first.shard_sizes, with_seed=False)
    return page.write(out / PAGE, title, words, sections)


def _show_mechanisms(comparison: Comparison, out: Path) -> Section:
    table, first = comparison.table(), next(iter(comparison.sweeps))
    columns = [name for name in table.columns if name != "seeds"]
    rows = [
        [cell for name, cell in zip(table.columns, row, strict=True) if name in columns]
        for row in table.cells()
    ]
    shown = comparison[first][0].experiment.shown
    caption = (
        f"Final {shown.words} of the best and of the worst agent and the mean over agents; bars "
        "are one standard deviation over seeds. Right: fairness, mean gain and largest shortfall."
    )
    drawn = page.figure(figures.over_seeds(comparison), "over_seeds", caption, out / "figures")
    pieces = [
        drawn,
        page.table(columns, rows, words=True),
        page.text(
            f"Mean and standard deviation over seeds of {shown.axis}. Fairness is Pearson's "
            "correlation, over agents, of its standalone and final values; fairness_trained, of "
            "those after one more round's local epochs; rank_fairness is Kendall's tau. Gain is "
            "what agents end better than alone, its mean and spread over agents; shortfall is what "
            "the worst off of them ends worse. Where fairness is undefined for a seed, "
            "the seed is left out of the column for all mechanisms, and counted; a mechanism with "
            "most seeds undefined has no mean, and leaves no seed out of others."
        ),
        page.text(
            f"Columns with _vs_{first} hold the mean difference from {first} on the same seeds, "
            "with its 95% interval (Student's, paired)."
        ),
    ]
    return Section("mechanisms", "Which mechanism pays fairly, and at what price", pieces)
