"""Description: a frozen description of a run, that JSON can hold, and what follows from it.

    description -> data, shards -> federation

Nothing is run here; see `experiment`.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fairjax import checks, data, mechanisms, models
from fairjax.data import Dataset, Shards
from fairjax.experiments import fields
from fairjax.experiments.presets import PRESETS, settings
from fairjax.simulation import (
    UPLOADS,
    Behaviour,
    Federation,
    accuracy,
    assign,
    change_data,
    federation,
    listed,
)

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
COEFFICIENTS = ("alpha", "beta", "gamma")  # fields that go to mechanisms which take them
FLOATS = (*COEFFICIENTS, "learning_rate", "learning_rate_decay")
MAPPINGS = ("behaviours", "options")  # fields that are kept as pairs, which are hashable
VALIDATION_SHARE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Description:
    """The fields of an `Experiment`, and what follows from them before anything is run."""

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
        return fields.written(type(self).__name__, given)

    def resolved(self) -> Self:
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

    def only_data(self) -> Self:
        """Returns the experiment with those fields alone that its shards follow from."""
        return type(self)(
            dataset=self.dataset,
            split=self.split,
            num_agents=self.num_agents,
            samples_per_agent=self.resolved().samples_per_agent,
            behaviours=self.behaviours,
            eval_examples=self.eval_examples,
            seed=self.seed,
        )

    def alone(self) -> Self:
        """Returns the same experiment without sharing, evaluated at the end only."""
        alone = self.with_mechanism("standalone")
        return dataclasses.replace(alone, eval_every=self.rounds, record_updates=False)

    def with_mechanism(self, name: str) -> Self:
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
