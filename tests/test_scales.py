"""Uploads of any scale that float32 holds are judged and paid like ordinary ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twin

import fairjax as fj
from fairjax import contributions, trees


def sampled(updates, weights=None):
    key = jax.random.key(0)
    return contributions.sampled_cosine_shapley(key, updates, weights, num_permutations=40).values


ORACLES = {
    "cosine": (contributions.cosine, twin.cosine),
    "cosine_shapley": (contributions.cosine_shapley, twin.cosine_shapley),
    "mean_field": (contributions.mean_field_cosine_shapley, twin.mean_field),
}
COMPILED = {name: jax.jit(measure) for name, (measure, _) in ORACLES.items()}
EXTREMES = [1e-38, 1e-30, 1e-21, 1e-18, 1e3, 1e18, 1e21, 1e30, 1e38]
every_measure = pytest.mark.parametrize("name", sorted(ORACLES))


def uploads(num_agents=4, num_parameters=5, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=num_parameters)
    rows = common + 0.7 * rng.normal(size=(num_agents, num_parameters))
    return (rows / np.abs(rows).max()).astype(np.float32)


@every_measure
@pytest.mark.parametrize("factor", [1, 1e-30])  # float32 would lose its square
def test_leaves_of_float32_and_float64_are_judged_in_float64(name, factor):
    measure, oracle = ORACLES[name]
    with jax.enable_x64(True):
        rows = uploads().astype(np.float64)
        rows[:, 2:] = factor * rows[:, 2:].astype(np.float32)
        rows[:, :2] *= factor**2 / 1e-3
        tree = {"a": jnp.asarray(rows[:, 2:], "float32"), "b": jnp.asarray(rows[:, :2])}
        rows[:, 2:] = tree["a"]
        np.testing.assert_allclose(measure(tree), oracle(rows), rtol=1e-6)
        unit = trees.with_length(tree, 1.0)
        assert [leaf.dtype.name for leaf in unit.values()] == ["float32", "float64"]


@every_measure
@pytest.mark.parametrize("factor", EXTREMES)
@pytest.mark.parametrize("sign", [1, -1])
def test_one_upload_of_another_length_leaves_values_right(name, factor, sign):
    measure, oracle = ORACLES[name]
    updates = uploads()
    updates[1] *= np.float32(sign * factor)
    np.testing.assert_allclose(measure(updates), oracle(updates), atol=1e-5)
    np.testing.assert_allclose(COMPILED[name](updates), oracle(updates), atol=1e-5)


@every_measure
@pytest.mark.parametrize("factor", EXTREMES)
def test_weights_of_one_over_the_length_undo_it(name, factor):
    measure, _ = ORACLES[name]
    updates = uploads()
    weights = 1 / np.linalg.norm(updates, axis=1)
    expected = measure(updates, weights)
    updates[2] *= np.float32(factor)
    weights[2] /= factor
    if weights[2] < np.finfo(np.float32).tiny:
        pytest.skip("such a weight is subnormal, and counts as 0")
    np.testing.assert_allclose(measure(updates, weights), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-38, 1e21, 1e38])
def test_sampled_values_do_not_depend_on_lengths_that_weights_undo(factor):
    updates, weights = uploads(), np.ones(4)
    expected = sampled(updates, weights)
    updates[0] *= np.float32(factor)
    weights[0] /= factor if factor < 1e38 else 1e37
    if factor == 1e38:
        updates[0] /= np.float32(10)
    np.testing.assert_allclose(sampled(updates, weights), expected, atol=1e-5)


@every_measure
@pytest.mark.parametrize("weight", [0, 1e-30, 1e30, 3e38])
def test_extreme_weights_are_right(name, weight):
    measure, oracle = ORACLES[name]
    weights = np.array([1, weight, 2, 1])
    np.testing.assert_allclose(measure(uploads(), weights), oracle(uploads(), weights), atol=1e-5)


def test_a_long_upload_of_weight_zero_is_judged_and_counts_for_nothing():
    updates = np.array([[3e20, 4e20, 0], [4, 3, 0], [0, 1, 1]], np.float32)
    found = contributions.cosine(updates, weights=[0, 1, 1])
    np.testing.assert_allclose(found, [0.975, 0.975, 0.615], atol=1e-3)


@every_measure
def test_lengths_that_part_by_all_of_float32_are_right(name):
    measure, oracle = ORACLES[name]
    rng = np.random.default_rng(1)
    for seed in range(5):
        updates = uploads(6, seed=seed) * 10 ** rng.uniform(-38, 38, size=(6, 1))
        updates = updates.astype(np.float32)
        np.testing.assert_allclose(measure(updates), oracle(updates), atol=1e-5)


@every_measure
def test_subnormal_uploads_are_uploads(name):
    measure, oracle = ORACLES[name]
    updates = uploads()
    updates[3] *= np.float32(1e-40)
    np.testing.assert_allclose(measure(updates), oracle(updates), atol=1e-4)


@pytest.mark.slow
def test_mean_field_keeps_its_digits_as_lengths_part():
    measure = contributions.mean_field_cosine_shapley
    np.testing.assert_allclose(measure([[1e4], [1.0]]), [0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(measure([[-1e4], [1.0]]), [1.5, -0.5], atol=1e-6)
    for num_agents in (2, 20):
        updates = uploads(num_agents, 50)
        for ratio in (3, 30, 1e3, 1e6):
            updates[0] *= np.float32(ratio)
            np.testing.assert_allclose(measure(updates), twin.mean_field(updates), atol=5e-6)


@pytest.mark.parametrize("value", [contributions.shapley, contributions.banzhaf])
@pytest.mark.parametrize("factor", [1e-35, 3e38])
def test_values_of_a_game_near_the_limits_of_float32_are_right(value, factor):
    table = np.random.default_rng(0).uniform(size=16)
    found = np.asarray(value(table * factor), np.float64) / factor
    np.testing.assert_allclose(found, value(table), atol=1e-5)


def test_values_of_a_game_with_traced_entries_that_are_not_finite_are_nan():
    for value in (contributions.shapley, contributions.banzhaf, contributions.leave_one_out):
        assert np.isnan(jax.jit(value)(jnp.array([0, jnp.inf, 1, 1]))).all()


@pytest.mark.parametrize("largest", [3e38, 1e-38, 1e-40, 3.0])
def test_a_row_is_its_unit_times_what_is_left(largest):
    row = np.array([[1.0, -0.3, 0.0]] * 2).astype(np.float32) * np.float32(largest)
    rows, units = jax.jit(trees.unit_rows)(row)
    product = np.asarray(rows, np.float64) * np.asarray(units, np.float64)[:, None]
    np.testing.assert_array_equal(product, row.astype(np.float64))


@pytest.mark.parametrize("factor", [1e-35, 1e-25, 1.0, 1e25, 1e38])
def test_rows_get_the_length_that_is_asked_for(factor):
    rows = uploads() * np.float32(factor)
    for change in (trees.with_length, trees.at_most_length):
        found = np.linalg.norm(np.asarray(change(rows, 0.5), np.float64), axis=1)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        longer = change is trees.with_length or factor >= 1
        np.testing.assert_allclose(found, np.where(longer, 0.5, lengths), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cgsv", "cgsv_released", "rr", "proportional"])
@pytest.mark.parametrize("factor", [1e21, 2e38, 1e-30])
def test_a_mechanism_that_rescales_uploads_does_not_see_their_lengths(name, factor):
    mechanism = fj.mechanisms.REGISTRY[name]()
    context = fj.mechanisms.Context(shard_sizes=jnp.arange(1, 5))

    @jax.jit
    def judged(updates):
        state = mechanism.init(4)
        for _ in range(2):
            outcome, state = mechanism.update(updates, state, context)
        return outcome.contributions, outcome.importance, outcome.aggregate

    updates, ordinary = uploads(), uploads()
    updates[1] *= np.float32(factor)
    ordinary[1] *= np.float32(1e18 if factor > 1 else 1)
    if factor < 1 and name != "cgsv":
        pytest.skip("what is short is short")
    for found, expected in zip(judged(updates), judged(ordinary), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("contribution", ["cosine", "mean_field"])
def test_a_run_judges_an_upload_of_any_length(contribution):
    options = {"contribution": contribution}
    histories = []
    for strength in (1e18, 1e21):
        experiment = fj.Experiment(
            rounds=2, num_agents=3, samples_per_agent=20, local_epochs=1, options=options,
            behaviours={"rescale": (1, strength)},
        )  # fmt: skip
        histories.append(experiment.run().history)
    for field in ("contributions", "importance"):
        one, other = (getattr(history, field) for history in histories)
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert (np.asarray(one)[:, 1] > 0).all()
