"""Low rank: matrices that are products of thin factors, and are never multiplied out.

    X_i = B_i A_i           B_i [m, r],  A_i [r, n]
    <X_i, X_j>              = sum of (B_i^T B_j) o (A_i A_j^T)
    sum_i w_i X_i           = [w_1 B_1 .. w_N B_N] [A_1; ..; A_N]

N stacked matrices have factors `[N, ..., m, r]` and `[N, ..., r, n]`. `trees` handles such nodes
of a pytree like leaves `[N, ..., m, n]`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax.arithmetic import dot, exponents_of, ratio, root, times_power_of_two
from fairjax.types import Array, PerAgent

BLOCK = 2**22  # numbers of an intermediate result that is computed in blocks


class LowRank(NamedTuple):
    """A matrix `b @ a` of low rank, or a stack of them; a pytree of its two factors.

    It stands in place of a leaf `[..., m, n]`. Functions of fairjax that take stacked updates work
    with the factors.

    Attributes:
      b: `[..., m, r]`.
      a: `[..., r, n]`.

    Examples:
      >>> updates = LowRank(b=jnp.ones((5, 30, 2)), a=jnp.ones((5, 2, 40)))  # of five agents
      >>> updates.shape, updates.rank, updates.dense().shape
      ((5, 30, 40), 2, (5, 30, 40))
    """

    b: Array
    a: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `[..., m, n]` of the product."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    @property
    def ndim(self) -> int:
        """The number of axes of the product."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of entries of the product."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the product."""
        return jnp.result_type(self.b, self.a)

    @property
    def rank(self) -> int:
        """The number of columns r of `b`: the largest rank that the product can have."""
        return self.b.shape[-1]

    def dense(self) -> Array:
        """Returns the product `[..., m, n]`."""
        return dot(self.b, self.a)


def is_low_rank(node: Any) -> bool:
    """Says whether a node of a pytree is a `LowRank`."""
    return isinstance(node, LowRank)


def dense(tree: Any) -> Any:
    """Returns a pytree with products in place of its `LowRank` nodes."""
    return jax.tree.map(
        lambda leaf: leaf.dense() if is_low_rank(leaf) else leaf, tree, is_leaf=is_low_rank
    )


def holds_low_rank(tree: Any) -> bool:
    """Says whether a pytree has a `LowRank` node."""
    return any(map(is_low_rank, jax.tree.leaves(tree, is_leaf=is_low_rank)))


def with_one_rank(trees: Sequence[Any]) -> list[Any]:
    """Returns pytrees whose `LowRank` nodes have one rank: zero columns and rows are added.

    Pytrees of different structures stay as they are.

    Examples:
      >>> one, two = (LowRank(jnp.ones((3, r)), jnp.ones((r, 4))) for r in (1, 2))
      >>> [node.rank for node in with_one_rank([one, two])]
      [2, 2]
    """
    if len({jax.tree.structure(tree, is_leaf=is_low_rank) for tree in trees}) != 1:
        return list(trees)

    def rank(*nodes: Any) -> int:
        own = [np.shape(node.b)[-1] for node in nodes if is_low_rank(node) and np.ndim(node.b) > 1]
        return max(own) if len(own) == len(nodes) else 0

    ranks = jax.tree.map(rank, *trees, is_leaf=is_low_rank)
    return [jax.tree.map(_with_rank, tree, ranks, is_leaf=is_low_rank) for tree in trees]


def _with_rank(node: Any, rank: int) -> Any:
    """Returns a `LowRank` with zeros for the columns that it lacks; others as they are."""
    if not is_low_rank(node) or not rank:
        return node
    b, a = map(jnp.asarray, node)
    sides = [(0, 0)] * (b.ndim - 2)
    more = (0, rank - b.shape[-1])
    return LowRank(jnp.pad(b, [*sides, (0, 0), more]), jnp.pad(a, [*sides, more, (0, 0)]))


def orthonormal(stack: LowRank) -> LowRank:
    """Returns the same matrices with factors of which the first has orthonormal columns.

    By modified Gram-Schmidt, B = Q R and so B A = Q (R A). Sums of products of such factors lose no
    digits, whatever the condition of the factors, and all of a matrix's length is in the second.
    Columns that depend on earlier ones become zero or have a negligible row in the second factor.
    A factor with NaN or infinity leaves NaN in the second one only.
    """
    b, b_exponents, b_finite = _in_unit(stack.b)
    a, a_exponents, a_finite = _in_unit(stack.a)
    places = jnp.arange(stack.rank)

    def step(place: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        columns, triangle = carry
        own = lax.dynamic_index_in_dim(columns, place, -1)  # [..., m, 1]
        length = root(jnp.square(own).sum(-2, keepdims=True))
        unit = ratio(own, length)
        row = jnp.where(places > place, dot(unit.mT, columns), 0)  # [..., 1, r]
        columns = jnp.where(places == place, unit, columns - unit * row)
        row = jnp.where(places == place, length, row)
        return columns, lax.dynamic_update_index_in_dim(triangle, row, place, -2)

    triangle = jnp.zeros((*stack.b.shape[:-2], stack.rank, stack.rank), b.dtype)
    columns, triangle = lax.fori_loop(0, stack.rank, step, (b, triangle))
    rest = dot(triangle, a)
    rest = times_power_of_two(rest, b_exponents + a_exponents)
    return LowRank(columns, jnp.where(b_finite & a_finite, rest, jnp.nan))


def squared_norms(stack: LowRank) -> PerAgent:
    """Returns `[N]` squared lengths of stacked matrices."""
    products = dot(stack.b.mT, stack.b) * dot(stack.a, stack.a.mT)
    return jnp.maximum(products.reshape(products.shape[0], -1).sum(1), 0)


def gram(stack: LowRank) -> Array:
    """Returns the `[N, N]` inner products of stacked matrices.

    By factors it takes (N r)^2 (m + n) multiplications, by products N m n r + N^2 m n; the shapes
    say which is less. In both ways only a block of the result is in memory.
    """
    num, *_, m, n = stack.shape
    r = stack.rank
    by_factors = num**2 * r**2 * (m + n) <= num * m * n * (r + num)
    of_one = _gram_by_factors if by_factors else _gram_by_products
    b, a = _matrices_first(stack)
    return lax.map(lambda one: of_one(*one), (b, a)).sum(0)


def inner_products(stack: LowRank, other: Any) -> PerAgent:
    """Returns `[N]` inner products of stacked matrices with one `[..., m, n]`, in any form."""
    num, *_, m, n = stack.shape
    r = stack.rank
    b, a = _matrices_first(stack)
    if is_low_rank(other):
        k = other.rank
        others = other.b.reshape(-1, m, k), other.a.reshape(-1, k, n)
        by_factors = num * r * k * (m + n) <= m * n * (k + num * r)
    else:
        others, by_factors = (other.reshape(-1, m, n),), False

    def of_one(one: Any) -> PerAgent:
        b, a, *factors = one
        rows, columns = a.reshape(num * r, n), jnp.moveaxis(b, 0, 1).reshape(m, num * r)
        if by_factors:
            found = dot(columns.T, factors[0]) * dot(rows, factors[1].T)
            return found.reshape(num, -1).sum(1)
        matrix = dot(*factors) if len(factors) == 2 else factors[0]
        return (dot(matrix, rows.T) * columns).sum(0).reshape(num, r).sum(1)

    return lax.map(of_one, (b, a, *others)).sum(0)


def weighted_sum(weights: Array, stack: LowRank) -> LowRank:
    """Returns the sums over the stack with weights `[..., N]`, of rank N r: `[..., ..., m, n]`."""
    b = jnp.moveaxis(stack.b, 0, -2)  # [..., m, N, r]
    a = jnp.moveaxis(stack.a, 0, -3)  # [..., N, r, n]
    lead = weights.shape[:-1]
    own = weights.reshape(*lead, *(1,) * (b.ndim - 2), weights.shape[-1], 1).astype(b.dtype)
    b = (own * b).reshape(*lead, *b.shape[:-2], -1)
    a = a.reshape(*a.shape[:-3], -1, a.shape[-1])
    return LowRank(b, jnp.broadcast_to(a, (*lead, *a.shape)))


def scaled(factors: PerAgent, stack: LowRank) -> LowRank:
    """Returns every matrix times its factor; one with factor 0 is zero even if it is broken."""

    def scale(leaf: Array, by: PerAgent) -> Array:
        own = by.reshape(by.shape + (1,) * (leaf.ndim - 1))
        return jnp.where(own != 0, leaf * own, 0).astype(leaf.dtype)

    return LowRank(scale(stack.b, factors), scale(stack.a, (factors != 0).astype(jnp.float32)))


def small(stack: LowRank, most: float) -> PerAgent:
    """Returns `[N]` booleans: no entry of the product exceeds `most`, by a bound from its factors.

    The bound is r times the factors' largest magnitudes.
    """

    def largest(leaf: Array) -> PerAgent:
        return jnp.abs(leaf).reshape(leaf.shape[0], -1).max(1, initial=0)

    b, a = largest(stack.b), largest(stack.a)
    most = most / stack.rank
    return (b <= most / jnp.maximum(a, 1)) & (a <= most / jnp.maximum(b, 1))


def _gram_by_factors(b: Array, a: Array) -> Array:
    num, m, r = b.shape
    columns, rows = jnp.moveaxis(b, 0, 1).reshape(m, num * r), a.reshape(num * r, -1)

    def of_agent(own: tuple[Array, Array]) -> PerAgent:
        found = dot(own[0].T, columns) * dot(own[1], rows.T)  # [r, N r]
        return found.sum(0).reshape(num, r).sum(1)

    return lax.map(of_agent, (b, a), batch_size=min(num, max(1, BLOCK // (r * num * r))))


def _gram_by_products(b: Array, a: Array) -> Array:
    num, m, r = b.shape
    n = a.shape[-1]
    height = min(m, max(1, BLOCK // (num * n)))
    blocks = math.ceil(m / height)
    b = jnp.pad(b, ((0, 0), (0, blocks * height - m), (0, 0)))

    def add(block: Any, total: Array) -> Array:
        products = dot(lax.dynamic_slice_in_dim(b, block * height, height, 1), a)
        products = products.reshape(num, -1)
        return total + dot(products, products.T)

    return lax.fori_loop(0, blocks, add, jnp.zeros((num, num), b.dtype))


def _matrices_first(stack: LowRank) -> tuple[Array, Array]:
    """Returns the factors as `[matrices, N, m, r]` and `[matrices, N, r, n]`."""
    return tuple(
        jnp.moveaxis(leaf.reshape(leaf.shape[0], -1, *leaf.shape[-2:]), 1, 0) for leaf in stack
    )  # pyright: ignore[reportReturnType]


def _in_unit(factors: Array) -> tuple[Array, Array, Array]:
    """Returns factors in a unit near their largest magnitude, its exponent, and if they are finite.

    Broken factors become zeros.
    """
    finite = jnp.isfinite(factors).all((-2, -1), keepdims=True)
    wide = jnp.promote_types(factors.dtype, jnp.float32)
    factors = jnp.where(finite, factors, 0).astype(wide)
    largest = jnp.abs(factors).max((-2, -1), keepdims=True, initial=0)
    exponents = jnp.where(largest > 0, exponents_of(largest), 0)
    return times_power_of_two(factors, -exponents), exponents, finite
