"""Dishonest data: changed examples on which agents train instead of their own."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fairjax import checks
from fairjax.data import Dataset, Shards
from fairjax.simulation.behaviours import DATA, Behaviour, check_agents, strength_of


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
      >>> data = Dataset(x=np.zeros((4, 2)), y=[0, 1, 2, 2], num_classes=3)
      >>> shards = Shards.from_indices(data, [[0, 1], [2, 3]])
      >>> changed = change_data(shards, [Behaviour(0, "label_flip", 1.0)])
      >>> [changed.data.y[changed.rows(agent)].tolist() for agent in range(2)]
      [[2, 1], [2, 2]]
    """
    checks.kind("shards", shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
    checks.count("seed", seed, least=0, most=2**63 - 1)
    check_agents(behaviours, shards.num_agents)
    changing = {one.agent: one for one in behaviours if one.name in DATA}
    rng = np.random.default_rng([seed, 1])
    x, y = [np.asarray(shards.data.x)], [np.asarray(shards.data.y)]
    rows, end = [], len(y[0])
    for agent in range(shards.num_agents):
        own = shards.rows(agent)
        if agent in changing:
            examples, labels = _change_examples(rng, shards.data.take(own), changing[agent])
            x.append(examples)
            y.append(labels)
            own = np.arange(end, end + len(own))
            end += len(own)
        rows.append(own)
    if end == len(y[0]):
        return shards
    data = dataclasses.replace(shards.data, x=np.concatenate(x), y=np.concatenate(y))
    return dataclasses.replace(Shards.from_indices(data, rows), validation=shards.validation)


def _change_examples(
    rng: np.random.Generator, data: Dataset, behaviour: Behaviour
) -> tuple[np.ndarray, np.ndarray]:
    x, y, num_classes, name = data.x, data.y, data.num_classes, behaviour.name
    strength = strength_of(name, behaviour.strength)
    if name == "feature_noise":
        return _add_noise(rng, data, strength), y
    if name == "label_noise":
        other = rng.integers(num_classes, size=len(y))
    elif name == "label_flip":
        other = num_classes - 1 - y
    elif num_classes > 7:
        other = np.where(y == 1, 7, np.where(y == 7, 1, y))
    else:
        raise ValueError(f"`label_flip_1_7` needs the classes 1 and 7, got {num_classes} classes.")
    return x, np.where(rng.uniform(size=len(y)) < strength, other, y)


def _add_noise(rng: np.random.Generator, data: Dataset, strength: float) -> np.ndarray:
    """Returns examples with noise: added to floats, or random tokens in place of tokens."""
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
            "`vocabulary_size`, got whole numbers without a `vocabulary_size`."
        )
    checks.between("strength of feature_noise on tokens", strength, 0, 1)
    replaced = (x > 0) & (rng.uniform(size=x.shape) < strength)
    return np.where(replaced, rng.integers(1, size, size=x.shape, dtype=np.int32), x)
