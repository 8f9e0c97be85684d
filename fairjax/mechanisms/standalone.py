"""Standalone: every agent keeps its own update, and nothing is shared.

w_i  <-  w_i + dw_i
"""

import jax.numpy as jnp

from fairjax import trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered, unjudged
from fairjax.types import Stacked


@remembered
def standalone() -> Mechanism:
    """Returns training on own data only, the reference for fairness. It has no state.

    A huge update ruins only the agent's own model. An absent agent keeps its model.

    There is no aggregate: the server's model does not change, and contributions,
    importance and reward fractions are nan.

    Examples:
      >>> context = Context(shard_sizes=jnp.array([30, 10]))
      >>> outcome, _ = standalone().update(jnp.array([[4.0, 0.0], [0.0, 4.0]]), (), context)
      >>> print(outcome.rewards)
      [[4. 0.]
       [0. 4.]]
    """

    def update(updates: Stacked, state: tuple, context: Context) -> tuple[Outcome, tuple]:
        updates = trees.zero_broken(updates)
        nothing = trees.map_leaves(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), updates)
        unknown = unjudged(trees.num_agents(updates))
        return Outcome(nothing, updates, unknown, unknown, unknown), state

    return Mechanism(lambda num_agents: (), update, low_rank=True)
