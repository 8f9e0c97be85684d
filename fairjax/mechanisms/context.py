"""Context: what a mechanism may look at besides the updates, and checks of both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks, inputs, lowrank, rewards, trees
from fairjax.rewards import Units
from fairjax.types import Array, Key, Params, PerAgent, Scalar, Stacked

SOURCES = {
    "key": "give it in the Context",
    "learning_rate": "give `federation` a `learning_rate` and an optimizer such as optax.sgd",
    "server": "give the server's parameters in the Context",
    "agents": "give the agents' parameters in the Context",
    "shard_classes": "take data with classes, or give it in the Context",
    "losses": "give a function in the Context",
    "head": "give the `Model` the name of its output layer",
    "factors": "train adapters, with a model that `fairjax.models.lora` returns",
    "units": 'give the `Model` its `units`, such as fairjax.models.chain(["hidden", "head"])',
    "utility": "set held-out data aside as `validation` of the shards",
    "held_out_loss": "set held-out data aside as `validation` of the shards",
    "example_losses": "set held-out data aside as `validation` of the shards",
}
FUNCTIONS = {
    "losses": "losses() -> [N]",
    "utility": "utility(params) -> a number",
    "held_out_loss": "held_out_loss(params) -> a number",
    "example_losses": "example_losses(params) -> [N, M], [N, V]",
}


class Context(NamedTuple):
    """What a mechanism may look at besides the updates.

    Fields may be None. `require`, as in `context.require("utility", "mine")`, returns one or says
    what supplies it.

    Attributes:
      shard_sizes: `[N]` examples.
      shard_classes: `[N]` how many classes each agent holds.
      present: `[N]` booleans: who takes part in this round; None: all, in every round. Absent
        agents upload zeros. Whatever a mechanism answers for them, they receive nothing, and their
        contributions and fractions are recorded as nan. Their importance and state are the
        mechanism's own task: see `there`, `shares`, `among_present` and
        `fairjax.rewards.importance`.
      round: the number of the round, from 0.
      num_rounds: the number of rounds of the whole run; 0 where it is unknown.
      key: PRNG key of this round.
      learning_rate: the learning rate at the round's start, `[N]` where agents differ; None where
        only optax knows it.
      server: the server's parameters at the round's start.
      agents: the agents' parameters at the round's start, leaves `[N, ...]`.
      head: the name of the output layer in the parameters.
      losses: a function that returns `[N]` losses, on their own shards, of the parameters from
        which agents train; 0 for absent agents.
      utility: a function of parameters that returns the task's main metric on held-out data, if
        there are any; negated if it is better when it is lower.
      negated: the metric's name if it is negated; None: it is not.
      held_out_loss: a function of parameters that returns the task's mean loss on these data.
      example_losses: a function of agents' parameters, leaves `[N, ...]`, that returns the losses
        of all examples of their own shards, `[N, M]`, and of the held-out data, `[N, V]`; nan in
        place of examples that an agent does not have.
      units: the hidden units of the network, a `fairjax.rewards.Units`.
      factors: where agents train adapters, factors that all have in common, drawn by the key of
        the run: `LowRank` nodes without the agent axis, in place of the server's matrices.
      ranks: `[N]` ranks of agents' adapters, known numbers.
    """

    shard_sizes: PerAgent
    shard_classes: PerAgent | None = None
    present: PerAgent | None = None
    round: Scalar = 0
    num_rounds: Scalar = 0
    key: Key | None = None
    learning_rate: Scalar | None = None
    server: Params | None = None
    agents: Stacked | None = None
    head: str | None = None
    losses: Callable[[], PerAgent] | None = None
    utility: Callable[[Params], Scalar] | None = None
    negated: str | None = None
    held_out_loss: Callable[[Params], Scalar] | None = None
    example_losses: Callable[[Stacked], tuple[Array, Array]] | None = None
    units: Units | None = None
    factors: Params | None = None
    ranks: tuple[int, ...] | None = None

    @property
    def there(self) -> PerAgent:
        """`[N]` booleans: who takes part in this round; all if `present` is None."""
        return jnp.ones(len(self.shard_sizes), bool) if self.present is None else self.present

    @property
    def shares(self) -> PerAgent:
        """`[N]` shares of the data of those present, with sum one; absent agents have 0.

        Where nobody present has data, those present have equal shares.
        """
        return rewards.normalised(jnp.asarray(self.shard_sizes, float), self.there)

    def among_present(self, values: PerAgent) -> PerAgent:
        """Returns numbers per agent `[N]`, with 0 for absent agents."""
        return values if self.present is None else jnp.where(self.present, values, 0)

    def require(self, name: str, mechanism: str) -> Any:
        """Returns a field, or raises if it is missing.

        Raises:
          ValueError: the field is None. The message says how to supply it.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"The mechanism {mechanism!r} needs `{name}`: {SOURCES[name]}.")
        return value

    def require_shares(self, mechanism: str) -> None:
        """Raises if the main metric is negated: negative numbers have no shares.

        Raises:
          ValueError: it is. The message names the mechanism.
        """
        if self.negated is not None:
            raise ValueError(
                f"`metric` must be better when it is higher for the mechanism {mechanism!r}, which "
                f"pays by agents' shares of it, such as 'accuracy' or 'r2', got {self.negated!r}."
            )


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
    if context.present is not None and checks.is_known(context.present):
        rule = "a boolean per agent [N], of which at least one is True"
        present = checks.numbers("present", context.present, rule, num_axes=1)
        fits = present.shape == np.shape(sizes) and np.isin(present, (0, 1)).all()
        if not fits or not present.any():
            raise ValueError(f"`present` must hold {rule}, got {context.present!r:.100}.")
        context = context._replace(present=jnp.asarray(present, bool))
    if context.shard_classes is not None and checks.is_known(context.shard_classes):
        checks.numbers("shard_classes", context.shard_classes, "a number per agent [N]", num_axes=1)
    for name in ("round", "num_rounds"):
        checks.at_least(name, getattr(context, name), 0)
    if context.learning_rate is not None:
        checks.rates("learning_rate", context.learning_rate)
    if context.key is not None:
        checks.kind("key", context.key, jax.Array, "`jax.random.key(0)`")
        checks.key("key", context.key)
    if context.head is not None:
        checks.kind("head", context.head, str, "the `head` of a `Model`")
    if context.units is not None:
        checks.kind("units", context.units, Units, "what the `units` of a `Model` return")
    for name in FUNCTIONS:
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
    leaves = jax.tree.leaves(updates)
    if not all(map(_is_real, leaves)) or {np.shape(leaf)[:1] for leaf in leaves} != {sizes.shape}:
        found = [getattr(leaf, "shape", type(leaf).__name__) for leaf in leaves]
        raise ValueError(
            "`updates` must be an array [N, ...] of real numbers, or a pytree of them, with "
            f"N = {len(sizes)} as in `shard_sizes`, got {found!r:.200}."
        )
    inputs.check_factors("updates", updates, num_axes=3)
    for name in ("shard_classes", "learning_rate"):
        if np.ndim(getattr(context, name)):
            checks.shape(name, getattr(context, name), sizes.shape)
    shapes = [leaf.shape for leaf in trees.leaves(updates)]
    expected = {"server": [shape[1:] for shape in shapes], "agents": shapes}
    for name, wanted in expected.items():
        found = [np.shape(leaf) for leaf in jax.tree.leaves(getattr(context, name))]
        if found and found != wanted:
            raise ValueError(
                f"`{name}` must have the updates' shapes {wanted}, got {found!r:.200}."
            )
    updates = jax.tree.map(_as_floating, updates)
    if context.units is not None:
        _check_units(context.units, updates)
    return updates


def _check_units(units: Units, updates: Stacked) -> None:
    """Raises unless units say for every entry of an update to which of them it belongs."""
    updates = jax.eval_shape(lowrank.dense, updates)
    wanted = jax.tree.map(lambda leaf: leaf.shape[1:], updates)
    for name in ("makes", "takes"):
        tree = getattr(units, name)
        try:
            fits = jax.tree.map(
                lambda one, leaf: (
                    np.broadcast_shapes(np.shape(one), leaf.shape[1:]) == leaf.shape[1:]
                ),
                tree,
                updates,
            )
        except ValueError:  # other trees, or shapes that do not broadcast
            fits = False
        if not jax.tree.all(fits):
            raise ValueError(
                f"`units.{name}` must hold arrays that broadcast to the parameters {wanted}, got "
                f"{jax.tree.map(np.shape, tree)!r:.200}."
            )


def _is_real(leaf: Any) -> bool:
    """Says whether a leaf is an array of real numbers."""
    kind = getattr(leaf, "dtype", np.dtype(object))
    return jnp.issubdtype(kind, jnp.number) and not jnp.issubdtype(kind, jnp.complexfloating)


def _as_floating(leaf: Array) -> Array:
    return jnp.asarray(leaf, None if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.float32)
