"""Gram matrices: weighted uploads become inner products, and those become utilities.

    weighted upload  a_i  = r_i u_i          aggregate  u_N = sum_i a_i
    utility          nu(S) = cos(u_S, u_N),  u_S = sum of a_i over the coalition S

With G_ij = <a_i, a_j>, both <u_S, u_N> and |u_S|^2 are sums of entries of G.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import arithmetic, inputs, lowrank, trees
from fairjax.contributions import coalitions
from fairjax.types import Array, Params, PerAgent, PerCoalition, Scalar, Stacked

MAX_EXACT_AGENTS = 25


class Products(NamedTuple):
    """Inner products of weighted uploads a_i = w_i x_i.

    They share a unit in which squares of lengths do not overflow, and round to 0 only where they
    are too small to change a result; see `_scale_to_common_unit`. Without the Gram matrix they
    cost O(N D).
    """

    weights: PerAgent  # [N] w_i
    lengths: PerAgent  # [N] |x_i|
    inner: PerAgent  # [N] <x_i, u_N>
    total: Scalar  # |u_N|^2, or 0 where it may be a rounding error
    gram: Array | None = None  # [N, N] <a_i, a_j>, computed on request
    rest: "Rest | None" = None  # computed on request

    @property
    def with_aggregate(self) -> PerAgent:
        """`[N]` <a_i, u_N>."""
        return self.weights * self.inner

    @property
    def squares(self) -> PerAgent:
        """`[N]` |a_i|^2."""
        return jnp.square(self.weights * self.lengths)


class Rest(NamedTuple):
    """The sum of all weighted uploads except the longest.

    To subtract the longest from the aggregate would leave rounding errors of its size.
    """

    longest: Scalar  # the agent i
    square: Scalar  # |u_N - a_i|^2
    inner: Scalar  # <a_i, u_N - a_i>


def checked(updates: Stacked, weights: PerAgent | None) -> tuple[Stacked, PerAgent]:
    """Returns updates as floating leaves `[N, ...]` and weights `[N]`, which default to ones.

    Raises:
      ValueError: shapes disagree, `updates` is one row or a list that can mean agents and
        layers, or known weights are negative or not finite.
    """
    updates = inputs.as_stacked("updates", updates)
    if isinstance(updates, jax.Array) and updates.ndim == 1:
        raise ValueError(
            f"`updates` must be an array [N, D] or a pytree of leaves [N, ...], got one row of "
            f"shape {updates.shape}. For a single agent pass `updates[None]`."
        )
    return updates, inputs.as_weights(weights, (trees.num_agents(updates),))


@functools.partial(jax.jit, static_argnames=("at_one_length", "with_gram", "with_rest"))
def products_of(
    updates: Stacked,
    weights: PerAgent,
    *,
    at_one_length: bool = False,
    with_gram: bool = False,
    with_rest: bool = False,
) -> Products:
    """Returns the inner products of weighted uploads: O(N D), or with the Gram matrix O(N^2 D).

    Args:
      updates: leaves `[N, ...]`, floating.
      weights: `[N]`; those that are negative or not finite count as 0.
      at_one_length: whether to rescale updates to one length; zero updates stay zero.
      with_gram: whether to compute the Gram matrix.
      with_rest: whether to compute the sum of all uploads except the longest.
    """

    def products(rows: Stacked, units: PerAgent, lengths: PerAgent) -> Products:
        given, of_few = weights.astype(units.dtype), with_gram or with_rest
        if at_one_length:
            present = (lengths > 0).astype(units.dtype)
            own = arithmetic.ratio(_scale_to_common_unit(given, present, present, of_few), lengths)
        else:
            own = _scale_to_common_unit(given, units, lengths, of_few)
        aggregate = trees.weighted_sum(own, rows)
        inner = trees.inner_products(rows, aggregate)
        rounding = 4 * jnp.finfo(inner.dtype).eps * (own * lengths).sum()
        if lowrank.holds_low_rank(rows):
            # Its entries are not computed, so what cancels leaves rounding errors of the squares.
            total, least = (own * inner).sum(), 4 * rounding * (own * lengths).sum()
        else:
            total, least = _square(aggregate), rounding**2
        total = jnp.where(total > least, total, 0)
        # Multiply by one factor at a time, since the product of both could overflow.
        gram = own[:, None] * (own[None] * trees.gram(rows)) if with_gram else None
        found = Products(own, lengths, inner, total, gram)
        return found._replace(rest=_sum_without_longest(found, rows)) if with_rest else found

    return trees.in_safe_units(products, updates)


def cosine_game(updates: Stacked, weights: PerAgent | None = None) -> PerCoalition:
    """Returns the utility of every coalition: the cosine of its update with that of all agents.

    `shapley` of it is `cosine_shapley`. Take it for `banzhaf`, for interactions, or for values of
    your own.

    Args:
      updates: leaves `[N, ...]`, with N at most 25.
      weights: `[N]` importance coefficients r, not negative; None: equal.

    Returns:
      `[2**N]` cosines, in the dtype of the updates (float32 at least); bit i of the index says
      whether agent i is in the coalition.

    Raises:
      ValueError: N is above 25, shapes disagree, or known weights are negative or not finite.

    References:
      Xu et al., NeurIPS 2021, definition of the CGSV.

    Examples:
      >>> print(cosine_game(jnp.array([[1.0, 0.0], [0.0, 1.0]])).round(3))
      [0.    0.707 0.707 1.   ]
    """
    updates, weights = checked(updates, weights)
    check_enumerable(trees.num_agents(updates))
    return _game(updates, weights)


def check_enumerable(num_agents: int) -> None:
    """Raises where there are too many agents to enumerate their coalitions."""
    if num_agents > MAX_EXACT_AGENTS:
        raise ValueError(
            f"`updates` must be of at most {MAX_EXACT_AGENTS} agents where all coalitions are "
            f"enumerated, got {num_agents}. "
            "Use `gram_cosine_shapley(key, updates).values` (unbiased, with standard errors) or "
            "`mean_field_cosine_shapley` (one pass over the updates)."
        )


@jax.jit
def coalition_cosines(products: Products, members: Array) -> Array:
    """Returns the utilities nu(S) of some coalitions, at O(N^2) each.

    Args:
      products: inner products with a Gram matrix, from `products_of`.
      members: `[B, N]` booleans, or zeros and ones: whether agent i is in the coalition.

    Returns:
      `[B]` cosines of the coalitions' updates with the aggregate.

    Raises:
      ValueError: `products` are without the Gram matrix.

    Examples:
      >>> updates = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
      >>> products = products_of(updates, jnp.ones(3), with_gram=True)
      >>> print(coalition_cosines(products, jnp.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])).round(3))
      [0.707 1.    0.   ]
    """
    gram: Any = products.gram
    if gram is None:
        raise ValueError("`products` must hold the Gram matrix: `products_of(with_gram=True)`.")
    members = members.astype(gram.dtype)
    squares = (arithmetic.dot(members, gram) * members).sum(1)
    squares = above_rounding(squares, arithmetic.dot(members, products.squares), len(gram))
    cosines = arithmetic.cosine_of(
        arithmetic.dot(members, products.with_aggregate), squares, products.total
    )
    return jnp.where(members.all(1), utility_of_all(products), cosines)


def all_cosines(products: Products) -> PerCoalition:
    """Returns `[2**N]` cosines of all coalitions' updates with the aggregate.

    Every coalition joins a coalition of the first half of the agents and one of the second
    half. A sum over its members is the sum of both parts' sums, and |u_S|^2 also adds twice
    the inner product between the parts.
    """
    gram: Any = products.gram
    num_agents = len(gram)
    low = num_agents // 2
    first = coalitions.members(low, gram.dtype)
    last = coalitions.members(num_agents - low, gram.dtype)

    def sums(values: PerAgent) -> Array:
        return jnp.add.outer(
            arithmetic.dot(last, values[low:]), arithmetic.dot(first, values[:low])
        )

    def within(members: Array, block: Array) -> Array:
        return (arithmetic.dot(members, block) * members).sum(1)

    between = arithmetic.dot(arithmetic.dot(last, gram[low:, :low]), first.T)
    squares = jnp.add.outer(within(last, gram[low:, low:]), within(first, gram[:low, :low]))
    squares = above_rounding(squares + 2 * between, sums(products.squares), num_agents)
    cosines = arithmetic.cosine_of(sums(products.with_aggregate), squares, products.total)
    return cosines.reshape(-1).at[-1].set(utility_of_all(products))


@jax.jit
def _game(updates: Stacked, weights: PerAgent) -> PerCoalition:
    return all_cosines(products_of(updates, weights, with_gram=True))


def above_rounding(squares: Array, scale: Array, num_agents: int) -> Array:
    """Returns squared lengths, and 0 where they may be rounding errors of sums of `scale`."""
    tolerance = 4 * num_agents * jnp.finfo(squares.dtype).eps
    return jnp.where(squares > tolerance * scale, squares, 0)


def utility_of_all(products: Products) -> Scalar:
    """Returns the utility of all agents: exactly 1, or 0 where the aggregate vanishes."""
    return jnp.where(products.total > 0, 1, 0).astype(products.total.dtype)


def _sum_without_longest(products: Products, rows: Stacked) -> Rest:
    """Returns `Rest`; this costs O(N D) only where the longest upload dwarfs the others."""
    squares, total = products.squares, products.total
    longest = jnp.argmax(squares)
    square, inner = squares[longest], products.with_aggregate[longest]

    def by_sums() -> tuple[Scalar, Scalar]:
        others = trees.weighted_sum(products.weights.at[longest].set(0), rows)
        with_others = products.weights[longest] * trees.inner_products(rows, others)[longest]
        return _square(others), with_others

    def by_differences() -> tuple[Scalar, Scalar]:
        return jnp.maximum(total - 2 * inner + square, 0), inner - square

    dwarfs = square > 4 * squares.at[longest].set(0).sum()
    return Rest(longest, *jax.lax.cond(dwarfs, by_sums, by_differences))


def _square(tree: Params) -> Scalar:
    if lowrank.holds_low_rank(tree):
        return trees.squared_norm(tree)
    return trees.sum_leaves(lambda leaf: jnp.square(leaf).sum(), tree)


def _scale_to_common_unit(
    weights: PerAgent, units: PerAgent, lengths: PerAgent, of_few: bool
) -> PerAgent:
    """Returns `[N]` weights of rows: w_i units_i, times a power of two that is the same for all.

    A weighted row has length w_i units_i lengths_i. The power of two makes the longest row so
    short that N such lengths have a sum with a finite square. Rows that vanish beside it do not
    matter in a sum over all agents, but they do in sums `of_few` agents. There, if the square of
    the shortest length would vanish, the widest gaps between lengths are narrowed. With up to
    four wide gaps this changes no digit of float32; with five gaps, six digits remain. A row
    that is so much shorter than another is lost in their sum, but alone it has a direction.
    """
    limits = jnp.finfo(weights.dtype)
    top, bottom = limits.maxexp // 2 - 20, limits.minexp // 2 + 8  # of lengths
    present = (weights > 0) & jnp.isfinite(weights) & (units > 0) & (lengths > 0)
    exponents: Any = sum(map(arithmetic.exponents_of, (weights, units, lengths)))
    longest = jnp.where(present, exponents, jnp.iinfo(exponents.dtype).min).max()
    below = jnp.where(present, longest - exponents, 0)
    if of_few:
        below = jax.lax.cond(
            below.max() <= top - bottom,
            lambda: below,
            lambda: _narrow_gaps(below, top - bottom),
        )
    shifts = top - below - exponents + arithmetic.exponents_of(units)
    return jnp.where(present, arithmetic.times_power_of_two(weights, shifts), 0)


def _narrow_gaps(values: PerAgent, room: int) -> PerAgent:
    """Returns whole numbers in the same order, with the widest gaps narrowed to fit `room`."""
    order = jnp.argsort(values)
    gaps = jnp.diff(values[order], prepend=0)
    narrow = jnp.sort(gaps)
    # The widest gaps get one common width: they share the room that narrower gaps leave.
    left = room - (jnp.cumsum(narrow) - narrow)
    width = (left // jnp.arange(len(gaps), 0, -1)).max(initial=1)
    return jnp.cumsum(jnp.minimum(gaps, width))[jnp.argsort(order)].astype(values.dtype)
