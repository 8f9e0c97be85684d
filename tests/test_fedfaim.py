"""FedFAIM against a slow twin in numpy, loop by loop."""

import jax.numpy as jnp
import numpy as np

import fairjax as fj
from fairjax.mechanisms import Context

N, D = 4, 12


def loss(params, xp=jnp):
    """A loss whose slope differs between entries."""
    return xp.mean((params - xp.linspace(0.5, 1.5, D)) ** 2)


class Twin:
    """The rule of `fedfaim`, as its first lines state it."""

    def __init__(self):
        self.total, self.passes, self.fails = (np.zeros(N) for _ in range(3))

    def play(self, uploads, server):
        """Returns the reputations `[N]`, the aggregate and the rewards after a round."""
        everybody = loss(server + uploads.mean(0), np)
        without = [
            loss(server + np.delete(uploads, agent, axis=0).mean(0), np) for agent in range(N)
        ]
        marginal = np.array(without) - everybody
        passed = marginal >= -0.01
        weights = np.exp(0.1 * marginal) * passed
        weights /= weights.sum()
        aggregate = weights @ uploads
        for agent in range(N):
            own = uploads[agent]
            cosine = own @ aggregate / np.linalg.norm(own) / np.linalg.norm(aggregate)
            self.total[agent] += weights[agent] * np.linalg.norm(own) * cosine
        self.total = np.maximum(self.total, 0)
        self.passes += passed
        self.fails += ~passed
        trust = (0.2 * self.passes - 0.8 * self.fails) / (0.2 * self.passes + 0.8 * self.fails)
        reputation = np.exp(-np.exp(-5.5 * trust)) * self.total / self.total.max()
        rewards = np.zeros((N, D))
        for agent in range(N):
            count = int(np.floor(np.float32(reputation[agent] / reputation.max()) * D))
            order = np.argsort(-np.abs(uploads[agent]) * np.abs(aggregate), kind="stable")
            rewards[agent, order[:count]] = aggregate[order[:count]]
        return reputation, aggregate, rewards


def test_fedfaim_equals_its_formulas_and_drops_who_harms():
    random = np.random.default_rng(0)
    mechanism, twin = fj.mechanisms.fedfaim(), Twin()
    state, server = mechanism.init(N), np.zeros(D)
    for _ in range(3):
        quality = np.array([[0.3], [0.6], [1.0], [-1.5]])  # the last one climbs
        uploads = 0.2 * quality * (1 + random.normal(size=(N, D)))
        context = Context(shard_sizes=[10] * N, server=jnp.float32(server), held_out_loss=loss)
        outcome, state = mechanism.update(jnp.float32(uploads), state, context)
        reputation, aggregate, rewards = twin.play(uploads.astype(np.float32), server)
        np.testing.assert_allclose(outcome.aggregate, aggregate, atol=1e-5)
        np.testing.assert_allclose(outcome.importance, reputation / reputation.sum(), atol=1e-4)
        np.testing.assert_allclose(outcome.rewards, rewards, atol=1e-5)
        server = server + aggregate
    assert outcome.importance.argmin() == 3
    assert not outcome.rewards[3].any()
