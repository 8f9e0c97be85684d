"""Progress: how far a run is, the rows of its rounds, and events to report on the host.

record_t -> row t of the History          record_t -> Events, carried from round to round
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import trees
from fairjax.simulation.states import Record, State
from fairjax.types import Params, PerAgent, PerRound, Scalar, Stacked


class History(NamedTuple):
    """One row per round; a pytree of arrays with the round on the leading axis.

    Accuracies are the task's main metric, if that is another one.

    Attributes:
      accuracies: `[T, N]` of the models that agents were paid; nan in rounds not evaluated.
      trained_accuracies: `[T, N]` of the same models after their next local epochs; an agent
        that is absent in the next round keeps its model.
      server_accuracies: `[T]` of the server's model.
      contributions: `[T, N]`; nan where the mechanism does not judge, or the agent is absent.
      importance: `[T, N]`; nan where the mechanism does not judge.
      fractions: `[T, N]` shares of the aggregate that agents earned, before rounding; nan where
        the agent is absent.
      excluded: `[T, N]` booleans: the upload was dropped: not finite, or too large to add.
      participants: `[T, N]` booleans: who trained and uploaded; None: all, in every round.
      metrics: `[T, N]` of all metrics of the task by name, of the models that agents were paid;
        the main one is also `accuracies`.
      servers: the server's parameters at rounds' starts, leaves `[T, ...]`; None unless
        recorded.
      updates: the uploads, leaves `[T, N, ...]`; None unless recorded.
      uploaded: `[T, N]` how many numbers agents uploaded; None unless they train adapters.
      received: `[T, N]` how many numbers they received, likewise.
      network: `[T]` how many parameters the whole network has, likewise: what an agent would upload
        and receive if it trained all of them.
    """

    accuracies: PerRound
    trained_accuracies: PerRound
    server_accuracies: PerRound
    contributions: PerRound
    importance: PerRound
    fractions: PerRound
    excluded: PerRound
    participants: PerRound | None = None
    metrics: dict[str, PerRound] | None = None
    servers: Params | None = None
    updates: Stacked | None = None
    uploaded: PerRound | None = None
    received: PerRound | None = None
    network: PerRound | None = None


HONEST_EVENTS = {
    "unchanged": "its update was exactly zero, so it is judged as if it gave nothing. Likely the "
    "learning rate has become so small that parameters no longer change, a schedule within the "
    "optimizer (`schedule_counts`) has ended, or gradients vanish.",
    "excluded": "its upload held NaN, infinity or numbers too large to be added, so it was "
    "dropped. Likely its training diverges (try a smaller `learning_rate`), or its data hold NaN.",
}


class Events(NamedTuple):
    """Events to report on the host; a round is -1 where nothing happened.

    Attributes:
      broken: the first round in which the mechanism paid NaN or infinity.
      unchanged: the first round in which an honest agent's update was exactly zero, and the agent.
      excluded: the first round in which an honest agent's upload was dropped, and the agent.
    """

    broken: Scalar
    unchanged: tuple[Scalar, Scalar]
    excluded: tuple[Scalar, Scalar]

    @classmethod
    def none(cls) -> "Events":
        """Returns the events of a run in which nothing happened yet."""
        never = jnp.array(-1, jnp.int32)  # as the round of a state, with 64 bits too
        return cls(never, (never, never), (never, never))

    def after(self, record: Record, number: Scalar, honest: PerAgent) -> "Events":
        """Returns the first events, including those of one more round; `honest` is `[N]`."""

        def first(earlier: tuple[Scalar, Scalar], agents: PerAgent) -> tuple[Scalar, Scalar]:
            is_first = agents.any() & (earlier[0] < 0)
            agent = agents.argmax().astype(jnp.int32)
            return trees.where(is_first, (number, agent), earlier)

        return Events(
            jnp.where(record.broken & (self.broken < 0), number, self.broken),
            first(self.unchanged, record.unchanged),
            first(self.excluded, record.excluded & honest),
        )


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
      state: the state after the last round played.
      rows: one row for every round played, leaves `[rounds played, ...]`; a row's
        `trained_accuracies` belong to the round before.
    """

    state: State
    rows: History

    @property
    def num_rounds(self) -> int:
        """The number of rows: T + 1 when finished; the last gives the accuracies after training."""
        return len(self.rows.server_accuracies)


def no_rows(
    num_agents: int, metrics: Sequence[str], adapted: bool, recorded: State | None = None
) -> History:
    """Returns a history without rounds.

    Args:
      num_agents: N.
      metrics: names of the task's metrics.
      adapted: whether agents train adapters.
      recorded: a state with the shapes of servers and uploads; None: these are not recorded.
    """

    def no_entries(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), tree)

    # By numpy: JAX would compile a program for each.
    numbers = np.zeros((0, num_agents), jnp.result_type(float))
    return History(
        accuracies=numbers,
        trained_accuracies=numbers,
        server_accuracies=numbers[:, 0],
        contributions=numbers,
        importance=numbers,
        fractions=numbers,
        participants=numbers.astype(bool),
        excluded=numbers.astype(bool),
        metrics=dict.fromkeys(metrics, numbers),
        servers=None if recorded is None else no_entries(recorded.server),
        updates=None if recorded is None else no_entries(recorded.agents),
        uploaded=numbers.astype(np.int32) if adapted else None,
        received=numbers.astype(np.int32) if adapted else None,
        network=np.zeros(0, np.int32) if adapted else None,
    )


def one_row(record: Record, trained: PerAgent, paid: Mapping[str, PerAgent], main: str) -> History:
    """Returns the row of a round, without what is recorded on request.

    Args:
      record: what the round decided.
      trained: `[N]` values of the main metric after the local epochs.
      paid: `[N + 1]` metrics by name of the models that agents were paid, and of the server's.
      main: the name of the main metric.
    """
    return History(
        accuracies=paid[main][:-1],
        trained_accuracies=trained,
        server_accuracies=paid[main][-1],
        contributions=record.contributions,
        importance=record.importance,
        fractions=record.fractions,
        participants=record.participants,
        excluded=record.excluded,
        metrics={name: values[:-1] for name, values in paid.items()},
        uploaded=record.uploaded,
        received=record.received,
    )


def check_paid(mechanism: str, broken: Scalar) -> None:
    """Raises if a mechanism paid NaN or infinity, or planned such a start; see `play`.

    Raises:
      ValueError: it did. The message names the mechanism and the round.
    """
    if int(broken) >= 0:
        raise ValueError(
            f"The mechanism {mechanism!r} must pay finite rewards for finite updates, and plan "
            f"finite starts, got NaN or infinity in round {int(broken)}."
        )


def warn_of_honest(events: Events, warned: set[str]) -> None:
    """Warns if an honest agent's update was exactly zero, or its upload was dropped.

    Args:
      events: the events of one run, or of several runs on leading axes; a warning names the first.
      warned: of what the run has warned already; this call adds to it.
    """
    for name, words in HONEST_EVENTS.items():
        rounds, agents = map(np.ravel, getattr(events, name))
        found = np.flatnonzero(rounds >= 0)
        if found.size and name not in warned:
            warned.add(name)
            agent, number = agents[found[0]], rounds[found[0]]
            warnings.warn(
                f"Agent {agent} trained honestly in round {number} and {words}", stacklevel=2
            )
