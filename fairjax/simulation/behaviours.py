"""Behaviours: draw careless, dishonest or broken agents, and change their data or uploads.

    data      an agent's rows are changed once, before the first round
    uploads   an agent trains honestly, but does not upload its update

Agents without a behaviour are honest. `DATA` and `UPLOADS` map names to a `Kind`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, trees
from fairjax.data import MOST_SEED, Shards
from fairjax.simulation.dishonest_data import DATA
from fairjax.simulation.dishonest_uploads import UPLOADS, Memory, Seen
from fairjax.simulation.kinds import ANY
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked

HONEST = "honest"
KINDS = {**DATA, **UPLOADS}


class Behaviour(NamedTuple):
    """The dishonest behaviour of one agent."""

    agent: Scalar  # the agent's number; traced where runs of several seeds are one program
    name: Any  # a text; in an audit several of `UPLOADS`, of which `which` says who acts
    strength: Any = None  # None: the default of its `Kind`
    which: Scalar | None = None


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
      (Behaviour(agent=2, name='sign_flip', strength=1.0, which=None),)
    """
    drawn = listed(behaviours, num_agents)
    checks.count("seed", seed, least=0, most=MOST_SEED)
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
        checks.choice("behaviour", name, KINDS)
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
    """Returns the name of each agent's behaviour; "honest" if it has none."""
    check_agents(behaviours, num_agents)
    by_agent = {behaviour.agent: behaviour.name for behaviour in behaviours}
    return tuple(by_agent.get(agent, HONEST) for agent in range(num_agents))


def strength_of(name: str, strength: Scalar | None = None) -> Scalar:
    """Returns the given strength of a behaviour after a check, or the default for its name."""
    kind = KINDS[name]
    if strength is None:
        return kind.strength
    checks.between(f"strength of {name}", strength, 0, kind.most or ANY)
    if not kind.most and checks.is_known(strength) and strength != 0:
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
    for agent, name, strength, which in chosen:
        if which is not None:
            continue
        checks.choice("behaviour", name, KINDS)
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
    for agent, name, *_ in checked(behaviours):
        if checks.is_known(agent) and not 0 <= agent < num_agents:
            raise ValueError(
                f"`behaviours` must name agents 0 to {num_agents - 1}, got {name} of {agent}."
            )


def change_data(shards: Shards, behaviours: Sequence[Behaviour], seed: int = 0) -> Shards:
    """Returns shards in which agents with dishonest data train on changed copies of their rows.

    Args:
      shards: who holds which data; rows of other agents do not change.
      behaviours: the behaviours of dishonest agents.
      seed: seed of the changes.

    Raises:
      ValueError: there is no such agent, or it has two behaviours; the data do not have the
        classes 1 and 7; or `feature_noise` is given for whole numbers that are not tokens, for
        a share of tokens above 1, or with a strength that float32 cannot hold.

    Examples:
      >>> from fairjax.data import Dataset
      >>> data = Dataset(x=np.zeros((4, 2)), y=[0, 1, 2, 2], num_classes=3)
      >>> shards = Shards.from_indices(data, [[0, 1], [2, 3]])
      >>> changed = change_data(shards, [Behaviour(0, "label_flip", 1.0)])
      >>> [changed.data.y[changed.rows(agent)].tolist() for agent in range(2)]
      [[2, 1], [2, 2]]
    """
    checks.kind("shards", shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
    checks.count("seed", seed, least=0, most=MOST_SEED)
    check_agents(behaviours, shards.num_agents)
    changing = {one.agent: one for one in behaviours if one.name in DATA}
    rng = np.random.default_rng([seed, 1])
    x, y = [np.asarray(shards.data.x)], [np.asarray(shards.data.y)]
    rows, end = [], len(y[0])
    for agent in range(shards.num_agents):
        own = shards.rows(agent)
        if agent in changing:
            name, strength = changing[agent].name, changing[agent].strength
            examples, labels = DATA[name].change(
                rng, shards.data.take(own), strength_of(name, strength)
            )
            x.append(examples)
            y.append(labels)
            own = np.arange(end, end + len(own))
            end += len(own)
        rows.append(own)
    if end == len(y[0]):
        return shards
    data = dataclasses.replace(shards.data, x=np.concatenate(x), y=np.concatenate(y))
    return dataclasses.replace(Shards.from_indices(data, rows), validation=shards.validation)


def change_uploads(
    key: Key,
    updates: Stacked,
    memory: Memory,
    round: Scalar,
    behaviours: Sequence[Behaviour],
    present: PerAgent | None = None,
) -> Stacked:
    """Returns what agents upload instead of their updates.

    The first colluder uploads its own update, so a single colluder is in effect honest. If it is
    absent, the next one takes its place.

    Args:
      key: PRNG key of the round.
      updates: leaves `[N, ...]`, honest.
      memory: the first updates, the last aggregate and the last rewards.
      round: number of the round, from 0.
      behaviours: the behaviours of dishonest agents; those in `DATA` upload honestly.
      present: `[N]` booleans: who takes part; None: all.

    Raises:
      ValueError: there is no such agent, or it has two behaviours.

    Examples:
      >>> updates = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> memory = Memory(updates, updates[0], updates)
      >>> flip = [Behaviour(1, "sign_flip", 1.0)]
      >>> print(change_uploads(jax.random.key(0), updates, memory, 0, flip))
      [[ 1.  2.]
       [-3. -4.]]
    """
    checks.kind("memory", memory, Memory, "`fairjax.simulation.Memory(first, aggregate, rewards)`")
    updates, memory = jax.tree.map(jnp.asarray, (updates, memory))
    check_agents(behaviours, trees.num_agents(updates))
    leader = _first_colluder(behaviours, present)
    leading = None if leader is None else trees.row(updates, leader)
    groups: dict[Any, list[Behaviour]] = {}
    for one in filter(lambda one: _uploads(one.name), behaviours):
        groups.setdefault(one.name, []).append(one)
    for name, group in groups.items():  # agents that do the same are an axis
        agents = jnp.stack([jnp.asarray(one.agent) for one in group])
        own, first, reward = (
            jax.tree.map(lambda leaf, i=agents: leaf[i], tree)
            for tree in (updates, memory.first, memory.rewards)
        )
        act = jax.vmap(functools.partial(_act, name), (0, 0, Seen(None, 0, None, 0, None), 0, 0))
        uploads = act(
            jax.vmap(functools.partial(jax.random.fold_in, key))(agents),
            own,
            Seen(round, first, memory.aggregate, reward, leading),
            jnp.stack([jnp.asarray(_strength(one), float) for one in group]),
            jnp.stack([jnp.asarray(0 if one.which is None else one.which) for one in group]),
        )
        if name == "collude":
            uploads = trees.where(agents == leader, own, uploads)
        updates = jax.tree.map(lambda leaf, new, i=agents: leaf.at[i].set(new), updates, uploads)
    return updates


def _strength(one: Behaviour) -> Scalar:
    return one.strength if isinstance(one.name, tuple) else strength_of(one.name, one.strength)


def _act(name: Any, key: Key, own: Params, seen: Seen, strength: Scalar, which: Scalar) -> Params:
    """Returns what an agent uploads, in the dtypes of its update; in an audit `which` chooses."""

    def like_own(change: Callable[..., Params]) -> Params:
        new = change(key, own, seen, strength)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), new, own)

    names = name if isinstance(name, tuple) else (name,)
    changes = [functools.partial(like_own, UPLOADS[one].change) for one in names]
    return jax.lax.switch(which, changes)


def _uploads(name: str | tuple[str, ...]) -> bool:
    """Says whether a behaviour changes uploads; in an audit several names do."""
    return isinstance(name, tuple) or name in UPLOADS


def _first_colluder(behaviours: Sequence[Behaviour], present: PerAgent | None) -> Any:
    """Returns the number of the first colluder that is present, or None if there is none."""
    colluders = [one.agent for one in behaviours if one.name == "collude"]
    if not colluders or present is None:
        return colluders[0] if colluders else None
    numbers = jnp.array(colluders)
    return numbers[present[numbers].argmax()]


def changing_uploads(behaviours: Sequence[Behaviour], num_agents: int) -> PerAgent:
    """Returns `[N]` booleans: whether the agent uploads something other than its update."""
    agents = [one.agent for one in behaviours if _uploads(one.name)]
    return jnp.zeros(num_agents, bool).at[jnp.array(agents, int)].set(True)
