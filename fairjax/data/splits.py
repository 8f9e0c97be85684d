"""Splits: how the training examples are dealt out to agents.

    uniform          equal sizes, the same mixture of classes for all agents
    power_law        sizes that follow a power law, the same mixture of classes for all agents
    class_imbalance  equal sizes; agent i has only the first c_i classes
    dirichlet        each class is dealt out in proportions drawn from a Dirichlet distribution
    dir3, dir7       equal sizes; each agent's mixture of classes is drawn from one

In shapes, N is the number of agents, n of examples, C of classes. Every split takes the
training data and gives every agent at least one example. The seed determines the split.
"""

from collections.abc import Callable

import numpy as np

from fairjax.data.apportion import apportion, at_least_one
from fairjax.data.dataset import Dataset
from fairjax.data.mixtures import dirichlet, mixtures_of
from fairjax.data.shards import Shards, count_dealt

# The authors' program has this exponent. The quantile of x^a, 0 < x < 1, at level p is p^(1/a).
_POWER = 1.65911332899


def uniform(
    train: Dataset, *, num_agents: int, seed: int = 0, samples_per_agent: int | None = None
) -> Shards:
    """Returns shards of equal size, without replacement.

    Args:
      train: n examples.
      num_agents: N, at least 1 and at most n.
      seed: a whole number, not negative.
      samples_per_agent: the size of every shard; None: n // N.

    Returns:
      Shards of N agents.

    Raises:
      ValueError: an option is out of range, or more examples are asked for than exist.

    References:
      Xu et al., Gradient Driven Rewards to Guarantee Fairness in Collaborative Machine
      Learning, NeurIPS 2021, section on experiments.

    Examples:
      >>> train = Dataset(x=np.ones((100, 2)), y=np.arange(100) % 10, num_classes=10)
      >>> print(uniform(train, num_agents=3).sizes)
      [33 33 33]
    """
    total = count_dealt(train, num_agents, seed, samples_per_agent)
    sizes = np.full(num_agents, total // num_agents)
    return _deal(train, np.random.default_rng(seed), sizes)


def power_law(
    train: Dataset, *, num_agents: int, seed: int = 0, samples_per_agent: int | None = None
) -> Shards:
    """Returns shards whose sizes follow a power law, without replacement.

    Shares are evenly spaced from the first to the last percentile of the power law x^a,
    a = 1.65911332899, and divided by their sum. The last agent has the most examples.

    Args:
      train: n examples.
      num_agents: N, at least 1 and at most n.
      seed: a whole number, not negative.
      samples_per_agent: the mean size of a shard; None: n / N, all examples are dealt.

    Returns:
      Shards of N agents; sizes never fall and sum to `samples_per_agent * N`, or n.

    Raises:
      ValueError: an option is out of range, or more examples are asked for than exist.

    References:
      Xu et al., Gradient Driven Rewards to Guarantee Fairness in Collaborative Machine
      Learning, NeurIPS 2021, section on experiments.

    Examples:
      >>> train = Dataset(x=np.ones((3000, 2)), y=np.arange(3000) % 10, num_classes=10)
      >>> print(power_law(train, num_agents=5).sizes)
      [  71  335  600  865 1129]
    """
    total = count_dealt(train, num_agents, seed, samples_per_agent)
    shares = np.linspace(0.01 ** (1 / _POWER), 0.99 ** (1 / _POWER), num_agents)
    sizes = np.sort(at_least_one(apportion(total, shares)))
    return _deal(train, np.random.default_rng(seed), sizes)


def class_imbalance(
    train: Dataset, *, num_agents: int, seed: int = 0, samples_per_agent: int | None = None
) -> Shards:
    """Returns equal shards with more and more classes, with replacement.

    Agent i has the first `int(linspace(1, C, N)[i])` classes: the first agent has only
    class 0, the last all classes; a single agent is the first. Its examples are spread evenly over
    its classes.

    Args:
      train: n examples, some of every class.
      num_agents: N, at least 1.
      seed: a whole number, not negative.
      samples_per_agent: the size of every shard. It may exceed n, but N times the size must
        be at most 2**28. None: n // N.

    Returns:
      Shards of N agents.

    Raises:
      ValueError: an option is out of range, or a class that is needed has no example.

    References:
      Xu et al., Gradient Driven Rewards to Guarantee Fairness in Collaborative Machine
      Learning, NeurIPS 2021, section on experiments.

    Examples:
      >>> train = Dataset(x=np.ones((60, 2)), y=np.arange(60) % 4, num_classes=4)
      >>> print(class_imbalance(train, num_agents=4, samples_per_agent=12).class_counts())
      [[12  0  0  0]
       [ 6  6  0  0]
       [ 4  4  4  0]
       [ 3  3  3  3]]
    """
    size = count_dealt(train, num_agents, seed, samples_per_agent, replace=True) // num_agents
    rng = np.random.default_rng(seed)
    num_classes = train.classes_for("The split class_imbalance")
    known = np.linspace(1, num_classes, num_agents).astype(int)
    of_class = [np.flatnonzero(train.y == label) for label in range(known.max())]
    for label, rows in enumerate(of_class):
        if len(rows) == 0:
            raise ValueError(
                f"`train` must have examples of the classes 0 to {known.max() - 1}, "
                f"got none of class {label}. (`Experiment` has held out a tenth of the examples.)"
            )
    rows = [
        np.concatenate(
            [rng.choice(of_class[c], k) for c, k in enumerate(apportion(size, np.ones(classes)))]
        )
        for classes in known
    ]
    return Shards.from_indices(train, rows)


SPLITS: dict[str, Callable[..., Shards]] = {
    "uniform": uniform,
    "power_law": power_law,
    "class_imbalance": class_imbalance,
    "dirichlet": dirichlet,
    "dir3": mixtures_of(3),
    "dir7": mixtures_of(7),
}


def _deal(train: Dataset, rng: np.random.Generator, sizes: np.ndarray) -> Shards:
    """Returns shards of the given sizes, drawn without replacement."""
    dealt = rng.permutation(len(train))[: sizes.sum()]
    return Shards.from_indices(train, np.split(dealt, np.cumsum(sizes)[:-1]))
