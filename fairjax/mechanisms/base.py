"""The protocol of mechanisms: what judges the updates of a round and pays the agents.

    init(num_agents)                 -> state; it may also take what `STARTS` lists
    plan(state, context)             -> Plan, before training; None: all train their own model
    update(updates, state, context)  -> (Outcome, state)

All are pure functions, traced into the compiled round. The federation gives finite
`updates` (a row that cannot be added arrives as zeros, see `rowwise.addable_rows`) and adds
`rewards` to the parameters from which agents trained: their own at the round's start,
unless a plan gives others.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, lowrank, rewards, trees
from fairjax.mechanisms.context import Context, checked_context, checked_updates
from fairjax.mechanisms.plans import ONE_MODEL, Plan
from fairjax.types import Params, PerAgent, Scalar, Stacked

Given = ParamSpec("Given")
NO_IFS = "Python cannot look at its numbers: take jax.numpy.where or jax.lax.cond."
STARTS = {  # what an `init` may take besides the number of agents
    "params": "an agent's first parameters",
    "units": "those of the `Model`, such as fairjax.models.chain(...)(params),",
    "performance": 'a function of "held_out" or "test" that returns what agents reach alone',
    "factors": "the common factors of adapters, as in the Context,",
}


class Outcome(NamedTuple):
    """What a mechanism decides; `contributions`, `importance` are nan if it does not judge."""

    aggregate: Params  # the server's parameter change
    rewards: Stacked  # the agents' parameter changes
    contributions: PerAgent
    importance: PerAgent
    fractions: PerAgent  # of the aggregate that each agent earned, before rounding


class _Functions(NamedTuple):
    init: Callable[..., Any]
    update: Callable[[Stacked, Any, Context], tuple[Outcome, Any]]
    plan: Callable[[Any, Context], Plan] | None = None
    low_rank: bool = False


class Mechanism(_Functions):
    """Pure functions that judge and pay agents; see the module's first lines.

    `update` checks its arguments before it judges anything, and raises if one does not fit.

    Where agents train adapters, updates have `fairjax.LowRank` nodes. A mechanism that says
    `low_rank` gets them, others get their products. Both may answer with either.

    Raises:
      ValueError: an argument is not a function, or `low_rank` is not a boolean.
    """

    __slots__ = ()

    def __new__(
        cls,
        init: Callable[..., Any],
        update: Callable[[Stacked, Any, Context], tuple[Outcome, Any]],
        plan: Callable[[Any, Context], Plan] | None = None,
        low_rank: bool = False,
    ) -> "Mechanism":
        """Returns a mechanism made of these functions."""
        checks.function("init", init, "init(num_agents) or init(num_agents, params) -> state")
        begin = _beginning(init)
        checks.function("update", update, "update(updates, state, context) -> (Outcome, state)")
        checks.takes("update", update, ("updates", "state", "context"))
        if plan is not None:
            checks.function("plan", plan, "plan(state, context) -> Plan")
            checks.takes("plan", plan, ("state", "context"))
        checks.flag("low_rank", low_rank)

        @functools.wraps(update)
        def checked(updates: Stacked, state: Any, context: Context) -> tuple[Outcome, Any]:
            context = checked_context(context)
            updates = checked_updates(updates, context)
            one = _of_first_agent(updates)
            updates = updates if low_rank else lowrank.dense(updates)
            zeros = jnp.zeros(trees.num_agents(updates))
            given = (one, context.units, lambda on: zeros, context.factors)
            check_state(state, begin(len(zeros), *given))
            own = jax.tree.map(lambda part: part, state)  # `update` may change its containers
            try:
                return update(updates, own, context)
            except jax.errors.ConcretizationTypeError as error:
                error.add_note(f"In the compiled {checked.__qualname__!r}. {NO_IFS}")
                raise

        whole = update.func if isinstance(update, functools.partial) else update
        checked.__qualname__ = getattr(whole, "__qualname__", type(whole).__name__)
        # `wraps` copies it, but `update` may do more than the mechanism that it was taken from.
        vars(checked).pop("__factory__", None)
        return super().__new__(cls, begin, checked, plan, bool(low_rank))

    @property
    def name(self) -> str:
        """The factory's name, read from `update`, its inner function."""
        return self.update.__qualname__.removesuffix(".<locals>.update").split(".")[-1]

    @property
    def pays_one_model(self) -> bool:
        """Whether everybody is paid the same aggregate, as the mark of its plan says."""
        return getattr(self.plan, ONE_MODEL, False)

    @property
    def factory(self) -> "Callable[..., Mechanism] | None":
        """The function that makes this mechanism, or one with other coefficients; None: unknown."""
        init, plan, factory = getattr(self.update, "__factory__", (None, None, None))
        return factory if (init, plan) == (self.init, self.plan) else None


def _beginning(init: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `init(num_agents, params, ...)`, of which `init` gets what it names.

    `params` are an agent's first parameters, `units` those of the model, `performance(on)` returns
    `[N]` what agents reach alone, and `factors` are common factors of adapters; see
    `fairjax.simulation.looking`.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        given = inspect.signature(init).parameters
    except ValueError:  # some builtin functions have no signature
        given = {}
    taken = {name: one for name, one in list(given.items())[1:] if one.kind in kinds}
    # The first other one that is required gets the parameters, whatever its name is.
    required = [name for name, one in taken.items() if one.default is one.empty]
    checks.takes("init", init, ("num_agents", *required))
    own = next((name for name in required if name not in STARTS), "params")
    known = {own, "units", "performance", "factors"}
    unnamed, named = ([name for name in taken if taken[name].kind is kind] for kind in kinds)
    unnamed, named = ([name for name in part if name in known] for part in (unnamed, named))

    @functools.wraps(init)
    def begin(
        num_agents: int,
        params: Any = None,
        units: Any = None,
        performance: Any = None,
        factors: Any = None,
    ) -> Any:
        values = {own: params, "units": units, "performance": performance, "factors": factors}
        for name in required:
            if values.get(name) is None:
                missing = "params" if name == own else name
                raise ValueError(
                    f"`{missing}` must be {STARTS[missing]} for a mechanism whose state depends "
                    f"on them: init(num_agents, {missing}), got None."
                )
        by_name = {name: values[name] for name in named if values[name] is not None}
        first = init(num_agents, *(values[name] for name in unnamed), **by_name)
        for part in jax.tree.leaves(first):
            if not isinstance(part, int | float | complex) and not hasattr(part, "dtype"):
                raise ValueError(
                    f"`init` must return arrays and numbers, got {checks.shown(part)}."
                )
        return first

    return begin


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


def check_state(state: Any, first: Any) -> None:
    """Raises unless a mechanism's state has the shapes of its first one."""
    wanted, found = (jax.tree.map(np.shape, tree) for tree in (first, state))
    if wanted != found:
        raise ValueError(
            f"`state` must be what `init` or the previous `update` returned, of shapes "
            f"{wanted}, got {found!r:.200}."
        )


def first_round_shares(importance: PerAgent, context: Context) -> PerAgent:
    """Returns the importance `[N]`, or the shares of the data while it is zero.

    If agents are absent, the weights of those present have sum one; an agent without importance
    counts by its share of all data.
    """
    if context.present is None:
        return jnp.where(importance.sum() > 0, importance, context.shares)
    shares = rewards.normalised(jnp.asarray(context.shard_sizes, float))
    return rewards.normalised(jnp.where(importance > 0, importance, shares), context.present)


def shares_of_present(importance: PerAgent, context: Context) -> PerAgent:
    """Returns the importance `[N]` of agents among those present, with sum one; absent ones have 0.

    If all agents are present in every round, this is the importance itself.
    """
    if context.present is None:
        return importance
    return rewards.normalised(importance, context.present)


def map_present(
    function: Callable[[Params], Scalar], stacked: Stacked, present: PerAgent | None
) -> PerAgent:
    """Returns `[N]` a function of every agent's row, one after the other.

    Absent agents have 0, and nothing is computed for them; `present` is None if all are there.
    """
    if present is None:
        return jax.lax.map(function, stacked)

    def of_agent(one: tuple[Scalar, Params]) -> Scalar:
        there, row = one
        return jax.lax.cond(there, lambda: jnp.asarray(function(row), float), lambda: jnp.zeros(()))

    return jax.lax.map(of_agent, (present, stacked))


def pay_everybody(aggregate: Params, num_agents: int) -> Outcome:
    """Returns the outcome of a mechanism that pays everybody the aggregate, and does not judge."""
    paid, unknown = trees.broadcast(num_agents, aggregate), unjudged(num_agents)
    return Outcome(aggregate, paid, unknown, unknown, jnp.ones(num_agents))


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
    expected = {"aggregate": _of_first_agent(updates), "rewards": updates}
    for field in ("contributions", "importance", "fractions"):
        expected[field] = jnp.zeros(trees.num_agents(updates))
    for field, tree in expected.items():
        wanted, found = (trees.map_leaves(np.shape, one) for one in (tree, getattr(outcome, field)))
        if wanted != found:
            raise ValueError(f"{rule} `{field}` of shapes {wanted}, got {found}.")
        for leaf in jax.tree.leaves(getattr(outcome, field)):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(f"{rule} `{field}` of floating numbers, got {_kind(leaf)}.")
        # Parameters and history keep their dtypes, whatever the mechanism computed in.
        answered[field] = trees.map_leaves(_in_dtype_of, getattr(outcome, field), tree)
    wanted, found = (jax.tree.map(_kind, tree) for tree in (before, state))
    if wanted != found:
        raise ValueError(f"{rule} a state of the kind that `init` gives, {wanted}, got {found}.")
    return Outcome(**answered), state


def _of_first_agent(updates: Stacked) -> Any:
    """Returns the shapes of one agent's parameters, as zeros of numpy, which compile nothing."""
    return trees.map_leaves(lambda leaf: np.zeros(leaf.shape[1:], leaf.dtype), updates)


def _in_dtype_of(leaf: Any, like: Any) -> Any:
    """Returns an array, or the factors of a `LowRank`, in the dtype of another leaf."""
    return jax.tree.map(lambda part: jnp.asarray(part, like.dtype), leaf)


def _kind(leaf: Any) -> str:
    """Returns a leaf's dtype and shape, such as float32[5]."""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
