"""Dishonest uploads: what agents upload instead of their updates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import checks, trees
from fairjax.simulation.behaviours import UPLOADS, Behaviour, check_agents, strength_of
from fairjax.types import Array, Key, Params, PerAgent, Scalar, Stacked


class Memory(NamedTuple):
    """What dishonest uploads need from earlier rounds."""

    first: Stacked  # every agent's first update
    aggregate: Params  # the last aggregate


def change_uploads(
    key: Key, updates: Stacked, memory: Memory, round: Scalar, behaviours: Sequence[Behaviour]
) -> Stacked:
    """Returns what agents upload instead of their updates.

    The first colluder uploads its own update, so a single colluder is in effect honest.

    Args:
      key: PRNG key of the round.
      updates: leaves `[N, ...]`, honest.
      memory: what dishonest agents remember of earlier rounds.
      round: number of the round, from 0.
      behaviours: the behaviours of dishonest agents; those in `DATA` upload honestly.

    Raises:
      ValueError: there is no such agent, or it has two behaviours.

    Examples:
      >>> updates = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> memory = Memory(updates, updates[0])
      >>> flip = [Behaviour(1, "sign_flip", 1.0)]
      >>> print(change_uploads(jax.random.key(0), updates, memory, 0, flip))
      [[ 1.  2.]
       [-3. -4.]]
    """
    checks.kind("memory", memory, Memory, "`fairjax.simulation.Memory(first, aggregate)`")
    updates, memory = jax.tree.map(jnp.asarray, (updates, memory))
    check_agents(behaviours, trees.num_agents(updates))
    leader = next((one.agent for one in behaviours if one.name == "collude"), None)
    for agent, name, given in behaviours:
        if name not in UPLOADS:
            continue
        strength = strength_of(name, given)
        agent_key = jax.random.fold_in(key, agent)
        own = jax.tree.map(lambda leaf, i=agent: leaf[i], updates)
        if name == "free_rider_zero":
            upload = jax.tree.map(jnp.zeros_like, own)
        elif name == "free_rider_noise":
            noise = _draw_noise(agent_key, own, jax.random.uniform, minval=-1, maxval=1)
            upload = jax.tree.map(lambda leaf, f=strength: f * leaf, noise)
        elif name == "free_rider_stale":
            first = jax.tree.map(lambda leaf, i=agent: leaf[i], memory.first)
            upload = jax.tree.map(lambda a, b: jnp.where(round == 0, a, b), own, first)
        elif name == "free_rider_copy":
            upload = _add_noise(agent_key, memory.aggregate, strength)
        elif name == "collude":
            copied = jax.tree.map(lambda leaf: leaf[leader], updates)
            # Compare by identity, since a traced number of an agent has no value to compare.
            upload = own if agent is leader else _add_noise(agent_key, copied, strength)
        else:
            value = {"broken_nan": jnp.nan, "broken_inf": jnp.inf}.get(name)
            factor = -strength if name == "sign_flip" else strength
            upload = jax.tree.map(
                lambda leaf, f=factor, v=value: f * leaf if v is None else jnp.full_like(leaf, v),
                own,
            )
        updates = jax.tree.map(lambda leaf, one, i=agent: leaf.at[i].set(one), updates, upload)
    return updates


def changing_uploads(behaviours: Sequence[Behaviour], num_agents: int) -> PerAgent:
    """Returns `[N]` booleans: the agent uploads something else than its update."""
    agents = [one.agent for one in behaviours if one.name in UPLOADS]
    return jnp.zeros(num_agents, bool).at[jnp.array(agents, int)].set(True)


def _draw_noise(key: Key, like: Params, draw: Any, **options: Any) -> Params:
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [draw(k, leaf.shape, leaf.dtype, **options) for k, leaf in zip(keys, leaves, strict=True)]
    )


def _add_noise(key: Key, tree: Params, strength: float) -> Params:
    """Returns a pytree with normal noise added, which is `strength` times as long as the tree."""
    noise = _draw_noise(key, tree, jax.random.normal)
    # Divide by the largest entry, since the squares of a long update would overflow.
    largest = jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(tree)]).max()
    unit = jnp.where(largest > 0, jnp.minimum(largest, 2.0**126), 1)
    squares: Array = trees.sum_leaves(lambda leaf: jnp.square(leaf / unit).sum(), tree)
    scale = strength * (jnp.sqrt(squares / trees.num_parameters(tree)) * unit)
    return jax.tree.map(lambda leaf, extra: leaf + scale * extra, tree, noise)
