"""Nested: every agent's model is a part of the model of the next more important one.

aggregate     u_N  =  sum_i (n_i / n) dw_i
judged        d_i  =  dw_i without its part along w - w_i, if it points that way
contribution  c_i  =  cos(d_i, sum_j (n_j / n) d_j)
importance    r_i <-  alpha r_i + (1 - alpha) c_i, floored, then normalised
fraction      f_i  =  tanh(beta r_i) / max_j tanh(beta r_j)
paid model         =  w_0 + the f_i D largest entries of w + u_N - w_0

CGSV adds up the masked aggregates of all rounds, each with other entries. Here the mask is of all
rounds together, so that models are nested. An agent that holds a weaker model than the server's, w,
moves towards it whatever its data are: it catches up. That part of its update is not its own.
"""

import jax
import jax.numpy as jnp

from fairjax import blocks, checks, contributions, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered, shares_of_present
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked

ROUNDING = 8  # a model that is reached differs by at most so many machine epsilons of its length


@remembered
def nested(*, alpha: Scalar = 0.95, beta: Scalar = 1.0, catch_up: str = "removed") -> Mechanism:
    """Returns nested models: one mask of all rounds together.

    The mask applies to the server's change since its first parameters. Agents that begin with
    parameters of their own lose them in the first round.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the models
    of all that are paid these entries.

    An absent agent keeps its importance to the bit, and its model. Those present share what they
    held together, and are weighted and paid among themselves.

    The state is the importance coefficients `[N]`, zeros at first, and the first parameters.

    Args:
      alpha: memory of importance, in [0, 1]. May be traced.
      beta: altruism degree, above 0. May be traced.
      catch_up: whether an update is judged without its part along the difference between the
        server's model and the agent's, "removed", or as it is, "kept". Then agents that are paid
        little rise.

    Raises:
      ValueError: a known `alpha` is outside [0, 1], a known `beta` is not above 0, `catch_up` is
        neither word, or the context lacks the server's or the agents' parameters.

    References:
      Xu et al., NeurIPS 2021, for importance and fractions. The nested mask is new.

    Examples:
      >>> mechanism = nested()
      >>> first = jnp.zeros(2)
      >>> context = Context(shard_sizes=jnp.array([10, 10]), server=first, agents=jnp.zeros((2, 2)))
      >>> updates = jnp.array([[4.0, 2.0], [1.0, -1.0]])
      >>> outcome, _ = mechanism.update(updates, mechanism.init(2, first), context)
      >>> print(outcome.rewards)
      [[2.5 0.5]
       [2.5 0. ]]
    """
    checks.between("alpha", alpha, 0, 1)
    checks.above("beta", beta, 0, vanishing=True)
    checks.choice("catch_up", catch_up, ("removed", "kept"))

    def init(num_agents: int, params: Params) -> tuple[PerAgent, Params]:
        return jnp.zeros(num_agents), params

    def update(
        updates: Stacked, state: tuple[PerAgent, Params], context: Context
    ) -> tuple[Outcome, tuple[PerAgent, Params]]:
        importance, first = state
        server, agents = (context.require(name, "nested") for name in ("server", "agents"))
        updates = trees.zero_broken(updates)
        aggregate = trees.weighted_sum(context.shares, updates)
        own = updates
        if catch_up == "removed":
            own = _without_part_along(updates, _behind(server, agents))
        judged = contributions.measure("cosine", own, context.shares)
        importance = rewards.importance(importance, judged, alpha, present=context.present)
        fractions = rewards.reward_fractions(shares_of_present(importance, context), beta)
        learnt = jax.tree.map(lambda old, new, one: old + new - one, server, aggregate, first)
        models = jax.tree.map(jnp.add, first, rewards.sparsify(learnt, fractions))
        paid = jax.tree.map(jnp.subtract, models, agents)
        return Outcome(aggregate, paid, judged, importance, fractions), (importance, first)

    return Mechanism(init, update)


def _behind(server: Params, agents: Stacked) -> Stacked:
    """Returns how far agents are behind the server's model; zero where that may be rounding."""
    behind = jax.tree.map(jnp.subtract, server, agents)
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(server))
    reached = ROUNDING * eps * jnp.sqrt(trees.squared_norm(server))
    real = jnp.sqrt(trees.squared_norms(behind)) > reached
    return trees.where(real, behind, jax.tree.map(jnp.zeros_like, behind))


def _without_part_along(updates: Stacked, directions: Stacked) -> Stacked:
    """Returns updates minus their part along each agent's direction, if they point that way."""
    ahead = trees.with_length(directions, 1.0)
    rows, units = trees.unit_rows(updates)

    def inner(row: Array, one: Array) -> PerAgent:
        return (blocks.summable_rows(row) * blocks.summable_rows(one)).sum(1)

    along = jnp.maximum(trees.sum_leaves(inner, rows, ahead), 0)
    left = jax.tree.map(lambda row, part: row - part, rows, trees.scaled(along, ahead))
    return trees.scaled(units, left)
