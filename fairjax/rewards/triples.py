"""Triples: a reward is the part of the aggregate with the largest singular values.

    aggregate   W_l = sum_k s_k u_k v_k^T       of every matrix l, K triples over all matrices
    reward      the floor(f_i K) triples with the largest s_k

No other matrices of so many triples are closer to the aggregate (Eckart and Young). As with masks,
the order of importance is the order of distance and of cosine to the aggregate.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairjax import checks, inputs, trees
from fairjax.arithmetic import dot
from fairjax.lowrank import LowRank, is_low_rank
from fairjax.rewards.masks import checked_fractions, count_kept, find_largest
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked

Triples = tuple[Array, Array, Array]  # [m, k], [k], [k, n]


def truncate(aggregate: Params, fractions: PerAgent) -> Stacked:
    """Returns for every agent the aggregate with only its largest singular triples kept.

    Agent i keeps exactly floor(f_i K) of the K triples of all matrices together. A matrix `[m, n]`
    has min(m, n) triples, and a `LowRank` at most as many as its factors have columns that are not
    zero. A vector is a matrix of one row; an array with more axes is one of all but the last.

    Args:
      aggregate: leaves without the agent axis, arrays or `LowRank`.
      fractions: `[N]` in [0, 1], as in `sparsify`.

    Returns:
      Leaves `[N, ...]`, `LowRank` where the aggregate's are.

    Raises:
      ValueError: as in `sparsify`.

    References:
      Eckart and Young, The approximation of one matrix by another of lower rank, 1936.

    Examples:
      >>> aggregate = {"one": jnp.diag(jnp.array([3.0, 1.0])), "two": jnp.array([0.0, 2.0])}
      >>> paid = truncate(aggregate, jnp.array([0.4, 0.7]))
      >>> print(*(paid[name][1].round().astype(int).tolist() for name in ("one", "two")))
      [[3, 0], [0, 0]] [0, 2]
    """
    aggregate = inputs.as_params("aggregate", aggregate)
    checks.finite("aggregate", aggregate)
    fractions = checked_fractions(fractions)
    total: Any = sum(_count_triples(_as_matrices(leaf)) for leaf in trees.leaves(aggregate))
    total = int(total) if checks.is_known(total) else total
    return _keep_triples(aggregate, count_kept(fractions, total))


@jax.jit
def _keep_triples(aggregate: Params, kept: PerAgent) -> Stacked:
    leaves, structure = jax.tree.flatten(aggregate, is_leaf=is_low_rank)
    found = _decompose([_as_matrices(leaf) for leaf in leaves])
    masks = find_largest([values for _, values, _ in found], kept)
    paid = []
    for leaf, (left, values, right), mask in zip(leaves, found, masks, strict=True):
        b = (left * jnp.where(mask, values, 0)[..., None, :]).astype(leaf.dtype)  # [N, P, m, k]
        a = jnp.broadcast_to(right.astype(leaf.dtype), (len(kept), *right.shape))
        if is_low_rank(leaf):
            lead = (len(kept), *leaf.shape[:-2])
            paid.append(LowRank(b.reshape(*lead, *b.shape[-2:]), a.reshape(*lead, *a.shape[-2:])))
            continue
        whole = trees.per_agent(mask.all((1, 2)), leaf[None])
        paid.append(jnp.where(whole, leaf, dot(b, a).reshape(len(kept), *leaf.shape)))
    return structure.unflatten(paid)


def _as_matrices(leaf: Any) -> Any:
    """Returns a leaf as `[P, m, n]`, the matrices that it holds."""
    if is_low_rank(leaf):
        return LowRank(*(factor.reshape(-1, *factor.shape[-2:]) for factor in leaf))
    if not leaf.size:
        return leaf.reshape(0, 1, 1)
    return leaf.reshape(1, -1, leaf.shape[-1] if leaf.ndim else 1)


def _decompose(matrices: list[Any]) -> list[Triples]:
    """Returns the singular triples of all matrices `[P, m, n]`.

    Matrices of one shape take turns in one loop. LAPACK's routines wait for each other for ever
    if a program starts several of them at once.
    """
    shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], one) for one in matrices]
    found: dict[int, Triples] = {}
    after = jnp.zeros(())
    for shape in {str(shape): shape for shape in shapes}.values():
        places = [place for place, own in enumerate(shapes) if own == shape]
        stack = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(matrices[p] for p in places))
        stack, _ = lax.optimization_barrier((stack, after))
        triples = lax.map(_singular_triples, stack)
        after = triples[1].sum()
        start = 0
        for place in places:
            one = matrices[place]
            own = slice(start, start + one.shape[0])
            found[place] = jax.tree.map(lambda leaf, own=own: leaf[own], triples)
            start += one.shape[0]
    return [found[place] for place in range(len(matrices))]


def _count_triples(matrices: Any) -> Scalar:
    """Returns how many triples some matrices `[P, m, n]` have."""
    num, *sides = matrices.shape
    if not is_low_rank(matrices):
        return num * min(sides)
    live = (matrices.b != 0).any(1) & (matrices.a != 0).any(2)  # [P, r]
    return jnp.minimum(live.sum(1), min(sides)).sum()


def _singular_triples(matrix: Any) -> Triples:
    """Returns the left vectors, values and right vectors of one matrix, float32 at least."""
    matrix = jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), matrix
    )
    if not is_low_rank(matrix):
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    q, core = jnp.linalg.qr(matrix.b)
    a, core = lax.optimization_barrier((matrix.a, core))
    p, other = jnp.linalg.qr(a.mT)
    left, values, right = jnp.linalg.svd(dot(core, other.mT), full_matrices=False)
    return dot(q, left), values, dot(right, p.mT)
