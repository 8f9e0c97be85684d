"""Federations: a round of training, judging and paying, as a pair of pure functions.

Federation.init(key, shards)   -> State      what the next round needs
Federation.step(state, shards) -> State, Record   what a person wants to see

w_i + dw_i   local epochs of all agents, from their own w_i
v_i          what the mechanism pays for the updates dw_i
w_i  <-  w_i + v_i       server:  w  <-  w + aggregate
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fairjax import checks, devices, trees
from fairjax.behaviours import UPLOADS, Behaviour, Memory, change_uploads
from fairjax.data import Dataset, Shards
from fairjax.mechanisms.base import Context, Mechanism, Plan, checked_answer
from fairjax.models import Model, initial_params
from fairjax.training import (
    LocalTraining,
    accuracies,
    accuracy,
    bytes_per_agent,
    check_memory,
    classes_held,
    mean_losses,
    pick_agents_at_once,
    train_agents,
)
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked


class State(NamedTuple):
    """What the next round needs."""

    round: Scalar  # rounds played
    num_rounds: Scalar  # of the whole run; 0 where it is not known
    key: Key  # of the run; round t uses fold_in(key, t)
    agents: Stacked  # parameters, leaves [N, ...]
    server: Params
    optimizer: Stacked  # optimizer states, leaves [N, ...]
    mechanism: Any
    memory: Memory | None = None  # where agents are dishonest


class Record(NamedTuple):
    """What a person wants to see of one round."""

    trained: Stacked  # parameters after the local epochs
    updates: Stacked  # what local training changed, before any behaviour
    uploads: Stacked  # what the mechanism saw: after behaviours, excluded ones as zero
    contributions: PerAgent
    importance: PerAgent
    fractions: PerAgent
    excluded: PerAgent  # whose upload is not finite or too large to be added, and counts as zero
    broken: Scalar  # did the mechanism pay NaN or infinity


class Federation(NamedTuple):
    """Pure functions of a federation; made by `federation`."""

    init: Callable[..., State]
    step: Callable[[State, Shards], tuple[State, Record]]
    evaluate: Callable[[Stacked, Dataset], PerAgent]  # models, data -> accuracies
    agents_at_once: Callable[[Shards], int]  # how many are vectorised
    context: Callable[[State, Shards, Key], Context]  # what the mechanism may look at
    bytes_per_agent: Callable[[Shards], int]  # that a local step of one agent works on
    mechanism: str  # its name
    mesh: Mesh | None  # the devices that agents are spread over


def federation(
    *,
    model: Model,
    mechanism: Mechanism,
    optimizer: Any,
    learning_rate: Scalar | Callable[[Scalar], Scalar] | None = None,
    local_epochs: int = 1,
    batch_size: int = 32,
    decay_per: str = "round",
    local_steps: str = "all",
    agents_at_once: int | None = None,
    behaviours: Sequence[Behaviour] = (),
    mesh: Mesh | None = None,
) -> Federation:
    """Returns a federation of agents that train, are judged, and are paid.

    Args:
      model: what every agent trains.
      mechanism: what judges the updates and pays the agents.
      optimizer: an optax optimizer, such as `optax.sgd(0.1)`, whose own schedules
        count local steps; or, with `learning_rate`, a function that makes one from
        a learning rate, such as `optax.sgd`. Every agent keeps its own state.
      learning_rate: None; or a number; or a schedule, a function of the rounds played.
      local_epochs: passes over its shard that an agent makes per round.
      batch_size: examples per local step; the last batch of an epoch may be partial.
      decay_per: "round", or "epoch": the schedule counts local epochs instead.
      local_steps: "all", or "last_batch": one step per local epoch, on its last batch.
      agents_at_once: how many agents are vectorised; None: one on a CPU, as many as
        memory holds on an accelerator. Results depend on it by rounding.
      behaviours: what agents that are not honest upload. What they do to their data is up
        to `fairjax.behaviours.change_data`.
      mesh: devices that agents are spread over, such as `fairjax.devices.mesh()`; None: one.
        Results depend on their number by rounding.

    Returns:
      A `Federation`.

    Raises:
      ValueError: a value breaks its rule.

    Examples:
      >>> import fairjax as fj
      >>> train, test = fj.data.load("digits")
      >>> shards = fj.data.power_law(train, num_agents=3, seed=0)
      >>> fed = federation(model=fj.models.logistic(train), mechanism=fj.mechanisms.fedavg(),
      ...                  optimizer=optax.sgd, learning_rate=optax.exponential_decay(0.1, 1, 0.9))
      >>> state, record = jax.jit(fed.step)(fed.init(jax.random.key(0), shards), shards)
      >>> print(record.fractions)
      [1. 1. 1.]
    """
    checks.kind("model", model, Model, "`fairjax.models.mlp(train)`")
    checks.kind("mechanism", mechanism, Mechanism, "`fairjax.mechanisms.cgsv()`")
    checks.count("local_epochs", local_epochs)
    checks.count("batch_size", batch_size)
    checks.choice("decay_per", decay_per, ("round", "epoch"))
    checks.choice("local_steps", local_steps, ("all", "last_batch"))
    if agents_at_once is not None:
        checks.count("agents_at_once", agents_at_once)
    mesh = devices.checked(mesh)
    num_devices = 1 if mesh is None else mesh.size
    optimizer_at, rate_at = _scheduled(optimizer, learning_rate)
    training = LocalTraining(
        model, optimizer_at, local_epochs, batch_size, decay_per=decay_per, local_steps=local_steps
    )
    dishonest = any(behaviour.name in UPLOADS for behaviour in behaviours)

    def group_size(shards: Shards) -> int:
        if agents_at_once is not None:
            return min(agents_at_once, shards.num_agents)
        return pick_agents_at_once(training, shards, num_devices)

    def init(key: Key, shards: Shards, params: Params | None = None, num_rounds: int = 0) -> State:
        if not isinstance(key, jax.Array):
            raise ValueError(f"`key` must be a PRNG key such as jax.random.key(0), got {key!r}.")
        check_memory(training, shards, num_devices)
        params_key, run_key = jax.random.split(key)
        first = initial_params(model, params_key, shards.data)
        params = first if params is None else _like(first, params)
        num_agents = shards.num_agents
        state = State(
            round=jnp.zeros((), jnp.int32),
            num_rounds=jnp.asarray(num_rounds, jnp.int32),
            key=run_key,
            agents=trees.broadcast(num_agents, params),
            server=params,
            optimizer=trees.broadcast(num_agents, training.init(params)),
            mechanism=mechanism.init(num_agents),
            memory=Memory(trees.broadcast(num_agents, params), params) if dishonest else None,
        )
        return _placed(mesh, state)

    def context(state: State, shards: Shards, key: Key) -> Context:
        """Returns what the mechanism may look at; what it does not is never computed."""
        utility = None
        if shards.validation is not None:
            utility = functools.partial(accuracy, model, data=shards.validation)
        return Context(
            shard_sizes=jnp.asarray(shards.sizes),
            shard_classes=classes_held(shards),
            round=state.round,
            num_rounds=state.num_rounds,
            key=key,
            learning_rate=rate_at(_count(state.round, local_epochs, decay_per)),
            server=state.server,
            agents=state.agents,
            head=model.head,
            losses=lambda: mean_losses(training, state.agents, shards, group_size(shards), mesh),
            utility=utility,
        )

    def step(state: State, shards: Shards) -> tuple[State, Record]:
        key = jax.random.fold_in(state.key, state.round)
        train_key, mechanism_key = jax.random.split(key)
        seen = context(state, shards, mechanism_key)
        plan = Plan() if mechanism.plan is None else mechanism.plan(state.mechanism, seen)
        start = state.agents if plan.start is None else plan.start
        sizes = shards.sizes
        if plan.participants is not None:
            sizes = jnp.where(plan.participants, sizes, 0)  # no examples, no local steps
        trained, optimizer_states = train_agents(
            training,
            jax.random.split(train_key, shards.num_agents),
            start,
            state.optimizer,
            dataclasses.replace(shards, sizes=sizes),
            state.round,
            agents_at_once=group_size(shards),
            mesh=mesh,
        )
        updates = jax.tree.map(jnp.subtract, trained, start)
        uploads, memory = updates, state.memory
        if memory is not None:
            upload_key = jax.random.fold_in(train_key, 1)
            uploads = change_uploads(upload_key, updates, memory, state.round, behaviours)
            memory = memory._replace(first=trees.where(state.round == 0, updates, memory.first))
        addable = trees.addable_rows(uploads, (start, state.server))
        # An agent whose training broke starts the next round as it started this one.
        trained_well = trees.finite_rows(updates)
        optimizer_states = trees.where(trained_well, optimizer_states, state.optimizer)
        usable = trees.where(addable, uploads, jax.tree.map(jnp.zeros_like, uploads))
        answer = mechanism.update(usable, state.mechanism, seen)
        outcome, mechanism_state = checked_answer(answer, updates, state.mechanism, mechanism.name)
        state = State(
            round=state.round + 1,
            num_rounds=state.num_rounds,
            key=state.key,
            agents=jax.tree.map(jnp.add, start, outcome.rewards),
            server=jax.tree.map(jnp.add, state.server, outcome.aggregate),
            optimizer=optimizer_states,
            mechanism=mechanism_state,
            memory=memory if memory is None else memory._replace(aggregate=outcome.aggregate),
        )
        # Whose training broke held broken parameters before; the others were made so.
        agents_fine = trees.finite_rows(state.agents) | ~trained_well
        server_fine = trees.finite_rows(trees.broadcast(1, state.server)) | ~trained_well.all()
        broken = ~(agents_fine.all() & server_fine.all())
        judged = (outcome.contributions, outcome.importance, outcome.fractions)
        record = Record(trained, updates, usable, *judged, excluded=~addable, broken=broken)
        return _placed(mesh, state), record

    def evaluate(params: Stacked, data: Dataset) -> PerAgent:
        return accuracies(model, params, data, agents_at_once or 1, mesh)

    return Federation(
        init,
        step,
        evaluate,
        group_size,
        context,
        functools.partial(bytes_per_agent, training),
        mechanism.name,
        mesh,
    )


def _placed(mesh: Mesh | None, state: State) -> State:
    """Returns the state on the mesh: what agents hold is spread, the rest is everywhere."""
    if mesh is None:
        return state
    by_agent = devices.by_agent(mesh, trees.num_agents(state.agents))
    spread = (state.agents, state.optimizer, None if state.memory is None else state.memory.first)
    agents, optimizer, first = devices.placed(spread, by_agent)
    # What is spread is left out, or it would be gathered.
    rest = state._replace(agents=None, optimizer=None)
    if state.memory is not None:
        rest = rest._replace(memory=state.memory._replace(first=None))
    rest = devices.everywhere(mesh, rest)
    memory = rest.memory if rest.memory is None else rest.memory._replace(first=first)
    return rest._replace(agents=agents, optimizer=optimizer, memory=memory)


def _scheduled(
    optimizer: Any, learning_rate: Any
) -> tuple[Callable[[Scalar], Any], Callable[[Scalar], Any]]:
    """Returns the optimizer and the learning rate as functions of rounds or epochs played."""
    if learning_rate is None:
        if not isinstance(optimizer, optax.GradientTransformation):
            raise ValueError(
                "`optimizer` must be an optax optimizer such as optax.sgd(0.1), or a function "
                "such as optax.sgd together with `learning_rate`, "
                f"got optimizer={optimizer!r} without a learning rate."
            )
        return lambda count: optimizer, lambda count: None
    if isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer):
        raise ValueError(
            "`optimizer` must be a function from a learning rate to an optax optimizer, such as "
            f"optax.sgd, where `learning_rate` is given, got optimizer={optimizer!r}."
        )
    if callable(learning_rate):
        return lambda count: optimizer(learning_rate(count)), learning_rate
    checks.above("learning_rate", learning_rate, 0)
    return lambda count: optimizer(learning_rate), lambda count: learning_rate


def _count(round: Scalar, local_epochs: int, decay_per: str) -> Scalar:
    return round * local_epochs if decay_per == "epoch" else round


def _like(first: Params, params: Params) -> Params:
    """Returns given first parameters with the structure and dtypes of the model's own."""
    wanted, found = jax.tree.map(jnp.shape, first), jax.tree.map(jnp.shape, params)
    if wanted != found:
        raise ValueError(f"`params` must have the model's shapes {wanted}, got {found}.")
    return jax.tree.map(lambda one, given: jnp.asarray(given, one.dtype), first, params)
