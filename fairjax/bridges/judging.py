"""Judging: a round of remote agents as one compiled step, for any transport of models."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, rowwise, trees
from fairjax.mechanisms import Context, Mechanism
from fairjax.simulation import judge
from fairjax.types import Params, PerAgent, PerRound, Scalar, Stacked


class Judgements(NamedTuple):
    """A mechanism's judgements: one row per round with a reply, as numpy arrays.

    Contributions and fractions are nan where an agent did not reply.
    """

    rounds: PerRound  # [T] Flower's numbers of these rounds, from 1
    contributions: PerRound  # [T, N]
    importance: PerRound  # [T, N]
    fractions: PerRound  # [T, N] of the aggregate that was paid
    replied: PerRound  # [T, N] the reply could be read
    excluded: PerRound  # [T, N] the update counted as zero: no reply, or not finite, or too large


class State(NamedTuple):
    """What the next round needs."""

    agents: Stacked  # by name, [N, ...]
    server: Params
    num_examples: PerAgent  # [N] from the last reply; 0 before
    mechanism: Any


def first_state(params: Mapping[str, np.ndarray], mechanism: Mechanism, num_agents: int) -> State:
    """Returns the state before the first round, when all agents hold the same parameters.

    Raises:
      ValueError: there are no parameters, or they are not finite or of another dtype; or the
        mechanism needs more than `play` gives it.
    """
    if not params:
        raise ValueError("`initial_arrays` must hold trained parameters, got none.")
    for name, array in params.items():
        if array.dtype not in (np.float32, jnp.zeros(0).dtype):
            raise ValueError(
                "`initial_arrays` must hold trained parameters in float32 (or float64, with "
                f"jax_enable_x64), got {array.dtype} in {name!r}."
            )
    checks.finite("initial_arrays", dict(params))
    server = jax.tree.map(jnp.asarray, params)
    agents = trees.broadcast(num_agents, server)
    sizes = np.zeros(num_agents, np.float32)
    state = State(agents, server, sizes, mechanism.init(num_agents, server))
    try:
        jax.eval_shape(lambda: play(mechanism, state, agents, None, 1))
    except ValueError as error:
        raise ValueError(
            "`mechanism` must need only updates, numbers of examples, the round and the current "
            f"models, got {mechanism.name!r}: {error}"
        ) from error
    return state


@functools.partial(jax.jit, static_argnames="mechanism")
def play(
    mechanism: Mechanism,
    state: State,
    trained: Stacked,
    present: PerAgent | None,
    number: Scalar,
    num_rounds: Scalar = 0,
) -> tuple[State, Judgements]:
    """Returns the state after a round, and its judgements.

    Agents `present` `[N]` replied; None: all did. The round is `number` of `num_rounds`, from 1;
    0: it is not known how many there are.
    """
    updates = jax.tree.map(jnp.subtract, trained, state.agents)
    context = Context(
        state.num_examples,
        present=present,
        round=number - 1,
        num_rounds=num_rounds,
        server=state.server,
        agents=state.agents,
    )
    addable = rowwise.addable_rows(updates, (state.agents, state.server))
    uploads = trees.scaled(addable.astype(jnp.float32), updates)
    outcome, after = judge(mechanism, uploads, state.mechanism, context)
    replied = jnp.ones_like(addable) if present is None else present
    paid = trees.where(replied, outcome.rewards, jax.tree.map(jnp.zeros_like, updates))
    state = state._replace(
        agents=jax.tree.map(jnp.add, state.agents, paid),
        server=jax.tree.map(jnp.add, state.server, outcome.aggregate),
        mechanism=after,
    )
    judged = Judgements(
        rounds=number,
        contributions=outcome.contributions,
        importance=outcome.importance,
        fractions=outcome.fractions,
        replied=replied,
        excluded=~(replied & addable),
    )
    return state, judged


def no_judgements(num_agents: int) -> Judgements:
    """Returns judgements without any round."""
    numbers, flags = np.zeros((0, num_agents)), np.zeros((0, num_agents), bool)
    return Judgements(np.zeros(0, int), numbers, numbers, numbers, flags, flags)


def append(rows: np.ndarray, row: Any) -> np.ndarray:
    """Returns rows `[T, ...]` with one more row."""
    return np.concatenate([rows, np.asarray(row)[None]])
