"""The round: five functions, one after the other.

train    dw_i                 the change by local epochs, from the parameters that the plan gives
                              of those who take part; others change nothing
upload   u_i                  dw_i, or what the behaviour of agent i puts in its place
judge    v_i, aggregate       what the mechanism pays for all uploads; unusable ones are zero
serve    aggregate            the step of a server optimizer in its place, if there is one
pay      w_i + v_i            server:  w + aggregate
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fairjax import lowrank, rowwise, trees
from fairjax.data import Shards
from fairjax.mechanisms import Context, Mechanism, Outcome, Plan, checked_answer
from fairjax.simulation.behaviours import Behaviour, Memory, change_uploads
from fairjax.simulation.states import State
from fairjax.simulation.training import LocalTraining, Own, train_agents
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked


class Trained(NamedTuple):
    """The result of local training.

    Attributes:
      start: parameters from which agents trained, leaves `[N, ...]`.
      params: parameters after the local epochs.
      updates: the difference, with `LowRank` nodes if agents train adapters.
      optimizer: optimizer states; an agent whose training diverged keeps its old state.
      statistics: the networks' statistics, or None; kept in the same way.
      finite: `[N]` booleans: the agent's update has no NaN or infinity.
      unchanged: `[N]` booleans: the agent trained, and its update is exactly zero.
    """

    start: Stacked
    params: Stacked
    updates: Stacked
    optimizer: Stacked
    statistics: Stacked | None
    finite: PerAgent
    unchanged: PerAgent


class Uploads(NamedTuple):
    """What agents sent.

    Attributes:
      updates: what the mechanism sees, leaves `[N, ...]`; unusable uploads are zero.
      usable: `[N]` booleans: the upload is finite and small enough to add.
      memory: what dishonest agents remember, if there are any.
    """

    updates: Stacked
    usable: PerAgent
    memory: Memory | None


class Paid(NamedTuple):
    """All parameters after the round.

    Attributes:
      agents: the agents' parameters, leaves `[N, ...]`.
      server: the server's parameters.
      broken: a boolean: the mechanism paid NaN or infinity, or planned such a start.
    """

    agents: Stacked
    server: Params
    broken: Scalar


def train(
    training: LocalTraining,
    key: Key,
    state: State,
    plan: Plan,
    shards: Shards,
    *,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> Trained:
    """Returns the result of all agents' local training on their shards."""
    start = state.agents if plan.start is None else plan.start
    trained = train_agents(
        training,
        jax.random.split(key, shards.num_agents),
        Own(start, state.optimizer, state.statistics),
        shards,
        state.round,
        plan,
        agents_at_once=agents_at_once,
        mesh=mesh,
    )
    params = trained.params
    if training.ranked:
        updates = training.ranked.updates(start, params)
        params = jax.tree.map(jnp.add, start, lowrank.dense(updates))
    else:
        updates = jax.tree.map(jnp.subtract, params, start)
    finite = rowwise.finite_rows(updates)
    unchanged = rowwise.zero_rows(updates)
    # An agent whose training diverged starts the next round with the same state.
    before = (state.optimizer, state.statistics)
    optimizer, statistics = trees.where(finite, (trained.optimizer, trained.statistics), before)
    took_part = True if plan.participants is None else plan.participants
    return Trained(start, params, updates, optimizer, statistics, finite, unchanged & took_part)


def upload(
    key: Key,
    state: State,
    trained: Trained,
    behaviours: Sequence[Behaviour],
    participants: PerAgent | None,
) -> Uploads:
    """Returns what agents upload, and which uploads are usable.

    Args:
      key: PRNG key.
      state: the state before the round.
      trained: the result of local training.
      behaviours: the behaviours of dishonest agents.
      participants: `[N]` booleans; other agents upload zeros. None: all take part.
    """
    uploads, memory = trained.updates, state.memory
    if memory is not None:  # behaviours change entries
        updates = lowrank.dense(uploads)
        memory = memory.with_first(updates, state.round, participants)
        uploads = change_uploads(key, updates, memory, state.round, behaviours, participants)
    zeros = jax.tree.map(jnp.zeros_like, uploads)
    if participants is not None:
        uploads = trees.where(participants, uploads, zeros)
    usable = rowwise.addable_rows(uploads, (trained.start, state.server))
    return Uploads(trees.where(usable, uploads, zeros), usable, memory)


def judge(
    mechanism: Mechanism, uploads: Stacked, state: Any, context: Context
) -> tuple[Outcome, Any]:
    """Returns what a mechanism decides and its next state; raises if it breaks its protocol.

    Contributions and fractions of absent agents become nan.
    """
    answer = mechanism.update(uploads, state, context)
    outcome, state = checked_answer(answer, uploads, state, mechanism.name)
    if context.present is not None:
        contributions, fractions = (
            jnp.where(context.present, values, jnp.nan)
            for values in (outcome.contributions, outcome.fractions)
        )
        outcome = outcome._replace(contributions=contributions, fractions=fractions)
    return outcome, state


def serve(optimizer: Any, state: State, outcome: Outcome) -> tuple[Outcome, Any]:
    """Returns the outcome with the step of a server optimizer as everybody's reward.

    Args:
      optimizer: an optax optimizer, for which the aggregate, negated, is the gradient; None: the
        outcome stays.
      state: the state before the round.
      outcome: what the mechanism decided; with an optimizer, it pays everybody the aggregate.

    Returns:
      The outcome and the optimizer's next state.
    """
    if optimizer is None:
        return outcome, state.server_optimizer
    gradient = jax.tree.map(jnp.negative, lowrank.dense(outcome.aggregate))
    changes, following = optimizer.update(gradient, state.server_optimizer, state.server)
    changes = jax.tree.map(lambda change, own: change.astype(own.dtype), changes, state.server)
    paid = trees.broadcast(len(outcome.fractions), changes)
    return outcome._replace(aggregate=changes, rewards=paid), following


def pay(
    state: State, plan: Plan, trained: Trained, outcome: Outcome, present: PerAgent | None
) -> Paid:
    """Returns the parameters of agents and server after the mechanism's pay.

    Agents that are not `present` `[N]` keep theirs; None: all are there.
    """
    aggregate, rewards = lowrank.dense((outcome.aggregate, outcome.rewards))
    agents = jax.tree.map(jnp.add, trained.start, rewards)
    if present is not None:
        agents = trees.where(present, agents, trained.start)
    server = jax.tree.map(jnp.add, state.server, aggregate)
    # Ignore agents whose training already diverged: other parameters that are not finite come
    # from the mechanism.
    agents_fine = rowwise.finite_rows(agents) | ~trained.finite
    server_fine = rowwise.finite_rows(trees.broadcast(1, server)) | ~trained.finite.all()
    broken = ~(agents_fine.all() & server_fine.all())
    if plan.start is not None:
        spoilt = rowwise.finite_rows(state.agents) & ~rowwise.finite_rows(plan.start)
        broken = broken | spoilt.any()
    return Paid(agents, server, broken)
