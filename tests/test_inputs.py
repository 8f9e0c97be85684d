"""What users pass in: lists of agents, arrays of other kinds, and values that are no numbers."""

import collections
import dataclasses

import jax
import numpy as np
import optax
import pytest
import seen

import fairjax as fj
from fairjax import contributions, rewards

KEY = jax.random.key(0)
MEASURES = {
    "cosine": contributions.cosine,
    "cosine_shapley": contributions.cosine_shapley,
    "mean_field": contributions.mean_field_cosine_shapley,
    "gram": lambda updates, weights=None: (
        contributions.gram_cosine_shapley(KEY, updates, weights).values
    ),
    "sampled": lambda updates, weights=None: (
        contributions.sampled_cosine_shapley(KEY, updates, weights, num_permutations=2).values
    ),
}
every_measure = pytest.mark.parametrize("measure", list(MEASURES.values()), ids=list(MEASURES))
Layer = collections.namedtuple("Layer", "kernel bias")


def agents(num_agents=3, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"kernel": rng.normal(size=(6, 2)), "bias": rng.normal(size=2)} for _ in range(num_agents)
    ]


def stacked(trees):
    return jax.tree.map(lambda *rows: np.stack(rows), *trees)


def total(params):
    return sum(leaf.sum() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@every_measure
@pytest.mark.parametrize("kind", [list, tuple, "lists", "named"])
def test_a_list_of_agents_is_stacked(measure, kind):
    given = agents()
    expected = measure(stacked(given))
    if kind == "lists":
        given = [[agent["kernel"], agent["bias"]] for agent in given]
    elif kind == "named":
        given = [Layer(**agent) for agent in given]
    else:
        given = kind(given)
    np.testing.assert_allclose(measure(given), expected, atol=1e-6)


@pytest.mark.slow
@every_measure
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([np.ones(20)] * 8, r"`jnp.stack\(updates\)`"),
        ([np.ones((3, 4))], r"list of 1 equal entries.*`jnp.stack\(updates\)`"),
        (({"a": np.ones((3, 2)), "b": np.ones(3)},) * 2, r"tuple of 2.*tree.map\(lambda \*rows"),
    ],
)
def test_a_list_that_can_be_agents_and_can_be_layers_is_refused(measure, given, words):
    with pytest.raises(ValueError, match=rf"`updates` must not be a .*{words}.*'layers': updates"):
        measure(given)
    named = {"layers": given}
    assert len(measure(named)) == len(jax.tree.leaves(named)[0])


def test_a_list_of_arrays_that_can_only_be_layers_is_a_pytree():
    layers = [np.ones((3, 4)), np.eye(3)]
    joined = np.concatenate(layers, axis=1)
    np.testing.assert_allclose(contributions.cosine(layers), contributions.cosine(joined))
    named = Layer(np.ones((3, 2)), np.eye(3, 2))
    assert contributions.cosine(named).shape == (3,)


@pytest.mark.parametrize("given", [[[1, 0], [1, 1]], ((1, 0), (1, 1)), {"a": [[1, 0], [1, 1]]}])
def test_lists_of_numbers_are_arrays(given):
    found = contributions.cosine(given)
    np.testing.assert_allclose(found, contributions.cosine(np.array([[1, 0], [1, 1]])))


@pytest.mark.slow
def test_changes_of_a_model_are_given_stacked_or_as_a_list():
    params = jax.tree.map(np.zeros_like, agents(1)[0])
    given = agents()
    expected = contributions.model_utilities(total, params, stacked(given))
    np.testing.assert_allclose(contributions.model_utilities(total, params, given), expected)
    found = contributions.gtg_shapley(KEY, total, params, given, tolerance=0.0)
    again = contributions.gtg_shapley(KEY, total, params, stacked(given), tolerance=0.0)
    np.testing.assert_allclose(found, again)
    # The structure of `params` tells layers from agents, whatever the shapes.
    layers = (np.zeros(2), np.zeros(2))
    for updates in ((np.ones((2, 2)), np.ones((2, 2))), [(np.ones(2), np.ones(2))] * 2):
        found = contributions.model_utilities(total, layers, updates)
        np.testing.assert_allclose(found, [0, 4, 4, 4])
    flat = contributions.model_utilities(total, np.zeros(2), [np.ones(2), np.zeros(2)])
    np.testing.assert_allclose(flat, [0, 2, 0, 1])


@pytest.mark.slow
def test_rounds_are_given_stacked_or_as_lists():
    servers, rounds = agents(2), [agents(3, seed) for seed in (1, 2)]
    updates = [stacked(one) for one in rounds]
    expected = contributions.multi_round_shapley(total, stacked(servers), stacked(updates))
    for given in ((servers, updates), (servers, rounds), (stacked(servers), updates)):
        found = contributions.multi_round_shapley(total, *given)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"`servers`.* rounds and can be layers"):
        contributions.multi_round_shapley(total, [np.zeros(3)] * 2, [np.ones((4, 3))] * 2)
    layers = ((np.zeros((2, 3)),) * 2, (np.ones((2, 4, 3)),) * 2)
    np.testing.assert_allclose(contributions.multi_round_shapley(total, *layers), np.full(4, 3))


def tuple_model(data):
    """A model whose parameters are a tuple of layers of one shape."""
    width = data.x[0].size

    def init(key):
        return tuple(jax.random.normal(one, (width, width)) for one in jax.random.split(key))

    def apply(params, x, key=None):
        return (x.reshape(len(x), -1) @ params[0] @ params[1])[:, : data.num_classes]

    return fj.models.Model(init, apply)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(fj.mechanisms.REGISTRY) - {"shapfed"}))
def test_parameters_may_be_a_tuple_of_equal_layers(name):
    rng = np.random.default_rng(0)
    data = fj.data.Dataset(x=rng.normal(size=(24, 3)), y=np.arange(24) % 2, num_classes=2)
    shards = fj.data.Shards.from_indices(data, np.split(np.arange(24), 3))
    shards = dataclasses.replace(shards, validation=data)
    federation = fj.federation(
        model=tuple_model(data)._replace(units=seen.units),
        mechanism=fj.mechanisms.REGISTRY[name](),
        optimizer=optax.sgd, learning_rate=0.1, local_epochs=1, batch_size=8,
    )  # fmt: skip
    state = federation.init(jax.random.key(0), shards, num_rounds=1)
    _, record = jax.jit(federation.step)(state, shards)
    assert not np.asarray(record.broken)


NOT_NUMBERS = {
    "complex": np.ones((2, 2), complex),
    "complex numbers": [[1j, 1], [1, 1]],
    "strings": np.array([["a", "b"]] * 2),
    "objects": np.array([[1, None]] * 2, object),
    "dates": np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"),
    "a function": len,
    "a key": KEY,
    "ragged": [[1, 2], [3]],
    "beyond 64 bits": [[2**70, 1], [1, 1]],
}


@pytest.mark.parametrize("value", list(NOT_NUMBERS.values()), ids=list(NOT_NUMBERS))
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("updates", contributions.cosine),
        ("weights", lambda value: contributions.cosine(np.eye(2), value)),
        ("weights", lambda value: contributions.model_utilities(total, 0.0, np.eye(2)[0], value)),
        ("utilities", contributions.shapley),
        ("params", lambda value: contributions.model_utilities(total, value, np.eye(2))),
        ("servers", lambda value: contributions.multi_round_shapley(total, value, np.eye(2))),
        ("previous", lambda value: rewards.importance(value, np.ones(2))),
        ("contributions", lambda value: rewards.importance(np.ones(2), value)),
        ("importance", rewards.reward_fractions),
        ("aggregate", lambda value: rewards.sparsify(value, np.ones(2))),
        ("fractions", lambda value: rewards.sparsify(np.ones(2), value)),
    ],
)
def test_what_is_no_array_of_numbers_is_named(value, name, call):
    with pytest.raises(ValueError, match=f"`{name}` must hold arrays of numbers"):
        call(value)


def test_a_file_of_arrays_is_to_be_read_into_a_dict(tmp_path):
    np.savez(tmp_path / "agent.npz", **agents()[0])
    with np.load(tmp_path / "agent.npz") as file:
        with pytest.raises(ValueError, match=r"`updates` must hold .* got NpzFile: pass `dict"):
            contributions.cosine([file, file])
        contributions.cosine([dict(file), dict(file)])


def test_agents_that_differ_in_a_name_or_a_shape_are_refused_in_words():
    one, other = agents(2)
    for odd in ({"kernel": other["kernel"]}, other | {"bias": np.zeros(1)}):
        with pytest.raises(ValueError, match="a list of agents that have the same names and sha"):
            contributions.cosine([one, odd])


@pytest.mark.parametrize("updates", [np.ones((2, 3), bool), np.ones((0, 3)), [], None])
def test_updates_that_are_no_uploads_are_named(updates):
    with pytest.raises(ValueError, match="`updates` must"):
        contributions.cosine(updates)


def test_large_integers_and_tables_are_numbers():
    updates = np.array([[2**40, 0], [0, 2**40]])
    np.testing.assert_allclose(contributions.cosine(updates), [0.7071, 0.7071], atol=1e-4)
    np.testing.assert_allclose(
        contributions.cosine(np.eye(2), np.array([2**40, 0])), [1, 0], atol=1e-6
    )
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1.0, 0.0], "b": [0.0, 1.0]})
    np.testing.assert_allclose(contributions.cosine(table), [0.7071, 0.7071], atol=1e-4)
