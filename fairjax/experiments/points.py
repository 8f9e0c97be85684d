"""Points: the runs of a sweep as one compiled program.

All points have the same shapes, so one program plays a chunk of them. It is vmapped over data
sets and over coefficients; points with the same data also share its shuffles.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fairjax import programs, simulation, trees
from fairjax.data import Dataset, Shards
from fairjax.experiments import objects
from fairjax.experiments.experiment import Experiment
from fairjax.experiments.playing import Watcher
from fairjax.mechanisms import switched
from fairjax.simulation import (
    Behaviour,
    Events,
    Federation,
    History,
    Progress,
    check_held_out,
    check_paid,
    spare_maps,
    warn_of_honest,
)
from fairjax.types import Scalar

TRACED = ("alpha", "beta", "gamma", "learning_rate")
MANIPULATION = ("which", "agent", "strength")  # of a `Behaviour`, in an audit
CACHE_BYTES = 2**25  # cache of a CPU, shared by the local steps of all points
FEW_POINTS = 4  # on a CPU fewer are not vectorised
DEVICE_BYTES = 2**34  # memory of an accelerator that does not report it


def play_points(
    on: Sequence[Experiment],
    combinations: Sequence[Mapping[str, float]],
    shards: Shards,
    test: Dataset,
    points_at_once: int | None,
    watch: Watcher | None,
    together: tuple[Experiment, ...] = (),
    number: int = 0,
    manipulations: tuple[str, ...] = (),
) -> History:
    """Plays all points in chunks of equal size; returns their history, leaves `[P, T, ...]`.

    Args:
      on: one experiment for every data set.
      combinations: values of coefficients, or of a manipulation: its number in `manipulations`,
        the agent and the strength.
      shards: leaves `[S, ...]`.
      test: the test data.
      points_at_once: number of points that are vectorised; None: chosen for the device.
      watch: called with a name, the rounds played and the rounds in all.
      together: experiments with other mechanisms that share one program; they have no
        coefficients that vary. Empty: only this one.
      number: the place of this experiment in `together`.
      manipulations: behaviours of one agent, of which a point has one.
    """
    together = tuple(one.resolved() for one in together)
    resolved, name = on[0].resolved(), on[0].label("mechanism")
    given = _list_numbers(resolved, ("learning_rate",) if together else TRACED)
    coefficients = [{**given, **one} for one in combinations]
    common = _without_values(together[0] if together else resolved, coefficients[0])
    first = trees.row(shards)
    federation = common.federation(first)
    federation.training.task.check_test("test", test)
    played = dataclasses.replace(federation, mechanism=resolved.make_mechanism())
    _warn_of_batches(federation, first.data, np.max(shards.sizes, axis=1))
    for place in range(len(on)):  # some seeds may hold out data that cannot be judged
        check_held_out(played, jax.tree.map(lambda leaf, i=place: leaf[i], shards), test)
    runs = _stack_runs(on, shards, federation)
    values = {name: np.array([one[name] for one in coefficients]) for name in coefficients[0]}
    if points_at_once is None:
        points_at_once = _pick_points_at_once(federation, first)
    num_values = min(len(coefficients), points_at_once)
    num_runs = min(len(on), max(1, points_at_once // num_values))
    test = jax.device_put(test)
    parts, done, warned = [], 0, set()
    # By contents: the same objects, or names, can mean something else in a later call.
    others = tuple(objects.Contents(one.make_mechanism()) for one in together)
    numbers = (common.rounds, common.eval_every, common.record_updates)
    play = programs.Aside(functools.partial(_play, common, together, manipulations))
    program = _program(play, federation, others, numbers, manipulations)
    for some_runs in _chunks(len(on), num_runs):
        row = []
        for some_values in _chunks(len(coefficients), num_values):
            own = jax.tree.map(lambda leaf, rows=some_runs: leaf[rows], runs)
            # The indices give vmap an axis even if no coefficient varies.
            some = (some_values, {name: those[some_values] for name, those in values.items()})
            with jax.debug_nans(False):  # nan stands for what is not measured
                history, events = jax.device_get(program(own, some, test, number))
            check_paid(name, events.broken.max())
            warn_of_honest(events, warned)
            row.append(history)
            done += history.accuracies.shape[0] * history.accuracies.shape[1]
            if watch is not None:
                total = len(on) * len(coefficients)
                watch(name, min(done, total) * common.rounds, total * common.rounds)
        parts.append(jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *row))
    history = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return jax.tree.map(
        lambda leaf: leaf[: len(on), : len(coefficients)].reshape(-1, *leaf.shape[2:]), history
    )


def _list_numbers(experiment: Experiment, names: Iterable[str]) -> dict[str, float]:
    """Returns fields that can be traced; a schedule cannot, since it is part of the program."""
    given = {name: getattr(experiment, name) for name in names}
    return {name: value for name, value in given.items() if isinstance(value, int | float)}


def _without_values(experiment: Experiment, traced: Iterable[str]) -> Experiment:
    """Returns an experiment with constants for traced fields, so that others reuse its program.

    First parameters are an argument of the program, too; a frozen network is a part of it.
    """
    return dataclasses.replace(
        experiment,
        seed=0,
        params=None if experiment.lora_rank is None else experiment.params,
        **{name: 0.5 for name in traced if name not in MANIPULATION},
    )


def _warn_of_batches(federation: Federation, examples: Dataset, longest: np.ndarray) -> None:
    """Warns if a network with statistics sees other batches in a run of one seed alone.

    The largest shards `[S]` of all seeds have so many examples.
    """
    training = federation.training
    if len(set(np.minimum(longest, training.largest_batch).tolist())) == 1:
        return
    draw = functools.partial(simulation.first_statistics, model=training.model)
    if jax.eval_shape(draw, jax.random.key(0), data=examples) is not None:
        warnings.warn(
            f"The largest shards of the seeds have {longest.min()} to {longest.max()} examples "
            f"and `batch_size` is {training.largest_batch}. Networks with statistics see batches "
            "filled up to the longest of all, so a run of one seed alone differs somewhat.",
            stacklevel=2,
        )


def _stack_runs(on: Sequence[Experiment], shards: Shards, federation: Federation) -> dict[str, Any]:
    """Returns what differs between the data sets of a sweep, leaves `[S, ...]`."""
    # First parameters are drawn outside of the program, as a single run draws them.
    params, keys = [], [simulation.as_key(jax.random.key(one.seed)) for one in on]
    for place, (one, key) in enumerate(zip(on, keys, strict=True)):
        own = jax.tree.map(lambda leaf, place=place: leaf[place], shards)
        given = one.first_params(own)
        model = federation.training.model
        params.append(simulation.first_params(key, model, own.data) if given is None else given)
    return {
        "shards": shards,
        "params": jax.tree.map(lambda *leaves: np.stack(leaves), *params),
        "key": np.stack([jax.random.key_data(key) for key in keys]),
        "places": np.array([[who.agent for who in one.assigned_behaviours()] for one in on]),
    }


def _chunks(length: int, size: int) -> list[np.ndarray]:
    """Returns indices below `length` in chunks of one size; the last repeats the last index."""
    return [
        np.minimum(np.arange(start, start + size), length - 1) for start in range(0, length, size)
    ]


@functools.lru_cache(maxsize=simulation.PROGRAMS)
def _program(play: programs.Aside, federation: Federation, *others: Any) -> Any:
    """Returns `_play` compiled for experiments; the most recently used programs are cached."""
    del others  # they need another program, too
    spare_maps()
    compiled = programs.WithCaptured if federation.training.ranked else jax.jit
    return compiled(play.value)


def _play(
    experiment: Experiment,
    together: tuple[Experiment, ...],
    manipulations: tuple[str, ...],
    runs: Any,
    coefficients: Any,
    test: Dataset,
    number: Scalar,
) -> tuple[History, Events]:
    """Returns histories of runs x coefficients, `[S, K, T, ...]`, and events for the host."""
    assigned = experiment.assigned_behaviours()

    def point(run: Any, numbered: Any) -> tuple[History, Events]:
        _, values = numbered
        shards, num_rounds = run["shards"], experiment.rounds
        behaviours = [  # data behaviours have changed the data
            one._replace(agent=run["places"][place])
            for place, one in enumerate(assigned)
            if one.name not in simulation.DATA
        ]
        manipulated = {name: values[name] for name in MANIPULATION if name in values}
        if manipulated:
            behaviours = [Behaviour(name=manipulations, **manipulated)]
        values = {name: value for name, value in values.items() if name not in manipulated}
        federation = dataclasses.replace(experiment, **values).federation(
            shards, behaviours=behaviours
        )
        if together:
            mechanism = switched(number, [one.make_mechanism() for one in together])
            federation = dataclasses.replace(federation, mechanism=mechanism)
        key = jax.random.wrap_key_data(run["key"], impl=simulation.THREEFRY)
        state = federation.init(key, shards, run["params"], num_rounds, test)
        (state, events), rows = simulation.play(
            federation,
            num_rounds + 1,
            state,
            shards,
            test,
            num_rounds,
            experiment.eval_every,
            record_updates=experiment.record_updates,
        )
        return simulation.history(Progress(state, rows), num_rounds), events

    numbers, values = coefficients
    if len(numbers) == 1:  # a second vmap would double the time to trace and compile
        first = trees.row((numbers, values))
        if len(runs["key"]) == 1:  # XLA is slow with axes of length one
            found = point(trees.row(runs), first)
            return jax.tree.map(lambda leaf: leaf[None, None], found)
        found = jax.vmap(point, in_axes=(0, None))(runs, first)
        return jax.tree.map(lambda leaf: leaf[:, None], found)
    return jax.vmap(jax.vmap(point, in_axes=(None, 0)), in_axes=(0, None))(runs, coefficients)


def _pick_points_at_once(federation: Federation, shards: Shards) -> int:
    """Returns how many points to vectorise.

    On a CPU, agents take turns: the caches must hold the local step of one agent for each point.
    Steps so large that few fit gain nothing from a common axis; XLA is faster without it.
    On an accelerator, a quarter of the memory must hold the local steps of all agents.
    """
    needed = simulation.bytes_per_agent(federation.training, shards)
    device = jax.devices()[0]
    if device.platform == "cpu":
        fitting = CACHE_BYTES // needed
        return fitting if fitting >= FEW_POINTS else 1
    memory = (device.memory_stats() or {}).get("bytes_limit", DEVICE_BYTES)
    return max(1, memory // (4 * needed * shards.num_agents))
