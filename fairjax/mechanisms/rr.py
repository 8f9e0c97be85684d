"""RR: robust and fair federated learning. Agents keep their own update and add the reward.

upload      u_i   =  dw_i, rescaled to length gamma where it is longer
aggregate   u_N   =  sum over the reputable set R of r_i u_i
reputation  r_i  <-  alpha r_i + (1 - alpha) cos(u_i, u_N), normalised over R
R           from round 10 on, counted from 0, agents with r_i < 1 / (3 |R|) leave it for good
reward      dw_i + the share r_i / max_j r_j of every tensor of u_N
"""

import jax
import jax.numpy as jnp

from fairjax import checks, contributions, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, first_round_shares, remembered
from fairjax.mechanisms.lengths import GAMMA, Length, check_length, length_at
from fairjax.mechanisms.reputable import drop_low
from fairjax.mechanisms.tensors import largest_of_tensors
from fairjax.types import PerAgent, Scalar, Stacked


@remembered
def rr(
    *,
    alpha: Scalar = 0.95,
    gamma: Length = GAMMA,
    warmup: int = 10,
    threshold: float = 1 / 3,
) -> Mechanism:
    """Returns robust and fair federated learning by reputation.

    The length of an upload is bounded, but an agent keeps its own whole update: one with huge
    numbers ruins only that agent's model.

    An absent agent keeps its reputation to the bit; those present share what they held together,
    and only they are compared with each other.

    An agent that leaves the reputable set has importance 0 and keeps only its own updates.
    The state is `(reputation [N], reputable [N])`.

    Args:
      alpha: memory of reputation, in [0, 1]. May be traced.
      gamma: the greatest length of an upload, above 0. May be traced; or a schedule, as in
        `cgsv`.
      warmup: the first round, counted from 0, in which agents can be dropped.
      threshold: c in c / |R|, the least reputation, in [0, 1].

    Raises:
      ValueError: a known `alpha` or `threshold` is outside [0, 1], `gamma` is not a length
        above 0 or a schedule, or `warmup` is negative.

    References:
      Xu and Lyu, A reputation mechanism is all you need: collaborative fairness and
      adversarial robustness in federated learning, FL-ICML 2021.

    Examples:
      >>> mechanism = rr()
      >>> context = Context(shard_sizes=jnp.array([10, 10]))
      >>> updates = jnp.array([[1.0, 0.0], [1.0, 0.5]])
      >>> outcome, _ = mechanism.update(updates, mechanism.init(2), context)
      >>> print(outcome.contributions > 0.9)
      [ True  True]
    """
    checks.between("alpha", alpha, 0, 1)
    check_length("gamma", gamma)
    checks.count("warmup", warmup, least=0)
    checks.between("threshold", threshold, 0, 1)

    def init(num_agents: int) -> tuple[PerAgent, PerAgent]:
        return jnp.zeros(num_agents), jnp.ones(num_agents, bool)

    def update(
        updates: Stacked, state: tuple[PerAgent, PerAgent], context: Context
    ) -> tuple[Outcome, tuple[PerAgent, PerAgent]]:
        reputation, reputable = state
        updates = trees.zero_broken(updates)
        uploads = trees.at_most_length(updates, length_at(gamma, context, updates))
        among = None if context.present is None else reputable & context.present
        there = reputable if among is None else among
        weights = jnp.where(there, first_round_shares(reputation, context), 0)
        weights = weights if among is None else rewards.normalised(weights, among)
        aggregate = trees.weighted_sum(weights, uploads)
        judged = contributions.measure("cosine", uploads, weights)
        memory, held = rewards.recall(reputation, jnp.maximum(judged, 0), among)
        after = alpha * memory + (1 - alpha) * judged
        can_leave = context.round >= warmup
        after, reputable = drop_low(after, reputable, context.present, threshold, can_leave)
        fractions = jnp.where(there, rewards.share_of_largest(after), 0)
        reputation = rewards.settle(reputation, after, held, among)
        paid = largest_of_tensors(aggregate, fractions)
        granted = trees.scaled(reputable.astype(jnp.float32), paid)
        total = jax.tree.map(jnp.add, updates, granted)
        return Outcome(aggregate, total, judged, reputation, fractions), (reputation, reputable)

    return Mechanism(init, update)
