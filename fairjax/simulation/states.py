"""States: what the next round needs, and what a person wants to see of a round.

    first_state(key, ...)   -> State    every agent and the server hold the same parameters
    round t                 -> State, Record

`lax.scan` stacks records. A round depends on earlier rounds only through the state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fairjax import checks, devices, trees
from fairjax.data import Dataset, Shards
from fairjax.mechanisms import Mechanism
from fairjax.models import Model, initial_params
from fairjax.simulation.behaviours import Memory
from fairjax.simulation.memory import check_memory
from fairjax.simulation.optimizers import check_optimizer
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
    """

    round: Scalar
    num_rounds: Scalar
    key: Key
    agents: Stacked
    server: Params
    optimizer: Stacked
    mechanism: Any
    memory: Memory | None = None


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


def first_state(
    key: Key,
    training: LocalTraining,
    mechanism: Mechanism,
    shards: Shards,
    params: Params | None = None,
    num_rounds: Scalar = 0,
    *,
    remember: bool = False,
    with_absence: bool = False,
    mesh: Mesh | None = None,
) -> State:
    """Returns the state before the first round.

    Args:
      key: PRNG key; everything random follows from it.
      training: what an agent does in a round.
      mechanism: judges and pays agents.
      shards: who holds which data.
      params: common first parameters; None: drawn by the model from the key.
      num_rounds: how many rounds there will be; 0: unknown.
      remember: whether to keep what dishonest agents need.
      with_absence: whether agents can be absent.
      mesh: devices over which agents are spread.

    Raises:
      ValueError: an argument is of the wrong kind, or model, optimizer and data do not fit each
        other, or a device cannot hold them.
    """
    key = _as_key(key)
    checks.kind("shards", shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
    if checks.is_known(num_rounds):
        checks.count("num_rounds", num_rounds, least=0, most=MOST_ROUNDS)
    check_memory(training, shards, 1 if mesh is None else mesh.size)
    _, run_key = jax.random.split(key)
    if params is None:
        params = first_params(key, training.model, shards.data)
    else:
        like = jax.eval_shape(lambda: first_params(key, training.model, shards.data))
        params = _match_params(like, params)
    check_optimizer(training.optimizer_at(0), params, training.schedule_counts)
    num_agents = shards.num_agents
    state = State(
        round=jnp.zeros((), jnp.int32),
        num_rounds=jnp.asarray(num_rounds, jnp.int32),
        key=run_key,
        agents=trees.broadcast(num_agents, params),
        server=params,
        optimizer=trees.broadcast(num_agents, training.init(params)),
        mechanism=mechanism.init(num_agents),
        memory=None,
    )
    if remember:
        joined = jnp.zeros(num_agents, bool) if with_absence else None
        state = state._replace(memory=Memory(state.agents, params, joined))
    return placed(mesh, state)


def first_params(key: Key, model: Model, data: Dataset) -> Params:
    """Returns the first parameters of a run with this key, which all agents have in common."""
    params_key, _ = jax.random.split(_as_key(key))
    return initial_params(model, params_key, data)


def placed(mesh: Mesh | None, state: State) -> State:
    """Returns the state on the mesh: agents' arrays are spread, all others are replicated."""
    if mesh is None:
        return state
    by_agent = devices.by_agent(mesh, trees.num_agents(state.agents))
    spread = (state.agents, state.optimizer, None if state.memory is None else state.memory.first)
    agents, optimizer, first = devices.placed(spread, by_agent)
    # Replicating the sharded leaves would gather them, so leave them out.
    rest = state._replace(agents=None, optimizer=None)
    if state.memory is not None:
        rest = rest._replace(memory=state.memory._replace(first=None))
    rest = devices.everywhere(mesh, rest)
    memory = rest.memory if rest.memory is None else rest.memory._replace(first=first)
    return rest._replace(agents=agents, optimizer=optimizer, memory=memory)


def _as_key(key: Any) -> Key:
    """Returns one PRNG key, made by `jax.random.key` or by `jax.random.PRNGKey`."""
    checks.key("key", key)
    return jax.random.wrap_key_data(key) if key.dtype == jnp.uint32 else key


def _match_params(first: Params, params: Params) -> Params:
    """Returns the given first parameters in the dtypes of the model's own."""
    wanted, found = jax.tree.map(jnp.shape, first), jax.tree.map(jnp.shape, params)
    if wanted != found:
        raise ValueError(f"`params` must have the model's shapes {wanted}, got {found}.")
    checks.finite("params", params)
    return jax.tree.map(lambda one, given: jnp.asarray(given, one.dtype), first, params)
