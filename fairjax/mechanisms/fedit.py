"""FedIT: the factors of adapters are averaged, each by itself.

B  <-  sum_i p_i B_i,  A  <-  sum_i p_i A_i,  w = w_0 + B A,  p_i = n_i / sum_j n_j
"""

from typing import Any

from fairjax import trees
from fairjax.mechanisms import factors
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered
from fairjax.types import Stacked


@remembered
def fedit() -> Mechanism:
    """Returns averaged factors, on which all agents go on to train.

    The product of averages is not the average of products: it has cross terms B_i A_j. Ranks must
    be equal. Its state is the common factors; without adapters it is `fedavg`. One agent that
    uploads huge numbers ruins the model for all.

    It does not judge: contributions and importance are nan. Reward fractions are 1.

    References:
      Zhang et al., Towards building the federated GPT: federated instruction tuning, ICASSP 2024.

    Examples:
      >>> import jax.numpy as jnp
      >>> import fairjax as fj
      >>> b = jnp.array([[[4.0], [0.0]], [[0.0], [4.0]]])
      >>> updates = fj.LowRank(b=b, a=jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
      >>> outcome, _ = fedit().update(updates, (), Context(shard_sizes=jnp.array([10, 10])))
      >>> print(outcome.aggregate.dense())
      [[1. 1.]
       [1. 1.]]
    """

    def update(updates: Stacked, state: Any, context: Context) -> tuple[Outcome, Any]:
        factors.check_factors("fedit", updates, context)
        factors.check_equal_ranks("fedit", context)
        mean = factors.mean_of_factors(updates, state, context)
        return factors.replaced(state, mean, trees.num_agents(updates))

    return Mechanism(factors.begin, update, factors.start_at_server_factors("fedit"), low_rank=True)
