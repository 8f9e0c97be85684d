"""Contributions: what an upload is worth, without validation data.

    weighted upload  a_i  = r_i u_i          aggregate  u_N = sum_i a_i
    utility          nu(S) = cos(u_S, u_N),  u_S = sum of a_i over the coalition S
    exact            phi_i = the Shapley value of nu
    cosine           psi_i = cos(u_i, u_N)

The Gram matrix (`gram.py`) determines nu, so no coalition's update is computed.

All functions take `updates` as an array `[N, D]` or a pytree of leaves `[N, ...]`, of any scale.
A list of N pytrees is read as N agents; if it could also be the layers of one pytree, it is
refused. A `fairjax.LowRank` node stands for its product, which is never made. A row with NaN or
infinity, or with a number beyond the dtype, counts as a zero upload. A traced weight that is
negative or not finite counts as 0. A zero upload is worth 0, and all uploads are worth 0 where the
aggregate vanishes (in floating point: where it may be a rounding error; with `LowRank` nodes that
is an aggregate 700 times shorter than the uploads together).

Lengths of uploads, and of weighted uploads, may differ by any factor that the dtype holds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fairjax import arithmetic, checks, inputs, trees
from fairjax.contributions import coalitions, sampling
from fairjax.contributions.gram import (
    all_cosines,
    check_enumerable,
    checked,
    products_of,
    utility_of_all,
)
from fairjax.types import Key, PerAgent, Scalar, Stacked


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
    uploads nearly cancel, |u_N|^2 < .001 sum |a_i|^2, float32 loses digits, and a coalition
    with |u_S|^2 < 5e-7 N sum_S |a_i|^2 counts as 0; float64 updates (with x64 enabled) keep them.

    Args:
      updates: leaves `[N, ...]`, with N at most 25.
      weights: `[N]` importance coefficients r, not negative; None: equal.

    Returns:
      `[N]` phi, in the dtype of the updates (float32 at least).

    Raises:
      ValueError: N is above 25, shapes disagree, or known weights are negative or not finite.

    References:
      Xu et al., NeurIPS 2021, definition of the CGSV.

    Examples:
      >>> import numpy as np
      >>> updates = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> print(np.asarray(cosine_shapley(updates)).round(3))
      [0.399 0.399 0.202]
    """
    updates, weights = checked(updates, weights)
    check_enumerable(trees.num_agents(updates))
    return _shapley(updates, weights)


def mean_field_cosine_shapley(updates: Stacked, weights: PerAgent | None = None) -> PerAgent:
    """Returns an estimate of the CGSV at the cost of `cosine`, several times closer to it.

    For each k, the means of <u_S, u_N> and of |u_S|^2 over all coalitions S of k
    other agents have a closed form. They give a typical cosine. The estimate is the
    mean over k of what agent i adds to that cosine. Values are not normalised. Agents without an
    upload count among the others: leave them out if many are missing, or the estimate is worse.

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


def measure(
    name: str,
    uploads: Stacked,
    weights: PerAgent | None = None,
    *,
    at_one_length: bool = False,
    key: Key | None = None,
    present: PerAgent | None = None,
) -> PerAgent:
    """Returns the contributions of a round's uploads, by the name of a measure.

    For mechanisms: lists in a model's parameters are layers, never agents.

    Args:
      name: a name in `MEASURES`.
      uploads: leaves `[N, ...]`.
      weights: `[N]`, not negative; None: equal.
      at_one_length: whether to judge uploads as if rescaled to one length; zero uploads stay
        zero. To divide weights by lengths yourself can overflow; this cannot.
      key: PRNG key of the measure "gram", which is sampled; None: that of seed 0.
      present: `[N]` booleans: who takes part; the others have no weight, and uploads of zero are
        worth 0. The mean-field estimate takes means over coalitions of those present. None: all.

    Returns:
      `[N]`.

    Raises:
      ValueError: `name` is no measure, `key` is no PRNG key, `present` is not `[N]` booleans, or as
        in the measure's own function.

    Examples:
      >>> uploads = (jnp.array([[3.0], [0.0]]), jnp.array([[0.0], [1.0]]))  # two layers
      >>> print(measure("cosine", uploads, jnp.ones(2), at_one_length=True).round(3))
      [0.707 0.707]
    """
    checks.choice("name", name, MEASURES)
    if key is not None:
        checks.key("key", key)
    known: Any
    uploads, known = checked({"model": uploads}, weights)
    if present is not None:
        present = inputs.as_booleans("present", present)
        checks.shape("present", present, known.shape)
        known = jnp.where(present, known, 0)
    if name == "shapley":
        check_enumerable(trees.num_agents(uploads))
    if name == "gram":
        key = jax.random.key(0) if key is None else key
        return sampling.estimate(key, uploads, known, at_one_length=at_one_length).values
    options = {"present": present} if name == "mean_field" else {}
    return _MEASURES[name](uploads, known, at_one_length=at_one_length, **options)


@functools.partial(jax.jit, static_argnames="at_one_length")
def _cosine(updates: Stacked, weights: PerAgent, *, at_one_length: bool = False) -> PerAgent:
    products = products_of(updates, weights, at_one_length=at_one_length)
    return arithmetic.cosine_of(products.inner, jnp.square(products.lengths), products.total)


@functools.partial(jax.jit, static_argnames="at_one_length")
def _shapley(updates: Stacked, weights: PerAgent, *, at_one_length: bool = False) -> PerAgent:
    products = products_of(updates, weights, at_one_length=at_one_length, with_gram=True)
    return coalitions.shapley_of(all_cosines(products))


@functools.partial(jax.jit, static_argnames="at_one_length")
def _mean_field(
    updates: Stacked,
    weights: PerAgent,
    *,
    at_one_length: bool = False,
    present: PerAgent | None = None,
) -> PerAgent:
    products = products_of(updates, weights, at_one_length=at_one_length, with_rest=True)
    rest: Any = products.rest
    g, d, total = products.with_aggregate, products.squares, products.total
    num_agents = len(g)
    longest = jnp.arange(num_agents) == rest.longest
    # Sums over the others. For the longest agent a difference would be mostly rounding error.
    squares = jnp.where(longest, jnp.where(longest, 0, d).sum(), d.sum() - d)  # sum of d_j
    inner = jnp.where(longest, rest.inner, g - d)  # <a_i, u_N - a_i>
    rests = jnp.where(longest, rest.square, jnp.maximum(total - 2 * g + d, 0))  # |u_N - a_i|^2
    first = jnp.where(longest, rest.square + rest.inner, total - g)  # <u_N - a_i, u_N>
    k = jnp.arange(num_agents, dtype=g.dtype)
    others = jnp.asarray(num_agents if present is None else present.sum(), g.dtype) - 1
    share = k / jnp.maximum(others, 1)
    pair_share = share * (k - 1) / jnp.maximum(others - 1, 1)
    unpaired = share - pair_share

    def estimate(agent: tuple[Scalar, ...]) -> Scalar:
        g_i, d_i, inner_i, first_i, squares_i, rests_i = agent
        before = share * first_i
        length = unpaired * squares_i + pair_share * rests_i
        joined = length + 2 * share * inner_i + d_i
        without = arithmetic.cosine_of(before, length, total)
        with_i = arithmetic.cosine_of(before + g_i, joined, total)
        with_i = jnp.where(k == others, utility_of_all(products), with_i)
        gained = jnp.where(k <= others, with_i - without, 0).sum() / (others + 1)
        return jnp.where(d_i > 0, gained, 0)

    agents = (g, d, inner, first, squares, rests)
    return jax.lax.map(estimate, agents, batch_size=min(num_agents, 256))


_MEASURES = {"cosine": _cosine, "shapley": _shapley, "mean_field": _mean_field}
MEASURES = (*_MEASURES, "gram")
