"""Contributions by the models that coalitions would have made, on held-out data.

    model    w_S   = w + sum over i in S of (n_i / n_S) dw_i,   w_{} = w
    utility  V(S)  = utility(w_S), an accuracy on held-out data for example

`model_utilities` makes and scores all 2^N models, `gtg_shapley` some of them. The cosine measures
make none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fairjax import arithmetic, checks, inputs, lowrank, trees
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
      params: the parameters to which updates are added.
      updates: leaves `[N, ...]`, N at most 16, or a list of N pytrees like `params`. A broken
        row counts as zero.
      weights: `[N]` n_i, not negative; None: equal.

    Returns:
      `[2**N]`; bit i of the index says whether agent i is in the coalition. Pass it
      to `shapley`, `banzhaf` or `leave_one_out`.

    Raises:
      ValueError: N is above 16, shapes disagree, or the utility is not a finite scalar.

    References:
      Song et al., Profit allocation for federated learning, IEEE Big Data 2019.

    Examples:
      >>> updates = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(model_utilities(lambda w: w.sum(), jnp.zeros(2), updates))
      [0. 1. 1. 1.]
    """
    updates, score = _prepare_score(utility, params, updates, weights)
    num_agents = trees.num_agents(updates)
    if num_agents > MAX_ENUMERATED_AGENTS:
        raise ValueError(
            f"`model_utilities` makes 2^N models, for at most {MAX_ENUMERATED_AGENTS} agents, got "
            f"{num_agents}. Use `gtg_shapley`, which samples permutations."
        )
    bits = jnp.arange(num_agents)
    table = lax.map(
        lambda index: score(index >> bits & 1), jnp.arange(2**num_agents), batch_size=_batch_size()
    )
    check_finite(utility, table, describe_coalition)
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

    Agents take turns at the front of a permutation, from a random one on. Agents then join in
    its order and are scored until the coalition's utility is within `tolerance` of the
    utility of all. The remaining agents get nothing, and their models are not made.

    Args:
      key: PRNG key.
      utility: `utility(params) -> scalar`; traced into a compiled program.
      params: the parameters to which updates are added.
      updates: leaves `[N, ...]`, or a list of N pytrees like `params`. A broken row counts
        as zero.
      weights: `[N]` n_i, not negative; None: equal.
      num_permutations: how many are drawn.
      tolerance: largest distance to the utility of all at which scoring stops, not
        negative. With 0 it never stops, and the estimate is unbiased.

    Returns:
      `[N]` estimates of the Shapley value of V.

    Raises:
      ValueError: `tolerance` is negative, `num_permutations` is below 1 or too large,
        shapes disagree, or the utility is not a finite scalar.

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
    updates, score = _prepare_score(utility, params, updates, weights)
    num_agents = trees.num_agents(updates)
    checks.count("num_permutations", num_permutations, most=MAX_VALUES // num_agents)
    margin = jnp.asarray(tolerance, float)
    turn = jax.random.randint(jax.random.fold_in(key, num_permutations), (), 0, num_agents)
    nobody, everybody = score(jnp.zeros(num_agents)), score(jnp.ones(num_agents))

    def score_order(number_and_key: tuple[Scalar, Key]) -> tuple[PerAgent, PerAgent]:
        """Returns the order `[N]` in which agents join, and the utility `[N]` after each."""
        number, own_key = number_and_key
        order = jax.random.permutation(own_key, num_agents)
        front = (turn + number) % num_agents
        order = order.at[jnp.argmax(order == front)].set(order[0]).at[0].set(front)

        def join(carry: tuple[Array, Scalar], agent: Scalar) -> tuple[tuple[Array, Scalar], Scalar]:
            members, before = carry
            members = members.at[agent].set(1)
            near = (jnp.abs(everybody - before) <= margin) & (margin > 0)
            after = lax.cond(near, lambda: before, lambda: score(members))
            return (members, after), after

        return order, lax.scan(join, (jnp.zeros(num_agents), nobody), order)[1]

    keys = jax.random.split(key, num_permutations)
    orders, reached = lax.map(score_order, (jnp.arange(num_permutations), keys))
    ends = jnp.append(nobody, everybody)
    check_finite(utility, ends, lambda place: describe_coalition(place * (2**num_agents - 1)))
    check_finite(utility, reached, lambda place: _describe_first_agents(orders, place))
    gains = jnp.diff(reached, axis=1, prepend=nobody)
    part = 2.0 ** -num_permutations.bit_length()  # so that the sum does not overflow
    return jnp.zeros(num_agents).at[orders].add(gains * part) / (num_permutations * part)


def _describe_first_agents(orders: Array, place: int) -> str:
    """Describes the agents of a permutation up to a place in the flat table `[P, N]`."""
    permutation, last = divmod(place, orders.shape[1])
    return describe_coalition(sum(1 << int(agent) for agent in orders[permutation, : last + 1]))


def _prepare_score(
    utility: Utility, params: Params, updates: Stacked, weights: PerAgent | None
) -> tuple[Stacked, Callable[[Array], Scalar]]:
    """Returns finite updates, and a function from members `[N]` to their utility."""
    params = inputs.as_params("params", params)
    updates = trees.zero_broken(inputs.as_changes("updates", updates, params))
    known: Any = inputs.as_weights(weights, (trees.num_agents(updates),))
    weights = arithmetic.times_power_of_two(
        known, -arithmetic.largest_exponent(known)
    )  # safe to sum
    checks.function("utility", utility, "utility(params) -> a number")
    scored = jax.eval_shape(utility, params)
    if getattr(scored, "shape", None) != () or jnp.issubdtype(scored.dtype, jnp.complexfloating):
        found = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", scored)
        raise ValueError(f"`utility` must return a scalar, a real number, got {found!r:.200}.")

    def score(members: Array) -> Scalar:
        present = members * weights
        shares = arithmetic.ratio(present, present.sum())
        change = lowrank.dense(trees.weighted_sum(shares, updates))
        return jnp.asarray(utility(jax.tree.map(jnp.add, params, change)), float)

    return updates, score


def _batch_size() -> int:
    """Returns how many coalitions to vectorise; one model keeps a CPU's cores busy."""
    return 1 if jax.default_backend() == "cpu" else 32


def check_finite(utility: Utility, values: Array, coalition: Callable[[int], str]) -> None:
    """Raises if a known utility is not finite, and names its coalition.

    Args:
      utility: the function that returned the values.
      values: an array of any shape.
      coalition: describes the coalition at a place in the flat array.

    Raises:
      ValueError: a known value is not finite. The message names the utility, the value
        and the coalition.
    """
    if checks.is_known(values) and not np.isfinite(values).all():
        name = getattr(utility, "__name__", repr(utility))
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"`utility` must return a finite number, got {float(np.ravel(values)[place])} from "
            f"{name} for {coalition(place)}."
        )


def describe_coalition(index: int) -> str:
    """Describes the coalition of an index: bit i says whether agent i is in it."""
    agents = [i for i in range(index.bit_length()) if index >> i & 1]
    return f"the coalition of agents {agents}"
