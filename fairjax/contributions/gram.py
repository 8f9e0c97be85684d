"""Gram matrices: weighted uploads become inner products, and these utilities of coalitions.

    weighted upload  a_i  = r_i u_i          aggregate  u_N = sum_i a_i
    utility          nu(S) = cos(u_S, u_N),  u_S = sum of a_i over the coalition S

With G_ij = <a_i, a_j>, both <u_S, u_N> and |u_S|^2 are sums of entries of G.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, trees
from fairjax.contributions import coalitions
from fairjax.types import Array, PerAgent, PerCoalition, Scalar, Stacked


class Products(NamedTuple):
    """The inner products that O(N D) work gives, of weighted uploads a_i = w_i x_i."""

    weights: PerAgent  # [N] w_i
    lengths: PerAgent  # [N] |x_i|
    inner: PerAgent  # [N] <x_i, u_N>
    total: Scalar  # |u_N|^2, or 0 where rounding could have left it
    gram: Array | None = None  # [N, N] <a_i, a_j>, where asked for

    @property
    def with_aggregate(self) -> PerAgent:
        """`[N]` <a_i, u_N>."""
        return self.weights * self.inner

    @property
    def squares(self) -> PerAgent:
        """`[N]` |a_i|^2."""
        return jnp.square(self.weights * self.lengths)


def checked(updates: Stacked, weights: PerAgent | None) -> tuple[Stacked, PerAgent]:
    """Returns updates as floating leaves `[N, ...]` and weights `[N]`, by default ones.

    Raises:
      ValueError: shapes disagree, `updates` is one row, or known weights are negative or not
        finite.
    """
    updates = trees.as_stacked("updates", updates)
    if isinstance(updates, jax.Array) and updates.ndim == 1:
        raise ValueError(
            f"`updates` must be an array [N, D] or a pytree of leaves [N, ...], got one row of "
            f"shape {updates.shape}: of one agent it is `updates[None]`."
        )
    num_agents = trees.num_agents(updates)
    if weights is None:
        return updates, jnp.ones(num_agents)
    weights = jnp.asarray(weights)
    checks.shape("weights", weights, (num_agents,))
    checks.finite("weights", weights)
    if checks.is_known(weights) and (np.asarray(weights) < 0).any():
        raise ValueError(f"`weights` must not be negative, got weights={weights}.")
    return updates, weights


@functools.partial(jax.jit, static_argnames="with_gram")
def products_of(updates: Stacked, weights: PerAgent, *, with_gram: bool = False) -> Products:
    """Returns the inner products of weighted uploads: O(N D), or with the Gram matrix O(N^2 D).

    Args:
      updates: leaves `[N, ...]`, floating.
      weights: `[N]`, not negative.
      with_gram: is the Gram matrix asked for.
    """

    def products(rows: Stacked, units: PerAgent, lengths: PerAgent) -> Products:
        own = _in_largest(weights.astype(units.dtype)) * _in_largest(units)
        aggregate = trees.weighted_sum(own, rows)
        total = trees.sum_leaves(lambda leaf: jnp.square(leaf).sum(), aggregate)
        rounding = 4 * jnp.finfo(total.dtype).eps * (own * lengths).sum()
        total = jnp.where(total > rounding**2, total, 0)
        gram = own[:, None] * own * trees.gram(rows) if with_gram else None
        return Products(own, lengths, trees.inner_products(rows, aggregate), total, gram)

    return trees.in_safe_units(products, updates)


@jax.jit
def coalition_cosines(products: Products, members: Array) -> Array:
    """Returns the utilities nu(S) of some coalitions, at O(N^2) each.

    Args:
      products: with their Gram matrix, made by `products_of`.
      members: `[B, N]` booleans, or zeros and ones: is agent i in the coalition.

    Returns:
      `[B]` cosines of the coalitions' updates with the aggregate.

    Examples:
      >>> updates = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
      >>> products = products_of(updates, jnp.ones(3), with_gram=True)
      >>> print(coalition_cosines(products, np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])).round(3))
      [0.707 1.    0.   ]
    """
    gram: Any = products.gram
    members = members.astype(gram.dtype)
    squares = (trees.dot(members, gram) * members).sum(1)
    squares = above_rounding(squares, trees.dot(members, products.squares), len(gram))
    cosines = cosine_of(trees.dot(members, products.with_aggregate), squares, products.total)
    return jnp.where(members.all(1), everybody(products), cosines)


def all_cosines(products: Products) -> PerCoalition:
    """Returns `[2**N]` cosines of all coalitions' updates with the aggregate.

    A coalition is one of the first agents joined with one of the last. Sums over
    members split into a part of each; |u_S|^2 adds twice the product between them.
    """
    gram: Any = products.gram
    num_agents = len(gram)
    low = num_agents // 2
    first = coalitions.members(low, gram.dtype)
    last = coalitions.members(num_agents - low, gram.dtype)

    def sums(values: PerAgent) -> Array:
        return jnp.add.outer(trees.dot(last, values[low:]), trees.dot(first, values[:low]))

    def within(members: Array, block: Array) -> Array:
        return (trees.dot(members, block) * members).sum(1)

    between = trees.dot(trees.dot(last, gram[low:, :low]), first.T)
    squares = jnp.add.outer(within(last, gram[low:, low:]), within(first, gram[:low, :low]))
    squares = above_rounding(squares + 2 * between, sums(products.squares), num_agents)
    cosines = cosine_of(sums(products.with_aggregate), squares, products.total)
    return cosines.reshape(-1).at[-1].set(everybody(products))


def cosine_of(inner: Array, squares: Array, total: Scalar) -> Array:
    """Returns inner / sqrt(squares total) within [-1, 1], and 0 where a length is not positive."""
    lengths = jnp.sqrt(jnp.maximum(squares, 0)) * jnp.sqrt(total)
    return jnp.clip(jnp.where(lengths > 0, inner / jnp.where(lengths > 0, lengths, 1), 0), -1, 1)


def above_rounding(squares: Array, scale: Array, num_agents: int) -> Array:
    """Returns squared lengths, and 0 where they are what rounding leaves of sums of `scale`."""
    tolerance = 4 * num_agents * jnp.finfo(squares.dtype).eps
    return jnp.where(squares > tolerance * scale, squares, 0)


def everybody(products: Products) -> Scalar:
    """Returns the utility of all agents: exactly 1, or 0 where the aggregate vanishes."""
    return jnp.where(products.total > 0, 1, 0).astype(products.total.dtype)


def _in_largest(values: PerAgent) -> PerAgent:
    """Returns values in units of the largest."""
    return values / jnp.where(values.max() > 0, values.max(), 1)
