"""DW: pay with parts of the FedAvg aggregate, in proportion to the size of the shard.

aggregate   sum_i (n_i / sum_j n_j) dw_i
fraction    f_i = n_i / max_j n_j, or n_i / sum_j n_j
"""

from fairjax import checks, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, remembered, unjudged
from fairjax.types import Stacked


@remembered
def dw(*, over: str = "max") -> Mechanism:
    """Returns rewards by data weight, an ablation of CGSV. It has no state.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the
    models of all that receive them.

    If agents are absent, sizes are compared among those present.

    It does not judge updates: contributions and importance are nan.

    Args:
      over: "max": the largest shard earns everything; "sum": as in the authors' program.

    Raises:
      ValueError: `over` is neither "max" nor "sum".

    References:
      Xu et al., NeurIPS 2021, section on experiments.

    Examples:
      >>> import jax.numpy as jnp
      >>> context = Context(shard_sizes=jnp.array([10, 20]))
      >>> outcome, _ = dw().update(jnp.array([[3.0, 3.0], [3.0, 0.0]]), (), context)
      >>> print(outcome.rewards)
      [[3. 0.]
       [3. 1.]]
    """
    checks.choice("over", over, ("max", "sum"))

    def update(updates: Stacked, state: tuple, context: Context) -> tuple[Outcome, tuple]:
        aggregate = trees.weighted_sum(context.shares, trees.zero_broken(updates))
        sizes = context.among_present(context.shard_sizes)
        fractions = context.shares if over == "sum" else rewards.share_of_largest(sizes)
        paid = rewards.sparsify(aggregate, fractions)
        unknown = unjudged(len(fractions))
        return Outcome(aggregate, paid, unknown, unknown, fractions), state

    return Mechanism(lambda num_agents: (), update)
