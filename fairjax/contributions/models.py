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

from fairjax import checks, inputs, trees
from fairjax.contributions.coalitions import MAX_VALUES
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
      updates: leaves `[N, ...]`, N at most 16, or a list of N pytrees like `params`. A broken
        row counts as zero.
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
    check_finite(utility, table, members_of)
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
      updates: leaves `[N, ...]`, or a list of N pytrees like `params`. A broken row counts
        as zero.
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
    checks.key("key", key)
    checks.at_least("tolerance", tolerance, 0)
    updates, weights, score = _prepared(utility, params, updates, weights)
    num_agents = trees.num_agents(updates)
    checks.count("num_permutations", num_permutations, most=MAX_VALUES // num_agents)
    margin = jnp.asarray(tolerance, jnp.float32)
    nobody, everybody = score(jnp.zeros(num_agents)), score(jnp.ones(num_agents))

    def one(number_and_key: tuple[Scalar, Key]) -> tuple[PerAgent, PerAgent]:
        """Returns the order `[N]` in which agents join, and the utilities `[N]` then."""
        number, own_key = number_and_key
        order = jax.random.permutation(own_key, num_agents)
        place = jnp.argmax(order == number % num_agents)
        order = order.at[place].set(order[0]).at[0].set(number % num_agents)

        def join(carry: tuple[Array, Scalar], agent: Scalar) -> tuple[tuple[Array, Scalar], Scalar]:
            members, before = carry
            members = members.at[agent].set(1)
            near = jnp.abs(everybody - before) <= margin
            after = lax.cond(near, lambda: before, lambda: score(members))
            return (members, after), after

        return order, lax.scan(join, (jnp.zeros(num_agents), nobody), order)[1]

    keys = jax.random.split(key, num_permutations)
    orders, reached = lax.map(one, (jnp.arange(num_permutations), keys))
    ends = jnp.append(nobody, everybody)
    check_finite(utility, ends, lambda place: members_of(place * (2**num_agents - 1)))
    check_finite(utility, reached, lambda place: _first_ones(orders, place))
    gains = jnp.diff(reached, axis=1, prepend=nobody)
    part = 2.0 ** -num_permutations.bit_length()  # so that the sum does not overflow
    return jnp.zeros(num_agents).at[orders].add(gains * part) / (num_permutations * part)


def _first_ones(orders: Array, place: int) -> str:
    """Returns words for the agents of a permutation up to a place in the table `[P, N]`."""
    permutation, last = divmod(place, orders.shape[1])
    return members_of(sum(1 << int(agent) for agent in orders[permutation, : last + 1]))


def _prepared(
    utility: Utility, params: Params, updates: Stacked, weights: PerAgent | None
) -> tuple[Stacked, PerAgent, Callable[[Array], Scalar]]:
    """Returns finite updates, weights, and the function from members `[N]` to the utility."""
    params = inputs.as_params("params", params)
    updates = trees.zero_broken(inputs.as_changes("updates", updates, params))
    known: Any = inputs.as_weights(weights, (trees.num_agents(updates),))
    weights = trees.times_power_of_two(known, -trees.largest_exponent(known))  # safe to sum
    if not callable(utility):
        raise ValueError(f"`utility` must be a function of parameters, got {utility!r:.100}.")
    scored = jax.eval_shape(utility, params)
    if getattr(scored, "shape", None) != () or jnp.issubdtype(scored.dtype, jnp.complexfloating):
        found = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", scored)
        raise ValueError(f"`utility` must return a scalar, a real number, got {found!r:.200}.")

    def score(members: Array) -> Scalar:
        present = members * weights
        shares = present / jnp.where(present.sum() > 0, present.sum(), 1)
        change = trees.weighted_sum(shares, updates)
        return jnp.asarray(utility(jax.tree.map(jnp.add, params, change)), jnp.float32)

    return updates, weights, score


def _at_once() -> int:
    """Returns how many coalitions are vectorised: a CPU's cores are busy with one model."""
    return 1 if jax.default_backend() == "cpu" else 32


def check_finite(utility: Utility, values: Array, coalition: Callable[[int], str]) -> None:
    """Raises where known values of a utility are not finite, and says of which coalition.

    Args:
      utility: what returned them.
      values: an array of any shape.
      coalition: words for the place of a value in the flat array.

    Raises:
      ValueError: names the utility, the value and the coalition.
    """
    if checks.is_known(values) and not np.isfinite(values).all():
        name = getattr(utility, "__name__", repr(utility))
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"`utility` must return a finite number, got {float(np.ravel(values)[place])} from "
            f"{name} for {coalition(place)}."
        )


def members_of(index: int) -> str:
    """Returns words for the coalition of an index: bit i says whether agent i is in it."""
    agents = [i for i in range(index.bit_length()) if index >> i & 1]
    return f"the coalition of agents {agents}"
