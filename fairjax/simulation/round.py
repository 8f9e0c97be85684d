"""The round: four functions, one after the other.

train    dw_i                 what local epochs change, from where the plan starts agent i
upload   u_i                  what the behaviour of agent i makes of dw_i; unusable: zero
judge    v_i, aggregate       what the mechanism makes of all uploads
pay      w_i + v_i            server:  w + aggregate
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fairjax import trees
from fairjax.data import Shards
from fairjax.mechanisms import Context, Mechanism, Outcome, Plan, checked_answer
from fairjax.simulation.behaviours import Behaviour
from fairjax.simulation.dishonest_uploads import Memory, change_uploads
from fairjax.simulation.training import LocalTraining, train_agents
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked


class Trained(NamedTuple):
    """What local training came to.

    Attributes:
      start: parameters that agents trained from, leaves `[N, ...]`.
      params: parameters after the local epochs.
      updates: the difference.
      optimizer: optimizer states; of an agent whose training broke, as they were before.
      finite: `[N]` booleans: is the agent's update without NaN and infinity.
      unchanged: `[N]` booleans: the agent trained, and its update is exactly zero.
    """

    start: Stacked
    params: Stacked
    updates: Stacked
    optimizer: Stacked
    finite: PerAgent
    unchanged: PerAgent


class Uploads(NamedTuple):
    """What agents sent.

    Attributes:
      updates: what the mechanism sees, leaves `[N, ...]`; unusable uploads are zero.
      usable: `[N]` booleans.
      memory: what dishonest agents remember, if there are any.
    """

    updates: Stacked
    usable: PerAgent
    memory: Memory | None


class Paid(NamedTuple):
    """What everybody holds after the round.

    Attributes:
      agents: parameters, leaves `[N, ...]`.
      server: parameters.
      broken: a boolean: did the mechanism pay NaN or infinity.
    """

    agents: Stacked
    server: Params
    broken: Scalar


def train(
    training: LocalTraining,
    key: Key,
    plan: Plan,
    agents: Stacked,
    optimizer: Stacked,
    shards: Shards,
    round: Scalar,
    *,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> Trained:
    """Returns what agents make of their models on their shards."""
    start = agents if plan.start is None else plan.start
    keys = jax.random.split(key, shards.num_agents)
    params, states = train_agents(
        training,
        keys,
        start,
        optimizer,
        shards,
        round,
        participants=plan.participants,
        agents_at_once=agents_at_once,
        mesh=mesh,
    )
    updates = jax.tree.map(jnp.subtract, params, start)
    finite = trees.finite_rows(updates)
    unchanged = trees.rows_that(lambda leaf: leaf == 0, updates)
    # An agent whose training broke starts the next round as it started this one.
    states = trees.where(finite, states, optimizer)
    took_part = True if plan.participants is None else plan.participants
    return Trained(start, params, updates, states, finite, unchanged & took_part)


def upload(
    key: Key,
    trained: Trained,
    server: Params,
    behaviours: Sequence[Behaviour],
    memory: Memory | None,
    round: Scalar,
) -> Uploads:
    """Returns what agents send in place of their updates, and who sends what can be used.

    Args:
      key: PRNG key.
      trained: what local training came to.
      server: the server's parameters.
      behaviours: of agents that are not honest.
      memory: what they remember, if there are any.
      round: number of the round, from 0.
    """
    updates = uploads = trained.updates
    if memory is not None:
        uploads = change_uploads(key, updates, memory, round, behaviours)
        memory = memory._replace(first=trees.where(round == 0, updates, memory.first))
    usable = trees.addable_rows(uploads, (trained.start, server))
    zeros = jax.tree.map(jnp.zeros_like, uploads)
    return Uploads(trees.where(usable, uploads, zeros), usable, memory)


def judge(
    mechanism: Mechanism, uploads: Stacked, state: Any, context: Context
) -> tuple[Outcome, Any]:
    """Returns what a mechanism decides, and its next state; says how it breaks its protocol."""
    answer = mechanism.update(uploads, state, context)
    return checked_answer(answer, uploads, state, mechanism.name)


def pay(trained: Trained, server: Params, outcome: Outcome) -> Paid:
    """Returns the parameters of agents and server with what the mechanism pays."""
    agents = jax.tree.map(jnp.add, trained.start, outcome.rewards)
    server = jax.tree.map(jnp.add, server, outcome.aggregate)
    # Ignore agents whose training already diverged: other parameters that are not finite come
    # from the mechanism.
    agents_fine = trees.finite_rows(agents) | ~trained.finite
    server_fine = trees.finite_rows(trees.broadcast(1, server)) | ~trained.finite.all()
    return Paid(agents, server, ~(agents_fine.all() & server_fine.all()))
