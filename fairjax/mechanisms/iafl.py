"""IAFL: an agent receives the mean of its own update and some randomly drawn others.

share    g_i  =  (p_i / max_j p_j)^(1 - kappa)
reward   mean of dw_i and of ceil(g_i (N - 1)) other agents' updates
"""

from typing import Any

import jax
import jax.numpy as jnp

from fairjax import checks, rewards, trees
from fairjax.mechanisms.alone import (
    WORDS,
    Measure,
    Performance,
    check_performance,
    performance_of,
)
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered, unjudged
from fairjax.types import Array, PerAgent, Scalar, Stacked


@remembered
def iafl(*, kappa: Scalar = 0.0, performance: Performance = "size") -> Mechanism:
    """Returns incentive-aware federated learning with training-time rewards.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the
    models of all that receive them.

    If agents are absent, updates are drawn from those present.

    It does not judge updates: contributions are nan; importance is p_i, normalised. The
    aggregate is the mean of all updates. The round's key determines the draws. The state is p, or
    empty if p are sizes.

    Args:
      kappa: how much rewards are equalised, in [0, 1]. May be traced.
      performance: p: "size" of the shards; "held_out", what agents reach alone on held-out data by
        the end of the run; "test", the same on the test data, an oracle; or numbers `[N]`, not
        negative and not all zero. Words need a metric that is better when it is higher.

    Raises:
      ValueError: a known `kappa` is outside [0, 1], or `performance` is not `[N]`, is
        negative, not finite or all zero; or a word, and the context has a negated utility.

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
    given = check_performance(performance, ("size", *WORDS))
    if not isinstance(given, str):
        given = given / given.max()  # numbers that float32 holds

    by_size = isinstance(given, str) and given == "size"

    def init(num_agents: int, performance: Measure = None) -> Any:
        return () if by_size else performance_of(given, num_agents, performance)

    def update(updates: Stacked, state: Any, context: Context) -> tuple[Outcome, Any]:
        if isinstance(given, str) and not by_size:
            context.require_shares("iafl")
        updates = trees.zero_broken(updates)
        num_agents = trees.num_agents(updates)
        measured: Any = context.shard_sizes if by_size else jnp.maximum(state, 0)
        fractions = rewards.share_of_largest(context.among_present(measured)) ** (1 - kappa)
        present = context.there
        others = _round_up(fractions * (present.sum() - 1))
        received = _draw_updates(context.require("key", "iafl"), others, present)
        weights = received / received.sum(1, keepdims=True)
        paid = trees.weighted_sum(weights, updates)
        aggregate = trees.weighted_sum(present / present.sum(), updates)
        importance = rewards.normalised(measured)
        return Outcome(aggregate, paid, unjudged(num_agents), importance, fractions), state

    return Mechanism(init, update, low_rank=True)


def _round_up(values: Array) -> Array:
    """Returns the next whole numbers; a rounding error does not raise a whole number."""
    whole = jnp.round(values)
    rounding = 2 * jnp.finfo(values.dtype).eps * values
    return jnp.where(jnp.abs(values - whole) <= rounding, whole, jnp.ceil(values))


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
