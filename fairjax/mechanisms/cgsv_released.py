"""CGSV as the authors' released program computes it, where that differs from the paper.

    upload      u_i   =  gamma dw_i / (|dw_i| + 1e-7)
    importance  r_i  <-  max(alpha r_i + (1 - alpha) psi_i, 1e-3), then normalised
    reward      of every tensor of d entries, those at least as large as the k-th
                largest, k = min(ceil(f_i d), d - 1)

So all tied entries are kept, the smallest entry is never paid, k = 0 keeps nothing,
and a tensor with one entry is kept whole.
"""

import jax.numpy as jnp

from fairjax import checks, contributions, lowrank, rewards, trees
from fairjax.mechanisms.base import (
    Context,
    Mechanism,
    Outcome,
    first_round_shares,
    remembered,
    shares_of_present,
)
from fairjax.mechanisms.lengths import GAMMA, Length, check_length, length_at
from fairjax.mechanisms.tensors import largest_of_tensors
from fairjax.types import PerAgent, Scalar, Stacked


@remembered
def cgsv_released(*, alpha: Scalar = 0.95, beta: Scalar = 1.0, gamma: Length = GAMMA) -> Mechanism:
    """Returns CGSV with the released program's rules in place of the paper's.

    An absent agent keeps its importance to the bit; those present share what they held together,
    and are weighted and paid among themselves.

    Args:
      alpha: memory of the importance coefficients, in [0, 1]. May be traced.
      beta: altruism degree, above 0. May be traced.
      gamma: length of every upload, above 0. May be traced; or a schedule, as in `cgsv`.

    Returns:
      A `Mechanism`; its state is the importance coefficients `[N]`, zeros at first.

    Raises:
      ValueError: a known `alpha` is outside [0, 1], a known `beta` is not above 0, or `gamma`
        is not a length above 0 or a schedule.

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
        uploads = _rescale(updates, length_at(gamma, context, updates))
        weights = first_round_shares(importance, context)
        aggregate = trees.weighted_sum(weights, uploads)
        judged = contributions.measure("cosine", uploads, weights)
        importance = rewards.importance(importance, judged, alpha, 1e-3, context.present)
        fractions = rewards.reward_fractions(shares_of_present(importance, context), beta)
        paid = largest_of_tensors(lowrank.dense(aggregate), fractions)
        return Outcome(aggregate, paid, judged, importance, fractions), importance

    return Mechanism(jnp.zeros, update, low_rank=True)


def _rescale(updates: Stacked, gamma: Scalar) -> Stacked:
    """Returns gamma dw_i / (|dw_i| + 1e-7); broken rows are zero."""

    def rescale(rows: Stacked, units: PerAgent, norms: PerAgent) -> Stacked:
        added = jnp.where(units > 0, 1e-7 / units, 1)
        return trees.scaled(gamma / (norms + added), rows)

    return trees.in_safe_units(rescale, updates)
