"""Linen modules as Models: a Linen module describes parameters, but does not hold them."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fairjax import checks
from fairjax.data import Dataset
from fairjax.models.base import Model, NeedsExample
from fairjax.types import Array, Key, Params


def from_linen(module: nn.Module, example: Dataset | Array | None, head: str | None) -> Model:
    """Returns a Model of a Linen module; see `from_flax`."""

    def init_from(x: Array, key: Array) -> Params:
        return _variables(module, x, key).get("params", {})

    def statistics_from(x: Array, key: Array) -> Any:
        collections = _variables(module, x, key)
        collections.pop("params", None)
        return collections

    def apply(params: Params, x: Array, key: Key | None = None, statistics: Any = None) -> Any:
        # Other streams of random numbers fall back to that of the parameters.
        streams = {} if key is None else {"params": key, "dropout": key}
        options: dict[str, Any] = {"rngs": streams, **mode_arguments(module, key)}
        if statistics is not None and key is not None:
            options["mutable"] = list(statistics)
        # In training it returns outputs and the next collections.
        return module.apply({"params": params, **(statistics or {})}, x, **options)

    apply.__qualname__ = type(module).__qualname__  # what reports call the model
    if example is None:
        return Model(NeedsExample(init_from), apply, head, NeedsExample(statistics_from))
    x = _take_first_example(example)
    init, statistics = (functools.partial(make, x) for make in (init_from, statistics_from))
    return Model(init, apply, head, statistics)


def _variables(module: nn.Module, x: Array, key: Array) -> dict[str, Any]:
    """Returns all collections of a module, computed by one program if the module has a hash.

    The program runs once, so it is optimised less: it compiles in a quarter of the time.
    """
    try:
        hash(module)
    except TypeError:
        return _collections(module, x, key)
    # Within another program, that one's options hold.
    options = {"xla_backend_optimization_level": 1} if checks.is_known(key) else None
    return jax.jit(_collections, static_argnums=0, compiler_options=options)(module, x, key)


def _collections(module: nn.Module, x: Array, key: Array) -> dict[str, Any]:
    streams = {"params": key, "dropout": key}
    return dict(module.init(streams, x, **mode_arguments(module, None)))


def mode_arguments(module: Any, key: Key | None) -> dict[str, Any]:
    """Returns the arguments of the module's `__call__` that say whether it is training."""
    training = key is not None
    values = {
        **dict.fromkeys(("train", "training", "is_training"), training),
        **dict.fromkeys(("deterministic", "use_running_average"), not training),
    }
    takes = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in values.items() if name in takes}


def _take_first_example(example: Dataset | Array) -> Array:
    """Returns the first example `[1, ...]` of a data set or a batch."""
    if isinstance(example, Dataset):
        return example.x[:1]
    rule = "a data set, or a batch [B, ...] of numbers"
    batch = example if isinstance(example, jax.Array) else checks.numbers("example", example, rule)
    if not batch.size or not batch.ndim:
        raise ValueError(f"`example` must hold {rule}, got shape {batch.shape}.")
    return jnp.asarray(batch[:1])
