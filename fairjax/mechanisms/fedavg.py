"""FedAvg: everybody receives the same average, whatever they gave.

w  <-  w + sum_i (n_i / sum_j n_j) dw_i
"""

from fairjax import trees
from fairjax.mechanisms.base import (
    Context,
    Mechanism,
    Outcome,
    pay_everybody,
    remembered,
)
from fairjax.mechanisms.plans import start_at_server
from fairjax.types import Stacked


@remembered
def fedavg() -> Mechanism:
    """Returns federated averaging, weighted by the sizes of shards. It has no state.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the
    model for all.

    If agents are absent, those present train the server's model and share the weight of all.

    It does not judge: contributions and importance are nan. Reward fractions are 1.

    References:
      McMahan et al., Communication-efficient learning of deep networks from
      decentralized data, AISTATS 2017.

    Examples:
      >>> import jax.numpy as jnp
      >>> context = Context(shard_sizes=jnp.array([30, 10]))
      >>> outcome, _ = fedavg().update(jnp.array([[4.0, 0.0], [0.0, 4.0]]), (), context)
      >>> print(outcome.rewards)
      [[3. 1.]
       [3. 1.]]
    """

    def update(updates: Stacked, state: tuple, context: Context) -> tuple[Outcome, tuple]:
        aggregate = trees.weighted_sum(context.shares, trees.zero_broken(updates))
        return pay_everybody(aggregate, trees.num_agents(updates)), state

    return Mechanism(lambda num_agents: (), update, start_at_server("fedavg"), low_rank=True)
