"""IAFL: an agent receives the mean of its own update and of some others, drawn at random.

share    g_i  =  (p_i / max_j p_j)^(1 - kappa)
reward   mean of dw_i and of ceil(g_i (N - 1)) other agents' updates
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fairjax import checks, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, unjudged
from fairjax.types import PerAgent, Scalar, Stacked


def iafl(*, kappa: Scalar = 0.0, performance: Sequence[float] | None = None) -> Mechanism:
    """Returns incentive-aware federated learning with training-time rewards. It has no state.

    It does not judge updates: contributions are nan; importance is p_i, normalised. The
    server holds the mean of all updates. Draws follow from the round's key.

    Args:
      kappa: how far rewards are evened out, in [0, 1]. May be traced.
      performance: `[N]` p, such as standalone accuracies on held-out data; None: shard
        sizes.

    Raises:
      ValueError: a known value breaks its rule.

    References:
      Wu et al., Incentive-aware federated learning with training-time model rewards,
      ICLR 2024.

    Examples:
      >>> context = Context(shard_sizes=jnp.array([0, 10]), key=jax.random.key(0))
      >>> outcome, _ = iafl().update(jnp.array([[4.0], [2.0]]), (), context)
      >>> print(outcome.rewards.ravel())
      [4. 3.]
    """
    checks.between("kappa", kappa, 0, 1)
    if performance is not None:
        checks.finite("performance", performance)
        if min(performance) < 0 or max(performance) <= 0:
            raise ValueError(
                f"`performance` must not be negative, nor all zero, got {performance}."
            )

    def update(updates: Stacked, state: tuple, context: Context) -> tuple[Outcome, tuple]:
        updates = trees.zero_broken(updates)
        num_agents = trees.num_agents(updates)
        measured = jnp.asarray(context.shard_sizes if performance is None else performance)
        checks.shape("performance", measured, (num_agents,))
        fractions = rewards.share_of_largest(measured) ** (1 - kappa)
        # A hair less than the product, so that rounding cannot turn a whole number up.
        others = jnp.ceil(fractions * (num_agents - 1) - 1e-5)
        received = _drawn(context.require("key", "iafl"), others)
        weights = received / received.sum(1, keepdims=True)
        paid = jax.tree.map(
            lambda leaf: trees.dot(weights, trees.rows(leaf)).reshape(leaf.shape), updates
        )
        aggregate = trees.weighted_sum(jnp.full(num_agents, 1 / num_agents), updates)
        importance = measured / measured.sum()
        return Outcome(aggregate, paid, unjudged(num_agents), importance, fractions), state

    return Mechanism(lambda num_agents: (), update)


def _drawn(key: jax.Array, others: PerAgent) -> jax.Array:
    """Returns `[N, N]` zeros and ones: whose updates each agent receives, its own among them."""
    num_agents = len(others)
    scores = jax.random.uniform(key, (num_agents, num_agents))
    scores = jnp.where(jnp.eye(num_agents, dtype=bool), -1, scores)
    ranks = scores.argsort(axis=1).argsort(axis=1)
    return (ranks <= others[:, None]).astype(jnp.float32)
