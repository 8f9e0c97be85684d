"""Dishonest uploads: functions that replace an agent's update by another upload.

key, own update, `Seen`, strength  ->  upload
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import trees
from fairjax.simulation.kinds import ANY, Kind, register
from fairjax.types import Array, Key, Params, PerAgent, Scalar, Stacked

UPLOADS: dict[str, Kind] = {}


class Memory(NamedTuple):
    """What dishonest uploads need from earlier rounds."""

    first: Stacked  # every agent's first update
    aggregate: Params  # the last aggregate
    rewards: Stacked  # every agent's last reward
    joined: PerAgent | None = None  # [N] booleans: who has a first update; None: nobody yet

    def with_first(self, updates: Stacked, round: Scalar, present: PerAgent | None) -> "Memory":
        """Returns the memory with the updates of agents that take part for the first time.

        Args:
          updates: leaves `[N, ...]`, honest.
          round: number of the round, from 0.
          present: `[N]` booleans; None: all take part in every round.
        """
        if present is None:
            return self._replace(first=trees.where(round == 0, updates, self.first))
        joined = self.joined if self.joined is not None else jnp.zeros(len(present), bool)
        first = trees.where(present & ~joined, updates, self.first)
        return self._replace(first=first, joined=joined | present)

    def after(self, aggregate: Params, rewards: Stacked, present: PerAgent | None) -> "Memory":
        """Returns the memory with what the server decided; absent agents received nothing."""
        if present is not None:
            rewards = trees.where(present, rewards, self.rewards)
        return self._replace(aggregate=aggregate, rewards=rewards)


class Seen(NamedTuple):
    """What a dishonest agent knows besides its own update."""

    round: Scalar  # from 0
    first: Params  # its own first update
    aggregate: Params  # the last one, which only an insider knows
    reward: Params  # its own last one
    leader: Params | None  # the update of the first colluder; None: there is none


@register(UPLOADS)
def free_rider_zero(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads zeros."""
    return jax.tree.map(jnp.zeros_like, own)


@register(UPLOADS, strength=1.0, most=ANY)
def free_rider_noise(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads noise, uniform between plus and minus a bound."""
    noise = _draw_noise(key, own, jax.random.uniform, minval=-1, maxval=1)
    return jax.tree.map(lambda leaf: strength * leaf, noise)


@register(UPLOADS)
def free_rider_stale(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads its first update again and again."""
    return jax.tree.map(lambda a, b: jnp.where(seen.round == 0, a, b), own, seen.first)


@register(UPLOADS, strength=0.1, most=ANY)
def free_rider_copy(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads its last reward plus relative noise."""
    return _add_noise(key, seen.reward, strength)


@register(UPLOADS, strength=0.1, most=ANY)
def free_rider_oracle(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads the last aggregate plus relative noise."""
    return _add_noise(key, seen.aggregate, strength)


@register(UPLOADS)
def idle(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads its update in every second round, otherwise zeros."""
    return jax.tree.map(lambda leaf: jnp.where(seen.round % 2 == 0, leaf, 0), own)


@register(UPLOADS, strength=1.0, most=ANY)
def sign_flip(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads its update reversed, times a factor."""
    return jax.tree.map(lambda leaf: -strength * leaf, own)


@register(UPLOADS, strength=10.0, most=ANY)
def rescale(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads its update times a factor."""
    return jax.tree.map(lambda leaf: strength * leaf, own)


@register(UPLOADS, most=ANY)
def collude(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads the first colluder's update plus relative noise."""
    return _add_noise(key, seen.leader, strength)


@register(UPLOADS)
def broken_nan(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads NaN."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), own)


@register(UPLOADS)
def broken_inf(key: Key, own: Params, seen: Seen, strength: float) -> Params:
    """Uploads infinity."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), own)


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
