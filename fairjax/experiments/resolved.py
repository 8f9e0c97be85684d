"""Resolved: a description whose open fields get values, and that has a name and a JSON form."""

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import optax

from fairjax.experiments import factories, objects, references
from fairjax.experiments.checked import Checked
from fairjax.experiments.description import COEFFICIENTS, EACH, MAPPINGS
from fairjax.experiments.presets import LAST_RATE, run_lengths, settings, tuning
from fairjax.mechanisms import OURS, Mechanism

# Fields that are recorded only if they are not the default, so that a new one renames no folder.
UNSAID = (
    "shards", "schedule_counts", "participation", "proximal", "reset_optimizers",
    "server_optimizer", "server_learning_rate", "params",
    "task", "metric", "lora_rank", "ranks",
)  # fmt: skip
VANISHED = 1e-3  # share of the learning rate; a smaller rate hardly changes models


class Resolved(Checked):
    """A checked description that chooses values for its open fields."""

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
