"""Rewards: turn contributions into the model updates that agents receive.

    importance    r_i  <-  alpha r_i + (1 - alpha) phi_i, floored, then normalised
    fraction      f_i   =  tanh(beta r_i) / max_j tanh(beta r_j)
    reward        v_i   =  the floor(f_i D) largest entries of the aggregate

`coefficients` has the first two, `masks` the last. `triples` keeps singular triples in place of
entries. In `submodels` a reward is a network without some of its hidden units.
"""

from fairjax.rewards.coefficients import (
    importance,
    least_importance,
    normalised,
    recall,
    reward_fractions,
    settle,
    share_of_largest,
)
from fairjax.rewards.masks import largest_entries, sparsify
from fairjax.rewards.submodels import (
    ALWAYS,
    Units,
    entries_held,
    mean_of_holders,
    nested_units,
    submodels,
)
from fairjax.rewards.triples import truncate

__all__ = [
    "ALWAYS", "Units", "entries_held", "importance", "largest_entries", "least_importance",
    "mean_of_holders", "nested_units", "normalised", "recall", "reward_fractions", "settle",
    "share_of_largest", "sparsify", "submodels", "truncate",
]  # fmt: skip
