"""Plans: what a mechanism decides before training.

    plan(state, context) -> Plan     who trains, and from which parameters

A mechanism with one common model needs a plan where agents can be absent: an agent that comes back
begins with the server's model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import checks, trees
from fairjax.lowrank import is_low_rank
from fairjax.mechanisms.context import Context
from fairjax.types import Params, PerAgent, Stacked

ONE_MODEL = "__one_model__"  # the mark of plans after which everybody is paid the same aggregate


class Plan(NamedTuple):
    """What a mechanism decides before training.

    Attributes:
      participants: `[N]` booleans: who trains this round; None: all.
      start: parameters from which agents train, leaves `[N, ...]`; None: their own.
      factors: where agents train adapters, their first factors: `LowRank` nodes in place of
        matrices, `[N, ...]`, whose products are part of the model but not of `start`, and are part
        of the updates; None: drawn afresh, with products of zero.
      frozen: whether the first of both given factors stays as it is.
    """

    participants: PerAgent | None = None
    start: Stacked | None = None
    factors: Stacked | None = None
    frozen: bool = False

    def trains(self, num_agents: int) -> PerAgent:
        """Returns `[N]` booleans: who trains this round."""
        return jnp.ones(num_agents, bool) if self.participants is None else self.participants


def start_at_server(mechanism: str) -> Callable[[Any, Context], Plan]:
    """Returns the plan of a mechanism that pays everybody the same aggregate.

    If agents are absent, those present train the server's model, as their own may be old. A
    mechanism with this plan can have a `server_optimizer`.

    Args:
      mechanism: the mechanism's name, for messages.

    Returns:
      A function for the argument `plan` of `Mechanism`.

    Raises:
      ValueError: `mechanism` is no text.

    Examples:
      >>> from fairjax.mechanisms import Mechanism, fedavg
      >>> mean = fedavg()
      >>> Mechanism(mean.init, mean.update, start_at_server("mean")).pays_one_model
      True
    """
    checks.text("mechanism", mechanism)

    def plan(state: Any, context: Context) -> Plan:
        if context.present is None:
            return Plan()  # all hold the server's model
        server, agents = (context.require(name, mechanism) for name in ("server", "agents"))
        everybody = trees.broadcast(len(context.present), server)
        return Plan(start=trees.where(context.present, everybody, agents))

    return for_one_model(plan)


def for_one_model(plan: Callable[[Any, Context], Plan]) -> Callable[[Any, Context], Plan]:
    """Marks a plan after which everybody is paid the same aggregate, and returns it."""
    vars(plan)[ONE_MODEL] = True
    return plan


def checked_plan(answer: Any, agents: Stacked, name: str, common: Params | None) -> Plan:
    """Returns the answer of a mechanism's `plan` as arrays, or raises if it breaks the protocol.

    Args:
      answer: what `plan` returned.
      agents: the agents' parameters, leaves `[N, ...]`.
      name: the mechanism's name.
      common: common factors of agents that train adapters, as in the Context; None: they do not.

    Raises:
      ValueError: the answer breaks the protocol. The message names the mechanism, the field,
        the rule and the value.
    """
    rule = f"`plan` of the mechanism {name!r} must return"
    if not isinstance(answer, Plan):
        raise ValueError(f"{rule} a `fairjax.mechanisms.Plan`, got {checks.shown(answer)}.")
    if answer.participants is not None:
        answer = answer._replace(participants=jnp.asarray(answer.participants))
        found, wanted = answer.participants, (trees.num_agents(agents),)
        if found.dtype != bool or found.shape != wanted:
            raise ValueError(
                f"{rule} `participants` of booleans of shape {wanted}, got "
                f"{found.dtype}{[*found.shape]}."
            )
    if answer.start is not None:
        wanted, found = (jax.tree.map(jnp.shape, tree) for tree in (agents, answer.start))
        if wanted != found:
            raise ValueError(f"{rule} `start` of shapes {wanted}, got {found!r:.200}.")
        for leaf in jax.tree.leaves(answer.start):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(
                    f"{rule} `start` of floating numbers, got {jnp.result_type(leaf)}."
                )
        start = jax.tree.map(lambda own, leaf: jnp.asarray(leaf, own.dtype), agents, answer.start)
        answer = answer._replace(start=start)
    if common is None and (answer.factors is not None or answer.frozen):
        raise ValueError(f"{rule} `factors` and `frozen` only where agents train adapters.")
    if answer.frozen and answer.factors is None:
        raise ValueError(f"{rule} `frozen` only with `factors`, of which the first stays.")
    if answer.factors is not None:
        everybody = jax.eval_shape(lambda: trees.broadcast(trees.num_agents(agents), common))
        wanted, found = (_shapes_of_factors(tree) for tree in (everybody, answer.factors))
        if wanted != found:
            raise ValueError(f"{rule} `factors` of shapes {wanted}, got {found!r:.300}.")
    return answer


def _shapes_of_factors(tree: Any) -> Any:
    """Returns a pytree with the shapes of its `LowRank` nodes, and nothing of other leaves."""
    return trees.map_leaves(
        lambda leaf: jax.tree.map(jnp.shape, leaf) if is_low_rank(leaf) else None, tree
    )
