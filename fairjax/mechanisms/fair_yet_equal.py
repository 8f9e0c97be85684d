"""Fair yet asymptotically equal: agents that contribute more take part more often.

explore   FedAvg, until the contributions psi of the rounds so far have settled, at the
          latest until a third of all rounds is over
settled   Hotelling's one-sample test has p > .7; it compares the psi of all rounds with
          their mean before the last 15 rounds
exploit   each round max(1, round(.4 N)) agents are drawn without replacement with
          probability softmax(150 psi), psi averaged over the exploration; only they
          train, starting from the server's model, and only they upload and download
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc

from fairjax import checks, contributions, rewards, trees
from fairjax.mechanisms.base import Context, Mechanism, Outcome, Plan, remembered
from fairjax.types import Array, PerAgent, Scalar, Stacked

RECENT = 15


class Exploration(NamedTuple):
    """The mechanism's state: sums over the rounds of exploration, and its last rounds."""

    num_rounds: Scalar
    total: PerAgent  # [N] sum of psi
    squares: Array  # [N, N] sum of (psi - mean) (psi - mean)^T
    recent: Array  # [15, N] psi of the last rounds, cyclic
    seen: PerAgent  # [N] booleans: who was there in any round
    settled: Scalar

    @property
    def mean(self) -> PerAgent:
        """`[N]` mean psi, 0 before the first round."""
        return self.total / jnp.maximum(self.num_rounds, 1)


@remembered
def fair_yet_equal(
    *, temperature: Scalar = 150.0, share: float = 0.4, significance: Scalar = 0.7
) -> Mechanism:
    """Returns explore-then-exploit participation by contribution.

    Nothing bounds the length of an update: one agent that uploads huge numbers ruins the
    model for all.

    An absent agent is not drawn, and its contribution in that round counts as its mean so far; that
    of an agent that was never there counts as the mean of those present.

    Reward fractions are 1 for participants and 0 for other agents. Importance is the
    probability with which participants are drawn; it is equal during exploration.

    Args:
      temperature: factor of psi in the softmax, above 0. May be traced.
      share: share of agents that take part in a round of exploitation, in (0, 1].
      significance: p above which contributions have settled, in [0, 1]. May be traced.

    Raises:
      ValueError: a known `temperature` is not above 0, `share` is outside (0, 1], or a known
        `significance` is outside [0, 1].

    References:
      Lin et al., Fair yet asymptotically equal collaborative learning, ICML 2023.

    Examples:
      >>> mechanism = fair_yet_equal()
      >>> context = Context(shard_sizes=jnp.array([30, 10]), num_rounds=30)
      >>> updates = jnp.array([[4.0, 0.0], [0.0, 4.0]])
      >>> outcome, _ = mechanism.update(updates, mechanism.init(2), context)
      >>> print(outcome.rewards)
      [[3. 1.]
       [3. 1.]]
    """
    checks.above("temperature", temperature, 0)
    checks.share("share", share)
    checks.between("significance", significance, 0, 1)

    def init(num_agents: int) -> Exploration:
        square = jnp.zeros((num_agents, num_agents))
        recent = jnp.zeros((RECENT, num_agents))
        nobody, number = jnp.zeros(num_agents, bool), jnp.zeros((), jnp.int32)
        return Exploration(
            number, jnp.zeros(num_agents), square, recent, nobody, jnp.zeros((), bool)
        )

    def log_probabilities(state: Exploration) -> PerAgent:
        # Their logarithms are finite where probabilities vanish.
        drawn = jax.nn.log_softmax(temperature * state.mean)
        return jnp.where(state.settled, drawn, -jnp.log(len(drawn)))

    def participants(state: Exploration, context: Context) -> PerAgent:
        num_agents = len(state.total)
        key = jax.random.key(0) if context.key is None else context.key
        # The agents with the largest log probability plus Gumbel noise are a draw without
        # replacement.
        scores = log_probabilities(state) + jax.random.gumbel(key, (num_agents,))
        there = context.there
        ranks = jnp.argsort(jnp.argsort(jnp.where(there, -scores, jnp.inf)))
        number = jnp.maximum(1, jnp.round(share * there.sum()))
        return there & (~state.settled | (ranks < number))

    def plan(state: Exploration, context: Context) -> Plan:
        chosen = participants(state, context)
        start = jax.tree.map(
            lambda own, server: jnp.where(trees.per_agent(chosen, own), server, own),
            context.require("agents", "fair_yet_equal"),
            context.require("server", "fair_yet_equal"),
        )
        return Plan(chosen, start)

    def update(
        updates: Stacked, state: Exploration, context: Context
    ) -> tuple[Outcome, Exploration]:
        chosen = participants(state, context)
        updates = trees.zero_broken(updates)
        sizes = jnp.asarray(context.shard_sizes, jnp.result_type(float))
        weights = rewards.normalised(sizes, chosen)
        aggregate = trees.weighted_sum(weights, updates)
        judged = contributions.measure("cosine", updates, weights)
        paid = trees.scaled(chosen.astype(jnp.float32), trees.broadcast(len(judged), aggregate))
        importance = jnp.exp(log_probabilities(state))
        if context.present is not None:
            of_all = context.among_present(judged).sum() / context.present.sum()
            of_absent = jnp.where(state.seen, state.mean, of_all)
            judged = jnp.where(context.present, judged, of_absent)
        explored = _add_round(state, judged, context, significance)
        return Outcome(aggregate, paid, judged, importance, chosen.astype(jnp.float32)), explored

    return Mechanism(init, update, plan)


def _add_round(
    state: Exploration, judged: PerAgent, context: Context, significance: Scalar
) -> Exploration:
    """Returns the exploration with one more round; a settled one stays unchanged."""
    count, total = state.num_rounds + 1, state.total + judged
    after = Exploration(
        count,
        total,
        # Welford's sum: products of the contributions themselves would cancel.
        state.squares + jnp.outer(judged - state.mean, judged - total / count),
        state.recent.at[state.num_rounds % RECENT].set(judged),
        state.seen | context.there,
        state.settled,
    )
    last = (context.num_rounds > 0) & (3 * count >= context.num_rounds)
    after = after._replace(settled=(_p_value(after) > significance) | last)
    return jax.tree.map(lambda old, new: jnp.where(state.settled, old, new), state, after)


def _p_value(state: Exploration) -> Scalar:
    """Returns p of Hotelling's test that the last 15 rounds did not change the mean.

    T^2 = n (m - m0)^T S^-1 (m - m0), and (n - N) / (N (n - 1)) T^2 ~ F(N, n - N), where m is
    the mean of all n rounds and m0 the mean before the last 15. p is 0 while there are too
    few rounds to test.
    """
    n, num_agents = state.num_rounds.astype(jnp.float32), len(state.total)
    mean = state.total / n
    earlier = (state.total - state.recent.sum(0)) / jnp.maximum(n - RECENT, 1)
    covariance = state.squares / jnp.maximum(n - 1, 1)
    # A ridge far below the spread avoids a division by zero for agents that never vary.
    ridge = 1e-6 * jnp.trace(covariance) / num_agents + jnp.finfo(jnp.float32).tiny
    difference = mean - earlier
    scaled = jnp.linalg.solve(covariance + ridge * jnp.eye(num_agents), difference)
    statistic = n * (difference @ scaled)
    free = jnp.maximum(n - num_agents, 1)
    ratio = free / (num_agents * jnp.maximum(n - 1, 1)) * statistic
    # The upper tail of F(N, n - N) at `ratio`.
    p_value = betainc(free / 2, num_agents / 2, free / (free + num_agents * jnp.maximum(ratio, 0)))
    testable = n > max(RECENT, num_agents) + 1
    return jnp.where(testable & jnp.isfinite(p_value), p_value, 0)
