"""Behaviours: who is careless, dishonest or broken, and how much.

    data      an agent trains on its own rows, which are changed once before the first round
    uploads   an agent trains honestly, but uploads something else than its update

Agents without a behaviour are honest. Each behaviour has one `strength`; see `STRENGTHS`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairjax import checks
from fairjax.types import Scalar

HONEST = "honest"
DATA = {
    "label_flip": "trains on the class C - 1 - y in place of y, at a rate",
    "label_flip_1_7": "trains on ones as sevens, and sevens as ones, at a rate",
    "label_noise": "trains on random classes, at a rate",
    "feature_noise": "trains on examples with normal noise, or on random tokens",
}
UPLOADS = {
    "free_rider_zero": "uploads zeros",
    "free_rider_noise": "uploads noise, uniform between plus and minus a bound",
    "free_rider_stale": "uploads its first update again and again",
    "free_rider_copy": "uploads the last aggregate, plus noise of a relative length",
    "sign_flip": "uploads its update reversed, times a factor",
    "rescale": "uploads its update times a factor",
    "collude": "uploads what the first such agent does, plus relative noise",
    "broken_nan": "uploads NaN",
    "broken_inf": "uploads infinity",
}
# Default strengths of behaviours that have one: a rate, a standard deviation, a factor, a length.
STRENGTHS = {
    "label_flip": 1.0,
    "label_flip_1_7": 1.0,
    "label_noise": 0.5,
    "feature_noise": 1.0,
    "free_rider_noise": 1.0,
    "free_rider_copy": 0.1,
    "sign_flip": 1.0,
    "rescale": 10.0,
    "collude": 0.0,
}
MOST_STRENGTH = 3.4e38  # what float32 holds
RATES = ("label_flip", "label_flip_1_7", "label_noise")


class Behaviour(NamedTuple):
    """What one agent does that is not honest."""

    agent: Scalar  # the agent's number; traced where runs of several seeds are one program
    name: str
    strength: float | None = None  # None: the default in `STRENGTHS`


def assign(
    behaviours: Mapping[str, Any], *, num_agents: int, seed: int = 0
) -> tuple[Behaviour, ...]:
    """Draws which agents behave dishonestly, and how.

    Args:
      behaviours: maps names in `DATA` or `UPLOADS` to a number of agents, or to a pair
        (number of agents, strength).
      num_agents: N.
      seed: seed of the draw.

    Returns:
      One `Behaviour` for each dishonest agent, in the order of names, then of agents.

    Raises:
      ValueError: a name is unknown, a number is negative, a strength is out of range,
        there are not enough agents, or `behaviours` is not a mapping.

    Examples:
      >>> assign({"sign_flip": 1}, num_agents=3)
      (Behaviour(agent=2, name='sign_flip', strength=1.0),)
    """
    drawn = listed(behaviours, num_agents)
    checks.count("seed", seed, least=0, most=2**63 - 1)
    if not drawn:
        return ()
    places = np.random.default_rng(seed).permutation(num_agents)
    assigned = [Behaviour(int(place), *one) for place, one in zip(places, drawn, strict=False)]
    order = list(behaviours)
    return tuple(sorted(assigned, key=lambda one: (order.index(one.name), one.agent)))


def listed(behaviours: Mapping[str, Any], num_agents: int) -> list[tuple[str, float]]:
    """Returns the name and strength of each behaviour for which `assign` draws an agent.

    Raises:
      ValueError: as in `assign`.
    """
    checks.count("num_agents", num_agents)
    if not isinstance(behaviours, Mapping):
        raise ValueError(
            "`behaviours` must map names to numbers of agents, or to pairs (number, strength), "
            f"got {checks.shown(behaviours)}."
        )
    found, total = [], 0
    for name, value in behaviours.items():
        checks.choice("behaviour", name, (*DATA, *UPLOADS))
        pair: Any = value if isinstance(value, tuple | list) else (value, None)
        if len(pair) != 2:
            raise ValueError(
                f"`behaviours[{name!r}]` must be a number of agents or a pair (number, strength), "
                f"got {checks.shown(value)}."
            )
        number, strength = pair
        checks.count(f"behaviours[{name!r}]", number, least=0)
        found += [(name, float(strength_of(name, strength)))] * min(number, num_agents)
        total += number
    if total > num_agents:
        raise ValueError(
            f"`behaviours` must name at most num_agents={num_agents} agents, got {total}."
        )
    return found


def names(behaviours: Sequence[Behaviour], num_agents: int) -> tuple[str, ...]:
    """Returns the name of each agent's behaviour; "honest" where it has none."""
    check_agents(behaviours, num_agents)
    by_agent = {behaviour.agent: behaviour.name for behaviour in behaviours}
    return tuple(by_agent.get(agent, HONEST) for agent in range(num_agents))


def strength_of(name: str, strength: Scalar | None = None) -> Scalar:
    """Returns the given strength of a behaviour after a check, or the default for its name."""
    if strength is None:
        return STRENGTHS.get(name, 0.0)
    checks.between(f"strength of {name}", strength, 0, 1 if name in RATES else MOST_STRENGTH)
    if name not in STRENGTHS and checks.is_known(strength) and strength != 0:
        raise ValueError(f"`{name}` takes no strength, got {strength!r}.")
    return strength


def checked(behaviours: Any) -> tuple[Behaviour, ...]:
    """Returns behaviours as a tuple, or raises if one is invalid."""
    many = isinstance(behaviours, Sequence) and not isinstance(behaviours, str | Behaviour)
    if not many or not all(isinstance(one, Behaviour) for one in behaviours):
        raise ValueError(
            "`behaviours` must be a list of Behaviour(agent=0, name=...), as "
            "`fairjax.simulation.assign` draws them from a mapping of names to numbers, "
            f"got {behaviours!r:.100}."
        )
    chosen: tuple[Behaviour, ...] = tuple(behaviours)
    seen: dict[int, str] = {}
    for agent, name, strength in chosen:
        checks.choice("behaviour", name, (*DATA, *UPLOADS))
        strength_of(name, strength)
        if not checks.is_known(agent):
            continue  # numbers of agents are traced where runs of several seeds are one program
        checks.count(f"agent of {name}", agent, least=0)
        if agent in seen:
            raise ValueError(
                f"`behaviours` must name an agent once, got agent {agent} as {seen[agent]} and "
                f"as {name}."
            )
        seen[agent] = name
    return chosen


def check_agents(behaviours: Sequence[Behaviour], num_agents: int) -> None:
    """Raises unless all behaviours belong to existing agents, one each."""
    for agent, name, _ in checked(behaviours):
        if checks.is_known(agent) and not 0 <= agent < num_agents:
            raise ValueError(
                f"`behaviours` must name agents 0 to {num_agents - 1}, got {name} of {agent}."
            )
