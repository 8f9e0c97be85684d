"""What an agent is paid: limits, order and exact counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twin

from fairjax import rewards
from fairjax.rewards import masks


def aggregates():
    rng = np.random.default_rng(0)
    return {
        "distinct": rng.normal(size=101).astype(np.float32),
        "ties": rng.integers(-3, 4, size=101).astype(np.float32),
        "all equal": np.full(101, -2.0, np.float32),
        "mostly zero": rng.normal(size=101).astype(np.float32) * (rng.uniform(size=101) < 0.1),
        "tiny": rng.normal(size=101).astype(np.float32) * np.float32(1e-30),
    }


every_aggregate = pytest.mark.parametrize(
    "aggregate", list(aggregates().values()), ids=list(aggregates())
)


def test_importance_equals_its_formula():
    previous, contributions = np.array([0.5, 0.3, 0.2]), np.array([0.9, -0.4, 0.1])
    for floor in (None, 0.0, 0.05):
        found = rewards.importance(previous, contributions, alpha=0.8, floor=floor)
        expected = twin.importance(previous, contributions, 0.8, floor)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("num_agents", [1, 2, 10, 1000])
def test_importance_sums_to_one_and_nobody_falls_under_the_floor(num_agents):
    contributions = np.random.default_rng(1).normal(size=num_agents)
    found = np.asarray(rewards.importance(np.zeros(num_agents), contributions))
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert (found > 0).all()
    assert num_agents == 1 or found.max() > 2 * found.min()


def test_importance_is_defined_for_degenerate_contributions():
    found = rewards.importance(np.zeros(3), np.array([-1.0, np.nan, -np.inf]), floor=0.0)
    np.testing.assert_allclose(found, np.full(3, 1 / 3), rtol=1e-6)


def test_importance_of_the_largest_numbers_sums_to_one():
    for previous, contributions in (([3e38] * 3, np.zeros(3)), ([3.4e38] * 3, [3.4e38] * 3)):
        found = rewards.importance(previous, contributions)
        np.testing.assert_allclose(found, np.full(3, 1 / 3), rtol=1e-6)


def test_traced_coefficients_that_break_their_rule_count_as_documented():
    @jax.jit
    def importance(previous, contributions, alpha, floor):
        return rewards.importance(previous, contributions, alpha, floor)

    for given, expected in (
        (([0.5, np.nan, -1], [1, 1, 1], 0.5, 0), [0.75, 0.5, 0.5]),
        (([0.5, 0.5, np.inf], [1, 1, 1], 0.5, 0), [0.75, 0.75, 0.5]),
        (([0.5, 0.5, 0], [1, 0, 1], np.nan, 0), [1, 0, 1]),
        (([0.5, 0.5, 0], [1, 0, 1], 2, 0), [0.5, 0.5, 0]),
        (([0.5, 0.5, 0], [1, 0, 0], 0.5, np.nan), [0.75, 0.25, 0]),
        (([0.5, 0.5, 0], [1, 0, 0], 0.5, np.inf), [1, 1, 1]),
    ):
        found = importance(*(jnp.asarray(each, jnp.float32) for each in given))
        np.testing.assert_allclose(found, np.array(expected) / np.sum(expected), rtol=1e-6)


@pytest.mark.parametrize("beta", [1e-46, 1e-38, 1e-20])
def test_no_altruism_pays_in_proportion_to_importance(beta):
    importance = np.array([0.2, 0.8, 0])
    np.testing.assert_allclose(rewards.reward_fractions(importance, beta), [0.25, 1, 0], rtol=1e-6)
    found = jax.jit(rewards.reward_fractions)(importance, beta)
    np.testing.assert_allclose(found, [0.25, 1, 0], rtol=1e-6)
    large = rewards.reward_fractions(np.array([1e38, 3e38, 0]), beta=1e-46)
    np.testing.assert_allclose(large, [1 / 3, 1, 0], rtol=1e-6)


def test_altruism_as_large_as_float32_holds_gives_all_but_the_worthless_everything():
    np.testing.assert_array_equal(rewards.reward_fractions([0.2, 0.8, 0], beta=3.4e38), [1, 1, 0])


def test_traced_altruism_and_importance_that_break_their_rule_count_as_documented():
    fractions = jax.jit(rewards.reward_fractions)
    importance = jnp.array([0.2, 0.8, 0])
    for beta in (jnp.nan, -1.0, 0.0):
        np.testing.assert_allclose(fractions(importance, beta), [0.25, 1, 0], rtol=1e-6)
    np.testing.assert_array_equal(fractions(importance, jnp.inf), [1, 1, 0])
    broken = fractions(jnp.array([0.4, jnp.nan, -1, jnp.inf]), 1.0)
    np.testing.assert_array_equal(broken, [1, 0, 0, 0])
    np.testing.assert_array_equal(fractions(jnp.array([jnp.nan, -1.0]), 1.0), 1)


def test_traced_fractions_outside_their_range_count_as_its_ends():
    found = jax.jit(rewards.sparsify)(jnp.arange(1.0, 5.0), jnp.array([jnp.nan, -1, 0.5, 2]))
    np.testing.assert_array_equal((found != 0).sum(1), [0, 0, 2, 4])


def test_entries_that_stand_still_can_be_left_out_of_the_count():
    aggregate, fractions = jnp.array([5.0, 4, 3, 2] + [0] * 16), jnp.array([0.2, 0.5, 1])
    for live, expected in ((False, [4, 4, 4]), (True, [0, 2, 4])):
        for sparsify in (rewards.sparsify, jax.jit(rewards.sparsify, static_argnames="live")):
            paid = sparsify(aggregate, fractions, live=live)
            np.testing.assert_array_equal((paid != 0).sum(1), expected)
    assert not rewards.sparsify(jnp.zeros(3), fractions, live=True).any()


def test_the_most_important_agent_earns_exactly_everything():
    rng = np.random.default_rng(3)
    for beta in (1e-3, 0.5, 1.0, 2.0, 1e7):
        importance = rng.dirichlet(np.ones(7)).astype(np.float32)
        fractions = np.asarray(rewards.reward_fractions(importance, beta))
        assert fractions[importance.argmax()] == 1
        np.testing.assert_allclose(fractions, twin.reward_fractions(importance, beta), rtol=1e-5)


def test_a_more_important_agent_never_earns_less():
    importance = np.sort(np.random.default_rng(4).dirichlet(np.ones(9))).astype(np.float32)
    assert (np.diff(rewards.reward_fractions(importance, 1.5)) >= 0).all()


def test_boundless_altruism_gives_everybody_everything():
    importance = np.array([1e-3, 0.2, 0.799])
    fractions = rewards.reward_fractions(importance, beta=1e7)
    np.testing.assert_array_equal(fractions, 1)
    aggregate = aggregates()["distinct"]
    paid = rewards.sparsify(aggregate, fractions)
    np.testing.assert_array_equal(paid, np.broadcast_to(aggregate, (3, 101)))


@every_aggregate
def test_exactly_the_floor_of_the_product_is_kept_first_entries_first(aggregate):
    fractions = np.append(np.random.default_rng(5).uniform(size=20), [0, 1]).astype(np.float32)
    paid = rewards.sparsify(jnp.asarray(aggregate), jnp.asarray(fractions))
    expected = np.stack([twin.sparsify(aggregate, fraction) for fraction in fractions])
    np.testing.assert_array_equal(paid, expected)


def test_counts_are_taken_in_the_dtype_of_the_fractions():
    single, double = np.float32(0.29), np.float64(0.29)
    aggregate = jnp.arange(1.0, 101.0)
    assert jnp.count_nonzero(rewards.sparsify(aggregate, jnp.array([single]))) == 29
    assert jnp.count_nonzero(rewards.sparsify(aggregate, np.array([single]))) == 29
    assert jnp.count_nonzero(rewards.sparsify(aggregate, np.array([double]))) == 28


def test_one_ranking_spans_all_leaves_and_keeps_dtypes():
    flat = aggregates()["ties"]
    tree = {"a": jnp.asarray(flat[:60]).reshape(5, 12), "b": jnp.asarray(flat[60:], jnp.bfloat16)}
    fractions = jnp.array([0.1, 0.5, 0.77])
    paid = rewards.sparsify(tree, fractions)
    assert paid["b"].dtype == jnp.bfloat16
    joined = np.concatenate([paid["a"].reshape(3, -1), paid["b"].astype(np.float32)], axis=1)
    np.testing.assert_array_equal(joined, rewards.sparsify(flat, fractions))


@every_aggregate
def test_closeness_to_the_aggregate_follows_importance(aggregate):
    importance = np.sort(np.random.default_rng(6).dirichlet(np.ones(6))).astype(np.float32)
    paid = np.asarray(rewards.sparsify(aggregate, rewards.reward_fractions(importance)), np.float64)
    scale = np.abs(aggregate).max()
    aggregate, paid = aggregate / scale, paid / scale
    distances = np.linalg.norm(paid - aggregate, axis=1)
    lengths, full = np.linalg.norm(paid, axis=1), np.linalg.norm(aggregate)
    assert (np.diff(distances) <= 1e-12).all()
    assert (np.diff(lengths) >= -1e-12).all()
    np.testing.assert_allclose(paid @ aggregate / full, lengths**2 / full, atol=1e-6)


@every_aggregate
def test_sparsify_composes_with_jit_and_vmap(aggregate):
    fractions = np.random.default_rng(7).uniform(size=(3, 4)).astype(np.float32)
    batch = jnp.stack([jnp.asarray(aggregate) * factor for factor in (1, 2, 3)])
    found = jax.jit(jax.vmap(rewards.sparsify))(batch, fractions)
    expected = np.stack(
        [rewards.sparsify(a, jnp.asarray(f)) for a, f in zip(batch, fractions, strict=True)]
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@every_aggregate
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_by_counting_are_those_of_a_sort(aggregate, dtype):
    with jax.enable_x64(dtype == np.float64):
        magnitudes = np.abs(aggregate).astype(dtype)
        keys = jnp.asarray(magnitudes.view(f"int{8 * magnitudes.itemsize}"))
        places = len(keys) - 1 - jnp.arange(len(keys), dtype=jnp.int32)
        kept = jnp.arange(1, len(keys) + 1)
        by_sort, by_counts = (
            masks._select_by_sorting(keys, places, kept),
            masks._select_by_counting(keys, places, kept),
        )
        np.testing.assert_array_equal(by_counts, by_sort)


def test_sparsify_sorts_at_most_once_for_all_agents():
    text = str(jax.make_jaxpr(rewards.sparsify)(jnp.ones(50), jnp.linspace(0, 1, 8)))
    sorts = [line for line in text.splitlines() if " sort[" in line]
    assert len(sorts) == 1
    assert "50" in sorts[0]
    assert "8,50" not in sorts[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rewards.reward_fractions(np.ones(3), beta=-1.0), "`beta` .* above 0, got beta=-1"),
        (lambda: rewards.reward_fractions(np.ones(3), beta=np.nan), "`beta`"),
        (lambda: rewards.reward_fractions(np.ones(3), beta=np.inf), "`beta`"),
        (lambda: rewards.reward_fractions(np.ones(3), beta=1e300), "at most 3.4e.38, what float32"),
        (lambda: rewards.importance(np.ones(3), np.ones(3), floor=1e300), r"`floor` .*in \[0, 1\]"),
        (lambda: rewards.reward_fractions(np.zeros(3)), "all zero"),
        (lambda: rewards.reward_fractions(np.array([1.0, -1.0])), "not be negative"),
        (lambda: rewards.reward_fractions(np.ones((3, 2))), r"\[N\], got shape \(3, 2\)"),
        (lambda: rewards.reward_fractions(np.ones(0)), r"\[N\], got shape \(0,\)"),
        (lambda: rewards.importance(np.ones(3), np.ones(2)), "`contributions` must have shape"),
        (lambda: rewards.importance(np.ones(3), np.ones(3), alpha=1.5), "`alpha`"),
        (lambda: rewards.importance(np.ones(3), np.ones(3), floor=-0.1), "`floor`"),
        (lambda: rewards.importance(-np.ones(3), np.ones(3)), "`previous` must not be negative"),
        (lambda: rewards.sparsify(np.ones(4), np.array([0.5, 1.5])), r"in \[0, 1\]"),
        (lambda: rewards.sparsify(np.ones(4), np.array([np.nan])), r"in \[0, 1\]"),
        (lambda: rewards.sparsify(np.array([1.0, np.nan]), np.ones(1)), "`aggregate` .* finite"),
        (lambda: rewards.sparsify(np.ones(0), np.ones(1)), "at least one entry"),
        (lambda: rewards.sparsify(np.ones(4), 0.5), r"\[N\], got shape \(\)"),
    ],
)
def test_a_bad_argument_is_named_with_its_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
def test_rounding_never_pays_a_more_important_agent_less():
    importance = jnp.array([0.88850117, 0.8885011], jnp.float32)
    fractions = rewards.reward_fractions(importance)
    assert importance[0] > importance[1]
    np.testing.assert_array_equal(fractions, [1, 1])
    close = 0.5 - np.arange(4096, dtype=np.float32) * np.float32(2**-25)
    for beta in (1.0, 2.0, 3.0):
        fractions = np.asarray(rewards.reward_fractions(close, beta))
        assert fractions[0] == 1
        assert (np.diff(fractions) <= 0).all()
    same = np.asarray(rewards.reward_fractions(np.full(37, 0.3, np.float32), 2.0))
    assert (same == 1).all()


def test_rewards_differ_between_devices_in_a_shard_map():
    mesh = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    spec, fractions = jax.sharding.PartitionSpec("a"), jnp.array([0.2, 1.0])
    aggregate = jnp.arange(9.0)
    own = jax.shard_map(
        lambda own: rewards.sparsify(aggregate, own), mesh=mesh, in_specs=spec, out_specs=spec
    )
    wanted = rewards.sparsify(aggregate, fractions)
    np.testing.assert_array_equal(jax.jit(own)(fractions), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("jacobian", [jax.jacrev, jax.jacfwd])
def test_fractions_of_tied_agents_have_the_derivatives_of_their_own_importance(jacobian):
    importance = jnp.array([0.1, 0.1, 0.1, 0.7])
    found = jacobian(rewards.reward_fractions)(importance)[:3, :3]
    slope = (1 - np.tanh(0.1) ** 2) / np.tanh(0.7)
    np.testing.assert_allclose(found, slope * np.eye(3), rtol=1e-5, atol=1e-6)


def test_importance_of_those_present_by_hand():
    """A third is for each agent that has joined; those that join begin at their part of it."""
    # Agents 1 and 2 are new. Memory (1/3, 1/2, 0) / (5/6), and half of (.5, .5, -.5) is added.
    joining = rewards.importance([1 / 3, 0, 0], [0.5, 0.5, -0.5], 0.5, 0.0, np.ones(3, bool))
    np.testing.assert_allclose(joining, [0.45, 0.55, 0], rtol=1e-6, atol=1e-7)
    # Agent 1 is new and agent 2 absent. Memory (3, 2) / 5, then (.55, .325) of the share 2/3.
    present = np.array([True, True, False])
    absent = rewards.importance([1 / 3, 0, 0], [0.5, 0.25, 0.0], 0.5, 0.0, present)
    np.testing.assert_allclose(absent, [0.55 / 1.3125, 0.325 / 1.3125, 0], rtol=1e-6)
    # Agent 2 keeps its importance, and the others share .5, what they held.
    kept = rewards.importance([0.3, 0.2, 0.5], [0.2, 0.8, 0.9], 0.5, 0.0, present)
    np.testing.assert_allclose(kept, [0.2, 0.3, 0.5], rtol=1e-6)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_a_fraction_of_one_keeps_more_entries_than_float32_counts(xp):
    size = 2**24 + 3  # in float32 it is rounded up by one
    assert masks.count_kept(xp.ones(1, xp.float32), size).tolist() == [size]
