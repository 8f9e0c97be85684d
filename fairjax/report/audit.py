"""Audit: the page of what one agent gains by cheating, and what it costs the others."""

from pathlib import Path

from fairjax import checks, figures, files
from fairjax.experiments import Audit, records
from fairjax.report import page, settings
from fairjax.report.page import Section
from fairjax.report.run import PAGE
from fairjax.simulation import DATA, UPLOADS
from fairjax.tables import Table

TABLES = {"md": "markdown", "tex": "latex"}
OURS = {
    "stretch": "uploads its update times the factor, of several, that gains it most",
    "sybil": "takes part as two agents with half of its data each, and keeps the model that is "
    "better on the test data, which overstates its gain a little",
}


def write_audit(audit: Audit, out: Path) -> Path:
    """Writes the page of an audit, its tables and its figure, and returns the page's path.

    `audit.csv` has one row per manipulation and agent; `audit.md` and `audit.tex` have one per
    manipulation.

    Args:
      audit: what `fairjax.audit` returned.
      out: a directory; it is made if it does not exist.

    Raises:
      ValueError: `audit` is no `Audit`, or `out` is a file.
    """
    checks.kind("audit", audit, Audit, "`fairjax.audit(fairjax.Experiment())`")
    out = checks.path("out", out)
    if not out.exists():
        out.mkdir(parents=True)
    page.checked_folder(out)
    table, experiment = audit.table(), audit.experiment
    texts = {ending: getattr(table, form)() for ending, form in TABLES.items()}
    for ending, text in {**texts, "csv": Table(audit.rows()).csv()}.items():
        files.write(out / f"audit.{ending}", f"{text.rstrip()}\n")
    environment = settings.environment({"environment": records.environment()})
    fields = settings.table(experiment, without=["seed"])
    sections = (
        _show_gains(audit, table, out),
        _explain_manipulations(audit),
        Section("run", "What was run", [page.pair(fields, environment)]),
    )
    title = f"What cheating pays under {experiment.label('mechanism')} on {experiment.where}"
    sizes = experiment.kept_shards()[0].sizes
    words = settings.words(experiment, sizes, with_seed=False)
    lead = f"{words} The mechanism is {settings.mechanism(experiment)}"
    return page.write(out / PAGE, title, lead, sections)


def _show_gains(audit: Audit, table: Table, out: Path) -> Section:
    shown = audit.experiment.shown
    worst = [audit.rounded(gain) for gain in (audit.worst_gain, audit.worst_harm)]
    caption = (
        "What a manipulation gains the agent that cheats (filled, with a bar of one standard "
        "error), and the other agent that loses most by it (hollow). Models that diverge have no "
        "point."
    )
    seeds = ", ".join(map(str, audit.seeds))
    pieces = [
        page.text(
            f"The largest gain of a cheat is {worst[0]:g}, and the largest loss of one "
            f"other agent {worst[1]:g}: differences of final test {shown.words} "
            f"{'in points ' * shown.in_percent}to the honest run of the same seed, means over the "
            f"seeds {seeds}. The largest of many means is an overestimate of what it would be with "
            "other seeds."
        ),
        page.figure(figures.audit(audit), "audit", caption, out / "figures"),
        page.table(table.columns, table.cells(), words=True),
        page.text(
            "own_gain and others_gain are means over the agents that cheat in turn; most is the "
            "gain of the one that gains most, by_agent its number, with its standard error "
            "most_se; worst_other is the gain, mostly below 0, of the other agent that loses most. "
            "rank is where the importance of the one that cheats ends, from 0, the least; "
            "honest_rank is that without cheating.",
            soft=True,
        ),
    ]
    return Section("gains", "Who gains, and who loses", pieces)


def _explain_manipulations(audit: Audit) -> Section:
    words = {**{name: kind.words for name, kind in {**DATA, **UPLOADS}.items()}, **OURS}
    strengths = {}
    for row in audit.rows():
        strengths.setdefault(row["manipulation"], []).append(f"{row['strength']:g}")
    rows = [
        (name, words[name], ", ".join(dict.fromkeys(found))) for name, found in strengths.items()
    ]
    headings = ("manipulation", "what the agent does", "strength")
    return Section("kinds", "How they cheat", [page.table(headings, rows, words=True)])
