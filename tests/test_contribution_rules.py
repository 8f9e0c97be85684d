"""Functions of contributions check their rules, and errors name the argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import contributions

KEY = jax.random.key(0)


def total(params):
    return params.sum()


WEIGHTED = {
    "cosine": lambda weights: contributions.cosine(np.eye(2), weights),
    "model_utilities": lambda weights: contributions.model_utilities(
        total, np.zeros(2), np.eye(2), weights
    ),
    "gtg_shapley": lambda weights: contributions.gtg_shapley(
        KEY, total, np.zeros(2), np.eye(2), weights
    ),
    "multi_round_shapley": lambda weights: contributions.multi_round_shapley(
        total, np.zeros((1, 2)), np.ones((1, 2, 2)), weights
    ),
    "federated_shapley": lambda weights: contributions.federated_shapley(
        total, np.zeros((1, 2)), np.ones((1, 2, 2)), np.ones((1, 2), bool), weights
    ),
}


@pytest.mark.parametrize("call", list(WEIGHTED.values()), ids=list(WEIGHTED))
@pytest.mark.parametrize(
    ("weights", "rule"),
    [([1, -1], "not be negative"), ([1, np.nan], "finite"), ([1, 1e39], "finite"), ([1], "shape")],
)
def test_every_function_that_takes_weights_checks_them(call, weights, rule):
    with pytest.raises(ValueError, match=f"`weights` must .*{rule}"):
        call(weights)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [[3e38, 3e38], [1e-37, 1e-37], [True, True]])
def test_equal_weights_of_any_scale_are_equal(weights):
    for call in WEIGHTED.values():
        np.testing.assert_allclose(call(weights), call(None), atol=1e-6)


def test_traced_weights_that_break_their_rule_count_as_nothing():
    found = jax.jit(contributions.cosine)(np.eye(4), jnp.array([1, -1, jnp.nan, jnp.inf]))
    np.testing.assert_allclose(found, [1, 0, 0, 0])


@pytest.mark.parametrize("participants", [-3, np.ones((2, 2)), np.ones((2, 2), int), "all"])
def test_participants_are_booleans(participants):
    with pytest.raises(ValueError, match="`participants` must hold booleans"):
        contributions.federated_shapley(total, np.zeros((2, 2)), np.ones((2, 2, 2)), participants)


@pytest.mark.parametrize("key", [0, None, "a", np.ones(2), jax.random.split(KEY)])
def test_a_key_is_a_key(key):
    for call in (
        lambda: contributions.sampled_cosine_shapley(key, np.eye(2)),
        lambda: contributions.gtg_shapley(key, total, np.zeros(2), np.eye(2)),
    ):
        with pytest.raises(ValueError, match=r"`key` must be one PRNG key such as jax.random.key"):
            call()


@pytest.mark.slow
def test_agents_take_turns_at_the_front_from_any_one_on():
    def first_wins(params):
        return (params > 0).any() * 1.0

    keys = jax.random.split(KEY, 300)
    found = jax.vmap(
        lambda key: contributions.gtg_shapley(
            key, first_wins, jnp.zeros(3), jnp.eye(3), num_permutations=4, tolerance=0
        )
    )(keys)
    np.testing.assert_allclose(found.mean(0), 1 / 3, atol=0.02)


def test_keys_of_the_older_kind_are_keys():
    for key in (jax.random.PRNGKey(0), np.array([0, 1], np.uint32)):
        found = contributions.sampled_cosine_shapley(key, np.eye(2), num_permutations=2)
        np.testing.assert_allclose(found.values, [0.5, 0.5], atol=1e-6)


def test_permutations_that_memory_does_not_hold_are_refused():
    for call in (
        lambda num: contributions.sampled_cosine_shapley(KEY, np.eye(2), num_permutations=num),
        lambda num: contributions.gtg_shapley(
            KEY, total, np.zeros(2), np.eye(2), num_permutations=num
        ),
    ):
        with pytest.raises(ValueError, match="`num_permutations` must be at most 67,108,864"):
            call(10**12)


def broken_where_agent_0_is_without_agent_1(params):
    return jnp.where((params[0] > 0) & (params[1] <= 0), jnp.nan, params.sum())


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (contributions.model_utilities, r"agents \[0\]"),
        (lambda *args: contributions.gtg_shapley(KEY, *args), r"agents \[0"),
        (
            lambda utility, params, updates: contributions.multi_round_shapley(
                utility, np.zeros((2, 3)), np.stack([0 * updates, updates])
            ),
            r"agents \[0\] in round 1",
        ),
    ],
)
def test_a_utility_that_is_not_finite_anywhere_is_named_with_its_coalition(call, where):
    words = f"`utility` must return a finite number, got nan from broken.* the coalition of {where}"
    with pytest.raises(ValueError, match=words):
        call(broken_where_agent_0_is_without_agent_1, np.zeros(3), np.eye(3))


@pytest.mark.parametrize("utility", [3, lambda w: w, lambda w: w.sum() * 1j, lambda w: (1.0, 2.0)])
def test_a_utility_returns_a_real_scalar(utility):
    with pytest.raises(ValueError, match="`utility` must"):
        contributions.model_utilities(utility, np.zeros(2), np.eye(2))


def test_each_agent_is_at_the_front_once_in_as_many_permutations():
    def first_wins(params):
        return (params > 0).any() * 1.0

    value = functools.partial(contributions.gtg_shapley, num_permutations=4)
    found = jax.jit(lambda key: value(key, first_wins, jnp.zeros(4), jnp.eye(4)))(KEY)
    np.testing.assert_allclose(found, 0.25, rtol=1e-6)


def test_without_a_tolerance_every_model_is_scored():
    """One agent reaches what all reach, and two nothing: the third one earns it again."""

    def odd(params):
        return (params > 0).sum() % 2 * 1.0

    value = functools.partial(contributions.gtg_shapley, num_permutations=1, tolerance=0.0)
    found = jax.jit(lambda key: value(key, odd, jnp.zeros(3), jnp.eye(3)))(KEY)
    assert sorted(found.tolist()) == [-1, 1, 1]
