"""Setup: makes data, shards and the federation from a description.

description -> values for open fields -> data, shards -> federation
"""

import dataclasses
import functools
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import optax
from jax.sharding import Mesh

from fairjax import data, models
from fairjax.data import Dataset, Shards
from fairjax.experiments import factories, objects, references
from fairjax.experiments.description import COEFFICIENTS, MAPPINGS, OPTIMIZERS, Description
from fairjax.experiments.presets import LAST_RATE, settings
from fairjax.mechanisms import OURS, Mechanism
from fairjax.simulation import (
    UPLOADS,
    Behaviour,
    Federation,
    accuracy,
    assign,
    change_data,
    federation,
)

LATER = ("shards", "schedule_counts", "participation")  # fields that older versions did not record
VALIDATION_SHARE = 0.1
VANISHED = 1e-3  # share of the learning rate; a smaller rate hardly changes models


class Setup(Description):
    """A description that can make its data, shards, mechanism and federation."""

    @property
    def num_decays(self) -> int:
        """How often the learning rate decays in the whole run."""
        return self.rounds * (self.local_epochs if self.decay_per == "epoch" else 1)

    def resolved(self) -> Self:
        """Returns the experiment with the values that its preset chooses for open fields.

        Fields that are still None mean what their help says of None.
        """
        name = self.dataset if isinstance(self.dataset, str) else ""
        chosen = settings(name, self.preset, self.rounds, self.num_decays)._asdict()
        cosine = f"cosine:{str(chosen['gamma']).removeprefix('cosine:')}"
        if not isinstance(self.dataset, str) and self.dataset[0].vocabulary_size is not None:
            chosen["model"] = "text_cnn"
        takes = factories.takes(self.mechanism)
        # Objects, and what users registered, have their own coefficients or learning rate.
        is_ours = isinstance(self.mechanism, str) and self.mechanism in OURS
        kept = () if is_ours else COEFFICIENTS
        if isinstance(self.optimizer, optax.GradientTransformation):
            kept = (*kept, "learning_rate", "learning_rate_decay")
        chosen = {
            name: value
            for name, value in chosen.items()
            if getattr(self, name) is None
            and name not in kept
            and (name not in COEFFICIENTS or name in takes)
        }
        if self.gamma == "cosine":
            chosen["gamma"] = cosine
        return dataclasses.replace(self, **chosen)

    def description(self) -> dict[str, Any]:
        """Returns the resolved experiment as JSON."""
        full = self.resolved()
        values = {field.name: getattr(full, field.name) for field in dataclasses.fields(full)}
        for name in MAPPINGS:
            values[name] = dict(values[name])
        for name in objects.FIELDS:
            values[name] = objects.recorded(name, values[name])
        for name in LATER:
            if values[name] is None:
                del values[name]
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
        kept = {name: getattr(self, name) if name in takes else None for name in COEFFICIENTS}
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

    def parts(self) -> tuple[Any, ...]:
        """Returns the functions that the names of data set, model and mechanism mean now."""
        dataset: Any = self.dataset if isinstance(self.dataset, str) else ""
        model: Any = self.resolved().model
        source = data.DATASETS.get(dataset)
        return (
            None if source is None else source.load,
            models.REGISTRY[model] if isinstance(model, str) else None,
            factories.factory_of(self.mechanism) if isinstance(self.mechanism, str) else None,
        )

    def load(self) -> tuple[Dataset, Dataset]:
        """Returns training and test data."""
        return data.load(self.dataset) if isinstance(self.dataset, str) else self.dataset

    def make_shards(self, loaded: tuple[Dataset, Dataset] | None = None) -> tuple[Shards, Dataset]:
        """Returns the shards and the test data.

        A tenth of the training data is held out before the split, for mechanisms that score
        models on it. It is the same for every mechanism. Your own shards have their own
        `validation`, or none.

        Args:
          loaded: training and test data of the data set, if they are loaded already.
        """
        train, test = loaded or self.load()
        if self.eval_examples is not None:
            if self.eval_examples > len(test):
                raise ValueError(
                    f"`eval_examples` must be at most the {len(test)} test examples of "
                    f"{self.label('dataset')!r}, got eval_examples={self.eval_examples}."
                )
            rows = np.random.default_rng(0).permutation(len(test))
            test = test.take(rows[: self.eval_examples])
        shards = self.shards
        if shards is None:
            train, validation = data.hold_out(train, VALIDATION_SHARE, seed=self.seed)
            shards = data.SPLITS[self.split](
                train,
                num_agents=self.num_agents,
                seed=self.seed,
                samples_per_agent=self.resolved().samples_per_agent,
            )
            shards = dataclasses.replace(shards, validation=validation)
        shards.data.check_alike("dataset", test)
        return change_data(shards, self.assigned_behaviours(), self.seed), test

    def only_data(self) -> Self:
        """Returns an experiment with only the fields that determine the shards."""
        return type(self)(
            dataset=self.dataset,
            shards=self.shards,
            split=self.split,
            num_agents=self.num_agents,
            samples_per_agent=self.resolved().samples_per_agent,
            behaviours=self.behaviours,
            eval_examples=self.eval_examples,
            seed=self.seed,
        )

    def utility(self) -> Callable[[Any], Any]:
        """Returns `utility(params)`: the accuracy of a model on the held-out tenth.

        `fairjax.contributions` needs it to judge a recorded run.

        Raises:
          ValueError: `shards` are your own, and have no `validation`.
        """
        shards, _ = self.make_shards()
        if shards.validation is None:
            raise ValueError(
                "`shards` must have held-out data as `validation`, such as "
                "dataclasses.replace(shards, validation=held_out), got none."
            )
        return functools.partial(accuracy, self._model(shards.data), data=shards.validation)

    def assigned_behaviours(self) -> tuple[Behaviour, ...]:
        """Returns one `Behaviour` for each dishonest agent."""
        return assign(dict(self.behaviours), num_agents=self.num_agents, seed=self.seed)

    def federation(
        self,
        shards: Shards,
        agents_at_once: int | None = None,
        behaviours: Sequence[Behaviour] | None = None,
        mesh: Mesh | None = None,
    ) -> Federation:
        """Returns the federation that the fields describe.

        Args:
          shards: who holds which data; they determine the shapes of the model.
          agents_at_once: number of agents that are vectorised; None: that of the field.
          behaviours: behaviours of agents; None: the seed draws those of the field.
          mesh: devices that share the agents.
        """
        full: Any = self.resolved()
        assigned = full.assigned_behaviours() if behaviours is None else behaviours
        # Changes to data are in `shards` already.
        dishonest = [one for one in assigned if one.name in UPLOADS]
        schedule: Any = None
        if full.learning_rate is not None:
            schedule = optax.exponential_decay(full.learning_rate, 1, full.learning_rate_decay)
        return federation(
            model=self._model(shards.data),
            mechanism=full.make_mechanism(),
            optimizer=OPTIMIZERS.get(full.optimizer, full.optimizer),
            learning_rate=schedule,
            local_epochs=full.local_epochs,
            batch_size=full.batch_size,
            decay_per=full.decay_per,
            local_steps=full.local_steps,
            schedule_counts=full.schedule_counts,
            participation=full.participation,
            agents_at_once=agents_at_once or full.agents_at_once,
            behaviours=() if full.mechanism == "standalone" else dishonest,
            mesh=mesh,
        )

    def _model(self, data: Dataset) -> models.Model:
        model: Any = self.resolved().model
        if isinstance(model, str):
            model = models.REGISTRY[model]
        model = models.as_model(model, data)
        return models.computing_in(model, self.compute_dtype)
