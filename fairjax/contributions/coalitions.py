"""Values of agents from the utilities of all coalitions.

    utilities   nu(S) at index sum of 2^i over the agents i in S
    Shapley     phi_i = sum over S without i of |S|! (N-1-|S|)! / N! (nu(S + i) - nu(S))
    Banzhaf     b_i   = mean over S without i of nu(S + i) - nu(S)

One pass over the table gives the values of all agents: both values are a weighted sum
of utilities over the coalitions with i, less a weighted sum over all coalitions.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import arithmetic, checks, inputs
from fairjax.types import Array, PerAgent, PerCoalition, Scalar

# Bounds permutations times agents, since the values of all permutations are kept in memory.
MAX_VALUES = 2**27


def shapley(utilities: PerCoalition) -> PerAgent:
    """Returns the Shapley value of every agent from the utilities of all coalitions.

    Args:
      utilities: `[2**N]`; bit i of the index says whether agent i is in the coalition.

    Returns:
      `[N]` values; their sum is `utilities[-1] - utilities[0]`. All are nan where a traced
      entry is not finite; a value beyond what the dtype holds is infinite.

    Raises:
      ValueError: the length is not a power of two above 1, or a known entry is
        not finite.

    References:
      Shapley, A value for n-person games, 1953.

    Examples:
      >>> print(shapley(jnp.array([0.0, 1.0, 2.0, 4.0])))
      [1.5 2.5]
    """
    return _apply_in_safe_unit(shapley_of, utilities)


def banzhaf(utilities: PerCoalition) -> PerAgent:
    """Returns the Banzhaf value: what an agent adds, averaged over all coalitions of others.

    Args:
      utilities: `[2**N]`; bit i of the index says whether agent i is in the coalition.

    Returns:
      `[N]` values.

    Raises:
      ValueError: as in `shapley`.

    References:
      Banzhaf, Weighted voting doesn't work, 1965; Wang and Jia, Data Banzhaf,
      AISTATS 2023.

    Examples:
      >>> print(banzhaf(jnp.array([0.0, 1.0, 2.0, 4.0])))
      [1.5 2.5]
    """

    def values(table: PerCoalition) -> PerAgent:
        table = (table - table[0]) / 2 ** (_count_agents(table) - 1)
        return 2 * _sum_by_member(table) - _sum(table)

    return _apply_in_safe_unit(values, utilities)


def leave_one_out(utilities: PerCoalition) -> PerAgent:
    """Returns the utility that is lost when one agent leaves the coalition of all.

    Args:
      utilities: `[2**N]`; bit i of the index says whether agent i is in the coalition.

    Returns:
      `[N]` values `nu(all) - nu(all but i)`.

    Raises:
      ValueError: as in `shapley`.

    Examples:
      >>> print(leave_one_out(jnp.array([0.0, 1.0, 2.0, 4.0])))
      [2. 3.]
    """

    def values(table: PerCoalition) -> PerAgent:
        everybody = len(table) - 1
        return table[-1] - table[everybody - 2 ** np.arange(_count_agents(table))]

    return _apply_in_safe_unit(values, utilities)


def shapley_of(table: PerCoalition) -> PerAgent:
    """Returns Shapley values from a floating table `[2**N]` whose sums do not overflow."""
    num_agents = _count_agents(table)
    # nu(S) counts for its members with weight w(|S|-1) and against all others with
    # weight w(|S|), where w(k) = k! (N-1-k)! / N!. So phi_i is a sum over coalitions
    # with i, less one number that is the same for all agents.
    # To save digits, first subtract a game that depends only on the coalition's size, nu of
    # the first k agents. Its value is the same for all agents and is added at the end.
    sizes = np.arange(num_agents)
    orders = np.array([math.comb(num_agents - 1, size) for size in sizes], float)
    against = np.append(1 / (num_agents * orders), 0.0)
    for_members = np.insert(against[:-1], 0, 0.0)
    counts = _coalition_sizes(num_agents)
    rest = table - table[2 ** np.arange(num_agents + 1) - 1][counts]
    member_weights = jnp.asarray(for_members + against, table.dtype)[counts]
    common = _sum(rest * jnp.asarray(against, table.dtype)[counts])
    equal_part = (table[-1] - table[0]) / num_agents
    return _sum_by_member(rest * member_weights) - common + equal_part


def check_table(utilities: PerCoalition) -> None:
    """Raises unless `utilities` hold one number per coalition and known ones are finite."""
    shape = np.shape(utilities)
    if len(shape) != 1 or shape[0] < 2 or shape[0] & (shape[0] - 1):
        raise ValueError(
            "`utilities` must hold one number per coalition, [2**N] with N of at least 1, "
            f"got shape {shape}."
        )
    checks.finite("utilities", utilities)


def members(num_agents: int, dtype: jnp.dtype) -> Array:
    """Returns `[2**N, N]` zeros and ones: bit i of the coalition's index."""
    index = np.arange(2**num_agents)[:, None]
    return jnp.asarray(index >> np.arange(num_agents) & 1, dtype)


def _coalition_sizes(num_agents: int) -> Array:
    """Returns the sizes `[2**N]`, computed in the program: a constant would bloat it."""
    return jax.lax.population_count(jnp.arange(2**num_agents, dtype=jnp.uint32))


def _sum_by_member(table: PerCoalition) -> PerAgent:
    """Returns `[N]`: the sum over the coalitions that contain the agent."""
    num_agents = _count_agents(table)
    low = num_agents // 2
    square = table.reshape(-1, 2**low)
    by_last = arithmetic.dot(square.sum(1), members(num_agents - low, table.dtype))
    by_first = arithmetic.dot(square.sum(0), members(low, table.dtype))
    return jnp.concatenate([by_first, by_last])


def _sum(table: PerCoalition) -> Scalar:
    """Returns the sum of a table, in two stages so that float32 keeps its digits."""
    return table.reshape(-1, 2 ** (_count_agents(table) // 2)).sum(1).sum()


def _count_agents(table: PerCoalition) -> int:
    return (len(table) - 1).bit_length()


def _apply_in_safe_unit(
    values: Callable[[PerCoalition], PerAgent], utilities: PerCoalition
) -> PerAgent:
    """Returns `values(utilities)`, or nan for all agents if a utility is not finite.

    So that sums do not overflow, utilities are divided by a power of two that brings the
    largest magnitude below 2.
    """
    table = inputs.as_numbers("utilities", utilities, booleans=True)
    check_table(table)
    table = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    exponent = arithmetic.largest_exponent(table)
    found = values(arithmetic.times_power_of_two(table, -exponent))
    finite = jnp.isfinite(table).all()
    return jnp.where(finite, arithmetic.times_power_of_two(found, exponent), jnp.nan)
