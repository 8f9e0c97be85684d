"""Training: one agent's local epochs, and the loop over agents.

    epoch   a fresh shuffle of the shard, cut into batches; the last may be partial
    step    the gradient of the mean of the task's loss over a batch's examples

An agent takes ceil(n_i / B) local steps per epoch, so more data means more steps. Padding
never enters a gradient. A network's statistics see a partial batch filled up with examples of the
same batch, in turn.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from fairjax import devices
from fairjax.data import Dataset, Shards
from fairjax.fingerprint import ByContents
from fairjax.models import Model
from fairjax.simulation.each import of_agent
from fairjax.simulation.optimizers import hold_counts
from fairjax.tasks import Task
from fairjax.types import Array, Key, Params, PerAgent, Scalar, Stacked


@dataclasses.dataclass(frozen=True, eq=False)
class LocalTraining(ByContents):
    """What one agent does with its shard in a round; all fields are static.

    Attributes:
      model: the network that the agent trains.
      task: its loss, and the metrics of models.
      optimizer_at: maps the number of rounds (or of local epochs, if `decay_per` is "epoch")
        since the start, and an agent's place, to an optax optimizer.
      local_epochs: passes over the shard; or a tuple of those of all agents.
      batch_size: examples per local step; or a tuple of those of all agents.
      decay_per: "round" or "epoch".
      local_steps: "all"; or "last_batch", one step per local epoch, as in the authors' early
        program.
      schedule_counts: what schedules within the optimizer count: "rounds" counts rounds (or
        local epochs, as `decay_per` says); "steps" or None the agent's own local steps.
      proximal: mu; mu / 2 |w - w_0|^2 is added to the loss, where w_0 are the parameters at the
        round's start.
      reset_optimizers: whether every round begins with a fresh optimizer state.
    """

    model: Model
    task: Task
    optimizer_at: Callable[[Scalar, Scalar], optax.GradientTransformation]
    local_epochs: int | tuple[int, ...]
    batch_size: int | tuple[int, ...]
    decay_per: str = "round"
    local_steps: str = "all"
    schedule_counts: str | None = None
    proximal: float = 0.0
    reset_optimizers: bool = False

    def init(self, params: Params) -> Any:
        """Returns the optimizer's state for one agent."""
        return self.optimizer_at(0, 0).init(params)

    @property
    def largest_batch(self) -> int:
        """The largest number of examples in a local step of an agent."""
        return int(np.max(self.batch_size))

    def __call__(self, key: Key, own: "Own", shard: "Shard", round: Scalar) -> "Own":
        """Returns what the agent holds after the local epochs of one round."""
        params, optimizer_state, statistics = own
        first = params
        if self.reset_optimizers:
            optimizer_state = self.init(params)
        width = min(self.largest_batch, len(shard.rows))  # of arrays
        batch_size = jnp.minimum(of_agent(self.batch_size, shard.agent), width)
        local_epochs = of_agent(self.local_epochs, shard.agent)
        num_batches = (shard.size + batch_size - 1) // batch_size
        first_batch = num_batches - 1 if self.local_steps == "last_batch" else 0

        def epoch(number: Scalar, carry: Own) -> Own:
            epoch_key = jax.random.fold_in(key, number)
            count = round * local_epochs + number if self.decay_per == "epoch" else round
            optimizer = self.optimizer_at(count, shard.agent)
            rows = _shuffle(epoch_key, shard, width)

            def step(batch: Scalar, carry: Own) -> Own:
                params, state, statistics = carry
                if self.schedule_counts == "rounds":
                    state = hold_counts(state, count)
                start = batch * batch_size
                places, taken = jnp.arange(width), lax.dynamic_slice(rows, (start,), (width,))
                present = (places < batch_size) & (start + places < shard.size)
                if statistics is not None:
                    taken = taken[places % jnp.maximum(present.sum(), 1)]
                x, y = examples(shard.data, taken)
                step_key = jax.random.fold_in(epoch_key, batch)
                gradient, statistics = jax.grad(self.loss, has_aux=True)(
                    params, x, y, present, step_key, statistics
                )
                if self.proximal:
                    gradient = jax.tree.map(
                        lambda slope, now, before: slope + self.proximal * (now - before),
                        gradient,
                        params,
                        first,
                    )
                changes, state = optimizer.update(gradient, state, params)
                return Own(optax.apply_updates(params, changes), state, statistics)

            return lax.fori_loop(first_batch, num_batches, step, carry)

        return lax.fori_loop(0, local_epochs, epoch, Own(params, optimizer_state, statistics))

    def loss(
        self,
        params: Params,
        x: Array,
        y: Array,
        present: Array,
        key: Key | None = None,
        statistics: Any = None,
    ) -> tuple[Scalar, Any]:
        """Returns the mean loss over the examples of a batch that are present, and statistics.

        With a key, as in training, the statistics are the next ones.
        """
        if statistics is None:
            outputs = self.model.apply(params, x, key)
        elif key is None:
            outputs = self.model.apply(params, x, None, statistics)
        else:
            outputs, statistics = self.model.apply(params, x, key, statistics)
        losses = self.task.loss(outputs, y)
        return jnp.where(present, losses, 0).sum() / jnp.maximum(present.sum(), 1), statistics


class Own(NamedTuple):
    """What agents hold: of one, or of all with an axis `[N]`.

    Attributes:
      params: parameters.
      optimizer: the optimizer's state.
      statistics: the network's statistics; None if it has none.
    """

    params: Any
    optimizer: Any
    statistics: Any = None


class Shard(NamedTuple):
    """One agent's data: row numbers `[M]` of the common data set; the first `size` count.

    `agent` is the agent's place among all.
    """

    data: Dataset
    rows: Array
    size: Scalar
    agent: Scalar


def train_agents(
    training: LocalTraining,
    keys: Key,
    own: Own,
    shards: Shards,
    round: Scalar,
    *,
    participants: PerAgent | None = None,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> Own:
    """Returns what all agents hold after their local epochs.

    Args:
      training: what one agent does.
      keys: `[N]` keys.
      own: what agents hold, leaves `[N, ...]`; they start from its parameters.
      shards: who holds which data.
      round: number of the round, from 0.
      participants: `[N]` booleans, who trains; None: all.
      agents_at_once: how many agents are vectorised; groups take turns. A group takes
        as many steps as its longest shard needs.
      mesh: devices over which agents are spread.
    """

    def train_agent(agent: Any, shared: tuple[Dataset, Scalar]) -> Own:
        key, own, rows, size, place = agent
        data, round = shared
        return training(key, own, Shard(data, rows, size, place), round)

    places = jnp.arange(shards.num_agents)
    agents = (keys, own, shards.indices, shards.sizes, places)
    if participants is None:
        return map_agents(train_agent, agents, (shards.data, round), agents_at_once, mesh)

    def train_or_skip(agent: Any, shared: tuple[Dataset, Scalar]) -> Own:
        takes_part, (_, own, *_) = agent
        return lax.cond(takes_part, lambda: train_agent(agent[1], shared), lambda: own)

    # Vectorised agents take as many steps as the largest of them, which must not be an absent one.
    sizes = jnp.where(participants, shards.sizes, 0)
    agents = (participants, (*agents[:-2], sizes, places))
    return map_agents(train_or_skip, agents, (shards.data, round), agents_at_once, mesh)


def mean_losses(
    training: LocalTraining,
    params: Stacked,
    statistics: Any,
    shards: Shards,
    present: PerAgent | None,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> PerAgent:
    """Returns `[N]` means of the task's loss for agents' models on their own shards.

    Agents that are not `present` have 0; None: all are.
    """
    batch_size = min(evaluation_batch(), shards.indices.shape[1])

    def mean_loss(agent: Any, data: Dataset) -> Scalar:
        own, statistics, rows, size = agent
        rows = jnp.pad(rows, (0, -len(rows) % batch_size), mode="edge").reshape(-1, batch_size)

        def batch_sum(number: Scalar, total: Scalar) -> Scalar:
            x, y = examples(data, rows[number])
            present = number * batch_size + jnp.arange(batch_size) < size
            loss, _ = training.loss(own, x, y, present, None, statistics)
            return total + loss * present.sum()

        total = lax.fori_loop(0, (size + batch_size - 1) // batch_size, batch_sum, 0.0)
        return total / (size if present is None else jnp.maximum(size, 1))

    sizes = shards.sizes if present is None else jnp.where(present, shards.sizes, 0)
    agents = (params, statistics, shards.indices, sizes)
    return map_agents(mean_loss, agents, shards.data, agents_at_once, mesh)


def classes_held(shards: Shards) -> PerAgent | None:
    """Returns how many classes occur in each agent's shard, `[N]`; None if there are no classes."""
    num_agents, width = shards.indices.shape
    if shards.data.num_classes is None:
        return None
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


def evaluation_batch() -> int:
    """Returns how many examples to evaluate at once; on a CPU, as many as its caches hold."""
    return 100 if jax.default_backend() == "cpu" else 1000


def examples(data: Dataset, rows: Array) -> tuple[Array, Array]:
    """Returns the examples `[B, ...]` and their `y [B, ...]` of some rows."""
    return jnp.asarray(data.x)[rows], jnp.asarray(data.y)[rows]


def _shuffle(key: Key, shard: Shard, width: int) -> Array:
    """Returns the shard's rows in random order, padded so that a batch can begin at any of them."""
    length = math.ceil(len(shard.rows) / width) * width
    rows = jnp.pad(shard.rows, (0, length - len(shard.rows)), mode="edge")
    places = jax.random.uniform(key, (length,))
    order = jnp.argsort(jnp.where(jnp.arange(length) < shard.size, places, jnp.inf))
    return jnp.pad(rows[order], (0, width), mode="edge")
