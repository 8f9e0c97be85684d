"""Over seeds: several mechanisms, each with all seeds in one program, compared seed by seed.

out/cgsv/experiment.json   the description, with all seeds
out/cgsv/history.npz       the histories of all seeds, leaves [S, T, ...]
out/cgsv/result.json       figures by seed; it is written last
out/comparison.json        the names of the mechanisms, and the seeds
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairjax.cells import Difference
from fairjax.experiments import fields, histories, records
from fairjax.experiments.experiment import Experiment
from fairjax.experiments.loading import run_of
from fairjax.experiments.playing import Watcher
from fairjax.experiments.points import play_points
from fairjax.experiments.run_folder import RunFolder
from fairjax.experiments.sweeps import Sweep, accuracies_alone, load_shards, sweep, words_for
from fairjax.files import DamagedError
from fairjax.simulation import no_rows
from fairjax.tables import Table, spreads

STORED = ("shard_sizes", "standalone_accuracies")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Several mechanisms with the same seeds, made by `fairjax.compare(..., seeds=...)`.

    Attributes:
      sweeps: one `Sweep` over the seeds for each mechanism, by name.

    Examples:
      >>> import fairjax as fj
      >>> experiment = Experiment(num_agents=2, rounds=1, model="logistic")
      >>> fj.compare(experiment, ["cgsv", "fedavg"], seeds=[0, 1])
      Comparison(mechanisms=['cgsv', 'fedavg'], seeds=(0, 1))
    """

    sweeps: Mapping[str, Sweep]

    def __repr__(self) -> str:
        """Returns the mechanisms and the seeds."""
        return fields.written("Comparison", {"mechanisms": [*self.sweeps], "seeds": self.seeds})

    def __getitem__(self, name: str) -> Sweep:
        """Returns the sweep of a mechanism; `comparison["cgsv"][0]` is its first seed's result."""
        return self.sweeps[name]

    def __iter__(self) -> Iterator[str]:
        """Returns the names of the mechanisms, as a dict does."""
        return iter(self.sweeps)

    def __len__(self) -> int:
        """Returns the number of mechanisms."""
        return len(self.sweeps)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, the same for every mechanism."""
        return tuple(one.seed for one in next(iter(self.sweeps.values())).experiments)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per mechanism and seed with its figures, as for `pandas.DataFrame`."""
        return [
            {"mechanism": name, **row}
            for name, swept in self.sweeps.items()
            for row in swept.rows()
        ]

    def table(self) -> Table:
        """Returns one row per mechanism: means and standard deviations over the seeds.

        Columns such as `fairness_vs_cgsv` hold the mean difference from the first mechanism on the
        same seeds, with its 95% interval. If a figure is undefined for a seed under one mechanism,
        that seed is left out for all mechanisms, and counted; a mechanism with more than half of
        its seeds undefined has no mean. A difference leaves out seeds that one of the two lacks.
        """
        figures = {name: swept.rows() for name, swept in self.sweeps.items()}
        first = next(iter(figures))
        values = [name for name in figures[first][0] if name != "seed"]
        words = words_for(*self.sweeps.values())
        table = spreads(self.rows(), ["mechanism"], values, words=words)
        shown = self.sweeps[first].experiments[0].shown
        compared = ("fairness", f"mean_{shown.column}")
        for row in table.rows[1:]:
            for name in compared:
                mine, firsts = (
                    [one[name] for one in figures[which]] for which in (row["mechanism"], first)
                )
                row[f"{name}_vs_{first}"] = Difference.over(mine, firsts)
        return table


def compare_over_seeds(
    experiments: Mapping[str, Experiment],
    seeds: Sequence[int],
    folder: RunFolder,
    watch: Watcher | None,
) -> Comparison:
    """Returns a comparison of mechanisms over seeds; finished mechanisms are read from disk.

    Args:
      experiments: one experiment per mechanism, by name.
      seeds: different seeds, at least one.
      folder: the comparison's, which gets one folder per mechanism.
      watch: as in `sweep`.
    """
    together = tuple(one for name, one in experiments.items() if name != "standalone")
    if any(one.trains_adapters for one in together):  # their plans differ in kind
        together = ()

    def play(name: str, experiment: Experiment, alone: Sweep | None) -> Sweep:
        part = folder.below(name)
        record = part.claim(lambda: {**experiment.description(), "seed": list(seeds)})
        if part.finished is not None:
            try:
                return read_sweep(part.finished, experiment, seeds)
            except DamagedError as damage:
                warnings.warn(f"{damage} It is run again.", stacklevel=4)
        check = functools.partial(_check_beginning, experiment, seeds[0])
        part.begin(record, check if alone is None else None)
        if alone is None:
            swept = sweep(experiment, seeds=seeds, watch=watch)
        else:
            swept = _sweep_one(experiment, together, seeds, watch, alone)
        stored = {name: getattr(swept, name).tolist() for name in STORED}
        part.end(swept.history, None, lambda: {**stored, "figures": swept.rows()})
        return swept

    alone = play("standalone", next(iter(experiments.values())).alone(), None)
    return Comparison(
        {
            name: alone if name == "standalone" else play(name, one, alone)
            for name, one in experiments.items()
        }
    )


def _check_beginning(experiment: Experiment, seed: int) -> None:
    """Raises if data, task, model and optimizer do not fit each other, before anything is kept."""
    one = dataclasses.replace(experiment, seed=seed)
    shards, test = one.kept_shards()
    run_of(one, one.federation(shards), shards, test).rounds.check_beginning()


def _sweep_one(
    experiment: Experiment,
    together: tuple[Experiment, ...],
    seeds: Sequence[int],
    watch: Watcher | None,
    alone: Sweep,
) -> Sweep:
    """Returns the sweep over seeds of one mechanism; all of `together` share one program."""
    experiment.warn_of_decay()
    on = [dataclasses.replace(experiment, seed=seed) for seed in seeds]
    shards, test = load_shards(on)
    number = together.index(experiment) if together else 0
    history = play_points(on, [{}], shards, test, None, watch, together, number)
    experiments = tuple(one.resolved() for one in on)
    accuracies = accuracies_alone(experiments, alone)
    return Sweep(experiments, ("seed",), history, np.array(shards.sizes), accuracies)


def read_sweep(folder: Path, experiment: Experiment, seeds: Sequence[int]) -> Sweep:
    """Returns the sweep over seeds in a directory.

    Raises:
      DamagedError: a file is missing or damaged.
    """
    path = folder / records.RESULT
    content = records.read_json(path, STORED)
    shape = (len(seeds), experiment.num_agents)
    sizes, alone = (np.array(content[name], object) for name in STORED)
    if sizes.shape != shape or alone.shape != shape:
        raise DamagedError(f"{path} is damaged: it must hold numbers of {shape} seeds and agents.")
    one_run = no_rows(
        experiment.num_agents, experiment.make_task().names, experiment.trains_adapters
    )
    like = jax.tree.map(
        lambda rows: np.zeros((0, experiment.rounds, *rows.shape[1:]), rows.dtype), one_run
    )
    return Sweep(
        experiments=tuple(dataclasses.replace(experiment, seed=seed).resolved() for seed in seeds),
        axes=("seed",),
        history=histories.read(folder, like, len(seeds)),
        shard_sizes=sizes.astype(np.int32),
        standalone_accuracies=alone.astype(like.accuracies.dtype),
    )
