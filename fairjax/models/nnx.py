"""NNX modules as Models: an NNX module holds its parameters.

A module is split into a graph, parameters, random streams and statistics. `apply` merges them
again.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.base import Model
from fairjax.models.linen import mode_arguments
from fairjax.types import Array, Key, Params

# Variables that a module changes in training, such as the running means of BatchNorm.
STATISTICS = nnx.All(
    nnx.Variable, nnx.Not(nnx.Param), nnx.Not(nnx.RngState), nnx.Not(nnx.Intermediate)
)


def from_function(make: Callable[..., nnx.Module], head: str | None) -> Model:
    """Returns a Model of the module that a function of `rngs` makes, drawn anew for each key."""
    model = from_nnx(_make_module(make), head)
    init, statistics = (
        lambda key, kind=kind: _read(make(rngs=nnx.Rngs(key)), kind)
        for kind in (nnx.Param, STATISTICS)
    )
    return model._replace(init=init, statistics=model.statistics and statistics)


def from_nnx(module: nnx.Module, head: str | None) -> Model:
    """Returns a Model whose first parameters are the module's own; see `from_flax`."""
    graph, variables, streams, kept, rest = nnx.split(
        module, nnx.Param, nnx.RngState, STATISTICS, ...
    )
    first, first_statistics = _read(module, nnx.Param), _read(module, STATISTICS)

    def apply(params: Params, x: Array, key: Key | None = None, statistics: Any = None) -> Any:
        # Variables of their own, since a module may change those that it is made of.
        used = _copy(streams) if key is None else _seed_streams(key, streams)
        own = _copy(kept) if statistics is None else _fill(kept, statistics)
        whole = nnx.merge(graph, _fill(variables, params), used, own, _copy(rest))
        options = mode_arguments(whole, key)
        if key is None:
            whole.eval()
        else:
            whole.train()
        if "rngs" in inspect.signature(type(whole).__call__).parameters:
            options["rngs"] = None if key is None else nnx.Rngs(key)
        outputs = whole(x, **options)
        if statistics is None or key is None:
            return outputs
        return outputs, _read(whole, STATISTICS)

    apply.__qualname__ = type(module).__qualname__  # what reports call the model
    has_statistics = bool(jax.tree.leaves(first_statistics))
    return Model(
        lambda key: first, apply, head, (lambda key: first_statistics) if has_statistics else None
    )


def _copy(state: nnx.State) -> nnx.State:
    return jax.tree.map(lambda leaf: leaf, state)


def _fill(state: nnx.State, values: Any) -> nnx.State:
    """Returns a state with other values."""
    filled = _copy(state)
    nnx.replace_by_pure_dict(filled, values)
    return filled


def _read(module: nnx.Module, kind: Any) -> Any:
    """Returns variables as nested dicts of arrays; indices in lists become names."""

    def name_entries(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        return {str(name): name_entries(entry) for name, entry in tree.items()}

    return name_entries(nnx.to_pure_dict(nnx.state(module, kind)))


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
