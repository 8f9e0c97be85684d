"""Units: which hidden units a network has, for rewards that are sub-models."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fairjax import checks
from fairjax.rewards import ALWAYS, Units
from fairjax.types import Params


def chain(layers: Sequence[str | Sequence[str]]) -> Callable[[Params], Units]:
    """Returns the `units` of a `Model` whose layers feed each other in turn.

    A hidden unit is a column of a dense layer, or a filter of a convolution, that is not of the
    last layer. Parameters of other layers, such as embeddings, belong to all sub-models.

    Args:
      layers: names of layers in the parameters, from the first to the output layer; several names
        in a tuple are branches whose outputs are concatenated in this order. A layer has a
        `kernel [..., inputs, outputs]`, and may have a `bias [outputs]`. An image that is
        flattened between two layers has its channels last. A slash leads into nested
        parameters, as in "block/Dense_0".

    Raises:
      ValueError: `layers` are not at least two names or tuples of names. The function that is
        returned raises if the parameters have no such layers, or these do not feed each other.

    Examples:
      >>> import fairjax as fj
      >>> train, _ = fj.data.load("digits")
      >>> model = fj.models.mlp(train, hidden=(8, 4))
      >>> units = chain(["Dense_0", "Dense_1", "head"])(model.init(jax.random.key(0)))
      >>> units.num, units.makes["Dense_1"]["bias"].tolist()
      (12, [8, 9, 10, 11])
    """
    listed = layers if checks.is_listing(layers) else ()
    stages: list[tuple[Any, ...]] = [
        tuple(one) if checks.is_listing(one) else (one,) for one in listed
    ]
    names = [name for stage in stages for name in stage]
    all_named = all(stages) and all(isinstance(name, str) for name in names)
    if len(stages) < 2 or not all_named or len(set(names)) < len(names):
        raise ValueError(
            '`layers` must be different names of at least two layers, such as ("hidden", "head"), '
            f"got {layers!r:.100}."
        )
    return functools.partial(_chain, tuple(stages))


def _chain(stages: tuple[tuple[str, ...], ...], params: Params) -> Units:
    always = np.full(1, ALWAYS, np.int32)
    makes, takes = (
        jax.tree.map(lambda leaf: always.reshape((1,) * leaf.ndim), params) for _ in range(2)
    )
    before, num = np.empty(0, np.int32), 0  # units that feed the stage; units so far
    for stage in stages:
        feeding, hidden = before, stage is not stages[-1]
        made = []
        for name in stage:
            layer, makes_of, takes_of = (_find(tree, name) for tree in (params, makes, takes))
            *_, inputs, outputs = layer["kernel"].shape
            own = np.arange(num, num + outputs, dtype=np.int32) if hidden else always
            if hidden:
                num += outputs
                made.append(own)
            ones = (1,) * (layer["kernel"].ndim - 2)
            makes_of["kernel"] = own.reshape(*ones, 1, -1)
            if "bias" in layer:
                makes_of["bias"] = own
            if len(feeding):
                if inputs % len(feeding):
                    raise ValueError(
                        f"`layers` must feed each other: {name!r} has {inputs} inputs, which is no "
                        f"multiple of the {len(feeding)} units before it."
                    )
                # In a flattened image [height, width, channels], every channel is one unit.
                takes_of["kernel"] = np.resize(feeding, inputs).reshape(*ones, -1, 1)
        before = np.concatenate(made) if made else before
    return Units(num, makes, takes)


def _find(params: Any, name: str) -> Any:
    """Returns a layer of the parameters, or of a tree like them."""
    found = params
    for part in name.split("/"):
        if not isinstance(found, Mapping) or part not in found:
            known = ", ".join(map(str, found)) if isinstance(found, Mapping) else "none"
            raise ValueError(f"`layers` must be in the parameters, got {name!r}. Known: {known}.")
        found = found[part]
    kernel = found.get("kernel") if isinstance(found, Mapping) else None
    if kernel is None or np.ndim(kernel) < 2:
        raise ValueError(f"`layers` must have a `kernel [..., inputs, outputs]`, got {name!r}.")
    return found
