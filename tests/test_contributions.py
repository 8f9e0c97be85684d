"""Contributions fulfil the axioms of Shapley values, and equal those of the slow twin."""

import functools

import jax
import jax.experimental.sparse
import jax.numpy as jnp
import numpy as np
import pytest
import twin

from fairjax import contributions, lowrank, rewards, rowwise, trees
from fairjax.contributions.gram import Products

MEASURES = {
    "cosine": contributions.cosine,
    "cosine_shapley": contributions.cosine_shapley,
    "mean_field": contributions.mean_field_cosine_shapley,
    "sampled": lambda updates, weights=None: (
        contributions.sampled_cosine_shapley(
            jax.random.key(0), updates, weights, num_permutations=400
        ).values
    ),
}
every_measure = pytest.mark.parametrize("measure", list(MEASURES.values()), ids=list(MEASURES))
deterministic = pytest.mark.parametrize(
    "measure", [MEASURES[name] for name in ("cosine", "cosine_shapley", "mean_field")]
)


def normal(num_agents, num_parameters=200, seed=0):
    return np.random.default_rng(seed).normal(size=(num_agents, num_parameters))


def random_weights(num_agents, seed=1):
    return np.random.default_rng(seed).uniform(0.1, 1, size=num_agents)


@pytest.mark.parametrize("num_agents", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("kind", twin.KINDS)
def test_exact_values_equal_enumeration_in_double_precision(num_agents, kind):
    updates, weights = twin.uploads(kind, num_agents, 300, seed=3), random_weights(num_agents)
    expected = twin.cosine_shapley(updates, weights)
    with jax.enable_x64(True):
        found = contributions.cosine_shapley(updates, weights)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", twin.KINDS)
def test_the_cosine_game_has_the_utility_of_every_coalition(kind):
    updates, weights = twin.uploads(kind, 5, 300, seed=3), random_weights(5)
    weighted = weights[:, None] * updates
    everybody = weighted.sum(0)
    with jax.enable_x64(True):
        game = contributions.cosine_game(updates, weights)
        assert game.shape == (32,)
        for index in range(1, 32):
            joint = weighted[(index >> np.arange(5) & 1) > 0].sum(0)
            cosine = joint @ everybody / np.linalg.norm(joint) / np.linalg.norm(everybody)
            assert game[index] == pytest.approx(cosine, abs=1e-9)
        assert game[0] == 0
        np.testing.assert_allclose(
            contributions.shapley(game), contributions.cosine_shapley(updates, weights), atol=1e-12
        )
    with pytest.raises(ValueError, match="`updates` must be of at most 25 agents .* got 26"):
        contributions.cosine_game(np.eye(26))


@pytest.mark.parametrize("kept", [1.0, 0.1, 0.04])
def test_exact_values_hold_in_single_precision_while_uploads_do_not_cancel(kept):
    updates = normal(12, 3000)
    updates -= (1 - kept) * updates.mean(0)
    ratio = np.square(updates.sum(0)).sum() / np.square(updates).sum()
    assert ratio > 0.001
    found = contributions.cosine_shapley(updates.astype(np.float32))
    np.testing.assert_allclose(found, twin.cosine_shapley(updates), atol=1e-4)


@pytest.mark.parametrize("num_agents", [1, 2, 5, 14])
def test_cosine_equals_its_formula(num_agents):
    updates, weights = normal(num_agents), random_weights(num_agents)
    found = contributions.cosine(updates.astype(np.float32), weights)
    np.testing.assert_allclose(found, twin.cosine(updates, weights), atol=1e-5)


def test_mean_field_equals_enumeration_of_means_of_products():
    updates = normal(6)
    weighted = updates / len(updates)
    everybody = weighted.sum(0)
    expected = np.zeros(6)
    sizes = twin.coalition_cosines(updates)
    for agent in range(6):
        for size in range(6):
            pairs = [
                (weighted[list(s)].sum(0), weighted[[*s, agent]].sum(0))
                for s in sizes
                if len(s) == size and agent not in s
            ]
            for position, sign in ((1, 1), (0, -1)):
                inner = np.mean([pair[position] @ everybody for pair in pairs])
                square = np.mean([pair[position] @ pair[position] for pair in pairs])
                if square > 0:
                    expected[agent] += sign * inner / np.sqrt(square * (everybody @ everybody)) / 6
    found = contributions.mean_field_cosine_shapley(updates.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "bound"), list(zip(twin.KINDS, [0.0003, 0.003, 0.0125, 0.1], strict=True))
)
def test_mean_field_stays_close_to_exact_for_every_kind_of_upload(kind, bound):
    errors = []
    for seed in range(8):
        updates = twin.uploads(kind, 14, 1000, seed)
        exact = np.asarray(contributions.cosine_shapley(updates))
        estimate = np.asarray(contributions.mean_field_cosine_shapley(updates))
        errors.append(np.abs(estimate / estimate.sum() - exact / exact.sum()).sum())
    assert np.mean(errors) < bound


def test_mean_field_is_exact_for_one_and_for_two_agents():
    for num_agents in (1, 2):
        updates = normal(num_agents)
        found = contributions.mean_field_cosine_shapley(updates)
        np.testing.assert_allclose(found, twin.cosine_shapley(updates), atol=1e-5)


@pytest.mark.slow
def test_sampling_is_unbiased_and_its_standard_errors_are_honest():
    updates = twin.uploads("reversed", 8, 50, seed=0)
    exact = twin.cosine_shapley(updates)
    keys = jax.random.split(jax.random.key(1), 300)
    sample = functools.partial(contributions.sampled_cosine_shapley, num_permutations=20)
    estimates = jax.vmap(lambda key: sample(key, updates))(keys)
    errors = np.asarray(estimates.values) - exact
    assert np.abs(errors.mean(0)).max() < 4 * errors.std(0).max() / np.sqrt(300)
    claimed = np.sqrt(np.square(estimates.standard_errors).mean(0))
    np.testing.assert_allclose(claimed, errors.std(0), rtol=0.15)


@deterministic
def test_agents_with_the_same_upload_and_weight_are_worth_the_same(measure):
    updates = normal(6)
    updates[4] = updates[1]
    values = measure(updates)
    np.testing.assert_allclose(values[1], values[4], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_agents", [1, 2, 6, 20])
@pytest.mark.parametrize("measure", ["cosine_shapley", "sampled"])
def test_exact_and_sampled_values_sum_to_one(measure, num_agents):
    values = MEASURES[measure](normal(num_agents, 1000), random_weights(num_agents))
    np.testing.assert_allclose(values.sum(), 1, atol=1e-5)


@every_measure
def test_a_zero_upload_is_worth_nothing(measure):
    updates = normal(6)
    updates[2] = 0
    values = measure(updates)
    assert values[2] == pytest.approx(0, abs=1e-6)
    assert (values[np.arange(6) != 2] != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 4), (5, 20_000), (100, 640), (500, 10)])
def test_one_broken_entry_among_any_number_breaks_its_row(shape, broken):
    x = jnp.ones(shape).at[1, shape[1] // 2].set(broken)
    expected = np.arange(shape[0]) != 1
    np.testing.assert_array_equal(jax.jit(rowwise.finite_rows)(x), expected)
    np.testing.assert_array_equal(trees.unit_rows({"leaf": x})[1], expected)
    cosines = contributions.cosine(x)
    assert cosines[1] == 0
    assert np.isfinite(cosines).all()


@every_measure
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_broken_row_counts_as_a_zero_upload(measure, broken):
    updates = normal(6)
    zeroed, damaged = updates.copy(), updates.copy()
    zeroed[3] = 0
    damaged[3, 17] = broken
    np.testing.assert_array_equal(measure(damaged), measure(zeroed))


@pytest.mark.slow
@every_measure
def test_nothing_is_worth_anything_where_the_aggregate_vanishes(measure):
    update = normal(1)[0]
    for updates in (
        np.zeros((4, 200)),
        np.stack([update, -update]),
        np.stack([update / 3, update / 3, -2 * update / 3]),
        np.full((3, 200), np.nan),
    ):
        assert (np.asarray(measure(updates)) == 0).all()
    assert (np.asarray(measure(normal(3), np.zeros(3))) == 0).all()


def test_a_coalition_whose_update_cancels_has_no_utility():
    update, other = normal(2)
    updates = np.stack([update, -update, other])
    found = contributions.cosine_shapley(updates)
    utilities = twin.coalition_cosines(updates)
    utilities[(0, 1)] = 0.0
    np.testing.assert_allclose(found, twin.shapley(utilities, 3), atol=1e-5)


@every_measure
@pytest.mark.parametrize("factor", [1e-19, 1e-10, 3.7, 1e19])
def test_rescaling_all_uploads_changes_nothing(measure, factor):
    updates = normal(6).astype(np.float32)
    rescaled = updates * np.float32(factor)
    np.testing.assert_allclose(measure(rescaled), measure(updates), atol=1e-6)


@pytest.mark.slow
@deterministic
def test_permuting_agents_permutes_the_values(measure):
    updates, weights = normal(7), random_weights(7)
    order = np.random.default_rng(5).permutation(7)
    permuted = measure(updates[order], weights[order])
    np.testing.assert_allclose(permuted, np.asarray(measure(updates, weights))[order], atol=1e-5)


@pytest.mark.slow
@every_measure
def test_a_pytree_is_worth_what_its_flat_form_is(measure):
    flat = normal(5, 30).astype(np.float32)
    tree = {"kernel": flat[:, :24].reshape(5, 4, 6), "bias": [flat[:, 24:29], flat[:, 29]]}
    np.testing.assert_allclose(measure(tree), measure(flat), atol=1e-6)


@pytest.mark.slow
@every_measure
def test_measures_compose_with_jit_and_vmap(measure):
    batch = np.stack([normal(5, seed=seed) for seed in range(3)])
    expected = np.stack([measure(updates) for updates in batch])
    np.testing.assert_allclose(jax.jit(jax.vmap(measure))(batch), expected, atol=1e-5)


def test_the_projection_game_has_its_closed_form():
    updates, weights = normal(6), random_weights(6)
    uploads = 0.5 * updates / np.linalg.norm(updates, axis=1, keepdims=True)
    weighted = weights[:, None] * uploads
    everybody = weighted.sum(0)
    members = np.arange(2**6)[:, None] >> np.arange(6) & 1
    utilities = members @ weighted @ everybody / np.linalg.norm(everybody)
    expected = weights * 0.5 * np.asarray(contributions.cosine(uploads, weights))
    np.testing.assert_allclose(contributions.shapley(utilities), expected, atol=1e-5)


def test_values_of_a_game_equal_their_definitions():
    table = np.random.default_rng(2).normal(size=2**5) + 100
    game = {
        tuple(np.flatnonzero(index >> np.arange(5) & 1)): value for index, value in enumerate(table)
    }
    game = {tuple(map(int, coalition)): value for coalition, value in game.items()}
    np.testing.assert_allclose(contributions.shapley(table), twin.shapley(game, 5), atol=1e-4)
    gains = [
        [game[tuple(sorted((*s, agent)))] - value for s, value in game.items() if agent not in s]
        for agent in range(5)
    ]
    np.testing.assert_allclose(contributions.banzhaf(table), np.mean(gains, 1), atol=1e-4)
    last = [gain[-1] for gain in gains]
    np.testing.assert_allclose(contributions.leave_one_out(table), last, atol=1e-4)


def test_exact_refuses_more_than_25_agents_and_names_the_alternatives():
    with pytest.raises(ValueError, match="got 26.*gram_cosine_shapley.*mean_field_cosine_shapley"):
        contributions.cosine_shapley(np.ones((26, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contributions.cosine(np.ones((0, 3))), "`updates` must hold at least one agent"),
        (lambda: contributions.cosine(np.ones((3, 0))), "`updates` must hold at least one agent"),
        (lambda: contributions.cosine({"a": np.ones((2, 3)), "b": np.ones((3, 3))}), "one N"),
        (lambda: contributions.cosine(1.0), r"must be an array \[N, ...\]"),
        (lambda: contributions.cosine({}), "got leaves of shapes"),
        (lambda: contributions.cosine(np.array(["a", "b"])), "arrays of numbers"),
        (lambda: contributions.cosine(np.ones((2, 3), complex)), "complex"),
        (lambda: contributions.cosine(np.ones((2, 3)), np.ones(3)), r"shape \(2,\), got shape"),
        (lambda: contributions.cosine(np.ones((2, 3)), np.array([1, -1])), "not be negative"),
        (lambda: contributions.cosine(np.ones((2, 3)), np.array([1, np.nan])), "finite"),
        (lambda: contributions.cosine(np.ones(3)), r"one row of shape \(3,\)"),
        (lambda: contributions.shapley(np.ones(6)), r"\[2\*\*N\]"),
        (lambda: contributions.shapley(np.ones(1)), r"\[2\*\*N\]"),
        (lambda: contributions.banzhaf(np.array([0, np.nan])), "`utilities` must be finite"),
        (
            lambda: contributions.sampled_cosine_shapley(
                jax.random.key(0), np.ones((2, 3)), num_permutations=3
            ),
            "num_permutations=3",
        ),
        (
            lambda: contributions.gram_cosine_shapley(
                jax.random.key(0), np.ones((2, 3)), num_permutations=1
            ),
            "`num_permutations`.*at least 2",
        ),
    ],
)
def test_a_bad_argument_is_named_with_its_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_measure_and_its_key_are_checked():
    uploads = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="Unknown name 'cosin'. Did you mean 'cosine'"):
        contributions.measure("cosin", uploads)
    with pytest.raises(ValueError, match="`key` must be one PRNG key"):
        contributions.measure("gram", uploads, key=3)
    with pytest.raises(ValueError, match="`products` must hold the Gram matrix"):
        contributions.coalition_cosines(contributions.products_of(uploads, np.ones(2)), np.eye(2))


@pytest.mark.parametrize("measure", ["cosine", "shapley", "mean_field"])
@pytest.mark.parametrize("jacobian", [jax.jacrev, jax.jacfwd])
def test_derivatives_are_those_of_finite_differences(measure, jacobian):
    rng = np.random.default_rng(0)
    updates = jnp.asarray(rng.normal(size=(4, 9)) + rng.normal(size=9), jnp.float32)
    weights = jnp.array([0.5, 1.0, 1.5, 1.0])

    def values(weights):
        return contributions.measure(measure, updates, weights)

    found = jacobian(values)(weights)
    steps = 0.01 * np.eye(4, dtype=np.float32)
    expected = np.stack([(values(weights + s) - values(weights - s)) / 0.02 for s in steps], 1)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["cosine", "shapley", "mean_field", "sampled", "gram"])
@pytest.mark.parametrize("zero", [False, True], ids=["all upload", "one upload is zero"])
def test_derivatives_by_uploads_are_those_of_finite_differences(measure, zero):
    rng = np.random.default_rng(5)
    num_agents = 18 if measure == "gram" else 5
    uploads = jnp.asarray(rng.normal(size=(num_agents, 30)) + 0.5, jnp.float32)
    step = jnp.asarray(rng.normal(size=uploads.shape), jnp.float32)
    if zero:  # the others' values change smoothly where it stays zero
        uploads, step = uploads.at[1].set(0), step.at[1].set(0)

    def values(uploads):
        key = jax.random.key(0)
        if measure == "sampled":
            return contributions.sampled_cosine_shapley(key, uploads, num_permutations=4).values
        if measure == "gram":
            return contributions.gram_cosine_shapley(key, uploads, num_permutations=4).values
        return contributions.measure(measure, uploads)

    found = jax.jvp(values, (uploads,), (step,))[1]
    backwards = jax.jacrev(values)(uploads).reshape(num_agents, -1) @ step.reshape(-1)
    expected = (values(uploads + 0.01 * step) - values(uploads - 0.01 * step)) / 0.02
    np.testing.assert_allclose(found, expected, atol=5e-4)
    np.testing.assert_allclose(backwards, expected, atol=5e-4)


@pytest.mark.slow
def test_derivatives_by_factors_with_a_column_of_zeros_are_those_of_the_product():
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 2, 5))
    b[:, :, 1] = 0
    b, a = jnp.asarray(b, jnp.float32), jnp.asarray(a, jnp.float32)

    def of_factors(b, a):
        return contributions.cosine(lowrank.LowRank(b, a))[0]

    def of_product(b, a):
        return contributions.cosine(b @ a)[0]

    found, wanted = (jax.grad(one, (0, 1))(b, a) for one in (of_factors, of_product))
    np.testing.assert_allclose(found[0][..., 0], wanted[0][..., 0], atol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-5)
    assert np.isfinite(found[0]).all()


@pytest.mark.slow
def test_standard_errors_leave_out_the_noise_that_zero_uploads_take_away():
    rng = np.random.default_rng(2)
    uploads = rng.normal(size=(18, 30))
    uploads[4:] = 0  # four agents take part
    uploads = jnp.asarray(uploads, jnp.float32)
    draw = jax.jit(
        jax.vmap(lambda k: contributions.gram_cosine_shapley(k, uploads, num_permutations=24))
    )
    values, errors = draw(jax.random.split(jax.random.key(0), 60))
    np.testing.assert_allclose(errors.mean(0)[:4], values.std(0)[:4], rtol=0.3)
    assert (errors[:, 4:] == 0).all()


@pytest.mark.parametrize("kind", [">f4", ">f8", ">i2", "float8_e5m2"])
def test_numbers_of_unusual_kinds_are_read(kind):
    uploads = np.array([[1.0, 2.0], [2.0, 0.0]])
    given = uploads.astype(kind) if kind[0] == ">" else jnp.asarray(uploads, kind)
    np.testing.assert_array_equal(contributions.cosine(given), contributions.cosine(uploads))
    fractions = np.array([0.5, 1.0])
    found = rewards.sparsify(given[0], fractions.astype(">f4"))
    np.testing.assert_array_equal(found, rewards.sparsify(uploads[0], fractions))


@pytest.mark.slow
def test_a_mesh_whose_axes_are_types_is_refused_with_a_way_out():
    explicit, auto = (
        jax.make_mesh((1,), ("a",), axis_types=(kind,))
        for kind in (jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto)
    )
    uploads, spec = np.eye(2, 4, dtype=np.float32), jax.sharding.PartitionSpec("a")
    placed = jax.device_put(uploads, jax.sharding.NamedSharding(auto, spec))
    np.testing.assert_array_equal(contributions.cosine(placed), contributions.cosine(uploads))
    placed = jax.device_put(uploads, jax.sharding.NamedSharding(explicit, spec))
    for function in (contributions.cosine, jax.jit(contributions.cosine_shapley)):
        with pytest.raises(ValueError, match="`updates` must be spread over a mesh .* Auto"):
            function(placed)
    everywhere = jax.sharding.NamedSharding(explicit, jax.sharding.PartitionSpec())
    with jax.set_mesh(explicit):
        for given in (jnp.asarray(uploads), jax.device_put(uploads, everywhere)):
            found = contributions.cosine(given)
            np.testing.assert_allclose(found, contributions.cosine(uploads), atol=1e-6)


def test_absent_agents_do_not_change_the_estimate_of_those_present():
    rng = np.random.default_rng(1)
    updates = rng.normal(size=(9, 20)) + rng.normal(size=20)
    present = ~np.isin(np.arange(9), [2, 3, 7])
    updates[~present] = 0
    found = contributions.measure("mean_field", updates, present=jnp.asarray(present))
    alone = contributions.mean_field_cosine_shapley(updates[present])
    np.testing.assert_allclose(found[present], alone, atol=1e-6)
    assert (found[~present] == 0).all()
    assert contributions.measure("mean_field", updates, present=present.tolist()).shape == (9,)
    for wrong in (np.array([0, 2, 3]), [True, True]):
        with pytest.raises(ValueError, match="`present` must"):
            contributions.measure("mean_field", updates, present=wrong)


def test_sparse_and_masked_arrays_are_refused():
    sparse = jax.experimental.sparse.BCOO.fromdense(jnp.eye(3))
    for wrong in (sparse, {"w": sparse}, np.ma.masked_array(np.eye(3), np.eye(3) > 0)):
        with pytest.raises(ValueError, match="must hold whole arrays, got (BCOO|MaskedArray)"):
            contributions.cosine(wrong)


@pytest.mark.slow
def test_a_permutation_is_paired_with_its_reverse_and_the_error_is_over_pairs():
    """Three agents have three pairs of permutations, one for each agent in the middle."""
    updates = np.array([[3.0, 0.0], [1.0, 2.0], [-1.0, 1.0]])
    worth = twin.coalition_cosines(updates)

    def gains(order):
        found, before = np.zeros(3), 0.0
        for place, agent in enumerate(order):
            after = worth[tuple(sorted(order[: place + 1]))]
            found[agent], before = after - before, after
        return found

    orders = ([1, 0, 2], [0, 1, 2], [0, 2, 1])
    pairs = np.array([(gains(order) + gains(order[::-1])) / 2 for order in orders])
    errors = set()
    for seed in range(6):
        found = contributions.sampled_cosine_shapley(
            jax.random.key(seed), updates, num_permutations=4
        )
        means = {(i, j): (pairs[i] + pairs[j]) / 2 for i in range(3) for j in range(i, 3)}
        (drawn,) = [ij for ij, mean in means.items() if np.allclose(found.values, mean, atol=1e-5)]
        apart = np.abs(pairs[drawn[0]] - pairs[drawn[1]])
        # The standard deviation of two is their distance over the root of two.
        np.testing.assert_allclose(found.standard_errors, apart / 2, atol=1e-5)
        errors.add(drawn[0] == drawn[1])
    assert errors == {True, False}


def test_a_rounding_error_of_a_coalition_grows_with_the_number_of_agents():
    """Of agents 0 and 1 a square of 2e-6 is left: less than 4 N eps times theirs, 2.9e-6."""
    gram = jnp.eye(3).at[0, 1].set(-1 + 1e-6).at[1, 0].set(-1 + 1e-6)
    game = Products(jnp.ones(3), jnp.ones(3), jnp.full(3, 0.5), jnp.asarray(1.0), gram)
    members = jnp.array([[1, 1, 0], [1, 0, 1]])
    found = contributions.coalition_cosines(game, members)
    np.testing.assert_allclose(found, [0, np.sqrt(0.5)], rtol=1e-6)
