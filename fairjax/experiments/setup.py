"""Setup: makes data, shards and the federation from a description.

description -> values for open fields -> data, shards -> federation
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from fairjax import data, models, tasks
from fairjax.data import Dataset, Shards
from fairjax.experiments.optimizers import OPTIMIZERS
from fairjax.experiments.resolved import Resolved
from fairjax.simulation import (
    DATA,
    Behaviour,
    Federation,
    assign,
    change_data,
    federation,
    first_statistics,
    given_params,
    utility,
)

VALIDATION_SHARE = 0.1
FOLDERS = ("TFDS_DATA_DIR", "FAIRJAX_TEXT_DIR", models.FOLDER)  # of data sets and of tokens


class Setup(Resolved):
    """A description that can make its data, shards, mechanism and federation."""

    def data_source(self) -> tuple[str | None, ...] | None:
        """Returns where the data lie; None for what can change: own data, shards or loaders."""
        own = not isinstance(self.dataset, str) or self.dataset in data.DATASETS.keys() - data.OURS
        return None if own or self.shards is not None else tuple(map(os.environ.get, FOLDERS))

    def load(self) -> tuple[Dataset, Dataset]:
        """Returns training and test data."""
        if not isinstance(self.dataset, str):
            return self.dataset
        if self._tokenized_for is None:
            return data.load(self.dataset)
        if self.dataset not in data.SENTENCES:
            raise ValueError(
                f"`dataset` must be sentences for the model {self.model!r}, one of "
                f"{', '.join(data.SENTENCES)}, got dataset={self.dataset!r}."
            )
        tokenizer = models.TOKENIZERS[self._tokenized_for]()
        return data.load(self.dataset, tokenizer=tokenizer)

    @property
    def _tokenized_for(self) -> str | None:
        """The name of the model if it has its own tokens, else None."""
        return next((name for name in models.TOKENIZERS if name == self.model), None)

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

    def kept_shards(self) -> tuple[Shards, Dataset]:
        """Returns the same as `make_shards`, for data sets with a name made only once; for reading.

        A run, its standalone run and its page have the same data.
        """
        source = self.data_source()
        return self.make_shards() if source is None else _make_shards(self.only_data(), source)

    def first_params(self, shards: Shards) -> Any:
        """Returns the given first parameters, leaves `[N, ...]` if agents differ; None: none.

        Raises:
          ValueError: they do not fit the model or the mechanism.
        """
        if self.params is None or self.lora_rank is not None:  # adapters begin at zero
            return None
        key, model = jax.random.key(self.seed), self.make_model(shards.data)
        own, server = given_params(key, model, shards, self.make_mechanism(), self.params.value)
        return server if own is None else own

    def only_data(self) -> Self:
        """Returns an experiment with only the fields that determine the shards."""
        return type(self)(
            dataset=self.dataset,
            model=self._tokenized_for,
            shards=self.shards,
            split=self.split,
            num_agents=self.num_agents,
            samples_per_agent=self.resolved().samples_per_agent,
            behaviours=self.behaviours,
            eval_examples=self.eval_examples,
            seed=self.seed,
        )

    def utility(self) -> Callable[[Any], Any]:
        """Returns `utility(params)`: the main metric of a model on the held-out tenth.

        A metric that is better when it is lower is negated.
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
        task, model = self.make_task(shards.data), self.make_model(shards.data)
        task.check_test("validation", shards.validation)
        if first_statistics(jax.random.key(self.seed), model, shards.data) is not None:
            raise ValueError(
                f"`utility` needs a network without statistics, got {self.label('model')}: records "
                "hold no statistics by which its parameters could be evaluated. Use GroupNorm or "
                "LayerNorm in place of BatchNorm."
            )
        return functools.partial(utility, task, model, data=shards.validation)

    def make_task(self, like: Dataset | None = None) -> tasks.Task:
        """Returns the task, with the main metric that the fields choose.

        It depends on all training data, not on the split, so all seeds have the same.

        Args:
          like: a data set with the same kind of `y`. Most tasks look no further, so that the
            training data need not be loaded.

        Raises:
          ValueError: the task does not fit the data, or does not know the metric.
        """
        looks = not isinstance(self.task, str | tasks.Task) or self.task == "class_weighted"
        if like is None or looks:
            like = self.load()[0] if self.shards is None else self.shards.data
        return tasks.as_task(self.task, like, self.metric)

    @functools.cached_property
    def shown(self) -> tasks.Shown:
        """How the main metric is written in tables and figures."""
        if isinstance(self.task, str):
            return tasks.Shown.named(self.metric or tasks.METRICS_OF[self.task][0])
        return tasks.Shown.of(self.make_task())

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
        dishonest = [one for one in assigned if one.name not in DATA]
        schedule: Any = None
        if full.learning_rate is not None:
            rates: Any = full.learning_rate
            if isinstance(rates, tuple):
                rates = np.asarray(rates, np.float32)
            schedule = optax.exponential_decay(rates, 1, full.learning_rate_decay)
        self.first_params(shards)  # raises before anything is compiled
        return federation(
            model=self.make_model(shards.data),
            task=full.make_task(shards.data),
            mechanism=full.make_mechanism(),
            optimizer=OPTIMIZERS.get(full.optimizer, full.optimizer),
            learning_rate=schedule,
            local_epochs=full.local_epochs,
            batch_size=full.batch_size,
            decay_per=full.decay_per,
            local_steps=full.local_steps,
            schedule_counts=full.schedule_counts,
            proximal=full.proximal,
            reset_optimizers=full.reset_optimizers,
            ranks=full.ranks,
            server_optimizer=full.make_server_optimizer(),
            participation=full.participation,
            agents_at_once=agents_at_once or full.agents_at_once,
            behaviours=() if full.is_standalone else dishonest,
            mesh=mesh,
        )

    def make_model(self, data: Dataset) -> models.Model:
        """Returns the model for a data set."""
        model: Any = self.resolved().model
        if isinstance(model, str):
            model = models.REGISTRY[model]
        elif models.looks_at_data(model):
            model = self.model_of_data
        model = models.computing_in(models.as_model(model, data), self.compute_dtype)
        if self.lora_rank is not None:
            model = models.lora(model, self._frozen_params(model, data), self.lora_rank)
        return model

    @functools.cached_property
    def model_of_data(self) -> models.Model:
        """The model that a function makes of all training data, so that all seeds have the same."""
        like = self.load()[0] if self.shards is None else self.shards.data
        return models.as_model(self.resolved().model, like)

    def _frozen_params(self, model: models.Model, data: Dataset) -> Any:
        """Returns the parameters below the adapters, the same for every seed.

        Raises:
          ValueError: `params` do not have the shapes of the model's.
        """
        drawn = models.initial_params(model, jax.random.key(0), data)
        if self.params is None:
            return drawn
        wanted, found = jax.tree.map(np.shape, drawn), jax.tree.map(np.shape, self.params.value)
        if wanted != found:
            raise ValueError(
                f"`params` must have the model's shapes {wanted} with `lora_rank`, got {found}."
            )
        return self.params.value


@functools.lru_cache(maxsize=1)
def _make_shards(experiment: Setup, source: Any) -> tuple[Shards, Dataset]:
    del source  # another source needs other data
    return read_only(experiment.make_shards())


def read_only(tree: Any) -> Any:
    """Returns the same arrays, which nobody can write to, since later runs read them too."""

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            leaf = leaf.view()
            leaf.setflags(write=False)
        return leaf

    return jax.tree.map(of_leaf, tree)
