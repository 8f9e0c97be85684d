"""Contributions over a whole run, from the uploads that its rounds recorded.

    round         V_t(S) = utility(w_t + sum over i in S of (n_i / n_S) dw_i,t)
    contribution  sum over rounds of lambda^t times the Shapley value of V_t

`fj.run(..., record_updates=True)` leaves w_t in `history.servers` and dw_t in
`history.updates`; anybody's stacked uploads will do. One compiled program scores the
T 2^N models.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairjax import checks
from fairjax.contributions.coalitions import shapley
from fairjax.contributions.models import Utility, check_finite, model_utilities
from fairjax.types import Array, Params, PerAgent, PerRound, Scalar, Stacked


def recorded_utilities(
    utility: Utility, servers: Params, updates: Stacked, weights: PerAgent | None = None
) -> PerRound:
    """Returns the utilities of all coalitions' models in every round.

    For another value than Shapley's: `jax.vmap(banzhaf)(recorded_utilities(...)).sum(0)`.

    Args:
      utility: `utility(params) -> scalar`; traced into a compiled program.
      servers: leaves `[T, ...]`, what updates of the round are added to.
      updates: leaves `[T, N, ...]`, N at most 16. A broken row counts as zero.
      weights: `[N]` or `[T, N]` n_i, not negative; an agent of weight 0 takes no part.
        None: equal.

    Returns:
      `[T, 2**N]`; bit i of the index says whether agent i is in the coalition.

    Raises:
      ValueError: N is above 16, shapes disagree, or the utility is not a finite scalar.

    Examples:
      >>> servers, updates = jnp.zeros((3, 2)), jnp.ones((3, 2, 2))
      >>> recorded_utilities(lambda w: w.sum(), servers, updates).shape
      (3, 4)
    """
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in map(jnp.asarray, _leaves(servers))}
    lengths |= {leaf.shape[0] if leaf.ndim else 0 for leaf in map(jnp.asarray, _leaves(updates))}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "`servers` and `updates` must have one number of rounds, at least one, on their "
            f"leading axes, got {sorted(lengths)}."
        )
    num_rounds = lengths.pop()
    if weights is not None:
        weights = jnp.asarray(weights)
        checks.finite("weights", weights)
        weights = jnp.broadcast_to(weights, (num_rounds, weights.shape[-1]))
    tables = _tables(utility, servers, updates, weights)
    check_finite(utility, tables)
    return tables


def multi_round_shapley(
    utility: Utility,
    servers: Params,
    updates: Stacked,
    weights: PerAgent | None = None,
    *,
    decay: Scalar = 1.0,
) -> PerAgent:
    """Returns multi-round Shapley values: MR with a `decay` of 1, lambda-MR below.

    Args:
      utility: `utility(params) -> scalar`; traced into a compiled program.
      servers: leaves `[T, ...]`, the server's parameters at the rounds' starts.
      updates: leaves `[T, N, ...]`, N at most 16.
      weights: `[N]` or `[T, N]` n_i, not negative; None: equal.
      decay: lambda in [0, 1]: how much a round counts against the one before.

    Returns:
      `[N]`; for a decay of 1 the sum is what the rounds added to the utility.

    Raises:
      ValueError: as in `recorded_utilities`.

    References:
      Song et al., Profit allocation for federated learning, IEEE Big Data 2019.

    Examples:
      >>> servers = jnp.zeros((3, 2))
      >>> updates = jnp.tile(jnp.array([[1.0, 0.0], [0.0, 3.0]]), (3, 1, 1))
      >>> print(multi_round_shapley(lambda w: w.sum(), servers, updates))
      [0. 6.]
      >>> print(multi_round_shapley(lambda w: w.sum(), servers, updates, decay=0.5))
      [0.  3.5]
    """
    checks.between("decay", decay, 0, 1)
    values = jax.vmap(shapley)(recorded_utilities(utility, servers, updates, weights))
    return jnp.float32(decay) ** jnp.arange(len(values)) @ values


def federated_shapley(
    utility: Utility,
    servers: Params,
    updates: Stacked,
    participants: PerRound,
    weights: PerAgent | None = None,
) -> PerAgent:
    """Returns federated Shapley values: in every round among those who took part in it.

    Who took no part in a round gets nothing for it. Where all always take part, these are
    the multi-round values.

    Args:
      utility: `utility(params) -> scalar`; traced into a compiled program.
      servers: leaves `[T, ...]`, the server's parameters at the rounds' starts.
      updates: leaves `[T, N, ...]`, N at most 16.
      participants: `[T, N]` booleans.
      weights: `[N]` or `[T, N]` n_i, not negative; None: equal.

    Returns:
      `[N]`.

    Raises:
      ValueError: as in `recorded_utilities`, or `participants` is not `[T, N]`.

    References:
      Wang et al., A principled approach to data valuation for federated learning, 2020.

    Examples:
      >>> servers, updates = jnp.zeros((2, 2)), jnp.ones((2, 2, 2))
      >>> participants = jnp.array([[True, True], [True, False]])
      >>> print(federated_shapley(lambda w: w.sum(), servers, updates, participants))
      [3. 1.]
    """
    wanted = jnp.shape(_leaves(updates)[0])[:2]
    participants = jnp.asarray(participants)
    checks.shape("participants", participants, wanted)
    weights = participants * (1.0 if weights is None else jnp.asarray(weights))
    return multi_round_shapley(utility, servers, updates, weights)


def _tables(utility: Utility, servers: Params, updates: Stacked, weights: Any) -> Array:
    def one(row: tuple[Params, Stacked, Any]) -> Array:
        return model_utilities(utility, *row)

    return jax.jit(lambda rows: lax.map(one, rows))((servers, updates, weights))


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)
