"""Description: the fields of an experiment, what they may hold, and their checks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

from fairjax import checks, data, models
from fairjax.data import Dataset, Shards
from fairjax.experiments import factories, fields, objects, references
from fairjax.experiments.fields import describe_field
from fairjax.experiments.presets import PRESETS
from fairjax.mechanisms import Mechanism
from fairjax.models import Model
from fairjax.simulation import COUNTS, check_fits, check_participation, listed

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
COEFFICIENTS = ("alpha", "beta", "gamma")  # fields for mechanisms that take them
FLOATS = (*COEFFICIENTS, "learning_rate", "learning_rate_decay")
MAPPINGS = ("behaviours", "options")  # fields that are stored as pairs, so that they are hashable
ONLY_PYTHON = "only Python"  # the group of fields without a flag
DEFAULT_AGENTS = 5


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Description:
    """The fields of an `Experiment`; fields that are None get values from its other fields."""

    dataset: str | tuple[Dataset, Dataset] = describe_field(
        "digits",
        "data",
        objects.check_dataset,
        "a name that `fairjax.data.load` knows (`fairjax list` explains all), or a file and a "
        "function in it that returns training and test data, as mine.py:loader; or, in Python, "
        "training and test data.",
    )
    split: str = describe_field(
        "power_law",
        "data",
        fields.one_of(data.SPLITS),
        'how agents get training data: "power_law", "uniform", "class_imbalance" or "dirichlet".',
    )
    num_agents: int = describe_field(
        DEFAULT_AGENTS, "data", checks.count, "number of agents N, 1 to 1,000,000."
    )
    shards: Shards | None = describe_field(
        None,
        ONLY_PYTHON,
        fields.of_kind(Shards, "`fairjax.data.Shards.from_indices(train, rows)`"),
        "your own training data of each agent. They replace `split`, `num_agents` and "
        "`samples_per_agent`, and `dataset` gives the test data; None: `split` makes shards.",
    )
    samples_per_agent: int | None = describe_field(
        None,
        "data",
        checks.count,
        "examples per agent on average, at least 1; None: the paper's number for the data "
        "set if it has one, else all data.",
    )
    model: str | Model | None = describe_field(
        None,
        "training",
        objects.name_or(
            models.REGISTRY,
            Model,
            "a Model, a Flax module, or a function of the training data that makes one",
            or_function=True,
        ),
        "model of every agent, a name in `fairjax.models.REGISTRY`, or a file and a name in it, as "
        "net.py:network; or, in Python, a `Model`, a Flax module, or a function of the training "
        "data that makes one.",
    )
    mechanism: str | Mechanism | Callable[..., Mechanism] = describe_field(
        "cgsv",
        "mechanism",
        factories.check,
        "mechanism that judges and pays agents, a name in `fairjax.mechanisms.REGISTRY`, or a file "
        "and a name in it, as mine.py:factory; or, in Python, a `Mechanism`, or a function that "
        "makes one from coefficients.",
    )
    preset: str = describe_field(
        "fairjax",
        "mechanism",
        fields.one_of(PRESETS),
        "values of fields that are left open. Both presets use the paper's constants on its "
        'data sets. On others, "fairjax" uses values chosen for 3 to 10 agents and 20 to 160 '
        'rounds, and "paper" uses those of the paper\'s program.',
    )
    participation: float | tuple[tuple[int, ...], ...] | None = describe_field(
        None,
        "mechanism",
        None,
        "who takes part in a round: a number of agents such as 3, or a share of them such as 0.3, "
        "drawn by the seed. Absent agents do not train or upload, and receive nothing; a returning "
        "agent trains the model that it holds, or the server's under fedavg and qffl; or, in "
        "Python, a table [T, N] of booleans; None: all agents.",
    )
    beta: float | None = describe_field(
        None,
        "mechanism",
        fields.positive,
        "altruism degree, above 0: the larger it is, the more alike are rewards; None: the "
        "mechanism's own.",
    )
    alpha: float | None = describe_field(
        None, "mechanism", fields.share, "share of importance kept from round to round, in [0, 1]."
    )
    gamma: float | str | Callable[[Any], Any] | tuple[float, ...] | None = describe_field(
        None,
        "mechanism",
        None,
        'length that uploads are rescaled to, above 0; or "cosine:START:END", which follows half '
        "a cosine over the run; or, in Python, an optax schedule over rounds, stored as its values "
        "`[T]`.",
    )
    rounds: int = describe_field(
        80, "training", checks.count, "number of rounds T, 1 to 1,000,000."
    )
    local_epochs: int = describe_field(
        3,
        "training",
        checks.count,
        "passes over its shard that an agent makes per round, at least 1.",
    )
    batch_size: int | None = describe_field(
        None, "training", checks.count, "examples per local step, at least 1."
    )
    optimizer: Any = describe_field(
        None,
        "training",
        objects.name_or(
            OPTIMIZERS,
            optax.GradientTransformation,
            "an optax optimizer such as optax.adamw(1e-3), or a function of the learning rate "
            "such as optax.adamw",
            or_function=True,
        ),
        'optimizer of local steps, "sgd" or "adam"; or, in Python, one of optax, such as '
        "optax.adamw(1e-3), which has its own learning rate, or a function of the learning rate, "
        "such as optax.adamw.",
    )
    schedule_counts: str | None = describe_field(
        None,
        ONLY_PYTHON,
        fields.one_of(COUNTS),
        'unit that a schedule inside `optimizer` counts, "steps" or "rounds", as in '
        "`fairjax.federation`; None: steps, with a warning.",
    )
    learning_rate: float | None = describe_field(
        None, "training", fields.positive, "learning rate at the start, above 0."
    )
    learning_rate_decay: float | None = describe_field(
        None,
        "training",
        fields.factor,
        "factor on the learning rate per round or local epoch, in (0, 1]; None: the preset's. "
        'On data sets without settings of the paper, "fairjax" decays to 15.5% over the run.',
    )
    decay_per: str = describe_field(
        "round",
        "training",
        fields.one_of(("round", "epoch")),
        'unit that `learning_rate_decay` counts, "round" or "epoch".',
    )
    local_steps: str = describe_field(
        "all",
        "training",
        fields.one_of(("all", "last_batch")),
        'which local steps are taken: "all"; or "last_batch", one per local epoch, as in early '
        "versions of the authors' program.",
    )
    eval_every: int | None = describe_field(
        None,
        "evaluation",
        checks.count,
        "rounds between evaluations, at least 1; the last round is always evaluated.",
    )
    eval_examples: int | None = describe_field(
        None,
        "evaluation",
        checks.count,
        "number of test examples in an evaluation, at least 1; they are always the same ones; "
        "None: all.",
    )
    compute_dtype: str = describe_field(
        "float32",
        "computing",
        fields.one_of(("float32", "bfloat16")),
        'dtype that networks compute in, "float32" or "bfloat16". Parameters, updates and losses '
        "stay float32.",
    )
    agents_at_once: int | None = describe_field(
        None,
        "computing",
        checks.count,
        "number of agents that are vectorised, at least 1; None: chosen for the device.",
    )
    behaviours: Mapping[str, Any] | tuple[tuple[str, Any], ...] = describe_field(
        (),
        "data",
        None,
        "names of dishonest behaviours, which `fairjax list` explains, each with a number of "
        "agents, or a pair (number, strength). The seed draws the agents. The standalone run "
        "has the same changed data.",
    )
    record_updates: bool = describe_field(
        False,
        "evaluation",
        checks.flag,
        "keep all uploads in the history, T N D numbers, to compute contributions of a whole run.",
    )
    seed: int = describe_field(
        0,
        "data",
        fields.not_negative,
        "seed of everything random, a whole number, at least 0 and below 2**32.",
    )
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = describe_field(
        (), "mechanism", None, "further arguments of the mechanism's factory."
    )

    def __post_init__(self):
        if callable(self.gamma):
            checks.count("rounds", self.rounds)
            object.__setattr__(self, "gamma", fields.table("gamma", self.gamma, self.rounds))
        for name in references.FIELDS:
            value = getattr(self, name)
            if references.is_reference(value):
                object.__setattr__(self, name, references.resolve(name, value))
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
        object.__setattr__(self, "participation", check_participation(self.participation))
        check_fits(self.participation, self.num_agents, self.rounds)
        self.make_mechanism()
        listed(dict(self.behaviours), self.num_agents)

    def __repr__(self) -> str:
        """Returns the fields that differ from their defaults."""
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
        """Returns the text that is shown for a field: its name, or the label of its object."""
        if name == "split" and self.shards is not None:
            name = "shards"
        return objects.label(name, getattr(self, name))

    @property
    def where(self) -> str:
        """The data set and the split, for titles."""
        split = f"split {self.split}" if self.shards is None else self.label("split")
        return f"{self.label('dataset')}, {split}"

    def make_mechanism(self) -> Mechanism:
        """Returns the mechanism; raises if it does not take a coefficient or an option."""
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
        """Raises if a field is given that an object sets already."""
        if self.shards is not None:
            objects.leave_out(self, "shards", split="power_law", samples_per_agent=None)
            if self.num_agents not in (self.shards.num_agents, DEFAULT_AGENTS):
                raise ValueError(
                    f"`num_agents` must be left out, or be the {self.shards.num_agents} agents of "
                    f"`shards`, got num_agents={self.num_agents}."
                )
            object.__setattr__(self, "num_agents", self.shards.num_agents)
        if isinstance(self.optimizer, optax.GradientTransformation):
            hint = " To choose it here, give a function of the learning rate, such as optax.adamw."
            objects.leave_out(self, "optimizer", hint, learning_rate=None, learning_rate_decay=None)
