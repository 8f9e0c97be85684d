"""The protocol of mechanisms: what judges the updates of a round and pays the agents.

    init(num_agents)                 -> state
    plan(state, context)             -> Plan, before training; None: all train their own
    update(updates, state, context)  -> (Outcome, state)

All are pure functions, traced into the compiled round. The federation gives finite
`updates` (a row with NaN or infinity arrives as zeros) and adds `rewards` to the
parameters that agents held at the round's start.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import trees
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked

SOURCES = {
    "key": "give it in the Context",
    "learning_rate": "give `federation` a `learning_rate` and an optimizer such as optax.sgd",
    "server": "give the server's parameters in the Context",
    "agents": "give the agents' parameters in the Context",
    "shard_classes": "give it in the Context",
    "losses": "give a function in the Context",
    "head": "give the `Model` the name of its output layer",
    "utility": "set held-out data aside as `validation` of the shards",
}


class Context(NamedTuple):
    """What a mechanism may look at besides the updates."""

    shard_sizes: PerAgent  # [N] examples
    shard_classes: PerAgent | None = None  # [N] how many classes each agent holds
    round: Scalar = 0
    num_rounds: Scalar = 0  # of the whole run; 0 where it is not known
    key: Key | None = None  # of this round
    learning_rate: Scalar | None = None  # at the round's start; None where optax holds it
    server: Params | None = None  # the server's parameters at the round's start
    agents: Stacked | None = None  # the agents' parameters at the round's start
    head: str | None = None  # the name of the output layer in the parameters
    losses: Callable[[], PerAgent] | None = None  # [N] of `agents` on their own shards
    utility: Callable[[Params], Scalar] | None = None  # accuracy on held-out data, if any

    @property
    def shares(self) -> PerAgent:
        """`[N]` shares of the data, with sum one."""
        return self.shard_sizes / self.shard_sizes.sum()

    def require(self, name: str, mechanism: str) -> Any:
        """Returns a field, or says that a mechanism cannot do without it.

        Raises:
          ValueError: the field is None; the message says where it comes from.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"The mechanism {mechanism!r} needs `{name}`: {SOURCES[name]}.")
        return value


class Outcome(NamedTuple):
    """What a mechanism decides; the same fields for all, nan where it does not judge."""

    aggregate: Params  # the server's parameter change
    rewards: Stacked  # the agents' parameter changes
    contributions: PerAgent
    importance: PerAgent
    fractions: PerAgent  # of the aggregate that each agent earned, before rounding


class Plan(NamedTuple):
    """What a mechanism decides before training; None leaves it as it is."""

    participants: PerAgent | None = None  # [N] booleans: who trains this round
    start: Stacked | None = None  # what agents train from, in place of what they hold


class Mechanism(NamedTuple):
    """Pure functions; see the module's first lines."""

    init: Callable[[int], Any]
    update: Callable[[Stacked, Any, Context], tuple[Outcome, Any]]
    plan: Callable[[Any, Context], Plan] | None = None


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
