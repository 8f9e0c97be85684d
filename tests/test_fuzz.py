"""Rules that hold for all drawn arguments; a failure prints the call, to be pasted (`drawn.py`).

Some draws of each kind run in the fast step; the others are marked slow.
"""

import jax
import numpy as np
import oracle
import pytest
import twin
from drawn import (
    aggregates,
    datasets,
    evaluate,
    fractions,
    games,
    importances,
    judge,
    judged,
    spread,
    uploads,
    weights,
    whole,
)

import fairjax as fj

DRAWS, ALL_DRAWS = 3, 50
MEASURES = {  # name: its oracle, and the numbers of agents to try
    "cosine": (oracle.cosine, (1, 2, 5, 8, 30)),
    "cosine_shapley": (oracle.cosine_shapley, (1, 2, 5, 8, 8)),
    "mean_field_cosine_shapley": (oracle.mean_field, (1, 2, 5, 8, 30)),
}
RESCALING = ("cgsv(contribution='mean_field')", "cgsv(contribution='shapley', mask='leaf')")
MECHANISMS = {name: f"{name}()" for name in fj.mechanisms.REGISTRY} | {"cffl": "cffl(threshold=0)"}


def draws(fast=DRAWS, total=ALL_DRAWS):
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(fast, total)]
    return pytest.mark.parametrize("seed", [*range(fast), *slow])


every_measure = pytest.mark.parametrize("measure", MEASURES)


def assert_close(call, expected, tolerance=1e-5):
    np.testing.assert_allclose(evaluate(call), expected, rtol=0, atol=tolerance, err_msg=call)


def judged_uploads(measure, seed, num_agents=5):
    """Returns a number of agents, the right values and the largest error that float32 may make."""
    measured, agents = MEASURES[measure]
    num_agents = num_agents or agents[seed % len(agents)]
    given = uploads(seed, num_agents), weights(seed, num_agents)
    return num_agents, *oracle.with_tolerance(measured, *given)


@draws()
@every_measure
def test_contributions_equal_those_in_double_precision(measure, seed):
    n, expected, tolerance = judged_uploads(measure, seed, num_agents=None)
    call = f"fj.contributions.{measure}(uploads({seed}, {n}), weights({seed}, {n}))"
    assert_close(call, expected, tolerance)


@draws()
def test_cosines_hold_for_lengths_of_any_spread(seed):
    expected, tolerance = oracle.with_tolerance(oracle.cosine, spread(seed, 30))
    assert_close(f"fj.contributions.cosine(spread({seed}, 30))", expected, tolerance)


@draws()
@every_measure
def test_what_is_zero_broken_or_without_aggregate_is_worth_nothing(measure, seed):
    n, expected, _ = judged_uploads(measure, seed)
    call = f"fj.contributions.{measure}(uploads({seed}, {n}), weights({seed}, {n}))"
    values, rows = np.asarray(evaluate(call)), uploads(seed, n)
    nothing = ~np.isfinite(rows).all(1) | ~rows.any(1) | ~expected.any()
    assert (np.abs(values[nothing]) < 1e-6).all(), call
    assert measure != "cosine" or (np.abs(values) <= 1).all(), call


@draws()
@pytest.mark.parametrize("measure", ["cosine_shapley", "sampled_cosine_shapley"])
def test_values_sum_to_one_or_all_are_zero(measure, seed):
    n, expected, tolerance = judged_uploads("cosine_shapley", seed)
    given = f"uploads({seed}, {n}), weights({seed}, {n})"
    call = f"fj.contributions.{measure}({given})"
    if measure.startswith("sampled"):
        call = f"fj.contributions.{measure}(jax.random.key({seed}), {given}).values"
    values = np.asarray(evaluate(call))
    np.testing.assert_allclose(values.sum(), expected.any(), atol=1e-5, err_msg=call)
    near = tolerance if measure == "cosine_shapley" else 0.1
    np.testing.assert_allclose(values, expected, rtol=0, atol=near + tolerance, err_msg=call)


@draws()
@every_measure
def test_equal_uploads_of_equal_weight_are_worth_the_same(measure, seed):
    given = f"doubled(uploads({seed}, 5)), doubled(weights({seed}, 5))"
    call = f"fj.contributions.{measure}({given})"
    values = np.asarray(evaluate(call))
    np.testing.assert_allclose(values[0], values[-1], rtol=0, atol=1e-5, err_msg=call)


@draws()
@every_measure
def test_the_order_of_agents_is_the_order_of_values(measure, seed):
    n, expected, tolerance = judged_uploads(measure, seed)
    given = f"backwards(uploads({seed}, {n})), backwards(weights({seed}, {n}))"
    assert_close(f"fj.contributions.{measure}({given})", expected[::-1], tolerance)


@draws()
@every_measure
def test_one_factor_for_all_uploads_or_weights_changes_nothing(measure, seed):
    n, expected, tolerance = judged_uploads(measure, seed)
    magnitudes = np.abs(uploads(seed, n)[np.isfinite(uploads(seed, n))])
    low, high = -126, 127  # exponents of float32
    if magnitudes.any():
        low -= int(np.floor(np.log2(magnitudes[magnitudes > 0].min())))
        high -= int(np.ceil(np.log2(magnitudes.max())))
    power = np.random.default_rng(seed).integers(max(low, -126), min(high, 127), endpoint=True)
    given = f"np.float32(2.0**{power}) * uploads({seed}, {n}), weights({seed}, {n})"
    assert_close(f"fj.contributions.{measure}({given})", expected, tolerance)


@draws()
@every_measure
@pytest.mark.parametrize(
    "layout",
    ["jnp.asarray({})", "{}.astype(np.float64)", "{}.tolist()", "tree({})"],
)
def test_how_uploads_are_given_changes_nothing(measure, layout, seed):
    n, expected, tolerance = judged_uploads(measure, seed)
    given = f"{layout.format(f'uploads({seed}, {n})')}, weights({seed}, {n})"
    assert_close(f"fj.contributions.{measure}({given})", expected, tolerance)


@draws()
@every_measure
def test_compiled_values_are_those_of_separate_operations(measure, seed):
    n, expected, tolerance = judged_uploads(measure, seed)
    call = f"jax.jit(fj.contributions.{measure})(uploads({seed}, {n}), weights({seed}, {n}))"
    assert_close(call, expected, tolerance)


@draws(1, 20)
@every_measure
@pytest.mark.parametrize("dtype", ["np.int8", "np.uint32", "np.float16", "jnp.bfloat16"])
def test_uploads_of_any_dtype_are_worth_what_they_are_in_float32(measure, dtype, seed):
    expected, tolerance = oracle.with_tolerance(MEASURES[measure][0], whole(seed, 5, np.float32))
    assert_close(f"fj.contributions.{measure}(whole({seed}, 5, {dtype}))", expected, tolerance)


@pytest.mark.slow
@draws()
@pytest.mark.parametrize("value", ["shapley", "banzhaf", "leave_one_out"])
def test_values_of_a_game_are_those_of_their_definition(value, seed):
    call = f"fj.contributions.{value}(games({seed}))"
    table = games(seed).astype(np.float64)
    num_agents = len(table).bit_length() - 1
    coalitions = {
        tuple(agent for agent in range(num_agents) if index >> agent & 1): utility
        for index, utility in enumerate(table)
    }
    index = np.arange(len(table))
    gains = np.stack([table[index | 1 << i] - table[index & ~(1 << i)] for i in range(num_agents)])
    expected = {
        "shapley": twin.shapley(coalitions, num_agents),
        "banzhaf": gains.mean(1),
        "leave_one_out": gains[:, -1],
    }[value]
    assert_close(call, expected, 1e-6 * np.abs(table).max())


@pytest.mark.slow
@draws(2, 30)
def test_utilities_of_coalitions_are_those_of_their_mean_update(seed):
    given = f"lambda w: (w**2).sum(), jnp.ones(40), whole({seed}, 3, np.float32)"
    call = f"fj.contributions.model_utilities({given}, weights({seed}, 3))"
    rows, shares = np.asarray(whole(seed, 3, np.float32), np.float64), weights(seed, 3)
    members = np.arange(8)[:, None] >> np.arange(3) & 1
    shares = members * (np.ones(3) if shares is None else np.float64(shares))
    total = shares.sum(1, keepdims=True)
    models = 1 + np.divide(shares, total, out=0 * shares, where=total > 0) @ rows
    expected = np.square(models).sum(1)
    assert_close(call, expected, 1e-5 * expected.max())
    call = call.replace("model_utilities(", f"gtg_shapley(jax.random.key({seed}), ")[:-1]
    values = evaluate(f"{call}, num_permutations=4, tolerance=0)")
    np.testing.assert_allclose(values.sum(), expected[-1] - expected[0], rtol=1e-4, err_msg=call)


@draws()
@pytest.mark.parametrize("compiled", ["{}", "jax.jit({})"])
def test_importance_is_shared_out_in_the_right_proportions(compiled, seed):
    rng = np.random.default_rng(seed)
    alpha = rng.choice([0, 1, 0.95, rng.uniform()])
    floor = rng.choice(np.array([None, 0.0, rng.uniform(0, 0.1), 1.0], object))
    given = f"importances({seed}), judged({seed}), {alpha}, {floor}"
    call = f"{compiled.format('fj.rewards.importance')}({given})"
    previous, contributions = np.float64(importances(seed)), np.float64(judged(seed))
    contributions = np.where(np.isfinite(contributions), contributions, 0)
    floor = 1e-3 * min(1, 10 / len(previous)) if floor is None else floor
    mixed = np.maximum(alpha * previous + (1 - alpha) * contributions, floor)
    expected = mixed / mixed.sum() if mixed.any() else np.full(len(mixed), 1 / len(mixed))
    terms = np.abs(np.append(previous, contributions)).max()
    assert_close(call, expected, 1e-5 + 1e-6 * terms / (mixed.sum() or 1))
    assert (np.asarray(evaluate(call)) >= 0).all(), call


@draws()
@pytest.mark.parametrize("compiled", ["{}", "jax.jit({})"])
def test_fractions_follow_importance_and_the_largest_is_one(compiled, seed):
    beta = 10 ** np.random.default_rng(seed).uniform(-37, 37)
    call = f"{compiled.format('fj.rewards.reward_fractions')}(importances({seed}), {beta})"
    values, importance = np.asarray(evaluate(call)), importances(seed)
    assert ((values >= 0) & (values <= 1)).all(), call
    assert (values[importance == importance.max()] == 1).all(), call
    assert (np.diff(values[importance.argsort()]) >= 0).all(), call
    assert_close(call, twin.reward_fractions(np.float64(importance), beta))


@draws()
def test_traced_coefficients_of_any_kind_have_an_answer_in_range(seed):
    rng = np.random.default_rng(seed)
    alpha, floor, beta = rng.choice([-1, 0, 1e-38, 0.5, 1, 3e38, np.nan, np.inf, -np.inf], 3)
    given = f"judged({seed}), importances({seed}), np.float32('{alpha}'), np.float32('{floor}')"
    call = f"jax.jit(fj.rewards.importance)({given})"
    importance = np.asarray(evaluate(call))
    assert (importance >= 0).all(), call
    np.testing.assert_allclose(importance.sum(), 1, atol=1e-5, err_msg=call)
    call = f"jax.jit(fj.rewards.reward_fractions)(judged({seed}), np.float32('{beta}'))"
    fraction = np.asarray(evaluate(call))
    assert ((fraction >= 0) & (fraction <= 1)).all(), call
    assert fraction.max() == 1, call


@draws()
@pytest.mark.parametrize("given", ["{}", "jnp.asarray({})"])
def test_rewards_are_exactly_the_largest_entries(given, seed):
    call = f"fj.rewards.sparsify({given.format(f'aggregates({seed})')}, fractions({seed}))"
    aggregate, paid = aggregates(seed), np.asarray(evaluate(call))
    expected = np.stack([twin.sparsify(aggregate, fraction) for fraction in fractions(seed)])
    np.testing.assert_array_equal(paid, expected, err_msg=call)
    distances = np.linalg.norm(np.float64(paid) - aggregate, axis=1)
    assert (np.diff(distances[fractions(seed).argsort()]) <= 0).all(), call


@draws(0, 50)
@pytest.mark.parametrize("mechanism", MECHANISMS.values())
def test_a_mechanism_takes_a_broken_upload_for_none_and_answers_in_range(mechanism, seed):
    call = f"judge({mechanism!r})(uploads({seed}, 5).clip(-1e30, 1e30))"
    outcome, rows = evaluate(call), uploads(seed, 5).clip(-1e30, 1e30)
    as_absent = judge(mechanism)(np.where(np.isfinite(rows).all(1, keepdims=True), rows, 0))
    for name, found in outcome._asdict().items():
        for leaf, absent in zip(*map(leaves, (found, getattr(as_absent, name))), strict=True):
            np.testing.assert_array_equal(leaf, absent, err_msg=f"{name} of {call}")
            unjudged = leaf.shape == (5,) and np.isnan(leaf).all()
            assert unjudged or np.isfinite(leaf).all(), f"{name} of {call}"
    assert not ((outcome.fractions < 0) | (outcome.fractions > 1)).any(), call
    assert not abs(outcome.importance.sum() - 1) > 1e-5, call


@draws()
@pytest.mark.parametrize(
    "mechanism", ["cgsv()", *(pytest.param(name, marks=pytest.mark.slow) for name in RESCALING)]
)
def test_the_length_of_an_upload_changes_nothing_where_uploads_are_rescaled(mechanism, seed):
    rng = np.random.default_rng(seed)
    rows = f"np.float32(twin.uploads({rng.choice(twin.KINDS)!r}, 5, 40, {seed}))"
    powers = rng.integers(-100, 120, 5).tolist()
    call = f"judge({mechanism!r})({rows} * np.float32(2.0) ** np.array({powers})[:, None])"
    found, expected = evaluate(call), evaluate(f"judge({mechanism!r})({rows})")
    for name in ("contributions", "importance", "fractions", "aggregate"):
        for leaf, wanted in zip(
            *(leaves(getattr(o, name)) for o in (found, expected)), strict=True
        ):
            np.testing.assert_allclose(leaf, wanted, rtol=0, atol=1e-4, err_msg=f"{name} of {call}")


@draws()
@pytest.mark.parametrize("split", fj.data.SPLITS)
def test_a_split_gives_every_agent_rows_that_exist(split, seed):
    rng, num_rows = np.random.default_rng(seed), len(datasets(seed))
    num_agents = int(rng.integers(1, num_rows, endpoint=True))
    samples = int(rng.integers(1, num_rows // num_agents, endpoint=True))
    options = f"num_agents={num_agents}, seed={seed}"
    if rng.uniform() < 0.5:
        options += f", samples_per_agent={samples}"
    if split == "dirichlet":
        options += f", concentration={10 ** rng.uniform(-6, 6)}"
    call = f"fj.data.SPLITS['{split}'](datasets({seed}), {options})"
    shards, again = evaluate(call), evaluate(call)
    sizes, rows = shards.sizes, [shards.rows(agent) for agent in range(num_agents)]
    assert (sizes >= 1).all(), call
    if "samples_per_agent" in options:
        assert sizes.sum() == samples * num_agents, call
    else:
        assert num_rows - num_agents < sizes.sum() <= num_rows, call
    assert ((shards.indices >= 0) & (shards.indices < num_rows)).all(), call
    twice = split in ("class_imbalance", "dir3", "dir7")
    assert twice or len(set(np.concatenate(rows))) == sizes.sum(), call
    np.testing.assert_array_equal(again.indices, shards.indices, err_msg=call)


@draws()
def test_metrics_are_in_their_ranges_or_not_known(seed):
    given = f"accuracies({seed}), backwards(accuracies({seed}))"
    fairness = evaluate(f"fj.metrics.fairness({given})")
    low, high = evaluate(f"fj.metrics.fairness_interval({given})")
    assert np.isnan(fairness) or -1 <= fairness <= 1, given
    assert np.isnan(low) or -1 <= low <= fairness <= high <= 1, given
    call = f"fj.metrics.detection_auc(accuracies({seed}), accuracies({seed}) > 0.4)"
    assert evaluate(call) == 1 or np.isnan(evaluate(call)), call


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
