"""Adapters: low-rank changes of a frozen network, which agents train in place of its matrices.

    kernel  [m, n]  ->  kernel + held_i + s_i B_i A_i        B_i [m, r_i], A_i [r_i, n]

`held_i` is what agent i was paid so far, on top of one frozen copy. Every round begins with fresh
factors: B random, A zero. Flax stores kernels as `[inputs, outputs]`, so that B is the transposed
of what the paper calls A.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fairjax import checks, trees
from fairjax.lowrank import LowRank, is_low_rank
from fairjax.models.base import Model, NeedsExample
from fairjax.types import Array, Key, Params, Scalar

ATTENTION = r"(query|value)/kernel"


class Adapters(NamedTuple):
    """Which parameters of an adapted model agents train through adapters.

    Attributes:
      rank: the rank of agents that were given none of their own.
      alpha: a product is scaled by alpha / r_i; None: by 2.
      targets: the paths of the adapted matrices in the model's parameters.
      network: how many parameters the whole network has, frozen ones included.
    """

    rank: int
    alpha: float | None
    targets: tuple[str, ...]
    network: int

    def scale(self, rank: Scalar) -> Any:
        """Returns the factor of an agent's product."""
        return 2.0 if self.alpha is None else self.alpha / rank

    def draw(self, key: Key, params: Params, width: int, rank: Scalar) -> Params:
        """Returns one agent's first factors in place of matrices, and its other parameters.

        Columns of B from `rank` on are zero. They stay zero, since the gradient of a row of A is
        zero if the column of B is, and the reverse.

        Args:
          key: PRNG key.
          params: the agent's parameters.
          width: the number of columns of B.
          rank: the agent's rank. May be traced.
        """
        own = jnp.arange(width) < rank

        def of_leaf(path: Any, leaf: Array) -> Any:
            if _name(path) not in self.targets:
                return leaf
            m, n = leaf.shape
            bound = m**-0.5  # as in PEFT, Kaiming's uniform numbers with a = sqrt(5)
            own_key = jax.random.fold_in(key, self.targets.index(_name(path)))
            b = jax.random.uniform(own_key, (m, width), leaf.dtype, -bound, bound)
            return LowRank(jnp.where(own, b, 0), jnp.zeros((width, n), leaf.dtype))

        return jax.tree_util.tree_map_with_path(of_leaf, params)


def with_factors(factors: Params, params: Params) -> Params:
    """Returns parameters with the `LowRank` nodes of one tree, and the other leaves of another."""
    return trees.map_leaves(lambda one, own: one if is_low_rank(one) else own, factors, params)


def joined(held: Params, trained: Params, scale: Scalar) -> Params:
    """Returns parameters to compute with: held ones plus scaled products, others as trained."""

    def join(one: Any, before: Array) -> Array:
        return before + (scale * one.dense()).astype(before.dtype) if is_low_rank(one) else one

    return trees.map_leaves(join, trained, held)


def changes(held: Params, trained: Params, scale: Scalar) -> Params:
    """Returns what training changed: scaled products as `LowRank`, differences of other leaves."""

    def change(one: Any, before: Array) -> Any:
        return LowRank(scale * one.b, one.a) if is_low_rank(one) else one - before

    return trees.map_leaves(change, trained, held)


def lora(
    model: Model,
    params: Params,
    rank: int = 8,
    alpha: float | None = None,
    targets: str | None = None,
) -> Model:
    """Returns a model of which agents train low-rank adapters, on top of frozen parameters.

    Its parameters are what an agent holds: for every target the change of the frozen matrix, zeros
    at first, and the output layer, if the model names one. All else stays frozen. Updates have
    `fairjax.LowRank` nodes for targets. An array of more than two axes is adapted as the matrix
    with the fewest rows and columns, such as `[embedding, heads * size]`.

    Adapters have no dropout of their own.

    Args:
      model: any model.
      params: its parameters, pre-trained.
      rank: the rank r of the adapters; `fairjax.federation(ranks=...)` gives agents their own.
      alpha: products are scaled by alpha / r_i; None: alpha = 2 r_i.
      targets: a regular expression that is searched in the paths of parameters, such as
        r"(query|value)/kernel" in "encoder/layer_0/query/kernel"; arrays with less than two axes
        are left out. None: kernels of queries and values if there are any, else all kernels but
        those of the output layer.

    Raises:
      ValueError: an argument is of the wrong kind or out of range, `params` are not the model's, or
        `targets` match no array of two axes or more.

    References:
      Hu et al., LoRA, ICLR 2022; Wang et al., FLoRA: federated fine-tuning large language models
      with heterogeneous low-rank adaptations, NeurIPS 2024.

    Examples:
      >>> import fairjax as fj
      >>> train, _ = fj.data.load("digits")
      >>> model = fj.models.mlp(train)
      >>> adapted = lora(model, model.init(jax.random.key(0)), rank=4)
      >>> jax.tree.map(jnp.shape, adapted.init(jax.random.key(0)))["Dense_0"]
      {'kernel': (64, 64)}
    """
    checks.kind("model", model, Model, "`fairjax.models.mlp(train)`")
    checks.count("rank", rank)
    if alpha is not None:
        checks.above("alpha", alpha, 0)
    if model.adapters is not None:
        raise ValueError("`model` must not have adapters already, got one that `lora` returned.")
    leaves = _name_leaves(params)
    _check_alike(model, params)
    chosen = _choose(leaves, model.head, targets)
    heads = [name for name in leaves if _is_of(name, model.head) and name not in chosen]
    shapes = {name: _as_matrix(leaves[name].shape) for name in chosen}

    def init(key: Key) -> Params:
        del key
        held = {name: jnp.zeros(shapes[name], leaves[name].dtype) for name in chosen}
        whole = {**held, **{name: leaves[name] for name in heads}}
        return traverse_util.unflatten_dict(whole, sep="/")

    def apply(held: Params, x: Array, key: Key | None = None, *statistics: Any) -> Any:
        own = _name_leaves(held)

        def whole(path: Any, leaf: Array) -> Array:
            name = _name(path)
            if name in shapes:
                return leaf + own[name].reshape(leaf.shape)
            return own.get(name, leaf)

        return model.apply(jax.tree_util.tree_map_with_path(whole, params), x, key, *statistics)

    apply.__qualname__ = getattr(model.apply, "__qualname__", "lora")
    head = model.head if heads or any(_is_of(name, model.head) for name in chosen) else None
    adapters = Adapters(rank, alpha, tuple(chosen), trees.num_parameters(params))
    return Model(init, apply, head, model.statistics, None, adapters)


def _check_alike(model: Model, params: Params) -> None:
    """Raises if parameters have other shapes than those that the model draws."""
    if isinstance(model.init, NeedsExample):  # the data will tell
        return
    drawn = jax.eval_shape(model.init, jax.random.key(0))
    wanted, found = jax.tree.map(jnp.shape, drawn), jax.tree.map(np.shape, params)
    if wanted != found:
        raise ValueError(
            f"`params` must have the model's shapes, {wanted!r:.200}, got {found!r:.200}."
        )


def _choose(leaves: Mapping[str, Array], head: str | None, targets: str | None) -> list[str]:
    """Returns the paths of the matrices to adapt, or raises."""
    matrices = [name for name, leaf in leaves.items() if np.ndim(leaf) > 1]
    if targets is None:
        chosen = [name for name in matrices if re.search(ATTENTION, name)]
        chosen = chosen or [name for name in matrices if not _is_of(name, head)]
    else:
        checks.kind("targets", targets, str, 'a regular expression such as r"query/kernel"')
        try:
            chosen = [name for name in matrices if re.search(targets, name)]
        except re.error as error:
            raise ValueError(
                f"`targets` must be a regular expression, got {targets!r}: {error}."
            ) from error
    if not chosen and targets is None:
        raise ValueError(
            "Adapters need a model with a matrix besides its output layer, which is trained whole, "
            f"got only {', '.join(matrices) or 'none'}."
        )
    if not chosen:
        raise ValueError(
            f"`targets` must match the path of an array with two axes or more, got {targets!r}. "
            f"Paths: {', '.join(matrices)[:300] or 'none'}."
        )
    return chosen


def _name_leaves(params: Params) -> dict[str, Any]:
    """Returns the leaves of parameters by path, such as "encoder/layer_0/query/kernel"."""
    found = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, leaf in found.items():
        if not jnp.issubdtype(getattr(leaf, "dtype", np.dtype(object)), jnp.floating):
            raise ValueError(
                f"`params` must hold arrays of floating numbers, got {checks.shown(leaf)} in "
                f"{name!r}."
            )
    return found


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_of(name: str, head: str | None) -> bool:
    """Says whether a path leads into the entry of the parameters that is the output layer."""
    return head is not None and name.split("/")[0] == head


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the shape `[m, n]` of an array as a matrix, split where m + n is least.

    Examples:
      >>> _as_matrix((384, 12, 32)), _as_matrix((3, 3, 64, 128))
      ((384, 384), (576, 128))
    """
    splits = [(int(np.prod(shape[:k])), int(np.prod(shape[k:]))) for k in range(1, len(shape))]
    return min(reversed(splits), key=sum)
