"""Rewards: turn contributions into the model updates that agents receive.

    importance    r_i  <-  alpha r_i + (1 - alpha) phi_i, floored, then normalised
    fraction      f_i   =  tanh(beta r_i) / max_j tanh(beta r_j)
    reward        v_i   =  the floor(f_i D) largest entries of the aggregate

All agents receive the top of one ranking of entries, and more important agents
receive more of it. So the order of importance is also the order of distance and
of cosine to the aggregate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax import checks, inputs, trees
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked

DIGIT_BITS = 8  # bits of a key that one pass of `_select_by_counting` reads


def importance(
    previous: PerAgent,
    contributions: PerAgent,
    alpha: Scalar = 0.95,
    floor: Scalar | None = None,
) -> PerAgent:
    """Returns the importance coefficients after a round: a moving average that sums to one.

    Args:
      previous: `[N]` coefficients of the previous round, not negative; zeros at first.
      contributions: `[N]` contributions of this round. An entry that is not
        finite counts as 0.
      alpha: memory of the moving average, in [0, 1]. May be traced.
      floor: least coefficient before normalisation, in [0, 1]; None: 1e-3, or .01/N
        for more than ten agents, since a higher floor would lift most of them.

    Returns:
      `[N]` coefficients, not negative, with sum one; equal where all would be zero. Traced
      values outside their range are clipped to it, with nan as 0; infinite coefficients
      count as 0.

    Raises:
      ValueError: shapes disagree, a known `previous` is negative or not finite, or a known
        `alpha` or `floor` is outside [0, 1].

    References:
      Xu et al., Gradient Driven Rewards to Guarantee Fairness in Collaborative
      Machine Learning, NeurIPS 2021, algorithm 1.

    Examples:
      >>> print(np.asarray(importance(jnp.zeros(3), jnp.array([0.9, 0.6, -0.2]))).round(3))
      [0.592 0.395 0.013]
    """
    previous = _as_coefficients("previous", previous)
    contributions = inputs.as_numbers("contributions", contributions)
    checks.shape("contributions", contributions, previous.shape)
    checks.between("alpha", alpha, 0, 1)
    floor = 1e-3 * min(1, 10 / len(previous)) if floor is None else floor
    checks.between("floor", floor, 0, 1)
    alpha, floor = _clip_traced(alpha, 1), _clip_traced(floor, 1)
    contributions = jnp.where(jnp.isfinite(contributions), contributions, 0)
    mixed = alpha * previous + (1 - alpha) * contributions
    return normalised(jnp.clip(mixed, floor, jnp.finfo(mixed.dtype).max))


def normalised(values: PerAgent, among: PerAgent | None = None) -> PerAgent:
    """Returns numbers in the same proportions with sum one; equal numbers if all are zero.

    Args:
      values: `[N]` numbers, not negative.
      among: `[N]` booleans; agents with False get 0. None: all agents.

    Examples:
      >>> print(normalised(jnp.array([1.0, 3.0])))
      [0.25 0.75]
    """
    counted = jnp.ones(values.shape, bool) if among is None else among
    values = _scale_to_safe_unit(jnp.where(counted, values, 0))
    total = values.sum()
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), counted / counted.sum())


def reward_fractions(importance: PerAgent, beta: Scalar = 1.0) -> PerAgent:
    """Returns the share of the aggregate that each agent earns.

    A small `beta` pays in proportion to importance; as `beta` grows, everybody
    is given everything, whatever they contributed.

    Args:
      importance: `[N]` importance coefficients, not negative, not all zero.
      beta: altruism degree, above 0. May be traced.

    Returns:
      `[N]` fractions in [0, 1]; the most important agent's is exactly 1. All are 1
      where traced coefficients are all zero. Traced coefficients that are negative or
      not finite count as 0. A traced `beta` that is nan or not above 0 counts as the
      smallest, which pays r_i / max_j r_j; an infinite one counts as the largest number.

    Raises:
      ValueError: a known `beta` is not above 0, or known coefficients are
        negative, not finite, or all zero.

    References:
      Xu et al., NeurIPS 2021, section on the reward mechanism.

    Examples:
      >>> print(np.asarray(reward_fractions(jnp.array([0.2, 0.8]), beta=1.0)).round(3))
      [0.297 1.   ]
    """
    importance = _as_coefficients("importance", importance)
    checks.above("beta", beta, 0, vanishing=True)
    beta = float(beta) if isinstance(beta, int) else beta  # JAX's whole numbers end at 2^31
    if checks.is_known(importance) and not importance.any():
        raise ValueError(f"`importance` must not be all zero, got importance={importance}.")
    products = _clip_traced(beta, float(jnp.finfo(importance.dtype).max)) * importance
    # The tanh of a small product is the product itself; avoid it, since it could vanish.
    small = products.max() < 1e-4
    return share_of_largest(jnp.where(small, importance, jnp.tanh(products)))


def share_of_largest(values: PerAgent) -> PerAgent:
    """Returns numbers divided by the largest, which becomes exactly 1; all 1 where all are zero.

    Args:
      values: `[N]` numbers, not negative.

    Examples:
      >>> print(share_of_largest(jnp.array([1.0, 4.0])))
      [0.25 1.  ]
    """
    values = _scale_to_safe_unit(values)
    largest = values.max()
    # In compiled code a number divided by itself can differ slightly from 1.
    return jnp.where(values == largest, 1, values / jnp.where(largest > 0, largest, 1))


def sparsify(aggregate: Params, fractions: PerAgent, *, live: bool = False) -> Stacked:
    """Returns for every agent the aggregate with only its largest entries kept.

    Agent i keeps exactly floor(f_i D) of the D entries of the whole model: those of
    largest magnitude and, among ties, those that come first. One sort of D numbers
    serves all agents.

    Args:
      aggregate: leaves without the agent axis, D entries in all.
      fractions: `[N]` in [0, 1]. The product with D is computed in their dtype (float32
        at least); a fraction of 1 keeps all D. A traced fraction that is nan or negative
        counts as 0, one above 1 as 1.
      live: whether D counts only the entries that are not zero.

    Returns:
      Leaves `[N, ...]`, in the dtypes of the aggregate.

    Raises:
      ValueError: known fractions lie outside [0, 1], or known entries of the
        aggregate are not finite.

    References:
      Xu et al., NeurIPS 2021, section on the reward mechanism.

    Examples:
      >>> print(sparsify(jnp.array([0.1, -3.0, 2.0, 0.5]), jnp.array([0.5, 1.0])))
      [[ 0.  -3.   2.   0. ]
       [ 0.1 -3.   2.   0.5]]
    """
    checks.flag("live", live)
    aggregate = inputs.as_params("aggregate", aggregate)
    checks.finite("aggregate", aggregate)
    fractions = inputs.as_floating("fractions", fractions)
    fractions = fractions.astype(np.promote_types(fractions.dtype, np.float32))
    _check_one_per_agent("fractions", fractions)
    known = np.asarray(fractions) if checks.is_known(fractions) else np.ones(1)
    if not ((known >= 0) & (known <= 1)).all():
        raise ValueError(f"`fractions` must lie in [0, 1], got fractions={fractions}.")
    ranked: Any = trees.num_parameters(aggregate)
    if ranked == 0:
        raise ValueError("`aggregate` must hold at least one entry, got none.")
    if live:
        ranked = trees.sum_leaves(jnp.count_nonzero, aggregate)
    return _keep_largest(aggregate, _count_kept(fractions, ranked))


def _as_coefficients(name: str, values: PerAgent) -> PerAgent:
    """Returns finite `[N]` numbers that are not negative; other traced ones become 0."""
    values = inputs.as_numbers(name, values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    _check_one_per_agent(name, values)
    checks.finite(name, values)
    checks.not_negative(name, values)
    return jnp.where(jnp.isfinite(values) & (values > 0), values, 0)


def _check_one_per_agent(name: str, values: PerAgent) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`{name}` must hold one number per agent [N], got shape {values.shape}.")


def _clip_traced(value: Scalar, most: float) -> Scalar:
    """Returns a known value unchanged and a traced one clipped to [0, most], with nan as 0."""
    if checks.is_known(value):
        return value
    return jnp.where(value > 0, jnp.minimum(value, most), 0)


def _scale_to_safe_unit(values: PerAgent) -> PerAgent:
    """Returns floating numbers, scaled so that sums and quotients of them do not overflow."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return trees.times_power_of_two(values, -trees.largest_exponent(values))


def _count_kept(fractions: PerAgent, ranked: Scalar) -> PerAgent:
    """Returns how many entries each agent keeps, `[N]` floor(f_i D), where D is `ranked`."""
    exact = isinstance(fractions, np.ndarray) and isinstance(ranked, int)  # in 64 bits too
    xp = np if exact else jnp
    fractions = _clip_traced(xp.asarray(fractions), 1)
    counts = xp.floor(fractions * xp.asarray(ranked, fractions.dtype)).astype(np.int32)
    return jnp.asarray(xp.where(fractions == 1, ranked, counts), jnp.int32)


@jax.jit
def _keep_largest(aggregate: Params, kept: PerAgent) -> Stacked:
    leaves, structure = jax.tree.flatten(aggregate)
    magnitudes = jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in leaves])
    size = len(magnitudes)
    # The bit patterns of magnitudes have the same order as the magnitudes.
    integer = jnp.int64 if magnitudes.dtype == jnp.float64 else jnp.int32
    keys = lax.bitcast_convert_type(magnitudes.astype(f"float{jnp.iinfo(integer).bits}"), integer)
    places = size - 1 - jnp.arange(size, dtype=jnp.int32)  # the first of equal entries is larger
    least, last = lax.platform_dependent(
        keys, places, kept, cpu=_select_by_counting, default=_select_by_sorting
    )
    rewards, start = [], 0
    for leaf in leaves:
        own = slice(start, start + leaf.size)
        key, place = keys[own].reshape(leaf.shape), places[own].reshape(leaf.shape)
        least_key, last_place = (trees.per_agent(values, leaf[None]) for values in (least, last))
        mask = (key > least_key) | ((key == least_key) & (place >= last_place))
        rewards.append(jnp.where(mask, leaf, 0))
        start += leaf.size
    return structure.unflatten(rewards)


def _select_by_sorting(keys: Array, places: Array, kept: PerAgent) -> tuple[PerAgent, PerAgent]:
    """Returns the key and place `[N]` of the kept-th largest entries, by one sort.

    A key above all others means that no entry is kept.
    """
    ordered = lax.sort((keys, places), num_keys=2)
    least, last = (values[jnp.minimum(len(keys) - kept, len(keys) - 1)] for values in ordered)
    return jnp.where(kept > 0, least, jnp.iinfo(keys.dtype).max), last


def _select_by_counting(keys: Array, places: Array, kept: PerAgent) -> tuple[PerAgent, PerAgent]:
    """Returns the same as `_select_by_sorting`, by counting: on a CPU in a tenth of the time.

    Keys, then places, are read digit by digit, the highest digit first. Every agent looks for
    one entry and knows its digits so far, its prefix. Among the entries with that prefix the
    next digits are counted, and the counts give the next digit of the entry. Entries that no
    agent looks for are counted apart.
    """
    num_agents, base = len(kept), 2**DIGIT_BITS
    agents = jnp.arange(num_agents, dtype=jnp.int32)
    prefix = jnp.zeros(len(keys), jnp.int32)  # [D] number of the entry's prefix
    wanted = jnp.zeros(num_agents, jnp.int32)  # [N] number of the agent's prefix
    rank = jnp.maximum(kept, 1)  # [N] among the entries of that prefix
    found = []
    for numbers, num_bits in ((keys, jnp.iinfo(keys.dtype).bits), (places, len(keys).bit_length())):
        value = jnp.zeros(num_agents, numbers.dtype)
        for shift in reversed(range(0, num_bits, DIGIT_BITS)):
            cells = prefix * base + ((numbers >> shift) & (base - 1)).astype(jnp.int32)
            counts = jnp.zeros((num_agents + 1) * base, jnp.int32).at[cells].add(1)
            at_least = jnp.cumsum(counts.reshape(-1, base)[:, ::-1], axis=1)[:, ::-1]
            at_least = jnp.pad(at_least, ((0, 0), (0, 1)))[wanted]  # [N, base + 1]
            digit = (at_least >= rank[:, None]).sum(1, dtype=jnp.int32) - 1
            rank = rank - at_least[agents, digit + 1]
            value = value << DIGIT_BITS | digit.astype(value.dtype)
            # Agents with the same prefix all use the number of the first of them.
            cell = wanted * base + digit
            owners = jnp.full(counts.shape, num_agents, jnp.int32).at[cell].min(agents)
            wanted, prefix = owners[cell], owners[cells]
        found.append(value)
    least, last = found
    return jnp.where(kept > 0, least, jnp.iinfo(keys.dtype).max), last
