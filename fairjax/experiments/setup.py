"""Setup: what follows from a description before anything is run.

description -> data, shards -> federation
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import optax
from jax.sharding import Mesh

from fairjax import data, models
from fairjax.data import Dataset, Shards
from fairjax.experiments.description import OPTIMIZERS, Description
from fairjax.experiments.presets import LAST_RATE
from fairjax.simulation import (
    UPLOADS,
    Behaviour,
    Federation,
    accuracy,
    assign,
    change_data,
    federation,
)

VALIDATION_SHARE = 0.1
VANISHED = 1e-3  # of the learning rate; what is left then moves next to nothing


class Setup(Description):
    """A description, and the data, agents and rules that it describes."""

    def warn_of_decay(self) -> None:
        """Warns where the learning rate decays to next to nothing before the run ends."""
        decay: Any = self.resolved().learning_rate_decay
        left = decay**self.num_decays
        if left < VANISHED:
            warnings.warn(
                f"`learning_rate_decay`={decay:.4g} leaves {left:.0e} of the learning rate after "
                f"{self.rounds} rounds, so the last rounds change next to nothing. Over the run "
                f"decays learning_rate_decay={LAST_RATE ** (1 / self.num_decays):.6f}.",
                stacklevel=3,
            )

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

    def _model(self, data: Dataset) -> models.Model:
        model = models.REGISTRY[str(self.resolved().model)](data)
        return models.computing_in(model, self.compute_dtype)
