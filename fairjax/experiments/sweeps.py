"""Sweeps: many runs of one experiment, as one compiled program and one table.

    datasets      shards for every split and seed                            [S]
    coefficients  every combination of alpha, beta, gamma and learning rate  [K]
    points        every data set with every combination, P = S K

The module `points` plays them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fairjax import checks, data
from fairjax.data import Dataset, Shards
from fairjax.experiments import fields
from fairjax.experiments.experiment import Experiment
from fairjax.experiments.playing import WATCHES, Watcher
from fairjax.experiments.points import TRACED, play_points
from fairjax.experiments.results import Result
from fairjax.experiments.setup import read_only
from fairjax.simulation import History, names
from fairjax.tables import Table, spreads

# What an undefined value means.
WORDS: dict[str, str] = dict.fromkeys(
    ("fairness", "fairness_trained", "rank_fairness"), "all equal"
)


def words_for(*sweeps: "Sweep") -> Mapping[str, str]:
    """Returns `WORDS`, or none if fairness is undefined for another reason too."""
    notes = {
        swept[point].fairness_note.removeprefix("all final ")
        for swept in sweeps
        for point in range(len(swept.experiments))
    }
    return WORDS if notes <= {"", "accuracies are equal", "values are equal"} else {}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """The outcome of a sweep; the leading axis P counts the points.

    Attributes:
      experiments: `[P]` the `Experiment` of every point, as `resolved()` gives it.
      axes: the names of the fields that vary, "seed" last.
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
        """Returns the number of points, the axes, and the main fields."""
        first = self.experiments[0]
        shared = {name: first.label(name) for name in ("dataset", "mechanism")}
        counts = {"points": len(self), "axes": self.axes, "num_agents": first.num_agents}
        return fields.written("Sweep", counts | shared)

    def __len__(self) -> int:
        """Returns P, the number of points."""
        return len(self.experiments)

    def __getitem__(self, point: int) -> Result:
        """Returns the result of one point, without its final state, which is not kept."""
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
        """Returns one row per point: its values of the axes, and its figures."""
        return [
            {
                **{axis: getattr(one.experiment, axis) for axis in self.axes},
                **one.figures(),
            }
            for one in self
        ]

    def table(self) -> Table:
        """Returns one row per combination of values: means and spreads over the seeds.

        A seed that is undefined in one row is left out of every row of the same split, so that
        these rows can be compared; if only the split varies, it is left out of all rows. A row with
        more than half of its seeds undefined has no mean, and leaves no seed out of others.
        """
        rows = self.rows()
        values = [name for name in rows[0] if name not in self.axes]
        apart = [name for name in self.axes[:-1] if name == "split" and len(self.axes) > 2]
        return spreads(rows, self.axes[:-1], values, apart=apart, words=words_for(self))


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

    A point differs from `Experiment.run` with the same fields only by rounding; networks with
    statistics, such as BatchNorm's, differ more where `batch_size` exceeds the largest shard of a
    seed, which is warned of. Values are given as a list, a range, an array or a generator, with at
    least one entry.

    Args:
      experiment: the fields that all points share.
      seeds: values of the field `seed`.
      split: names of splits; None: the experiment's.
      alpha: values of the field; None: the experiment's.
      beta: values of the field; None: the experiment's.
      gamma: values of the field; None: the experiment's.
      learning_rate: values of the field; None: the experiment's.
      points_at_once: number of points that are vectorised; None: as many as fit into the
        device's caches or memory.
      watch: called with a name, the rounds played and the rounds in all, over all points.
      standalone: a sweep of `experiment.alone()` over the same seeds, splits and learning
        rates, if you have it already.

    Returns:
      A `Sweep`.

    Raises:
      ValueError: a list is empty or has a value twice, a field does not allow a value, or
        `standalone` lacks a run.

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
    if standalone is None and not experiment.is_standalone:
        standalone = sweep(
            experiment.alone(),
            seeds=data_axes["seed"],
            split=data_axes.get("split"),
            learning_rate=values.get("learning_rate"),
            points_at_once=points_at_once,
            watch=watch,
        )
    if not experiment.is_standalone:
        experiment.warn_of_decay()
    alone = None if standalone is None else accuracies_alone(experiments, standalone)
    shards, test = load_shards(on)
    history = play_points(on, combinations, shards, test, points_at_once, watch)
    return Sweep(
        experiments=tuple(experiments),
        axes=(*(name for name in data_axes if name != "seed"), *values, "seed"),
        history=history,
        shard_sizes=np.repeat(shards.sizes, len(combinations), axis=0),
        standalone_accuracies=history.accuracies[:, -1] if alone is None else alone,
    )


def _axis(experiment: Experiment, name: str, given: Any) -> tuple[Any, ...]:
    """Returns the values of a field in a sweep; raises if one is wrong."""
    field = "seed" if name == "seeds" else name

    def check(value: Any) -> None:
        if value is None:
            raise ValueError(f"`{name}` must be values of the field `{field}`, got None too.")
        dataclasses.replace(experiment, **{field: value})
        no_number = checks.is_listing(value) or isinstance(value, str | Mapping) or callable(value)
        if field in TRACED and no_number:
            raise ValueError(
                f"`{name}` must be numbers in a sweep, got {checks.shown(value)}. Give a schedule, "
                "or agents' own, to the experiment."
            )

    return fields.different(name, given, "values", check)


def load_shards(on: Sequence[Experiment]) -> tuple[Shards, Dataset]:
    """Returns shards `[S, ...]` and test data; the last ones are kept for the next sweep.

    Own data are not: they may have been changed in between.
    """
    source = on[0].data_source()
    load = _load_shards.__wrapped__ if source is None else _load_shards
    return load(tuple(one.only_data() for one in on), source)


@functools.lru_cache(maxsize=1)
def _load_shards(on: tuple[Experiment, ...], source: Any) -> tuple[Shards, Dataset]:
    del source  # another source needs other data
    loaded = on[0].load()
    made = [one.make_shards(loaded) for one in on]
    return read_only((data.stacked([shards for shards, _ in made]), made[0][1]))


def _combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def accuracies_alone(experiments: Sequence[Experiment], standalone: Sweep) -> np.ndarray:
    """Returns `[P, N]` final accuracies of the standalone runs of some experiments."""
    found = dict(zip(standalone.experiments, standalone.history.accuracies[:, -1], strict=True))
    wanted = [one.alone().resolved() for one in experiments]
    for one in wanted:
        if one not in found:
            raise ValueError(f"`standalone` must hold a run of {one!r}, got {standalone!r}.")
    return np.stack([found[one] for one in wanted])
