"""Row-wise: which rows of a stacked pytree are finite, zero, or small enough to be added.

Sums of squares need one fast pass, and mostly tell: if the sum of a row is finite, all its entries
are, and none is larger than its root; if it is above zero, some entry is not zero. Only where the
sums do not tell, every entry is looked at. On a CPU that takes three times as long.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairjax import blocks, lowrank
from fairjax.blocks import rows
from fairjax.lowrank import is_low_rank
from fairjax.types import Array, PerAgent, Stacked


def finite_rows(stacked: Stacked) -> PerAgent:
    """Returns `[N]` booleans: all entries, or factors, of the agent's row are finite."""
    stacked = _join_leaves(stacked)

    def look() -> PerAgent:
        found = [rows(jnp.isfinite(leaf)).all(1) for leaf in jax.tree.leaves(stacked)]
        return functools.reduce(jnp.logical_and, found)

    return _where_sure(stacked, lambda: jnp.isfinite(_entry_squares(stacked)), look)


def zero_rows(stacked: Stacked) -> PerAgent:
    """Returns `[N]` booleans: the agent's row is exactly zero."""
    stacked = _join_leaves(stacked)

    def of_leaf(leaf: Any) -> PerAgent:
        if is_low_rank(leaf):
            return zero_rows(leaf.b) | zero_rows(leaf.a)
        return rows(leaf == 0).all(1)

    def look() -> PerAgent:
        return functools.reduce(jnp.logical_and, map(of_leaf, _leaves(stacked)))

    if lowrank.holds_low_rank(stacked):
        return look()
    return ~_where_sure(stacked, lambda: _entry_squares(stacked) > 0, lambda: ~look())


def addable_rows(stacked: Stacked, held: Any) -> PerAgent:
    """Returns `[N]` booleans: the agent's row is finite, and small enough to be added.

    A row is small enough if N such rows sum to at most an eighth of the dtype's largest number.
    Once a parameter exceeds that eighth, no row is addable any more. So a sum of uploads never
    overflows, nor does its sum with parameters, nor a difference of two such sums, in any
    number of rounds.

    Args:
      stacked: leaves `[N, ...]`, the uploads.
      held: a pytree of all parameters to which rows may be added. Parameters that are not
        finite are ignored.
    """
    most = min(float(jnp.finfo(leaf.dtype).max) for leaf in jax.tree.leaves(stacked)) / 8
    each = most / len(jax.tree.leaves(stacked)[0])
    stacked = _join_leaves(stacked)

    def small(leaf: Any) -> PerAgent:
        low_rank = is_low_rank(leaf)
        return lowrank.small(leaf, each) if low_rank else rows(jnp.abs(leaf) <= each).all(1)

    def none_full() -> Array:
        full = [
            ((jnp.abs(leaf) > most) & jnp.isfinite(leaf)).any() for leaf in jax.tree.leaves(held)
        ]
        return ~functools.reduce(jnp.logical_or, full)

    def fit() -> PerAgent:
        return functools.reduce(jnp.logical_and, map(small, _leaves(stacked)))

    def short_leaves() -> Array:
        held_rows = [leaf if leaf.ndim > 1 else leaf[None] for leaf in jax.tree.leaves(held)]
        return jnp.array(
            [(jnp.sqrt(_entry_squares(leaf)) <= most).all() for leaf in held_rows]
        ).all()

    room = _where_sure(held, short_leaves, none_full)
    if lowrank.holds_low_rank(stacked):
        return fit() & room
    return _where_sure(stacked, lambda: jnp.sqrt(_entry_squares(stacked)) <= each, fit) & room


def _join_leaves(stacked: Stacked) -> Stacked:
    """Returns a few numbers of one dtype as one leaf `[N, D]`, which needs fewer kernels."""
    leaves = jax.tree.leaves(stacked)
    alike = len({leaf.dtype for leaf in leaves}) == 1 and not lowrank.holds_low_rank(stacked)
    if alike and blocks.is_small(sum(leaf.size for leaf in leaves)):
        return jnp.concatenate(list(map(rows, leaves)), axis=1)
    return stacked


def _leaves(stacked: Stacked) -> list[Any]:
    return jax.tree.leaves(stacked, is_leaf=is_low_rank)


def _entry_squares(stacked: Stacked) -> PerAgent:
    """Returns `[N]` sums of squares of all entries, or factors; they may overflow or vanish."""
    return functools.reduce(operator.add, map(blocks.squared_norms, jax.tree.leaves(stacked)))


def _where_sure(tree: Any, tell: Callable[[], Array], look: Callable[[], Array]) -> Array:
    """Returns `tell()` if it is true for all rows, else `look()`; small trees always `look()`."""
    if blocks.is_small(sum(leaf.size for leaf in jax.tree.leaves(tree))):
        return look()
    sure = tell()
    return lax.cond(sure.all(), lambda: sure, look)
