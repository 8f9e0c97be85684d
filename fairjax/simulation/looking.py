"""Looking: what a mechanism may look at in a round, and what agents reach alone before the first.

Functions that are not called cost nothing: a round computes only what its mechanism asks for.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from fairjax import checks
from fairjax.data import Dataset, Shards
from fairjax.mechanisms import MEASURED_ON, Context, standalone
from fairjax.programs import WithCaptured
from fairjax.simulation import evaluation
from fairjax.simulation.agents import classes_held, examples, map_agents
from fairjax.simulation.evaluation import mean_losses, mean_statistics
from fairjax.simulation.round import judge
from fairjax.simulation.states import State
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked

if TYPE_CHECKING:
    from fairjax.simulation.federations import Federation


def make_context(
    federation: "Federation", state: State, shards: Shards, key: Key, present: PerAgent | None
) -> Context:
    """Returns what the mechanism may look at."""
    model, task = federation.training.model, federation.training.task
    context = Context(
        shard_sizes=jnp.asarray(shards.sizes),
        shard_classes=classes_held(shards),
        present=present,
        round=state.round,
        num_rounds=state.num_rounds,
        key=key,
        learning_rate=federation.rates(state.round),
        server=_apart(state.server),
        agents=_apart(state.agents),
        head=model.head,
        negated=task.main if task.sign < 0 else None,
        losses=own_losses(federation, state.agents, state.statistics, shards, present),
        units=None if model.units is None else model.units(state.server),
        **scores(federation, state.statistics, state.joined, shards),
    )
    ranked = federation.training.ranked
    if ranked is None:
        return context
    ranks = (ranked.width,) * shards.num_agents if ranked.ranks is None else ranked.ranks
    return context._replace(factors=ranked.common(state.key, state.server), ranks=ranks)


def _apart(tree: Any) -> Any:
    """Returns the same arrays in containers of their own, which a mechanism may change."""
    return jax.tree.map(lambda leaf: leaf, tree)


def check_held_out(federation: "Federation", shards: Shards, test: Dataset) -> None:
    """Raises if the mechanism measures held-out data that give the metric nothing to rank."""
    if shards.validation is None or federation.training.task.can_rank(shards.validation):
        return

    def first_round(key: Key) -> Any:  # it raises where it measures these data
        state = federation.init(key, shards, num_rounds=1, test=test)
        return federation.step(state, shards)

    jax.eval_shape(first_round, jax.random.key(0))


def own_losses(
    federation: "Federation",
    params: Stacked,
    statistics: Any,
    shards: Shards,
    present: PerAgent | None,
) -> Callable[[], PerAgent]:
    """Returns a function that returns the losses of parameters on agents' own shards."""
    at_once, own = federation.agents_at_once(shards), (params, statistics)
    training, mesh = federation.training, federation.mesh
    return lambda: mean_losses(training, *own, shards, present, at_once, mesh)


def scores(
    federation: "Federation", statistics: Any, joined: PerAgent | None, shards: Shards
) -> dict[str, Any]:
    """Returns functions that score parameters on held-out data, if there are any, by name."""
    held_out = shards.validation
    if held_out is None:
        return {}
    task, model = federation.training.task, federation.training.model
    mean = mean_statistics(statistics, joined, shards)

    def utility(params: Params) -> Scalar:
        task.check_test("validation", held_out)
        return evaluation.utility(task, model, params, held_out, mean)

    def held_out_loss(params: Params) -> Scalar:
        return evaluation.loss(task, model, params, held_out, mean)

    def example_losses(params: Stacked) -> tuple[Any, Any]:
        def one(agent: Any, data: tuple[Dataset, Dataset]) -> tuple[Any, Any]:
            params, statistics, rows, size = agent
            x, y = examples(data[0], rows)
            own = dataclasses.replace(data[0], x=x, y=y)
            measured = [
                evaluation.losses(task, model, params, some, statistics) for some in (own, data[1])
            ]
            return jnp.where(jnp.arange(len(rows)) < size, measured[0], jnp.nan), measured[1]

        agents = (params, statistics, shards.indices, shards.sizes)
        data, at_once = (shards.data, held_out), federation.agents_at_once(shards)
        return map_agents(one, agents, data, at_once, federation.mesh)

    return {"utility": utility, "held_out_loss": held_out_loss, "example_losses": example_losses}


def reached_alone(
    federation: "Federation", state: State, shards: Shards, test: Dataset | None, on: str
) -> PerAgent:
    """Returns `[N]` the main metric that agents reach alone by the end of the run.

    They train as many rounds, from the same first parameters and with the same shuffles. It is
    negated if it is better when it is lower.

    Args:
      federation: the federation; its mechanism and its behaviours do not matter.
      state: the state before the first round; the mechanism's own may be missing.
      shards: who holds which data.
      test: the test data, if they are known.
      on: the data on which models are measured: "held_out"; or "test", an oracle that no server
        has, by which some programs were published.

    Raises:
      ValueError: `on` is neither word, there are no such data, or the number of rounds is unknown.
    """
    checks.choice("on", on, MEASURED_ON)
    data = shards.validation if on == "held_out" else test
    name = federation.mechanism.name
    if data is None:
        missing = {"held_out": "`validation` of the shards", "test": "`test` data in `init`"}
        raise ValueError(f"The mechanism {name!r} needs {missing[on]} to measure agents alone.")
    if checks.is_known(state.num_rounds) and int(state.num_rounds) == 0:
        raise ValueError(
            f"`num_rounds` must be given to `init` for the mechanism {name!r}, which needs to know "
            "what agents reach alone by the end of the run, got num_rounds=0."
        )
    if on == "held_out":
        federation.training.task.check_test("validation", data)
    alone = dataclasses.replace(
        federation, mechanism=standalone(), behaviours=(), server_optimizer=None
    )
    state = state._replace(mechanism=(), memory=None, server_optimizer=None)
    if checks.is_known(state.round):  # data are an argument of a compiled function
        compiled = WithCaptured if federation.training.ranked else jax.jit
        return compiled(functools.partial(_reach, alone))(state, shards, data)
    return _reach(alone, state, shards, data)


def _reach(federation: "Federation", state: State, shards: Shards, data: Dataset) -> PerAgent:
    def one_round(number: Scalar, state: State) -> State:
        del number
        return federation.step(state, shards)[0]

    last = lax.fori_loop(0, state.num_rounds, one_round, state)
    task, model = federation.training.task, federation.training.model

    def measure(own: tuple[Params, Any], data: Dataset) -> Scalar:
        return evaluation.utility(task, model, own[0], data, own[1])

    own = (last.agents, last.statistics)
    return map_agents(measure, own, data, federation.agents_at_once(shards), federation.mesh)


def first_decisions(federation: "Federation", state: State, shards: Shards) -> Any:
    """Returns what the mechanism would answer to uploads like parameters; nobody trains.

    Raises:
      ValueError: the mechanism does not take what agents upload, or breaks its protocol.
    """
    ranked = federation.training.ranked
    absence = federation.participation is not None
    present = jnp.ones(shards.num_agents, bool) if absence else None
    context = make_context(federation, state, shards, state.key, present)
    plan, uploads = federation.plan(state, context), state.agents
    if ranked and state.memory is None:
        draw = jax.vmap(functools.partial(ranked.draw, state.key))
        uploads = ranked.updates(uploads, draw(uploads, jnp.arange(shards.num_agents)))
    return plan, judge(federation.mechanism, uploads, state.mechanism, context)


def follows_length(federation: "Federation", shards: Shards, test: Dataset | None = None) -> bool:
    """Says whether the mechanism's numbers depend on the number of rounds of the whole run.

    Raises:
      ValueError: as in `first_decisions`.
    """

    def play(num_rounds: Scalar, shards: Shards) -> Any:
        state = federation.init(jax.random.key(0), shards, None, num_rounds, test)
        return first_decisions(federation, state, shards)

    traced = jax.make_jaxpr(play)(1, shards).jaxpr
    following = {traced.invars[0]}
    for equation in traced.eqns:
        if any(one in following for one in equation.invars if not hasattr(one, "val")):
            following.update(equation.outvars)
    return any(one in following for one in traced.outvars if not hasattr(one, "val"))
