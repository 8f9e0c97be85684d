"""The protocol of mechanisms: what judges the updates of a round and pays the agents.

    init(num_agents)                 -> state
    plan(state, context)             -> Plan, before training; None: all train their own
    update(updates, state, context)  -> (Outcome, state)

All are pure functions, traced into the compiled round. The federation gives finite
`updates` (a row with NaN or infinity arrives as zeros) and adds `rewards` to what agents
trained from: the parameters that they held at the round's start, unless a plan says else.
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
    """What a mechanism may look at besides the updates.

    Attributes:
      shard_sizes: `[N]` examples.
      shard_classes: `[N]` how many classes each agent holds.
      round: the number of the round, from 0.
      num_rounds: how many the whole run has; 0 where that is not known.
      key: PRNG key of this round.
      learning_rate: at the round's start; None where optax holds it.
      server: the server's parameters at the round's start.
      agents: the agents' parameters at the round's start, leaves `[N, ...]`.
      head: the name of the output layer in the parameters.
      losses: a function that returns `[N]` losses of `agents` on their own shards.
      utility: a function of parameters that returns their accuracy on held-out data, if any.
    """

    shard_sizes: PerAgent
    shard_classes: PerAgent | None = None
    round: Scalar = 0
    num_rounds: Scalar = 0
    key: Key | None = None
    learning_rate: Scalar | None = None
    server: Params | None = None
    agents: Stacked | None = None
    head: str | None = None
    losses: Callable[[], PerAgent] | None = None
    utility: Callable[[Params], Scalar] | None = None

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

    @property
    def name(self) -> str:
        """The name of the factory, of which `update` is an inner function."""
        return self.update.__qualname__.removesuffix(".<locals>.update").split(".")[-1]


def unjudged(num_agents: int) -> PerAgent:
    """Returns `[N]` nan: the answer of a mechanism that does not judge."""
    return jnp.full(num_agents, jnp.nan)


def checked_answer(answer: Any, updates: Stacked, before: Any, name: str) -> tuple[Outcome, Any]:
    """Returns what a mechanism's `update` returned, or says how it breaks the protocol.

    Args:
      answer: (Outcome, state).
      updates: leaves `[N, ...]`, what it was given.
      before: the mechanism's state before.
      name: the mechanism's name.

    Raises:
      ValueError: names the mechanism, the field, what it must be and what it is.
    """
    rule = f"`update` of the mechanism {name!r} must return"
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Outcome)):
        kinds = type(answer).__name__
        if isinstance(answer, tuple):
            kinds = f"({', '.join(type(part).__name__ for part in answer)})"
        raise ValueError(f"{rule} (Outcome, state), got {kinds}.")
    outcome, state = answer
    one = jax.tree.map(lambda leaf: leaf[0], updates)
    expected = {"aggregate": one, "rewards": updates}
    for field in ("contributions", "importance", "fractions"):
        expected[field] = jnp.zeros(trees.num_agents(updates))
    for field, tree in expected.items():
        wanted, found = _shapes(tree), _shapes(getattr(outcome, field))
        if wanted != found:
            raise ValueError(f"{rule} `{field}` of shapes {wanted}, got {found}.")
        for leaf in jax.tree.leaves(getattr(outcome, field)):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(f"{rule} `{field}` of floating numbers, got {_kind(leaf)}.")
    wanted, found = (jax.tree.map(_kind, tree) for tree in (before, state))
    if wanted != found:
        raise ValueError(f"{rule} a state of the kind that `init` gives, {wanted}, got {found}.")
    return outcome, state


def _shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


def _kind(leaf: Any) -> str:
    """Returns a leaf's dtype and shape, such as float32[5]."""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
