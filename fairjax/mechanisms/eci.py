"""ECI: CGSV with the contribution index, measured on held-out data, in place of the cosine.

    V(S)   accuracy of w + sum over i in S of (n_i / n_S) dw_i on held-out data,
           or another main metric
    c_i    the Shapley value of V, negative ones as 0, normalised

Importance, fractions and rewards follow from c as in CGSV.
"""

import jax.numpy as jnp

from fairjax import checks, contributions, rewards, trees
from fairjax.mechanisms.base import (
    Context,
    Mechanism,
    Outcome,
    first_round_shares,
    remembered,
    shares_of_present,
)
from fairjax.mechanisms.lengths import GAMMA, Length, check_length, length_at
from fairjax.types import PerAgent, Scalar, Stacked

MAX_SCORED_AGENTS = 12


@remembered
def eci(
    *,
    alpha: Scalar = 0.95,
    beta: Scalar = 1.0,
    gamma: Length = GAMMA,
    num_permutations: int = 20,
) -> Mechanism:
    """Returns rewards by the contribution index.

    Uploads are rescaled to one length, which bounds the effect of a huge one.

    With at most 12 agents the models of all 2^N coalitions are scored in every round;
    with more agents, only the models of sampled and truncated permutations. The state is
    the importance coefficients `[N]`, zeros at first.

    An absent agent keeps its importance to the bit; those present share what they held together,
    and are weighted and paid among themselves.

    Args:
      alpha: memory of the importance coefficients, in [0, 1]. May be traced.
      beta: altruism degree, above 0. May be traced.
      gamma: length of every upload, above 0. May be traced; or a schedule, as in `cgsv`.
      num_permutations: how many are drawn with more than 12 agents.

    Raises:
      ValueError: a known `alpha` is outside [0, 1], a known `beta` is not above 0, `gamma`
        is not a length above 0 or a schedule, `num_permutations` is below 1, or the context
        has no `utility`.

    References:
      Song et al., Profit allocation for federated learning, IEEE Big Data 2019; Liu et
      al., GTG-Shapley, ACM TIST 2022.

    Examples:
      >>> mechanism = eci(beta=1e7)
      >>> context = Context(shard_sizes=jnp.array([10, 10]), server=jnp.zeros(2),
      ...                   utility=lambda w: w[0])
      >>> updates = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> outcome, _ = mechanism.update(updates, mechanism.init(2), context)
      >>> print(outcome.contributions)
      [1. 0.]
    """
    checks.between("alpha", alpha, 0, 1)
    checks.above("beta", beta, 0, vanishing=True)
    check_length("gamma", gamma)
    checks.count("num_permutations", num_permutations)

    def update(
        updates: Stacked, importance: PerAgent, context: Context
    ) -> tuple[Outcome, PerAgent]:
        utility = context.require("utility", "eci")
        sizes = context.among_present(context.shard_sizes)
        scored = (utility, context.require("server", "eci"), updates, sizes)
        if trees.num_agents(updates) <= MAX_SCORED_AGENTS:
            table = contributions.model_utilities(*scored)
            values = contributions.shapley(table)
            # If all others do harm, a rounding error of 0 would be worth everything.
            rounding = 8 * jnp.finfo(values.dtype).eps * jnp.abs(table).max()
            values = jnp.where(values > rounding, values, 0)
        else:
            key = context.require("key", "eci")
            values = contributions.gtg_shapley(key, *scored, num_permutations=num_permutations)
        judged = rewards.normalised(jnp.maximum(values, 0), context.present)
        uploads = trees.with_length(updates, length_at(gamma, context, updates))
        aggregate = trees.weighted_sum(first_round_shares(importance, context), uploads)
        importance = rewards.importance(importance, judged, alpha, present=context.present)
        fractions = rewards.reward_fractions(shares_of_present(importance, context), beta)
        paid = rewards.sparsify(aggregate, fractions)
        return Outcome(aggregate, paid, judged, importance, fractions), importance

    return Mechanism(jnp.zeros, update)
