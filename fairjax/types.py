"""The names of shapes: one letter each, the same everywhere in fairjax.

    N  agents           D  parameters of one model     T  rounds
    M  examples of the largest shard                   C  classes

A *stacked* pytree holds one entry per agent on the leading axis of every leaf.
"""

from typing import Any

import jax

Array = jax.Array
Key = jax.Array  # a PRNG key, as made by `jax.random.key`
Scalar = Any  # a number or an array [], may be traced
PerAgent = Any  # [N], an array of JAX or numpy
PerRound = Any  # [T, ...], likewise
PerCoalition = Any  # [2**N], likewise; bit i of the index: is agent i in the coalition
Params = Any  # a pytree of one model's parameters
Stacked = Any  # a pytree whose leaves are [N, ...]
