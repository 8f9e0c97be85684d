"""q-FFL: weigh updates by a power of the agents' losses, so that no agent's loss stays large.

g_k  =  -L_k dw_k            F_k = loss of w on agent k's whole shard
D_k  =  F_k^q g_k
h_k  =  q F_k^(q-1) |g_k|^2 + L_k F_k^q
w   <-  w - sum_k D_k / sum_k h_k

L_k  =  1 / eta_k; "bounded": median_k 2 F_k / |dw_k|^2 if that is less

L_k bounds how fast gradients change. 1 / eta_k estimates it if training is gradient descent with
rate eta_k. Such a step dw_k lowers a loss by at least L_k |dw_k|^2 / 2, and no loss falls by more
than F_k, so 2 F_k / |dw_k|^2 is an upper bound. Adam's steps break it by far.
"""

import jax.numpy as jnp

from fairjax import arithmetic, checks, trees
from fairjax.mechanisms.base import (
    Context,
    Mechanism,
    Outcome,
    pay_everybody,
    remembered,
)
from fairjax.mechanisms.plans import start_at_server
from fairjax.types import Scalar, Stacked

TINY = 1e-10  # added to losses, as in the authors' program


@remembered
def qffl(*, q: Scalar = 0.1, smoothness: str = "learning_rate") -> Mechanism:
    """Returns q-fair federated learning. It has no state.

    Nothing bounds the length of an update: one agent that uploads huge numbers makes the sum
    of h_k huge, so that nobody learns; at q = 0 it ruins the model for all.

    If agents are absent, those present train the server's model, and only they count.

    All agents receive one model; q = 0 is FedAvg with equal weights, or with weights 1 / eta_k
    where learning rates differ. It does not judge: contributions and importance are nan. Reward
    fractions are 1.

    Args:
      q: how much large losses count, not negative. May be traced.
      smoothness: L_k: "learning_rate", 1 / eta_k, as published, for SGD: with Adam models hardly
        move; or "bounded", as above, which `Experiment` takes for other optimizers.

    Raises:
      ValueError: a known `q` is negative, `smoothness` is neither word, or the context lacks losses
        or a learning rate.

    References:
      Li et al., Fair resource allocation in federated learning, ICLR 2020.

    Examples:
      >>> context = Context(shard_sizes=jnp.array([30, 10]), learning_rate=0.1,
      ...                   losses=lambda: jnp.array([1.0, 2.0]))
      >>> outcome, _ = qffl(q=0.0).update(jnp.array([[4.0, 0.0], [0.0, 4.0]]), (), context)
      >>> print(outcome.aggregate)
      [2. 2.]
    """
    checks.at_least("q", q, 0)
    checks.choice("smoothness", smoothness, ("bounded", "learning_rate"))

    def update(updates: Stacked, state: tuple, context: Context) -> tuple[Outcome, tuple]:
        rate = context.require("learning_rate", "qffl")
        losses = context.require("losses", "qffl")()
        updates = trees.zero_broken(updates)
        num_agents = trees.num_agents(updates)
        # An agent with broken data has no finite loss, and its update is zero.
        losses = jnp.where(jnp.isfinite(losses), losses, 0) + TINY
        # F_k^q could overflow; a common factor cancels.
        powers = context.among_present((losses / losses.max()) ** q)
        squares = trees.squared_norms(updates)
        bound = 1 / rate
        if smoothness == "bounded":
            counted = (squares > 0) & context.there
            bounds = jnp.where(counted, 2 * losses / squares, jnp.nan)
            bound = jnp.fmin(bound, jnp.nanmedian(bounds))
        if jnp.ndim(bound):  # all sums have a factor L_k more; a common one cancels
            known = jnp.where(jnp.isfinite(bound), bound, 0)  # at a rate of 0 nobody moves
            powers = powers * arithmetic.ratio(known, known.max())
        # A huge update has an infinite square, and 0 times infinity is NaN.
        squares = jnp.where(jnp.isfinite(squares), bound * squares, jnp.inf)
        longer = jnp.where(q * powers > 0, q * powers / losses * squares, 0)
        weights = arithmetic.ratio(powers, (longer + powers).sum())
        aggregate = trees.weighted_sum(weights, updates)
        return pay_everybody(aggregate, num_agents), state

    return Mechanism(lambda num_agents: (), update, start_at_server("qffl"))
