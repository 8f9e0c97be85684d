"""FLoRA: adapters of unequal rank are stacked, so that their products are added exactly.

B = [p_1 B_1 .. p_N B_N],  A = [A_1; ..; A_N],  B A = sum_i p_i B_i A_i
w  <-  w + B A,  p_i = n_i / sum_j n_j
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
def flora() -> Mechanism:
    """Returns the sum of all adapters' products, by stacked factors. It has no state.

    It is `fedavg` of the products: updates without factors are averaged. Everybody receives the
    whole stack, and begins the next round with fresh factors. One agent that uploads huge numbers
    ruins the model for all.

    It does not judge: contributions and importance are nan. Reward fractions are 1.

    References:
      Wang et al., FLoRA: federated fine-tuning large language models with heterogeneous low-rank
      adaptations, NeurIPS 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> import fairjax as fj
      >>> updates = fj.LowRank(b=jnp.ones((2, 3, 1)), a=jnp.array([[[4.0, 0.0]], [[0.0, 4.0]]]))
      >>> context = Context(shard_sizes=jnp.array([30, 10]))
      >>> outcome, _ = flora().update(updates, (), context)
      >>> print(outcome.aggregate.b.shape, outcome.aggregate.dense()[0])
      (3, 2) [3. 1.]
    """

    def update(updates: Stacked, state: tuple, context: Context) -> tuple[Outcome, tuple]:
        aggregate = trees.weighted_sum(context.shares, trees.zero_broken(updates))
        return pay_everybody(aggregate, trees.num_agents(updates)), state

    return Mechanism(lambda num_agents: (), update, start_at_server("flora"), low_rank=True)
