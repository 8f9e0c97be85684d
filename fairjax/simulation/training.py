"""Training: one agent's local epochs, and the loop over agents.

    epoch   a fresh shuffle of the shard, cut into batches; the last may be partial
    step    the gradient of the mean cross entropy over a batch's examples

An agent takes ceil(n_i / B) local steps per epoch, so more data means more steps. Padding
never enters a gradient.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from fairjax import devices
from fairjax.data import Dataset, Shards
from fairjax.fingerprint import ByContents
from fairjax.models import Model
from fairjax.simulation.optimizers import hold_counts
from fairjax.types import Array, Key, Params, PerAgent, Scalar, Stacked


@dataclasses.dataclass(frozen=True, eq=False)
class LocalTraining(ByContents):
    """What one agent does with its shard in a round; all fields are static.

    Attributes:
      model: the network that the agent trains.
      optimizer_at: maps the number of rounds (or of local epochs, if `decay_per` is "epoch")
        since the start to an optax optimizer.
      local_epochs: passes over the shard.
      batch_size: examples per local step.
      decay_per: "round" or "epoch".
      local_steps: "all"; or "last_batch", one step per local epoch, as in the authors' early
        program.
      schedule_counts: what schedules within the optimizer count: "rounds" counts rounds (or
        local epochs, as `decay_per` says); "steps" or None the agent's own local steps.
    """

    model: Model
    optimizer_at: Callable[[Scalar], optax.GradientTransformation]
    local_epochs: int
    batch_size: int
    decay_per: str = "round"
    local_steps: str = "all"
    schedule_counts: str | None = None

    def init(self, params: Params) -> Any:
        """Returns the optimizer's state for one agent."""
        return self.optimizer_at(0).init(params)

    def __call__(
        self, key: Key, params: Params, optimizer_state: Any, shard: "Shard", round: Scalar
    ) -> tuple[Params, Any]:
        """Returns the parameters and optimizer state after the local epochs of one round."""
        batch_size = min(self.batch_size, len(shard.rows))
        num_batches = (shard.size + batch_size - 1) // batch_size
        first_batch = num_batches - 1 if self.local_steps == "last_batch" else 0

        def epoch(number: Scalar, carry: tuple[Params, Any]) -> tuple[Params, Any]:
            epoch_key = jax.random.fold_in(key, number)
            count = round * self.local_epochs + number if self.decay_per == "epoch" else round
            optimizer = self.optimizer_at(count)
            rows = _shuffle(epoch_key, shard, batch_size)

            def step(batch: Scalar, carry: tuple[Params, Any]) -> tuple[Params, Any]:
                params, state = carry
                if self.schedule_counts == "rounds":
                    state = hold_counts(state, count)
                start = batch * batch_size
                x, y = examples(shard.data, lax.dynamic_slice(rows, (start,), (batch_size,)))
                present = start + jnp.arange(batch_size) < shard.size
                step_key = jax.random.fold_in(epoch_key, batch)
                gradient = jax.grad(self.loss)(params, x, y, present, step_key)
                changes, state = optimizer.update(gradient, state, params)
                return optax.apply_updates(params, changes), state

            return lax.fori_loop(first_batch, num_batches, step, carry)

        return lax.fori_loop(0, self.local_epochs, epoch, (params, optimizer_state))

    def loss(
        self, params: Params, x: Array, y: Array, present: Array, key: Key | None = None
    ) -> Scalar:
        """Returns the mean cross entropy over the examples of a batch that are present."""
        logits = self.model.apply(params, x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.where(present, losses, 0).sum() / jnp.maximum(present.sum(), 1)


class Shard(NamedTuple):
    """One agent's data: row numbers `[M]` of the common data set; the first `size` count."""

    data: Dataset
    rows: Array
    size: Scalar


def train_agents(
    training: LocalTraining,
    keys: Key,
    params: Stacked,
    optimizer_states: Stacked,
    shards: Shards,
    round: Scalar,
    *,
    participants: PerAgent | None = None,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> tuple[Stacked, Stacked]:
    """Returns all agents' parameters and optimizer states after their local epochs.

    Args:
      training: what one agent does.
      keys: `[N]` keys.
      params: leaves `[N, ...]`, the parameters from which agents start.
      optimizer_states: leaves `[N, ...]`.
      shards: who holds which data.
      round: number of the round, from 0.
      participants: `[N]` booleans, who trains; None: all.
      agents_at_once: how many agents are vectorised; groups take turns. A group takes
        as many steps as its longest shard needs.
      mesh: devices over which agents are spread.
    """

    def train_agent(agent: Any, shared: tuple[Dataset, Scalar]) -> tuple[Params, Any]:
        key, own, state, rows, size = agent
        data, round = shared
        return training(key, own, state, Shard(data, rows, size), round)

    agents = (keys, params, optimizer_states, shards.indices, shards.sizes)
    if participants is None:
        return map_agents(train_agent, agents, (shards.data, round), agents_at_once, mesh)

    def train_or_skip(agent: Any, shared: tuple[Dataset, Scalar]) -> tuple[Params, Any]:
        takes_part, (_, own, state, *_) = agent
        return lax.cond(takes_part, lambda: train_agent(agent[1], shared), lambda: (own, state))

    # Vectorised agents take as many steps as the largest of them, which must not be an absent one.
    sizes = jnp.where(participants, shards.sizes, 0)
    agents = (participants, (*agents[:-1], sizes))
    return map_agents(train_or_skip, agents, (shards.data, round), agents_at_once, mesh)


def mean_losses(
    training: LocalTraining,
    params: Stacked,
    shards: Shards,
    present: PerAgent | None,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> PerAgent:
    """Returns `[N]` mean cross entropies of agents' models on their own shards.

    Agents that are not `present` have 0; None: all are.
    """
    batch_size = min(evaluation_batch(), shards.indices.shape[1])

    def mean_loss(agent: Any, data: Dataset) -> Scalar:
        own, rows, size = agent
        rows = jnp.pad(rows, (0, -len(rows) % batch_size), mode="edge").reshape(-1, batch_size)

        def batch_sum(number: Scalar, total: Scalar) -> Scalar:
            x, y = examples(data, rows[number])
            present = number * batch_size + jnp.arange(batch_size) < size
            return total + training.loss(own, x, y, present) * present.sum()

        total = lax.fori_loop(0, (size + batch_size - 1) // batch_size, batch_sum, 0.0)
        return total / (size if present is None else jnp.maximum(size, 1))

    sizes = shards.sizes if present is None else jnp.where(present, shards.sizes, 0)
    agents = (params, shards.indices, sizes)
    return map_agents(mean_loss, agents, shards.data, agents_at_once, mesh)


def classes_held(shards: Shards) -> PerAgent:
    """Returns how many classes occur in each agent's shard, `[N]`."""
    num_agents, width = shards.indices.shape
    held = jnp.zeros((num_agents, shards.data.num_classes), bool)
    present = jnp.arange(width) < jnp.asarray(shards.sizes)[:, None]
    labels = jnp.asarray(shards.data.y)[shards.indices]
    return held.at[jnp.arange(num_agents)[:, None], labels].max(present).sum(1)


def map_agents(
    function: Callable[[Any, Any], Any],
    agents: Any,
    shared: Any,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> Any:
    """Maps `function(agent, shared)` over the leading axis of `agents`.

    On every device of the mesh, `agents_at_once` entries are vectorised at a time.
    """
    batch_size = None if agents_at_once == 1 else agents_at_once

    def local(agents: Any, shared: Any) -> Any:
        return lax.map(lambda agent: function(agent, shared), agents, batch_size=batch_size)

    return devices.map_shards(mesh, local, agents, shared)


def accuracies(
    model: Model,
    params: Stacked,
    data: Dataset,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> PerAgent:
    """Returns `[N]` shares of the examples that each agent's model classifies correctly."""
    accuracy_of = functools.partial(accuracy, model)
    return map_agents(accuracy_of, params, data, agents_at_once, mesh)


def accuracy(model: Model, params: Params, data: Dataset) -> Scalar:
    """Returns the share of the examples that a model classifies correctly."""
    batch_size = min(evaluation_batch(), len(data.y))

    def correct(start: Scalar) -> Scalar:
        # The last batch is moved back to be full; repeated examples are not counted.
        first = jnp.minimum(start, len(data.y) - batch_size)
        rows = first + jnp.arange(batch_size)
        x = lax.dynamic_slice_in_dim(data.x, first, batch_size)
        y = lax.dynamic_slice_in_dim(data.y, first, batch_size)
        right = model.apply(params, x).argmax(-1) == y
        return (right & (rows >= start)).sum()

    return lax.map(correct, jnp.arange(0, len(data.y), batch_size)).sum() / len(data.y)


def evaluation_batch() -> int:
    """Returns how many examples to evaluate at once; on a CPU, as many as its caches hold."""
    return 100 if jax.default_backend() == "cpu" else 1000


def examples(data: Dataset, rows: Array) -> tuple[Array, Array]:
    """Returns the examples `[B, ...]` and classes `[B]` of some rows."""
    return jnp.asarray(data.x)[rows], jnp.asarray(data.y)[rows]


def _shuffle(key: Key, shard: Shard, batch_size: int) -> Array:
    """Returns the shard's rows in random order, padded at the end to whole batches."""
    length = math.ceil(len(shard.rows) / batch_size) * batch_size
    rows = jnp.pad(shard.rows, (0, length - len(shard.rows)), mode="edge")
    places = jax.random.uniform(key, (length,))
    return rows[jnp.argsort(jnp.where(jnp.arange(length) < shard.size, places, jnp.inf))]
