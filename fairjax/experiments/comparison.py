"""Comparison: several mechanisms and one standalone run, all on the same shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairjax import checks
from fairjax.experiments import fields, records
from fairjax.experiments.experiment import Experiment, load_run
from fairjax.experiments.playing import WATCHES, Watcher
from fairjax.experiments.results import Result
from fairjax.files import DamagedError
from fairjax.mechanisms import REGISTRY


def compare(
    experiment: Experiment,
    names: Sequence[Any],
    out: str | Path | None = None,
    resume: bool = True,
    *,
    watch: Watcher | None = None,
) -> dict[str, Result]:
    """Runs several mechanisms on the same shards, and returns their results by name.

    Args:
      experiment: the experiment; its mechanism and options are replaced, and alpha, beta
        and gamma go to the mechanisms that take them.
      names: mechanisms, each a name in `fairjax.mechanisms.REGISTRY`, a `Mechanism`, or a
        function that makes one, as in the field `mechanism`. Objects use their own names.
      out: a directory that gets one folder per mechanism; None: nothing is written.
      resume: as in `Experiment.run`.
      watch: as in `Experiment.run`.

    Raises:
      ValueError: a name is unknown or occurs twice, or for a reason given in `Experiment.run`.

    Examples:
      >>> experiment = Experiment(num_agents=2, rounds=1, model="logistic")
      >>> list(compare(experiment, ["cgsv", "fedavg"]))
      ['cgsv', 'fedavg']
    """
    checks.kind("experiment", experiment, Experiment, "`fairjax.Experiment(num_agents=5)`")
    checks.flag("resume", resume)
    checks.function("watch", watch, WATCHES, optional=True)
    compared = fields.different("mechanisms", names, "names", experiment.with_mechanism)
    runs = {(run := experiment.with_mechanism(one)).label("mechanism"): run for one in compared}
    if len(runs) < len(compared):
        raise ValueError(
            f"`mechanisms` must have different names, got {len(compared)} mechanisms with only the "
            f"names {', '.join(runs)}."
        )
    out = None if out is None else checks.path("out", out)
    if out is not None and (out / records.EXPERIMENT).exists():
        raise ValueError(f"`out` must not be the directory of a run, got {out}, which holds one.")
    below = {name: None if out is None else out / name for name in ("standalone", *runs)}
    with records.locked(out):
        alone = experiment.alone().run(below["standalone"], resume, watch=watch)
        results = {
            name: alone
            if name == "standalone"
            else run.run(below[name], resume, watch=watch, standalone=alone)
            for name, run in runs.items()
        }
        if out is not None:
            records.write_json(out / records.COMPARISON, {"mechanisms": list(runs)})
    return results


def load_comparison(out: str | Path) -> dict[str, Result] | None:
    """Returns the results of a finished comparison from its directory, or None if there is none.

    Raises:
      ValueError: a run is missing or not finished, or `comparison.json` is damaged.
    """
    path = checks.path("out", out) / records.COMPARISON
    if not path.exists():
        return None
    names = records.read_json(path, ("mechanisms",))["mechanisms"]
    # A mechanism that is an object is not in the registry; only its folder has its name.
    known = {*REGISTRY, *(run.name for run in path.parent.iterdir())}
    if not isinstance(names, list) or not names or not set(map(str, names)) <= known:
        raise DamagedError(
            f"{path} is damaged: `mechanisms` must be names of mechanisms, got {names!r:.100}."
        )
    return {name: load_run(path.parent / name) for name in names}
