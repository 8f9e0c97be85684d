"""FedAVE against a slow twin in numpy, agent by agent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairjax as fj
from fairjax.mechanisms import Context

N, D = 4, 20
SIZES = np.array([3, 7, 5, 7])  # of shards
RANDOM = np.random.default_rng(0)
OWN, HELD_OUT = RANDOM.normal(size=(7, D)), RANDOM.normal(size=(9, D))


def example_losses(params, xp=jnp):
    """The losses of models `[N, D]` on their own and on held-out examples; nan for padding."""
    own = xp.where(np.arange(7) < SIZES[:, None], (params @ OWN.T) ** 2, np.nan)
    return own, (params @ HELD_OUT.T) ** 2


def utility(params, xp=jnp):
    return 1 / (1 + xp.mean((params - 0.2) ** 2))


def quantiles(losses):
    """Ten quantiles with sum one, each between its two neighbours in the sorted losses."""
    ordered = np.sort(losses[~np.isnan(losses)])
    places = (np.arange(10) + 0.5) / 10 * (len(ordered) - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, len(ordered) - 1)
    found = ordered[below] + (places - below) * (ordered[above] - ordered[below])
    return found / found.sum()


def play(updates, agents, reputation):
    """Returns the scores, reputations, fractions, aggregate and rewards of a round."""
    trained = agents + updates
    own, held_out = example_losses(trained, np)
    inverse = np.zeros(N)
    for agent in range(N):
        p, h = quantiles(own[agent]), quantiles(held_out[agent])
        inverse[agent] = 1 / np.sum(p * np.log(p / h))
    likeness = inverse / inverse.max()
    scores = np.array([utility(one, np) for one in trained]) * likeness**2
    after = scores if not reputation.any() else 0.95 * reputation + 0.05 * scores
    after = np.maximum(after, 1e-3)
    after /= after.sum()
    fractions = likeness * np.tanh(5 * after) / np.tanh(5 * after).max()
    units = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    aggregate = (SIZES / SIZES.sum()) @ (0.5 * units)
    paid = np.zeros((N, D))
    for agent in range(N):
        kept = min(int(np.ceil(np.float32(fractions[agent]) * D)), D - 1)
        largest = np.argsort(-np.abs(aggregate))[:kept]
        paid[agent, largest] = aggregate[largest]
    return scores, after, fractions, aggregate, paid


def test_fedave_equals_its_formulas_over_three_rounds():
    mechanism = fj.mechanisms.fedave()
    state, reputation, agents = mechanism.init(N), np.zeros(N), np.zeros((N, D))
    for _ in range(3):
        updates = 0.3 * RANDOM.normal(size=(N, D)).astype(np.float32)
        context = Context(
            shard_sizes=SIZES, agents=jnp.float32(agents), utility=utility,
            example_losses=example_losses,
        )  # fmt: skip
        outcome, state = mechanism.update(jnp.asarray(updates), state, context)
        scores, reputation, fractions, aggregate, paid = play(updates, agents, reputation)
        np.testing.assert_allclose(outcome.contributions, scores, rtol=1e-3)
        np.testing.assert_allclose(outcome.importance, reputation, rtol=1e-3)
        np.testing.assert_allclose(outcome.fractions, fractions, rtol=1e-3)
        np.testing.assert_allclose(outcome.aggregate, aggregate, atol=1e-6)
        np.testing.assert_allclose(outcome.rewards, paid, atol=1e-6)
        agents = agents + paid
    assert len(set(fractions.round(3))) == N


@pytest.mark.slow
def test_losses_of_examples_are_those_of_the_task():
    """The function that a federation gives: own shards, padded with nan, and held-out data."""
    experiment = fj.Experiment(num_agents=3, model="logistic", rounds=1)
    shards, _ = experiment.make_shards()
    federation = experiment.federation(shards)

    state = federation.init(jax.random.key(0), shards, num_rounds=1)
    context = federation.context(state, shards, state.key)
    own, held_out = context.example_losses(state.agents)
    assert (np.isfinite(own).sum(1) == shards.sizes).all()
    assert held_out.shape == (3, len(shards.validation))
    np.testing.assert_allclose(np.nanmean(own, axis=1), context.losses(), rtol=1e-5)
    np.testing.assert_allclose(held_out.mean(1)[0], context.held_out_loss(state.server), rtol=1e-5)
