"""Participation: which agents take part in a round.

None        all agents, in every round
number      so many agents per round, drawn by the round's key
share       so many of all agents, rounded, and at least one
table       [T, N] booleans

An agent that was absent trains the model that it holds, which may be old; under mechanisms with one
common model, such as fedavg, it trains the server's. The standalone run has the same absences.

After the last round the agents train once more, for the last `trained_accuracies`; all take part.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks
from fairjax.types import Key, PerAgent, Scalar

Participation = int | float | tuple[tuple[int, ...], ...] | None  # see the module's first lines


def check_participation(value: Any) -> Participation:
    """Returns who takes part as a number, a share or a table of 0 and 1; None: all agents.

    So 1 is one agent, and 1.0 all of them.

    Raises:
      ValueError: the value is not a number of at least 1, a share in (0, 1], or a table with at
        least one agent in every round.

    Examples:
      >>> check_participation(3), check_participation(0.3), check_participation(1.0)
      (3, 0.3, None)
      >>> check_participation([[True, False], [True, True]])
      ((1, 0), (1, 1))
    """
    if value is None:
        return None
    if not checks.is_listing(value):
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            checks.count("participation", value)
            return int(value)
        try:
            checks.share("participation", value)
        except ValueError:
            raise ValueError(
                "`participation` must be a number of agents such as 3, a share of them in (0, 1], "
                f"or, in Python, a table [T, N] of booleans, got {checks.shown(value)}."
            ) from None
        return None if value == 1 else float(value)
    rule = "booleans [T, N], with at least one agent in every round"
    table = checks.numbers("participation", value, rule, num_axes=2)
    if not table.size or not np.isin(table, (0, 1)).all():
        raise ValueError(f"`participation` must hold {rule}, got {checks.shown(value)}.")
    if not table.any(1).all():
        raise ValueError(
            f"`participation` must hold {rule}, got none in round {table.any(1).argmin()}."
        )
    return tuple(tuple(map(int, row)) for row in table)


def check_fits(participation: Participation, num_agents: int, num_rounds: int | None) -> None:
    """Raises unless a participation fits the numbers of agents and rounds; None: unknown."""
    if isinstance(participation, tuple):
        shape = (len(participation), len(participation[0]))
        wanted = (shape[0] if num_rounds is None else num_rounds, num_agents)
        if shape != wanted:
            raise ValueError(
                f"`participation` must have one row per round and one column per agent, "
                f"{wanted}, got shape {shape}."
            )
    elif isinstance(participation, int) and participation > num_agents:
        raise ValueError(
            f"`participation` must be at most the {num_agents} agents, got {participation}."
        )


def draw_present(
    participation: Participation, key: Key, round: Scalar, num_rounds: Scalar, num_agents: int
) -> PerAgent | None:
    """Returns `[N]` booleans: who takes part in a round; None: all, in every round.

    Args:
      participation: what `check_participation` returned.
      key: PRNG key of the draw.
      round: number of the round, from 0.
      num_rounds: number of rounds in the whole run; 0: unknown.
      num_agents: N.
    """
    check_fits(participation, num_agents, None)
    if isinstance(participation, tuple):
        table = jnp.array(participation, bool)
        present = table[jnp.minimum(round, len(table) - 1)]
    else:
        number = _count_present(participation, num_agents)
        if number == num_agents:
            return None
        present = jax.random.uniform(key, (num_agents,)).argsort().argsort() < number
    return present | ((num_rounds > 0) & (round >= num_rounds))


def _count_present(participation: int | float | None, num_agents: int) -> int:
    """Returns the number of agents in a round that a number or a share stands for."""
    if isinstance(participation, float):
        return max(1, round(participation * num_agents))
    return participation if isinstance(participation, int) else num_agents
