"""Contributions by the models that coalitions would have made, on held-out data.

    model    w_S   = w + sum over i in S of (n_i / n_S) dw_i,   w_{} = w
    utility  V(S)  = utility(w_S), an accuracy on held-out data for example

This is what the cosine measures do without: 2^N models are made and scored.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax import checks, trees
from fairjax.types import Array, Key, Params, PerAgent, PerCoalition, Scalar, Stacked

MAX_ENUMERATED_AGENTS = 16

Utility = Callable[[Params], Scalar]


def model_utilities(
    utility: Utility, params: Params, updates: Stacked, weights: PerAgent | None = None
) -> PerCoalition:
    """Returns the utilities of all coalitions' models, made and scored in one program.

    Args:
      utility: `utility(params) -> scalar`; traced into a compiled program.
      params: what updates are added to.
      updates: leaves `[N, ...]`, N at most 16. A broken row counts as zero.
      weights: `[N]` n_i, not negative; None: equal.

    Returns:
      `[2**N]`; bit i of the index says whether agent i is in the coalition. What
      `shapley`, `banzhaf` and `leave_one_out` take.

    Raises:
      ValueError: N is above 16, shapes disagree, or the utility is not a finite scalar.

    References:
      Song et al., Profit allocation for federated learning, IEEE Big Data 2019.

    Examples:
      >>> updates = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(model_utilities(lambda w: w.sum(), jnp.zeros(2), updates))
      [0. 1. 1. 1.]
    """
    updates, weights, score = _prepared(utility, params, updates, weights)
    num_agents = trees.num_agents(updates)
    if num_agents > MAX_ENUMERATED_AGENTS:
        raise ValueError(
            f"`model_utilities` makes 2^N models, for at most {MAX_ENUMERATED_AGENTS} agents, got "
            f"{num_agents}. Use `gtg_shapley`, which samples permutations."
        )
    bits = jnp.arange(num_agents)
    table = lax.map(
        lambda index: score(index >> bits & 1), jnp.arange(2**num_agents), batch_size=_at_once()
    )
    check_finite(utility, table)
    return table


def gtg_shapley(
    key: Key,
    utility: Utility,
    params: Params,
    updates: Stacked,
    weights: PerAgent | None = None,
    *,
    num_permutations: int = 20,
    tolerance: float = 1e-3,
) -> PerAgent:
    """Returns guided truncated-gradient Shapley values: sampled, truncated permutations.

    Each agent takes its turn at the front of a permutation. Within one, agents are
    scored until the coalition's utility is within a tolerance of that of all; the
    rest are credited with nothing, and their models are not made.

    Args:
      key: PRNG key.
      utility: `utility(params) -> scalar`; traced into a compiled program.
      params: what updates are added to.
      updates: leaves `[N, ...]`. A broken row counts as zero.
      weights: `[N]` n_i, not negative; None: equal.
      num_permutations: how many are drawn.
      tolerance: of the utility, not negative; 0: unbiased, nothing is left out but ties.

    Returns:
      `[N]` estimates of the Shapley value of V.

    Raises:
      ValueError: a value breaks its rule, or the utility is not a finite scalar.

    References:
      Liu et al., GTG-Shapley: efficient and accurate participant contribution
      evaluation in federated learning, ACM TIST 2022.

    Examples:
      >>> updates = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(gtg_shapley(jax.random.key(0), lambda w: w.sum(), jnp.zeros(2), updates))
      [0.5 0.5]
    """
    checks.count("num_permutations", num_permutations)
    checks.at_least("tolerance", tolerance, 0)
    updates, weights, score = _prepared(utility, params, updates, weights)
    num_agents = trees.num_agents(updates)
    nobody, everybody = score(jnp.zeros(num_agents)), score(jnp.ones(num_agents))
    check_finite(utility, jnp.stack([nobody, everybody]))

    def one(number_and_key: tuple[Scalar, Key]) -> PerAgent:
        number, own_key = number_and_key
        order = jax.random.permutation(own_key, num_agents)
        place = jnp.argmax(order == number % num_agents)
        order = order.at[place].set(order[0]).at[0].set(number % num_agents)

        def join(carry: tuple[Array, Scalar], agent: Scalar) -> tuple[tuple[Array, Scalar], Scalar]:
            members, before = carry
            members = members.at[agent].set(1)
            near = jnp.abs(everybody - before) <= tolerance
            after = lax.cond(near, lambda: before, lambda: score(members))
            return (members, after), after - before

        _, gains = lax.scan(join, (jnp.zeros(num_agents), nobody), order)
        return jnp.zeros_like(gains).at[order].set(gains)

    keys = jax.random.split(key, num_permutations)
    return lax.map(one, (jnp.arange(num_permutations), keys)).mean(0)


def _prepared(
    utility: Utility, params: Params, updates: Stacked, weights: PerAgent | None
) -> tuple[Stacked, PerAgent, Callable[[Array], Scalar]]:
    """Returns finite updates, weights, and the function from members `[N]` to the utility."""
    updates = trees.zero_broken(trees.as_stacked("updates", updates))
    num_agents = trees.num_agents(updates)
    weights = jnp.ones(num_agents) if weights is None else jnp.asarray(weights)
    checks.shape("weights", weights, (num_agents,))
    checks.finite("weights", weights)
    wanted = jax.tree.map(jnp.shape, params)
    found = jax.tree.map(lambda leaf: leaf.shape[1:], updates)
    if wanted != found:
        raise ValueError(f"`updates` must be changes of `params`, {wanted}, got {found} per agent.")
    scored = jax.eval_shape(utility, params)
    if getattr(scored, "shape", None) != ():
        raise ValueError(f"`utility` must return a scalar, got {jax.tree.map(jnp.shape, scored)}.")

    def score(members: Array) -> Scalar:
        present = members * weights
        shares = present / jnp.where(present.sum() > 0, present.sum(), 1)
        change = trees.weighted_sum(shares, updates)
        return jnp.asarray(utility(jax.tree.map(jnp.add, params, change)), jnp.float32)

    return updates, weights, score


def _at_once() -> int:
    """Returns how many coalitions are vectorised: a CPU's cores are busy with one model."""
    return 1 if jax.default_backend() == "cpu" else 32


def check_finite(utility: Any, table: Array) -> None:
    """Raises where a known utility is not finite, and says of which coalition.

    Raises:
      ValueError: names the utility, the value and the coalition.
    """
    if checks.is_known(table) and not np.isfinite(table).all():
        name = getattr(utility, "__name__", repr(utility))
        where = np.argwhere(~np.isfinite(table))[0]
        of = f" in round {where[0]}" if table.ndim == 2 else ""
        raise ValueError(
            f"`utility` must return a finite number, got {float(table[tuple(where)])} from {name} "
            f"for coalition {where[-1]:b} (binary, agent 0 last){of}."
        )
