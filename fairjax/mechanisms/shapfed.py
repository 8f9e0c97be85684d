"""ShapFed: judge the output layer class by class, and mix the server's model with the agent's.

class m      u_i^m = (column m of the kernel, entry m of the bias) of the update
judgement    c_i   = mean over classes of cos(u_i^m, sum_j weight_j u_j^m)
importance   g_i  <-  momentum g_i + (1 - momentum) c_i
server       w     = sum_i (g_i / sum_j g_j) (w_i + dw_i)
agent        w_i  <-  g'_i w + (1 - g'_i) (w_i + dw_i),  g'_i = g_i / max_j g_j
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fairjax import checks, contributions, rewards, trees
from fairjax.mechanisms.base import (
    Context,
    Mechanism,
    Outcome,
    first_round_shares,
    remembered,
    shares_of_present,
)
from fairjax.types import Array, PerAgent, Scalar, Stacked

LEAST = 1e-6  # of a judged agent's average, where agents can be absent


@remembered
def shapfed(*, momentum: Scalar = 0.9) -> Mechanism:
    """Returns aggregation and rewards by similarity of output layers.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the
    model for all.

    Similarity is computed class by class. The state is its moving average `[N]`, zeros at
    first; the first round's aggregate is weighted by shares of data. A negative average
    counts as 0.

    An absent agent keeps its average and does not count. If agents can be absent, an average
    starts at the first similarity, so that those who were there less often are not held back.

    Args:
      momentum: memory of the moving average, in [0, 1]. May be traced.

    Raises:
      ValueError: a known `momentum` is outside [0, 1], the model does not name its output
        layer, or that layer has no kernel `[d, C]` and bias `[C]`.

    References:
      Tastan et al., Redefining contributions: Shapley-driven federated learning,
      IJCAI 2024.

    Examples:
      >>> head = {"kernel": jnp.array([[[1.0, 0.0]], [[1.0, 0.2]]]), "bias": jnp.zeros((2, 2))}
      >>> context = Context(shard_sizes=jnp.array([10, 10]), head="head",
      ...                   server={"head": {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)}},
      ...                   agents={"head": jax.tree.map(jnp.zeros_like, head)})
      >>> mechanism = shapfed()
      >>> outcome, _ = mechanism.update({"head": head}, mechanism.init(2), context)
      >>> print(outcome.contributions)
      [0.5 1. ]
    """
    checks.between("momentum", momentum, 0, 1)

    def update(updates: Stacked, average: PerAgent, context: Context) -> tuple[Outcome, PerAgent]:
        updates = trees.zero_broken(updates)
        layer = _find_output_layer(updates, context.require("head", "shapfed"))
        known = average
        if context.present is not None:  # those who were judged so far hold their part of N
            known = rewards.normalised(average, average > 0) * (average > 0).mean()
        weights = rewards.normalised(first_round_shares(known, context))
        rows = jnp.concatenate([layer["kernel"], layer["bias"][:, None]], axis=1)  # [N, d+1, C]
        by_class = jax.vmap(contributions.cosine, in_axes=(2, None))(rows, weights)  # [C, N]
        judged = by_class.mean(0)
        mixed = jnp.maximum(momentum * average + (1 - momentum) * judged, 0)
        if context.present is None:
            average = mixed
        else:
            after = jnp.where(average > 0, mixed, judged)
            # 0 means never judged.
            average = jnp.where(context.present, jnp.maximum(after, LEAST), average)
        importance = rewards.normalised(average)
        weights = shares_of_present(importance, context)
        trained = jax.tree.map(jnp.add, context.require("agents", "shapfed"), updates)
        server = trees.weighted_sum(weights, trained)
        fractions = rewards.share_of_largest(weights)
        aggregate = jax.tree.map(jnp.subtract, server, context.require("server", "shapfed"))

        def mix(common: jax.Array, own: jax.Array, change: jax.Array) -> jax.Array:
            share = trees.per_agent(fractions, own)
            # The reward is a change of the agent's parameters w_i, not the model itself.
            return (share * (common - own) + (1 - share) * change).astype(own.dtype)

        paid = jax.tree.map(mix, server, context.agents, updates)
        return Outcome(aggregate, paid, judged, importance, fractions), average

    return Mechanism(jnp.zeros, update)


def _find_output_layer(updates: Stacked, head: str) -> Mapping[str, Array]:
    """Returns the entry of the updates that `head` names, or raises if it is not a layer."""
    layer: Any = updates.get(head) if isinstance(updates, Mapping) else None
    shapes = jax.tree.map(jnp.shape, layer)
    whole = isinstance(layer, Mapping) and {"kernel", "bias"} <= set(layer)
    if not whole or (len(shapes["kernel"]), len(shapes["bias"])) != (3, 2):
        raise ValueError(
            f"The mechanism 'shapfed' needs an output layer {head!r} with `kernel` [d, C] and "
            f"`bias` [C] per agent, got {shapes!r:.200}."
        )
    return layer
