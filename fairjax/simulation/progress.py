"""Progress: how far a run is, the rows of its rounds, and what the host is to hear of them.

record_t -> row t of the History          record_t -> Events, carried from round to round
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import trees
from fairjax.simulation.states import Record, State
from fairjax.types import Params, PerRound, Scalar, Stacked


class History(NamedTuple):
    """One row per round; a pytree of arrays with the round on the leading axis.

    Attributes:
      accuracies: `[T, N]` of the models that agents were paid; nan in rounds not evaluated.
      trained_accuracies: `[T, N]` of the same models after their next local epochs.
      server_accuracies: `[T]` of the server's model.
      contributions: `[T, N]`; nan where the mechanism does not judge, as the next two.
      importance: `[T, N]`.
      fractions: `[T, N]` shares of the aggregate that agents earned, before rounding.
      excluded: `[T, N]` booleans: whose upload was dropped: not finite, or too large to add.
      servers: the server's parameters at rounds' starts, leaves `[T, ...]`; None unless
        recorded, as the next.
      updates: what was uploaded, leaves `[T, N, ...]`.
    """

    accuracies: PerRound
    trained_accuracies: PerRound
    server_accuracies: PerRound
    contributions: PerRound
    importance: PerRound
    fractions: PerRound
    excluded: PerRound
    servers: Params | None = None
    updates: Stacked | None = None


class Events(NamedTuple):
    """What the host is to hear of; rounds are -1 where nothing happened.

    Attributes:
      broken: the first round in which the mechanism paid NaN or infinity.
      unchanged: the first round in which an honest agent's update was exactly zero.
      agent: that agent.
    """

    broken: Scalar
    unchanged: Scalar
    agent: Scalar

    @classmethod
    def none(cls) -> "Events":
        """Returns that nothing happened yet."""
        return cls(jnp.array(-1), jnp.array(-1), jnp.array(-1))

    def after(self, record: Record, number: Scalar) -> "Events":
        """Returns what happened first, with one more round."""
        broken = jnp.where(record.broken & (self.broken < 0), number, self.broken)
        is_first = record.unchanged.any() & (self.unchanged < 0)
        unchanged = jnp.where(is_first, number, self.unchanged)
        agent = jnp.where(is_first, record.unchanged.argmax(), self.agent)
        return Events(broken, unchanged, agent)


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
      state: after the last round played.
      rows: of all rounds played, leaves `[rounds played, ...]`; `trained_accuracies` belong to
        the round before.
    """

    state: State
    rows: History

    @property
    def num_rounds(self) -> int:
        """How many rounds have rows; one more than asked for when a run is finished."""
        return len(self.rows.server_accuracies)


def no_rows(state: State, record_updates: bool) -> History:
    """Returns a history of no rounds, for a run that begins in a state."""

    def nothing(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), tree)

    numbers = jnp.zeros((0, trees.num_agents(state.agents)))
    return History(
        accuracies=numbers,
        trained_accuracies=numbers,
        server_accuracies=jnp.zeros(0),
        contributions=numbers,
        importance=numbers,
        fractions=numbers,
        excluded=numbers.astype(bool),
        servers=nothing(state.server) if record_updates else None,
        updates=nothing(state.agents) if record_updates else None,
    )


def check_paid(mechanism: str, broken: Scalar) -> None:
    """Raises where a mechanism paid NaN or infinity; see `play`.

    Raises:
      ValueError: names the mechanism and the round.
    """
    if broken >= 0:
        raise ValueError(
            f"The mechanism {mechanism!r} must pay finite rewards for finite updates, got NaN or "
            f"infinity in round {int(broken)}."
        )


def warn_of_unchanged(events: Events) -> bool:
    """Warns of an honest agent whose update was exactly zero, and says whether there is one.

    Args:
      events: of one run, or of several on leading axes, the first of which is told.
    """
    rounds, agents = np.ravel(events.unchanged), np.ravel(events.agent)
    found = np.flatnonzero(rounds >= 0)
    if found.size:
        warnings.warn(
            f"Agent {agents[found[0]]} trained honestly in round {rounds[found[0]]} and its update "
            "was exactly zero, so it is judged as if it gave nothing. Likely the learning rate has "
            "become so small that parameters no longer change, a schedule within the optimizer "
            "(`schedule_counts`) is through, or gradients vanish.",
            stacklevel=2,
        )
    return bool(found.size)
