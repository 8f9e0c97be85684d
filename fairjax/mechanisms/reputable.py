"""Reputable sets: agents whose reputation falls too low leave for good.

R    agents with r_i < c / |R| leave, except the most reputable one, so R is never empty; one
     that a rounding error puts below stays
"""

import jax.numpy as jnp

from fairjax import rewards
from fairjax.types import PerAgent, Scalar

ROUNDING = 1e-5  # relative error of the sum of reputations
LEAST = 1e-6  # of a judged agent's reputation, where agents can be absent: 0 means never judged


def drop_low(
    after: PerAgent,
    reputable: PerAgent,
    present: PerAgent | None,
    threshold: Scalar,
    can_leave: Scalar = True,
) -> tuple[PerAgent, PerAgent]:
    """Returns the set's reputations after a round, with sum one, and who is in it.

    Args:
      after: `[N]` reputations of those in the set and present, in any unit.
      reputable: `[N]` booleans: who was in the set.
      present: `[N]` booleans; None: all are there. Absent agents do not leave, and have 0.
      threshold: c, in [0, 1].
      can_leave: whether agents can leave in this round.

    Examples:
      >>> after, reputable = drop_low(jnp.array([0.5, 0.1, 0.4]), jnp.ones(3, bool), None, 0.5)
      >>> print(after.round(2), reputable)
      [0.56 0.   0.44] [ True False  True]
    """
    there = reputable if present is None else reputable & present
    after = rewards.normalised(jnp.maximum(after, 0 if present is None else LEAST), there)
    low = (after < (1 - ROUNDING) * threshold / there.sum()) & (after < after.max())
    reputable = reputable & ~(there & low & can_leave)
    return rewards.normalised(after, there & reputable), reputable
