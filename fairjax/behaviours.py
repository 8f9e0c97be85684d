"""Behaviours: what careless, dishonest and broken agents do to their data or uploads.

    data      an agent trains on rows of its own, changed once before the first round
    uploads   an agent trains honestly, and uploads something else than its update

Agents without a behaviour are honest. Each behaviour has one `strength`; see `STRENGTHS`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, trees
from fairjax.data import Dataset, Shards
from fairjax.types import Array, Key, Params, PerAgent, Scalar, Stacked

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
    "collude": "uploads what the first such agent trained, plus relative noise",
    "broken_nan": "uploads NaN",
    "broken_inf": "uploads infinity",
}
# Of behaviours that have a strength: a rate, a standard deviation, a factor or a length.
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

    agent: Scalar  # its number; traced where runs of several seeds are one program
    name: str
    strength: float | None = None  # None: the name's own, of `STRENGTHS`


class Memory(NamedTuple):
    """What dishonest uploads need from earlier rounds."""

    first: Stacked  # every agent's first update
    aggregate: Params  # the last aggregate


def assign(
    behaviours: Mapping[str, Any], *, num_agents: int, seed: int = 0
) -> tuple[Behaviour, ...]:
    """Draws which agents behave how.

    Args:
      behaviours: for every name of `DATA` or `UPLOADS` a number of agents, or a pair
        (number of agents, strength).
      num_agents: N.
      seed: seed of the draw.

    Returns:
      One `Behaviour` for each agent that is not honest; within a name, by their numbers.

    Raises:
      ValueError: a name is unknown, a number is negative, a strength breaks its rule,
        there are not enough agents, or `behaviours` is no mapping.

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
    """Returns the name and strength of each behaviour that `assign` draws an agent for.

    Raises:
      ValueError: as `assign`.
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
    """Returns what each agent does, by name; "honest" where it does nothing else."""
    _check_agents(behaviours, num_agents)
    by_agent = {behaviour.agent: behaviour.name for behaviour in behaviours}
    return tuple(by_agent.get(agent, HONEST) for agent in range(num_agents))


def change_data(shards: Shards, behaviours: Sequence[Behaviour], seed: int = 0) -> Shards:
    """Returns shards in which agents that behave so train on changed rows of their own.

    Args:
      shards: who holds which data; rows of other agents stay as they are.
      behaviours: of agents that are not honest.
      seed: seed of the changes.

    Raises:
      ValueError: there is no such agent, or it has two behaviours; the classes 1 and 7 are
        not among those of the data; or there is to be noise in whole numbers that are not
        tokens, in more than all tokens, or beyond what float32 holds.

    Examples:
      >>> data = Dataset(x=np.zeros((4, 2)), y=[0, 1, 2, 2], num_classes=3)
      >>> shards = Shards.from_indices(data, [[0, 1], [2, 3]])
      >>> changed = change_data(shards, [Behaviour(0, "label_flip", 1.0)])
      >>> [changed.data.y[changed.rows(agent)].tolist() for agent in range(2)]
      [[2, 1], [2, 2]]
    """
    checks.kind("shards", shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
    checks.count("seed", seed, least=0, most=2**63 - 1)
    _check_agents(behaviours, shards.num_agents)
    changing = {one.agent: one for one in behaviours if one.name in DATA}
    rng = np.random.default_rng([seed, 1])
    x, y = [np.asarray(shards.data.x)], [np.asarray(shards.data.y)]
    rows, end = [], len(y[0])
    for agent in range(shards.num_agents):
        own = shards.rows(agent)
        if agent in changing:
            examples, labels = _changed(rng, shards.data.take(own), changing[agent])
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
    key: Key, updates: Stacked, memory: Memory, round: Scalar, behaviours: Sequence[Behaviour]
) -> Stacked:
    """Returns what agents upload in place of their updates.

    The first colluder uploads what it trained, so one alone is as good as honest.

    Args:
      key: PRNG key of the round.
      updates: leaves `[N, ...]`, honest.
      memory: of earlier rounds.
      round: number of the round, from 0.
      behaviours: of agents that are not honest; those of `DATA` upload honestly.

    Raises:
      ValueError: there is no such agent, or it has two behaviours.

    Examples:
      >>> updates = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> memory = Memory(updates, updates[0])
      >>> flip = [Behaviour(1, "sign_flip", 1.0)]
      >>> print(change_uploads(jax.random.key(0), updates, memory, 0, flip))
      [[ 1.  2.]
       [-3. -4.]]
    """
    checks.kind("memory", memory, Memory, "`fairjax.behaviours.Memory(first, aggregate)`")
    updates, memory = jax.tree.map(jnp.asarray, (updates, memory))
    _check_agents(behaviours, trees.num_agents(updates))
    leader = next((one.agent for one in behaviours if one.name == "collude"), None)
    for agent, name, given in behaviours:
        if name not in UPLOADS:
            continue
        strength = strength_of(name, given)
        agent_key = jax.random.fold_in(key, agent)
        own = jax.tree.map(lambda leaf, i=agent: leaf[i], updates)
        if name == "free_rider_zero":
            upload = jax.tree.map(jnp.zeros_like, own)
        elif name == "free_rider_noise":
            noise = _noise(agent_key, own, jax.random.uniform, minval=-1, maxval=1)
            upload = jax.tree.map(lambda leaf, f=strength: f * leaf, noise)
        elif name == "free_rider_stale":
            first = jax.tree.map(lambda leaf, i=agent: leaf[i], memory.first)
            upload = jax.tree.map(lambda a, b: jnp.where(round == 0, a, b), own, first)
        elif name == "free_rider_copy":
            upload = _noisy(agent_key, memory.aggregate, strength)
        elif name == "collude":
            copied = jax.tree.map(lambda leaf: leaf[leader], updates)
            # By identity: numbers of agents may be traced, and then have no value to compare.
            upload = own if agent is leader else _noisy(agent_key, copied, strength)
        else:
            value = {"broken_nan": jnp.nan, "broken_inf": jnp.inf}.get(name)
            factor = -strength if name == "sign_flip" else strength
            upload = jax.tree.map(
                lambda leaf, f=factor, v=value: f * leaf if v is None else jnp.full_like(leaf, v),
                own,
            )
        updates = jax.tree.map(lambda leaf, one, i=agent: leaf.at[i].set(one), updates, upload)
    return updates


def strength_of(name: str, strength: Scalar | None = None) -> Scalar:
    """Returns a behaviour's strength: as given and checked, or the name's own."""
    if strength is None:
        return STRENGTHS.get(name, 0.0)
    checks.between(f"strength of {name}", strength, 0, 1 if name in RATES else MOST_STRENGTH)
    if name not in STRENGTHS and checks.is_known(strength) and strength != 0:
        raise ValueError(f"`{name}` takes no strength, got {strength!r}.")
    return strength


def changing_uploads(behaviours: Sequence[Behaviour], num_agents: int) -> PerAgent:
    """Returns `[N]` booleans: who uploads something else than its update."""
    agents = [one.agent for one in behaviours if one.name in UPLOADS]
    return jnp.zeros(num_agents, bool).at[jnp.array(agents, int)].set(True)


def checked(behaviours: Any) -> tuple[Behaviour, ...]:
    """Returns behaviours as a tuple, or says what is wrong with one."""
    many = isinstance(behaviours, Sequence) and not isinstance(behaviours, str | Behaviour)
    if not many or not all(isinstance(one, Behaviour) for one in behaviours):
        raise ValueError(
            "`behaviours` must be a list of Behaviour(agent=0, name=...), as "
            "`fairjax.behaviours.assign` draws them for a mapping of names and numbers, "
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


def _check_agents(behaviours: Sequence[Behaviour], num_agents: int) -> None:
    for agent, name, _ in checked(behaviours):
        if checks.is_known(agent) and not 0 <= agent < num_agents:
            raise ValueError(
                f"`behaviours` must be of agents 0 to {num_agents - 1}, got {name} of {agent}."
            )


def _changed(
    rng: np.random.Generator, data: Dataset, behaviour: Behaviour
) -> tuple[np.ndarray, np.ndarray]:
    x, y, num_classes, name = data.x, data.y, data.num_classes, behaviour.name
    strength = strength_of(name, behaviour.strength)
    if name == "feature_noise":
        return _noisy_examples(rng, data, strength), y
    if name == "label_noise":
        other = rng.integers(num_classes, size=len(y))
    elif name == "label_flip":
        other = num_classes - 1 - y
    elif num_classes > 7:
        other = np.where(y == 1, 7, np.where(y == 7, 1, y))
    else:
        raise ValueError(f"`label_flip_1_7` needs the classes 1 and 7, got {num_classes} classes.")
    return x, np.where(rng.uniform(size=len(y)) < strength, other, y)


def _noisy_examples(rng: np.random.Generator, data: Dataset, strength: float) -> np.ndarray:
    """Returns examples with noise: added to floats, in place of tokens but for padding."""
    x, size = data.x, data.vocabulary_size
    if x.dtype == np.float32:
        with np.errstate(over="ignore"):
            noisy = x + np.float32(strength) * rng.normal(size=x.shape).astype(np.float32)
        if not np.isfinite(noisy).all():
            raise ValueError(
                "`strength of feature_noise` must leave examples that float32 holds, got "
                f"{strength!r}."
            )
        return noisy
    if size is None:
        raise ValueError(
            "`feature_noise` needs examples of floats, or of tokens with their "
            "`vocabulary_size`, got whole numbers without."
        )
    checks.between("strength of feature_noise on tokens", strength, 0, 1)
    replaced = (x > 0) & (rng.uniform(size=x.shape) < strength)
    return np.where(replaced, rng.integers(1, size, size=x.shape, dtype=np.int32), x)


def _noise(key: Key, like: Params, draw: Any, **options: Any) -> Params:
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [draw(k, leaf.shape, leaf.dtype, **options) for k, leaf in zip(keys, leaves, strict=True)]
    )


def _noisy(key: Key, tree: Params, strength: float) -> Params:
    """Returns a pytree with normal noise added, `strength` times as long as it is."""
    noise = _noise(key, tree, jax.random.normal)
    # In units of the largest entry, or the squares of a long update would overflow.
    largest = jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(tree)]).max()
    unit = jnp.where(largest > 0, jnp.minimum(largest, 2.0**126), 1)
    squares: Array = trees.sum_leaves(lambda leaf: jnp.square(leaf / unit).sum(), tree)
    scale = strength * (jnp.sqrt(squares / trees.num_parameters(tree)) * unit)
    return jax.tree.map(lambda leaf, extra: leaf + scale * extra, tree, noise)
