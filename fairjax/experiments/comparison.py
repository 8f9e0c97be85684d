"""Comparison: several mechanisms and one standalone run, all on the same shards."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairjax import checks
from fairjax.experiments import fields, folders, records
from fairjax.experiments.experiment import Experiment, load_run, read_description
from fairjax.experiments.over_seeds import Comparison, compare_over_seeds, read_sweep
from fairjax.experiments.playing import WATCHES, Watcher
from fairjax.experiments.results import Result
from fairjax.experiments.run_folder import RunFolder, check_parts
from fairjax.experiments.sweeps import Sweep
from fairjax.files import DamagedError
from fairjax.mechanisms import REGISTRY

# Names of folders, which are not those of files: a point is only part of a number.
NAME = re.compile(r"(?!.*\.\D)\w([\w.,= -]{0,98}\w)?")


def compare(
    experiment: Experiment,
    names: Sequence[Any] | Mapping[str, Any],
    out: str | Path | None = None,
    resume: bool = True,
    *,
    seeds: Sequence[int] | None = None,
    watch: Watcher | None = None,
) -> Any:
    """Runs several mechanisms on the same shards, and returns their results.

    Args:
      experiment: the experiment; its mechanism and options are replaced, and alpha, beta
        and gamma go to the mechanisms that take them.
      names: mechanisms, each a name in `fairjax.mechanisms.REGISTRY`, a file and a name in it
        as "mine.py:factory", a `Mechanism`, or a function that makes one, as in the field
        `mechanism`. Objects use their own names. Or a mapping from names of yours to mechanisms,
        such as {"steep": cgsv(beta=0.5), "flat": cgsv(beta=2.0)}.
      out: a directory that gets one folder per mechanism; None: nothing is written.
      resume: as in `Experiment.run`.
      seeds: the seeds to run; the experiment's own is ignored. All seeds of a mechanism are
        vectorised, and all mechanisms share one program. A comparison that was stopped goes on
        with the mechanisms that are not finished. None: the experiment's seed.
      watch: as in `Experiment.run`.

    Returns:
      A dict of one `Result` per mechanism, for `fairjax.figures.comparison`; with `seeds` a
      `Comparison`, for `fairjax.figures.over_seeds`, whose `table()` has means, standard
      deviations and paired differences.

    Raises:
      ValueError: a name is unknown or occurs twice, `seeds` are not different seeds,
        `record_updates` is set with `seeds`, or for a reason given in `Experiment.run`.

    Examples:
      >>> experiment = Experiment(num_agents=2, rounds=1, model="logistic")
      >>> list(compare(experiment, ["cgsv", "fedavg"]))
      ['cgsv', 'fedavg']
      >>> compare(experiment, ["cgsv", "fedavg"], seeds=range(3)).table().columns[:3]
      ['mechanism', 'seeds', 'fairness']
    """
    checks.kind("experiment", experiment, Experiment, "`fairjax.Experiment(num_agents=5)`")
    checks.flag("resume", resume)
    checks.function("watch", watch, WATCHES, optional=True)
    runs = _name_runs(experiment, names)
    if seeds is not None:
        seeds = fields.different_seeds(seeds)
        if experiment.record_updates:
            raise ValueError("`record_updates` must be False where `seeds` are given, got True.")
    folder = RunFolder(None if out is None else checks.path("out", out), resume)
    parts = {name: folder.below(name) for name in ("standalone", *runs)}
    if folder.path is not None:
        folders.check_free(folder.path, records.COMPARISON)
    check_parts(parts.values())
    with folder.locked():
        found: Any
        if seeds is not None:
            found = compare_over_seeds(runs, seeds, folder, watch)
        else:
            alone = experiment.alone().run(parts["standalone"].path, resume, watch=watch)
            found = {
                name: alone
                if name == "standalone"
                else run.run(parts[name].path, resume, watch=watch, standalone=alone)
                for name, run in runs.items()
            }
        if folder.path is not None:
            folders.add_to_comparison(folder.path, runs, seeds)
    return found


def _name_runs(experiment: Experiment, names: Any) -> dict[str, Experiment]:
    """Returns the experiment with each mechanism, by name."""
    if isinstance(names, Mapping) and names:
        runs = {name: experiment.with_mechanism(one) for name, one in names.items()}
    else:
        compared = fields.different("mechanisms", names, "names", experiment.with_mechanism)
        runs = {(run := experiment.with_mechanism(one)).label("mechanism"): run for one in compared}
        if len(runs) < len(compared):
            raise ValueError(
                f"`mechanisms` must have different names, got {len(compared)} mechanisms with only "
                f"the names {', '.join(runs)}. Give a mapping from names of yours to them."
            )
    for name, run in runs.items():
        alone = (name == "standalone", run.is_standalone)  # its folder has this name
        if not isinstance(name, str) or not NAME.fullmatch(name) or len(set(alone)) > 1:
            raise ValueError(
                "`mechanisms` must have names of up to 100 letters, digits and spaces, where "
                f"'standalone' is fairjax's mechanism of that name, given as a text, got "
                f"{checks.shown(name)}."
            )
    return runs


def load_comparison(out: str | Path) -> dict[str, Result] | Comparison | None:
    """Returns the results of a finished comparison from its directory, or None if there is none.

    With seeds they are a `Comparison`.

    Raises:
      ValueError: a run is missing, not finished or longer than another, or `comparison.json` is
        damaged.
    """
    path = checks.path("out", out) / records.COMPARISON
    if not path.exists():
        return None
    content = records.read_json(path, ("mechanisms",))
    names, seeds = content["mechanisms"], content.get("seeds")
    # A mechanism that is an object is not in the registry; only its folder has its name.
    known = {*REGISTRY, *(run.name for run in path.parent.iterdir())}
    if not isinstance(names, list) or not names or not set(map(str, names)) <= known:
        raise DamagedError(
            f"{path} is damaged: `mechanisms` must be names of mechanisms, got {names!r:.100}."
        )
    if seeds is None:
        found = {name: load_run(path.parent / name) for name in names}
        rounds = {name: result.experiment.rounds for name, result in found.items()}
        if len(set(rounds.values())) > 1:
            raise ValueError(
                f"`out` must hold runs of equally many rounds, got {path.parent}, where the rounds "
                f"are {rounds}. Compare all of them again with the most rounds."
            )
        return found
    return Comparison({name: _load_sweep(path.parent / name, seeds) for name in names})


def _load_sweep(folder: Path, seeds: Sequence[int]) -> Sweep:
    description = records.read_experiment(folder)["experiment"]
    experiment = read_description(folder, {**description, "seed": seeds[0]})
    return read_sweep(folder, experiment, seeds)
