"""Description: the fields of an experiment, which JSON can hold, and their rules."""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import optax

from fairjax import checks, data, mechanisms, models
from fairjax.experiments import fields
from fairjax.experiments.fields import described
from fairjax.experiments.presets import PRESETS, settings
from fairjax.mechanisms import Length
from fairjax.simulation import (
    listed,
)

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
COEFFICIENTS = ("alpha", "beta", "gamma")  # fields that go to mechanisms which take them
FLOATS = (*COEFFICIENTS, "learning_rate", "learning_rate_decay")
MAPPINGS = ("behaviours", "options")  # fields that are kept as pairs, which are hashable


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Description:
    """The fields of an `Experiment`; what is open in them follows from others."""

    dataset: str = described(
        "digits",
        "data",
        checks.text,
        "a name of `fairjax.data.load`; `fairjax list` explains all names.",
    )
    split: str = described(
        "power_law",
        "data",
        fields.one_of(data.SPLITS),
        'how data are shared out: "power_law", "uniform", "class_imbalance" or "dirichlet".',
    )
    num_agents: int = described(
        5,
        "data",
        checks.count,
        "number of agents N, 1 to 1,000,000.",
    )
    samples_per_agent: int | None = described(
        None,
        "data",
        checks.count,
        "examples per agent on average, at least 1; None: the paper's number for the data "
        "set, else all data.",
    )
    model: str | None = described(
        None,
        "training",
        fields.one_of(models.REGISTRY),
        "what every agent trains, a name of `fairjax.models.REGISTRY`.",
    )
    mechanism: str = described(
        "cgsv",
        "mechanism",
        fields.one_of(mechanisms.REGISTRY),
        "what judges and pays agents, a name of `fairjax.mechanisms.REGISTRY`.",
    )
    preset: str = described(
        "fairjax",
        "mechanism",
        fields.one_of(PRESETS),
        'what chooses open fields, "fairjax": the paper\'s constants on its data sets, and '
        'elsewhere what holds for 3 to 10 agents and 20 to 160 rounds; or "paper": the '
        "paper's constants, and elsewhere those of its program.",
    )
    beta: float | None = described(
        None,
        "mechanism",
        fields.positive,
        "altruism degree, above 0: the larger, the more alike rewards are; None: the "
        "mechanism's own.",
    )
    alpha: float | None = described(
        None,
        "mechanism",
        fields.share,
        "memory of importance from round to round, in [0, 1].",
    )
    gamma: float | str | Callable[[Any], Any] | tuple[float, ...] | None = described(
        None,
        "mechanism",
        None,
        'length of rescaled uploads, above 0; or "cosine:START:END", half a cosine over the '
        "run; or an optax schedule over rounds, which is kept as its values `[T]`.",
    )
    rounds: int = described(
        80,
        "training",
        checks.count,
        "number of rounds T, 1 to 1,000,000.",
    )
    local_epochs: int = described(
        3,
        "training",
        checks.count,
        "passes over its shard that an agent makes per round, at least 1.",
    )
    batch_size: int | None = described(
        None,
        "training",
        checks.count,
        "examples per local step, at least 1.",
    )
    optimizer: str | None = described(
        None,
        "training",
        fields.one_of(OPTIMIZERS),
        'of local steps, "sgd" or "adam".',
    )
    learning_rate: float | None = described(
        None,
        "training",
        fields.positive,
        "at the start, above 0.",
    )
    learning_rate_decay: float | None = described(
        None,
        "training",
        fields.factor,
        "factor per round or local epoch, in (0, 1]; None: the preset's, over the run to "
        '15.5% of the learning rate where that is "fairjax" and the paper has none.',
    )
    decay_per: str = described(
        "round",
        "training",
        fields.one_of(("round", "epoch")),
        'what the decay counts, "round" or "epoch".',
    )
    local_steps: str = described(
        "all",
        "training",
        fields.one_of(("all", "last_batch")),
        '"all", or "last_batch" as in early versions of the authors\' program.',
    )
    eval_every: int | None = described(
        None,
        "evaluation",
        checks.count,
        "evaluate after every so many rounds, at least 1, and after the last.",
    )
    eval_examples: int | None = described(
        None,
        "evaluation",
        checks.count,
        "how many of the test examples models are evaluated on, at least 1, the same ones "
        "always; None: all.",
    )
    compute_dtype: str = described(
        "float32",
        "computing",
        fields.one_of(("float32", "bfloat16")),
        'what networks compute in, "float32" or "bfloat16". Parameters, updates and losses '
        "stay float32.",
    )
    agents_at_once: int | None = described(
        None,
        "computing",
        checks.count,
        "how many agents are vectorised, at least 1; None: picked for the device.",
    )
    behaviours: Mapping[str, Any] | tuple[tuple[str, Any], ...] = described(
        (),
        "data",
        None,
        "for names of dishonest behaviours, which `fairjax list` explains, a number of "
        "agents, or a pair (number, strength). The seed draws who. The standalone run has "
        "what they do to data.",
    )
    record_updates: bool = described(
        False,
        "evaluation",
        checks.flag,
        "keep all uploads in the history, T N D numbers, for contributions of the whole run.",
    )
    seed: int = described(
        0,
        "data",
        fields.not_negative,
        "everything random follows from it; a whole number, at least 0 and below 2**32.",
    )
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = described(
        (),
        "mechanism",
        None,
        "further arguments of the mechanism's factory.",
    )

    def __post_init__(self):
        if callable(self.gamma):
            checks.count("rounds", self.rounds)
            object.__setattr__(self, "gamma", fields.table("gamma", self.gamma, self.rounds))
        for field in dataclasses.fields(self):
            value = fields.plain(getattr(self, field.name))
            if field.name in FLOATS and type(value) is int and abs(value) < checks.GREATEST:
                value = float(value)
            object.__setattr__(self, field.name, value)
            check = field.metadata.get("check")
            if check is not None and not (value is None and field.default is None):
                check(field.name, value)
        if isinstance(self.gamma, tuple):
            checks.lengths("gamma", self.gamma, self.rounds)
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

    @property
    def num_decays(self) -> int:
        """How often the learning rate decays in the whole run."""
        return self.rounds * (self.local_epochs if self.decay_per == "epoch" else 1)

    def resolved(self) -> Self:
        """Returns the experiment with every open field filled in, but for `agents_at_once`."""
        chosen = settings(self.dataset, self.preset, self.rounds, self.num_decays)._asdict()
        cosine = f"cosine:{str(chosen['gamma']).removeprefix('cosine:')}"
        takes = inspect.signature(mechanisms.REGISTRY[self.mechanism]).parameters
        chosen = {
            name: value
            for name, value in chosen.items()
            if getattr(self, name) is None and (name not in COEFFICIENTS or name in takes)
        }
        # A mechanism whose gamma is a number, and no `Length`, keeps its own.
        if isinstance(chosen.get("gamma"), str) and takes["gamma"].annotation is not Length:
            del chosen["gamma"]
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
            given["gamma"] = functools.partial(fields.entry, self.gamma)
        for name in (*given, *dict(self.options)):
            if name in takes and name in COEFFICIENTS and name in dict(self.options):
                raise ValueError(f"`options` must not hold `{name}`, which is a field of its own.")
            if name not in takes:
                raise ValueError(
                    f"The mechanism {self.mechanism!r} does not take `{name}`. It takes: "
                    f"{', '.join(takes) or 'nothing'}."
                )
        return mechanisms.REGISTRY[self.mechanism](**given, **dict(self.options))

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

    def _mechanism_takes(self) -> list[str]:
        return list(inspect.signature(mechanisms.REGISTRY[self.mechanism]).parameters)
