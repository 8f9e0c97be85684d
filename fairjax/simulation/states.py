"""States: what the next round needs, and what a person wants to see of a round.

    first_state(key, ...)   -> State    every agent and the server hold the same parameters
    round t                 -> State, Record

`lax.scan` stacks records. A round depends on earlier rounds only through the state.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fairjax import checks, devices, trees
from fairjax.data import Shards
from fairjax.mechanisms import Mechanism
from fairjax.models import evaluator
from fairjax.simulation.behaviours import Memory
from fairjax.simulation.first import as_key, first_params, first_statistics, given_params
from fairjax.simulation.memory import check_memory
from fairjax.simulation.optimizers import check_optimizer, holds_keys, with_own_keys
from fairjax.simulation.training import LocalTraining
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked

MOST_ROUNDS = 2**31 - 2  # rounds are counted in int32, and one extra round is played


class State(NamedTuple):
    """What the next round needs; a pytree of arrays.

    Attributes:
      round: the number of rounds played, int32.
      num_rounds: the number of rounds of the whole run, int32; 0 where it is unknown.
      key: PRNG key of the run; round t uses `fold_in(key, t)`.
      agents: the agents' parameters, leaves `[N, ...]`.
      server: the server's parameters.
      optimizer: the agents' optimizer states, leaves `[N, ...]`.
      mechanism: the mechanism's own state, such as importance coefficients `[N]`.
      memory: what dishonest agents remember; None where all are honest.
      server_optimizer: the state of the server's optimizer; None if there is none.
      statistics: the agents' own statistics, such as those of BatchNorm, leaves `[N, ...]`; None
        if the network has none.
      joined: `[N]` booleans: who has trained so far, and so has statistics; None without them.
    """

    round: Scalar
    num_rounds: Scalar
    key: Key
    agents: Stacked
    server: Params
    optimizer: Stacked
    mechanism: Any
    memory: Memory | None = None
    server_optimizer: Any = None
    statistics: Stacked | None = None
    joined: PerAgent | None = None


class Record(NamedTuple):
    """What a person wants to see of one round.

    Attributes:
      trained: the agents' parameters after their local epochs, leaves `[N, ...]`.
      updates: what local training changed, before any behaviour, leaves `[N, ...]`.
      uploads: what the mechanism saw: after behaviours, with unusable uploads as zero.
      contributions: `[N]`, the mechanism's judgement of each upload; nan for absent agents.
      importance: `[N]`, the mechanism's judgement of each agent so far.
      fractions: `[N]` shares of the aggregate that agents earned, before rounding; nan for
        absent agents.
      participants: `[N]` booleans: who trained and uploaded.
      excluded: `[N]` booleans: the upload was dropped: not finite, or too large to add.
      broken: a boolean: the mechanism paid NaN or infinity.
      unchanged: `[N]` booleans: the agent trained and uploads honestly, but its update is zero.
      uploaded: `[N]` how many numbers the agent uploaded; None unless agents train adapters.
      received: `[N]` how many numbers it received, likewise.
    """

    trained: Stacked
    updates: Stacked
    uploads: Stacked
    contributions: PerAgent
    importance: PerAgent
    fractions: PerAgent
    participants: PerAgent
    excluded: PerAgent
    broken: Scalar
    unchanged: PerAgent
    uploaded: PerAgent | None = None
    received: PerAgent | None = None


def first_state(
    key: Key,
    training: LocalTraining,
    mechanism: Mechanism,
    shards: Shards,
    params: Params | None = None,
    num_rounds: Scalar = 0,
    *,
    remember: bool = False,
    server_optimizer: Any = None,
    mesh: Mesh | None = None,
) -> State:
    """Returns the state before the first round, without the mechanism's own.

    Args:
      key: PRNG key; everything random follows from it.
      training: what an agent does in a round.
      mechanism: judges and pays agents.
      shards: who holds which data.
      params: first parameters, as in `fairjax.run`; None: drawn by the model from the key.
      num_rounds: how many rounds there will be; 0: unknown.
      remember: whether to keep what dishonest agents need.
      server_optimizer: an optax optimizer of the server; None: the aggregate is its step.
      mesh: devices that it must fit.

    Raises:
      ValueError: an argument is of the wrong kind, or model, optimizer and data do not fit each
        other, or a device cannot hold them.
    """
    key = as_key(key)
    if checks.is_known(num_rounds):
        checks.count("num_rounds", num_rounds, least=0, most=MOST_ROUNDS)
    statistics = first_statistics(key, training.model, shards.data)
    like = jax.eval_shape(functools.partial(first_params, key, training.model, shards.data))
    training.task.check(evaluator(training.model), like, shards.data, statistics)
    check_memory(training, shards, 1 if mesh is None else mesh.size)
    _, run_key = jax.random.split(key)
    own, server = given_params(key, training.model, shards, mechanism, params)
    check_optimizer(training.optimizer_at(0, 0), server, training.schedule_counts)
    num_agents, optimizer = shards.num_agents, training.init(server)
    optimizers = trees.broadcast(num_agents, optimizer)
    if holds_keys(optimizer):
        optimizers = jax.vmap(with_own_keys)(optimizers, jax.random.split(run_key, num_agents))
    state = State(
        round=jnp.zeros((), jnp.int32),
        num_rounds=jnp.asarray(num_rounds, jnp.int32),
        key=run_key,
        agents=trees.broadcast(num_agents, server) if own is None else own,
        server=server,
        optimizer=optimizers,
        mechanism=(),
        memory=None,
        server_optimizer=(
            None
            if server_optimizer is None
            else with_own_keys(server_optimizer.init(server), run_key)
        ),
        statistics=trees.broadcast(num_agents, statistics),
        joined=None if statistics is None else jnp.zeros(num_agents, bool),
    )
    if remember:
        one, all_ = jax.tree.map(jnp.zeros_like, (server, state.agents))
        state = state._replace(memory=Memory(all_, one, all_, jnp.zeros(num_agents, bool)))
    return state


def placed(mesh: Mesh | None, state: State) -> State:
    """Returns the state on the mesh: agents' arrays are spread, all others are replicated."""
    if mesh is None:
        return state
    by_agent = devices.by_agent(mesh, trees.num_agents(state.agents))
    everywhere: Any = NamedSharding(mesh, PartitionSpec())
    memory = None
    if state.memory is not None:
        memory = Memory(by_agent, everywhere, by_agent, everywhere)
    shardings = State(*[everywhere] * len(state))._replace(
        agents=by_agent, optimizer=by_agent, statistics=by_agent, memory=memory
    )
    return devices.placed(state, shardings)


def check_same_kind(state: State, like: State) -> None:
    """Raises unless the leaves of a state have the dtypes and shapes of those of another."""
    wanted, found = (
        {
            jax.tree_util.keystr(path): f"{leaf.dtype}{[*leaf.shape]}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (like, state)
    )
    for path in dict.fromkeys([*wanted, *found]):
        if wanted.get(path) != found.get(path):
            raise ValueError(
                "`state` must be one that this federation gives with these shards: "
                f"`state{path}` must be {wanted.get(path)}, got {found.get(path)}."
            )
