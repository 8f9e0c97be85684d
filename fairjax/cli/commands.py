"""Commands: run an experiment, compare or audit mechanisms, conduct a study, show runs, list names.

Tables go to standard output, progress to standard error. A user's mistake ends the command
with one sentence and exit code 2.
"""

import functools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import tyro
from rich.console import Console

from fairjax import checks, data, mechanisms, models, tasks
from fairjax.cli import beforehand, endings, flags
from fairjax.cli.terminal import (
    output,
    print_comparison,
    print_lines,
    print_over_seeds,
    print_result,
    print_table,
)
from fairjax.devices import start
from fairjax.experiments import (
    Comparison,
    Experiment,
    ProgressBar,
    Result,
    audit,
    compare,
    folders,
    load_comparison,
    load_run,
    records,
)
from fairjax.simulation import DATA, UPLOADS
from fairjax.tables import first_line, listed

Nested = tyro.conf.arg(name="")  # `--help` shows groups of flags under their own names
if TYPE_CHECKING:
    RunFlags = Any
    CompareFlags = Any
    AuditFlags = Any
else:
    RunFlags = Annotated[flags.flags(), Nested]
    CompareFlags = Annotated[flags.flags("options", "mechanism"), Nested]
    AuditFlags = Annotated[flags.flags("behaviours", "eval_every", "record_updates"), Nested]
Resume = tyro.conf.FlagConversionOff[bool]  # --resume False
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Number = Annotated[Any, tyro.conf.arg(metavar="INT", help_behavior_hint=""), flags.AS_READ]
Address = Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")]
Mechanisms = Annotated[str, tyro.conf.arg(metavar="NAMES")]
Seeds = Annotated[str, tyro.conf.arg(metavar="INTS", help_behavior_hint="(default: --seed)")]
All = Annotated[str, tyro.conf.arg(metavar="LIST", help_behavior_hint="(default: all)")]
Study = Annotated[str, tyro.conf.arg(metavar="NAME")]
Tools = Annotated[str, tyro.conf.arg(metavar="NAMES", help_behavior_hint="(default: none)")]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a user's mistake gives one sentence and exit code 2."""
    functions = (_run, _compare, _audit, _study, _show, _list)
    commands = {function.__name__.removeprefix("_"): function for function in functions}
    beforehand.keep_programs()
    beforehand.keep_objects()
    with endings.end_with_sentence():
        flags.parse(commands, sys.argv[1:] if arguments is None else arguments)()


def _run(
    described: RunFlags,
    out: Folder = None,
    resume: Resume = True,
    track: Tools = "",
    devices: Number = None,
    coordinator: Address = None,
    num_processes: Number = None,
    process_id: Number = None,
) -> None:
    """Run one experiment, and the standalone run beside it.

    Args:
      described: the experiment.
      out: directory for records and figures; by default below runs/, named after the experiment.
      resume: go on with a run that was stopped; False: start over.
      track: tools that receive every round's scalars: csv, tensorboard, wandb, or several with
        commas.
      devices: how many devices of each process share the agents; by default 1, or all if there
        are several processes.
      coordinator: address of the first of several processes, the same in all commands.
      num_processes: number of processes, at least 1.
      process_id: number of this process, from 0; the first one writes and prints.
    """
    try:
        mesh = start(
            devices, coordinator=coordinator, num_processes=num_processes, process_id=process_id
        )
    except TimeoutError as error:
        endings.complain(str(error))
        os._exit(2)  # a normal exit would let XLA print the error, too
    experiment = flags.experiment(described)
    out = out or Path("runs") / experiment.name
    finished = resume and (out / records.RESULT).exists()
    if track and finished and not _goes_on(experiment, out):
        endings.complain(
            f"the run in {out} is finished, so `track` has nothing to follow: see --resume."
        )
    if not finished and jax.process_index() == 0:
        beforehand.say_memory(experiment, mesh)
    try:
        with endings.resumable(out, resume), ProgressBar() as watch, beforehand.importing():
            result = experiment.run(out, resume, mesh=mesh, watch=watch, track=track)
    except (RuntimeError, ValueError) as error:
        # Errors of XLA begin with the name of a status; they have several types.
        if num_processes is None or not re.match("[A-Z_]+: ", str(error)):
            raise
        endings.complain(
            f"another process of this run was lost ({str(error).splitlines()[0]}). Start all "
            "processes again with the same commands. They go on from the last checkpoint."
        )
        # A normal exit would wait for the lost process.
        os._exit(1)
    if jax.process_index() == 0:
        _leave(result, out)


def _goes_on(experiment: Experiment, out: Path) -> bool:
    """Says whether an experiment has more rounds than the run in a directory."""
    return records.read_experiment(out)["experiment"].get("rounds", 0) < experiment.rounds


def _compare(
    described: CompareFlags,
    mechanisms: Mechanisms = "cgsv,fedavg,standalone",
    seeds: Seeds = "",
    out: Folder = None,
    resume: Resume = True,
) -> None:
    """Run several mechanisms on the same shards, and print one table.

    Args:
      described: the experiment.
      mechanisms: names of mechanisms, or files and names in them as mine.py:factory, separated by
        commas.
      seeds: several seeds in place of --seed, as 0:5 (0 to 4) or 0,3,7; the table then has means,
        standard deviations and differences from the first mechanism, and is also written as
        Markdown, CSV and LaTeX.
      out: directory that gets one folder per mechanism; by default below runs/.
      resume: go on with runs that were stopped; False: start over.
    """
    names = [name.strip() for name in mechanisms.split(",") if name.strip()]
    experiment = flags.experiment(described, names)
    # Name the folder after the mechanisms, so that comparisons do not replace each other's pages.
    drawn = flags.parse_seeds(seeds)
    folder = _name_folder([*names, *(["seeds", listed(drawn)] if drawn else [])])
    out = out or Path("runs") / f"compare-{experiment.name}" / folder
    saved = endings.MECHANISMS if drawn else endings.CHECKPOINTS
    with endings.resumable(out, resume, saved), ProgressBar() as watch:
        results = compare(experiment, names, out, resume, seeds=drawn, watch=watch)
    _leave(results, out)


def _name_folder(given: list[str]) -> str:
    """Returns a name for a folder, in which 0:5 and 0,5 differ."""
    return re.sub(r"[^\w.-]", "_", "-".join(given).replace(":", "to"))


def _audit(
    described: AuditFlags,
    manipulations: All = "",
    agents: All = "",
    seeds: Annotated[str, tyro.conf.arg(metavar="INTS")] = "0:5",
    out: Folder = None,
) -> None:
    """Let agents cheat in turn, and print what each gains by it and what it costs the others.

    Args:
      described: the experiment.
      manipulations: behaviours that `fairjax list` explains, except collude, which takes two
        agents; stretch (rescaling by the factor that gains most); or sybil (one agent as two);
        separated by commas.
      agents: the agents that cheat in turn, as 0:3 (0 to 2) or 0,4.
      seeds: the seeds, as 0:5 (0 to 4) or 0,3,7; --seed does not count.
      out: directory for the page, the tables and the figure; by default below runs/.
    """
    from fairjax import report

    experiment = flags.experiment(described)
    names = [name.strip() for name in manipulations.split(",") if name.strip()] or None
    drawn = [*(flags.parse_seeds(seeds) or ())]
    cheats = flags.parse_seeds(agents, "agents")
    # Name the folder after its arguments, so that audits do not replace each other's pages.
    given = [*(names or ["all"]), *(["agents", agents] if agents else []), "seeds", listed(drawn)]
    out = out or Path("runs") / f"audit-{experiment.name}" / _name_folder(given)
    ending = endings.resumable(out, True, endings.NO_PARTS)
    with ending, records.locked(out), ProgressBar() as watch:
        told = experiment.description() | {"seed": drawn, "manipulations": names, "agents": agents}
        folders.check_audit(out, told)
        found = audit(experiment, names, cheats, drawn, watch=watch)
        records.write_json(out / folders.AUDIT, told)
    table = found.table()
    unit = "points" if experiment.shown.in_percent else experiment.shown.words
    title = f"Cheating under {experiment.label('mechanism')}: gain over the honest run ({unit})"
    print_table(title, table.columns, table.cells())
    where = f"Report: {report.write_audit(found, out)}"
    output().print(where, soft_wrap=True, highlight=False, markup=False)


def _study(
    name: tyro.conf.Positional[Study],
    quick: bool = False,
    only: Annotated[str, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: all)")] = "",
    out: Folder = None,
    resume: Resume = True,
) -> None:
    """Conduct a study: a table with means and spreads over seeds, and a figure.

    Args:
      name: the name of the study; `fairjax list` explains all studies.
      quick: conduct a small version, which takes minutes on two cores.
      only: run and show the parts whose names contain this text; `out`/cells names finished ones.
      out: directory for the results and their parts; by default below runs/.
      resume: go on with a study that was stopped; False: start over.
    """
    from fairjax.studies import STUDIES, conduct

    checks.choice("study", name, STUDIES)
    out = out or Path("runs") / ("study-quick" if quick else "study")
    log, console = Console(stderr=True), output()
    with endings.resumable(out, resume, endings.CELLS):
        say = functools.partial(log.print, highlight=False, soft_wrap=True)
        report = conduct(name, STUDIES[name], out, quick=quick, only=only, resume=resume, say=say)
    tables = list(report.tables.items())
    for title, content in tables[1:] or tables:
        print_table(title, content.columns, content.cells())
    if STUDIES[name].remarks:
        console.print(STUDIES[name].remarks, highlight=False)
    for path in report.files:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _show(
    directory: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]],
) -> None:
    """Print the table of a finished run or comparison again, and write its page and figures.

    Args:
      directory: the directory of the run, or of the comparison.
    """
    _leave(load_comparison(directory) or load_run(directory), directory)


def _list() -> None:
    """List mechanisms, data sets, splits, behaviours, studies, models, tasks and metrics."""
    from fairjax.studies import STUDIES

    console = output()
    console.print("[bold]Mechanisms[/bold]  --mechanism")
    print_lines({name: first_line(factory) for name, factory in mechanisms.REGISTRY.items()})
    console.print("[bold]Data sets[/bold]  --dataset; or any image-classification set of TFDS")
    print_lines({name: source.words for name, source in data.DATASETS.items()})
    console.print("[bold]Splits[/bold]  --split")
    print_lines({name: first_line(split) for name, split in data.SPLITS.items()})
    console.print("[bold]Behaviours[/bold]  --behaviours NAME=NUMBER[:STRENGTH]  (default)")
    kinds = {**DATA, **UPLOADS}
    default = {name: f" ({kind.strength:g})" if kind.most else "" for name, kind in kinds.items()}
    print_lines({name: kind.words + default[name] for name, kind in kinds.items()})
    console.print("[bold]Studies[/bold]  fairjax study NAME")
    print_lines({name: study.question.partition("? ")[0] + "?" for name, study in STUDIES.items()})
    console.print("[bold]Models[/bold]  --model")
    print_lines({name: first_line(factory) for name, factory in models.REGISTRY.items()})
    console.print("[bold]Tasks[/bold]  --task")
    print_lines({name: first_line(task) for name, task in tasks.TASKS.items()})
    console.print("[bold]Metrics[/bold]  --metric")
    print_lines({name: first_line(metric) for name, metric in tasks.METRICS.items()})


def _leave(results: Result | Comparison | Mapping[str, Result], out: Path) -> None:
    """Prints a result or a comparison, and writes its page and figures to `out`."""
    from fairjax import report  # with matplotlib, which help does not need

    if isinstance(results, Result):
        print_result(results)
        path = report.write_run(results, out)
    elif isinstance(results, Comparison):
        print_over_seeds(results)
        path = report.write_over_seeds(results, out)
    else:
        print_comparison(results)
        path = report.write_comparison(results, out)
    for line in (f"Records and figures: {out}", f"Report: {path}"):
        output().print(line, soft_wrap=True, highlight=False, markup=False)
