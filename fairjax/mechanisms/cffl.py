"""CFFL: agents earn a reputation by their models' accuracy on held-out data.

own update  d_i   =  dw_i with every entry clipped to [-clip, clip]; the agent keeps it
upload      u_i   =  the share theta of the entries of d_i, largest first
score       a_i   =  accuracy of w + u_i, or another main metric that is better when it is higher;
                     at least 0 in reputations
reputation  r_i  <-  .8 r_i + .2 a_i / sum_R a, then sinh(5 (1 + t/T) r_i), normalised
R           agents with r_i < c / |R| leave it for good
aggregate   u     =  sum over R of u_i
reward      d_i + the (r_i / max r) (n_i / max n) D largest entries of u, less u_i
            in those of them that are not zero
"""

import jax
import jax.numpy as jnp

from fairjax import checks, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, map_present, remembered
from fairjax.mechanisms.reputable import drop_low
from fairjax.types import Params, PerAgent, Scalar, Stacked

MEMORY, STEEPNESS = 0.8, 5.0


@remembered
def cffl(
    *,
    theta: float = 0.1,
    clip: Scalar = 0.01,
    threshold: float = 1 / 3,
    richness: str = "size",
) -> Mechanism:
    """Returns collaborative fairness by reputation.

    Entries of updates are clipped, which bounds the effect of a huge one.

    An absent agent keeps its reputation to the bit; those present share what they held together,
    and only they are scored and compared with each other.

    With few agents the published rule can shrink the reputable set to one agent. An
    agent that left the set has importance 0 and trains alone. The state is
    `(reputation [N], reputable [N])`.

    Args:
      theta: share of the entries that is uploaded, in (0, 1].
      clip: greatest magnitude of an entry, above 0; .01 as published for MNIST, .001
        for others. May be traced.
      threshold: c, in [0, 1]; 1/3 as published, and 1/6 for class imbalance.
      richness: "size" of the shard, or "classes", for class imbalance.

    Raises:
      ValueError: `theta` is outside (0, 1], a known `clip` is not above 0, `threshold` is
        outside [0, 1], `richness` is unknown, or the context has no `utility` or a negated one.

    References:
      Lyu et al., Collaborative fairness in federated learning, 2020.

    Examples:
      >>> context = Context(shard_sizes=jnp.array([10, 20]), server=jnp.zeros(2),
      ...                   utility=lambda w: 1 + 10 * w[0])
      >>> mechanism = cffl(theta=1.0)
      >>> updates = jnp.array([[0.01, 0.0], [0.02, 0.01]])
      >>> outcome, _ = mechanism.update(updates, mechanism.init(2), context)
      >>> print(jnp.round(outcome.rewards[1], 2))
      [0.02 0.01]
    """
    checks.share("theta", theta)
    checks.above("clip", clip, 0)
    checks.between("threshold", threshold, 0, 1)
    checks.choice("richness", richness, ("size", "classes"))

    def init(num_agents: int) -> tuple[PerAgent, PerAgent]:
        return jnp.zeros(num_agents), jnp.ones(num_agents, bool)

    def update(
        updates: Stacked, state: tuple[PerAgent, PerAgent], context: Context
    ) -> tuple[Outcome, tuple[PerAgent, PerAgent]]:
        own = jax.tree.map(lambda leaf: jnp.clip(leaf, -clip, clip), trees.zero_broken(updates))
        share = jnp.full(1, theta)
        uploads = jax.lax.map(lambda one: trees.row(rewards.sparsify(one, share)), own)
        context.require_shares("cffl")
        scores = _score_uploads(uploads, context)
        reputation, reputable = _update_reputation(scores, *state, threshold, context)
        aggregate = trees.weighted_sum(reputable.astype(jnp.float32), uploads)
        rich = context.shard_sizes
        if richness == "classes":
            rich = context.require("shard_classes", "cffl")
        earned, rich = context.among_present(reputation), context.among_present(rich)
        fractions = rewards.share_of_largest(earned) * rewards.share_of_largest(rich)
        fractions = jnp.where(reputable, fractions, 0)

        def received(paid: jax.Array, uploaded: jax.Array, kept: jax.Array) -> jax.Array:
            return kept + jnp.where(paid != 0, paid - uploaded, 0)

        paid = jax.tree.map(received, rewards.sparsify(aggregate, fractions), uploads, own)
        # An agent that left the set neither uploads nor downloads.
        paid = trees.where(reputable, paid, own)
        return Outcome(aggregate, paid, scores, reputation, fractions), (reputation, reputable)

    return Mechanism(init, update)


def _score_uploads(uploads: Stacked, context: Context) -> PerAgent:
    """Returns `[N]` utilities of the server's model with one agent's upload added."""
    utility, server = context.require("utility", "cffl"), context.require("server", "cffl")

    def score(one: Params) -> Scalar:
        return utility(jax.tree.map(jnp.add, server, one))

    return map_present(score, uploads, context.present)


def _update_reputation(
    scores: PerAgent, reputation: PerAgent, reputable: PerAgent, threshold: float, context: Context
) -> tuple[PerAgent, PerAgent]:
    """Returns reputations after a round, and whether agents are still reputable."""
    among = None if context.present is None else reputable & context.present
    there = reputable if among is None else among
    share = rewards.normalised(jnp.where(scores > 0, scores, 0), there)
    memory, held = rewards.recall(reputation, share, among)
    mixed = MEMORY * memory + (1 - MEMORY) * share
    played = context.round / jnp.maximum(context.num_rounds, 1)
    after = jnp.sinh(STEEPNESS * (1 + played) * mixed)
    after, reputable = drop_low(after, reputable, context.present, threshold)
    return rewards.settle(reputation, after, held, among), reputable
