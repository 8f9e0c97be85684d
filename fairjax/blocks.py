"""Blocks: products of stacked rows, a block of columns at a time.

    Gram matrix     sum over blocks of X X^T
    inner products  sum over blocks of X v
    weighted sum    w X, block after block

A block stays in the caches of a CPU while it is multiplied with itself, which takes a third of the
time. Rows of a small dtype, or in units of their own, are converted in blocks: no product makes
another copy of N D numbers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jax import lax

from fairjax.arithmetic import dot, exponents_of, magnitude_bits, power_of_two, times_power_of_two
from fairjax.types import Array, PerAgent

# Numbers of a block. For 10 to 400 agents a Gram matrix takes at most a ninth longer than with the
# best size; with 2^16 up to 1.8 times, with 2^22 up to 2.5 times as long.
CPU_BLOCK = 2**18
BLOCK = 2**26  # on an accelerator, where blocks have not been timed: 256 MiB


class InUnits(NamedTuple):
    """A leaf `[N, ...]` whose rows are read over powers of two, and never all at once.

    It stands in place of such a leaf; `fairjax.trees` takes both.

    Attributes:
      leaf: `[N, ...]`.
      units: `[N]` powers of two; a row of unit 0 is read as zeros.
    """

    leaf: Array
    units: PerAgent

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        return self.leaf.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the leaf."""
        return self.leaf.dtype

    def dense(self) -> Array:
        """Returns the rows over their units, which is exact: `[N, ...]`."""
        leaf = self.leaf
        limits = jnp.finfo(leaf.dtype)
        units = self.units.reshape(self.units.shape + (1,) * (leaf.ndim - 1))
        exponents = -exponents_of(units)
        # A CPU treats subnormal numbers as 0 in sums and products, so read their bits instead.
        steps = magnitude_bits(leaf).astype(leaf.dtype) * limits.eps
        low = steps * power_of_two(exponents + limits.minexp, leaf.dtype)
        low = jnp.where(jnp.signbit(leaf), -low, low)
        high = times_power_of_two(leaf, exponents)
        own = jnp.where(exponents_of(leaf) < limits.minexp, low, high)
        return jnp.where(units > 0, own, 0)


Leaf = Array | InUnits


def rows(leaf: Array) -> Array:
    """Returns a leaf `[N, ...]` as a matrix `[N, d]`."""
    return leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))


def summable_rows(leaf: Array) -> Array:
    """Returns a leaf `[N, ...]` as a matrix `[N, d]` of float32 at least, for sums."""
    return rows(leaf).astype(jnp.promote_types(leaf.dtype, jnp.float32))


def is_small(size: int) -> bool:
    """Says whether so many numbers are one block; a symbolic size is."""
    return jax.export.is_symbolic_dim(size) or size <= CPU_BLOCK


def largest_bits(leaf: Array) -> PerAgent:
    """Returns `[N]` bits of each row's largest magnitude, NaN above infinity; 0 without entries."""

    def larger(block: Array, start: Any, found: PerAgent) -> PerAgent:
        return jnp.maximum(found, magnitude_bits(block).max(1, initial=0))

    none = _zeros(leaf, leaf.shape[:1], f"int{jnp.finfo(leaf.dtype).bits}")
    return _fold(leaf, larger, none, convert=rows)


def squared_norms(leaf: Leaf) -> PerAgent:
    """Returns `[N]` squared lengths."""
    if not isinstance(leaf, InUnits):  # the compiler makes no copy
        return jnp.square(summable_rows(leaf)).sum(1)
    zeros = _zeros(leaf, leaf.shape[:1])
    return _fold(leaf, lambda block, start, total: total + jnp.square(block).sum(1), zeros)


def gram(leaf: Leaf) -> Array:
    """Returns the `[N, N]` inner products of rows."""
    zeros = _zeros(leaf, 2 * leaf.shape[:1])
    return _fold(leaf, lambda block, start, total: total + dot(block, block.T), zeros)


def inner_products(leaf: Leaf, one: Array) -> PerAgent:
    """Returns `[N]` inner products of rows with one `[...]`."""
    one = one.reshape(-1)
    if not isinstance(leaf, InUnits) and not _is_narrow(leaf):
        return dot(rows(leaf), one)

    def add(block: Array, start: Any, total: PerAgent) -> PerAgent:
        return total + dot(block, lax.dynamic_slice_in_dim(one, start, block.shape[1]))

    return _fold(leaf, add, _zeros(leaf, leaf.shape[:1]))


def weighted_sum(weights: Array, leaf: Leaf) -> Array:
    """Returns the sum of rows with weights `[N]`, or `[M, N]` for M sums: `[..., d]`."""
    if not isinstance(leaf, InUnits) and not _is_narrow(leaf):
        return dot(weights, rows(leaf)).astype(leaf.dtype)

    def add(block: Array, start: Any, sums: Array) -> Array:
        own = dot(weights, block).astype(sums.dtype)
        own += lax.dynamic_slice_in_dim(sums, start, block.shape[1], -1)
        return lax.dynamic_update_slice_in_dim(sums, own, start, -1)

    shape = *weights.shape[:-1], math.prod(leaf.shape[1:])
    return _fold(leaf, add, _zeros(leaf, shape, leaf.dtype))


def _is_narrow(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32


def _zeros(leaf: Leaf, shape: tuple[int, ...], dtype: Any = None) -> Array:
    """Returns zeros, of float32 at least by default, that vary in a `shard_map` as a leaf does."""
    dtype = jnp.promote_types(leaf.dtype, jnp.float32) if dtype is None else dtype
    numbers = leaf.leaf if isinstance(leaf, InUnits) else leaf
    if is_small(numbers.size):
        return jnp.zeros(shape, dtype)
    first = lax.slice(numbers, (0,) * numbers.ndim, (1,) * numbers.ndim).reshape(())
    return jnp.broadcast_to(jnp.where(False, first, 0).astype(dtype), shape)


def _fold(
    leaf: Leaf,
    body: Callable[[Array, Any, Any], Any],
    carry: Any,
    convert: Callable[[Array], Array] = summable_rows,
) -> Any:
    """Returns the last of `carry = body(block [N, columns], first column, carry)`.

    The last block may begin before the end of the one before it, with zeros for what was read.
    """
    num, size = leaf.shape[0], math.prod(leaf.shape[1:])
    stack = leaf._replace(leaf=rows(leaf.leaf)) if isinstance(leaf, InUnits) else rows(leaf)

    def read(start: Any, columns: int) -> Array:
        if not isinstance(stack, InUnits):
            return convert(lax.dynamic_slice_in_dim(stack, start, columns, 1))
        block = lax.dynamic_slice_in_dim(stack.leaf, start, columns, 1)
        return convert(stack._replace(leaf=block).dense())

    def fold(numbers: int, carry: Any) -> Any:
        columns = max(numbers // num, 1)
        if columns >= size:
            return body(read(0, size), 0, carry)

        def step(number: Any, carry: Any) -> Any:
            start = jnp.minimum(number * columns, size - columns)
            new = start + jnp.arange(columns) >= number * columns
            return body(jnp.where(new, read(start, columns), 0), start, carry)

        return lax.fori_loop(0, math.ceil(size / columns), step, carry)

    if is_small(num * size):
        whole = stack.dense() if isinstance(stack, InUnits) else stack
        return body(convert(whole), 0, carry)
    return lax.platform_dependent(
        carry, cpu=functools.partial(fold, CPU_BLOCK), default=functools.partial(fold, BLOCK)
    )
