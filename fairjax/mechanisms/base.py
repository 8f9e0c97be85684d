"""The protocol of mechanisms: what judges the updates of a round and pays the agents.

    init(num_agents)                 -> state
    update(updates, state, context)  -> (Outcome, state)

Both are pure functions; `update` is traced into the compiled round. The
federation gives finite `updates` (a row with NaN or infinity arrives as zeros) and
adds `rewards` to the parameters that agents held at the round's start.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import trees
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked


class Context(NamedTuple):
    """What a mechanism may look at besides the updates."""

    shard_sizes: PerAgent  # [N] examples
    round: Scalar = 0
    key: Key | None = None  # of this round
    learning_rate: Scalar | None = None  # at the round's start; None where optax holds it
    server: Params | None = None  # the server's parameters at the round's start
    agents: Stacked | None = None  # the agents' parameters at the round's start

    @property
    def shares(self) -> PerAgent:
        """`[N]` shares of the data, with sum one."""
        return self.shard_sizes / self.shard_sizes.sum()


class Outcome(NamedTuple):
    """What a mechanism decides; the same fields for all, nan where it does not judge."""

    aggregate: Params  # the server's parameter change
    rewards: Stacked  # the agents' parameter changes
    contributions: PerAgent
    importance: PerAgent
    fractions: PerAgent  # of the aggregate that each agent earned, before rounding


class Mechanism(NamedTuple):
    """A pair of pure functions; see the module's first lines."""

    init: Callable[[int], Any]
    update: Callable[[Stacked, Any, Context], tuple[Outcome, Any]]


def unjudged(num_agents: int) -> PerAgent:
    """Returns `[N]` nan: the answer of a mechanism that does not judge."""
    return jnp.full(num_agents, jnp.nan)


def check_outcome(outcome: Outcome, updates: Stacked) -> None:
    """Raises where the shapes of an outcome do not follow from those of the updates.

    Raises:
      ValueError: names the field, the shape it must have and the shape it has.
    """
    if not isinstance(outcome, Outcome):
        raise ValueError(
            f"A mechanism's `update` must return (Outcome, state), got {type(outcome).__name__} "
            "in place of the Outcome."
        )
    num_agents = trees.num_agents(updates)
    one = jax.tree.map(lambda leaf: leaf[0], updates)
    expected = {"aggregate": one, "rewards": updates}
    for name in ("contributions", "importance", "fractions"):
        expected[name] = jnp.zeros(num_agents)
    for name, tree in expected.items():
        wanted, found = _shapes(tree), _shapes(getattr(outcome, name))
        if wanted != found:
            raise ValueError(
                f"The mechanism's `{name}` must have shapes {wanted}, one for each leaf of the "
                f"model, got {found}."
            )


def _shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)
