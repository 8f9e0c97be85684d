"""The estimate for many agents is unbiased, precise, and honest about its error."""

import csv
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twin

import fairjax as fj
from fairjax import contributions
from fairjax.contributions import sampling
from fairjax.contributions.gram import products_of
from fairjax.studies.approximation import MANY, REFERENCE


def products(num_agents, seed=0):
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=(num_agents, 30)) + rng.normal(size=30)
    return products_of(jnp.asarray(updates), jnp.ones(num_agents), with_gram=True)


@functools.partial(jax.jit, static_argnames="num")
def estimates(key, updates, weights, num):
    keys = jax.random.split(key, num)
    return jax.lax.map(lambda key: contributions.gram_cosine_shapley(key, updates, weights), keys)


def share(values):
    return np.asarray(values) / np.sum(values)


@pytest.mark.parametrize("kind", twin.KINDS)
@pytest.mark.slow
def test_estimates_scatter_around_the_exact_values_as_they_claim(kind):
    updates = jnp.asarray(twin.uploads(kind, 20, 1000, seed=1), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).uniform(0.1, 1, 20), jnp.float32)
    exact = contributions.cosine_shapley(updates, weights)
    values, claimed = map(np.asarray, estimates(jax.random.key(3), updates, weights, 25))
    spread = values.std(0, ddof=1)
    assert np.abs((values.mean(0) - exact) / (spread / 5 + 1e-6)).max() < 4.5
    assert spread.sum() == pytest.approx(claimed.mean(0).sum(), rel=0.2)
    cosines = contributions.cosine(updates, weights)
    assert np.abs(values - exact).sum(1).mean() < np.abs(share(cosines) - exact).sum() / 20
    np.testing.assert_allclose(values.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("drawn", MANY, ids=lambda drawn: drawn.kind)
def test_a_hundred_agents_have_the_values_of_ten_million_permutations(drawn):
    updates = jnp.asarray(drawn.uploads(0), jnp.float32)
    with REFERENCE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["uploads"] == drawn.kind]
    expected = np.array([float(row["value"]) for row in rows])
    known = np.array([float(row["standard_error"]) for row in rows])
    found = contributions.gram_cosine_shapley(jax.random.key(0), updates)
    deviations = (found.values - expected) / np.hypot(found.standard_errors, known)
    assert np.abs(deviations).max() < 4.5
    error = np.abs(share(contributions.cosine(updates)) - share(expected)).sum()
    assert np.abs(share(found.values) - share(expected)).sum() < error / 20


def test_windows_are_the_coalitions_that_stand_side_by_side():
    game, num_agents = products(7), 7
    cosines = {}
    for members in itertools.product([0, 1], repeat=num_agents):
        cosines[members] = float(contributions.coalition_cosines(game, jnp.array([members]))[0])
    orders = np.array([[3, 0, 6, 2, 5, 1, 4], [0, 1, 2, 3, 4, 5, 6]])
    found = sampling._contrast_windows(game, jnp.asarray(orders), jnp.zeros((5, 2)))
    for order, contrasts in zip(orders, found, strict=True):
        expected = np.zeros(num_agents)
        for size in range(3, num_agents):
            windows = [[order[(start + k) % 7] for k in range(size)] for start in range(7)]
            worth = [
                cosines[tuple(int(agent in window) for agent in range(7))] for window in windows
            ]
            for agent in range(num_agents):
                inside = np.array([agent in window for window in windows])
                expected[agent] += np.mean(np.array(worth)[inside])
                expected[agent] -= np.mean(np.array(worth)[~inside])
        np.testing.assert_allclose(contrasts, expected, atol=1e-5)


@pytest.mark.slow
def test_contrasts_of_the_control_and_of_few_agents_equal_those_over_all_coalitions():
    game, num_agents = products(6), 6
    slopes = np.random.default_rng(1).normal(size=(4, 2))
    scale = float(game.squares.sum())
    control, few = np.zeros(6), np.zeros(6)
    for size in range(1, 6):
        members = [m for m in itertools.product([0, 1], repeat=num_agents) if sum(m) == size]
        members = np.array(members)
        worth = contributions.coalition_cosines(game, jnp.asarray(members))
        inner, squares = members @ game.with_aggregate, ((members @ game.gram) * members).sum(1)
        slope = slopes[size - 2] if size >= 2 else np.zeros(2)
        held = (slope[0] * inner + slope[1] * squares) / scale
        for agent in range(num_agents):
            inside = members[:, agent] == 1
            control[agent] += held[inside].mean() - held[~inside].mean()
            if size <= 2:
                few[agent] += worth[inside].mean() - worth[~inside].mean()
    found = sampling._contrast_control(game, jnp.asarray(slopes))
    np.testing.assert_allclose(found, control, atol=1e-5)
    np.testing.assert_allclose(sampling._contrast_few(game), few, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-5, 1e5, 1e30])
def test_an_upload_of_another_length_leaves_values_right(factor):
    updates = twin.uploads("common", 18, 60, seed=0).astype(np.float32)
    updates[3] *= np.float32(factor)
    updates[5], updates[7, 2] = 0, np.nan
    found = contributions.gram_cosine_shapley(jax.random.key(0), updates)
    exact = contributions.cosine_shapley(updates)
    np.testing.assert_allclose(found.values, exact, atol=1e-3)
    assert (found.values[np.array([5, 7])] == 0).all()
    assert (found.standard_errors[np.array([5, 7])] == 0).all()
    np.testing.assert_allclose(found.values.sum(), 1, atol=1e-5)


def test_where_the_aggregate_vanishes_all_are_worth_nothing():
    rows = np.random.default_rng(0).normal(size=(10, 8))
    found = contributions.gram_cosine_shapley(jax.random.key(0), np.concatenate([rows, -rows]))
    assert (found.values == 0).all()
    assert not np.isnan(found.standard_errors).any()


def test_few_agents_have_exact_values():
    updates = twin.uploads("reversed", 9, 50, seed=0)
    found = contributions.gram_cosine_shapley(jax.random.key(0), updates)
    np.testing.assert_allclose(found.values, twin.cosine_shapley(updates), atol=1e-5)
    assert (found.standard_errors == 0).all()


@pytest.mark.slow
def test_a_mechanism_judges_forty_agents_by_it_with_the_rounds_key():
    updates = jnp.asarray(twin.uploads("clusters", 40, 100, seed=0), jnp.float32)
    mechanism = fj.mechanisms.cgsv(contribution="gram")
    sizes = jnp.full(40, 10)
    outcomes = []
    for seed in (0, 0, 1):
        context = fj.mechanisms.Context(shard_sizes=sizes, key=jax.random.key(seed))
        outcomes.append(mechanism.update(updates, mechanism.init(40), context)[0])
    first, same, other = (one.contributions for one in outcomes)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    np.testing.assert_allclose(first, other, atol=2e-3)


@pytest.mark.slow
def test_an_error_is_that_of_the_mean_of_what_the_permutations_say(monkeypatch):
    """Two permutations say numbers far apart; agent 2 has no upload and no part in them."""
    said = np.array([[3.0, 1.0, 8.0, 2.0], [1.0, 5.0, 9.0, 3.0]])
    monkeypatch.setattr(sampling, "MAX_LISTED_AGENTS", 2)
    monkeypatch.setattr(sampling, "_fit_control", lambda *_: jnp.zeros((2, 2)))
    monkeypatch.setattr(sampling, "_contrast_windows", lambda *_: jnp.asarray(said))
    updates = jnp.asarray(np.eye(4)).at[2].set(0)
    estimate = jax.jit(sampling.estimate.__wrapped__, static_argnums=3)
    found = estimate(jax.random.key(0), updates, jnp.ones(4), 2)
    apart = said[:, [0, 1, 3]] - said[:, [0, 1, 3]].mean(1, keepdims=True)  # their sum is known
    expected = np.abs(apart[0] - apart[1]) / np.sqrt(2) / np.sqrt(2) / 4
    np.testing.assert_allclose(found.standard_errors, np.insert(expected, 2, 0), rtol=1e-5)
    assert found.values[2] == 0
    assert found.values.sum() == pytest.approx(1, abs=1e-6)
