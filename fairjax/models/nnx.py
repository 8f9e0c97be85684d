"""NNX modules as Models: an NNX module holds its parameters.

A module is split into a graph, parameters and random streams. `apply` merges them again.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.base import Model
from fairjax.models.linen import mode_arguments, refuse_state
from fairjax.types import Array, Key, Params


def from_function(make: Callable[..., nnx.Module], head: str | None) -> Model:
    """Returns a Model of the module that a function of `rngs` makes, drawn anew for each key."""
    model = from_nnx(_make_module(make), head)
    return model._replace(init=lambda key: _read_parameters(make(rngs=nnx.Rngs(key))))


def from_nnx(module: nnx.Module, head: str | None) -> Model:
    """Returns a Model whose first parameters are the module's own; see `from_flax`."""
    graph, variables, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    refuse_state(
        (type(leaf).__name__, path)
        for path, leaf in nnx.to_flat_state(rest)
        if isinstance(leaf, nnx.Variable)
    )
    first = _read_parameters(module)

    def apply(params: Params, x: Array, key: Key | None = None) -> Array:
        filled = jax.tree.map(lambda leaf: leaf, variables)
        nnx.replace_by_pure_dict(filled, params)
        used = streams if key is None else _seed_streams(key, streams)
        whole = nnx.merge(graph, filled, used, rest)
        options = mode_arguments(whole, key)
        if key is None:
            whole.eval()
        else:
            whole.train()
        if "rngs" in inspect.signature(type(whole).__call__).parameters:
            options["rngs"] = None if key is None else nnx.Rngs(key)
        return whole(x, **options)

    apply.__qualname__ = type(module).__qualname__  # what reports call the model
    return Model(lambda key: first, apply, head)


def _read_parameters(module: nnx.Module) -> Params:
    """Returns the parameters as nested dicts of arrays; indices in lists become names."""

    def name_entries(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        return {str(name): name_entries(entry) for name, entry in tree.items()}

    return name_entries(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def _seed_streams(key: Key, streams: nnx.State) -> nnx.State:
    """Returns random streams at their start, each with its own key."""
    drawn = []
    for number, (path, variable) in enumerate(nnx.to_flat_state(streams)):
        if isinstance(variable, nnx.RngKey):
            own = jax.random.fold_in(key, number)
            value = jax.random.split(own, variable.shape) if variable.shape else own
        else:
            value = jnp.zeros(variable.shape, variable.dtype)
        drawn.append((path, variable.replace(value)))
    return nnx.from_flat_state(drawn)


def _make_module(module: Any) -> nnx.Module:
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
