"""The protocol of mechanisms: what judges the updates of a round and pays the agents.

    init(num_agents)                 -> state
    plan(state, context)             -> Plan, before training; None: all train their own model
    update(updates, state, context)  -> (Outcome, state)

All are pure functions, traced into the compiled round. The federation gives finite
`updates` (a row that cannot be added arrives as zeros, see `trees.addable_rows`) and adds
`rewards` to the parameters from which agents trained: their own at the round's start,
unless a plan gives others.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, trees
from fairjax.types import Array, Key, Params, PerAgent, Scalar, Stacked

Given = ParamSpec("Given")
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
FUNCTIONS = {"losses": "losses() -> [N]", "utility": "utility(params) -> a number"}


class Context(NamedTuple):
    """What a mechanism may look at besides the updates.

    Attributes:
      shard_sizes: `[N]` examples.
      shard_classes: `[N]` how many classes each agent holds.
      round: the number of the round, from 0.
      num_rounds: the number of rounds of the whole run; 0 where it is unknown.
      key: PRNG key of this round.
      learning_rate: the learning rate at the round's start; None where only optax knows it.
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
        """Returns a field, or raises if it is missing.

        Raises:
          ValueError: the field is None. The message says how to supply it.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"The mechanism {mechanism!r} needs `{name}`: {SOURCES[name]}.")
        return value


class Outcome(NamedTuple):
    """What a mechanism decides; `contributions`, `importance` are nan if it does not judge."""

    aggregate: Params  # the server's parameter change
    rewards: Stacked  # the agents' parameter changes
    contributions: PerAgent
    importance: PerAgent
    fractions: PerAgent  # of the aggregate that each agent earned, before rounding


class Plan(NamedTuple):
    """What a mechanism decides before training."""

    participants: PerAgent | None = None  # [N] booleans: who trains this round; None: all
    start: Stacked | None = None  # parameters from which agents train; None: their own


class _Functions(NamedTuple):
    init: Callable[[int], Any]
    update: Callable[[Stacked, Any, Context], tuple[Outcome, Any]]
    plan: Callable[[Any, Context], Plan] | None = None


class Mechanism(_Functions):
    """Pure functions that judge and pay agents; see the module's first lines.

    `update` checks its arguments before it judges anything, and raises if one does not fit.

    Raises:
      ValueError: an argument is not a function.
    """

    __slots__ = ()

    def __new__(
        cls,
        init: Callable[[int], Any],
        update: Callable[[Stacked, Any, Context], tuple[Outcome, Any]],
        plan: Callable[[Any, Context], Plan] | None = None,
    ) -> "Mechanism":
        """Returns a mechanism made of these functions."""
        checks.function("init", init, "init(num_agents) -> state")
        checks.function("update", update, "update(updates, state, context) -> (Outcome, state)")
        if plan is not None:
            checks.function("plan", plan, "plan(state, context) -> Plan")

        @functools.wraps(update)
        def checked(updates: Stacked, state: Any, context: Context) -> tuple[Outcome, Any]:
            context = checked_context(context)
            updates = checked_updates(updates, context)
            check_state(state, init(trees.num_agents(updates)))
            return update(updates, state, context)

        # `wraps` copies it, but `update` may do more than the mechanism that it was taken from.
        vars(checked).pop("__factory__", None)
        return super().__new__(cls, init, checked, plan)

    @property
    def name(self) -> str:
        """The factory's name, read from `update`, its inner function."""
        named = getattr(self.update, "__qualname__", type(self.update).__name__)
        return named.removesuffix(".<locals>.update").split(".")[-1]

    @property
    def factory(self) -> "Callable[..., Mechanism] | None":
        """The function that makes this mechanism, or one with other coefficients; None: unknown."""
        init, plan, factory = getattr(self.update, "__factory__", (None, None, None))
        return factory if (init, plan) == (self.init, self.plan) else None


def remembered(make: Callable[Given, Mechanism]) -> Callable[Given, Mechanism]:
    """Decorates a factory: its mechanisms remember it, so that sweeps can make others."""

    @functools.wraps(make)
    def factory(*args: Given.args, **given: Given.kwargs) -> Mechanism:
        made = make(*args, **given)
        again = functools.partial(factory, *args, **given)
        # A name between double underscores is not part of the fingerprint.
        vars(made.update)["__factory__"] = (made.init, made.plan, again)
        return made

    return factory


def checked_context(context: Any) -> Context:
    """Returns the context with shard sizes as an array, or raises if a field does not fit.

    Raises:
      ValueError: `context` is not a `Context`, or a known field has a wrong type, shape or
        range.
    """
    checks.kind("context", context, Context, "`Context(shard_sizes=jnp.array([10, 20]))`")
    sizes = context.shard_sizes
    if checks.is_known(sizes):
        rule = "a number of examples per agent [N], from 0 to 2^31 - 1 and not all zero"
        sizes = checks.numbers("shard_sizes", sizes, rule, num_axes=1)
        if not ((sizes >= 0) & (sizes < 2**31)).all() or not sizes.any():
            raise ValueError(f"`shard_sizes` must hold {rule}, got {context.shard_sizes!r:.100}.")
    if context.shard_classes is not None and checks.is_known(context.shard_classes):
        checks.numbers("shard_classes", context.shard_classes, "a number per agent [N]", num_axes=1)
    for name in ("round", "num_rounds"):
        checks.at_least(name, getattr(context, name), 0)
    if context.learning_rate is not None:
        checks.at_least("learning_rate", context.learning_rate, 0)
    if context.key is not None:
        checks.kind("key", context.key, jax.Array, "`jax.random.key(0)`")
    if context.head is not None:
        checks.kind("head", context.head, str, "the `head` of a `Model`")
    for name in ("losses", "utility"):
        if getattr(context, name) is not None:
            checks.function(name, getattr(context, name), FUNCTIONS[name])
    return context._replace(shard_sizes=jnp.asarray(sizes))


def checked_updates(updates: Any, context: Context) -> Stacked:
    """Returns updates as floating arrays, or raises if they do not fit the context.

    Raises:
      ValueError: a leaf does not hold one row of real numbers per agent, or the context's
        parameters have other shapes.
    """
    sizes = context.shard_sizes
    leaves, structure = jax.tree.flatten(updates)
    shapes = [np.shape(leaf) for leaf in leaves]
    if not all(map(_is_real, leaves)) or {shape[:1] for shape in shapes} != {sizes.shape}:
        found = [getattr(leaf, "shape", type(leaf).__name__) for leaf in leaves]
        raise ValueError(
            "`updates` must be an array [N, ...] of real numbers, or a pytree of them, with "
            f"N = {len(sizes)} as in `shard_sizes`, got {found!r:.200}."
        )
    expected = {"server": [shape[1:] for shape in shapes], "agents": shapes}
    for name, wanted in expected.items():
        found = [np.shape(leaf) for leaf in jax.tree.leaves(getattr(context, name))]
        if found and found != wanted:
            raise ValueError(
                f"`{name}` must have the updates' shapes {wanted}, got {found!r:.200}."
            )
    return structure.unflatten([_as_floating(leaf) for leaf in leaves])


def check_state(state: Any, first: Any) -> None:
    """Raises unless a mechanism's state has the shapes of its first one."""
    wanted, found = (jax.tree.map(np.shape, tree) for tree in (first, state))
    if wanted != found:
        raise ValueError(
            f"`state` must be what `init` or the previous `update` returned, of shapes "
            f"{wanted}, got {found!r:.200}."
        )


def first_round_shares(importance: PerAgent, context: Context) -> PerAgent:
    """Returns the importance `[N]`, or the shares of the data while it is zero."""
    return jnp.where(importance.sum() > 0, importance, context.shares)


def unjudged(num_agents: int) -> PerAgent:
    """Returns `[N]` nan: the answer of a mechanism that does not judge."""
    return jnp.full(num_agents, jnp.nan)


def checked_answer(answer: Any, updates: Stacked, before: Any, name: str) -> tuple[Outcome, Any]:
    """Returns the answer of a mechanism's `update`, or raises if it breaks the protocol.

    Rewards and aggregate get the dtypes of the updates, and numbers per agent the default one.

    Args:
      answer: (Outcome, state).
      updates: leaves `[N, ...]`, the updates that `update` was given.
      before: the mechanism's state before the round.
      name: the mechanism's name.

    Raises:
      ValueError: the answer breaks the protocol. The message names the mechanism, the field,
        the rule and the value.
    """
    rule = f"`update` of the mechanism {name!r} must return"
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Outcome)):
        kinds = type(answer).__name__
        if isinstance(answer, tuple):
            kinds = f"({', '.join(type(part).__name__ for part in answer)})"
        raise ValueError(f"{rule} (Outcome, state), got {kinds}.")
    outcome, state = answer
    answered: dict[str, Any] = {}
    one = jax.tree.map(lambda leaf: leaf[0], updates)
    expected = {"aggregate": one, "rewards": updates}
    for field in ("contributions", "importance", "fractions"):
        expected[field] = jnp.zeros(trees.num_agents(updates))
    for field, tree in expected.items():
        wanted, found = (jax.tree.map(jnp.shape, one) for one in (tree, getattr(outcome, field)))
        if wanted != found:
            raise ValueError(f"{rule} `{field}` of shapes {wanted}, got {found}.")
        for leaf in jax.tree.leaves(getattr(outcome, field)):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(f"{rule} `{field}` of floating numbers, got {_kind(leaf)}.")
        # Parameters and history keep their dtypes, whatever the mechanism computed in.
        answered[field] = jax.tree.map(
            lambda leaf, like: jnp.asarray(leaf, like.dtype), getattr(outcome, field), tree
        )
    wanted, found = (jax.tree.map(_kind, tree) for tree in (before, state))
    if wanted != found:
        raise ValueError(f"{rule} a state of the kind that `init` gives, {wanted}, got {found}.")
    return Outcome(**answered), state


def _is_real(leaf: Any) -> bool:
    """Says whether a leaf is an array of real numbers."""
    kind = getattr(leaf, "dtype", np.dtype(object))
    return jnp.issubdtype(kind, jnp.number) and not jnp.issubdtype(kind, jnp.complexfloating)


def _as_floating(leaf: Array) -> Array:
    return jnp.asarray(leaf, None if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.float32)


def _kind(leaf: Any) -> str:
    """Returns a leaf's dtype and shape, such as float32[5]."""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
