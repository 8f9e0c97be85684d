"""Modules: Flax's, Linen or NNX, as Models.

A Linen module is a description already. An NNX module holds its parameters: it is split into a
graph, parameters and random streams, and put together again wherever it is applied.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx, traverse_util

from fairjax import checks
from fairjax.data import Dataset
from fairjax.models.base import Model, NeedsExample
from fairjax.types import Array, Key, Params


def from_flax(
    module: Any, example: Dataset | Array | None = None, head: str | None = None
) -> Model:
    """Returns a `Model` of a Flax module, Linen or NNX.

    A key given to `apply` turns dropout on and is where its randomness comes from. Where the
    module's `__call__` takes `train`, `training` or `deterministic`, it is told whether it is
    training. An NNX module is moreover set to `train()` or `eval()`, and its streams, and `rngs`
    of its `__call__`, follow from the key.

    Args:
      module: what maps `x [B, ...]` to logits `[B, C]`: a Linen module; or a function of `rngs`
        that makes an NNX module, such as `lambda rngs: Net(10, rngs=rngs)` or the class
        itself; or an NNX module, whose own parameters are then the first ones, whatever the
        key.
      example: a data set or a batch `[B, ...]`, from which shapes of a Linen module's
        parameters follow; None: the federation shows it the data of its agents.
      head: the name of the output layer in the parameters, if it matters.

    Returns:
      A `Model`. Its parameters are nested dicts of arrays, named as the module names them.
      Arrays of an NNX module that are not variables are constants.

    Raises:
      ValueError: `module` is none of these, or keeps state besides parameters, such as batch
        statistics, which averaging of updates would not cover; or `example` is no batch.

    Examples:
      >>> model = from_flax(nn.Dense(3), example=jnp.ones((1, 4)))
      >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
      {'bias': (3,), 'kernel': (4, 3)}
      >>> model = from_flax(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
      >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
      {'bias': (3,), 'kernel': (4, 3)}
    """
    if isinstance(module, nn.Module):
        return _from_linen(module, example, head)
    if isinstance(module, nnx.Module):
        return _from_nnx(module, head)
    model = _from_nnx(_made_by(module), head)
    return model._replace(init=lambda key: _parameters(module(rngs=nnx.Rngs(key))))


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


def _from_linen(module: nn.Module, example: Dataset | Array | None, head: str | None) -> Model:
    def init_from(x: Array, key: Array) -> Params:
        streams = {"params": key, "dropout": key}
        variables = dict(module.init(streams, x, **_told(module, None)))
        params = variables.pop("params", {})
        _refuse_state(
            (name, path)
            for name, entries in variables.items()
            for path in traverse_util.flatten_dict(entries)
        )
        return params

    def apply(params: Params, x: Array, key: Key | None = None) -> Array:
        streams = {} if key is None else {"dropout": key}
        logits: Any = module.apply({"params": params}, x, rngs=streams, **_told(module, key))
        return logits

    if example is None:
        return Model(NeedsExample(init_from), apply, head)
    x = _one_of(example)
    return Model(lambda key: init_from(x, key), apply, head)


def _one_of(example: Dataset | Array) -> Array:
    """Returns the first example `[1, ...]` of a data set or a batch."""
    if isinstance(example, Dataset):
        return example.x[:1]
    rule = "a data set, or a batch [B, ...] of numbers"
    batch = example if isinstance(example, jax.Array) else checks.numbers("example", example, rule)
    if not batch.size or not batch.ndim:
        raise ValueError(f"`example` must hold {rule}, got shape {batch.shape}.")
    return jnp.asarray(batch[:1])


def _from_nnx(module: nnx.Module, head: str | None) -> Model:
    graph, variables, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    _refuse_state(
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
        told = _told(whole, key)
        if key is None:
            whole.eval()
        else:
            whole.train()
        if "rngs" in inspect.signature(type(whole).__call__).parameters:
            told["rngs"] = None if key is None else nnx.Rngs(key)
        return whole(x, **told)

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


def _told(module: Any, key: Key | None) -> dict[str, Any]:
    """Returns what the module's `__call__` takes of whether it is training."""
    training = key is not None
    values = {"train": training, "training": training, "deterministic": not training}
    takes = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in values.items() if name in takes}


def _refuse_state(found: Iterable[tuple[str, Iterable[Any]]]) -> None:
    """Raises where there is state besides parameters: pairs of its kind and path."""
    places = [f"{kind} at {'/'.join(map(str, path))}" for kind, path in found]
    if places:
        raise ValueError(
            f"`module` must hold parameters only, got besides: {', '.join(places)}. Averages of "
            "updates would not cover it. Use a layer without running statistics, such as GroupNorm "
            "or LayerNorm."
        )
