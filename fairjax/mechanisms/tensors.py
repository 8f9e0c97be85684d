"""Rewards tensor by tensor, as the authors' released program masks them."""

import jax
import jax.numpy as jnp

from fairjax import trees
from fairjax.types import Array, Params, PerAgent, Stacked


def largest_of_tensors(aggregate: Params, fractions: PerAgent) -> Stacked:
    """Returns for every agent the largest entries of every tensor, as in `cgsv_released`.

    Args:
      aggregate: leaves without the agent axis.
      fractions: `[N]` in [0, 1].

    Returns:
      Leaves `[N, ...]`.
    """
    return jax.tree.map(lambda leaf: _largest_of_tensor(leaf, fractions), aggregate)


def _largest_of_tensor(tensor: Array, fractions: PerAgent) -> Stacked:
    size = tensor.size
    if not size:
        return trees.broadcast(len(fractions), tensor)
    kept = jnp.minimum(jnp.ceil(fractions * size).astype(jnp.int32), size - 1)
    magnitudes = jnp.sort(jnp.abs(tensor).reshape(-1), descending=True)
    thresholds = jnp.where(kept > 0, magnitudes[kept - 1], jnp.inf if size > 1 else 0)
    return jnp.where(jnp.abs(tensor) >= trees.per_agent(thresholds, tensor[None]), tensor, 0)
