"""Resolved: a description that is checked when it is made, and that chooses values for open fields.

fields as given  ->  as stored, checked one by one and together  ->  with values for open ones
"""

import dataclasses
import functools
import hashlib
import json
import re
import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
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
from fairjax.experiments.presets import LAST_RATE, run_lengths, settings, tuning
from fairjax.mechanisms import OURS, Mechanism, standalone
from fairjax.models import Model
from fairjax.simulation import check_fits, check_participation, check_server_optimizer, listed
from fairjax.tasks import METRICS, Task

# Fields that are recorded only if they are not the default, so that a new one renames no folder.
UNSAID = (
    "shards", "schedule_counts", "participation", "proximal", "reset_optimizers",
    "server_optimizer", "server_learning_rate", "params",
    "task", "metric", "lora_rank", "ranks",
)  # fmt: skip
VANISHED = 1e-3  # share of the learning rate; a smaller rate hardly changes models


class Resolved(Description):
    """A description that raises if it cannot be run, and chooses values for its open fields."""

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
        objects.check_left_out(self)
        self._take_agents_of_shards()
        object.__setattr__(self, "participation", check_participation(self.participation))
        check_fits(self.participation, self.num_agents, self.rounds)
        if self.metric is not None and isinstance(self.task, str):
            checks.choice("metric", self.metric, METRICS)
        elif self.metric is not None and isinstance(self.task, Task):
            self.task.about(self.metric)
        check_server_optimizer(self.make_server_optimizer(), self.make_mechanism())
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
        return SERVER_OPTIMIZERS[name](self.server_learning_rate or SERVER_RATES[name])

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

    def _take_agents_of_shards(self) -> None:
        """Stores the number of agents of `shards`; raises if another one is given."""
        if self.shards is None:
            return
        if self.num_agents not in (self.shards.num_agents, DEFAULT_AGENTS):
            raise ValueError(
                f"`num_agents` must be left out, or be the {self.shards.num_agents} agents of "
                f"`shards`, got num_agents={self.num_agents}."
            )
        object.__setattr__(self, "num_agents", self.shards.num_agents)

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

    @property
    def num_decays(self) -> int:
        """How often the learning rate decays in the whole run."""
        epochs = _fill_open(self.local_epochs, run_lengths(self.model)["local_epochs"])
        return self.rounds * (int(np.max(epochs)) if self.decay_per == "epoch" else 1)

    def resolved(self) -> Self:
        """Returns the experiment with the values that its preset chooses for open fields.

        Fields that are still None mean what their help says of None.
        """
        name = self.dataset if isinstance(self.dataset, str) else ""
        tuned = tuning(self.model, self.trains_adapters)
        preset = settings(name, self.preset, self.rounds, self.num_decays, tuned is not None)
        values = {**preset._asdict(), **(tuned or {})}
        if not isinstance(self.dataset, str) and self.dataset[0].vocabulary_size is not None:
            values["model"] = "text_cnn"
        # Objects, and what users registered, have their own coefficients, learning rate or sizes.
        is_ours = isinstance(self.mechanism, str) and self.mechanism in OURS
        unused = {*COEFFICIENTS}.difference(factories.takes(self.mechanism) if is_ours else ())
        if isinstance(self.optimizer, optax.GradientTransformation):
            unused |= {"learning_rate", "learning_rate_decay"}
        if self.shards is not None:
            unused.add("samples_per_agent")
        chosen = {
            name: value
            for name, value in values.items()
            if getattr(self, name) is None and name not in unused
        }
        if self.gamma == "cosine":
            chosen["gamma"] = f"cosine:{str(preset.gamma).removeprefix('cosine:')}"
        plain = chosen.get("optimizer", self.optimizer) in ("sgd", optax.sgd)
        if self.mechanism == "qffl" and not plain and "smoothness" not in dict(self.options):
            # The learning rate of other optimizers says nothing of the length of their steps.
            chosen["options"] = {**dict(self.options), "smoothness": "bounded"}
        each = {**run_lengths(self.model), **values}
        for name in EACH:
            if isinstance(value := getattr(self, name), tuple):
                chosen[name] = _fill_open(value, each[name])
        return dataclasses.replace(self, **chosen)

    def description(self) -> dict[str, Any]:
        """Returns the resolved experiment as JSON."""
        full = self.resolved()
        values = {field.name: getattr(full, field.name) for field in dataclasses.fields(full)}
        for name in MAPPINGS:
            values[name] = dict(values[name])
        for name in objects.FIELDS:
            values[name] = objects.recorded(name, values[name])
        for field in dataclasses.fields(full):
            if field.name in UNSAID and values[field.name] == field.default:
                del values[field.name]
        return json.loads(json.dumps(values))  # pairs become lists, as when it is read again

    @property
    def name(self) -> str:
        """A name for a directory; the same description always has the same name."""
        kept = {name: objects.without_place(value) for name, value in self.description().items()}
        text = json.dumps(kept, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        dataset, split, mechanism = map(self.label, ("dataset", "split", "mechanism"))
        text = f"{dataset}-{split}-{self.num_agents}-{mechanism}-{digest}"
        return re.sub(r"[^\w.-]", "_", text)

    def alone(self) -> Self:
        """Returns the same experiment without sharing, evaluated only at the end."""
        alone = self.with_mechanism("standalone")
        return dataclasses.replace(alone, eval_every=self.rounds, record_updates=False)

    def with_mechanism(self, mechanism: str | Mechanism | Callable[..., Mechanism]) -> Self:
        """Returns the same experiment with another mechanism, and with its default options.

        Coefficients that the mechanism does not take are left out. A `Mechanism` takes none,
        since it has its own.
        """
        if isinstance(mechanism, str) and references.is_reference(mechanism):
            mechanism = references.resolve("mechanism", mechanism)
        factories.check("mechanism", mechanism)
        takes = {} if isinstance(mechanism, Mechanism) else factories.takes(mechanism)
        kept: dict[str, Any] = {
            name: getattr(self, name) if name in takes else None for name in COEFFICIENTS
        }
        if factories.is_standalone(mechanism):  # it has no server
            kept |= {"server_optimizer": None, "server_learning_rate": None}
        return dataclasses.replace(self, mechanism=mechanism, options=(), **kept)

    def warn_of_decay(self) -> None:
        """Warns if the learning rate becomes very small before the run ends."""
        decay: Any = self.resolved().learning_rate_decay
        if decay is None:  # the optimizer has its own learning rate
            return
        left = decay**self.num_decays
        if left < VANISHED:
            warnings.warn(
                f"`learning_rate_decay`={decay:.4g} leaves {left:.0e} of the learning rate after "
                f"{self.rounds} rounds, so the last rounds hardly change the models. To decay over "
                f"the whole run, use learning_rate_decay={LAST_RATE ** (1 / self.num_decays):.6f}.",
                stacklevel=3,
            )


def _fill_open(value: Any, default: Any) -> Any:
    """Returns one number, or agents' numbers with the default where they are left open."""
    if not isinstance(value, tuple):
        return value
    return tuple(default if number is None else number for number in value)


def _as_float(value: Any) -> Any:
    """Returns a whole number, or all of a tuple, as `float`; others are left to the checks."""
    if isinstance(value, tuple):
        return tuple(map(_as_float, value))
    return float(value) if type(value) is int and abs(value) < checks.GREATEST else value
