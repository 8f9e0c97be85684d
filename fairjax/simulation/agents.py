"""Agents: the loop over all agents, and what it reads of their data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fairjax import devices
from fairjax.data import Dataset, Shards
from fairjax.types import Array, PerAgent


def map_agents(
    function: Callable[[Any, Any], Any],
    agents: Any,
    shared: Any,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> Any:
    """Maps `function(agent, shared)` over the leading axis of `agents`.

    On every device of the mesh, `agents_at_once` entries are vectorised at a time.
    """
    batch_size = None if agents_at_once == 1 else agents_at_once

    def local(agents: Any, shared: Any) -> Any:
        return lax.map(lambda agent: function(agent, shared), agents, batch_size=batch_size)

    return devices.map_shards(mesh, local, agents, shared)


def examples(data: Dataset, rows: Array) -> tuple[Array, Array]:
    """Returns the examples `[B, ...]` and their `y [B, ...]` of some rows."""
    return jnp.asarray(data.x)[rows], jnp.asarray(data.y)[rows]


def evaluation_batch() -> int:
    """Returns how many examples to evaluate at once; on a CPU, as many as its caches hold."""
    return 100 if jax.default_backend() == "cpu" else 1000


def classes_held(shards: Shards) -> PerAgent | None:
    """Returns how many classes occur in each agent's shard, `[N]`; None if there are no classes."""
    num_agents, width = shards.indices.shape
    if shards.data.num_classes is None:
        return None
    held = jnp.zeros((num_agents, shards.data.num_classes), bool)
    present = jnp.arange(width) < jnp.asarray(shards.sizes)[:, None]
    labels = jnp.asarray(shards.data.y)[shards.indices]
    return held.at[jnp.arange(num_agents)[:, None], labels].max(present).sum(1)
