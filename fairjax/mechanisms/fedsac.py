"""FedSAC: an agent's model has hidden units of as much importance as its reputation buys.

reputation   r_i  =  100 exp(b c_i) / max_j exp(b c_j), c_i what agent i reaches alone
importance   m_u     how much the loss on held-out data rises when unit u is zeroed; at least 0,
                     scaled to sum 100, measured every ten rounds
reward       the server's model with the units of least importance, until their sum reaches r_i;
             the best agent has all units
aggregate    for every entry the mean of the changes of those who hold it
"""

import jax
import jax.numpy as jnp
from jax import lax

from fairjax import arithmetic, checks, rewards, trees
from fairjax.mechanisms.alone import Measure, Performance, check_performance, performance_of
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered, unjudged
from fairjax.types import Array, PerAgent, Scalar, Stacked

TOTAL = 100.0  # the sum of the importance of all units, and the greatest reputation

# [N] what agents reach alone; [N, U] who holds which units; [U] importance of the units
FedSACState = tuple[PerAgent, Array, Array]


@remembered
def fedsac(*, b: Scalar = 1.0, every: int = 10, performance: Performance = "held_out") -> Mechanism:
    """Returns FedSAC: sub-models of units of measured importance.

    How much the loss on held-out data rises without a unit is its importance.

    It pays by what agents reach alone, whatever they upload: who uploads nothing loses nothing.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the models
    of all.

    Agents train only what they hold if a gradient of zero moves nothing. With momentum, as Adam
    has, take `reset_optimizers=True`: else units that were taken away move on in local training.
    What an agent uploads of them never counts.

    Until the end of the first round all hold all units. Contributions are nan; agents' importance
    is their reputation, normalised; fractions are shares of the hidden units. Absent agents keep
    their units, and are not compared.

    The state is `(c [N], units held [N, U], importance of units [U])`.

    Args:
      b: how fast reputation rises with c_i, not negative; 1 to 3 as published. May be traced.
      every: the number of rounds between measurements of the units' importance.
      performance: c_i: "held_out", what agents reach alone on held-out data by the end of the run;
        "test", the same on the test data, an oracle; or numbers `[N]`.

    Raises:
      ValueError: a known `b` is negative, `every` or `performance` is none of these, or the context
        lacks held-out losses, the model's units, the server's or the agents' parameters.

    References:
      Wang et al., FedSAC: Dynamic submodel allocation for collaborative fairness in federated
      learning, KDD 2024.

    Examples:
      >>> units = rewards.Units(2, jnp.array([0, 1]), jnp.array([-1, -1]))
      >>> context = Context(shard_sizes=jnp.array([10, 10]), server=jnp.zeros(2), units=units,
      ...                   agents=jnp.zeros((2, 2)), held_out_loss=lambda w: -w @ jnp.arange(1, 3))
      >>> mechanism = fedsac(b=3.0, performance=[0.3, 0.9])
      >>> state = mechanism.init(2, units=units)
      >>> outcome, _ = mechanism.update(jnp.array([[1.0, 1.0], [1.0, 3.0]]), state, context)
      >>> print(outcome.rewards)
      [[1. 0.]
       [1. 2.]]
    """
    checks.at_least("b", b, 0)
    checks.count("every", every)
    measured = check_performance(performance)

    def init(num_agents: int, units: rewards.Units, performance: Measure = None) -> FedSACState:
        alone = performance_of(measured, num_agents, performance)
        return alone, jnp.ones((num_agents, units.num), bool), jnp.zeros(units.num)

    def update(
        updates: Stacked, state: FedSACState, context: Context
    ) -> tuple[Outcome, FedSACState]:
        alone, held, importance = state
        names = ("held_out_loss", "units", "server", "agents")
        loss, units, server, agents = (context.require(name, "fedsac") for name in names)
        present = context.there
        updates = trees.zero_broken(updates)
        holders = rewards.entries_held(units, held)
        holders = jax.tree.map(lambda mask: mask & trees.per_agent(present, mask), holders)
        aggregate = rewards.mean_of_holders(updates, holders)
        model = jax.tree.map(jnp.add, server, aggregate)

        def measure_units() -> Array:
            def loss_without(unit: Scalar) -> Scalar:
                others = jnp.arange(units.num) != unit
                some = rewards.submodels(model, units, others[None])
                return loss(trees.row(some))

            rises = lax.map(loss_without, jnp.arange(units.num)) - loss(model)
            rises = jnp.where(jnp.isfinite(rises), jnp.maximum(rises, 0), 0)
            return (TOTAL * arithmetic.ratio(rises, rises.sum())).astype(importance.dtype)

        importance = lax.cond(context.round % every == 0, measure_units, lambda: importance)
        best = jnp.where(present, alone, -jnp.inf).max()
        reputation = TOTAL * jnp.exp(b * (alone - best))
        order = jnp.argsort(importance)
        before = jnp.cumsum(importance[order]) - importance[order]
        counts = (before < reputation[:, None]).sum(1)
        counts = jnp.where(alone == best, units.num, counts)
        held = jnp.where(present[:, None], rewards.nested_units(order, counts), held)
        models = rewards.submodels(model, units, held)
        paid = jax.tree.map(jnp.subtract, models, agents)
        outcome = Outcome(
            aggregate, paid, unjudged(len(alone)), rewards.normalised(reputation), held.mean(1)
        )
        return outcome, (alone, held, importance)

    return Mechanism(init, update)
