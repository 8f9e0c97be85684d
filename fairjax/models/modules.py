"""Modules: Flax's, Linen or NNX, as Models."""

from typing import Any

from flax import linen as nn

from fairjax.data import Dataset
from fairjax.models.base import Model
from fairjax.models.linen import from_linen
from fairjax.types import Array


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
      >>> import jax, numpy as np
      >>> from flax import nnx
      >>> model = from_flax(nn.Dense(3), example=np.ones((1, 4)))
      >>> jax.tree.map(np.shape, model.init(jax.random.key(0)))
      {'bias': (3,), 'kernel': (4, 3)}
      >>> model = from_flax(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
      >>> jax.tree.map(np.shape, model.init(jax.random.key(0)))
      {'bias': (3,), 'kernel': (4, 3)}
    """
    if isinstance(module, nn.Module):
        return from_linen(module, example, head)
    from flax.nnx import Module

    from fairjax.models import nnx

    made = isinstance(module, Module)
    return nnx.from_nnx(module, head) if made else nnx.from_function(module, head)
