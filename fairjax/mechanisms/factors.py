"""Factors: what mechanisms share that average the factors of adapters, not their products.

B_t+1 = sum_i p_i B_i     A_t+1 = sum_i p_i A_i     model  w_0 + B_t A_t
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fairjax import checks, lowrank, rowwise, trees
from fairjax.lowrank import LowRank, is_low_rank
from fairjax.mechanisms.base import Context, Outcome, pay_everybody
from fairjax.mechanisms.plans import Plan, for_one_model, start_at_server
from fairjax.types import Params, Stacked


def begin(num_agents: int, factors: Params | None = None) -> Any:
    """Returns the state before the first round: the common factors, or none if unknown."""
    del num_agents
    return () if factors is None else factors


def start_at_server_factors(mechanism: str) -> Callable[[Any, Context], Plan]:
    """Returns the plan by which all agents go on with the common factors, the mechanism's state.

    Without adapters they train the server's model.
    """

    def plan(factors: Any, context: Context) -> Plan:
        if context.factors is None:
            return start_at_server(mechanism)(factors, context)
        server, agents = (context.require(name, mechanism) for name in ("server", "agents"))
        num = len(context.shard_sizes)
        without = jax.tree.map(jnp.subtract, server, lowrank.dense(factors))
        start = trees.broadcast(num, without)
        if context.present is not None:
            start = trees.where(context.present, start, agents)
        return Plan(start=start, factors=trees.broadcast(num, factors))

    return for_one_model(plan)


def check_factors(mechanism: str, updates: Stacked, context: Context) -> None:
    """Raises where agents train adapters, but updates do not hold their factors."""
    if context.factors is not None and not lowrank.holds_low_rank(updates):
        raise ValueError(
            f"`updates` of the mechanism {mechanism!r} must hold `fairjax.LowRank` nodes, by whose "
            "factors it pays, got only arrays. Agents that change their uploads change entries of "
            "products, which have no factors: take `flora`, or `cgsv` with another mask."
        )


def mean_of_factors(updates: Stacked, factors: Any, context: Context) -> Params:
    """Returns the means of both factors, each by itself, and of other leaves.

    An agent's own columns are those below its rank; others count as zero. An agent that uploads
    zeros, for example because its upload was excluded, counts with the old `factors`, if known.
    """
    updates, shares = trees.zero_broken(updates), context.shares
    nothing = rowwise.zero_rows(jax.tree.leaves(updates))  # no factor has an entry
    lost = jnp.where(nothing, shares, 0).sum()

    def of_leaf(leaf: Any) -> Any:
        if not is_low_rank(leaf):
            return trees.weighted_sum(shares, leaf)
        if context.ranks is not None:
            own = jnp.arange(leaf.rank) < jnp.asarray(context.ranks)[:, None]  # [N, r]
            b = jnp.where(own[:, None], leaf.b, 0)
            leaf = LowRank(b, jnp.where(own[:, :, None], leaf.a, 0))
        return LowRank(*(trees.weighted_sum(shares, factor) for factor in leaf))

    def with_old(mean: Any, old: Any) -> Any:
        return LowRank(mean.b + lost * old.b, mean.a + lost * old.a) if is_low_rank(mean) else mean

    mean = trees.map_leaves(of_leaf, updates)
    return mean if factors == () else trees.map_leaves(with_old, mean, factors)


def replaced(factors: Any, mean: Params, num_agents: int) -> tuple[Outcome, Any]:
    """Returns the outcome of a round in which common factors are replaced, and the next ones.

    Agents began without the product of the old ones, and receive that of the new ones.
    """

    def difference(new: Any, old: Any) -> Any:
        if not is_low_rank(new):
            return new
        b = jnp.concatenate([new.b, -old.b], -1)
        return LowRank(b, jnp.concatenate([new.a, old.a], -2))

    aggregate, following = mean, factors
    if factors != ():
        aggregate = trees.map_leaves(difference, mean, factors)
        following = trees.map_leaves(
            lambda one: one if is_low_rank(one) else jnp.zeros_like(one), mean
        )
    return pay_everybody(mean, num_agents)._replace(aggregate=aggregate), following


def check_equal_ranks(mechanism: str, context: Context) -> None:
    """Raises unless all agents' adapters have one rank."""
    if context.ranks is not None and len(set(context.ranks)) > 1:
        raise ValueError(
            f"`ranks` must be equal for the mechanism {mechanism!r}, which averages factors entry "
            f"by entry, got ranks={checks.shown(context.ranks)}. Take `flora`, which adds products "
            "of any ranks, or `zero_padding`."
        )
