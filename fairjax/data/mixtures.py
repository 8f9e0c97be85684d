"""Mixtures: splits whose class proportions are drawn from a Dirichlet distribution."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fairjax.data.apportion import apportion, at_least_one
from fairjax.data.dataset import Dataset
from fairjax.data.shards import Shards, count_dealt


def dirichlet(
    train: Dataset,
    *,
    num_agents: int,
    seed: int = 0,
    samples_per_agent: int | None = None,
    concentration: float = 0.5,
) -> Shards:
    """Returns shards with uneven mixtures of classes, without replacement.

    For every class, proportions over agents are drawn from a symmetric Dirichlet
    distribution. An agent without any example gets one from the agent with the most.

    Args:
      train: n examples.
      num_agents: N, at least 1 and at most n.
      seed: a whole number, not negative.
      samples_per_agent: the mean size of a shard; None: n / N, all examples are dealt.
      concentration: parameter of the Dirichlet distribution, above 0. Near 0 every class
        goes to one agent; as it grows, all agents get the mixture of the data.

    Returns:
      Shards of N agents; sizes sum to `samples_per_agent * N`, or n.

    Raises:
      ValueError: an option is out of range, or more examples are asked for than exist.

    References:
      Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution for
      Federated Visual Classification, 2019.

    Examples:
      >>> train = Dataset(x=np.ones((60, 2)), y=np.arange(60) % 3, num_classes=3)
      >>> shards = dirichlet(train, num_agents=4, concentration=1e-6)
      >>> int(shards.sizes.min()), int(shards.sizes.sum())
      (1, 60)
    """
    total = count_dealt(train, num_agents, seed, samples_per_agent)
    _check_concentration(concentration)
    num_classes = train.classes_for("The split dirichlet")
    rng = np.random.default_rng(seed)
    dealt = rng.permutation(len(train))[:total]
    owner = np.empty(total, dtype=np.int64)  # [total], agent of each dealt row
    for label in range(num_classes):
        of_class = np.flatnonzero(train.y[dealt] == label)
        sizes = apportion(len(of_class), _draw_proportions(rng, concentration, num_agents))
        owner[of_class] = np.repeat(np.arange(num_agents), sizes)
    sizes = np.bincount(owner, minlength=num_agents)
    wanted = at_least_one(sizes)
    spare = [np.flatnonzero(owner == i)[: sizes[i] - wanted[i]] for i in np.flatnonzero(sizes > 1)]
    owner[np.concatenate([*spare, []]).astype(int)] = np.flatnonzero(sizes == 0)
    order = np.argsort(owner, kind="stable")
    return Shards.from_indices(train, np.split(dealt[order], np.cumsum(wanted)[:-1]))


def mixtures(
    train: Dataset,
    *,
    num_agents: int,
    seed: int = 0,
    samples_per_agent: int | None = None,
    concentration: float = 3.0,
) -> Shards:
    """Returns equal shards whose mixtures of classes differ, with replacement.

    Every agent's class proportions are one draw from Dirichlet(a p), where p are the frequencies of
    the classes in the data. The field calls it DIR(a); on ten equal classes, DIR(3) has .3 per
    class. An agent holds an example twice only if it needs more of a class than there are.

    Args:
      train: n examples, some of every class.
      num_agents: N, at least 1.
      seed: a whole number, not negative.
      samples_per_agent: the size of every shard; None: n // N.
      concentration: a, above 0.

    Returns:
      Shards of N agents.

    Raises:
      ValueError: an option is out of range, or the data have no classes.

    Examples:
      >>> train = Dataset(x=np.ones((60, 2)), y=np.arange(60) % 3, num_classes=3)
      >>> mixtures(train, num_agents=4, samples_per_agent=12).class_counts().sum(1)
      array([12, 12, 12, 12])
    """
    size = count_dealt(train, num_agents, seed, samples_per_agent, replace=True) // num_agents
    number = _check_concentration(concentration)
    rng = np.random.default_rng(seed)
    num_classes = train.classes_for("The split mixtures")
    of_class = [np.flatnonzero(train.y == label) for label in range(num_classes)]
    of_class = [rows for rows in of_class if len(rows)]
    frequencies = np.array([len(rows) for rows in of_class]) / len(train)
    concentrations = np.maximum(number * frequencies, np.finfo(float).smallest_subnormal)
    shards = []
    for _ in range(num_agents):
        counts = apportion(size, _draw_proportions(rng, concentrations, len(of_class)))
        shards.append(
            np.concatenate(
                [
                    rng.choice(rows, count, replace=count > len(rows))
                    for rows, count in zip(of_class, counts, strict=True)
                    if count
                ]
            )
        )
    return Shards.from_indices(train, shards)


def mixtures_of(concentration: int) -> Callable[..., Shards]:
    """Returns the split DIR(a) of the field."""

    def split(train: Dataset, **given: Any) -> Shards:
        return mixtures(train, concentration=concentration, **given)

    split.__doc__ = f"Returns equal shards, mixtures of classes from Dirichlet({concentration} p)."
    return split


def _check_concentration(concentration: Any) -> float:
    """Returns a concentration as a number, or raises if it is not finite and above 0."""
    # Any positive float64 number is fine, since nothing here is computed in float32.
    number = concentration.item() if isinstance(concentration, np.generic) else concentration
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not 0 < number <= sys.float_info.max:
        raise ValueError(
            f"`concentration` must be a finite number above 0, got {concentration!r:.100}."
        )
    return number


def _draw_proportions(
    rng: np.random.Generator, concentration: float | np.ndarray, num_agents: int
) -> np.ndarray:
    """Returns one draw `[N]` from a Dirichlet, in logarithms until the end.

    A gamma variate G(a) is G(a + 1) U^(1/a). For small a it is below the smallest float,
    and a division by the sum would be 0/0. So compute log G(a) instead, times
    s = min(a, 1) because log(U) / a may overflow too. Subtract the largest before dividing
    by s: then the largest proportion is exp(0) before normalisation.
    """
    scale = min(float(np.min(concentration)), 1.0)
    gammas = np.log(rng.standard_gamma(concentration + 1, num_agents))
    uniforms = np.log1p(-rng.random(num_agents))  # 1 - [0, 1) is never zero
    logits = scale * gammas + (scale / concentration) * uniforms
    with np.errstate(over="ignore"):
        return np.exp((logits - logits.max()) / scale)
