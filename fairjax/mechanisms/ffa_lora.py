"""FFA-LoRA: one factor of all adapters is the same and frozen, so the other can be averaged.

sum_i p_i (B A_i)  =  B (sum_i p_i A_i),  w  <-  w + B (sum_i p_i A_i),  p_i = n_i / sum_j n_j
"""

from collections.abc import Callable
from typing import Any

from fairjax import trees
from fairjax.lowrank import LowRank, is_low_rank
from fairjax.mechanisms.base import (
    Context,
    Mechanism,
    Outcome,
    Plan,
    pay_everybody,
    remembered,
)
from fairjax.mechanisms.plans import for_one_model, start_at_server
from fairjax.types import Stacked


@remembered
def ffa_lora() -> Mechanism:
    """Returns adapters of which one random factor is shared and frozen.

    It is the factor next to the inputs, which the paper calls A and fairjax `b`. Only the other one
    is sent, half of the numbers. It has no state; without adapters it is `fedavg`. One agent that
    uploads huge numbers ruins the model for all.

    It does not judge: contributions and importance are nan. Reward fractions are 1.

    References:
      Sun et al., Improving LoRA in privacy-preserving federated learning, ICLR 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> import fairjax as fj
      >>> updates = fj.LowRank(b=jnp.ones((2, 3, 1)), a=jnp.array([[[4.0, 0.0]], [[0.0, 4.0]]]))
      >>> outcome, _ = ffa_lora().update(updates, (), Context(shard_sizes=jnp.array([30, 10])))
      >>> print(outcome.aggregate.dense()[0])
      [3. 1.]
    """

    def update(updates: Stacked, state: tuple, context: Context) -> tuple[Outcome, tuple]:
        updates = trees.zero_broken(updates)
        aggregate = trees.weighted_sum(context.shares, updates)
        if context.factors is not None:  # the same in fewer numbers

            def of_leaf(leaf: Any, common: Any, summed: Any) -> Any:
                if not is_low_rank(leaf):
                    return summed
                return LowRank(common.b, trees.weighted_sum(context.shares, leaf.a))

            aggregate = trees.map_leaves(of_leaf, updates, context.factors, aggregate)
        return pay_everybody(aggregate, trees.num_agents(updates)), state

    return Mechanism(lambda num_agents: (), update, start_at_server_with_frozen(), low_rank=True)


def start_at_server_with_frozen() -> Callable[[Any, Context], Plan]:
    """Returns the plan by which all agents train one factor, beside the one that they share."""
    start = start_at_server("ffa_lora")

    def plan(state: tuple, context: Context) -> Plan:
        planned = start(state, context)
        if context.factors is None:
            return planned
        common = trees.broadcast(len(context.shard_sizes), context.factors)
        return planned._replace(factors=common, frozen=True)

    return for_one_model(plan)
