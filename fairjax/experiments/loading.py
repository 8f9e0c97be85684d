"""Loading: reads the result of a finished run, and restores damaged files if possible."""

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairjax import simulation
from fairjax.data import Dataset, Shards
from fairjax.experiments import histories, records
from fairjax.experiments.checkpoints import Checkpoints
from fairjax.experiments.playing import Run
from fairjax.experiments.results import Result
from fairjax.experiments.setup import Setup
from fairjax.files import DamagedError
from fairjax.simulation import Federation, History, Progress, Rounds, State, names


def load(out: Path, experiment: Setup, record: Mapping[str, Any]) -> Result:
    """Returns the result of a finished run; see `load_run`.

    Args:
      out: the run's directory.
      experiment: the experiment that was run.
      record: the content of `experiment.json`.
    """
    shards, test = experiment.kept_shards()
    federation = experiment.federation(shards, record.get("agents_at_once"))
    beginning = run_of(experiment, federation, shards, test).rounds.beginning(measured=False)
    here = records.surroundings()["settings"]
    there = {**here, **record.get("settings", {})}
    other = [
        f"{name}={there[name]}, here {now}" for name, now in here.items() if there[name] != now
    ]
    last = Checkpoints(out).final(beginning, experiment.rounds + 1, other)
    history = _history(out, experiment, beginning, last)
    state = None if last is None else last.state
    try:
        alone = records.read_standalone_accuracies(out, experiment.num_agents)
        return result_of(experiment, history, state, shards, alone)
    except DamagedError as damage:
        alone = _standalone_accuracies(out, experiment, history)
        if alone is None:
            raise
        warnings.warn(f"{damage} It is rewritten from the history.", stacklevel=2)
    result = result_of(experiment, history, state, shards, alone)
    with contextlib.suppress(OSError):  # the folder may be read-only
        records.write_json(out / records.RESULT, result.summary())
    return result


def run_of(
    experiment: Setup,
    federation: Federation,
    shards: Shards,
    test: Dataset,
    within: Federation | None = None,
) -> Run:
    """Returns the run of an experiment, ready to be played, if possible `within` another."""
    rounds = Rounds(
        jax.random.key(experiment.seed),
        federation,
        shards,
        test,
        experiment.rounds,
        eval_every=experiment.resolved().eval_every or 1,
        record_updates=experiment.record_updates,
        params=experiment.first_params(shards),
        within=within or federation,
    )
    return Run(experiment.label("mechanism"), rounds)


def result_of(
    experiment: Setup,
    history: History,
    state: State | None,
    shards: Shards,
    alone: np.ndarray | None,
) -> Result:
    """Returns the result of an experiment with a given history."""
    return Result(
        experiment=experiment.resolved(),
        history=history,
        state=state,
        shard_sizes=np.array(shards.sizes),  # a copy, since those of cached data are read-only
        standalone_accuracies=history.accuracies[-1] if alone is None else alone,
        behaviours=names(experiment.assigned_behaviours(), experiment.num_agents),
    )


def _history(out: Path, experiment: Setup, like: Progress, last: Progress | None) -> History:
    """Returns the history from its file, or from the last checkpoint if the file is damaged."""
    try:
        return histories.read(out, like.rows, experiment.rounds)
    except DamagedError as damage:
        if last is None:
            raise
        warnings.warn(f"{damage} It is rewritten from the last checkpoint.", stacklevel=3)
    history = simulation.history(last, experiment.rounds)
    with contextlib.suppress(OSError):  # the folder may be read-only
        histories.write(out, history)
    return history


def _standalone_accuracies(out: Path, experiment: Setup, history: History) -> np.ndarray | None:
    """Returns `[N]` accuracies of the standalone run, or None if there is no such run.

    The standalone run is in a subfolder of a run, or next to the runs of a comparison.
    """
    if experiment.is_standalone:
        return history.accuracies[-1]
    for folder in (out / "standalone", out.parent / "standalone"):
        with contextlib.suppress(ValueError):
            record = records.read_experiment(folder)
            if record["experiment"] == experiment.alone().description():
                return load(folder, experiment.alone(), record).accuracies
    return None
