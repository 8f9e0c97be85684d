"""Contributions: what an upload is worth, without validation data.

    weighted upload  a_i  = r_i u_i          aggregate  u_N = sum_i a_i
    utility          nu(S) = cos(u_S, u_N),  u_S = sum of a_i over the coalition S
    exact            phi_i = the Shapley value of nu
    cosine           psi_i = cos(u_i, u_N)

Everything about nu lives in the Gram matrix (`gram.py`), so no coalition's update is made.

Common to all that take `updates`: an array `[N, D]` or a pytree of leaves
`[N, ...]`, of any scale. A row with NaN or infinity counts as a zero upload. A
zero upload is worth 0, and all are worth 0 where the aggregate vanishes (in
floating point: is no longer than rounding could have left).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import checks, trees
from fairjax.contributions import coalitions
from fairjax.contributions.gram import (
    above_rounding,
    all_cosines,
    checked,
    cosine_of,
    everybody,
    products_of,
)
from fairjax.types import Array, Key, PerAgent, Scalar, Stacked

MAX_EXACT_AGENTS = 25


class Estimate(NamedTuple):
    """A sampled contribution per agent, and how sure it is."""

    values: PerAgent
    standard_errors: PerAgent


def cosine(updates: Stacked, weights: PerAgent | None = None) -> PerAgent:
    """Returns the cosine of every upload with the aggregate, the paper's approximation.

    Args:
      updates: leaves `[N, ...]`.
      weights: `[N]` importance coefficients r, not negative; None: equal.

    Returns:
      `[N]` psi in [-1, 1], in the dtype of the updates (float32 at least).

    Raises:
      ValueError: shapes disagree, or known weights are negative or not finite.

    References:
      Xu et al., Gradient Driven Rewards to Guarantee Fairness in Collaborative
      Machine Learning, NeurIPS 2021, section on the approximation.

    Examples:
      >>> import numpy as np
      >>> updates = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
      >>> print(np.asarray(cosine(updates)).round(3))
      [0.707 0.707 0.   ]
    """
    return _cosine(*checked(updates, weights))


def cosine_shapley(updates: Stacked, weights: PerAgent | None = None) -> PerAgent:
    """Returns the exact cosine gradient Shapley value (CGSV) of every upload.

    Costs one Gram matrix, O(N^2 D), and O(2^N) scalars. Values sum to one. Where
    uploads nearly cancel, |u_N|^2 < .001 sum |a_i|^2, float32 loses digits;
    float64 updates (with x64 enabled) keep them.

    Args:
      updates: leaves `[N, ...]`, with N at most 25.
      weights: `[N]` importance coefficients r, not negative; None: equal.

    Returns:
      `[N]` phi, in the dtype of the updates (float32 at least).

    Raises:
      ValueError: N is above 25, shapes disagree, or known weights are negative.

    References:
      Xu et al., NeurIPS 2021, definition of the CGSV.

    Examples:
      >>> import numpy as np
      >>> updates = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> print(np.asarray(cosine_shapley(updates)).round(3))
      [0.399 0.399 0.202]
    """
    updates, weights = checked(updates, weights)
    num_agents = trees.num_agents(updates)
    if num_agents > MAX_EXACT_AGENTS:
        raise ValueError(
            f"`cosine_shapley` is exact, for at most {MAX_EXACT_AGENTS} agents, got {num_agents}. "
            "Use `mean_field_cosine_shapley` (one pass over the updates) or "
            "`sampled_cosine_shapley` (unbiased, with standard errors)."
        )
    return _cosine_shapley(updates, weights)


def mean_field_cosine_shapley(updates: Stacked, weights: PerAgent | None = None) -> PerAgent:
    """Returns an estimate of the CGSV at the cost of `cosine`, several times closer to it.

    Of the coalitions of k others that agent i may join, the mean of <u_S, u_N>
    and of |u_S|^2 are known in closed form; the estimate is the mean over k of
    what i adds to the ratio of these means. Values are not normalised.

    Args:
      updates: leaves `[N, ...]`.
      weights: `[N]` importance coefficients r, not negative; None: equal.

    Returns:
      `[N]` estimates of phi, in the dtype of the updates (float32 at least).

    Raises:
      ValueError: shapes disagree, or known weights are negative or not finite.

    Examples:
      >>> import numpy as np
      >>> updates = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> print(np.asarray(mean_field_cosine_shapley(updates)).round(3))
      [0.393 0.393 0.202]
    """
    return _mean_field(*checked(updates, weights))


def sampled_cosine_shapley(
    key: Key, updates: Stacked, weights: PerAgent | None = None, *, num_permutations: int = 1000
) -> Estimate:
    """Returns an unbiased estimate of the CGSV from antithetic random permutations.

    Every permutation is used forwards and backwards; agents join in its order, and
    each is credited with what it adds to the cosine. Costs one Gram matrix,
    O(N^2 D), and O(N^2) scalars per permutation.

    Args:
      key: PRNG key.
      updates: leaves `[N, ...]`.
      weights: `[N]` importance coefficients r, not negative; None: equal.
      num_permutations: an even number; half of them are drawn.

    Returns:
      `values [N]`, which sum to one, and their `standard_errors [N]`, over the
      pairs; nan for a single pair, which has no spread.

    Raises:
      ValueError: `num_permutations` is not even or below 2, or as in `cosine`.

    Examples:
      >>> import numpy as np
      >>> updates = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> estimate = sampled_cosine_shapley(jax.random.key(0), updates, num_permutations=2000)
      >>> print(np.asarray(estimate.values).round(1))
      [0.4 0.4 0.2]
    """
    checks.count("num_permutations", num_permutations, least=2)
    if num_permutations % 2:
        raise ValueError(
            "`num_permutations` must be even, since permutations come in pairs, "
            f"got num_permutations={num_permutations}."
        )
    return _sampled(key, *checked(updates, weights), num_permutations // 2)


@jax.jit
def _cosine(updates: Stacked, weights: PerAgent) -> PerAgent:
    products = products_of(updates, weights)
    return cosine_of(products.inner, jnp.square(products.lengths), products.total)


@jax.jit
def _cosine_shapley(updates: Stacked, weights: PerAgent) -> PerAgent:
    return coalitions.shapley(all_cosines(products_of(updates, weights, with_gram=True)))


@jax.jit
def _mean_field(updates: Stacked, weights: PerAgent) -> PerAgent:
    products = products_of(updates, weights)
    g, d, total = products.with_aggregate, products.squares, products.total
    num_agents = len(g)
    k = jnp.arange(num_agents, dtype=g.dtype)
    share = k / max(num_agents - 1, 1)
    pair_share = k * (k - 1) / max((num_agents - 1) * (num_agents - 2), 1)
    squares = d.sum()

    def one(g_i: Scalar, d_i: Scalar) -> Scalar:
        others = squares - d_i
        first = share * (total - g_i)
        second = share * others + pair_share * ((total - 2 * g_i + d_i) - others)
        # With rounding, a coalition of nobody could come out with a length.
        first, second = first.at[0].set(0), second.at[0].set(0)
        joined = second + 2 * share * (g_i - d_i) + d_i
        gains = cosine_of(first + g_i, joined, total) - cosine_of(first, second, total)
        return gains.mean()

    return jax.lax.map(lambda agent: one(*agent), (g, d), batch_size=min(num_agents, 256))


@functools.partial(jax.jit, static_argnames="num_pairs")
def _sampled(key: Key, updates: Stacked, weights: PerAgent, num_pairs: int) -> Estimate:
    products = products_of(updates, weights, with_gram=True)
    gram: Any = products.gram
    num_agents = len(gram)

    def gains(order: Array) -> PerAgent:
        """Returns what every agent adds when agents join in this order."""
        squares = products.squares[order]
        joining = squares + 2 * jnp.tril(gram[order][:, order], -1).sum(1)
        lengths = above_rounding(jnp.cumsum(joining), jnp.cumsum(squares), num_agents)
        inner = jnp.cumsum(products.with_aggregate[order])
        cosines = cosine_of(inner, lengths, products.total).at[-1].set(everybody(products))
        return jnp.zeros_like(cosines).at[order].set(jnp.diff(cosines, prepend=0))

    def pair(pair_key: Key) -> PerAgent:
        order = jax.random.permutation(pair_key, num_agents)
        return (gains(order) + gains(order[::-1])) / 2

    batch = max(1, min(num_pairs, 2**22 // num_agents**2))
    values = jax.lax.map(pair, jax.random.split(key, num_pairs), batch_size=batch)
    spread = jnp.sqrt(jnp.square(values - values.mean(0)).sum(0) / (num_pairs - 1 or jnp.nan))
    return Estimate(values.mean(0), spread / jnp.sqrt(num_pairs))
