"""Rewards: turn contributions into the model updates that agents receive.

    importance    r_i  <-  alpha r_i + (1 - alpha) phi_i, floored, then normalised
    fraction      f_i   =  tanh(beta r_i) / max_j tanh(beta r_j)
    reward        v_i   =  the floor(f_i D) largest entries of the aggregate

`coefficients` has the first two, `masks` the last.
"""

from fairjax.rewards.coefficients import (
    importance,
    normalised,
    recall,
    reward_fractions,
    settle,
    share_of_largest,
)
from fairjax.rewards.masks import largest_entries, sparsify

__all__ = [
    "importance", "largest_entries", "normalised", "recall", "reward_fractions", "settle",
    "share_of_largest", "sparsify",
]  # fmt: skip
