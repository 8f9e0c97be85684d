"""Experiment: a description that can be run, and the loading of finished runs.

    description -> data, shards -> federation -> rounds -> Result (and records on disk)

A result also has the accuracies of a standalone run, which has the same shards, seeds and
number of local epochs, but no sharing. Fairness compares the two runs.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fairjax import checks, devices, simulation
from fairjax.experiments import fields, folders, longer, objects, records, tracking
from fairjax.experiments.loading import load, result_of, run_of
from fairjax.experiments.playing import WATCHES, Watcher
from fairjax.experiments.results import Result
from fairjax.experiments.run_folder import RunFolder, check_parts
from fairjax.experiments.setup import Setup
from fairjax.files import DamagedError


@fields.require_names
@fields.document_fields
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Experiment(Setup):
    """A federation on a data set, described by names, numbers and objects.

    The preset chooses values for fields that are None; `resolved()` returns them. `dataset`,
    `shards`, `model`, `task`, `mechanism`, optimizers and `params` may be your own objects. Records
    keep a fingerprint of their contents, so only the same objects can continue or open a run.

    Attributes: those of `Description`.

    Raises:
      ValueError: a name is not a field, or a value is not one that the attributes allow.

    Examples:
      >>> experiment = Experiment(num_agents=2, rounds=1, model="logistic")
      >>> result = experiment.run()
      >>> result.accuracies.shape, result.history.importance.shape
      ((2,), (1, 2))
      >>> import optax
      >>> import fairjax as fj
      >>> data = fj.data.load("blobs")
      >>> Experiment(dataset=data, model=fj.models.mlp(data[0]), optimizer=optax.adamw(1e-3))
      Experiment(dataset=<own data>, model=<MLP>, optimizer=<chain>)
    """

    def run(
        self,
        out: str | Path | None = None,
        resume: bool = True,
        *,
        mesh: Mesh | None = None,
        watch: Watcher | None = None,
        track: str | Sequence[str] = (),
        standalone: Result | None = None,
    ) -> Result:
        """Starts or continues the experiment, and returns its result.

        Args:
          out: the directory for records; None: nothing is written. A killed run goes on
            from its last checkpoint and ends with exactly the same numbers. A finished
            run is read from disk; with more `rounds` it goes on where it stopped, if that
            gives the numbers of one long run.
          resume: False: start over, and replace the records of this experiment in `out`.
          mesh: devices that share the agents, of one process or several. Each process calls
            `run`, and the first one writes. A run may continue on other devices.
          watch: called with the run's name, the rounds played and the rounds in all; for
            example a `fairjax.ProgressBar`.
          track: names of tools, "csv", "tensorboard" or "wandb", that receive the scalars
            of every round when it is played. A finished run sends nothing.
          standalone: the result of the standalone mechanism on the same shards, if you
            have it already.

        Returns:
          A `Result`. The same call gives the same bits on the same machine and version of JAX.
          Other machines and versions round differently. A rounding error can change which
          entries a mask keeps, so their results can differ by more than rounding.

        Raises:
          ValueError: `out` belongs to another experiment, or to a shorter one whose schedule or
            mechanism depends on its number of rounds; it cannot be written or is in use by
            another process; all its checkpoints are damaged; the data cannot be loaded; a
            tool of `track` is not installed; or `standalone` belongs to another experiment.
          OSError: a record cannot be written, because the disk is full or permission is
            missing. The same call then goes on from the last checkpoint.
        """
        checks.flag("resume", resume)
        checks.function("watch", watch, WATCHES, optional=True)
        if standalone is not None:
            checks.kind("standalone", standalone, Result, "`fairjax.Experiment(...).run()`")
            self._check_alone(standalone.experiment)
        mesh = devices.checked(mesh)
        out = None if out is None else checks.path("out", out)
        tools = tracking.checked(track, out)
        return self._play(RunFolder(out, resume), mesh, watch, tools, standalone)

    def _check_alone(self, given: Any) -> None:
        """Raises unless an experiment is this one without sharing; evaluations do not count."""
        wanted, found = self.alone(), given.alone()
        if not given.is_standalone or found.resolved() != wanted.resolved():
            raise ValueError(
                f"`standalone` must be the result of {wanted!r}, got that of {given!r}."
            )

    def _play(
        self,
        folder: RunFolder,
        mesh: Mesh | None,
        watch: Watcher | None,
        tools: Sequence[str] = (),
        standalone: Result | None = None,
        within: simulation.Federation | None = None,
    ) -> Result:
        """Returns the result of a finished run, or goes on with one; the arguments are checked.

        A run that has the program of another is `within` that one's federation.
        """
        record = self._claim(folder)
        if folder.finished is not None:
            try:
                return load(folder.finished, self, record)
            except DamagedError as damage:
                message = f"{damage} The run goes on from its last checkpoint."
                warnings.warn(message, stacklevel=2)
        if not self.is_standalone:
            self.warn_of_decay()
        with folder.locked():
            return self._go_on(folder, record, mesh, watch, tools, standalone, within)

    def _claim(self, folder: RunFolder) -> dict[str, Any]:
        """Returns the record of this experiment in a folder, of a shorter one if there is one.

        Raises:
          ValueError: as in `run`.
        """
        describe = functools.cache(self.description)  # it reads all of own data
        try:
            record = folder.claim(describe, longer.rounds_before)
        except records.OtherExperimentError as error:
            raise ValueError(f"{error}{longer.hint(error.there, describe())}") from None
        if not record:  # nothing is kept
            return record
        before = longer.rounds_before(record["experiment"], describe())
        if before is None:
            return record
        if folder.resume:
            longer.check_can_go_on(self, before)
            folder.check_can_go_on()
        longer_record = {**record, "experiment": describe()}
        folder.lengthen(record, longer_record)
        return longer_record

    def _go_on(
        self,
        folder: RunFolder,
        record: dict[str, Any],
        mesh: Mesh | None,
        watch: Watcher | None,
        tools: Sequence[str],
        standalone: Result | None,
        within: simulation.Federation | None,
    ) -> Result:
        """Plays the remaining rounds, and writes records into a locked folder."""
        clock = records.Clock(folder.times())
        with clock.part("data"):
            shards, test = self.kept_shards()
        # The bits depend on `agents_at_once`, so a run continues with its first value.
        federation = self.federation(shards, record.get("agents_at_once"), mesh=mesh)
        record["agents_at_once"] = federation.agents_at_once(shards)
        federation = dataclasses.replace(federation, group_size=record["agents_at_once"])
        check_parts([folder, folder.below("standalone")])
        run = run_of(self, federation, shards, test, within)
        # A standalone run within another has been checked with that one.
        folder.begin(record, run.rounds.check_beginning if within is None else None)
        if self.trains_adapters:  # a mechanism may refuse them; say so before agents train alone
            simulation.follows_length(federation, shards, test)
        alone = None if standalone is None else standalone.accuracies
        if not self.is_standalone and alone is None:
            shared = None if self.record_updates else federation
            below = folder.below("standalone")
            # Keep nothing else of the run: its state would be N D numbers.
            alone = self.alone()._play(below, mesh, watch, within=shared).accuracies
        name, settings = (self.name, record["experiment"]) if tools else ("", {})
        main = federation.training.task.main
        with tracking.opened(tools, folder.path, name, settings, folder.resume, main) as tracker:
            last = run.play(folder, clock, tracker, watch)
            history = simulation.history(last, self.rounds)
            result = result_of(self, history, last.state, shards, alone)
            tracker.finish(result)
        folder.end(history, clock, result.summary)
        return result


def load_run(out: str | Path, experiment: Experiment | None = None) -> Result:
    """Returns the result of a finished run from its directory.

    A damaged `result.json` or `history.npz` is restored, with a warning, if the other records
    determine its contents. Without the last checkpoint, the result's `state` is None.

    Args:
      out: the directory.
      experiment: the experiment that was run. It is needed if a field holds an object, since
        records do not keep objects; None: the experiment is read from its record.

    Raises:
      ValueError: the directory holds no run, or its run is not finished, is too damaged, or
        belongs to another experiment.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as out:
      ...     first = Experiment(num_agents=2, rounds=1, model="logistic").run(out)
      ...     again = load_run(out)
      >>> bool((first.accuracies == again.accuracies).all())
      True
    """
    out = checks.path("out", out)
    if experiment is not None:
        checks.kind("experiment", experiment, Experiment, "`fairjax.Experiment(num_agents=5)`")
    if not (out / records.EXPERIMENT).exists():
        held = "none"
        if (out / folders.AUDIT).exists():
            held = f"an audit. Its page is {out / 'report.html'}"
        raise ValueError(f"`out` must be the directory of a run, got {out}, which holds {held}.")
    record = records.read_experiment(out)
    if "federation" in record["experiment"]:
        raise ValueError(
            f"`out` must be the directory of an experiment, got {out}, which holds a run of "
            "`fairjax.run`. The same call with the same `out` returns its state and history."
        )
    if isinstance(record["experiment"].get("seed"), list):
        raise ValueError(
            f"`out` must be the directory of a run, got {out}, which holds one mechanism of a "
            "comparison over seeds. `fairjax.compare` with the same arguments returns it."
        )
    if not (out / records.RESULT).exists():
        raise ValueError(
            f"`out` must be the directory of a finished run, got {out}, which is not finished. "
            "Run the same experiment again with this `out` to go on."
        )
    if experiment is None:
        experiment = read_description(out, record["experiment"])
    else:
        records.check_same(out, record, experiment.description())
    return load(out, experiment, record)


def read_description(out: Path, description: dict[str, Any]) -> Experiment:
    """Returns the experiment that a record describes; raises if it held objects."""
    given, held = dict(description), []
    for name in objects.FIELDS:
        if objects.is_recorded(description.get(name)):
            given[name] = objects.found_again(name, description[name])
            if given[name] is None:
                held.append(f"{name}={objects.shown(description[name])}")
    if held:
        raise ValueError(
            f"{out} holds a run with objects that are not found again: {', '.join(held)}. "
            "Open it in Python with `fairjax.load_run(out, experiment)`, where `experiment` holds "
            "the same objects again; `fairjax.report.write_run(result, out)` then writes its page."
        )
    try:
        return Experiment(**given)
    except (TypeError, ValueError) as error:
        own = ""
        if str(error).startswith("Unknown"):
            own = (
                " A name that you registered is known only after you register it again, in Python."
            )
        raise DamagedError(
            f"{out / records.EXPERIMENT} does not describe an experiment that this version of "
            f"fairjax knows: {error}{own}"
        ) from error
