"""Description: the fields of an experiment, names or objects, and their rules."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

from fairjax import checks, data, models
from fairjax.data import Dataset, Shards
from fairjax.experiments import factories, fields, objects
from fairjax.experiments.fields import described
from fairjax.experiments.presets import PRESETS
from fairjax.mechanisms import Mechanism
from fairjax.models import Model
from fairjax.simulation import COUNTS, listed

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
COEFFICIENTS = ("alpha", "beta", "gamma")  # fields that go to mechanisms which take them
FLOATS = (*COEFFICIENTS, "learning_rate", "learning_rate_decay")
MAPPINGS = ("behaviours", "options")  # fields that are kept as pairs, which are hashable
ONLY_PYTHON = "only Python"  # the group of fields that are no flags
DEFAULT_AGENTS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Description:
    """The fields of an `Experiment`; those that are None follow from others."""

    dataset: str | tuple[Dataset, Dataset] = described(
        "digits",
        "data",
        objects.check_dataset,
        "a name of `fairjax.data.load`; `fairjax list` explains all names; or, in Python, "
        "training and test data.",
    )
    split: str = described(
        "power_law",
        "data",
        fields.one_of(data.SPLITS),
        'how data are shared out: "power_law", "uniform", "class_imbalance" or "dirichlet".',
    )
    num_agents: int = described(
        DEFAULT_AGENTS, "data", checks.count, "number of agents N, 1 to 1,000,000."
    )
    shards: Shards | None = described(
        None,
        ONLY_PYTHON,
        fields.of_kind(Shards, "`fairjax.data.Shards.from_indices(train, rows)`"),
        "who holds which of your own training data, in place of `split`, `num_agents` and "
        "`samples_per_agent`; `dataset` then gives the test data; None: the split says.",
    )
    samples_per_agent: int | None = described(
        None,
        "data",
        checks.count,
        "examples per agent on average, at least 1; None: the paper's number for the data "
        "set, else all data.",
    )
    model: str | Model | None = described(
        None,
        "training",
        objects.name_or(models.REGISTRY, Model, "a Model such as `fairjax.models.from_flax` makes"),
        "what every agent trains, a name of `fairjax.models.REGISTRY`; or, in Python, a `Model`.",
    )
    mechanism: str | Mechanism | Callable[..., Mechanism] = described(
        "cgsv",
        "mechanism",
        factories.check,
        "what judges and pays agents, a name of `fairjax.mechanisms.REGISTRY`; or, in Python, a "
        "`Mechanism`, or a function that makes one from coefficients.",
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
        None, "mechanism", fields.share, "memory of importance from round to round, in [0, 1]."
    )
    gamma: float | str | Callable[[Any], Any] | tuple[float, ...] | None = described(
        None,
        "mechanism",
        None,
        'length of rescaled uploads, above 0; or "cosine:START:END", half a cosine over the '
        "run; or an optax schedule over rounds, which is kept as its values `[T]`.",
    )
    rounds: int = described(80, "training", checks.count, "number of rounds T, 1 to 1,000,000.")
    local_epochs: int = described(
        3,
        "training",
        checks.count,
        "passes over its shard that an agent makes per round, at least 1.",
    )
    batch_size: int | None = described(
        None, "training", checks.count, "examples per local step, at least 1."
    )
    optimizer: Any = described(
        None,
        "training",
        objects.name_or(
            OPTIMIZERS,
            optax.GradientTransformation,
            "an optax optimizer such as optax.adamw(1e-3), or a function of the learning rate "
            "such as optax.adamw",
            or_function=True,
        ),
        'of local steps, "sgd" or "adam"; or optax\'s, such as optax.adamw(1e-3), which holds its '
        "own learning rate, or a function of the learning rate, such as optax.adamw.",
    )
    schedule_counts: str | None = described(
        None,
        ONLY_PYTHON,
        fields.one_of(COUNTS),
        'what a schedule within an `optimizer` counts, "steps" or "rounds", as in '
        "`fairjax.federation`; None: steps, with a warning.",
    )
    learning_rate: float | None = described(
        None, "training", fields.positive, "at the start, above 0."
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
        (), "mechanism", None, "further arguments of the mechanism's factory."
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
        self._check_objects()
        self.make_mechanism()
        listed(dict(self.behaviours), self.num_agents)

    def __repr__(self) -> str:
        """Returns the fields that are not as by default."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in dataclasses.fields(self):
            if given[field.name] is field.default or given[field.name] == field.default:
                del given[field.name]
            elif field.name in objects.FIELDS and objects.is_object(given[field.name]):
                given[field.name] = fields.Written(f"<{self.label(field.name)}>")
            elif field.name in MAPPINGS:
                given[field.name] = dict(given[field.name])
        return fields.written(type(self).__name__, given)

    def label(self, name: str) -> str:
        """Returns what people are told that a field holds: a name, or what an object is."""
        if name == "split" and self.shards is not None:
            name = "shards"
        return objects.label(name, getattr(self, name))

    @property
    def where(self) -> str:
        """Which data, and how they are shared out, for titles."""
        split = f"split {self.split}" if self.shards is None else self.label("split")
        return f"{self.label('dataset')}, {split}"

    def make_mechanism(self) -> Mechanism:
        """Returns the mechanism, or says which argument it does not take."""
        options = dict(self.options)
        given = {name: getattr(self, name) for name in COEFFICIENTS}
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(self.gamma, tuple):
            given["gamma"] = functools.partial(fields.entry, self.gamma)
        for name in COEFFICIENTS:
            if name in options and name in factories.takes(self.mechanism):
                raise ValueError(f"`options` must not hold `{name}`, which is a field of its own.")
        return factories.make(self.mechanism, given, options)

    def _check_objects(self) -> None:
        """Raises where a field says what an object says already."""
        if self.shards is not None:
            objects.leave_out(self, "shards", split="power_law", samples_per_agent=None)
            if self.num_agents not in (self.shards.num_agents, DEFAULT_AGENTS):
                raise ValueError(
                    f"`num_agents` must be left out, or be the {self.shards.num_agents} agents of "
                    f"`shards`, got num_agents={self.num_agents}."
                )
            object.__setattr__(self, "num_agents", self.shards.num_agents)
        if isinstance(self.optimizer, optax.GradientTransformation):
            hint = " Give a function of the learning rate, such as optax.adamw, to choose it here."
            objects.leave_out(self, "optimizer", hint, learning_rate=None, learning_rate_decay=None)
