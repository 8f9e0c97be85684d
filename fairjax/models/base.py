"""Models: what every agent trains, a pair of pure functions.

init(key) -> params            apply(params, x, key=None) -> logits [B, C]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from fairjax.data import Dataset
from fairjax.types import Array, Params


class Model(NamedTuple):
    """A network: `init(key) -> params` and `apply(params, x, key=None) -> logits`.

    `x` is a batch `[B, ...]` of examples as the data set stores them, logits are
    `[B, C]`. A key given to `apply` means training: dropout is on. `head` names
    the entry of `params` that is the output layer, for those who look at it.

    Examples:
      >>> def init(key):
      ...     return {"kernel": jnp.zeros((4, 3))}
      >>> def apply(params, x, key=None):
      ...     return x @ params["kernel"]
      >>> model = Model(init=init, apply=apply, head="kernel")
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
      (2, 3)
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    head: str | None = None


class NeedsExample(NamedTuple):
    """An `init` whose shapes follow from the data: `initial_params` gives it an example."""

    init_from: Callable[[Array, Array], Params]

    def __call__(self, key: Array) -> Params:
        """Says what is missing."""
        raise ValueError(
            "This model's parameters follow from the data it sees: give `from_flax` an "
            "`example`, a data set or a batch [B, ...], to call `init` yourself."
        )


def initial_params(model: Model, key: Array, data: Dataset) -> Params:
    """Returns a model's first parameters, checked against the data it is to be trained on.

    Raises:
      ValueError: the model does not take the examples, or its logits are not `[B, C]`.
    """
    x = data.x[:1]
    try:
        if isinstance(model.init, NeedsExample):
            params = model.init.init_from(x, key)
        else:
            params = model.init(key)
        logits = jax.eval_shape(model.apply, params, x)
    except (TypeError, FlaxError) as error:
        raise ValueError(
            f"The model does not take the data set's examples of shape {x.shape[1:]}: {error}"
        ) from error
    wanted = (1, data.num_classes)
    if getattr(logits, "shape", None) != wanted:
        raise ValueError(
            f"`model.apply` must return logits of shape {wanted} for one example of shape "
            f"{x.shape[1:]}, got {getattr(logits, 'shape', type(logits).__name__)}."
        )
    return params


def computing_in(model: Model, dtype: Any) -> Model:
    """Returns a model with the same parameters that computes in another dtype.

    Parameters and numbers in `x` are converted on the way in, logits back on the way out, so
    gradients, losses and updates keep the parameters' dtype.

    Args:
      model: any model.
      dtype: such as `jnp.bfloat16`, which accelerators multiply several times faster.

    Examples:
      >>> from flax import linen as nn
      >>> import fairjax as fj
      >>> model = fj.models.from_flax(nn.Dense(2), jnp.ones((1, 4)))
      >>> model = computing_in(model, jnp.bfloat16)
      >>> params = model.init(jax.random.key(0))
      >>> print(params["kernel"].dtype, model.apply(params, jnp.ones((1, 4))).dtype)
      float32 float32
    """
    if jnp.dtype(dtype) == jnp.float32:
        return model

    def converted(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            tree,
        )

    def apply(params: Params, x: Array, key: Array | None = None) -> Array:
        return model.apply(converted(params), converted(jnp.asarray(x)), key).astype(jnp.float32)

    return Model(model.init, apply, model.head)
