"""Optimizers: optax's, with learning rates that follow the rounds played.

rate      learning_rate(t)       in round t, or local epoch t
steps     a schedule within the optimizer counts an agent's own local steps
rounds    it counts the rounds played, the same for every agent
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fairjax import checks
from fairjax.mechanisms import Mechanism
from fairjax.simulation import each
from fairjax.simulation.first import as_threefry
from fairjax.types import Key, Params, Scalar

COUNTS = ("steps", "rounds")
# Errors that functions of users and of optax raise for arguments that they do not accept.
_MISFITS = (TypeError, ValueError, AttributeError, LookupError)


def by_rounds(
    optimizer: Any, learning_rate: Any
) -> tuple[Callable[[Scalar, Scalar], Any], Callable[[Scalar], Any]]:
    """Returns the optimizer and the learning rate as functions of rounds or epochs played.

    The optimizer is also a function of the agent's place, and the learning rate may be `[N]`.

    Raises:
      ValueError: the optimizer or the learning rate has the wrong kind, they do not fit each
        other, or one of them cannot be compiled.
    """
    if learning_rate is None:
        if not isinstance(optimizer, optax.GradientTransformation):
            raise ValueError(
                "`optimizer` must be an optax optimizer such as optax.sgd(0.1), or a function "
                "such as optax.sgd together with `learning_rate`, "
                f"got optimizer={checks.shown(optimizer)} without a learning rate."
            )
        return lambda count, agent: optimizer, lambda count: None
    if isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer):
        raise ValueError(
            "`optimizer` must be a function from a learning rate to an optax optimizer, such as "
            f"optax.sgd, where `learning_rate` is given, got optimizer={optimizer!r}."
        )
    if callable(learning_rate):
        _check_schedule(learning_rate)
        rate_at = learning_rate
    else:
        above_zero = functools.partial(checks.above, bound=0)
        rates = each.checked("learning_rate", learning_rate, above_zero)
        if isinstance(rates, tuple):
            rates = jnp.asarray(rates)

        def rate_at(count: Scalar) -> Any:
            return rates

    def optimizer_at(count: Scalar, agent: Scalar) -> Any:
        return optimizer(each.of_agent(rate_at(count), agent))

    _check_factory(optimizer, optimizer_at)
    return optimizer_at, rate_at


def check_optimizer(optimizer: Any, params: Params, counts: str | None) -> None:
    """Raises unless an optimizer trains parameters from their gradients; warns of its schedules.

    Args:
      optimizer: an optax optimizer.
      params: the model's parameters, or their shapes.
      counts: what the optimizer's schedules shall count; None: the user did not say.

    Raises:
      ValueError: the optimizer needs more than gradients, its state and parameters, or `counts`
        is "rounds" and the optimizer holds no schedule.
    """

    def first_step(params: Params) -> Any:
        state = optimizer.init(params)
        changes, _ = optimizer.update(params, state, params)
        return optax.apply_updates(params, changes), state

    try:
        changed, state = jax.eval_shape(first_step, params)
    except _MISFITS as error:
        raise ValueError(
            "`optimizer` must compute its step from gradients, its state and the parameters only; "
            "optax.lookahead and optimizers that need the loss or other arguments (line searches, "
            f"optax.contrib) do not. It says: {type(error).__name__}: {error}"
        ) from error
    wanted, found = (jax.tree.map(jnp.shape, tree) for tree in (params, changed))
    if wanted != found:
        raise ValueError(f"`optimizer` must keep the parameters' shapes {wanted}, got {found}.")
    schedules = [node for node in _list_nodes(state) if _is_schedule(node)]
    if counts == "rounds" and not schedules:
        raise ValueError(
            '`schedule_counts` must be None or "steps" for an optimizer whose state holds no '
            "schedule's count, as optax.sgd(optax.cosine_decay_schedule(0.1, 100)) does, got "
            'schedule_counts="rounds".'
        )
    if counts is None and schedules:
        warnings.warn(
            "`optimizer` holds a schedule that counts each agent's own local steps. Agents with "
            "more data take more steps a round, so they reach its end first, and are then judged "
            'by updates of almost zero. Pass schedule_counts="rounds" to `fairjax.federation` or '
            '`fairjax.Experiment` to count rounds, or schedule_counts="steps" to count steps '
            "without this warning.",
            stacklevel=2,
        )


def check_server_optimizer(optimizer: Any, mechanism: Mechanism) -> None:
    """Raises unless a server optimizer is one of optax, and fits the mechanism; None fits all.

    Raises:
      ValueError: it is of another kind, or the mechanism pays agents different rewards.
    """
    if optimizer is None:
        return
    checks.kind(
        "server_optimizer", optimizer, optax.GradientTransformation, "optax.sgd(1.0, momentum=0.9)"
    )
    if not mechanism.pays_one_model:
        raise ValueError(
            f"`server_optimizer` must be left out with the mechanism {mechanism.name!r}, which "
            "pays agents different rewards; it goes with mechanisms that pay everybody the same "
            "aggregate, such as fedavg, and one of yours whose plan says so: "
            "`plan=fairjax.mechanisms.start_at_server(name)`."
        )


def hold_counts(state: Any, count: Scalar) -> Any:
    """Returns an optimizer's state in which every schedule is at the given count."""

    def hold(node: Any) -> Any:
        return type(node)(jnp.asarray(count, node.count.dtype)) if _is_schedule(node) else node

    return jax.tree.map(hold, state, is_leaf=_is_schedule)


def holds_keys(state: Any) -> bool:
    """Says whether an optimizer draws random numbers, as `optax.add_noise` does."""
    return any(map(_is_key, jax.tree.leaves(state)))


def with_own_keys(state: Any, key: Key) -> Any:
    """Returns an optimizer's state whose PRNG keys follow from an agent's key.

    Otherwise all agents would draw the same noise, in every run.
    """
    if not holds_keys(state):
        return state
    number = jax.random.bits(key)

    def own(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        is_new = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.fold_in(as_threefry(leaf) if is_new else leaf, number)

    return jax.tree.map(own, state)


def _is_key(leaf: Any) -> bool:
    """Says whether a leaf of an optimizer's state is a PRNG key, of the new or the older kind."""
    if not hasattr(leaf, "dtype"):  # a number of Python
        return False
    is_old = leaf.dtype == jnp.uint32 and leaf.shape in ((2,), (4,))  # of threefry and of rbg
    return is_old or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _list_nodes(state: Any) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=_is_schedule)


def _is_schedule(node: Any) -> bool:
    """Says whether a part of an optimizer's state is a count and nothing else.

    In optax this holds for schedules of learning rates, weight decays and injected numbers.
    """
    return getattr(node, "_fields", None) == ("count",)


def _check_schedule(learning_rate: Callable[[Scalar], Any]) -> None:
    """Raises unless a learning rate is a number for every number of rounds, and compiles."""
    try:
        rate = jax.eval_shape(learning_rate, jax.ShapeDtypeStruct((), jnp.int32))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise ValueError(
            "`learning_rate` must be a function that JAX can compile: the number of rounds played "
            "is not known to `if`, `float`, `range` or an index of a list. Write "
            "jnp.where(count < 10, 0.1, 0.01) for a choice, jnp.array(rates)[count] for a table. "
            f"It says: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    except _MISFITS as error:
        raise ValueError(
            "`learning_rate` must be a number or a function of the number of rounds played, got a "
            f"function that fails. It says: {type(error).__name__}: {error}"
        ) from error
    is_number = isinstance(rate, jax.ShapeDtypeStruct) and jnp.issubdtype(rate.dtype, jnp.number)
    if not is_number or len(rate.shape) > 1:
        raise ValueError(
            "`learning_rate` must return one number for a round, or one for each agent, "
            f"got {rate}."
        )
    checks.rates("learning_rate(0)", learning_rate(0))


def _check_factory(optimizer: Any, optimizer_at: Callable[[Scalar, Scalar], Any]) -> None:
    """Raises unless a function makes an optimizer from a learning rate, known or traced."""
    wrong: str | None = None  # the optimizer itself may hold the traced rate

    def make(count: Scalar) -> None:
        nonlocal wrong
        made = optimizer_at(count, 0)
        wrong = None if isinstance(made, optax.GradientTransformation) else f"{made!r:.100}"

    try:
        jax.eval_shape(make, jax.ShapeDtypeStruct((), jnp.int32))
    except _MISFITS as error:
        raise ValueError(
            "`optimizer` must be a function from a learning rate, which is not known while the "
            f"round is compiled, to an optax optimizer, got {optimizer!r:.100}. It says: "
            f"{type(error).__name__}: {error}"
        ) from error
    if wrong is not None:
        raise ValueError(
            "`optimizer` must be a function from a learning rate to an optax optimizer, such as "
            f"optax.sgd, got {optimizer!r:.100}, which returns {wrong}."
        )
