"""NNX modules as Models: such a module holds its parameters.

It is split into a graph, parameters and random streams, and put together again wherever it is
applied.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.base import Model
from fairjax.models.linen import refuse_state, told
from fairjax.types import Array, Key, Params


def from_function(make: Callable[..., nnx.Module], head: str | None) -> Model:
    """Returns a Model of what a function of `rngs` makes, drawn anew for every key."""
    model = from_nnx(_made_by(make), head)
    return model._replace(init=lambda key: _parameters(make(rngs=nnx.Rngs(key))))


def from_nnx(module: nnx.Module, head: str | None) -> Model:
    """Returns a Model whose first parameters are the module's own, as `from_flax`."""
    graph, variables, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    refuse_state(
        (type(leaf).__name__, path)
        for path, leaf in nnx.to_flat_state(rest)
        if isinstance(leaf, nnx.Variable)
    )
    first = _parameters(module)

    def apply(params: Params, x: Array, key: Key | None = None) -> Array:
        filled = jax.tree.map(lambda leaf: leaf, variables)
        nnx.replace_by_pure_dict(filled, params)
        used = streams if key is None else _drawn_from(key, streams)
        whole = nnx.merge(graph, filled, used, rest)
        ways = told(whole, key)
        if key is None:
            whole.eval()
        else:
            whole.train()
        if "rngs" in inspect.signature(type(whole).__call__).parameters:
            ways["rngs"] = None if key is None else nnx.Rngs(key)
        return whole(x, **ways)

    apply.__qualname__ = type(module).__qualname__  # what reports call the model
    return Model(lambda key: first, apply, head)


def _parameters(module: nnx.Module) -> Params:
    """Returns the parameters as nested dicts of arrays; places in lists become names."""

    def named(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        return {str(name): named(entry) for name, entry in tree.items()}

    return named(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def _drawn_from(key: Key, streams: nnx.State) -> nnx.State:
    """Returns random streams at their beginning, each with a key of its own."""
    drawn = []
    for number, (path, variable) in enumerate(nnx.to_flat_state(streams)):
        if isinstance(variable, nnx.RngKey):
            own = jax.random.fold_in(key, number)
            value = jax.random.split(own, variable.shape) if variable.shape else own
        else:
            value = jnp.zeros(variable.shape, variable.dtype)
        drawn.append((path, variable.replace(value)))
    return nnx.from_flat_state(drawn)


def _made_by(module: Any) -> nnx.Module:
    """Returns the NNX module that a function of `rngs` makes."""
    name, why = getattr(module, "__name__", type(module).__name__), ""
    try:
        made = module(rngs=nnx.Rngs(0))
    except TypeError as error:
        made, why = None, f" ({error})"
    if isinstance(made, nnx.Module):
        return made
    raise ValueError(
        "`module` must be a Flax module, Linen or NNX, or a function of `rngs` that makes an NNX "
        f"module, got {name}{why}. For anything else, give a pair of functions: "
        "`fairjax.models.Model(init=..., apply=...)`."
    )
