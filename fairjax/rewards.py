"""Rewards: turn contributions into the model updates that agents receive.

    importance    r_i  <-  alpha r_i + (1 - alpha) phi_i, floored, then normalised
    fraction      f_i   =  tanh(beta r_i) / max_j tanh(beta r_j)
    reward        v_i   =  the floor(f_i D) largest entries of the aggregate

More important agents receive a longer part of the same ranking of entries, so
the order of importance is the order of distance and cosine to the aggregate.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax import checks, trees
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked


def importance(
    previous: PerAgent,
    contributions: PerAgent,
    alpha: Scalar = 0.95,
    floor: Scalar | None = None,
) -> PerAgent:
    """Returns the importance coefficients after a round: a moving average that sums to one.

    Args:
      previous: `[N]` coefficients of the round before, not negative; zeros at first.
      contributions: `[N]` contributions of this round. An entry that is not
        finite counts as 0.
      alpha: memory of the moving average, in [0, 1]. May be traced.
      floor: least coefficient before normalisation, not negative; None: 1e-3, and
        less with more than ten agents: .01/N, or all would stand on it.

    Returns:
      `[N]` coefficients, not negative, with sum one; equal where all would be zero.

    Raises:
      ValueError: shapes disagree, or a known value breaks its rule.

    References:
      Xu et al., Gradient Driven Rewards to Guarantee Fairness in Collaborative
      Machine Learning, NeurIPS 2021, algorithm 1.

    Examples:
      >>> print(np.asarray(importance(jnp.zeros(3), jnp.array([0.9, 0.6, -0.2]))).round(3))
      [0.592 0.395 0.013]
    """
    previous, contributions = jnp.asarray(previous), jnp.asarray(contributions)
    _per_agent("previous", previous)
    checks.shape("contributions", contributions, previous.shape)
    checks.finite("previous", previous)
    if checks.is_known(previous) and (previous < 0).any():
        raise ValueError(f"`previous` must not be negative, got previous={previous}.")
    checks.between("alpha", alpha, 0, 1)
    num_agents = len(previous)
    if floor is None:
        floor = 1e-3 * min(1, 10 / num_agents)
    checks.at_least("floor", floor, 0)
    contributions = jnp.where(jnp.isfinite(contributions), contributions, 0)
    return normalised(jnp.maximum(alpha * previous + (1 - alpha) * contributions, floor))


def normalised(values: PerAgent, among: PerAgent | None = None) -> PerAgent:
    """Returns numbers in the same proportions with sum one; equal where all are zero.

    Args:
      values: `[N]` numbers, not negative.
      among: `[N]` booleans; the others get 0. None: all agents.

    Examples:
      >>> print(normalised(jnp.array([1.0, 3.0])))
      [0.25 0.75]
    """
    counted = jnp.ones(values.shape, bool) if among is None else among
    values = jnp.where(counted, values, 0)
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
      where traced coefficients are all zero.

    Raises:
      ValueError: a known `beta` is not above 0, or known coefficients are
        negative, not finite, or all zero.

    References:
      Xu et al., NeurIPS 2021, section on the reward mechanism.

    Examples:
      >>> print(np.asarray(reward_fractions(jnp.array([0.2, 0.8]), beta=1.0)).round(3))
      [0.297 1.   ]
    """
    importance = jnp.asarray(importance)
    _per_agent("importance", importance)
    checks.above("beta", beta, 0)
    checks.finite("importance", importance)
    if checks.is_known(importance) and ((importance < 0).any() or not importance.any()):
        raise ValueError(
            f"`importance` must not be negative, nor all zero, got importance={importance}."
        )
    return share_of_largest(jnp.tanh(beta * importance))


def share_of_largest(values: PerAgent) -> PerAgent:
    """Returns numbers divided by the largest, which becomes exactly 1; all 1 where all are zero.

    Args:
      values: `[N]` numbers, not negative.

    Examples:
      >>> print(share_of_largest(jnp.array([1.0, 4.0])))
      [0.25 1.  ]
    """
    largest = values.max()
    # A compiled quotient of equal numbers can be a hair off 1.
    return jnp.where(values == largest, 1, values / jnp.where(largest > 0, largest, 1))


def sparsify(aggregate: Params, fractions: PerAgent) -> Stacked:
    """Returns for every agent the aggregate with only its largest entries kept.

    Agent i keeps exactly floor(f_i D) of the D entries of the whole model, largest
    magnitudes first; of entries that tie, the first ones. One sort of D numbers
    serves all agents.

    Args:
      aggregate: leaves without the agent axis, D entries in all.
      fractions: `[N]` in [0, 1]. The product with D is taken in their dtype (float32
        at least); a fraction of 1 keeps all D.

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
    aggregate = jax.tree.map(jnp.asarray, aggregate)
    checks.finite("aggregate", aggregate)
    if isinstance(fractions, jax.Array):
        fractions = fractions.astype(jnp.promote_types(fractions.dtype, jnp.float32))
    else:
        fractions = np.asarray(fractions, np.result_type(np.asarray(fractions), np.float32))
    _per_agent("fractions", fractions)
    if checks.is_known(fractions) and not ((fractions >= 0) & (fractions <= 1)).all():
        raise ValueError(f"`fractions` must lie in [0, 1], got fractions={fractions}.")
    num_parameters = trees.num_parameters(aggregate)
    if num_parameters == 0:
        raise ValueError("`aggregate` must hold at least one entry, got none.")
    return _keep_largest(aggregate, _kept(fractions, num_parameters))


def _per_agent(name: str, values: Array | np.ndarray) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`{name}` must hold one number per agent [N], got shape {values.shape}.")


def _kept(fractions: PerAgent | np.ndarray, num_parameters: int) -> PerAgent:
    """Returns `[N]` numbers of entries q_i = floor(f_i D)."""
    xp = np if isinstance(fractions, np.ndarray) else jnp
    counts = xp.floor(fractions * xp.asarray(num_parameters, fractions.dtype)).astype(np.int32)
    return jnp.asarray(xp.where(fractions == 1, num_parameters, counts), jnp.int32)


@jax.jit
def _keep_largest(aggregate: Params, kept: PerAgent) -> Stacked:
    leaves, structure = jax.tree.flatten(aggregate)
    magnitudes = jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in leaves])
    keys, thresholds = _order_statistics(magnitudes, kept)
    rewards, start = [], 0
    for leaf in leaves:
        mask = keys[start : start + leaf.size].reshape(leaf.shape) >= trees.per_agent(
            thresholds, leaf[None]
        )
        rewards.append(jnp.where(mask, leaf, 0))
        start += leaf.size
    return structure.unflatten(rewards)


def _order_statistics(magnitudes: Array, kept: PerAgent) -> tuple[Array, PerAgent]:
    """Returns keys `[D]` and thresholds `[N]`: agent i keeps the entries with key >= threshold.

    The keys are the bit patterns of the magnitudes, which sort like them and much
    faster. Only where a threshold above zero falls among equal magnitudes are
    the keys positions in a stable ranking, so that exactly `kept` entries pass.
    """
    size = len(magnitudes)
    integer = jnp.int64 if magnitudes.dtype == jnp.float64 else jnp.int32
    bits = lax.bitcast_convert_type(magnitudes.astype(f"float{jnp.iinfo(integer).bits}"), integer)
    ordered = jnp.append(jnp.sort(bits), jnp.iinfo(integer).max)
    thresholds = ordered[size - kept]
    below = jnp.where(kept < size, ordered[size - 1 - kept], -1)
    tied = jnp.any((thresholds == below) & (thresholds > 0))

    def ranked() -> tuple[Array, PerAgent]:
        order = jnp.argsort(-bits, stable=True)
        places = jnp.zeros(size, integer).at[order].set(size - 1 - jnp.arange(size, dtype=integer))
        return places, (size - kept).astype(integer)

    return lax.cond(tied, ranked, lambda: (bits, thresholds))
