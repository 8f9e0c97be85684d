"""Contributions over a whole run, from the uploads that its rounds recorded.

    round         V_t(S) = utility(w_t + sum over i in S of (n_i / n_S) dw_i,t)
    contribution  sum over rounds of lambda^t times the Shapley value of V_t

`fj.run(..., record_updates=True)` and `fj.Experiment(record_updates=True)` store w_t in
`history.servers`, dw_t in `history.updates`, and who took part in `history.participants`:

    federated_shapley(experiment.utility(), history.servers, history.updates,
                      history.participants, weights=result.shard_sizes)

Other stacked uploads work too. One compiled program scores the T 2^N models.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax import checks, inputs, trees
from fairjax.contributions.coalitions import shapley
from fairjax.contributions.models import Utility, check_finite, describe_coalition, model_utilities
from fairjax.types import Array, Params, PerAgent, PerRound, Scalar, Stacked


def recorded_utilities(
    utility: Utility,
    servers: Params,
    updates: Stacked,
    weights: PerAgent | None = None,
    participants: PerRound | None = None,
) -> PerRound:
    """Returns the utilities of all coalitions' models in every round.

    Use them for other values than Shapley's, such as
    `jax.vmap(banzhaf)(recorded_utilities(...)).sum(0)`.

    Args:
      utility: `utility(params) -> scalar`; traced into a compiled program.
      servers: leaves `[T, ...]`, the server's parameters at the rounds' starts.
      updates: leaves `[T, N, ...]`, N at most 16. A broken row counts as zero. Lists of
        rounds, and of agents in them, are stacked where they cannot mean layers.
      weights: `[N]` or `[T, N]` n_i, not negative; an agent of weight 0 takes no part.
        None: equal.
      participants: `[T, N]` booleans; an agent takes no part in a round where it has False.
        None: all take part.

    Returns:
      `[T, 2**N]`; bit i of the index says whether agent i is in the coalition.

    Raises:
      ValueError: N is above 16, shapes disagree, `participants` are not booleans `[T, N]`, or the
        utility is not a finite scalar.

    Examples:
      >>> servers, updates = jnp.zeros((3, 2)), jnp.ones((3, 2, 2))
      >>> recorded_utilities(lambda w: w.sum(), servers, updates).shape
      (3, 4)
    """
    servers, updates = _as_rounds(servers, updates)
    of_rounds = _as_weights(weights, updates)
    if participants is not None:
        participants = inputs.as_booleans("participants", participants)
        checks.shape("participants", participants, of_rounds.shape)
        of_rounds = participants * of_rounds
    tables = _score_rounds(utility, servers, updates, of_rounds)

    def coalition(place: int) -> str:
        round, index = divmod(place, tables.shape[1])
        return f"{describe_coalition(index)} in round {round}"

    check_finite(utility, tables, coalition)
    return tables


def multi_round_shapley(
    utility: Utility,
    servers: Params,
    updates: Stacked,
    weights: PerAgent | None = None,
    participants: PerRound | None = None,
    *,
    decay: Scalar = 1.0,
) -> PerAgent:
    """Returns multi-round Shapley values: MR with a `decay` of 1, lambda-MR below.

    Args:
      utility: `utility(params) -> scalar`; traced into a compiled program.
      servers: leaves `[T, ...]`, the server's parameters at the rounds' starts.
      updates: leaves `[T, N, ...]`, N at most 16.
      weights: `[N]` or `[T, N]` n_i, not negative; None: equal.
      participants: as in `recorded_utilities`.
      decay: lambda in [0, 1], the weight of a round relative to the one before.

    Returns:
      `[N]`; with a decay of 1 they sum to what the rounds added to the utility.

    Raises:
      ValueError: `decay` is outside [0, 1], or as in `recorded_utilities`.

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
    tables = recorded_utilities(utility, servers, updates, weights, participants)
    values = jax.vmap(shapley)(tables)
    return jnp.asarray(decay, values.dtype) ** jnp.arange(len(values)) @ values


def federated_shapley(
    utility: Utility,
    servers: Params,
    updates: Stacked,
    participants: PerRound | None,
    weights: PerAgent | None = None,
) -> PerAgent:
    """Returns federated Shapley values: agents share the rounds in which they took part.

    An agent gets nothing for a round in which it took no part. These are the multi-round values
    with a decay of 1.

    Args:
      utility: `utility(params) -> scalar`; traced into a compiled program.
      servers: leaves `[T, ...]`, the server's parameters at the rounds' starts.
      updates: leaves `[T, N, ...]`, N at most 16.
      participants: `[T, N]` booleans: whether the agent took part in the round; None: all did.
      weights: `[N]` or `[T, N]` n_i, not negative; None: equal.

    Returns:
      `[N]`.

    Raises:
      ValueError: as in `recorded_utilities`.

    References:
      Wang et al., A principled approach to data valuation for federated learning, 2020.

    Examples:
      >>> servers, updates = jnp.zeros((2, 2)), jnp.ones((2, 2, 2))
      >>> participants = jnp.array([[True, True], [True, False]])
      >>> print(federated_shapley(lambda w: w.sum(), servers, updates, participants))
      [3. 1.]
    """
    return multi_round_shapley(utility, servers, updates, weights, participants)


def _score_rounds(utility: Utility, servers: Params, updates: Stacked, weights: PerRound) -> Array:
    def score_round(row: tuple[Params, Stacked, PerAgent]) -> Array:
        return model_utilities(utility, *row)

    return jax.jit(lambda rows: lax.map(score_round, rows))((servers, updates, weights))


def _as_weights(weights: Any, updates: Stacked) -> PerRound:
    """Returns weights `[T, N]`, made from `[T, N]`, `[N]` or None."""
    rounds = jax.tree.leaves(updates)[0].shape[:2]
    if weights is not None:
        weights = inputs.as_numbers("weights", weights, booleans=True)
    of_a_round = weights is None or weights.ndim == 1
    weights = inputs.as_weights(weights, rounds[1:] if of_a_round else rounds)
    return jnp.broadcast_to(weights, rounds)


def _as_rounds(servers: Any, updates: Any) -> tuple[Params, Stacked]:
    """Returns servers `[T, ...]` and updates `[T, N, ...]`, or raises.

    Lists of T rounds are stacked, and so are lists of N agents in a round. A list of layers is
    accepted only if it cannot be a list of rounds: N differs from T, or the layers differ.
    """
    layers = _have_round_shapes(servers, updates)
    if layers and inputs.is_sequence(servers):
        num_rounds, num_agents = np.shape(jax.tree.leaves(updates)[0])[:2]
        kinds = {str(jax.tree.map(np.shape, layer)) for layer in servers}
        layers = num_rounds != num_agents or len(kinds) > 1
    if not layers:
        servers = inputs.as_stacked("servers", servers, "rounds")
        if inputs.is_sequence(updates):
            first = trees.row(servers)
            rounds = [inputs.as_changes("updates", one, first) for one in updates]
            updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rounds)
    if not _have_round_shapes(servers, updates):
        shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (servers, updates)]
        raise ValueError(
            "`servers` and `updates` must be pytrees of the same structure, with leaves "
            "[T, ...] and [T, N, ...] for at least one round, got leaves of shapes "
            f"{shapes[0]!r:.100} and {shapes[1]!r:.100}."
        )
    return inputs.as_params("servers", servers), inputs.as_params("updates", updates)


def _have_round_shapes(servers: Any, updates: Any) -> bool:
    """Says whether leaves are `[T, ...]` and `[T, N, ...]` in pytrees of one structure."""
    servers, updates = inputs.as_params("servers", servers), inputs.as_params("updates", updates)
    if jax.tree.structure(servers) != jax.tree.structure(updates):
        return False
    leaves = list(zip(jax.tree.leaves(servers), jax.tree.leaves(updates), strict=True))
    leading = {update.shape[:2] for _, update in leaves}
    return (
        len(leading) == 1
        and len(*leading) == 2
        and min(*leading) > 0
        and all(server.shape == update.shape[:1] + update.shape[2:] for server, update in leaves)
    )
