"""Training: one agent's local epochs, and the loop over agents.

    epoch   a fresh shuffle of the shard, cut into batches; the last may be partial
    step    the gradient of the mean of the task's loss over a batch's examples

An agent takes ceil(n_i / B) local steps per epoch, so more data means more steps. Padding
never enters a gradient. Networks with statistics, such as BatchNorm's, see a batch filled up with
its own examples, in turn, to the length of arrays: the largest batch size of all agents, or the
largest shard if that is shorter.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from fairjax import trees
from fairjax.data import Dataset, Shards
from fairjax.fingerprint import ByContents
from fairjax.mechanisms import Plan
from fairjax.models import Model
from fairjax.simulation.adapting import Ranked, only
from fairjax.simulation.agents import examples, map_agents
from fairjax.simulation.each import of_agent
from fairjax.simulation.optimizers import hold_counts, with_own_keys
from fairjax.tasks import Task
from fairjax.types import Array, Key, Params, Scalar

ALL_TRAIN = Plan()


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
      ranks: the ranks of all agents' adapters; None: that of the model.
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
    ranks: tuple[int, ...] | None = None

    def init(self, params: Params) -> Any:
        """Returns the optimizer's state for one agent; none where every round begins anew."""
        return () if self.ranked else self.optimizer_at(0, 0).init(params)

    @property
    def ranked(self) -> Ranked | None:
        """The adapters that agents train, with their ranks; None: they train all parameters."""
        adapters = self.model.adapters
        return None if adapters is None else Ranked(adapters, self.ranks)

    @property
    def largest_batch(self) -> int:
        """The largest number of examples in a local step of an agent."""
        return int(np.max(self.batch_size))

    def __call__(
        self,
        key: Key,
        own: "Own",
        shard: "Shard",
        round: Scalar,
        factors: Params | None = None,
        frozen: bool = False,
    ) -> "Own":
        """Returns what the agent holds after the local epochs of one round.

        If it trains adapters, these are its factors, see `fairjax.simulation.adapting`.
        """
        params, optimizer_state, statistics = own
        slopes, learned = functools.partial(self.slopes, params), None
        if self.ranked:
            held = params
            params, learned = self.ranked.begin(key, held, shard.agent, factors, frozen)
            started = self.ranked.whole(held, params, shard.agent)
            loss = functools.partial(self.adapted_loss, held, started, shard.agent)
            slopes = jax.grad(loss, has_aux=True)
        if self.ranked or self.reset_optimizers:
            optimizer_state = with_own_keys(self.optimizer_at(0, 0).init(params), key)
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
                gradient, statistics = slopes(params, x, y, present, step_key, statistics)
                # Some optimizers look at all slopes together, others change what has none.
                changes, state = optimizer.update(only(learned, gradient), state, params)
                changes = only(learned, changes)
                return Own(optax.apply_updates(params, changes), state, statistics)

            return lax.fori_loop(first_batch, num_batches, step, carry)

        after = lax.fori_loop(0, local_epochs, epoch, Own(params, optimizer_state, statistics))
        return after._replace(optimizer=()) if self.ranked else after

    def absent(self, own: "Own") -> "Own":
        """Returns what an agent holds that does not train: its own, and products of zero."""
        if not self.ranked:
            return own
        nothing = self.ranked.draw(jax.random.key(0), own.params)
        return own._replace(params=nothing)

    def slopes(self, first: Params, params: Params, *batch: Any) -> tuple[Params, Any]:
        """Returns the gradient of `loss`, with FedProx's term, and the next statistics.

        The term pulls towards `first`, the parameters at the round's start.
        """
        gradient, statistics = jax.grad(self.loss, has_aux=True)(params, *batch)
        if self.proximal:
            gradient = jax.tree.map(
                lambda slope, now, before: slope + self.proximal * (now - before),
                gradient,
                params,
                first,
            )
        return gradient, statistics

    def adapted_loss(
        self, held: Params, started: Params, agent: Scalar, variables: Params, *batch: Any
    ) -> tuple[Scalar, Any]:
        """Returns `loss` as a function of the variables that an agent with adapters trains.

        Their products with the first variables are part of the parameters `started`, not of `held`.
        """
        ranked: Any = self.ranked
        whole = ranked.whole(held, variables, agent)
        loss, statistics = self.loss(whole, *batch)
        if self.proximal:
            change = jax.tree.map(jnp.subtract, whole, started)
            loss += self.proximal / 2 * trees.sum_leaves(lambda leaf: (leaf**2).sum(), change)
        return loss, statistics

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
    plan: Plan = ALL_TRAIN,
    *,
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
      plan: who trains, and the first factors of adapters; agents start from what they hold.
      agents_at_once: how many agents are vectorised; groups take turns. A group takes
        as many steps as its longest shard needs.
      mesh: devices over which agents are spread.
    """

    def train_agent(agent: Any, shared: tuple[Dataset, Scalar]) -> Own:
        key, own, factors, rows, size, place = agent
        data, round = shared
        return training(key, own, Shard(data, rows, size, place), round, factors, plan.frozen)

    places = jnp.arange(shards.num_agents)
    agents = (keys, own, plan.factors, shards.indices, shards.sizes, places)
    if plan.participants is None:
        return map_agents(train_agent, agents, (shards.data, round), agents_at_once, mesh)

    def train_or_skip(agent: Any, shared: tuple[Dataset, Scalar]) -> Own:
        takes_part, (_, own, *_) = agent
        return lax.cond(
            takes_part, lambda: train_agent(agent[1], shared), lambda: training.absent(own)
        )

    # Vectorised agents take as many steps as the largest of them, which must not be an absent one.
    sizes = jnp.where(plan.participants, shards.sizes, 0)
    agents = (plan.participants, (*agents[:-2], sizes, places))
    return map_agents(train_or_skip, agents, (shards.data, round), agents_at_once, mesh)


def _shuffle(key: Key, shard: Shard, width: int) -> Array:
    """Returns the shard's rows in random order, padded so that a batch can begin at any of them."""
    length = math.ceil(len(shard.rows) / width) * width
    rows = jnp.pad(shard.rows, (0, length - len(shard.rows)), mode="edge")
    places = jax.random.uniform(key, (length,))
    order = jnp.argsort(jnp.where(jnp.arange(length) < shard.size, places, jnp.inf))
    return jnp.pad(rows[order], (0, width), mode="edge")
