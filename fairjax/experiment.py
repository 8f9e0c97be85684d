"""Experiment: a frozen, JSON-serialisable description of a run, and the run itself.

    description -> data, shards -> federation -> rounds -> Result (and records on disk)

A Result holds the run and the standalone run beside it: the same shards, seeds and
number of local epochs, without sharing. Fairness compares the two.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fairjax import (
    checks,
    data,
    devices,
    fields,
    histories,
    mechanisms,
    models,
    records,
    simulation,
    tracking,
)
from fairjax.behaviours import UPLOADS, Behaviour, assign, change_data, listed, names
from fairjax.checkpoints import Checkpoints
from fairjax.data import Dataset, Shards
from fairjax.federations import Federation, State, federation
from fairjax.files import DamagedError
from fairjax.playing import WATCHES, Rounds, Watcher
from fairjax.presets import PRESETS, settings
from fairjax.results import Result
from fairjax.simulation import History, Progress
from fairjax.training import accuracy

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
COEFFICIENTS = ("alpha", "beta", "gamma")  # fields that go to mechanisms which take them
FLOATS = (*COEFFICIENTS, "learning_rate", "learning_rate_decay")
MAPPINGS = ("behaviours", "options")  # fields that are kept as pairs, which are hashable
VALIDATION_SHARE = 0.1


@fields.by_name
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Experiment:
    """A federation on a data set, described by values that JSON can hold.

    Fields that are None are chosen by the preset; `resolved()` says which values.

    Attributes:
      dataset: a name of `fairjax.data.load`; `fairjax list` explains all names.
      split: how data are shared out: "power_law", "uniform", "class_imbalance" or "dirichlet".
      num_agents: number of agents N, 1 to 1,000,000.
      samples_per_agent: examples per agent on average, at least 1; None: the paper's number for
        the data set, else all data.
      model: what every agent trains, a name of `fairjax.models.REGISTRY`.
      mechanism: what judges and pays agents, a name of `fairjax.mechanisms.REGISTRY`.
      preset: what chooses open fields, "fairjax": the paper's constants on its data sets, and
        elsewhere what holds for 3 to 10 agents and 20 to 160 rounds; or "paper": the paper's
        constants, and elsewhere those of its program.
      beta: altruism degree, above 0: the larger, the more alike rewards are; None: the
        mechanism's own.
      alpha: memory of importance from round to round, in [0, 1].
      gamma: length of rescaled uploads, above 0; or "cosine" or "cosine:START", half a cosine
        to 0 over the run; or an optax schedule over rounds, which is kept as its values `[T]`.
      rounds: number of rounds T, 1 to 1,000,000.
      local_epochs: passes over its shard that an agent makes per round, at least 1.
      batch_size: examples per local step, at least 1.
      optimizer: of local steps, "sgd" or "adam".
      learning_rate: at the start, above 0.
      learning_rate_decay: factor per round or local epoch, in (0, 1]; None: the preset's, over
        the run to 15.5% of the learning rate where that is "fairjax" and the paper has none.
      decay_per: what the decay counts, "round" or "epoch".
      local_steps: "all", or "last_batch" as in early versions of the authors' program.
      eval_every: evaluate after every so many rounds, at least 1, and after the last.
      eval_examples: how many of the test examples models are evaluated on, at least 1, the same
        ones always; None: all.
      compute_dtype: what networks compute in, "float32" or "bfloat16". Parameters, updates
        and losses stay float32.
      agents_at_once: how many agents are vectorised, at least 1; None: picked for the device.
      behaviours: for names of `fairjax.behaviours` a number of agents, or a pair (number,
        strength). The seed draws who. The standalone run has what they do to data.
      record_updates: keep all uploads in the history, T N D numbers, for contributions
        of the whole run.
      seed: everything random follows from it; a whole number, at least 0 and below 2**32.
      options: further arguments of the mechanism's factory.

    Raises:
      ValueError: there is no such field, or one breaks its rule.

    Examples:
      >>> experiment = Experiment(num_agents=3, rounds=2, model="logistic")
      >>> result = experiment.run()
      >>> result.accuracies.shape, result.history.importance.shape
      ((3,), (2, 3))
    """

    dataset: str = "digits"
    split: str = "power_law"
    num_agents: int = 5
    samples_per_agent: int | None = None
    model: str | None = None
    mechanism: str = "cgsv"
    preset: str = "fairjax"
    beta: float | None = None
    alpha: float | None = None
    gamma: float | str | Callable[[Any], Any] | tuple[float, ...] | None = None
    rounds: int = 80
    local_epochs: int = 3
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    learning_rate_decay: float | None = None
    decay_per: str = "round"
    local_steps: str = "all"
    eval_every: int | None = None
    eval_examples: int | None = None
    compute_dtype: str = "float32"
    agents_at_once: int | None = None
    behaviours: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    record_updates: bool = False
    seed: int = 0
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        for name in ("num_agents", "rounds", "local_epochs"):
            checks.count(name, getattr(self, name))
        if callable(self.gamma):
            object.__setattr__(self, "gamma", _table("gamma", self.gamma, self.rounds))
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, fields.plain(getattr(self, field.name)))
        for name in FLOATS:
            if type(getattr(self, name)) is int and abs(getattr(self, name)) < checks.GREATEST:
                object.__setattr__(self, name, float(getattr(self, name)))
        if isinstance(self.gamma, tuple):
            checks.lengths("gamma", self.gamma, self.rounds)
        for name in (
            "samples_per_agent", "batch_size", "agents_at_once", "eval_every", "eval_examples",
        ):  # fmt: skip
            if getattr(self, name) is not None:
                checks.count(name, getattr(self, name))
        for name in ("beta", "learning_rate"):
            if getattr(self, name) is not None:
                checks.above(name, getattr(self, name), 0)
        checks.count("seed", self.seed, least=0)
        if self.alpha is not None:
            checks.between("alpha", self.alpha, 0, 1)
        if self.learning_rate_decay is not None:
            checks.above("learning_rate_decay", self.learning_rate_decay, 0)
            checks.between("learning_rate_decay", self.learning_rate_decay, 0, 1)
        checks.choice("preset", self.preset, PRESETS)
        checks.text("dataset", self.dataset)
        checks.flag("record_updates", self.record_updates)
        checks.choice("split", self.split, data.SPLITS)
        checks.choice("mechanism", self.mechanism, mechanisms.REGISTRY)
        checks.choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        checks.choice("decay_per", self.decay_per, ("round", "epoch"))
        checks.choice("local_steps", self.local_steps, ("all", "last_batch"))
        if self.model is not None:
            checks.choice("model", self.model, models.REGISTRY)
        if self.optimizer is not None:
            checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        for name in MAPPINGS:
            object.__setattr__(self, name, fields.pairs(name, getattr(self, name)))
        self.make_mechanism()
        listed(dict(self.behaviours), self.num_agents)

    def __repr__(self) -> str:
        """Returns the fields that are not as by default."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in dataclasses.fields(self):
            if given[field.name] == field.default:
                del given[field.name]
            elif field.name in MAPPINGS:
                given[field.name] = dict(given[field.name])
        return fields.written("Experiment", given)

    def resolved(self) -> "Experiment":
        """Returns the experiment with every open field filled in, but for `agents_at_once`."""
        num_decays = self.rounds * (self.local_epochs if self.decay_per == "epoch" else 1)
        chosen = settings(self.dataset, self.preset, num_decays)._asdict()
        cosine = f"cosine:{str(chosen['gamma']).removeprefix('cosine:')}"
        takes = self._mechanism_takes()
        chosen = {
            name: value
            for name, value in chosen.items()
            if getattr(self, name) is None and (name not in COEFFICIENTS or name in takes)
        }
        if self.gamma == "cosine":
            chosen["gamma"] = cosine
        return dataclasses.replace(self, **chosen)

    def description(self) -> dict[str, Any]:
        """Returns the resolved experiment as JSON."""
        mappings = {name: dict(getattr(self, name)) for name in MAPPINGS}
        # As JSON gives it back: pairs are lists.
        return json.loads(json.dumps({**dataclasses.asdict(self.resolved()), **mappings}))

    @property
    def name(self) -> str:
        """A name that the same description always gets, for a directory."""
        text = json.dumps(self.description(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.dataset}-{self.split}-{self.num_agents}-{self.mechanism}-{digest}".replace(
            "/", "_"
        )

    def make_mechanism(self) -> mechanisms.Mechanism:
        """Returns the mechanism, or says which argument it does not take."""
        takes = self._mechanism_takes()
        given = {name: getattr(self, name) for name in COEFFICIENTS}
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(self.gamma, tuple):
            given["gamma"] = functools.partial(_entry, self.gamma)
        for name in (*given, *dict(self.options)):
            if name in takes and name in COEFFICIENTS and name in dict(self.options):
                raise ValueError(f"`options` must not hold `{name}`, which is a field of its own.")
            if name not in takes:
                raise ValueError(
                    f"The mechanism {self.mechanism!r} does not take `{name}`. It takes: "
                    f"{', '.join(takes) or 'nothing'}."
                )
        return mechanisms.REGISTRY[self.mechanism](**given, **dict(self.options))

    def shards(self, loaded: tuple[Dataset, Dataset] | None = None) -> tuple[Shards, Dataset]:
        """Returns who holds which data, and the test data.

        A tenth of the training data is set aside before the split, the same for every
        mechanism, for those that score models on held-out data.

        Args:
          loaded: training and test data of the data set, where they are loaded already.
        """
        train, test = loaded or data.load(self.dataset)
        if self.eval_examples is not None:
            if self.eval_examples > len(test):
                raise ValueError(
                    f"`eval_examples` must be at most the {len(test)} test examples of "
                    f"{self.dataset!r}, got eval_examples={self.eval_examples}."
                )
            rows = np.random.default_rng(0).permutation(len(test))
            test = test.take(rows[: self.eval_examples])
        train, validation = data.hold_out(train, VALIDATION_SHARE, seed=self.seed)
        split = data.SPLITS[self.split]
        samples = self.resolved().samples_per_agent
        shards = split(train, num_agents=self.num_agents, seed=self.seed, samples_per_agent=samples)
        shards = dataclasses.replace(shards, validation=validation)
        return change_data(shards, self.assigned_behaviours(), self.seed), test

    def utility(self) -> Callable[[Any], Any]:
        """Returns `utility(params)`: the accuracy of a model on the held-out tenth.

        For `fairjax.contributions` of a recorded run.
        """
        shards, _ = self.shards()
        model = self._model(shards.data)
        validation: Any = shards.validation
        return functools.partial(accuracy, model, data=validation)

    def assigned_behaviours(self) -> tuple[Behaviour, ...]:
        """Returns what the agents that are not honest do."""
        return assign(dict(self.behaviours), num_agents=self.num_agents, seed=self.seed)

    def federation(
        self,
        shards: Shards,
        agents_at_once: int | None = None,
        behaviours: Sequence[Behaviour] | None = None,
        mesh: Mesh | None = None,
    ) -> Federation:
        """Returns the federation that the description is of.

        Args:
          shards: who holds which data; gives the model its shapes.
          agents_at_once: None: as described.
          behaviours: None: as described, drawn by the seed.
          mesh: devices that agents are spread over.
        """
        full: Any = self.resolved()
        assigned = full.assigned_behaviours() if behaviours is None else behaviours
        # What others do to their data, `shards` has done already.
        dishonest = [one for one in assigned if one.name in UPLOADS]
        schedule: Any = optax.exponential_decay(full.learning_rate, 1, full.learning_rate_decay)
        return federation(
            model=self._model(shards.data),
            mechanism=full.make_mechanism(),
            optimizer=OPTIMIZERS[full.optimizer],
            learning_rate=schedule,
            local_epochs=full.local_epochs,
            batch_size=full.batch_size,
            decay_per=full.decay_per,
            local_steps=full.local_steps,
            agents_at_once=agents_at_once or full.agents_at_once,
            behaviours=() if full.mechanism == "standalone" else dishonest,
            mesh=mesh,
        )

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
        """Runs the experiment, or goes on with it, and returns its result.

        Args:
          out: the directory for records; None: nothing is written. A run that was
            killed goes on from its last checkpoint and ends in the same bits; a
            finished one is returned at once.
          resume: False: start over, and replace what `out` holds of this experiment.
          mesh: devices that agents are spread over, of one process or several; each process
            calls this, and the first writes. A run may go on on other devices.
          watch: called with what runs, the rounds played and their number; a
            `fairjax.ProgressBar` for example.
          track: names of `fairjax.tracking.TOOLS`, "csv", "tensorboard" or "wandb", that get
            the scalars of every round as it is played. A finished run writes nothing.
          standalone: the result of the standalone mechanism on the same shards, where
            it is known already.

        Returns:
          A `Result`.

        Raises:
          ValueError: `out` belongs to another experiment, cannot be written or is in use by
            another process, or all its checkpoints are damaged, or the data are not to be
            had, or a tool of `track` is not installed.
          OSError: there is no room left, or no permission, to write a record; the same call
            goes on from the last checkpoint.
        """
        checks.flag("resume", resume)
        checks.function("watch", watch, WATCHES, optional=True)
        if standalone is not None:
            checks.kind("standalone", standalone, Result, "`fairjax.Experiment(...).run()`")
        mesh = devices.checked(mesh)
        description = self.description()
        out = None if out is None else checks.path("out", out)
        tools = tracking.checked(track, out)
        record: dict[str, Any] = {"experiment": description}
        if out is not None:
            record = records.claim(out, description, resume)
            if resume and (out / records.RESULT).exists():
                try:
                    return load_run(out)
                except DamagedError as damage:
                    message = f"{damage} The run goes on from its last checkpoint."
                    warnings.warn(message, stacklevel=2)
        with records.locked(out):
            return self._go_on(out, resume, record, mesh, watch, tools, standalone)

    def _go_on(
        self,
        out: Path | None,
        resume: bool,
        record: dict[str, Any],
        mesh: Mesh | None,
        watch: Watcher | None,
        tools: Sequence[str],
        standalone: Result | None,
    ) -> Result:
        """Runs what is left of the experiment, in a directory that is its own."""
        clock = records.Clock({} if out is None or not resume else records.read_times(out))
        with clock.part("data"):
            shards, test = self.shards()
        # Bits depend on it, so a run goes on with what it began with.
        federation = self.federation(shards, record.get("agents_at_once"), mesh=mesh)
        record["agents_at_once"] = federation.agents_at_once(shards)
        if out is not None:
            records.write_json(out / records.EXPERIMENT, record)
        if self.mechanism != "standalone" and standalone is None:
            below = None if out is None else out / "standalone"
            standalone = self.alone().run(below, resume, mesh=mesh, watch=watch)
        with tracking.opened(tools, out, self.name, record["experiment"], resume) as tracker:
            rounds = self._rounds(federation, shards, test)
            last = rounds.play(out, resume, clock, tracker, watch)
            history = simulation.history(last, self.rounds)
            alone = None if standalone is None else standalone.accuracies
            result = self._result(history, last.state, shards, alone)
            tracker.finish(result)
        if out is not None:
            with clock.part("records"):
                histories.write(out, result.history)
            records.write_json(out / records.TIME, clock.seconds())
            records.write_json(out / records.RESULT, result.summary())
        return result

    def only_data(self) -> "Experiment":
        """Returns the experiment with those fields alone that its shards follow from."""
        return Experiment(
            dataset=self.dataset,
            split=self.split,
            num_agents=self.num_agents,
            samples_per_agent=self.resolved().samples_per_agent,
            behaviours=self.behaviours,
            eval_examples=self.eval_examples,
            seed=self.seed,
        )

    def alone(self) -> "Experiment":
        """Returns the same experiment without sharing, evaluated at the end only."""
        alone = self.with_mechanism("standalone")
        return dataclasses.replace(alone, eval_every=self.rounds, record_updates=False)

    def with_mechanism(self, name: str) -> "Experiment":
        """Returns the same experiment with another mechanism, without what that does not take."""
        checks.choice("mechanism", name, mechanisms.REGISTRY)
        takes = inspect.signature(mechanisms.REGISTRY[name]).parameters
        kept = {field: getattr(self, field) for field in COEFFICIENTS if field in takes}
        dropped = dict.fromkeys(set(COEFFICIENTS) - set(kept))
        return dataclasses.replace(self, mechanism=name, options=(), **kept, **dropped)

    def _model(self, data: Dataset) -> models.Model:
        model = models.REGISTRY[str(self.resolved().model)](data)
        return models.computing_in(model, self.compute_dtype)

    def _mechanism_takes(self) -> list[str]:
        return list(inspect.signature(mechanisms.REGISTRY[self.mechanism]).parameters)

    def _rounds(self, federation: Federation, shards: Shards, test: Dataset) -> Rounds:
        return Rounds(
            name=self.mechanism,
            federation=federation,
            shards=shards,
            test=test,
            seed=self.seed,
            num_rounds=self.rounds,
            eval_every=self.resolved().eval_every or 1,
            record_updates=self.record_updates,
        )

    def _result(
        self, history: History, state: State | None, shards: Shards, alone: np.ndarray | None
    ) -> Result:
        return Result(
            experiment=self.resolved(),
            history=history,
            state=state,
            shard_sizes=np.asarray(shards.sizes),
            standalone_accuracies=history.accuracies[-1] if alone is None else alone,
            behaviours=names(self.assigned_behaviours(), self.num_agents),
        )


def _table(name: str, schedule: Callable[[Any], Any], num_rounds: int) -> tuple[float, ...]:
    """Returns what a schedule gives in each round, or says that it is no schedule."""
    try:
        return tuple(float(schedule(round)) for round in range(num_rounds))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a number, or a function of the round that returns one, got "
            f"{checks.shown(schedule)}, which fails: {error}."
        ) from error


def _entry(table: tuple[float, ...], round: Any) -> Any:
    """Returns a schedule's value in a round; after the last one, the last."""
    return jnp.asarray(table)[jnp.minimum(round, len(table) - 1)]


def load_run(out: str | Path) -> Result:
    """Returns the result of a finished run from its directory.

    A damaged `result.json` or `history.npz` is written anew where what else is there tells
    what it held; a warning says so. Without the last checkpoint, the result's `state` is None.

    Raises:
      ValueError: the directory holds no run, or one that is not finished or too damaged.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as out:
      ...     first = Experiment(num_agents=2, rounds=1, model="logistic").run(out)
      ...     again = load_run(out)
      >>> bool((first.accuracies == again.accuracies).all())
      True
    """
    out = checks.path("out", out)
    if not (out / records.EXPERIMENT).exists():
        raise ValueError(f"`out` must be the directory of a run, got {out}, which holds none.")
    if not (out / records.RESULT).exists():
        raise ValueError(
            f"`out` must be the directory of a finished run, got {out}, which is not finished. "
            "Run the same experiment again with this `out` to go on."
        )
    record = records.read_experiment(out)
    try:
        experiment = Experiment(**record["experiment"])
    except (TypeError, ValueError) as error:
        raise DamagedError(
            f"{out / records.EXPERIMENT} does not describe an experiment that this version of "
            f"fairjax knows: {error}"
        ) from error
    shards, test = experiment.shards()
    federation = experiment.federation(shards, record.get("agents_at_once"))
    beginning = experiment._rounds(federation, shards, test).beginning()
    with Checkpoints(out) as checkpoints:
        last = checkpoints.final(beginning, experiment.rounds + 1)
    history = _history(out, experiment, beginning, last)
    state = None if last is None else last.state
    try:
        alone = records.read_standalone_accuracies(out, experiment.num_agents)
        return experiment._result(history, state, shards, alone)
    except DamagedError as damage:
        alone = _standalone_accuracies(out, experiment, history)
        if alone is None:
            raise
        warnings.warn(f"{damage} It is made anew from the history.", stacklevel=2)
    result = experiment._result(history, state, shards, alone)
    with contextlib.suppress(OSError):  # a folder that is read only
        records.write_json(out / records.RESULT, result.summary())
    return result


def _history(out: Path, experiment: Experiment, like: Progress, last: Progress | None) -> History:
    """Returns the history of a run from its file, which the last checkpoint can mend."""
    try:
        return histories.read(out, like.rows, experiment.rounds)
    except DamagedError as damage:
        if last is None:
            raise
        warnings.warn(f"{damage} It is made anew from the last checkpoint.", stacklevel=3)
    history = simulation.history(last, experiment.rounds)
    with contextlib.suppress(OSError):  # a folder that is read only
        histories.write(out, history)
    return history


def _standalone_accuracies(
    out: Path, experiment: Experiment, history: History
) -> np.ndarray | None:
    """Returns what agents reach alone from a run of that, below or beside a run; None: not there.

    The standalone run lies below a run, and beside those of a comparison.
    """
    if experiment.mechanism == "standalone":
        return history.accuracies[-1]
    for folder in (out / "standalone", out.parent / "standalone"):
        with contextlib.suppress(ValueError):
            found = load_run(folder)
            if found.experiment == experiment.alone().resolved():
                return found.accuracies
    return None
