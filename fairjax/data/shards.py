"""Shards: which examples of one dataset belong to which agent.

    data     Dataset   stored once, however many agents there are
    indices  [N, M]    int32 row numbers; a row beyond the agent's size is padding
    sizes    [N]       int32, how many of an agent's indices count

In shapes, N is the number of agents, M the size of the largest shard and C the number
of classes. An agent's padding repeats its own first row, so that whoever gathers it
reads nobody else's data.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fairjax.data.dataset import Dataset, row_numbers


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["data", "indices", "sizes", "validation"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """The agents' data, as rows of one dataset. Made by a split or by `from_indices`.

    Args:
      data: the dataset that all shards are rows of.
      indices: `[N, M]` int32 row numbers.
      sizes: `[N]` int32 numbers of rows, 1 to M.
      validation: held-out data that belongs to nobody, for mechanisms that score models
        on it; None: there is none.

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
          ValueError: there are no agents, an agent has no rows, or a row is not a whole
            number in [0, n).

        Examples:
          >>> data = Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
          >>> print(Shards.from_indices(data, [[3, 3], [1, 4]]).indices)
          [[3 3]
           [1 4]]
        """
        if len(rows) == 0:
            raise ValueError("`rows` must hold the rows of at least one agent, got none.")
        owned = [
            row_numbers(f"`rows` of agent {agent}", of_agent, len(data))
            for agent, of_agent in enumerate(rows)
        ]
        sizes = np.array([len(of_agent) for of_agent in owned], dtype=np.int32)
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
        if not 0 <= agent < self.num_agents:
            raise ValueError(f"`agent` must be in [0, {self.num_agents}), got agent={agent!r}.")
        return np.asarray(self.indices[agent])[: int(self.sizes[agent])]

    def class_counts(self) -> np.ndarray:
        """Returns how many examples of each class each agent has, padding left out.

        Returns:
          `[N, C]` int64 counts; row i sums to `sizes[i]`.

        Examples:
          >>> data = Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
          >>> print(Shards.from_indices(data, [[0, 1, 2], [5]]).class_counts())
          [[2 1 0]
           [0 0 1]]
        """
        indices, sizes = np.asarray(self.indices), np.asarray(self.sizes)
        agents, columns = np.nonzero(np.arange(indices.shape[1]) < sizes[:, None])
        labels = np.asarray(self.data.y)[indices[agents, columns]]
        shape = (self.num_agents, self.data.num_classes)
        return np.bincount(agents * shape[1] + labels, minlength=shape[0] * shape[1]).reshape(shape)


def stacked(shards: Sequence[Shards]) -> Shards:
    """Returns several shards of one number of agents as one, to be vmapped over.

    Only examples that some agent holds are kept; shards that hold fewer than others
    repeat some, which no agent's indices name.

    Args:
      shards: S of them, whose datasets have examples of one shape.

    Returns:
      Shards with leaves `[S, ...]`, on the host.

    Examples:
      >>> data = Dataset(x=np.ones((6, 2)), y=[0, 0, 1, 1, 2, 2], num_classes=3)
      >>> two = [Shards.from_indices(data, rows) for rows in ([[1, 2], [5]], [[3], [4]])]
      >>> both = stacked(two)
      >>> both.data.x.shape, both.indices.tolist()
      ((2, 3, 2), [[[0, 1], [2, 2]], [[0, 0], [1, 1]]])
    """
    held = [np.unique(one.indices) for one in shards]
    num_rows = max(len(rows) for rows in held)
    width = max(one.indices.shape[1] for one in shards)
    parts = []
    for one, rows in zip(shards, held, strict=True):
        indices = np.searchsorted(rows, one.indices).astype(np.int32)
        padding = np.repeat(indices[:, :1], width - indices.shape[1], axis=1)
        data = one.data.take(np.resize(rows, num_rows))
        parts.append(
            dataclasses.replace(one, data=data, indices=np.concatenate([indices, padding], 1))
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
