"""Splits: how the training examples are dealt out to agents.

    uniform          equal sizes, the same mixture of classes for all agents
    power_law        sizes that follow a power law, the same mixture of classes for all agents
    class_imbalance  equal sizes; agent i has only the first c_i classes
    dirichlet        each class is dealt out in proportions drawn from a Dirichlet distribution

In shapes, N is the number of agents, n of examples, C of classes. Every split takes the
training data and gives every agent at least one example. The seed determines the split.
"""

import sys
from collections.abc import Callable

import numpy as np

from fairjax import checks
from fairjax.data.apportion import apportion, at_least_one
from fairjax.data.dataset import MADE_BY, MOST_SEED, Dataset
from fairjax.data.shards import MOST_AGENTS, MOST_INDICES, Shards

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
    total = _count_dealt(train, num_agents, seed, samples_per_agent)
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
    total = _count_dealt(train, num_agents, seed, samples_per_agent)
    shares = np.linspace(0.01 ** (1 / _POWER), 0.99 ** (1 / _POWER), num_agents)
    sizes = np.sort(at_least_one(apportion(total, shares)))
    return _deal(train, np.random.default_rng(seed), sizes)


def class_imbalance(
    train: Dataset, *, num_agents: int, seed: int = 0, samples_per_agent: int | None = None
) -> Shards:
    """Returns equal shards with more and more classes, with replacement.

    Agent i has the first `int(linspace(1, C, N)[i])` classes: the first agent has only
    class 0, the last all classes. Its examples are spread evenly over its classes.

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
    size = _count_dealt(train, num_agents, seed, samples_per_agent, replace=True) // num_agents
    rng = np.random.default_rng(seed)
    num_classes = train.classes_for("The split class_imbalance")
    known = np.linspace(1, num_classes, num_agents).astype(int)
    of_class = [np.flatnonzero(train.y == label) for label in range(known.max())]
    for label, rows in enumerate(of_class):
        if len(rows) == 0:
            raise ValueError(
                f"`train` must have examples of the classes 0 to {known.max() - 1}, "
                f"got none of class {label}."
            )
    rows = [
        np.concatenate(
            [rng.choice(of_class[c], k) for c, k in enumerate(apportion(size, np.ones(classes)))]
        )
        for classes in known
    ]
    return Shards.from_indices(train, rows)


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
    total = _count_dealt(train, num_agents, seed, samples_per_agent)
    # Any positive float64 number is fine, since nothing here is computed in float32.
    number = concentration.item() if isinstance(concentration, np.generic) else concentration
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not 0 < number <= sys.float_info.max:
        raise ValueError(
            f"`concentration` must be a finite number above 0, got {concentration!r:.100}."
        )
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


SPLITS: dict[str, Callable[..., Shards]] = {
    "uniform": uniform,
    "power_law": power_law,
    "class_imbalance": class_imbalance,
    "dirichlet": dirichlet,
}


def _draw_proportions(
    rng: np.random.Generator, concentration: float, num_agents: int
) -> np.ndarray:
    """Returns one draw `[N]` from a symmetric Dirichlet, in logarithms until the end.

    A gamma variate G(a) is G(a + 1) U^(1/a). For small a it is below the smallest float,
    and a division by the sum would be 0/0. So compute log G(a) instead, times
    s = min(a, 1) because log(U) / a may overflow too. Subtract the largest before dividing
    by s: then the largest proportion is exp(0) before normalisation.
    """
    scale = min(concentration, 1.0)
    gammas = np.log(rng.standard_gamma(concentration + 1, num_agents))
    uniforms = np.log1p(-rng.random(num_agents))  # 1 - [0, 1) is never zero
    logits = scale * gammas + (scale / concentration) * uniforms
    with np.errstate(over="ignore"):
        return np.exp((logits - logits.max()) / scale)


def _deal(train: Dataset, rng: np.random.Generator, sizes: np.ndarray) -> Shards:
    """Returns shards of the given sizes, drawn without replacement."""
    dealt = rng.permutation(len(train))[: sizes.sum()]
    return Shards.from_indices(train, np.split(dealt, np.cumsum(sizes)[:-1]))


def _count_dealt(
    train: Dataset, num_agents: int, seed: int, samples_per_agent: int | None, replace: bool = False
) -> int:
    """Checks the options that all splits share; returns how many examples are dealt."""
    checks.kind("train", train, Dataset, MADE_BY)
    checks.count("seed", seed, least=0, most=MOST_SEED)
    if samples_per_agent is None:
        checks.count("num_agents", num_agents)
        if num_agents > len(train):
            raise ValueError(
                f"`num_agents` must be at most the {len(train)} examples of `train`, "
                f"got num_agents={num_agents}."
            )
        return len(train)
    checks.count("num_agents", num_agents, most=MOST_AGENTS)
    checks.count("samples_per_agent", samples_per_agent)
    total, most = int(samples_per_agent) * int(num_agents), MOST_INDICES if replace else len(train)
    if total > most:
        limit = f"{most:,} row numbers" if replace else f"the {most} examples of `train`"
        raise ValueError(
            f"`samples_per_agent` * `num_agents` must be at most {limit}, got "
            f"{samples_per_agent} * {num_agents} = {total}."
        )
    return total
