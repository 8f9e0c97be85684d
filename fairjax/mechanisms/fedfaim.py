"""FedFAIM: agents whose uploads lower the loss on held-out data earn entries of the aggregate.

marginal loss  d_i   =  loss of w + mean of the others' updates less that of w + mean of all
passes               d_i >= -.01
weight         a_i   =  softmax of .1 d over those that pass
aggregate      u_G   =  sum over those that pass of a_i u_i
contribution   c_i   =  a_i |u_i| cos(u_i, u_G), summed over the rounds, at least 0
trust          x_i   =  (.2 passes - .8 fails) / (.2 passes + .8 fails)
reputation     r_i   =  exp(-exp(-5.5 x_i)) c_i / max_j c_j
reward               the (r_i / max_j r_j) D entries of u_G where |u_ik| |u_Gk| is largest
"""

import jax
import jax.numpy as jnp

from fairjax import arithmetic, checks, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked

PASS, FAIL, STEEPNESS = 0.2, 0.8, 5.5  # of the text
DIVERGED = 1e30  # in place of a loss that is not finite


@remembered
def fedfaim(*, threshold: Scalar = 0.01, temperature: Scalar = 0.1) -> Mechanism:
    """Returns FedFAIM: reputations by marginal losses on held-out data.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the models of
    all, if the loss on held-out data lets it pass.

    Absent agents keep their reputation, and neither pass nor fail; those present are compared and
    paid among themselves.

    The state is `(contributions so far [N], passes [N], fails [N])`.

    Args:
      threshold: by how much the held-out loss may be lower without an agent, not negative. May be
        traced.
      temperature: how much weights follow marginal losses, not negative. May be traced.

    Raises:
      ValueError: a known `threshold` or `temperature` is negative, or the context lacks held-out
        losses or the server's parameters.

    References:
      Shi et al., FedFAIM: A model performance-based fair incentive mechanism for federated
      learning, IEEE Transactions on Big Data 2022.

    Examples:
      >>> context = Context(shard_sizes=jnp.array([10, 10]), server=jnp.zeros(2),
      ...                   held_out_loss=lambda w: 1 - w.sum())
      >>> mechanism = fedfaim()
      >>> updates = jnp.array([[1.0, 0.5], [-1.0, -0.5]])
      >>> outcome, _ = mechanism.update(updates, mechanism.init(2), context)
      >>> print(outcome.rewards)
      [[1.  0.5]
       [0.  0. ]]
    """
    checks.at_least("threshold", threshold, 0)
    checks.at_least("temperature", temperature, 0)

    def init(num_agents: int) -> tuple[PerAgent, PerAgent, PerAgent]:
        return jnp.zeros(num_agents), jnp.zeros(num_agents), jnp.zeros(num_agents)

    def update(
        updates: Stacked, state: tuple[PerAgent, PerAgent, PerAgent], context: Context
    ) -> tuple[Outcome, tuple[PerAgent, PerAgent, PerAgent]]:
        total, passes, fails = state
        updates = trees.zero_broken(updates)
        present = context.there
        marginal = _marginal_losses(updates, present, context)
        passed = present & (marginal >= -threshold)
        weights = jnp.where(passed, jnp.exp(temperature * (marginal - marginal.max())), 0)
        weights = arithmetic.ratio(weights, weights.sum())
        aggregate = trees.weighted_sum(weights, updates)
        # a_i |u_i| cos(u_i, u_G) = a_i <u_i, u_G> / |u_G|
        agreed = trees.inner_products(updates, trees.unit(aggregate))
        judged = jnp.where(weights > 0, weights * agreed, 0)
        total = total + judged
        earned = jnp.maximum(total, 0)
        passes, fails = passes + passed, fails + (present & ~passed)
        known = PASS * passes + FAIL * fails
        trust = arithmetic.ratio(PASS * passes - FAIL * fails, known)
        # In logs, since the reputations of agents that failed often vanish.
        logs = -jnp.exp(-STEEPNESS * trust) + jnp.log(arithmetic.ratio(earned, earned.max()))
        fractions = _share_of_largest(jnp.where(present, logs, -jnp.inf))
        paid = _pay(updates, aggregate, fractions)
        importance = rewards.normalised(_share_of_largest(logs))
        outcome = Outcome(aggregate, paid, judged, importance, fractions)
        return outcome, (total, passes, fails)

    return Mechanism(init, update)


def _share_of_largest(logs: PerAgent) -> PerAgent:
    """Returns numbers over the largest, from their logs; all 0 where none has earned anything."""
    largest = logs.max()
    known = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.where(logs > -jnp.inf, jnp.exp(logs - known), 0)


def _marginal_losses(updates: Stacked, present: PerAgent, context: Context) -> PerAgent:
    """Returns `[N]` how much the held-out loss rises without each agent; 0 for absent ones.

    A difference below 8 times the relative rounding error of the loss is 0.
    """
    loss, server = context.require("held_out_loss", "fedfaim"), context.require("server", "fedfaim")
    num_agents = len(present)

    def loss_of(among: PerAgent) -> Scalar:
        mean = trees.weighted_sum(arithmetic.ratio(among, jnp.maximum(among.sum(), 1)), updates)
        return loss(jax.tree.map(jnp.add, server, mean))

    there = present.astype(jnp.float32)
    coalitions = jnp.concatenate([there[None], there * (1 - jnp.eye(num_agents))])
    losses = jax.lax.map(loss_of, coalitions).astype(jnp.float32)
    # A model that diverged is worse than any other, and the agent without whom it does not fails.
    losses = jnp.nan_to_num(losses, nan=DIVERGED, posinf=DIVERGED)
    rises = losses[1:] - losses[0]
    rounding = 8 * jnp.finfo(losses.dtype).eps * jnp.abs(losses[0])
    return jnp.where(present & (jnp.abs(rises) > rounding), rises, 0)


def _pay(updates: Stacked, aggregate: Params, fractions: PerAgent) -> Stacked:
    """Returns the entries of the aggregate that agree most with each agent's own upload."""

    def one(given: tuple[Params, Array]) -> Params:
        own, fraction = given
        scores = jax.tree.map(jnp.multiply, _scale(own), _scale(aggregate))
        kept = rewards.largest_entries(scores, fraction[None])
        return jax.tree.map(lambda mask, leaf: jnp.where(mask[0], leaf, 0), kept, aggregate)

    return jax.lax.map(one, (updates, fractions))


def _scale(tree: Params) -> Params:
    """Returns entries in float32 or wider, at most 1, so that products of them do not vanish."""
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)
    magnitudes = [jnp.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(wide)]
    largest = jnp.stack(magnitudes).max()
    return jax.tree.map(lambda leaf: arithmetic.ratio(leaf, largest), wide)
