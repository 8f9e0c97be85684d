"""Tracking: scalars of a run by round and agent, to CSV, TensorBoard or Weights & Biases.

    history so far  ->  rows of the rounds that are new  ->  each tool, by its own library

`fairjax run --track csv` writes every round as it is played; other tools are `tensorboard` and
`wandb`. A run that goes on continues or replaces what it wrote before, so no round is there
twice. Numbers that are not known, such as accuracies of rounds without evaluation, are left out.
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

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # that tools need


class Row(NamedTuple):
    """What is tracked of one round."""

    round: int  # from 1, as figures count
    agents: Mapping[str, np.ndarray]  # [N] by name
    server_accuracy: float


class Tool(NamedTuple):
    """How a tool takes what is tracked."""

    write: Callable[[Sequence[Row]], None]  # rows that follow those before
    finish: Callable[[Mapping[str, float]], None]  # figures at the end
    close: Callable[[], None]


class Tracker:
    """Hands each round of a run to some tools, once."""

    def __init__(self, tools: Sequence[Tool] = ()):
        self._tools = tools
        self._written = 0

    def rounds(self, history: History) -> None:
        """Takes the rounds played so far, of which those handed over before are skipped."""
        num_rounds = len(history.accuracies)
        if num_rounds > self._written:
            rows = [_row(history, number) for number in range(self._written, num_rounds)]
            for tool in self._tools:
                tool.write(rows)
            self._written = num_rounds

    def finish(self, result: Result) -> None:
        """Takes what is left of the rounds, and the figures at the end."""
        self.rounds(result.history)
        names = ("fairness", "trained_fairness", "detection_auc")
        figures = {name: getattr(result, name) for name in names}
        for tool in self._tools:
            tool.finish({name: value for name, value in figures.items() if math.isfinite(value)})


def checked(track: str | Sequence[str], out: Path | None) -> tuple[str, ...]:
    """Returns the names of tools, or says what they lack.

    Args:
      track: names of `TOOLS`, in one string separated by commas or in several.
      out: the run's directory, which tools write into.

    Raises:
      ValueError: a name is unknown, its package is not installed, or there is no `out`.

    Examples:
      >>> checked("csv", Path("runs"))
      ('csv',)
    """
    parts = track.split(",") if isinstance(track, str) else track
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
    names: Sequence[str], out: Any, title: str, settings: Mapping[str, Any], resume: bool
) -> Iterator[Tracker]:
    """Opens tools for one run, and closes them whatever comes of it.

    Of several processes, the first one tracks.

    Args:
      names: as `checked` returns them.
      out: the run's directory.
      title: the run's name.
      settings: the experiment, as JSON.
      resume: go on with what a tool has of this run; False: start over.
    """
    with contextlib.ExitStack() as stack:
        tools = []
        for name in names if jax.process_index() == 0 else ():
            tools.append(TOOLS[name](out, title, settings, resume))
            stack.callback(tools[-1].close)
        yield Tracker(tools)


def _row(history: History, number: int) -> Row:
    agents = {
        "accuracy": history.accuracies,
        "trained_accuracy": history.trained_accuracies,
        "contribution": history.contributions,
        "importance": history.importance,
        "fraction": history.fractions,
        "excluded": history.excluded,
    }
    return Row(
        round=number + 1,
        agents={name: np.asarray(values[number]) for name, values in agents.items()},
        server_accuracy=float(history.server_accuracies[number]),
    )


def _scalars(row: Row) -> dict[str, float]:
    """Returns what is known of a round, by names as tools group them: "accuracy/agent_0"."""
    named = {
        f"{name}/agent_{agent}": float(value)
        for name, values in row.agents.items()
        for agent, value in enumerate(values)
    }
    named["accuracy/server"] = row.server_accuracy
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _csv(out: Path, title: str, settings: Mapping[str, Any], resume: bool) -> Tool:
    """`rounds.csv`: one line per round and agent."""
    text = io.StringIO()

    def write(rows: Sequence[Row]) -> None:
        writer = csv.DictWriter(text, ["round", "agent", *rows[0].agents, "server_accuracy"])
        if not text.tell():
            writer.writeheader()
        for row in rows:
            for agent in range(len(row.agents["accuracy"])):
                of_agent = {name: values[agent] for name, values in row.agents.items()}
                of_agent["excluded"] = int(of_agent["excluded"])
                of_agent["server_accuracy"] = row.server_accuracy
                known = {name: value for name, value in of_agent.items() if value == value}
                writer.writerow({"round": row.round, "agent": agent, **known})
        with files.replacing(out / "rounds.csv") as file:
            file.write(text.getvalue().encode())

    return Tool(write, finish=lambda figures: None, close=lambda: None)


def _tensorboard(out: Path, title: str, settings: Mapping[str, Any], resume: bool) -> Tool:
    """Event files below `tensorboard/`, written anew from the first round on.

    By tensorboardX, which needs neither TensorFlow nor PyTorch nor TensorBoard itself. Its own
    writer is a thread, which a full disk ends without a word.
    """
    package, folder = _package("tensorboard"), out / "tensorboard"
    event = package.proto.event_pb2
    with files.naming(folder):
        for old in folder.rglob("events.out.tfevents.*"):
            old.unlink()
        (folder / "settings").mkdir(parents=True, exist_ok=True)
        events = package.event_file_writer.EventsWriter(str(folder / "events"))
    # A TensorBoard that watches forgets what it has read of the files before.
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
    """A run of the project "fairjax", the same one for the same experiment and directory.

    A server keeps the rounds that it has. Without one (WANDB_MODE=offline) the folder of an
    unfinished run is replaced by one with all rounds, to be sent by `wandb sync`.
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
