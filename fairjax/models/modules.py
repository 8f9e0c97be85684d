"""Modules: Flax modules, Linen or NNX, as Models."""

import inspect
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from fairjax import checks
from fairjax.data import Dataset
from fairjax.models.base import BROKEN, Model
from fairjax.models.linen import from_linen
from fairjax.rewards import Units
from fairjax.types import Array, Params


def from_flax(
    module: Any,
    example: Dataset | Array | None = None,
    head: str | None = None,
    units: Callable[[Params], Units] | None = None,
) -> Model:
    """Returns a `Model` of a Flax module, Linen or NNX.

    A key given to `apply` turns dropout on and determines all random streams of the module. If its
    `__call__` takes `train`, `training`, `is_training`, `deterministic` or `use_running_average`,
    `apply` sets it. An NNX module is also set to `train()` or `eval()`, and gets the `rngs` that
    its `__call__` takes.

    Args:
      module: maps `x [B, ...]` to logits `[B, C]`. For NNX, pass a function of `rngs`, such as
        `lambda rngs: Net(10, rngs=rngs)` or the class itself, so that the key can draw the
        parameters; an NNX module has its own first parameters, whatever the key.
      example: a data set or a batch `[B, ...]`, which gives the shapes of a Linen module's
        parameters; None: the federation uses the data of its agents.
      head: the name of the output layer in the parameters, for mechanisms that use it.
      units: which hidden units the network has, for mechanisms that pay sub-models, such as
        `fairjax.models.chain(["Dense_0", "head"])`.

    Returns:
      A `Model`. Its parameters are nested dicts of arrays, named as the module names them.
      Other collections of a Linen module, and other variables of an NNX module, such as those of
      BatchNorm, are statistics: every agent keeps its own. Arrays of an NNX module that are not
      variables are constants.

    Raises:
      ValueError: `module` is not a Flax module or a function that makes one, or `example` is not
        a data set or a batch.

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
        made = from_linen(module, example, head)
    else:
        from flax.nnx import Module

        from fairjax.models import nnx

        is_module = isinstance(module, Module)
        made = nnx.from_nnx(module, head) if is_module else nnx.from_function(module, head)
    return made._replace(units=units)


def as_model(given: Any, data: Dataset) -> Model:
    """Returns a `Model` of a model, of a Flax module, or of what a function of the data makes.

    Args:
      given: a `Model`; a Flax module; a function of `rngs` that makes an NNX module, or its class;
        or a function of the training data that returns a model or a module.
      data: the training data.

    Raises:
      ValueError: `given` is none of these.

    Examples:
      >>> import fairjax as fj
      >>> train, _ = fj.data.load("blobs")
      >>> model = as_model(lambda train: nn.Dense(train.num_classes), train)
      >>> print(model.head)
      None
    """
    from flax.nnx import Module

    if inspect.isclass(given) or _takes_rngs(given):
        return from_flax(given, data)
    flax = (nn.Module, Module)
    made = given
    if looks_at_data(given):
        checks.function("model", given, "of the training data, that makes a Model or a Flax module")
        try:
            made = given(data)
        except BROKEN as error:
            raise ValueError(
                f"`model` must be a function of the training data, got {checks.shown(given)}, "
                f"which fails: {type(error).__name__}: {error!s:.300}"
            ) from error
    if not isinstance(made, (Model, *flax)):
        raise ValueError(
            "`model` must be a Model, a Flax module, or a function of the training data that makes "
            f"one, got {checks.shown(given)}, which makes {checks.shown(made)}."
        )
    return made if isinstance(made, Model) else from_flax(made, data)


def looks_at_data(given: Any) -> bool:
    """Says whether what a user gives as a model is a function of the training data."""
    from flax.nnx import Module

    made = inspect.isclass(given) or isinstance(given, (Model, nn.Module, Module))
    return not made and not _takes_rngs(given)


def _takes_rngs(function: Any) -> bool:
    """Says whether a function makes an NNX module from `rngs`."""
    try:
        return list(inspect.signature(function).parameters) == ["rngs"]
    except (TypeError, ValueError):  # no function, or one without a signature
        return False
