"""Sampling: unbiased estimates of the cosine gradient Shapley value, with standard errors.

    phi_i          = (nu(all) + sum over k = 1..N-1 of contrast_i(k)) / N
    contrast_i(k)  = mean of nu(S) over coalitions of size k with agent i
                     less the same mean over those without agent i

`sampled_cosine_shapley` lets agents join in random orders. `gram_cosine_shapley` estimates every
contrast by itself, and does three things to be precise:

    exact sizes  contrasts of one agent, of two agents and of all but one are computed
    windows      agents stand on a circle in a random order. Every size k has N windows,
                 and each agent is in k of them. A window costs a handful of operations.
    control      h(S) = b_k <u_S, u_N> + c_k |u_S|^2 is fitted to nu(S) on windows of their own.
                 The Gram matrix gives contrasts of h exactly; windows only those of nu - h.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import arithmetic, checks, trees
from fairjax.contributions import coalitions
from fairjax.contributions.gram import (
    Products,
    above_rounding,
    all_cosines,
    checked,
    products_of,
    utility_of_all,
)
from fairjax.types import Array, Key, PerAgent, Scalar, Stacked

MAX_LISTED_AGENTS = 16  # for so few agents the coalitions are fewer than the windows
NUM_WINDOWS = 3_000_000
RIDGE = 1e-4  # of the control's fit, where its two terms are nearly one


class Estimate(NamedTuple):
    """A sampled contribution per agent, with its standard error."""

    values: PerAgent
    standard_errors: PerAgent


class Windows(NamedTuple):
    """All windows of one size k, by the position of their last agent."""

    size: Scalar
    cosines: Array  # [B, N] nu(S)
    terms: Array  # [2, B, N] <u_S, u_N> and |u_S|^2, less their means over coalitions of size k


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
      num_permutations: an even number; half of them are drawn, the others reverse those.

    Returns:
      `values [N]`, which sum to one, and their `standard_errors [N]` over the
      pairs, nan for a single pair.

    Raises:
      ValueError: `num_permutations` is odd, below 2 or too large, or as in `cosine`.

    Examples:
      >>> import numpy as np
      >>> updates = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> estimate = sampled_cosine_shapley(jax.random.key(0), updates, num_permutations=2000)
      >>> print(np.asarray(estimate.values).round(1))
      [0.4 0.4 0.2]
    """
    checks.key("key", key)
    updates, weights = checked(updates, weights)
    most = coalitions.MAX_VALUES // trees.num_agents(updates)
    checks.count("num_permutations", num_permutations, least=2, most=most)
    if num_permutations % 2:
        raise ValueError(
            "`num_permutations` must be even, since permutations come in pairs, "
            f"got num_permutations={num_permutations}."
        )
    return _sample(key, updates, weights, num_permutations // 2)


def gram_cosine_shapley(
    key: Key,
    updates: Stacked,
    weights: PerAgent | None = None,
    *,
    num_permutations: int | None = None,
) -> Estimate:
    """Returns an unbiased estimate of the CGSV for more agents than can be enumerated.

    Costs one Gram matrix, O(N^2 D), and O(N^3) operations in matrix products per permutation,
    from which it takes N coalitions of every size. Up to 16 agents all coalitions are
    enumerated; values are then exact and standard errors 0.

    Args:
      key: PRNG key.
      updates: leaves `[N, ...]`.
      weights: `[N]` importance coefficients r, not negative; None: equal.
      num_permutations: random orders of the agents, at least 2; None: so many that there are
        three million coalitions, but at least 8. An eighth as many more fit the control.

    Returns:
      `values [N]`, which sum to one, and their `standard_errors [N]` over permutations.

    Raises:
      ValueError: `num_permutations` is below 2 or too large, or as in `cosine`.

    References:
      Kolpaczki et al., Approximating the Shapley value without marginal contributions, AAAI
      2024, for means by size. Windows and control are new.

    Examples:
      >>> updates = jax.random.normal(jax.random.key(1), (40, 500))
      >>> estimate = gram_cosine_shapley(jax.random.key(0), updates)
      >>> print(estimate.values.sum().round(4), float(estimate.standard_errors.max()) < 1e-4)
      1.0 True
    """
    checks.key("key", key)
    updates, weights = checked(updates, weights)
    if num_permutations is not None:
        most = coalitions.MAX_VALUES // trees.num_agents(updates)
        checks.count("num_permutations", num_permutations, least=2, most=most)
    return estimate(key, updates, weights, num_permutations)


@functools.partial(jax.jit, static_argnames=("num_permutations", "at_one_length"))
def estimate(
    key: Key,
    updates: Stacked,
    weights: PerAgent,
    num_permutations: int | None = None,
    *,
    at_one_length: bool = False,
) -> Estimate:
    """Returns the estimate of `gram_cosine_shapley` from checked updates and weights."""
    products = products_of(updates, weights, at_one_length=at_one_length, with_gram=True)
    num_agents = len(products.weights)
    if num_agents <= MAX_LISTED_AGENTS:
        exact = coalitions.shapley_of(all_cosines(products))
        return Estimate(exact, jnp.zeros_like(exact))
    num = num_permutations or max(8, NUM_WINDOWS // num_agents**2)
    num_fitting = max(1, num // 8)
    keys = jax.random.split(key, num + num_fitting)
    orders = jax.vmap(lambda one: jax.random.permutation(one, num_agents))(keys)
    slopes = _fit_control(products, orders[num:])
    sampled = _contrast_windows(products, orders[:num], slopes)
    known = _contrast_control(products, slopes) + _contrast_few(products)
    # An upload of zeros is worth 0. Its estimate goes to the others, so that the sum stays one.
    present = products.squares > 0
    values = jnp.where(present, utility_of_all(products) + known + sampled.mean(0), 0) / num_agents
    rest = arithmetic.ratio(utility_of_all(products) - values.sum(), present.sum())
    sampled = jnp.where(present, sampled, 0)
    sampled -= arithmetic.ratio(sampled.sum(1, keepdims=True), present.sum())
    errors = sampled.std(0, ddof=1) / (np.sqrt(num) * num_agents)
    return Estimate(values + present * rest, present * errors)


def _over_windows(
    products: Products,
    orders: Array,
    visit: Callable[[Any, Windows, Any], tuple[Any, Any]],
    state: Any,
    given: Any = None,
) -> tuple[Any, Any]:
    """Calls visit(state, windows, given_k) for sizes k from 2 to N - 1; as `lax.scan`.

    Windows grow by one agent a step, at their end; what it adds is the sum of its inner products
    with the others. No sum is ever made smaller, so that none is left with rounding errors.
    """
    gram: Any = products.gram
    num_agents, total = len(gram), products.total
    scale = products.squares.sum()
    inner, squares = products.with_aggregate[orders], products.squares[orders]
    entries, rows = gram.reshape(-1), orders * num_agents

    def grow(carry: Any, step: Any) -> Any:
        size, given = step
        state, first, with_before, c, q, parts = carry
        first = jnp.roll(first, 1, 1)
        with_before = with_before + entries[rows + first]
        c = jnp.roll(c, 1, 1) + inner
        q = jnp.roll(q, 1, 1) + squares + 2 * with_before
        parts = jnp.roll(parts, 1, 1) + squares
        cosines = arithmetic.cosine_of(c, above_rounding(q, parts, num_agents), total)
        share = size / num_agents
        pair_share = share * (size - 1) / (num_agents - 1)
        means = jnp.stack([share * total, share * scale + pair_share * (total - scale)])
        terms = arithmetic.ratio(jnp.stack([c, q]) - means[:, None, None], scale)
        state, found = visit(state, Windows(size, cosines, terms), given)
        return (state, first, with_before, c, q, parts), found

    carry = (state, orders, jnp.zeros_like(inner), inner, squares, squares)
    (state, *_), found = jax.lax.scan(grow, carry, (jnp.arange(2, num_agents), given))
    return state, found


def _fit_control(products: Products, orders: Array) -> Array:
    """Returns `[N - 2, 2]` slopes b_k and c_k for k from 2 to N - 1, by least squares."""

    def fit(state: None, windows: Windows, _: None) -> tuple[None, Array]:
        x = windows.terms - windows.terms.mean((1, 2), keepdims=True)
        spread = arithmetic.root(jnp.square(x).mean((1, 2)))
        x = arithmetic.ratio(x, spread[:, None, None])
        both, each = (x[0] * x[1]).mean(), (x * windows.cosines).mean((1, 2))
        slopes = ((1 + RIDGE) * each - both * each[::-1]) / ((1 + RIDGE) ** 2 - both**2)
        return state, arithmetic.ratio(slopes, spread)

    _, slopes = _over_windows(products, orders, fit, None)
    return slopes.at[0].set(0)  # pairs are exact


def _contrast_windows(products: Products, orders: Array, slopes: Array) -> Array:
    """Returns `[B, N]` contrasts of nu - h, summed over sizes from 3 to N - 1."""
    num_agents = orders.shape[1]
    place = jnp.arange(num_agents)
    distances = (place[:, None] - place) % num_agents  # from an agent to the end of a window

    def contrast(found: Array, windows: Windows, slope: Array) -> tuple[Array, None]:
        size = windows.size
        rest = windows.cosines - jnp.tensordot(slope, windows.terms, 1)
        with_agent = arithmetic.dot(rest, (distances < size).astype(rest.dtype))
        difference = num_agents * with_agent - size * rest.sum(1, keepdims=True)
        difference = difference / (size * (num_agents - size))
        return found + jnp.where(size > 2, difference, 0), None

    start = jnp.zeros(orders.shape, products.total.dtype)
    found, _ = _over_windows(products, orders, contrast, start, slopes)
    return jnp.zeros_like(found).at[jnp.arange(len(orders))[:, None], orders].set(found)


def _contrast_control(products: Products, slopes: Array) -> PerAgent:
    """Returns `[N]` exact contrasts of the control, summed over sizes from 2 to N - 1."""
    g, d, total = products.with_aggregate, products.squares, products.total
    scale, others = d.sum(), len(d) - 1
    size = jnp.arange(2, len(d))[:, None]
    among_others = (total - 2 * g + d) - (scale - d)  # sum of <a_j, a_l> over other pairs
    inner = g - (total - g) / others
    squares = d - (scale - d) / others + 2 * (size - 1) / others * (g - d)
    squares = squares - 2 * (size - 1) / (others * (others - 1)) * among_others
    found = slopes[:, 0].sum() * inner + (slopes[:, 1:] * squares).sum(0)
    return arithmetic.ratio(found, scale)


def _contrast_few(products: Products) -> PerAgent:
    """Returns `[N]` exact contrasts of nu of one agent and of two, added up."""
    gram: Any = products.gram
    g, d, num_agents = products.with_aggregate, products.squares, len(gram)
    alone = arithmetic.cosine_of(g, d, products.total)
    sizes = jnp.add.outer(d, d)
    pairs = above_rounding(sizes + 2 * gram, sizes, num_agents)
    pairs = arithmetic.cosine_of(jnp.add.outer(g, g), pairs, products.total)
    by_agent = jnp.where(jnp.eye(num_agents, dtype=bool), 0, pairs).sum(1)
    others = num_agents - 1
    without = (by_agent.sum() / 2 - by_agent) / (others * (others - 1) / 2)
    return alone - (alone.sum() - alone) / others + by_agent / others - without


@functools.partial(jax.jit, static_argnames="num_pairs")
def _sample(key: Key, updates: Stacked, weights: PerAgent, num_pairs: int) -> Estimate:
    products = products_of(updates, weights, with_gram=True)
    gram: Any = products.gram
    num_agents = len(gram)

    def gains(order: Array) -> PerAgent:
        """Returns how much every agent adds when agents join in this order."""
        squares = products.squares[order]
        joining = squares + 2 * jnp.tril(gram[order][:, order], -1).sum(1)
        lengths = above_rounding(jnp.cumsum(joining), jnp.cumsum(squares), num_agents)
        inner = jnp.cumsum(products.with_aggregate[order])
        cosines = (
            arithmetic.cosine_of(inner, lengths, products.total)
            .at[-1]
            .set(utility_of_all(products))
        )
        return jnp.zeros_like(cosines).at[order].set(jnp.diff(cosines, prepend=0))

    def pair(pair_key: Key) -> PerAgent:
        order = jax.random.permutation(pair_key, num_agents)
        return (gains(order) + gains(order[::-1])) / 2

    batch = max(1, min(num_pairs, 2**22 // num_agents**2))
    values = jax.lax.map(pair, jax.random.split(key, num_pairs), batch_size=batch)
    return Estimate(values.mean(0), values.std(0, ddof=1) / jnp.sqrt(num_pairs))
