"""FedAVE: agents earn by their accuracy, and by how much their data look like held-out data.

losses      p_i, h_i   of agent i's trained model on its own data and on held-out data: ten
                       quantiles each, with sum one
likeness    k_i   =  (1 / KL(p_i, h_i)) / max_j (1 / KL(p_j, h_j))
score       w_i   =  k_i^2 times the accuracy of the trained model on held-out data
reputation  r_i  <-  .95 r_i + .05 w_i, at least .001, with sum one; w_i in the first round
fraction    f_i   =  k_i tanh(5 r_i) / max_j tanh(5 r_j)
aggregate   u_N   =  sum_i (n_i / n) .5 dw_i / |dw_i|
reward      of every tensor the share f_i of its entries that are largest
"""

import jax
import jax.numpy as jnp

from fairjax import checks, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, map_present, remembered
from fairjax.mechanisms.lengths import GAMMA, Length, check_length, length_at
from fairjax.mechanisms.tensors import largest_of_tensors
from fairjax.types import Array, PerAgent, Scalar, Stacked

NUM_QUANTILES = 10
FLOOR = 1e-3  # of reputation
TINY = 1e-12  # added to losses and divergences, so that no quotient is 0 / 0


@remembered
def fedave(*, alpha: Scalar = 0.95, beta: Scalar = 5.0, gamma: Length = GAMMA) -> Mechanism:
    """Returns FedAVE: reputations by accuracy and likeness to held-out data.

    All updates are rescaled to one length, which bounds the effect of a huge one.

    The full aggregate may reach nobody: the agent with the highest reputation need not be the one
    whose data are most alike. An absent agent keeps its reputation to the bit; those present share
    what they held together, and only they are compared.

    The state is the reputation `[N]`, zeros at first. Contributions are the scores w_i.

    Args:
      alpha: memory of reputation, in [0, 1]. May be traced.
      beta: how fast fractions rise, above 0. May be traced.
      gamma: the length of uploads, above 0. May be traced; or a schedule, as in `cgsv`.

    Raises:
      ValueError: a known `alpha` is outside [0, 1], a known `beta` is not above 0, `gamma` is none
        of these, or the context lacks held-out data or the agents' parameters, or has a negated
        utility.

    References:
      Wang et al., FedAVE: Adaptive data value evaluation framework for collaborative fairness in
      federated learning, Neurocomputing 2024. The program compares mini-batches that are not
      paired; quantiles are.

    Examples:
      >>> context = Context(shard_sizes=jnp.array([10, 10]), agents=jnp.zeros((2, 2)),
      ...                   utility=lambda w: w.sum() / 4,
      ...                   example_losses=lambda w: (w * w, jnp.ones((2, 2))))
      >>> mechanism = fedave()
      >>> updates = jnp.array([[1.0, 2.0], [1.0, 1.5]])
      >>> outcome, _ = mechanism.update(updates, mechanism.init(2), context)
      >>> print([round(float(one), 2) for one in outcome.fractions])
      [0.27, 1.0]
    """
    checks.between("alpha", alpha, 0, 1)
    checks.above("beta", beta, 0)
    check_length("gamma", gamma)

    def update(
        updates: Stacked, reputation: PerAgent, context: Context
    ) -> tuple[Outcome, PerAgent]:
        context.require_shares("fedave")
        utility = context.require("utility", "fedave")
        losses, agents = (context.require(name, "fedave") for name in ("example_losses", "agents"))
        updates = trees.zero_broken(updates)
        uploads = trees.with_length(updates, length_at(gamma, context, updates))
        aggregate = trees.weighted_sum(context.shares, uploads)
        trained = jax.tree.map(jnp.add, agents, updates)
        likeness = rewards.share_of_largest(
            context.among_present(1 / _divergences(*losses(trained)))
        )
        scores = map_present(utility, trained, context.present) * likeness**2
        scores = jnp.where(jnp.isfinite(scores), scores, 0)
        memory, held = rewards.recall(reputation, jnp.maximum(scores, 0), context.present)
        mixed = jnp.where(memory.sum() > 0, alpha * memory + (1 - alpha) * scores, scores)
        after = rewards.normalised(jnp.maximum(mixed, FLOOR), context.present)
        earned = rewards.reward_fractions(context.among_present(after), beta)
        fractions = likeness * earned
        reputation = rewards.settle(reputation, after, held, context.present)
        paid = largest_of_tensors(aggregate, fractions)
        return Outcome(aggregate, paid, scores, reputation, fractions), reputation

    return Mechanism(jnp.zeros, update)


def _divergences(own: Array, held_out: Array) -> PerAgent:
    """Returns `[N]` Kullback-Leibler divergences of losses `[N, M]` from others `[N, V]`."""

    def quantiles(losses: Array) -> Array:
        places = (jnp.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
        found = jnp.nanquantile(losses, places, axis=1).T + TINY
        return found / found.sum(1, keepdims=True)

    own, held_out = quantiles(own), quantiles(held_out)
    found = (own * jnp.log(own / held_out)).sum(1)
    # A model whose losses are not finite is as unlike as can be.
    return jnp.where(jnp.isfinite(found), jnp.maximum(found, 0) + TINY, jnp.inf)
