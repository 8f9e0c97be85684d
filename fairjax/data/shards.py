"""Shards: which examples of one dataset belong to which agent.

    data     Dataset   stored once, however many agents there are
    indices  [N, M]    int32 row numbers; entries beyond the agent's size are padding
    sizes    [N]       int32, how many of an agent's indices count

In shapes, N is the number of agents, M the size of the largest shard and C the number
of classes. An agent's padding repeats its own first row, so that code that gathers the
padding reads no other agent's data.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fairjax import checks
from fairjax.data.arrays import as_array, check_rows, described, is_known, is_whole, row_numbers
from fairjax.data.dataset import MADE_BY, MOST_SEED, Dataset, register_unchecked

MOST_INDICES = 2**28  # bound on N times M: 1 GiB of int32


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """The agents' data, as rows of one dataset. Made by a split or by `from_indices`.

    Args:
      data: the dataset with the rows of all shards, n examples.
      indices: `[N, M]` row numbers in [0, n), stored as int32.
      sizes: `[N]` numbers of rows, 1 to M, stored as int32.
      validation: held-out data that belongs to no agent, for mechanisms that score models
        on it; None: there is none.

    Raises:
      ValueError: a known `indices` or `sizes` has a wrong shape, or an entry that is not a
        whole number in range; or `validation` differs from `data` in the shape or kind of
        examples, the classes or the tokens. Traced arrays are not checked.

    Examples:
      >>> data = Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
      >>> shards = Shards.from_indices(data, [[0, 1, 2], [5]])
      >>> shards.num_agents, shards.indices.tolist(), shards.sizes.tolist()
      (2, [[0, 1, 2], [5, 5, 5]], [3, 1])
    """

    data: Dataset
    indices: Any  # [N, M]
    sizes: Any  # [N]
    validation: Dataset | None = None

    def __post_init__(self):
        """Checks and converts known arrays; traced arrays pass unchanged."""
        checks.kind("data", self.data, Dataset, MADE_BY)
        if self.validation is not None:
            checks.kind("validation", self.validation, Dataset, MADE_BY)
            self.data.check_alike("validation", self.validation)
        if is_known(self.indices) and is_known(self.sizes):
            indices, sizes = as_array("`indices`", self.indices), as_array("`sizes`", self.sizes)
            _check_indices(indices, sizes, len(self.data))
            given, padded = self.indices, _pad_with_own(indices, sizes)
            if (padded != indices).any():
                on_device = isinstance(given, jax.Array)
                given = jax.device_put(padded, given.sharding) if on_device else padded
            object.__setattr__(self, "indices", _as_int32(given, padded))
            object.__setattr__(self, "sizes", _as_int32(self.sizes, sizes))

    def __repr__(self) -> str:
        """Returns two lines with counts, shapes and dtypes, without the numbers."""
        sizes = described(self.sizes)
        if is_known(self.sizes) and np.size(self.sizes) and hasattr(self.sizes, "dtype"):
            sizes += f" from {self.sizes.min()} to {self.sizes.max()}"
        return (
            f"Shards(data={self.data!r}, indices={described(self.indices)},\n"
            f"       sizes={sizes}, validation={self.validation!r})"
        )

    @classmethod
    def from_indices(cls, data: Dataset, rows: Sequence[Any]) -> "Shards":
        """Returns shards of `data`, one for each entry of `rows`.

        Args:
          data: a dataset of n examples.
          rows: for each agent, the row numbers of its examples, in [0, n) and at least
            one. A row may occur twice, within an agent or among agents.

        Returns:
          Shards of `len(rows)` agents.

        Raises:
          ValueError: there are no agents, an agent has no rows, a row is not a whole
            number in [0, n), or the largest shard times N is above 2**28.

        Examples:
          >>> data = Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
          >>> print(Shards.from_indices(data, [[3, 3], [1, 4]]).indices)
          [[3 3]
           [1 4]]
        """
        checks.kind("data", data, Dataset, MADE_BY)
        if not checks.is_listing(rows):
            raise ValueError(
                f"`rows` must be a sequence of agents' row numbers, got {rows!r:.100}."
            )
        owned = [
            row_numbers(f"`rows` of agent {agent}", of_agent, len(data))
            for agent, of_agent in enumerate(rows)
        ]
        if not owned:
            raise ValueError("`rows` must hold the rows of at least one agent, got none.")
        sizes = np.array([len(of_agent) for of_agent in owned], dtype=np.int32)
        if len(owned) * int(sizes.max()) > MOST_INDICES:
            raise ValueError(
                f"`rows` must be at most {MOST_INDICES:,}, the number of agents times the rows of "
                f"the largest shard, got {len(owned)} * {sizes.max()}."
            )
        indices = np.empty((len(owned), sizes.max()), dtype=np.int32)
        for padded, of_agent in zip(indices, owned, strict=True):
            padded[: len(of_agent)] = of_agent
            padded[len(of_agent) :] = of_agent[0]
        return cls(data=data, indices=indices, sizes=sizes)

    @property
    def num_agents(self) -> int:
        """N, the number of agents."""
        return self.sizes.shape[0]

    def rows(self, agent: int) -> np.ndarray:
        """Returns the row numbers of one agent's examples, without padding.

        Args:
          agent: the agent's index, in [0, N).

        Returns:
          `[sizes[agent]]` int32 row numbers of `data`.

        Raises:
          ValueError: there is no such agent.

        Examples:
          >>> data = Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
          >>> print(Shards.from_indices(data, [[0, 1, 2], [5]]).rows(1))
          [5]
        """
        checks.count("agent", agent, least=0, most=self.num_agents - 1)
        return np.asarray(self.indices[agent])[: int(self.sizes[agent])]

    def class_counts(self) -> np.ndarray:
        """Returns how many examples of each class each agent has, without padding.

        Returns:
          `[N, C]` int64 counts; row i sums to `sizes[i]`.

        Raises:
          ValueError: the data set has no classes.

        Examples:
          >>> data = Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
          >>> print(Shards.from_indices(data, [[0, 1, 2], [5]]).class_counts())
          [[2 1 0]
           [0 0 1]]
        """
        num_classes = self.data.classes_for("`class_counts`")
        indices, sizes = np.asarray(self.indices), np.asarray(self.sizes)
        agents, columns = np.nonzero(np.arange(indices.shape[1]) < sizes[:, None])
        labels = np.asarray(self.data.y)[indices[agents, columns]]
        shape = (self.num_agents, num_classes)
        return np.bincount(agents * shape[1] + labels, minlength=shape[0] * shape[1]).reshape(shape)


def _check_indices(indices: np.ndarray, sizes: np.ndarray, num_rows: int) -> None:
    if indices.ndim != 2 or indices.size == 0:
        raise ValueError(
            "`indices` must be [N, M], the row numbers of at least one agent, got shape "
            f"{indices.shape}."
        )
    checks.shape("sizes", sizes, indices.shape[:1])
    check_rows("`indices`, padding included,", indices, num_rows)
    if not is_whole(sizes.dtype):
        raise ValueError(f"`sizes` must be whole numbers, got dtype {sizes.dtype}.")
    wrong = (sizes < 1) | (sizes > indices.shape[1])
    if wrong.any():
        raise ValueError(
            f"`sizes` must be in [1, {indices.shape[1]}], the number of columns of `indices`, got "
            f"{sizes[wrong][0]} of agent {wrong.argmax()}."
        )


def _pad_with_own(indices: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns indices whose padding repeats an agent's own first row: others' may hold NaN."""
    own = np.arange(indices.shape[1]) < sizes[:, None]
    return np.where(own, indices, indices[:, :1])


def _as_int32(value: Any, array: np.ndarray) -> Any:
    """Returns `value` if it is an int32 array, on any device, else `array` as int32."""
    is_array = isinstance(value, np.ndarray | jax.Array)
    return value if is_array and value.dtype == np.int32 else array.astype(np.int32)


def count_dealt(
    train: Dataset, num_agents: int, seed: int, samples_per_agent: int | None, replace: bool = False
) -> int:
    """Checks the options that all splits share; returns how many examples are dealt."""
    checks.kind("train", train, Dataset, MADE_BY)
    checks.count("seed", seed, least=0, most=MOST_SEED)
    checks.count("num_agents", num_agents)
    if samples_per_agent is None:
        if num_agents > len(train):
            raise ValueError(
                f"`num_agents` must be at most the {len(train)} examples of `train`, "
                f"got num_agents={num_agents}."
            )
        return len(train)
    checks.count("samples_per_agent", samples_per_agent)
    total, most = int(samples_per_agent) * int(num_agents), MOST_INDICES if replace else len(train)
    if total > most:
        limit = f"{most:,} row numbers" if replace else f"the {most} examples of `train`"
        raise ValueError(
            f"`samples_per_agent` * `num_agents` must be at most {limit}, got "
            f"{samples_per_agent} * {num_agents} = {total}."
        )
    return total


def stacked(shards: Sequence[Shards]) -> Shards:
    """Stacks several shards with the same number of agents on a leading axis, for `vmap`.

    Only the first example, by which a model may be made, and those that some agent holds are kept.
    Shards with fewer examples than others are padded with repeated ones, which no indices name.

    Args:
      shards: S shards; the examples of their datasets have the same shape.

    Returns:
      Shards with leaves `[S, ...]`, on the host.

    Raises:
      ValueError: there are no shards, or they differ in the number of agents, in the shape,
        kind or classes of examples, or in the size of the validation data.

    Examples:
      >>> data = Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
      >>> two = [Shards.from_indices(data, rows) for rows in ([[1, 2], [5]], [[3], [4]])]
      >>> both = stacked(two)
      >>> both.data.x.shape, both.indices.tolist()
      ((2, 4, 2), [[[1, 2], [3, 3]], [[1, 1], [2, 2]]])
    """
    _check_stackable(shards)
    used_rows = [np.unique(np.append(one.indices, 0)) for one in shards]
    num_rows = max(len(rows) for rows in used_rows)
    width = max(one.indices.shape[1] for one in shards)
    parts = []
    for one, rows in zip(shards, used_rows, strict=True):
        indices = np.searchsorted(rows, one.indices).astype(np.int32)
        padding = np.repeat(indices[:, :1], width - indices.shape[1], axis=1)
        data = one.data.take(np.resize(rows, num_rows))
        parts.append(
            dataclasses.replace(one, data=data, indices=np.concatenate([indices, padding], 1))
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


def _check_stackable(shards: Any) -> None:
    if not isinstance(shards, Sequence) or len(shards) == 0:
        raise ValueError(
            f"`shards` must be a sequence of at least one Shards, got {shards!r:.100}."
        )
    for number, one in enumerate(shards):
        name = f"shards[{number}]"
        checks.kind(name, one, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
        shards[0].data.check_alike(name, one.data)
        checks.shape(f"{name}.sizes", one.sizes, shards[0].sizes.shape)
        sizes = [
            None if two.validation is None else len(two.validation) for two in (one, shards[0])
        ]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"`{name}.validation` must have as many examples as that of the first shards, "
                f"{sizes[1]}, got {sizes[0]}."
            )


register_unchecked(Shards, leaves=("data", "indices", "sizes", "validation"))
