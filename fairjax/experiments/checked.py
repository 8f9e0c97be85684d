"""Checked: a description whose fields are checked, one by one and together, when it is made."""

import dataclasses
import functools
from typing import Any

import optax

from fairjax import checks
from fairjax.experiments import factories, fields, objects, references
from fairjax.experiments.description import (
    COEFFICIENTS,
    DEFAULT_AGENTS,
    EACH,
    FLOATS,
    MAPPINGS,
    Description,
)
from fairjax.experiments.optimizers import SERVER_OPTIMIZERS, SERVER_RATES
from fairjax.experiments.presets import run_lengths
from fairjax.mechanisms import Mechanism, standalone
from fairjax.models import Model
from fairjax.simulation import (
    check_fits,
    check_participation,
    check_server_optimizer,
    listed,
)
from fairjax.tasks import METRICS, Task


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Checked(Description):
    """A description that raises if it cannot be run."""

    def __post_init__(self):
        for name, number in run_lengths(self.model).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, number)
        if callable(self.gamma):
            checks.count("rounds", self.rounds)
            object.__setattr__(self, "gamma", fields.table("gamma", self.gamma, self.rounds))
        for name in references.FIELDS:
            value = getattr(self, name)
            if references.is_reference(value):
                object.__setattr__(self, name, references.resolve(name, value))
        for field in dataclasses.fields(self):
            value = self._as_stored(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            check = field.metadata.get("check")
            if check is not None and not (value is None and field.default is None):
                check(field.name, value)
        if factories.is_standalone(self.mechanism):  # its name says: play no other beside
            object.__setattr__(self, "mechanism", standalone.__name__)
        self._check_ranks()
        if isinstance(self.gamma, tuple):
            checks.lengths("gamma", self.gamma, self.rounds)
        for name in MAPPINGS:
            object.__setattr__(self, name, fields.pairs(name, getattr(self, name)))
        self._check_objects()
        object.__setattr__(self, "participation", check_participation(self.participation))
        check_fits(self.participation, self.num_agents, self.rounds)
        if self.metric is not None and isinstance(self.task, str):
            checks.choice("metric", self.metric, METRICS)
        elif self.metric is not None and isinstance(self.task, Task):
            self.task.about(self.metric)
        mechanism = self.make_mechanism()
        check_server_optimizer(self.make_server_optimizer(), mechanism)
        listed(dict(self.behaviours), self.num_agents)

    def _as_stored(self, name: str, value: Any) -> Any:
        """Returns the value of a field as Python numbers, texts and tuples, which have a hash."""
        if name in EACH:
            value = fields.of_agents(name, value, self._num_agents)
        if name == "ranks" and checks.is_listing(value):
            value = list(value)
        if name == "params" and value is not None:  # a tree, whose dicts count
            value = objects.Contents(value)
        value = fields.plain(value)
        return _as_float(value) if name in FLOATS else value

    @property
    def _num_agents(self) -> int:
        """The number of agents, also before `shards` have replaced the field."""
        return self.num_agents if self.shards is None else self.shards.num_agents

    def __repr__(self) -> str:
        """Returns the fields that differ from their defaults."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in dataclasses.fields(self):
            default = run_lengths(self.model).get(field.name, field.default)
            if given[field.name] is default or given[field.name] == default:
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

    @property
    def is_standalone(self) -> bool:
        """Whether agents train alone. `standalone` as an object is stored as its name, too."""
        return self.mechanism == standalone.__name__

    def make_server_optimizer(self) -> Any:
        """Returns the optax optimizer of the server, or None."""
        name = self.server_optimizer
        if not isinstance(name, str):
            return name
        rate = (
            SERVER_RATES[name] if self.server_learning_rate is None else self.server_learning_rate
        )
        return SERVER_OPTIMIZERS[name](rate)

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

    def _check_ranks(self) -> None:
        """Raises unless ranks are one number for each agent; the largest is the default rank."""
        if self.ranks is None:
            return
        num_agents, ranks = self._num_agents, self.ranks
        if not isinstance(ranks, tuple) or len(ranks) != num_agents:
            raise ValueError(
                f"`ranks` must be one number for each of the {num_agents} agents, "
                f"got ranks={checks.shown(ranks)}."
            )
        for agent, rank in enumerate(ranks):
            checks.count(f"ranks[{agent}]", rank)
        if self.lora_rank is None and not self.trains_adapters:
            object.__setattr__(self, "lora_rank", max(ranks))

    @property
    def trains_adapters(self) -> bool:
        """Whether agents train adapters, of `lora_rank` or of a model that has them already."""
        adapted = isinstance(self.model, Model) and self.model.adapters is not None
        return adapted or self.lora_rank is not None

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
        if self.server_optimizer is None and self.server_learning_rate is not None:
            raise ValueError(
                "`server_learning_rate` must be left out without a `server_optimizer`, "
                f"got server_learning_rate={self.server_learning_rate!r}."
            )
        if objects.is_object(self.server_optimizer):
            objects.leave_out(self, "server_optimizer", server_learning_rate=None)
        if isinstance(self.optimizer, optax.GradientTransformation):
            hint = " To choose it here, give a function of the learning rate, such as optax.adamw."
            objects.leave_out(self, "optimizer", hint, learning_rate=None, learning_rate_decay=None)


def _as_float(value: Any) -> Any:
    """Returns a whole number, or all of a tuple, as `float`; others are left to the checks."""
    if isinstance(value, tuple):
        return tuple(map(_as_float, value))
    return float(value) if type(value) is int and abs(value) < checks.GREATEST else value
