"""Linen modules as Models: a Linen module describes parameters, but does not hold them."""

import inspect
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from fairjax import checks
from fairjax.data import Dataset
from fairjax.models.base import Model, NeedsExample
from fairjax.types import Array, Key, Params


def from_linen(module: nn.Module, example: Dataset | Array | None, head: str | None) -> Model:
    """Returns a Model of a Linen module; see `from_flax`."""

    def init_from(x: Array, key: Array) -> Params:
        streams = {"params": key, "dropout": key}
        variables = dict(module.init(streams, x, **mode_arguments(module, None)))
        params = variables.pop("params", {})
        refuse_state(
            (name, path)
            for name, entries in variables.items()
            for path in traverse_util.flatten_dict(entries)
        )
        return params

    def apply(params: Params, x: Array, key: Key | None = None) -> Array:
        streams = {} if key is None else {"dropout": key}
        options = mode_arguments(module, key)
        logits: Any = module.apply({"params": params}, x, rngs=streams, **options)
        return logits

    apply.__qualname__ = type(module).__qualname__  # what reports call the model
    if example is None:
        return Model(NeedsExample(init_from), apply, head)
    x = _take_first_example(example)
    return Model(lambda key: init_from(x, key), apply, head)


def mode_arguments(module: Any, key: Key | None) -> dict[str, Any]:
    """Returns the arguments of the module's `__call__` that say whether it is training."""
    training = key is not None
    values = {"train": training, "training": training, "deterministic": not training}
    takes = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in values.items() if name in takes}


def refuse_state(found: Iterable[tuple[str, Iterable[Any]]]) -> None:
    """Raises if there is state besides parameters, given as pairs of kind and path."""
    places = [f"{kind} at {'/'.join(map(str, path))}" for kind, path in found]
    if places:
        raise ValueError(
            f"`module` must hold only parameters, got also: {', '.join(places)}. Averages of "
            "updates would not include it. Use a layer without running statistics, such as "
            "GroupNorm or LayerNorm."
        )


def _take_first_example(example: Dataset | Array) -> Array:
    """Returns the first example `[1, ...]` of a data set or a batch."""
    if isinstance(example, Dataset):
        return example.x[:1]
    rule = "a data set, or a batch [B, ...] of numbers"
    batch = example if isinstance(example, jax.Array) else checks.numbers("example", example, rule)
    if not batch.size or not batch.ndim:
        raise ValueError(f"`example` must hold {rule}, got shape {batch.shape}.")
    return jnp.asarray(batch[:1])
