"""CGSV as the authors' released program computes it, where that differs from the paper.

    upload      u_i   =  gamma dw_i / (|dw_i| + 1e-7)
    importance  r_i  <-  max(alpha r_i + (1 - alpha) psi_i, 1e-3), then normalised
    reward      of every tensor of d entries, those at least as large as the k-th
                largest, k = min(ceil(f_i d), d - 1)

So entries that tie all stay, the smallest entry never arrives, k = 0 keeps nothing,
and a tensor of one entry is kept whole.
"""

import jax
import jax.numpy as jnp

from fairjax import checks, contributions, rewards, trees
from fairjax.mechanisms.base import (
    GAMMA,
    Context,
    Length,
    Mechanism,
    Outcome,
    check_length,
    length_at,
)
from fairjax.mechanisms.cgsv import first_round_shares
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked


def cgsv_released(*, alpha: Scalar = 0.95, beta: Scalar = 1.0, gamma: Length = GAMMA) -> Mechanism:
    """Returns CGSV with the released program's rules in place of the paper's.

    Args:
      alpha: memory of the importance coefficients, in [0, 1]. May be traced.
      beta: altruism degree, above 0. May be traced.
      gamma: length of every upload, above 0. May be traced; or a schedule, as in `cgsv`.

    Returns:
      A `Mechanism`; its state is the importance coefficients `[N]`, zeros at first.

    Raises:
      ValueError: a known value breaks its rule.

    References:
      Xu et al., NeurIPS 2021, and the program published with it.

    Examples:
      >>> mechanism = cgsv_released(beta=1e7)
      >>> updates = jnp.array([[3.0, 1.0, 0.1], [3.0, 0.0, 0.2]])
      >>> context = Context(shard_sizes=jnp.array([10, 10]))
      >>> outcome, _ = mechanism.update(updates, mechanism.init(2), context)
      >>> print((outcome.rewards != 0).sum(1))
      [2 2]
    """
    checks.between("alpha", alpha, 0, 1)
    checks.above("beta", beta, 0, vanishing=True)
    check_length("gamma", gamma)

    def update(
        updates: Stacked, importance: PerAgent, context: Context
    ) -> tuple[Outcome, PerAgent]:
        uploads = _rescaled(updates, length_at(gamma, context))
        weights = first_round_shares(importance, context)
        aggregate = trees.weighted_sum(weights, uploads)
        judged = contributions.measure("cosine", uploads, weights)
        importance = rewards.importance(importance, judged, alpha, floor=1e-3)
        fractions = rewards.reward_fractions(importance, beta)
        paid = largest_of_tensors(aggregate, fractions)
        return Outcome(aggregate, paid, judged, importance, fractions), importance

    return Mechanism(jnp.zeros, update)


def _rescaled(updates: Stacked, gamma: Scalar) -> Stacked:
    """Returns gamma dw_i / (|dw_i| + 1e-7); broken rows are zero."""

    def rescaled(rows: Stacked, units: PerAgent, norms: PerAgent) -> Stacked:
        added = jnp.where(units > 0, 1e-7 / units, 1)
        return trees.scaled(gamma / (norms + added), rows)

    return trees.in_safe_units(rescaled, updates)


def largest_of_tensors(aggregate: Params, fractions: PerAgent) -> Stacked:
    """Returns for every agent the largest entries of every tensor; see the module's first lines.

    Args:
      aggregate: leaves without the agent axis.
      fractions: `[N]` in [0, 1].

    Returns:
      Leaves `[N, ...]`.
    """
    return jax.tree.map(lambda leaf: _largest_of_tensor(leaf, fractions), aggregate)


def _largest_of_tensor(tensor: Array, fractions: PerAgent) -> Stacked:
    size = tensor.size
    kept = jnp.minimum(jnp.ceil(fractions * size).astype(jnp.int32), size - 1)
    magnitudes = jnp.sort(jnp.abs(tensor).reshape(-1), descending=True)
    thresholds = jnp.where(kept > 0, magnitudes[kept - 1], jnp.inf if size > 1 else 0)
    return jnp.where(jnp.abs(tensor) >= trees.per_agent(thresholds, tensor[None]), tensor, 0)
