"""Sweeps: many runs of one experiment, as one compiled program and one table.

    datasets      who holds which data, for every split and seed      [S]
    coefficients  every combination of alpha, beta, gamma and learning rate  [K]
    points        every dataset with every combination, P = S K

All points have the same shapes, so a chunk of them is one program, vmapped over the
coefficients (which share their data and its shuffles) and over datasets.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairjax import checks, data, fields, records, simulation
from fairjax.behaviours import HONEST, names
from fairjax.data import Dataset, Shards
from fairjax.experiment import Experiment, load_run
from fairjax.federations import Federation
from fairjax.files import DamagedError
from fairjax.mechanisms import REGISTRY
from fairjax.memory import spare_maps
from fairjax.playing import WATCHES, Watcher
from fairjax.progress import Events, History, Progress, check_paid, warn_of_unchanged
from fairjax.results import Result
from fairjax.tables import Table, spreads

COEFFICIENTS = ("alpha", "beta", "gamma", "learning_rate")
CACHE_BYTES = 2**25  # of a CPU, that local steps of all points share
WORDS = {"fairness": "all equal", "fairness_trained": "all equal"}  # of seeds without one
DEVICE_BYTES = 2**34  # of an accelerator that does not say


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """What a sweep came to; the leading axis P is the point.

    Attributes:
      experiments: `[P]` the `Experiment` of every point, with every open field filled in.
      axes: the names of what varies, "seed" last.
      history: leaves `[P, T, ...]`.
      shard_sizes: `[P, N]` examples.
      standalone_accuracies: `[P, N]` test accuracies without sharing.
    """

    experiments: tuple[Experiment, ...]
    axes: tuple[str, ...]
    history: History
    shard_sizes: np.ndarray
    standalone_accuracies: np.ndarray

    def __repr__(self) -> str:
        """Returns how many points there are, and over what."""
        first = self.experiments[0]
        shared = {name: getattr(first, name) for name in ("dataset", "mechanism", "num_agents")}
        return fields.written("Sweep", {"points": len(self), "axes": self.axes, **shared})

    def __len__(self) -> int:
        """Returns P, the number of points."""
        return len(self.experiments)

    def __getitem__(self, point: int) -> Result:
        """Returns the result of one point, but for its final state, which is not kept."""
        if not isinstance(point, int | np.integer):
            raise ValueError(f"`point` must be a whole number, got {checks.shown(point)}.")
        experiment = self.experiments[point]
        return Result(
            experiment=experiment,
            history=jax.tree.map(lambda rows: rows[point], self.history),
            state=None,
            shard_sizes=self.shard_sizes[point],
            standalone_accuracies=self.standalone_accuracies[point],
            behaviours=names(experiment.assigned_behaviours(), experiment.num_agents),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per point: what varies, and what it came to."""
        return [
            {**{axis: getattr(one.experiment, axis) for axis in self.axes}, **_summarised(one)}
            for one in self
        ]

    def table(self) -> Table:
        """Returns one row per combination of values: means and spreads over the seeds.

        Rows of one split are compared, so their means are over the same seeds; of a sweep
        over splits alone, all are.
        """
        rows = self.rows()
        values = [name for name in rows[0] if name not in self.axes]
        apart = [name for name in self.axes[:-1] if name == "split" and len(self.axes) > 2]
        return spreads(rows, self.axes[:-1], values, apart=apart, words=WORDS)


def _summarised(result: Result) -> dict[str, float]:
    """Returns what a run came to, in numbers.

    Accuracies are in percent, over the agents of the run: best, mean and worst.
    """
    accuracies = 100 * result.accuracies
    figures = {
        "fairness": result.fairness,
        "fairness_trained": result.trained_fairness,
        "best_%": float(accuracies.max()),
        "mean_%": float(accuracies.mean()),
        "worst_%": float(accuracies.min()),
    }
    if set(result.behaviours) != {HONEST}:
        figures["detection_auc"] = result.detection_auc
    return figures


def sweep(
    experiment: Experiment,
    *,
    seeds: Sequence[int] = range(5),
    split: Sequence[str] | None = None,
    alpha: Sequence[float] | None = None,
    beta: Sequence[float] | None = None,
    gamma: Sequence[float] | None = None,
    learning_rate: Sequence[float] | None = None,
    points_at_once: int | None = None,
    watch: Watcher | None = None,
    standalone: Sweep | None = None,
) -> Sweep:
    """Runs an experiment for every combination of seeds and values, as one program.

    A point differs from `Experiment.run` of the same fields by rounding only.

    Args:
      experiment: what all points share.
      seeds: at least one; a list, a range, an array or a generator, as all that follow.
      split: names of splits; None: the experiment's.
      alpha: values of its field, as all that follow; None: the experiment's.
      beta: values.
      gamma: values.
      learning_rate: values.
      points_at_once: how many are vectorised; None: as many as the device's caches or
        memory hold.
      watch: called with what runs, the rounds played by all points and their number.
      standalone: a sweep of `experiment.alone()` over the same seeds, splits and learning
        rates, where it is known already.

    Returns:
      A `Sweep`.

    Raises:
      ValueError: a value breaks its rule.

    Examples:
      >>> experiment = Experiment(num_agents=2, rounds=2, model="logistic")
      >>> result = sweep(experiment, seeds=[0, 1], beta=[0.5, 2.0])
      >>> result.history.importance.shape
      (4, 2, 2)
      >>> [row["beta"] for row in result.table().rows]
      [0.5, 2.0]
    """
    checks.kind("experiment", experiment, Experiment, "`fairjax.Experiment(num_agents=5)`")
    if points_at_once is not None:
        checks.count("points_at_once", points_at_once)
    checks.function("watch", watch, WATCHES, optional=True)
    if standalone is not None:
        checks.kind("standalone", standalone, Sweep, "`fairjax.sweep`")
    given = {"alpha": alpha, "beta": beta, "gamma": gamma, "learning_rate": learning_rate}
    data_axes = {} if split is None else {"split": _axis(experiment, "split", split)}
    data_axes["seed"] = _axis(experiment, "seeds", seeds)
    values = {
        name: _axis(experiment, name, value) for name, value in given.items() if value is not None
    }
    on = [dataclasses.replace(experiment, **one) for one in _combinations(data_axes)]
    combinations = _combinations(values)
    experiments = [
        dataclasses.replace(one, **more).resolved() for one in on for more in combinations
    ]
    if standalone is None and experiment.mechanism != "standalone":
        standalone = sweep(
            experiment.alone(),
            seeds=data_axes["seed"],
            split=data_axes.get("split"),
            learning_rate=values.get("learning_rate"),
            points_at_once=points_at_once,
            watch=watch,
        )
    alone = None if standalone is None else _standalone_accuracies(experiments, standalone)
    shards, test = _data(tuple(one.only_data() for one in on))
    history = _history(on, combinations, shards, test, points_at_once, watch)
    return Sweep(
        experiments=tuple(experiments),
        axes=(*(name for name in data_axes if name != "seed"), *values, "seed"),
        history=history,
        shard_sizes=np.repeat(shards.sizes, len(combinations), axis=0),
        standalone_accuracies=history.accuracies[:, -1] if alone is None else alone,
    )


def _axis(experiment: Experiment, name: str, given: Any) -> tuple[Any, ...]:
    """Returns the values that a sweep takes for a field, or says what is wrong with them."""
    field = "seed" if name == "seeds" else name

    def check(value: Any) -> None:
        if value is None:
            raise ValueError(f"`{name}` must be values of the field `{field}`, got None as one.")
        dataclasses.replace(experiment, **{field: value})

    return fields.different(name, given, "values", check)


@functools.lru_cache(maxsize=1)
def _data(on: tuple[Experiment, ...]) -> tuple[Shards, Dataset]:
    """Returns shards `[S, ...]` and the test data; the last are kept, for the next mechanism."""
    loaded = data.load(on[0].dataset)
    return data.stacked([one.shards(loaded)[0] for one in on]), loaded[1]


def _combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _history(
    on: Sequence[Experiment],
    combinations: Sequence[Mapping[str, float]],
    shards: Shards,
    test: Dataset,
    points_at_once: int | None,
    watch: Watcher | None,
) -> History:
    """Returns the history of all points, leaves `[P, T, ...]`, played in equal chunks."""
    resolved = on[0].resolved()
    given = {name: getattr(resolved, name) for name in COEFFICIENTS}
    # A schedule of lengths is part of the program.
    given = {name: value for name, value in given.items() if isinstance(value, int | float)}
    coefficients = [{**given, **one} for one in combinations]
    # Sweeps that differ in traced values only are one program.
    common = dataclasses.replace(resolved, seed=0, **dict.fromkeys(coefficients[0], 0.5))
    runs = {
        "shards": shards,
        "key": np.stack([jax.random.key_data(jax.random.key(one.seed)) for one in on]),
        "places": np.array([[who.agent for who in one.assigned_behaviours()] for one in on]),
    }
    values = {name: np.array([one[name] for one in coefficients]) for name in coefficients[0]}
    if points_at_once is None:
        first = jax.tree.map(lambda leaf: leaf[0], shards)
        points_at_once = _pick_points_at_once(common.federation(first), first)
    num_values = min(len(coefficients), points_at_once)
    num_runs = min(len(on), max(1, points_at_once // num_values))
    test = jax.device_put(test)
    parts, done, warned = [], 0, False
    play_points = _points_program(common)
    for some_runs in _chunks(len(on), num_runs):
        row = []
        for some_values in _chunks(len(coefficients), num_values):
            history, events = jax.device_get(
                play_points(
                    jax.tree.map(lambda leaf, rows=some_runs: leaf[rows], runs),
                    {name: numbers[some_values] for name, numbers in values.items()},
                    test,
                )
            )
            check_paid(common.mechanism, events.broken.max())
            warned = warned or warn_of_unchanged(events)
            row.append(history)
            done += history.accuracies.shape[0] * history.accuracies.shape[1]
            if watch is not None:
                total = len(on) * len(coefficients)
                watch(common.mechanism, min(done, total) * common.rounds, total * common.rounds)
        parts.append(jax.tree.map(lambda *leaves: np.concatenate(leaves, 1), *row))
    history = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return jax.tree.map(
        lambda leaf: leaf[: len(on), : len(coefficients)].reshape(-1, *leaf.shape[2:]), history
    )


def _chunks(length: int, size: int) -> list[np.ndarray]:
    """Returns indices below `length` in chunks of one size; the last repeats the last index."""
    return [
        np.minimum(np.arange(start, start + size), length - 1) for start in range(0, length, size)
    ]


@functools.lru_cache(maxsize=simulation.PROGRAMS)
def _points_program(experiment: Experiment) -> Any:
    """Returns `_play_points` compiled for an experiment; the last programs used are kept."""
    spare_maps()
    return jax.jit(functools.partial(_play_points, experiment))


def _play_points(
    experiment: Experiment, runs: Any, coefficients: Any, test: Dataset
) -> tuple[History, Events]:
    """Returns histories of runs x coefficients, `[S, K, T, ...]`, and what the host is to hear."""
    assigned = experiment.assigned_behaviours()

    def point(run: Any, values: Any) -> tuple[History, Events]:
        shards, num_rounds = run["shards"], experiment.rounds
        federation = dataclasses.replace(experiment, **values).federation(
            shards,
            behaviours=[
                one._replace(agent=run["places"][number]) for number, one in enumerate(assigned)
            ],
        )
        key = jax.random.wrap_key_data(run["key"])
        state = federation.init(key, shards, None, num_rounds)
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

    return jax.vmap(jax.vmap(point, in_axes=(None, 0)), in_axes=(0, None))(runs, coefficients)


def _pick_points_at_once(federation: Federation, shards: Shards) -> int:
    """Returns how many points to vectorise.

    On a CPU, where agents take turns, as many as the caches hold one agent's local step of.
    On an accelerator, as many as half of its memory holds all agents' of.
    """
    needed = federation.bytes_per_agent(shards)
    device = jax.devices()[0]
    if device.platform == "cpu":
        return max(1, CACHE_BYTES // needed)
    memory = (device.memory_stats() or {}).get("bytes_limit", DEVICE_BYTES)
    return max(1, memory // (4 * needed * shards.num_agents))


def _standalone_accuracies(experiments: Sequence[Experiment], standalone: Sweep) -> np.ndarray:
    """Returns `[P, N]` accuracies of the standalone runs of some experiments."""
    found = dict(zip(standalone.experiments, standalone.history.accuracies[:, -1], strict=True))
    wanted = [one.alone().resolved() for one in experiments]
    for one in wanted:
        if one not in found:
            raise ValueError(f"`standalone` must hold a run of {one!r}, got {standalone!r}.")
    return np.stack([found[one] for one in wanted])


def compare(
    experiment: Experiment,
    names: Sequence[str],
    out: str | Path | None = None,
    resume: bool = True,
    *,
    watch: Watcher | None = None,
) -> dict[str, Result]:
    """Runs several mechanisms on the same shards, and returns their results by name.

    Args:
      experiment: the experiment; its mechanism and options are replaced, and alpha, beta
        and gamma go to the mechanisms that take them.
      names: mechanisms of `fairjax.mechanisms.REGISTRY`.
      out: a directory with one run per mechanism below it; None: nothing is written.
      resume: as in `Experiment.run`.
      watch: as in `Experiment.run`.

    Raises:
      ValueError: a name is unknown or occurs twice, or as in `Experiment.run`.

    Examples:
      >>> experiment = Experiment(num_agents=2, rounds=1, model="logistic")
      >>> list(compare(experiment, ["cgsv", "fedavg"]))
      ['cgsv', 'fedavg']
    """
    checks.kind("experiment", experiment, Experiment, "`fairjax.Experiment(num_agents=5)`")
    checks.flag("resume", resume)
    checks.function("watch", watch, WATCHES, optional=True)
    names = fields.different("mechanisms", names, "names", experiment.with_mechanism)
    out = None if out is None else checks.path("out", out)
    if out is not None and (out / records.EXPERIMENT).exists():
        raise ValueError(f"`out` must not be the directory of a run, got {out}, which holds one.")
    below = {name: None if out is None else out / name for name in ("standalone", *names)}
    runs = {name: experiment.with_mechanism(name) for name in names}
    with records.locked(out):
        alone = experiment.alone().run(below["standalone"], resume, watch=watch)
        results = {
            name: alone
            if name == "standalone"
            else run.run(below[name], resume, watch=watch, standalone=alone)
            for name, run in runs.items()
        }
        if out is not None:
            records.write_json(out / records.COMPARISON, {"mechanisms": list(names)})
    return results


def load_comparison(out: str | Path) -> dict[str, Result] | None:
    """Returns the results of a finished comparison from its directory, or None if it holds none.

    Raises:
      ValueError: one of its runs is not finished, or not there, or `comparison.json` is damaged.
    """
    path = checks.path("out", out) / records.COMPARISON
    if not path.exists():
        return None
    names = records.read_json(path, ("mechanisms",))["mechanisms"]
    if not isinstance(names, list) or not names or not set(map(str, names)) <= set(REGISTRY):
        raise DamagedError(f"{path} is damaged: it does not name mechanisms, got {names!r:.100}.")
    return {name: load_run(path.parent / name) for name in names}
