"""First parameters: drawn by the model, or given by the user.

common      w_0           all agents begin with the same ones
own         w_0^i         agents begin with their own; the server with their mean by examples
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, trees
from fairjax.data import Dataset, Shards
from fairjax.mechanisms import Mechanism
from fairjax.models import Model, initial, initial_params
from fairjax.types import Key, Params, Stacked

THREEFRY = "threefry2x32"


def as_key(key: Any) -> Key:
    """Returns one threefry key of a key that `jax.random.key` or `jax.random.PRNGKey` made."""
    checks.key("key", key)
    return as_threefry(jax.random.wrap_key_data(key) if key.dtype == jnp.uint32 else key)


def as_threefry(key: Key) -> Key:
    """Returns a threefry key of one key of any kind.

    What other kinds draw under `vmap` depends on who is drawn together, so their data, without a
    draw, make a threefry key.
    """
    if jax.random.key_impl(key) == THREEFRY:
        return key
    words = jax.random.key_data(key).ravel()
    made = jax.random.wrap_key_data(words[:2], impl=THREEFRY)
    for word in words[2:]:
        made = jax.random.fold_in(made, word)
    return made


def first_params(key: Key, model: Model, data: Dataset) -> Params:
    """Returns the first parameters of a run with this key, which all agents have in common."""
    params_key, _ = jax.random.split(as_key(key))
    return initial_params(model, params_key, data)


def first_statistics(key: Key, model: Model, data: Dataset) -> Any:
    """Returns the first statistics of a network, or None if it has none."""
    params_key, _ = jax.random.split(as_key(key))
    return initial(model, params_key, data)[1]


def given_params(
    key: Key, model: Model, shards: Shards, mechanism: Mechanism, params: Any
) -> tuple[Stacked | None, Params]:
    """Returns the agents' own first parameters, leaves `[N, ...]` or None, and the server's.

    Without their own, agents begin with the server's.

    Args:
      key: PRNG key; it draws the parameters that are not given.
      model: the network.
      shards: who holds which data.
      mechanism: judges and pays agents.
      params: common parameters; leaves `[N, ...]`, the agents' own; a mapping from some agents
        to their own, while the others have common ones; or None: drawn by the model.

    Raises:
      ValueError: they do not have the shapes of the model's, are not finite, or agents have their
        own under a mechanism whose agents begin at the server's.
    """
    if params is None:
        return None, first_params(key, model, shards.data)
    like = jax.eval_shape(lambda: first_params(key, model, shards.data))
    num_agents = shards.num_agents
    if _is_mapping(params, num_agents):
        params = _stack_mapping(params, first_params(key, model, shards.data), num_agents)
    wanted, found = jax.tree.map(jnp.shape, like), jax.tree.map(jnp.shape, params)
    if found == wanted:
        checks.finite("params", params)
        return None, _as_like(like, params)
    if found != jax.tree.map(lambda leaf: (num_agents, *leaf.shape), like):
        raise ValueError(
            f"`params` must have the model's shapes {wanted}, or those after an axis of "
            f"{num_agents} agents, got {found}."
        )
    if mechanism.pays_one_model:
        raise ValueError(
            f"`params` must be the same for all agents under the mechanism {mechanism.name!r}, "
            "whose agents begin every round with the server's parameters, got some for each agent."
        )
    checks.finite("params", params)
    params = _as_like(like, params)
    return params, trees.weighted_sum(shards.sizes / jnp.sum(shards.sizes), params)


def _is_mapping(params: Any, num_agents: int) -> bool:
    """Says whether parameters are a mapping from numbers of agents."""
    agents = params.keys() if isinstance(params, Mapping) else ()
    return bool(agents) and all(
        isinstance(agent, int | np.integer) and 0 <= agent < num_agents for agent in agents
    )


def _stack_mapping(params: Mapping[Any, Params], common: Params, num_agents: int) -> Stacked:
    wanted = jax.tree.map(jnp.shape, common)
    for agent, own in params.items():
        if (found := jax.tree.map(jnp.shape, own)) != wanted:
            raise ValueError(
                f"`params[{agent}]` must have the model's shapes {wanted}, got {found}."
            )
    rows = [_as_like(common, params.get(agent, common)) for agent in range(num_agents)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def _as_like(like: Params, params: Any) -> Any:
    return jax.tree.map(lambda one, given: jnp.asarray(given, one.dtype), like, params)
