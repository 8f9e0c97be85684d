"""FedFAIM against a slow twin in numpy, loop by loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
        earned = np.maximum(self.total, 0)
        self.passes += passed
        self.fails += ~passed
        trust = (0.2 * self.passes - 0.8 * self.fails) / (0.2 * self.passes + 0.8 * self.fails)
        reputation = np.exp(-np.exp(-5.5 * trust)) * earned / earned.max()
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


def test_an_upload_that_makes_the_loss_undefined_fails_alone():
    def loss(params):
        return jnp.where(jnp.abs(params).max() > 10, jnp.nan, ((params - 1) ** 2).mean())

    mechanism = fj.mechanisms.fedfaim()
    rows = jnp.array([[0.5, 0.5], [0.4, 0.6], [1e18, 0.0]])
    context = Context(shard_sizes=[1, 1, 1], server=jnp.zeros(2), held_out_loss=loss)
    outcome, (_, passes, fails) = mechanism.update(rows, mechanism.init(3), context)
    assert passes.tolist() == [1, 1, 0]
    assert fails.tolist() == [0, 0, 1]
    assert np.abs(outcome.aggregate).max() < 1


@pytest.mark.slow
def test_tiny_updates_are_ranked_by_their_agreement():
    rows = jnp.array([[1.0, 3.0, 2.0, 4.0], [4.0, 3.0, 2.0, 8.0]]) * 1e-4
    context = Context(shard_sizes=[1, 1], server=jnp.zeros(4), held_out_loss=lambda w: -w.sum())
    kept = []
    for dtype in (jnp.float32, jnp.float16):
        given = context._replace(server=jnp.zeros(4, dtype))
        mechanism = fj.mechanisms.fedfaim()
        outcome, _ = mechanism.update(rows.astype(dtype), mechanism.init(2), given)
        kept.append(np.asarray(outcome.rewards != 0))
    np.testing.assert_array_equal(*kept)
    assert kept[0].sum() < 8


@pytest.mark.slow
def test_reputations_that_vanish_are_still_compared():
    context = Context(
        shard_sizes=jnp.ones(3), server=jnp.zeros(4), held_out_loss=lambda w: 1 - 0 * w.sum()
    )
    state = (jnp.array([1.0, 2.0, 3.0]), jnp.ones(3), jnp.array([5.0, 6.0, 7.0]))
    outcome, (total, passes, fails) = fj.mechanisms.fedfaim().update(
        jnp.eye(3, 4) + 0.1, state, context
    )
    total, passes, fails = (np.asarray(one, float) for one in (total, passes, fails))
    trust = (0.2 * passes - 0.8 * fails) / (0.2 * passes + 0.8 * fails)
    logs = -np.exp(-5.5 * trust) + np.log(total)
    np.testing.assert_allclose(outcome.fractions, np.exp(logs - logs.max()), rtol=1e-3)
    assert outcome.fractions[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_equal_uploads_pass_the_strictest_threshold(seed):
    rows = jnp.tile(jax.random.normal(jax.random.key(seed), (1, 12)), (5, 1))
    context = Context(
        shard_sizes=jnp.full(5, 10), server=jnp.zeros(12),
        held_out_loss=lambda w: ((w - 1) ** 2).mean(),
    )  # fmt: skip
    mechanism = fj.mechanisms.fedfaim(threshold=0.0)
    _, (_, passes, fails) = mechanism.update(rows, mechanism.init(5), context)
    assert passes.tolist() == [1] * 5
    assert not fails.any()


def test_an_absent_agent_fails_no_test_and_sets_no_scale():
    """Agent 0 earned most so far; in its absence agent 1 has the best reputation of all."""
    mechanism = fj.mechanisms.fedfaim()
    state = (jnp.array([9.0, 2.0, 1.0]), jnp.ones(3), jnp.zeros(3))
    context = Context(
        shard_sizes=jnp.ones(3), present=jnp.array([False, True, True]), server=jnp.zeros(2),
        held_out_loss=lambda params: 1 - params.sum(),
    )  # fmt: skip
    updates = jnp.array([[0.0, 0.0], [0.2, 0.2], [0.2, 0.2]])
    update = jax.jit(lambda rows: mechanism.update(rows, state, context))
    outcome, (_, passes, fails) = update(updates)
    assert (passes.tolist(), fails.tolist()) == ([1, 2, 2], [0, 0, 0])
    assert outcome.fractions.tolist()[:2] == [0, 1]
    assert 0 < outcome.fractions[2] < 1
