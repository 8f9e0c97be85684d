"""Zero padding: the factors of adapters of unequal rank are filled up with zeros and averaged.

B  <-  sum_i p_i [B_i 0],  A  <-  sum_i p_i [A_i; 0],  w = w_0 + B A,  p_i = n_i / sum_j n_j
"""

from typing import Any

from fairjax import trees
from fairjax.mechanisms import factors
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered
from fairjax.types import Stacked


@remembered
def zero_padding() -> Mechanism:
    """Returns averaged factors, with zeros for the columns that agents lack.

    All agents hold factors of the largest rank, and agent i trains their first r_i columns. With
    equal ranks it is `fedit`, and without adapters `fedavg`. Its state is the common factors. One
    agent that uploads huge numbers ruins the model for all. Columns that no present agent has
    become zero in both factors, and no later round trains them again.

    It does not judge: contributions and importance are nan. Reward fractions are 1.

    References:
      Wang et al., FLoRA, NeurIPS 2024, which compares with it; Cho et al., Heterogeneous LoRA for
      federated fine-tuning of on-device foundation models, EMNLP 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> import fairjax as fj
      >>> a = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])  # ranks 2 and 1
      >>> updates = fj.LowRank(b=jnp.ones((2, 1, 2)), a=a)
      >>> context = Context(shard_sizes=jnp.array([10, 10]), ranks=(2, 1))
      >>> print(zero_padding().update(updates, (), context)[0].aggregate.dense())
      [[1.   0.25]]
    """

    def update(updates: Stacked, state: Any, context: Context) -> tuple[Outcome, Any]:
        factors.check_factors("zero_padding", updates, context)
        mean = factors.mean_of_factors(updates, state, context)
        return factors.replaced(state, mean, trees.num_agents(updates))

    plan = factors.start_at_server_factors("zero_padding")
    return Mechanism(factors.begin, update, plan, low_rank=True)
