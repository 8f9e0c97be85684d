"""Models, which agents train: a pair of pure functions.

init(key) -> params            apply(params, x, key=None) -> outputs [B, ...]

A network with statistics, such as those of BatchNorm, has a third one, and `apply` takes them:

statistics(key) -> statistics
apply(params, x, None, statistics) -> outputs             evaluation uses them
apply(params, x, key, statistics) -> outputs, statistics  training computes the next ones
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from fairjax import checks
from fairjax.data import Dataset
from fairjax.rewards import Units
from fairjax.types import Array, Params

BROKEN = (TypeError, LookupError, AttributeError)  # errors of functions on unexpected shapes


class _Functions(NamedTuple):
    init: Callable[..., Params]
    apply: Callable[..., Any]
    head: str | None = None
    statistics: Callable[..., Any] | None = None
    units: Callable[[Params], Units] | None = None
    adapters: Any = None


class Model(_Functions):
    """A network: `init(key) -> params` and `apply(params, x, key=None) -> outputs`.

    `x` is a batch `[B, ...]` of examples as the data set stores them, outputs are logits
    `[B, C]` of classes, or what the task's loss takes. A key given to `apply` means training:
    dropout is on. `head` names the entry of `params` that is the output layer, for mechanisms
    that use it. Unless the network has statistics, and is in training, the outputs of an example
    must not depend on other examples. This is not checked; batches have any size, and padding.

    `statistics(key)` returns state besides parameters, such as the running means of BatchNorm.
    `apply` then takes it as its fourth argument, and in training returns outputs and the next
    statistics. Every agent keeps its own; they are never uploaded or judged.

    `units(params)` says which hidden units the network has, for mechanisms that pay sub-models; see
    `fairjax.models.chain`. `adapters` says what agents train by low-rank products; it
    comes from `fairjax.models.lora`.

    Raises:
      ValueError: `init`, `apply`, `statistics` or `units` is not a function, `apply` does not take
        the arguments above, or `head` is not a string.

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
        cls,
        init: Callable[..., Params],
        apply: Callable[..., Any],
        head: str | None = None,
        statistics: Callable[..., Any] | None = None,
        units: Callable[[Params], Units] | None = None,
        adapters: Any = None,
    ) -> "Model":
        """Returns a model made of these functions."""
        checks.function("init", init, "init(key) -> params")
        checks.function("apply", apply, "apply(params, x, key=None) -> outputs")
        given = ("params", "x", "key", "statistics")[: 3 if statistics is None else 4]
        checks.takes("apply", apply, given)
        checks.function("statistics", statistics, "statistics(key) -> statistics", optional=True)
        checks.function(
            "units", units, 'such as fairjax.models.chain(["hidden", "head"])', optional=True
        )
        if head is not None:
            checks.kind("head", head, str, "an entry of the parameters' dict")
        return super().__new__(cls, init, apply, head, statistics, units, adapters)


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
    """Returns a model's first parameters, checked against its training data; see `initial`."""
    return initial(model, key, data)[0]


def initial(model: Model, key: Array, data: Dataset) -> tuple[Params, Any]:
    """Returns a model's first parameters and statistics, checked against its training data.

    Statistics are None if there are none.

    Raises:
      ValueError: the model does not take the examples, its parameters are not floating
        numbers or lack its `head`, or its outputs are not floating numbers `[B, ...]`, logits
        `[B, C]` for C classes.
    """
    checks.kind("model", model, Model, "`fairjax.models.mlp(train)`")
    checks.kind("data", data, Dataset, '`fairjax.data.load("digits")[0]`')
    x = data.x[:1]
    try:
        make_params, make_statistics = (
            functools.partial(make.init_from, x) if isinstance(make, NeedsExample) else make
            for make in (model.init, model.statistics or _no_statistics)
        )
        params, statistics = make_params(key), None
        if jax.tree.leaves(jax.eval_shape(make_statistics, key)):
            statistics = jax.tree.map(jnp.asarray, make_statistics(key))
    except (*BROKEN, ValueError, FlaxError) as error:
        raise ValueError(
            f"`model.init` does not make parameters for the data set's examples of shape "
            f"{x.shape[1:]}: {type(error).__name__}: {error!s:.300}"
        ) from error
    params = _check_params(params, model.head)
    try:
        logits = jax.eval_shape(evaluator(model), params, x, statistics)
    except (*BROKEN, ValueError, FlaxError) as error:
        raise ValueError(
            f"The model does not take the data set's examples of shape {x.shape[1:]}: "
            f"{type(error).__name__}: {error!s:.300}"
        ) from error
    dtype = getattr(logits, "dtype", jnp.dtype(bool))
    wanted = getattr(logits, "shape", ())  # without classes, the task's loss decides
    if data.num_classes is not None or wanted[:1] != (1,):
        wanted = (1, data.num_outputs)
    if getattr(logits, "shape", None) != wanted or not jnp.issubdtype(dtype, jnp.floating):
        array, kind = hasattr(logits, "shape"), "outputs" if data.num_classes is None else "logits"
        found = f"{dtype}{[*logits.shape]}" if array else type(logits).__name__
        raise ValueError(
            f"`model.apply` must return floating {kind} of shape {wanted} for one example of "
            f"shape {x.shape[1:]}, got {found:.100}."
        )
    return params, statistics


def evaluator(model: Model) -> Callable[[Params, Array, Any], Array]:
    """Returns a function of parameters, `x [B, ...]` and statistics that returns outputs."""
    return lambda params, x, statistics: (
        model.apply(params, x) if statistics is None else model.apply(params, x, None, statistics)
    )


def _no_statistics(key: Array) -> None:
    del key


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

    def apply(params: Params, x: Array, key: Array | None = None, statistics: Any = None) -> Any:
        given = convert(params), convert(jnp.asarray(x)), key
        own = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        if statistics is None:
            return model.apply(*given).astype(own)
        answer = model.apply(*given, statistics)  # statistics keep their dtype
        if key is None:
            return answer.astype(own)
        outputs, following = answer
        return outputs.astype(own), jax.tree.map(
            lambda new, old: new.astype(old.dtype), following, statistics
        )

    return model._replace(apply=apply)
