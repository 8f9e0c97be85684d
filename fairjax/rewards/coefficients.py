"""Coefficients: from contributions to importance, and from importance to reward fractions.

An agent that is absent in a round keeps its importance; those present share what they held.
"""

import jax.numpy as jnp
from jax import lax

from fairjax import arithmetic, checks, inputs
from fairjax.types import PerAgent, Scalar


def importance(
    previous: PerAgent,
    contributions: PerAgent,
    alpha: Scalar = 0.95,
    floor: Scalar | None = None,
    present: PerAgent | None = None,
) -> PerAgent:
    """Returns the importance coefficients after a round: a moving average that sums to one.

    Args:
      previous: `[N]` coefficients of the previous round, not negative; zeros at first.
      contributions: `[N]` contributions of this round. An entry that is not
        finite counts as 0.
      alpha: memory of the moving average, in [0, 1]. May be traced.
      floor: least coefficient before normalisation, in [0, 1]; None: 1e-3, or .01/N
        for more than ten agents, since a higher floor would lift most of them.
      present: `[N]` booleans, who takes part in this round; None: all. Absent agents keep their
        coefficients to the bit, and those present share anew what they held together. An agent
        that was never judged has 0; its first coefficient follows from its first contribution.

    Returns:
      `[N]` coefficients, not negative, with sum one; equal where all would be zero. Until every
      agent was judged once, the sum is the number of agents judged so far, divided by N. Traced
      values outside their range are clipped to it, with nan as 0; infinite coefficients count
      as 0.

    Raises:
      ValueError: shapes disagree, a known `previous` is negative or not finite, a known
        `alpha` or `floor` is outside [0, 1], or `present` is not `[N]` booleans.

    References:
      Xu et al., Gradient Driven Rewards to Guarantee Fairness in Collaborative
      Machine Learning, NeurIPS 2021, algorithm 1.

    Examples:
      >>> print(importance(jnp.zeros(3), jnp.array([0.9, 0.6, -0.2])).round(3))
      [0.592 0.395 0.013]
    """
    previous = _as_coefficients("previous", previous)
    contributions = inputs.as_numbers("contributions", contributions)
    checks.shape("contributions", contributions, previous.shape)
    checks.between("alpha", alpha, 0, 1)
    floor = least_importance(len(previous)) if floor is None else floor
    checks.between("floor", floor, 0, 1)
    alpha, floor = clip_traced(alpha, 1), clip_traced(floor, 1)
    contributions = jnp.where(jnp.isfinite(contributions), contributions, 0)
    if present is not None:
        present = inputs.as_booleans("present", present)
        checks.shape("present", present, previous.shape)
    memory, held = recall(previous, jnp.maximum(contributions, 0), present)
    mixed = alpha * memory + (1 - alpha) * contributions
    after = normalised(jnp.clip(mixed, floor, jnp.finfo(mixed.dtype).max), present)
    return settle(previous, after, held, present)


def least_importance(num_agents: int) -> float:
    """Returns the floor of importance, .001 for up to ten agents, then less: .01 / N."""
    return 1e-3 * min(1, 10 / num_agents)


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
    return jnp.where(
        total > 0, values / jnp.where(total > 0, total, 1), counted / jnp.maximum(counted.sum(), 1)
    )


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
      >>> [round(float(one), 3) for one in reward_fractions(jnp.array([0.2, 0.8]), beta=1.0)]
      [0.297, 1.0]
    """
    importance = _as_coefficients("importance", importance)
    checks.above("beta", beta, 0, vanishing=True)
    beta = float(beta) if isinstance(beta, int) else beta  # JAX's whole numbers end at 2^31
    if checks.is_known(importance) and not importance.any():
        raise ValueError(f"`importance` must not be all zero, got importance={importance}.")
    products = clip_traced(beta, float(jnp.finfo(importance.dtype).max)) * importance
    # The tanh of a small product is the product itself; avoid it, since it could vanish.
    small = products.max() < 1e-4
    return share_of_largest(jnp.where(small, importance, _tanh_in_order(products)))


def _tanh_in_order(values: PerAgent) -> PerAgent:
    """Returns tanh of numbers `[N]`; rounding never makes that of a larger one smaller."""
    ordered, own = jnp.sort(values), jnp.tanh(values)
    place = jnp.searchsorted(ordered, values, side="right") - 1
    return own + lax.stop_gradient(lax.cummax(jnp.tanh(ordered))[place] - own)


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


def recall(
    previous: PerAgent, first: PerAgent, present: PerAgent | None
) -> tuple[PerAgent, Scalar]:
    """Returns the memories of agents present, scaled to sum one, and the sum of their coefficients.

    An agent that is judged for the first time has nothing to remember: `first` takes the place
    of its memory, and it holds the part 1/N.

    Args:
      previous: `[N]` coefficients, not negative; 0 for agents that were never judged.
      first: `[N]` numbers, not negative; their proportions are the first memories.
      present: `[N]` booleans; None: all are there, and `previous` is the memory.

    Examples:
      >>> memory, held = recall(jnp.array([0.25, 0.25, 0.5]), jnp.ones(3), jnp.array([1, 1, 0]) > 0)
      >>> print(memory, held)
      [0.5 0.5 0. ] 0.5
    """
    if present is None:
        return previous, 1.0
    equal = 1 / len(previous)
    first = normalised(first, present) * present.sum() * equal
    held = jnp.where(present, jnp.where(previous > 0, previous, equal), 0).sum()
    memory = jnp.where(previous > 0, previous, first)
    return normalised(memory, present), held


def settle(previous: PerAgent, after: PerAgent, held: Scalar, present: PerAgent | None) -> PerAgent:
    """Returns coefficients after a round; absent agents keep theirs to the bit.

    Args:
      previous: `[N]` coefficients before the round.
      after: `[N]` new coefficients of those present, with sum one.
      held: the part of all that those present hold, from `recall`.
      present: `[N]` booleans; None: all are there.

    Examples:
      >>> print(settle(jnp.array([0.3, 0.7]), jnp.array([1.0, 0.0]), 0.3, jnp.array([1, 0]) > 0))
      [0.3 0.7]
    """
    return after if present is None else jnp.where(present, held * after, previous)


def _as_coefficients(name: str, values: PerAgent) -> PerAgent:
    """Returns finite `[N]` numbers that are not negative; other traced ones become 0."""
    values = inputs.as_numbers(name, values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    check_one_per_agent(name, values)
    checks.finite(name, values)
    checks.not_negative(name, values)
    return jnp.where(jnp.isfinite(values) & (values > 0), values, 0)


def check_one_per_agent(name: str, values: PerAgent) -> None:
    """Raises unless `values` are `[N]` for at least one agent."""
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`{name}` must hold one number per agent [N], got shape {values.shape}.")


def clip_traced(value: Scalar, most: float) -> Scalar:
    """Returns a known value unchanged and a traced one clipped to [0, most], with nan as 0."""
    if checks.is_known(value):
        return value
    return jnp.where(value > 0, jnp.minimum(value, most), 0)


def _scale_to_safe_unit(values: PerAgent) -> PerAgent:
    """Returns floating numbers, scaled so that sums and quotients of them do not overflow."""
    values = jnp.asarray(values)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return arithmetic.times_power_of_two(values, -arithmetic.largest_exponent(values))
