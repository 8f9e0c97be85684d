"""Description: the fields of an experiment, what they may hold, and their checks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from fairjax import checks, data, models, tasks
from fairjax.data import Dataset, Shards
from fairjax.experiments import factories, fields, objects
from fairjax.experiments.fields import describe_field
from fairjax.experiments.optimizers import OPTIMIZERS, SERVER_OPTIMIZERS
from fairjax.experiments.presets import PRESETS
from fairjax.mechanisms import Mechanism
from fairjax.models import Model
from fairjax.simulation import COUNTS
from fairjax.tasks import Task

COEFFICIENTS = ("alpha", "beta", "gamma")  # fields for mechanisms that take them
RATES = ("learning_rate", "learning_rate_decay", "server_learning_rate")
FLOATS = (*COEFFICIENTS, *RATES, "proximal")
EACH = ("local_epochs", "batch_size", "learning_rate")  # fields that agents may differ in
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
        "function in it, called once, that returns training and test data, as mine.py:loader; or, "
        "in Python, both data sets.",
    )
    split: str = describe_field(
        "power_law",
        "data",
        fields.one_of(data.SPLITS),
        f"how agents get training data: {', '.join(data.SPLITS)}.",
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
        hash=False,  # some Flax modules have none
    )
    task: str | Task | Callable[[Dataset], Task] = describe_field(
        "classification",
        "training",
        objects.name_or(
            tasks.TASKS,
            Task,
            "a Task, or a function of the training data that makes one",
            or_function=True,
        ),
        'what agents train for: "classification", "class_weighted", "regression" or "multi_label", '
        "or a file and a name in it, as mine.py:task; or, in Python, a `Task`, or a function of "
        "the training data that makes one.",
    )
    metric: str | None = describe_field(
        None,
        "training",
        checks.text,
        "the metric that fairness is about, as auc, r2 or mse; None: the task's own.",
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
        "agent trains the model that it holds, or the server's if all are paid the same, as under "
        "fedavg; or, in Python, a table [T, N] of booleans; None: all agents.",
    )
    lora_rank: int | None = describe_field(
        None,
        "training",
        checks.count,
        "rank of adapters that agents train on a frozen network (the model's, or `params`), at "
        "least 1; None: they train all parameters.",
    )
    ranks: tuple[int, ...] | None = describe_field(
        None, "training", None, "agents' own ranks, as 16,8,4,4,2; None: `lora_rank` for all."
    )
    beta: float | None = describe_field(
        None,
        "mechanism",
        fields.positive,
        "altruism degree, above 0: the larger it is, the more alike are rewards; None: the "
        "mechanism's own.",
    )
    alpha: float | None = describe_field(
        None, "mechanism", fields.memory, "share of importance kept from round to round, in [0, 1]."
    )
    gamma: float | str | Callable[[Any], Any] | tuple[float, ...] | None = describe_field(
        None,
        "mechanism",
        None,
        'length that uploads are rescaled to, above 0; "cosine:START:END", half a cosine over the '
        'run; "median" of the round\'s uploads; or, in Python, a schedule, stored as values `[T]`.',
    )
    rounds: int = describe_field(
        None,
        "training",
        checks.count,
        "number of rounds T, 1 to 1,000,000; a finished run goes on with more if its "
        "`learning_rate_decay` and `gamma` do not depend on T; None: 80, 3 for minilm.",
    )
    local_epochs: int | Mapping[int, int] | tuple[int | None, ...] = describe_field(
        None,
        "training",
        fields.each(checks.count),
        "passes over its shard that an agent makes per round, at least 1; one number, those of "
        "all agents as 5,3,3, or those of some agents as 0=5,2=1; None: 3, 1 for minilm.",
    )
    batch_size: int | Mapping[int, int] | tuple[int | None, ...] | None = describe_field(
        None,
        "training",
        fields.each(checks.count),
        "examples per local step, at least 1; one number, or agents' as in `local_epochs`.",
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
    proximal: float = describe_field(
        0.0,
        "training",
        lambda name, value: checks.at_least(name, value, 0),
        "mu of FedProx, at least 0: mu / 2 times the squared distance to the parameters at the "
        "round's start is added to the loss.",
    )
    reset_optimizers: bool = describe_field(
        False,
        "training",
        checks.flag,
        "begin every round with a fresh state of every agent's optimizer.",
    )
    server_optimizer: Any = describe_field(
        None,
        "training",
        objects.name_or(
            SERVER_OPTIMIZERS,
            optax.GradientTransformation,
            "an optax optimizer such as optax.sgd(1.0, momentum=0.9)",
        ),
        'optimizer that makes the server\'s step from the aggregate: "fedavgm", "fedadam" or '
        '"fedyogi"; or, in Python, one of optax. Only for mechanisms that pay everybody the '
        "aggregate, such as fedavg; None: the aggregate itself.",
    )
    server_learning_rate: float | None = describe_field(
        None,
        "training",
        fields.positive,
        "learning rate of `server_optimizer`, above 0; None: 1 for fedavgm, else 0.01.",
    )
    learning_rate: float | Mapping[int, float] | tuple[float | None, ...] | None = describe_field(
        None,
        "training",
        fields.each(fields.rate),
        "learning rate at the start, above 0; one number, or agents' as in `local_epochs`.",
    )
    params: Any = describe_field(
        None,
        ONLY_PYTHON,
        fields.arrays,
        "first parameters: common ones; or leaves [N, ...], the agents' own; or a mapping from "
        "some agents to theirs; None: drawn by the model from the seed.",
    )
    learning_rate_decay: float | None = describe_field(
        None,
        "training",
        checks.share,
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
        "test examples in an evaluation, at least 1, always the same ones; None: all.",
    )
    compute_dtype: str = describe_field(
        "float32",
        "computing",
        fields.one_of(("float32", "bfloat16")),
        'dtype that networks compute in, "float32" or "bfloat16"; parameters stay float32.',
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
        "dishonest behaviours, which `fairjax list` explains, each with a number of agents, and a "
        "strength if not the default. The seed draws the agents, and the standalone run has the "
        "same changed data; or, in Python, a mapping to numbers, or to pairs (number, strength).",
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
        fields.seed,
        "seed of everything random, a whole number, at least 0 and below 2**32.",
    )
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = describe_field(
        (), "mechanism", None, "further arguments of the mechanism's factory."
    )
