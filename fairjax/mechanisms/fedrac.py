"""FedRAC: an agent's model has as many hidden units as its accuracy alone calls for.

target       r_i  =  c_i + A (1 - a_t) exp(b (c_i - max_j c_j))
             c_i  what agent i reaches alone, A the accuracy of the server's model on held-out data
             a_t  =  l (1 - 1 / ln(.3 t + 3)), l = .2 until round 100, then .8
count        f_u     how often unit u was given to an agent
accuracy     P_k     of the server's model with only the first 8 k units, by ascending f_u
allocation   agents by ascending c_i, p = 0: s_i the largest s > p with P_s <= r_i, else p + 1;
             then p = s_i; the best agent has all units
reward       the server's model with the first 8 s_i units
aggregate    for every entry the mean of the changes of those who changed it
"""

import jax
import jax.numpy as jnp
from jax import lax

from fairjax import checks, rewards, trees
from fairjax.mechanisms.alone import Measure, Performance, check_performance, performance_of
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered, unjudged
from fairjax.types import Array, PerAgent, Scalar, Stacked

EARLY, LATE, TURN = 0.2, 0.8, 100  # l, and the round in which it changes

# [N] what agents reach alone; [N, U] who holds which units; [U] how often each was given
FedRACState = tuple[PerAgent, Array, Array]


@remembered
def fedrac(*, b: Scalar = 80.0, block: int = 8, performance: Performance = "held_out") -> Mechanism:
    """Returns FedRAC: sub-models about as accurate as agents are alone.

    It pays by what agents reach alone, whatever they upload: who uploads nothing loses nothing.
    With b = 80 most targets are close to c_i, so that its fairness is nearly by construction.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the models
    of all.

    Agents train only what they hold if a gradient of zero moves nothing. With momentum, as Adam
    has, take `reset_optimizers=True`: else units that were taken away move on in local training.
    What an agent uploads of them never counts.

    Until the end of the first round all hold all units. Contributions are nan; importance is c_i,
    normalised; fractions are shares of the hidden units. Absent agents keep their units; those
    present are paid from all units, as if the others were not there.

    The state is `(c [N], units held [N, U], counts [U])`.

    Args:
      b: how fast targets fall with c_i, not negative. May be traced.
      block: how many units are given at a time, at least 1.
      performance: c_i: "held_out", what agents reach alone on held-out data by the end of the run;
        "test", the same on the test data, an oracle, as published; or numbers `[N]`.

    Raises:
      ValueError: a known `b` is negative, `block` or `performance` is none of these, or the context
        lacks a utility, the model's units, the server's or the agents' parameters, or has a negated
        utility.

    References:
      FedRAC, CVPR 2026, and its authors' program.

    Examples:
      >>> units = rewards.Units(2, jnp.array([0, 1]), jnp.array([-1, -1]))
      >>> context = Context(shard_sizes=jnp.array([10, 10]), server=jnp.zeros(2), units=units,
      ...                   agents=jnp.zeros((2, 2)), utility=lambda w: w.sum() / 4)
      >>> mechanism = fedrac(block=1, performance=[0.3, 0.9])
      >>> state = mechanism.init(2, units=units)
      >>> outcome, _ = mechanism.update(jnp.array([[1.0, 1.0], [1.0, 3.0]]), state, context)
      >>> print(outcome.rewards)
      [[1. 0.]
       [1. 2.]]
    """
    checks.at_least("b", b, 0)
    checks.count("block", block)
    measured = check_performance(performance)

    def init(num_agents: int, units: rewards.Units, performance: Measure = None) -> FedRACState:
        alone = performance_of(measured, num_agents, performance)
        return alone, jnp.ones((num_agents, units.num), bool), jnp.zeros(units.num)

    def update(
        updates: Stacked, state: FedRACState, context: Context
    ) -> tuple[Outcome, FedRACState]:
        context.require_shares("fedrac")
        alone, held, counts = state
        names = ("utility", "units", "server", "agents")
        utility, units, server, agents = (context.require(name, "fedrac") for name in names)
        present = context.there
        updates = trees.zero_broken(updates)
        changed = jax.tree.map(
            lambda mask, leaf: mask & (leaf != 0), rewards.entries_held(units, held), updates
        )
        aggregate = rewards.mean_of_holders(updates, changed)
        model = jax.tree.map(jnp.add, server, aggregate)

        order = jnp.argsort(counts)  # by ascending counts, equal ones by place
        num_blocks = -(-units.num // block)
        sizes = block * jnp.arange(1, num_blocks + 1)

        def accuracy_of(size: Scalar) -> Scalar:
            some = rewards.submodels(model, units, rewards.nested_units(order, size[None]))
            return utility(trees.row(some))

        accuracies = lax.map(accuracy_of, sizes)
        number = context.round + 1  # of the round that trains what is paid now
        level = jnp.where(number <= TURN, EARLY, LATE)
        discount = level * (1 - 1 / jnp.log(0.3 * number + 3))
        best = jnp.where(present, alone, -jnp.inf).max()
        targets = alone + utility(model) * (1 - discount) * jnp.exp(b * (alone - best))
        blocks = _allocate(alone, targets, accuracies, present)
        given = rewards.nested_units(order, jnp.minimum(block * blocks, units.num))
        held = jnp.where(present[:, None], given, held)
        counts = counts + (given & present[:, None]).sum(0)
        models = rewards.submodels(model, units, held)
        paid = jax.tree.map(jnp.subtract, models, agents)
        importance = rewards.normalised(jnp.maximum(alone, 0))
        fractions = held.mean(1)
        outcome = Outcome(aggregate, paid, unjudged(len(alone)), importance, fractions)
        return outcome, (alone, held, counts)

    return Mechanism(init, update)


def _allocate(alone: PerAgent, targets: PerAgent, accuracies: Array, present: PerAgent) -> PerAgent:
    """Returns `[N]` how many blocks of units agents get; absent ones 0.

    Args:
      alone: `[N]` what they reach alone.
      targets: `[N]` the accuracies that they should get.
      accuracies: `[K]` of the server's model with the first 1 to K blocks.
      present: `[N]` booleans.
    """
    numbers = jnp.arange(1, len(accuracies) + 1)
    best = present & (alone == jnp.where(present, alone, -jnp.inf).max())

    def give(pointer: Scalar, agent: Scalar) -> tuple[Scalar, Scalar]:
        fits = (numbers > pointer) & (accuracies <= targets[agent])
        following = jnp.minimum(pointer + 1, len(accuracies))
        size = jnp.where(fits.any(), jnp.where(fits, numbers, 0).max(), following)
        size = jnp.where(best[agent], len(accuracies), size)
        return jnp.where(present[agent], size, pointer), jnp.where(present[agent], size, 0)

    order = jnp.argsort(alone)
    _, sizes = lax.scan(give, jnp.zeros((), numbers.dtype), order)
    return jnp.zeros_like(sizes).at[order].set(sizes)
