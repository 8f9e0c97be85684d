"""Contributions over the rounds of a run equal plain loops over rounds and coalitions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import twin

from fairjax import contributions

T, N = 3, 3


def recorded(seed=0):
    rng = np.random.default_rng(seed)
    servers = {"a": rng.normal(size=(T, 2)), "b": rng.normal(size=T)}
    updates = {"a": rng.normal(size=(T, N, 2)), "b": rng.normal(size=(T, N))}
    return servers, updates, rng.uniform(1, 5, size=N)


def utility(params):
    return jnp.tanh(params["a"]).sum() + params["b"] ** 2


def plain(weights, participants):
    """Returns `[T, N]` Shapley values, by a loop over rounds and coalitions."""
    servers, updates, _ = recorded()
    values = np.zeros((T, N))
    for t in range(T):
        agents = np.flatnonzero(participants[t])
        game = {}
        for size in range(len(agents) + 1):
            for chosen in itertools.combinations(range(len(agents)), size):
                owners = [agents[place] for place in chosen]
                total = sum(weights[i] for i in owners)
                model = {name: leaf[t].copy() for name, leaf in servers.items()}
                for i in owners:
                    for name in model:
                        model[name] = model[name] + weights[i] / total * updates[name][t, i]
                game[chosen] = float(np.tanh(model["a"]).sum() + model["b"] ** 2)
        values[t, agents] = twin.shapley(game, len(agents))
    return values


@pytest.mark.slow
def test_multi_round_values_are_weighted_sums_of_the_rounds_values():
    servers, updates, weights = recorded()
    by_round = plain(weights, np.ones((T, N), bool))
    for decay in (1.0, 0.5, 0.0):
        found = contributions.multi_round_shapley(utility, servers, updates, weights, decay=decay)
        wanted = sum(decay**t * by_round[t] for t in range(T))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_federated_values_are_among_those_who_took_part():
    servers, updates, weights = recorded()
    participants = np.array([[True, True, False], [True, True, True], [False, True, False]])
    found = contributions.federated_shapley(utility, servers, updates, participants, weights)
    np.testing.assert_allclose(found, plain(weights, participants).sum(0), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"servers": np.zeros((2, 2)), "updates": np.zeros((3, 2, 2))},
            r"same structure.*\[\(2, 2\)\] and",
        ),
        ({"utility": lambda w: w}, "`utility` must return a scalar"),
        ({"utility": lambda w: w.sum() / 0 * 0}, "`utility` must return a finite number, got nan"),
        ({"decay": 1.5}, "`decay`"),
        ({"weights": np.array([np.inf, 1.0])}, "`weights` must be finite"),
    ],
)
def test_a_bad_argument_is_named_with_its_rule(change, message):
    given = {
        "utility": lambda w: w.sum(),
        "servers": np.zeros((3, 2)),
        "updates": np.ones((3, 2, 2)),
    }
    with pytest.raises(ValueError, match=message):
        contributions.multi_round_shapley(**{**given, **change})


@pytest.mark.parametrize("kind", [tuple, list])
def test_layers_of_different_shapes_are_no_rounds_where_there_are_as_many_agents(kind):
    servers, updates, weights = recorded()
    expected = contributions.multi_round_shapley(utility, servers, updates, weights)
    found = contributions.multi_round_shapley(
        lambda params: utility(dict(zip("ab", params, strict=True))),
        *(kind(tree.values()) for tree in (servers, updates)),
        weights,
    )
    np.testing.assert_array_equal(found, expected)
