"""Models, which agents train: a pair of pure functions.

init(key) -> params            apply(params, x, key=None) -> logits [B, C]
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from fairjax import checks
from fairjax.data import Dataset
from fairjax.types import Array, Params

BROKEN = (TypeError, LookupError, AttributeError)  # errors of functions on unexpected shapes


class _Functions(NamedTuple):
    init: Callable[..., Params]
    apply: Callable[..., Array]
    head: str | None = None


class Model(_Functions):
    """A network: `init(key) -> params` and `apply(params, x, key=None) -> logits`.

    `x` is a batch `[B, ...]` of examples as the data set stores them, logits are
    `[B, C]`. A key given to `apply` means training: dropout is on. `head` names
    the entry of `params` that is the output layer, for mechanisms that use it.

    Raises:
      ValueError: `init` or `apply` is not a function, or `head` is not a string.

    Examples:
      >>> def init(key):
      ...     return {"kernel": jnp.zeros((4, 3))}
      >>> def apply(params, x, key=None):
      ...     return x @ params["kernel"]
      >>> model = Model(init=init, apply=apply, head="kernel")
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
      (2, 3)
    """

    __slots__ = ()

    def __new__(
        cls, init: Callable[..., Params], apply: Callable[..., Array], head: str | None = None
    ) -> "Model":
        """Returns a model made of these functions."""
        checks.function("init", init, "init(key) -> params")
        checks.function("apply", apply, "apply(params, x, key=None) -> logits")
        if head is not None:
            checks.kind("head", head, str, "an entry of the parameters' dict")
        return super().__new__(cls, init, apply, head)


class NeedsExample(NamedTuple):
    """An `init` that needs an example to know its shapes; `initial_params` provides one."""

    init_from: Callable[[Array, Array], Params]

    def __call__(self, key: Array) -> Params:
        """Raises, since the example is missing."""
        raise ValueError(
            "The shapes of this model's parameters depend on its data. To call `init` yourself, "
            "give `from_flax` an `example`, a data set or a batch [B, ...]."
        )


def initial_params(model: Model, key: Array, data: Dataset) -> Params:
    """Returns a model's first parameters, checked against its training data.

    Raises:
      ValueError: the model does not take the examples, its parameters are not floating
        numbers or lack its `head`, or its logits are not floating numbers `[B, C]`.
    """
    checks.kind("model", model, Model, "`fairjax.models.mlp(train)`")
    checks.kind("data", data, Dataset, '`fairjax.data.load("digits")[0]`')
    x = data.x[:1]
    try:
        if isinstance(model.init, NeedsExample):
            params = model.init.init_from(x, key)
        else:
            params = model.init(key)
    except (*BROKEN, FlaxError) as error:
        raise ValueError(
            f"`model.init` does not make parameters for the data set's examples of shape "
            f"{x.shape[1:]}: {type(error).__name__}: {error!s:.300}"
        ) from error
    params = _check_params(params, model.head)
    try:
        logits = jax.eval_shape(model.apply, params, x)
    except (*BROKEN, ValueError, FlaxError) as error:
        raise ValueError(
            f"The model does not take the data set's examples of shape {x.shape[1:]}: "
            f"{type(error).__name__}: {error!s:.300}"
        ) from error
    wanted = (1, data.num_classes)
    dtype = getattr(logits, "dtype", jnp.dtype(bool))
    if getattr(logits, "shape", None) != wanted or not jnp.issubdtype(dtype, jnp.floating):
        array = hasattr(logits, "shape")
        found = f"{dtype}{[*logits.shape]}" if array else type(logits).__name__
        raise ValueError(
            f"`model.apply` must return floating logits of shape {wanted} for one example of shape "
            f"{x.shape[1:]}, got {found:.100}."
        )
    return params


def _check_params(params: Any, head: str | None) -> Params:
    """Returns parameters as arrays, or raises if they cannot be trained."""
    leaves, structure = jax.tree.flatten(params)
    kinds = [getattr(leaf, "dtype", type(leaf)) for leaf in leaves]
    if not leaves or not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ValueError(
            "`model.init` must return a pytree of arrays of floating numbers, "
            f"got leaves of {[getattr(kind, '__name__', str(kind)) for kind in kinds]!r:.100}."
        )
    if head is not None and not (isinstance(params, Mapping) and head in params):
        known = ", ".join(map(str, params)) if isinstance(params, Mapping) else "no names"
        raise ValueError(
            f"`head` must name an entry of the parameters, got head={head!r}. Known: {known}."
        )
    return structure.unflatten([jnp.asarray(leaf) for leaf in leaves])


def computing_in(model: Model, dtype: Any) -> Model:
    """Returns a model with the same parameters that computes in another dtype.

    Parameters and floating numbers in `x` are converted before the computation, and logits
    are converted back, so gradients, losses and updates keep the parameters' dtype.

    Args:
      model: any model.
      dtype: a dtype such as `jnp.bfloat16`, which accelerators multiply several times faster.

    Raises:
      ValueError: `model` is not a `Model`, or `dtype` is not a floating dtype.

    Examples:
      >>> from flax import linen as nn
      >>> import fairjax as fj
      >>> model = fj.models.from_flax(nn.Dense(2), jnp.ones((1, 4)))
      >>> model = computing_in(model, jnp.bfloat16)
      >>> params = model.init(jax.random.key(0))
      >>> print(params["kernel"].dtype, model.apply(params, jnp.ones((1, 4))).dtype)
      float32 float32
    """
    checks.kind("model", model, Model, "`fairjax.models.mlp(train)`")
    name = getattr(dtype, "__name__", str(dtype))
    checks.choice("dtype", name, ("bfloat16", "float16", "float32", "float64"))
    if name == "float32":
        return model

    def convert(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            tree,
        )

    def apply(params: Params, x: Array, key: Array | None = None) -> Array:
        return model.apply(convert(params), convert(jnp.asarray(x)), key).astype(jnp.float32)

    return Model(model.init, apply, model.head)
