"""Masks: a reward is the part of the aggregate with the largest entries.

All agents receive the top of one ranking of entries, and more important agents
receive more of it. So the order of importance is also the order of distance and
of cosine to the aggregate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax import arithmetic, checks, inputs, lowrank, trees
from fairjax.rewards.coefficients import check_one_per_agent, clip_traced
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked

DIGIT_BITS = 8  # bits of a key that one pass of `_select_by_counting` reads


def sparsify(aggregate: Params, fractions: PerAgent, *, live: bool = False) -> Stacked:
    """Returns for every agent the aggregate with only its largest entries kept.

    Agent i keeps exactly floor(f_i D) of the D entries of the whole model: those of
    largest magnitude and, among ties, those that come first. One sort of D numbers
    serves all agents.

    Args:
      aggregate: leaves without the agent axis, D entries in all; a `LowRank` is multiplied out.
      fractions: `[N]` in [0, 1]. The product with D is computed in their dtype (float32
        at least); a fraction of 1 keeps all D. A traced fraction that is nan or negative
        counts as 0, one above 1 as 1.
      live: whether D counts only the entries that are not zero.

    Returns:
      Leaves `[N, ...]`, in the dtypes of the aggregate; whole numbers become float32.

    Raises:
      ValueError: known fractions lie outside [0, 1], or known entries of the
        aggregate are not finite.

    References:
      Xu et al., NeurIPS 2021, section on the reward mechanism.

    Examples:
      >>> print(sparsify(jnp.array([0.1, -3.0, 2.0, 0.5]), jnp.array([0.5, 1.0])))
      [[ 0.  -3.   2.   0. ]
       [ 0.1 -3.   2.   0.5]]
    """
    checks.flag("live", live)
    aggregate = inputs.as_params("aggregate", aggregate)
    checks.finite("aggregate", aggregate)
    aggregate = lowrank.dense(aggregate)
    fractions = checked_fractions(fractions)
    ranked: Any = trees.num_parameters(aggregate)
    if live:
        ranked = trees.sum_leaves(jnp.count_nonzero, aggregate)
    kept = count_kept(fractions, ranked)
    return _keep_largest(aggregate, kept)


def checked_fractions(fractions: PerAgent) -> PerAgent:
    """Returns fractions `[N]` of float32 at least; raises if known ones lie outside [0, 1]."""
    fractions = inputs.as_floating("fractions", fractions)
    fractions = fractions.astype(np.promote_types(fractions.dtype, np.float32))
    check_one_per_agent("fractions", fractions)
    known = np.asarray(fractions) if checks.is_known(fractions) else np.ones(1)
    if not ((known >= 0) & (known <= 1)).all():
        raise ValueError(f"`fractions` must lie in [0, 1], got fractions={fractions}.")
    return fractions


def largest_entries(tree: Params, fractions: PerAgent) -> Stacked:
    """Returns for every agent which entries of a pytree are its floor(f_i D) largest.

    Args:
      tree: leaves without the agent axis, D entries in all.
      fractions: `[N]` in [0, 1].

    Returns:
      Booleans, leaves `[N, ...]`.

    Examples:
      >>> print(largest_entries(jnp.array([0.1, -3.0, 2.0]), jnp.array([0.4])))
      [[False  True False]]
    """
    return find_largest(tree, count_kept(fractions, trees.num_parameters(tree)))


def count_kept(fractions: PerAgent, ranked: Scalar) -> PerAgent:
    """Returns how many entries each agent keeps, `[N]` floor(f_i D), where D is `ranked`."""
    exact = isinstance(fractions, np.ndarray) and isinstance(ranked, int)  # in 64 bits too
    xp = np if exact else jnp
    fractions = clip_traced(xp.asarray(fractions), 1)
    counts = xp.floor(fractions * xp.asarray(ranked, fractions.dtype)).astype(np.int32)
    return jnp.asarray(xp.where(fractions == 1, ranked, counts), jnp.int32)


@jax.jit
def _keep_largest(aggregate: Params, kept: PerAgent) -> Stacked:
    masks = find_largest(aggregate, kept)
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, aggregate)


def find_largest(aggregate: Params, kept: PerAgent) -> Stacked:
    """Returns for every agent which entries are its `kept` largest: booleans `[N, ...]`."""
    leaves, structure = jax.tree.flatten(aggregate)
    entries = jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
    size = len(entries)
    keys = arithmetic.magnitude_bits(entries.astype(jnp.promote_types(entries.dtype, jnp.float32)))
    places = size - 1 - jnp.arange(size, dtype=jnp.int32)  # the first of equal entries is larger
    least, last = lax.platform_dependent(
        keys, places, kept, cpu=_select_by_counting, default=_select_by_sorting
    )
    masks, start = [], 0
    for leaf in leaves:
        own = slice(start, start + leaf.size)
        key, place = keys[own].reshape(leaf.shape), places[own].reshape(leaf.shape)
        least_key, last_place = (trees.per_agent(values, leaf[None]) for values in (least, last))
        masks.append((key > least_key) | ((key == least_key) & (place >= last_place)))
        start += leaf.size
    return structure.unflatten(masks)


def _select_by_sorting(keys: Array, places: Array, kept: PerAgent) -> tuple[PerAgent, PerAgent]:
    """Returns the key and place `[N]` of the kept-th largest entries, by one sort.

    A key above all others means that no entry is kept.
    """
    ordered = lax.sort((keys, places), num_keys=2)
    least, last = (values[jnp.minimum(len(keys) - kept, len(keys) - 1)] for values in ordered)
    return jnp.where(kept > 0, least, jnp.iinfo(keys.dtype).max), last


def _select_by_counting(keys: Array, places: Array, kept: PerAgent) -> tuple[PerAgent, PerAgent]:
    """Returns the same as `_select_by_sorting`, by counting: on a CPU in a tenth of the time.

    Keys, then places, are read digit by digit, the highest digit first. Every agent looks for
    one entry and knows its digits so far, its prefix. Among the entries with that prefix the
    next digits are counted, and the counts give the next digit of the entry. Entries that no
    agent looks for are counted apart.
    """
    num_agents, base = len(kept), 2**DIGIT_BITS
    agents = jnp.arange(num_agents, dtype=jnp.int32)
    of_key, of_place = (
        [*reversed(range(0, num_bits, DIGIT_BITS))]
        for num_bits in (jnp.iinfo(keys.dtype).bits, len(keys).bit_length())
    )
    shifts = jnp.array(of_key + of_place, jnp.int32)

    def read_digit(number: Scalar, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        prefix, wanted, rank, least, last = carry
        at_key = number < len(of_key)
        numbers = jnp.where(at_key, keys, places.astype(keys.dtype))
        cells = prefix * base + (numbers >> shifts[number] & (base - 1)).astype(jnp.int32)
        counts = jnp.zeros((num_agents + 1) * base, jnp.int32).at[cells].add(1)
        at_least = jnp.cumsum(counts.reshape(-1, base)[:, ::-1], axis=1)[:, ::-1]
        at_least = jnp.pad(at_least, ((0, 0), (0, 1)))[wanted]  # [N, base + 1]
        digit = (at_least >= rank[:, None]).sum(1, dtype=jnp.int32) - 1
        rank = rank - at_least[agents, digit + 1]
        least = jnp.where(at_key, least << DIGIT_BITS | digit, least)
        last = jnp.where(at_key, last, last << DIGIT_BITS | digit)
        # Agents with the same prefix all use the number of the first of them.
        cell = wanted * base + digit
        owners = jnp.full(counts.shape, num_agents, jnp.int32).at[cell].min(agents)
        return owners[cells], owners[cell], rank, least, last

    # A zero that depends on both, so that all may differ between devices under `shard_map`.
    zero = 0 * (keys[0].astype(jnp.int32) + kept[0])
    carry = (
        jnp.zeros(len(keys), jnp.int32) + zero,  # [D] number of the entry's prefix
        jnp.zeros(num_agents, jnp.int32) + zero,  # [N] number of the agent's prefix
        jnp.maximum(kept, 1) + zero,  # [N] among the entries of that prefix
        jnp.zeros(num_agents, keys.dtype) + zero.astype(keys.dtype),
        jnp.zeros(num_agents, jnp.int32) + zero,
    )
    *_, least, last = lax.fori_loop(0, len(shifts), read_digit, carry)
    return jnp.where(kept > 0, least, jnp.iinfo(keys.dtype).max), last
