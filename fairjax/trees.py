"""Algebra on stacked pytrees: agents are the leading axis of every leaf.

    gram          G_ij = <u_i, u_j>
    weighted sum  u_N  = sum_i r_i u_i

Every sum over agents or parameters is a matrix product at full precision, some in blocks of
columns (`fairjax.blocks`): on a CPU it is many times faster than a reduction over the leading
axis, and on an accelerator the default precision would round the inputs.

A `LowRank` node is a leaf whose entries are never computed; see `fairjax.lowrank`. The same holds
for an `InUnits` node, which stands for rows in other units.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairjax import blocks, lowrank, rowwise
from fairjax.arithmetic import power_of_two, ratio, root
from fairjax.blocks import InUnits
from fairjax.lowrank import LowRank, is_low_rank, orthonormal
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked


def _is_leaf(node: Any) -> bool:
    return isinstance(node, LowRank | InUnits)


map_leaves = functools.partial(jax.tree.map, is_leaf=_is_leaf)
leaves = functools.partial(jax.tree.leaves, is_leaf=_is_leaf)


def num_agents(stacked: Stacked) -> int:
    """Returns N, the size of the leading axis."""
    return jax.tree.leaves(stacked)[0].shape[0]


def num_parameters(tree: Params) -> int:
    """Returns D, the number of entries of a pytree without the agent axis."""
    return sum(leaf.size for leaf in leaves(tree))


def per_agent(values: PerAgent, leaf: Array) -> Array:
    """Returns `[N]` values shaped to broadcast against a leaf `[N, ...]`."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - 1))


def squared_norms(stacked: Stacked) -> PerAgent:
    """Returns `[N]` squared lengths."""
    return _squares(_canonical(stacked))


def inner_products(stacked: Stacked, tree: Params) -> PerAgent:
    """Returns `[N]` inner products of every agent's row with one pytree."""

    def of_leaf(leaf: Any, one: Any) -> PerAgent:
        if is_low_rank(leaf):
            return lowrank.inner_products(leaf, one)
        return blocks.inner_products(leaf, one.dense() if is_low_rank(one) else one)

    return sum_leaves(of_leaf, stacked, tree)


def gram(stacked: Stacked) -> Array:
    """Returns the `[N, N]` inner products between agents."""

    def of_leaf(leaf: Any) -> Array:
        return lowrank.gram(leaf) if is_low_rank(leaf) else blocks.gram(leaf)

    return sum_leaves(of_leaf, stacked)


def weighted_sum(weights: Array, stacked: Stacked) -> Any:
    """Returns the sum over agents of weight times row, without the agent axis.

    Args:
      weights: `[N]`; or `[M, N]`, for M sums at once.
      stacked: leaves `[N, ...]`.
    """

    def of_leaf(leaf: Any) -> Any:
        if is_low_rank(leaf):
            return lowrank.weighted_sum(weights, leaf)
        total = blocks.weighted_sum(weights, leaf)
        return total.reshape(*weights.shape[:-1], *leaf.shape[1:])

    return map_leaves(of_leaf, stacked)


def scaled(factors: PerAgent, stacked: Stacked) -> Stacked:
    """Returns every agent's row times its factor; a row of factor 0 is zero even if broken."""

    def of_leaf(leaf: Any) -> Any:
        if is_low_rank(leaf):
            return lowrank.scaled(factors, leaf)
        leaf = leaf.dense() if isinstance(leaf, InUnits) else leaf
        own = (leaf * per_agent(factors, leaf)).astype(leaf.dtype)
        return jnp.where(per_agent(factors != 0, leaf), own, 0)

    return map_leaves(of_leaf, stacked)


def row(stacked: Any, agent: Any = 0) -> Any:
    """Returns one agent's row, without the agent axis; by default the first."""
    return jax.tree.map(lambda leaf: leaf[agent], stacked)


def unit(tree: Params) -> Params:
    """Returns a pytree rescaled to length 1; zeros if it is zero or broken."""
    return row(with_length(broadcast(1, tree), 1.0))


def squared_norm(tree: Params) -> Scalar:
    """Returns the squared length of a pytree without the agent axis."""
    return squared_norms(broadcast(1, tree))[0]


def where(which: Array, chosen: Any, other: Any) -> Any:
    """Returns `chosen` where `which` is true, else `other`; `which` is a boolean or `[N]`."""
    return jax.tree.map(lambda a, b: jnp.where(per_agent(which, a), a, b), chosen, other)


def zero_broken(stacked: Stacked) -> Stacked:
    """Returns the stacked tree with the rows that hold NaN or infinity set to zero."""
    return scaled(rowwise.finite_rows(stacked).astype(jnp.float32), stacked)


def row_units(stacked: Stacked) -> PerAgent:
    """Returns `[N]` powers of two, at most the row's largest magnitude and above half of it.

    They are 0 where a row is zero, infinite where it is broken, and the smallest normal number
    where all entries are subnormal.
    """

    def unit(leaf: Array) -> PerAgent:
        # Bits are ordered like magnitudes, NaN above infinity and subnormals above 0.
        largest = blocks.largest_bits(leaf)
        limits = jnp.finfo(leaf.dtype)
        exponents = (largest >> limits.nmant) - (limits.maxexp - 1)
        units = power_of_two(jnp.maximum(exponents, limits.minexp), leaf.dtype)
        units = jnp.where(exponents < limits.maxexp, units, jnp.inf)
        return jnp.where(largest > 0, units, 0)

    return functools.reduce(jnp.maximum, map(unit, jax.tree.leaves(stacked)))


def in_units(stacked: Stacked) -> tuple[Stacked, PerAgent]:
    """Returns rows over powers of two, and these powers `[N]`; large leaves as `InUnits`.

    The largest entry of a returned row is in [1, 2), or below 1 if the input's largest entry is
    subnormal. Sums of squares neither overflow nor vanish, whatever the scale of the input.
    A broken row is returned as zeros, with unit 0.
    """
    stacked = _canonical(stacked)
    # All of a product's length is in its second factor.
    units = row_units(map_leaves(lambda leaf: leaf.a if is_low_rank(leaf) else leaf, stacked))
    units = jnp.where(jnp.isfinite(units), units, 0)

    def divide(leaf: Any) -> Any:
        if is_low_rank(leaf):
            return LowRank(leaf.b, InUnits(leaf.a, units).dense())
        node = InUnits(leaf, units)
        return node.dense() if blocks.is_small(leaf.size) else node

    return map_leaves(divide, stacked), units


def unit_rows(stacked: Stacked) -> tuple[Stacked, PerAgent]:
    """Returns the same as `in_units`, with rows that are computed: N D more numbers."""
    rows, units = in_units(stacked)
    return map_leaves(lambda leaf: leaf.dense() if isinstance(leaf, InUnits) else leaf, rows), units


def in_safe_units(function: Callable[[Stacked, PerAgent, PerAgent], Any], stacked: Stacked) -> Any:
    """Returns `function(rows, units, norms)` of rows whose squares neither overflow nor vanish.

    Agent i's row is rows_i times units_i, and norms_i is the length of rows_i. Rows of ordinary
    length pass unchanged, with units of 1; otherwise all rows come from `in_units`.

    Args:
      function: takes rows, leaves `[N, ...]`, their units `[N]` and norms `[N]`.
      stacked: leaves `[N, ...]`.
    """
    stacked = _canonical(stacked)
    squares = _squares(stacked)
    limits = jnp.finfo(squares.dtype)
    least = limits.smallest_normal * num_parameters(stacked) / limits.eps  # below, squares vanish
    ordinary = (squares > least) & (squares < limits.max**0.6)

    def in_unit_one(stacked: Stacked, squares: PerAgent) -> Any:
        return function(stacked, jnp.ones_like(squares), root(squares))

    def in_own_units(stacked: Stacked, squares: PerAgent) -> Any:
        rows, units = in_units(stacked)
        return function(rows, units, root(_squares(rows)))

    return lax.cond(ordinary.all(), in_unit_one, in_own_units, stacked, squares)


def with_length(stacked: Stacked, length: float | Array) -> Stacked:
    """Returns every row rescaled to one length; zero and broken rows are zero.

    Args:
      stacked: leaves `[N, ...]`.
      length: the length that rows get, above 0. May be traced.
    """
    found = in_safe_units(lambda rows, units, norms: scaled(ratio(length, norms), rows), stacked)
    return _with_dtypes_of(stacked, found)


def at_most_length(stacked: Stacked, length: float | Array) -> Stacked:
    """Returns rows, with longer ones rescaled to a length; broken rows are zero.

    Args:
      stacked: leaves `[N, ...]`.
      length: the greatest length of a row, above 0. May be traced.
    """

    def cut(rows: Stacked, units: PerAgent, norms: PerAgent) -> Stacked:
        # Compare in units of the row, since norms * units could overflow.
        longer = norms > length / jnp.where(units > 0, units, 1)
        return scaled(jnp.where(longer, ratio(length, norms), units), rows)

    return _with_dtypes_of(stacked, in_safe_units(cut, stacked))


def _with_dtypes_of(stacked: Stacked, found: Stacked) -> Stacked:
    return jax.tree.map(lambda old, new: new.astype(old.dtype), stacked, found)


def sum_leaves(function: Any, *trees: Any) -> Any:
    """Returns the sum over leaves of `function(leaf, ...)`."""
    return functools.reduce(operator.add, jax.tree.leaves(map_leaves(function, *trees)))


@functools.partial(jax.jit, static_argnums=0, inline=True)  # one program for all leaves
def broadcast(num: int, tree: Params) -> Stacked:
    """Returns a stacked pytree with `num` copies of a pytree."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *jnp.shape(leaf))), tree)


def _canonical(stacked: Stacked) -> Stacked:
    """Returns the same rows, with factors of which the first has orthonormal columns.

    Beside float64 all leaves are float64, since sums in its range would overflow in another.
    """
    double = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(stacked))

    def of_leaf(leaf: Any) -> Any:
        leaf = jax.tree.map(lambda part: part.astype(jnp.float64), leaf) if double else leaf
        return orthonormal(leaf) if is_low_rank(leaf) else leaf

    return map_leaves(of_leaf, stacked)


def _squares(canonical: Stacked) -> PerAgent:
    """Returns `[N]` squared lengths of rows in the form of `_canonical`."""

    def of_leaf(leaf: Any) -> PerAgent:
        return (lowrank if is_low_rank(leaf) else blocks).squared_norms(leaf)

    return sum_leaves(of_leaf, canonical)
