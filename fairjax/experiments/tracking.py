"""Tracking: sends scalars by round and agent to CSV, TensorBoard or Weights & Biases.

    history so far  ->  rows of new rounds  ->  each tool, through its own library

`fairjax run --track csv` writes every round when it is played; other tools are `tensorboard` and
`wandb`. A resumed run continues or replaces its earlier output, so no round occurs twice.
Unknown numbers are left out, such as accuracies of rounds without evaluation.
"""

import contextlib
import csv
import hashlib
import importlib
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fairjax import checks, files
from fairjax.experiments.results import Result
from fairjax.simulation import History

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # the package that each tool needs


class Row(NamedTuple):
    """The scalars of one round."""

    round: int  # from 1, as in figures
    agents: Mapping[str, np.ndarray]  # [N] by name
    main: str  # the name of the main metric
    server: float  # its value for the server's model


class Tool(NamedTuple):
    """The functions through which a tool receives scalars."""

    write: Callable[[Sequence[Row]], None]  # new rows, in order
    finish: Callable[[Mapping[str, float]], None]  # the final figures
    close: Callable[[], None]


class Tracker:
    """Sends each round of a run to some tools, once."""

    def __init__(self, main: str, tools: Sequence[Tool] = (), before: int = 0):
        self._main, self._tools, self._before = main, tools, before
        self._written = 0

    def rounds(self, history: History) -> None:
        """Sends the rounds of a history that were not sent before."""
        num_rounds = len(history.accuracies)
        if num_rounds > self._written:
            rows = [
                _row(history, number, self._main, self._before)
                for number in range(self._written, num_rounds)
            ]
            for tool in self._tools:
                tool.write(rows)
            self._written = num_rounds

    def finish(self, result: Result) -> None:
        """Sends the remaining rounds and the final figures."""
        self.rounds(result.history)
        names = ("fairness", "trained_fairness", "rank_fairness", "detection_auc")
        figures = {name: getattr(result, name) for name in names}
        figures["gain"], figures["gain_spread"] = result.collaboration_gain
        figures["shortfall"] = float(result.shortfall.max())
        for tool in self._tools:
            tool.finish({name: value for name, value in figures.items() if math.isfinite(value)})


def checked(track: str | Sequence[str], out: Path | None) -> tuple[str, ...]:
    """Returns the names of tools; raises if a tool cannot be used.

    Args:
      track: names in `TOOLS`, as one string with commas or as several strings.
      out: the run's directory, where tools write.

    Raises:
      ValueError: a name is unknown, its package is not installed, or `out` is None.

    Examples:
      >>> checked("csv", Path("runs"))
      ('csv',)
    """
    parts = track.split(",") if isinstance(track, str) else track
    if not checks.is_listing(parts) or not all(isinstance(name, str) for name in parts):
        raise ValueError(
            f"`track` must be names of {', '.join(TOOLS)}, got track={checks.shown(track)}."
        )
    names = tuple(dict.fromkeys(name.strip() for name in parts if name.strip()))
    for name in names:
        checks.choice("track", name, TOOLS)
        if name in PACKAGES:
            _package(name)
    if names and out is None:
        raise ValueError(f"`track` needs `out`, a directory to write into, got track={track!r}.")
    return names


def _package(name: str) -> Any:
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise ValueError(
            f"`track={name!r}` needs a package: {error}. Install it with "
            f"`pip install '.[{name}]'` in a checkout of fairjax."
        ) from error


@contextlib.contextmanager
def opened(
    names: Sequence[str],
    out: Any,
    title: str,
    settings: Mapping[str, Any],
    resume: bool,
    main: str,
    before: int = 0,
) -> Iterator[Tracker]:
    """Opens tools for one run, and closes them at the end of the block, even after an error.

    If there are several processes, only the first one tracks.

    Args:
      names: names of tools, from `checked`.
      out: the run's directory.
      title: the run's name.
      settings: the experiment, as JSON.
      resume: True: continue a tool's earlier output of this run; False: start over.
      main: the name of the run's main metric.
      before: the number of rounds that were played before this run.
    """
    with contextlib.ExitStack() as stack:
        tools = []
        for name in names if jax.process_index() == 0 else ():
            tools.append(TOOLS[name](out, title, settings, resume))
            stack.callback(tools[-1].close)
        yield Tracker(main, tools, before)


def _row(history: History, number: int, main: str, before: int) -> Row:
    agents = {
        main: history.accuracies,
        f"trained_{main}": history.trained_accuracies,
        "contribution": history.contributions,
        "importance": history.importance,
        "fraction": history.fractions,
        "participates": history.participants,
        "excluded": history.excluded,
        **{name: values for name, values in (history.metrics or {}).items() if name != main},
    }
    return Row(
        round=before + number + 1,
        agents={name: np.asarray(values[number]) for name, values in agents.items()},
        main=main,
        server=float(history.server_accuracies[number]),
    )


def _scalars(row: Row) -> dict[str, float]:
    """Returns the known scalars of a round, by names such as "accuracy/agent_0"."""
    named = {
        f"{name}/agent_{agent}": float(value)
        for name, values in row.agents.items()
        for agent, value in enumerate(values)
    }
    named[f"{row.main}/server"] = row.server
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _csv(out: Path, title: str, settings: Mapping[str, Any], resume: bool) -> Tool:
    """Writes `rounds.csv`: one line per round and agent."""
    text = io.StringIO()

    def write(rows: Sequence[Row]) -> None:
        server = f"server_{rows[0].main}"
        writer = csv.DictWriter(text, ["round", "agent", *rows[0].agents, server])
        if not text.tell():
            writer.writeheader()
        for row in rows:
            for agent in range(len(row.agents[row.main])):
                of_agent = {name: values[agent] for name, values in row.agents.items()}
                of_agent |= {name: int(of_agent[name]) for name in ("participates", "excluded")}
                of_agent[server] = row.server
                known = {name: value for name, value in of_agent.items() if value == value}
                writer.writerow({"round": row.round, "agent": agent, **known})
        files.write(out / "rounds.csv", text.getvalue())

    return Tool(write, finish=lambda figures: None, close=lambda: None)


def _tensorboard(out: Path, title: str, settings: Mapping[str, Any], resume: bool) -> Tool:
    """Writes event files below `tensorboard/`, always from the first round on.

    This uses tensorboardX, which needs neither TensorFlow nor PyTorch nor TensorBoard. It avoids
    the package's own writer, a thread that a full disk ends without an error.
    """
    package, folder = _package("tensorboard"), out / "tensorboard"
    event = package.proto.event_pb2
    with files.naming(folder):
        for old in folder.rglob("events.out.tfevents.*"):
            old.unlink()
        (folder / "settings").mkdir(parents=True, exist_ok=True)
        events = package.event_file_writer.EventsWriter(str(folder / "events"))
    # This event makes a running TensorBoard forget the deleted files.
    started = event.SessionLog(status=event.SessionLog.START)

    def add(writer: Any, step: int, **content: Any) -> None:
        writer.write_event(event.Event(wall_time=time.time(), step=step, **content))

    def write(rows: Sequence[Row]) -> None:
        with files.naming(folder):
            for row in rows:
                for name, value in _scalars(row).items():
                    add(events, row.round, summary=package.summary.scalar(name, value))
            events.flush()

    def finish(figures: Mapping[str, float]) -> None:
        plain = {
            name: value if isinstance(value, int | float | str) else json.dumps(value)
            for name, value in settings.items()
        }
        with files.naming(folder):
            writer = package.event_file_writer.EventsWriter(str(folder / "settings" / "events"))
            for summary in package.summary.hparams(plain, dict(figures)):
                add(writer, 0, summary=summary)
            for name, value in figures.items():
                add(writer, 0, summary=package.summary.scalar(name, value))
            writer.close()

    def close() -> None:
        with files.naming(folder):
            events.close()

    add(events, 0, session_log=started)
    return Tool(write, finish, close)


def _wandb(out: Path, title: str, settings: Mapping[str, Any], resume: bool) -> Tool:
    """Writes to a run of the project "fairjax", one for each experiment and directory.

    A server keeps the rounds that it has. Without a server (WANDB_MODE=offline), a new folder
    with all rounds replaces that of an unfinished run; `wandb sync` sends it.
    """
    place = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:8]
    identity = f"{title}-{place}"
    for old in out.glob(f"wandb/offline-run-*-{identity}"):
        shutil.rmtree(old)
    run = _package("wandb").init(
        project="fairjax",
        id=identity,
        name=title,
        dir=out,
        config=dict(settings),
        resume="allow" if resume else None,
    )

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            if row.round >= run.starting_step:
                run.log(_scalars(row), step=row.round)

    def finish(figures: Mapping[str, float]) -> None:
        run.summary.update(dict(figures))

    return Tool(write, finish, run.finish)


TOOLS = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}
