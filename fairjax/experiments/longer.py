"""Longer: a run with more rounds goes on where the shorter one of the same experiment stopped.

record, description -> the number of rounds there, if only the length differs

A longer run is another run if something follows the length: a schedule that ends with the run, or
a mechanism that looks at `num_rounds`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fairjax.experiments import objects
from fairjax.experiments.setup import Setup
from fairjax.simulation import Progress, State, follows_length

LISTED = ("gamma", "participation")  # fields that may hold one value per round
OF_LENGTH = ("gamma", "learning_rate_decay")  # fields that presets choose by the length


def rounds_before(there: Mapping[str, Any], here: Mapping[str, Any]) -> int | None:
    """Returns the rounds of a recorded experiment that is the same but shorter, or None.

    Args:
      there: the recorded experiment, as JSON.
      here: the experiment to run, as JSON.

    Examples:
      >>> rounds_before({"rounds": 3, "seed": 0}, {"rounds": 5, "seed": 0})
      3
    """
    before, now = there.get("rounds"), here["rounds"]
    if not isinstance(before, int) or before >= now:
        return None
    expected = {**there, "rounds": now}
    at_end = there.get("eval_every") == before and here["eval_every"] == now
    if there.get("mechanism") == "standalone" and at_end:
        expected["eval_every"] = now
    for name in LISTED:
        values = here.get(name)
        if isinstance(values, list) and values[:before] == there.get(name):
            expected[name] = values
    same = expected.keys() == here.keys() and all(
        objects.same(expected[name], value) for name, value in here.items()
    )
    return before if same else None


def hint(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Returns why a longer run of the same experiment does not go on, or an empty text."""
    if not isinstance(there.get("rounds"), int) or there["rounds"] >= here["rounds"]:
        return ""
    following = [
        name for name in OF_LENGTH if name in there and not objects.same(there[name], here[name])
    ]
    if not following:
        return ""
    settled = {name: here[name] for name in following}
    if str(here.get("gamma")).startswith("cosine"):  # it ends with the run
        settled["gamma"] = "median"
    given = " and ".join(f"{name}={objects.shown(value)}" for name, value in settled.items())
    return (
        f" A longer run goes on only with the same {' and '.join(settled)}, which the preset "
        "chooses by the number of rounds. Give a run that may be lengthened values of its own from "
        f"the start, such as {given}; a cosine as `gamma` ends with the run."
    )


def check_can_go_on(experiment: Setup, before: int) -> None:
    """Raises if the mechanism of an experiment depends on the number of rounds of the whole run.

    Args:
      experiment: the longer experiment.
      before: the number of rounds of the shorter one.
    """
    shards, test = experiment.kept_shards()
    if follows_length(experiment.federation(shards), shards, test):
        raise ValueError(
            f"`rounds` must stay at {before} in this directory, got rounds={experiment.rounds}: "
            f"the mechanism {experiment.label('mechanism')!r} depends on the number of rounds of "
            "the whole run (a cosine as `gamma` does), so a longer run has other numbers from the "
            "start. Choose another directory."
        )


def prolonged(progress: Progress, num_rounds: int, eval_every: int) -> Progress:
    """Returns the progress of a shorter run as that of a run of `num_rounds` rounds.

    The shorter run's extra round is played again, and its last accuracies are left out if the
    longer run does not evaluate in that round.
    """
    state: State = progress.state
    before = int(state.num_rounds)
    if before == num_rounds:
        return progress
    rows = jax.tree.map(lambda row: row[:before], progress.rows)
    if progress.num_rounds >= before and before % eval_every:
        measured = ("accuracies", "server_accuracies", "metrics")
        rows = rows._replace(
            **{name: jax.tree.map(_without_last, getattr(rows, name)) for name in measured}
        )
    number = jax.device_put(np.int32(num_rounds), state.num_rounds.sharding)
    return Progress(state._replace(num_rounds=number), rows)


def _without_last(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[:-1], np.full_like(values[-1:], np.nan)])
