"""CGSV: judge uploads by their cosine with the aggregate, pay with parts of the aggregate.

upload        u_i   =  gamma dw_i / |dw_i|
aggregate     u_N   =  sum_i r_i u_i, with the shares of the data in the first round
importance    r_i  <-  alpha r_i + (1 - alpha) psi_i, floored, then normalised,
                       psi_i = cos(u_i, u_N) or another measure of contributions
reward        v_i   =  the floor(f_i D) largest entries of u_N, or singular triples,
                       f_i = tanh(beta r_i) / max_j tanh(beta r_j)
"""

from typing import Any

import jax.numpy as jnp

from fairjax import arithmetic, checks, contributions, rewards, trees
from fairjax.mechanisms.base import (
    Context,
    Mechanism,
    Outcome,
    first_round_shares,
    remembered,
    shares_of_present,
)
from fairjax.mechanisms.factors import check_factors
from fairjax.mechanisms.lengths import GAMMA, Length, check_length, length_at
from fairjax.types import Params, PerAgent, Scalar, Stacked


@remembered
def cgsv(
    *,
    alpha: Scalar = 0.95,
    beta: Scalar = 1.0,
    gamma: Length = GAMMA,
    contribution: str = "cosine",
    mask: str = "model",
) -> Mechanism:
    """Returns the paper's mechanism: cosine contributions and masked rewards.

    An absent agent keeps its importance to the bit; those present share what they held together,
    and are weighted and paid among themselves.

    Args:
      alpha: memory of the importance coefficients, in [0, 1]. May be traced.
      beta: altruism degree, above 0. May be traced.
      gamma: length of every upload, above 0, in the parameters' unit. May be traced; or a
        function of the round, such as an optax schedule; "cosine:START:END", half a
        cosine over the run, so that the model settles in the last rounds (END defaults to 0); or
        "median", the median length of the round's updates.
      contribution: "cosine", the paper's approximation psi; "shapley", exact, for at
        most 25 agents; "gram", sampled, for any number, with the round's key; or "mean_field".
      mask: "model" ranks all D entries together; "leaf" ranks every tensor separately; "rank"
        keeps singular triples of the aggregate's matrices in place of entries, as
        `fairjax.rewards.truncate` does;
        "live" is like "model", but D counts only entries that are not zero. Use "live" if
        many entries do not change, such as frozen layers or the vectors of rare words. If D
        counts these, agents with unequal fractions can all receive every changed entry.

    Returns:
      A `Mechanism`; its state is the importance coefficients `[N]`, zeros at first.

    Raises:
      ValueError: a known `alpha` is outside [0, 1], a known `beta` is not above 0, `gamma` is
        not a length above 0 or a schedule, or `contribution` or `mask` is unknown.

    References:
      Xu et al., Gradient Driven Rewards to Guarantee Fairness in Collaborative
      Machine Learning, NeurIPS 2021.

    Examples:
      >>> mechanism = cgsv(beta=2.0)
      >>> updates = jnp.array([[3.0, 1.0, 0.1], [3.0, 0.0, 0.2], [0.0, 0.0, -1.0]])
      >>> context = Context(shard_sizes=jnp.array([10, 10, 10]))
      >>> outcome, _ = mechanism.update(updates, mechanism.init(3), context)
      >>> print((outcome.rewards != 0).sum(1))
      [3 2 1]
    """
    checks.between("alpha", alpha, 0, 1)
    checks.above("beta", beta, 0, vanishing=True)
    check_length("gamma", gamma)
    checks.choice("contribution", contribution, contributions.MEASURES)
    checks.choice("mask", mask, ("model", "leaf", "live", "rank"))

    def update(
        updates: Stacked, importance: PerAgent, context: Context
    ) -> tuple[Outcome, PerAgent]:
        if mask == "rank":
            check_factors("cgsv(mask='rank')", updates, context)
        weights = first_round_shares(importance, context)
        # Sum the updates directly: rescaled uploads would take another N D numbers.
        aggregate = _aggregate(updates, weights, length_at(gamma, context, updates))
        judged = contributions.measure(
            contribution,
            updates,
            weights,
            at_one_length=True,
            key=context.key,
            present=context.present,
        )
        importance = rewards.importance(importance, judged, alpha, present=context.present)
        fractions = rewards.reward_fractions(shares_of_present(importance, context), beta)
        paid = _keep_parts(aggregate, fractions, mask)
        return Outcome(aggregate, paid, judged, importance, fractions), importance

    return Mechanism(jnp.zeros, update, low_rank=True)


def _keep_parts(aggregate: Params, fractions: PerAgent, mask: str) -> Stacked:
    """Returns for every agent its fraction of the aggregate, leaves `[N, ...]`."""

    def keep(leaf: Any) -> Any:
        empty = not leaf.size
        return trees.broadcast(len(fractions), leaf) if empty else rewards.sparsify(leaf, fractions)

    if mask == "rank":
        return rewards.truncate(aggregate, fractions)
    if mask == "leaf":
        return trees.map_leaves(keep, aggregate)
    return rewards.sparsify(aggregate, fractions, live=mask == "live")


def _aggregate(updates: Stacked, weights: PerAgent, gamma: Scalar) -> Params:
    """Returns the weighted sum of the updates rescaled to length gamma."""

    def aggregate(rows: Stacked, units: PerAgent, norms: PerAgent) -> Params:
        return trees.weighted_sum(gamma * arithmetic.ratio(weights, norms), rows)

    return trees.in_safe_units(aggregate, updates)
