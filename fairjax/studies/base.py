"""What all studies share: a grid of cells, each saved on disk, then tables and a figure.

    cell     runs of one program over several seeds -> rows, one per seed and setting
    tables   means and spreads over seeds
    figure   draws the tables

A stopped study continues with the missing cells.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from fairjax import checks, files, mechanisms
from fairjax.experiments import Experiment, Sweep, records, sweep
from fairjax.figures import write
from fairjax.files import DamagedError
from fairjax.tables import Table

SEEDS = (0, 1, 2, 3, 4)
Rows = list[dict[str, Any]]
Say = Callable[[str], None]


class Cell(NamedTuple):
    """One part of a study, which is computed, saved and loaded as a whole."""

    name: str
    settings: Mapping[str, Any]  # everything that determines its rows, as JSON
    run: Callable[[], Rows]
    experiment: Experiment | None = None  # what it runs, to estimate its time
    num_runs: int = 1  # how many runs of the experiment
    seconds: float = 10.0  # further time, for example to compile

    @property
    def file(self) -> str:
        """The name of the cell's file, which its settings determine."""
        text = json.dumps(self.settings, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def sweep_cell(
    name: str, experiment: Experiment, run: Callable[[], Rows], seeds: Sequence[int], **axes: Any
) -> Cell:
    """Returns the cell of a sweep over seeds, and over further values of fields, by name."""
    settings = {**experiment.description(), **axes, "seed": list(seeds)}
    num_runs = math.prod(map(len, (seeds, *axes.values())))
    return Cell(name, settings, run, experiment, num_runs)


def compared_mechanisms() -> list[str]:
    """Returns the mechanisms that differ from each other where nobody trains adapters."""
    return [name for name in mechanisms.REGISTRY if name not in mechanisms.FOR_ADAPTERS]


@functools.lru_cache
def sweep_alone(alone: Experiment, seeds: tuple[int, ...], splits: tuple[str, ...]) -> Sweep:
    """Returns the standalone runs that many cells share, by `alone()` of their experiments."""
    return sweep(alone, seeds=seeds, split=splits)


class Study(NamedTuple):
    """A question, the cells with the rows that answer it, and how the answer is shown."""

    question: str
    cells: Callable[[bool], Sequence[Cell]]  # quick or not -> cells
    tables: Callable[[Rows], Mapping[str, Table]]  # the first has all rows, the others are shown
    draw: Callable[[Mapping[str, Table]], Figure]
    remarks: str = ""  # how to read the tables


class Report(NamedTuple):
    """The result of a study, and its files."""

    tables: Mapping[str, Table]
    text: str  # Markdown
    files: Sequence[Path]


def conduct(
    name: str,
    study: Study,
    out: Path,
    *,
    quick: bool,
    only: str = "",
    resume: bool = True,
    say: Say = print,
) -> Report:
    """Runs the missing cells of a study, and writes its CSV, Markdown and figure.

    Args:
      name: the study's name, also of its files.
      study: the study.
      out: the directory; cells that several studies share are computed once.
      quick: whether to run a small version, which takes minutes on two cores.
      only: a text that the names of cells must contain; files then have it in their names, too.
      resume: whether to keep finished cells; False: compute all cells again.
      say: called with each message on progress, and with an estimate of the remaining time.

    Raises:
      ValueError: `out` cannot be written, a data set is not available, or no cell's name contains
        `only`.
    """
    checks.text("only", only)
    for flag, value in (("quick", quick), ("resume", resume)):
        checks.flag(flag, value)
    out = checks.path("out", out)
    cells = [cell for cell in study.cells(quick) if only in cell.name]
    if not cells:
        names = ", ".join(cell.name for cell in study.cells(quick))
        raise ValueError(f"`only` must be part of a cell's name, got {only!r}. Known: {names}.")
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`out` must be a directory that can be written, got {out}.") from error
    missing = [cell for cell in cells if not (resume and _is_done(cell, out / "cells"))]
    say(f"{name}: {len(cells) - len(missing)} of {len(cells)} cells are done.")
    if not quick and missing:
        duration = _format_duration(_estimate_seconds(missing))
        say(f"{name}: the rest takes about {duration} on this machine.")
    for number, cell in enumerate(missing, len(cells) - len(missing) + 1):
        start = time.monotonic()
        rows = cell.run()
        content = {"settings": cell.settings, "environment": records.environment(), "rows": rows}
        records.write_json(out / "cells" / cell.file, content)
        say(f"{name}: {number} of {len(cells)}, {cell.name}, {time.monotonic() - start:.0f} s")
    done = [records.read_json(out / "cells" / cell.file) for cell in cells]
    tables = study.tables([_read_row(row) for content in done for row in content["rows"]])
    text = _format_report(name, study, done, tables, quick, only)
    stem = "-".join(filter(None, (name, only)))
    paths = [out / f"{stem}.{ending}" for ending in ("csv", "md", "png")]
    files.write(paths[0], next(iter(tables.values())).csv())
    files.write(paths[1], text)
    write(study.draw(tables), paths[2])
    return Report(tables, text, paths)


def _is_done(cell: Cell, folder: Path) -> bool:
    """Says whether a folder has the file of a finished cell."""
    path = folder / cell.file
    try:
        if not path.exists():
            return False
        content = records.read_json(path, ("settings", "environment", "rows"))
        if content["settings"] != json.loads(json.dumps(cell.settings)):
            raise DamagedError(f"{path} holds a cell of other settings.")
        rows, where = content["rows"], content["environment"]
        whole = isinstance(where, dict) and isinstance(rows, list) and rows
        if not whole or not all(isinstance(row, dict) and row for row in rows):
            raise DamagedError(f"{path} is damaged: it must hold rows and an environment.")
    except DamagedError as damage:
        warnings.warn(f"{damage} It is computed again.", stacklevel=3)
        return False
    return True


def _read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of a cell; numbers that were not finite become nan."""
    return {name: float("nan") if value is None else value for name, value in row.items()}


def _format_report(
    name: str,
    study: Study,
    done: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Table],
    quick: bool,
    only: str,
) -> str:
    settings = [content["settings"] for content in done]
    machines = collections.Counter(
        ", ".join(f"{key} {value}" for key, value in content["environment"].items())
        for content in done
    )
    common = {
        key: value
        for key, value in settings[0].items()
        if all(other.get(key) == value for other in settings)
    }
    parts = [f"# {name}", study.question]
    for title, table in list(tables.items())[1:] or tables.items():
        parts += [f"## {title}", table.markdown()]
    command = " ".join(
        ["fairjax study", name, *["--quick"] * quick, *[f"--only {only}"] * bool(only)]
    )
    parts += [
        study.remarks,
        "## Made by",
        f"`{command}`; means ± standard deviations over seeds; "
        f"{len(done)} {'cells' if len(done) > 1 else 'cell'}. All cells share these settings:",
        f"```json\n{json.dumps(common, indent=2)}\n```",
        *(f"Cells computed with {machine}: {count}." for machine, count in machines.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _estimate_seconds(cells: Sequence[Cell]) -> float:
    """Estimates the time of cells from one compiled round of each kind of experiment."""
    per_round: dict[Any, float] = {}
    total = 0.0
    for cell in cells:
        total += cell.seconds
        if cell.experiment is None:
            continue
        full = cell.experiment.resolved()
        kind = (
            full.dataset,
            full.num_agents,
            full.samples_per_agent,
            full.local_epochs,
            full.model,
        )
        if kind not in per_round:
            probe = dataclasses.replace(full.alone(), rounds=1, eval_every=1)
            sweep(probe, seeds=[0])  # compiles, and loads the data
            start = time.monotonic()
            sweep(probe, seeds=[0])
            per_round[kind] = (time.monotonic() - start) / 2  # a run trains one extra round
        total += cell.num_runs * full.rounds * per_round[kind]
    return total


def _format_duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
