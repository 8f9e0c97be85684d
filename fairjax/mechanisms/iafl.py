"""IAFL: an agent receives the mean of its own update and some randomly drawn others.

share    g_i  =  (p_i / max_j p_j)^(1 - kappa)
reward   mean of dw_i and of ceil(g_i (N - 1)) other agents' updates
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered, unjudged
from fairjax.types import PerAgent, Scalar, Stacked


@remembered
def iafl(*, kappa: Scalar = 0.0, performance: PerAgent | None = None) -> Mechanism:
    """Returns incentive-aware federated learning with training-time rewards. It has no state.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the
    models of all that receive them.

    If agents are absent, updates are drawn from those present.

    It does not judge updates: contributions are nan; importance is p_i, normalised. The
    aggregate is the mean of all updates. The round's key determines the draws.

    Args:
      kappa: how much rewards are equalised, in [0, 1]. May be traced.
      performance: `[N]` p, not negative and not all zero, such as standalone accuracies on
        held-out data; None: shard sizes.

    Raises:
      ValueError: a known `kappa` is outside [0, 1], or `performance` is not `[N]`, is
        negative, not finite or all zero.

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
        rule = "a number per agent [N], finite, not negative and not all zero"
        known = checks.numbers("performance", performance, rule, num_axes=1).astype(np.float64)
        if not np.isfinite(known).all() or (known < 0).any() or not known.any():
            raise ValueError(f"`performance` must hold {rule}, got {performance!r:.100}.")
        performance = known / known.max()  # numbers that float32 holds

    def update(updates: Stacked, state: tuple, context: Context) -> tuple[Outcome, tuple]:
        updates = trees.zero_broken(updates)
        num_agents = trees.num_agents(updates)
        measured: Any = context.shard_sizes if performance is None else jnp.asarray(performance)
        checks.shape("performance", measured, (num_agents,))
        fractions = rewards.share_of_largest(context.among_present(measured)) ** (1 - kappa)
        present = jnp.ones(num_agents, bool) if context.present is None else context.present
        # Subtract a little, so that a rounding error cannot raise a whole number.
        others = jnp.ceil(fractions * (present.sum() - 1) - 1e-5)
        received = _draw_updates(context.require("key", "iafl"), others, present)
        weights = received / received.sum(1, keepdims=True)
        paid = trees.weighted_sums(weights, updates)
        aggregate = trees.weighted_sum(present / present.sum(), updates)
        importance = measured / measured.sum()
        return Outcome(aggregate, paid, unjudged(num_agents), importance, fractions), state

    return Mechanism(lambda num_agents: (), update)


def _draw_updates(key: jax.Array, others: PerAgent, present: PerAgent) -> jax.Array:
    """Returns `[N, N]` zeros and ones: whether agent i receives update j; it keeps its own.

    Only agents `present` `[N]` give updates.
    """
    num_agents = len(others)
    scores = jax.random.uniform(key, (num_agents, num_agents))
    scores = jnp.where(present, scores, 1)  # drawn last, that is, never
    scores = jnp.where(jnp.eye(num_agents, dtype=bool), -1, scores)
    ranks = scores.argsort(axis=1).argsort(axis=1)
    return (ranks <= others[:, None]).astype(jnp.float32)
