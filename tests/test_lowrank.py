"""Updates of low rank: judged by their factors, as their products would be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fairjax as fj
from fairjax import lowrank, trees
from fairjax.mechanisms import Context

SHAPES = [(6, 30, 40, 3), (3, 8, 9, 12)]


def draw(seed, num, m, n, r, lead=()):
    rng = np.random.default_rng(seed)
    b, a = rng.normal(size=(num, *lead, m, r)), rng.normal(size=(num, *lead, r, n))
    return fj.LowRank(b=jnp.asarray(b, jnp.float32), a=jnp.asarray(a, jnp.float32))


def mixed(seed=0, num=6):
    """Returns dense leaves beside products of several shapes and ranks."""
    rng = np.random.default_rng(seed)
    return {
        "one": draw(seed + 1, num, 30, 40, 3),
        "wide": draw(seed + 2, num, 8, 9, 12),
        "batch": draw(seed + 3, num, 5, 7, 2, lead=(2, 3)),
        "bias": jnp.asarray(rng.normal(size=(num, 17)), jnp.float32),
        "scalar": jnp.asarray(rng.normal(size=num), jnp.float32),
    }


def products(tree):
    """Returns the products in float64, by numpy."""
    return jax.tree.map(
        lambda leaf: (
            np.asarray(leaf.b, np.float64) @ np.asarray(leaf.a, np.float64)
            if lowrank.is_low_rank(leaf)
            else np.asarray(leaf, np.float64)
        ),
        tree,
        is_leaf=lowrank.is_low_rank,
    )


def rows(tree):
    """Returns agents' products as a matrix [N, D]."""
    leaves = jax.tree.leaves(products(tree))
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_inner_products_are_those_of_the_products(shape):
    stack = draw(0, *shape)
    wanted = rows(stack) @ rows(stack).T
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    ways = (lowrank._gram_by_factors, lowrank._gram_by_products)
    for way in (*ways, lambda b, a: trees.gram(fj.LowRank(b, a))):
        assert (np.abs(np.asarray(jax.jit(way)(stack.b, stack.a)) - wanted) < 3e-6 * scale).all()
    np.testing.assert_allclose(jax.jit(trees.squared_norms)(stack), np.diag(wanted), rtol=3e-6)
    weights = jnp.linspace(0.1, 1, shape[0])
    total = jax.jit(trees.weighted_sum)(weights, stack)
    assert total.rank == shape[0] * shape[3]
    summed = np.tensordot(np.asarray(weights, np.float64), products(stack), 1)
    np.testing.assert_allclose(total.dense(), summed, atol=1e-5 * np.abs(summed).max())
    for other in (total, total.dense()):
        found = jax.jit(trees.inner_products)(stack, other)
        wanted_inner = rows(stack) @ summed.reshape(-1)
        limit = 1e-5 * np.sqrt(np.diag(wanted)) * np.linalg.norm(summed)
        assert (np.abs(np.asarray(found) - wanted_inner) < limit).all()


SLOW = [
    fj.contributions.cosine_shapley,
    fj.contributions.mean_field_cosine_shapley,
    lambda *given: fj.contributions.gram_cosine_shapley(jax.random.key(0), *given).values,
    lambda *given: fj.contributions.sampled_cosine_shapley(jax.random.key(0), *given).values,
    fj.contributions.cosine_game,
]


@pytest.mark.parametrize(
    "judge",
    [
        fj.contributions.cosine,
        *(pytest.param(judge, marks=pytest.mark.slow) for judge in SLOW),
    ],
)
def test_contributions_are_those_of_the_products(judge):
    tree, weights = mixed(), jnp.array([1.0, 0.5, 2.0, 0.1, 0.0, 1.0])
    wanted = judge(rows(tree), weights)
    np.testing.assert_allclose(judge(tree, weights), wanted, atol=1e-5)


@pytest.mark.slow
def test_coalitions_models_are_those_of_the_products():
    tree = {"w": draw(3, 4, 5, 6, 2), "b": jnp.ones((4, 6))}
    params = {"w": jnp.ones((5, 6)), "b": jnp.zeros(6)}

    def utility(w):
        return jnp.tanh(w["w"].sum() + w["b"].sum())

    dense = jax.tree.map(jnp.asarray, lowrank.dense(tree))
    for judge in (
        fj.contributions.model_utilities,
        functools.partial(fj.contributions.gtg_shapley, jax.random.key(0)),
    ):
        wanted = judge(utility, params, dense)
        np.testing.assert_allclose(judge(utility, params, tree), wanted, atol=1e-5)


@pytest.mark.parametrize("condition", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_equal_products_of_different_factors_have_equal_contributions(condition):
    stack = draw(1, 5, 40, 30, 4)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(5, 4, 4)))[0] for _ in range(2))
    change = left * np.geomspace(1, condition, 4) @ right
    other = fj.LowRank(
        b=jnp.asarray(np.asarray(stack.b, np.float64) @ change, jnp.float32),
        a=jnp.asarray(np.linalg.inv(change) @ np.asarray(stack.a, np.float64), jnp.float32),
    )
    limit = 1e-6 + 3e-7 * condition  # factors in float32 have rounded products
    wanted = np.asarray(fj.contributions.cosine_shapley(stack))
    np.testing.assert_allclose(fj.contributions.cosine_shapley(other), wanted, atol=limit)
    judge = fj.contributions.cosine
    wanted = np.asarray(judge(stack))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), stack, other)
    np.testing.assert_allclose(jax.jit(judge)(other), wanted, atol=limit)
    np.testing.assert_allclose(jax.vmap(judge)(both), [wanted, wanted], atol=limit)


@pytest.mark.parametrize("powers", [(-62, 0), (0, -62), (62, 0), (0, 62), (90, -90), (-90, 30)])
def test_scale_changes_nothing(powers):
    stack = draw(2, 4, 20, 10, 3)
    wanted = np.asarray(fj.contributions.cosine(stack))
    scaled = fj.LowRank(b=stack.b * 2.0 ** powers[0], a=stack.a * 2.0 ** powers[1])
    np.testing.assert_allclose(fj.contributions.cosine(scaled), wanted, atol=1e-6)


def test_a_broken_factor_makes_a_zero_upload():
    stack = draw(2, 5, 20, 10, 3)
    broken = fj.LowRank(
        b=stack.b.at[1, 0, 0].set(jnp.nan), a=stack.a.at[2].set(jnp.inf).at[3].set(0)
    )
    found = np.asarray(fj.contributions.cosine_shapley(broken))
    zeroed = rows(stack)
    zeroed[1:4] = 0
    np.testing.assert_allclose(found, fj.contributions.cosine_shapley(zeroed), atol=1e-5)


def test_uploads_that_cancel_are_worth_nothing():
    one = draw(5, 1, 20, 10, 3)
    opposed = fj.LowRank(b=jnp.concatenate([one.b, -one.b]), a=jnp.concatenate([one.a, one.a]))
    assert not np.asarray(fj.contributions.cosine(opposed)).any()
    assert not np.asarray(fj.contributions.cosine_shapley(opposed)).any()


def test_a_list_of_agents_may_hold_unequal_ranks():
    nodes = [draw(seed, 1, 6, 9, rank) for seed, rank in enumerate((1, 4, 2))]
    agents = [
        {"w": fj.LowRank(b=node.b[0], a=node.a[0]), "bias": jnp.full(3, seed + 1.0)}
        for seed, node in enumerate(nodes)
    ]
    found = fj.contributions.cosine(agents)
    dense = [{**agent, "w": agent["w"].dense()} for agent in agents]
    np.testing.assert_allclose(found, fj.contributions.cosine(dense), rtol=1e-5)
    with pytest.raises(ValueError, match="`updates`"):
        fj.contributions.cosine([agents[0], {**agents[1], "w": jnp.ones((6, 8))}])


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`updates` must hold `LowRank` nodes .* \(3, 5, 2\)"):
        fj.contributions.cosine(fj.LowRank(b=np.ones((3, 5, 2)), a=np.ones((3, 4, 6))))
    none = fj.LowRank(b=np.ones((3, 5, 0)), a=np.ones((3, 0, 6)))
    with pytest.raises(ValueError, match="`updates` must hold `LowRank` nodes .* r at least 1"):
        fj.contributions.cosine({"w": none, "bias": np.ones((3, 2))})
    with pytest.raises(ValueError, match="`aggregate` must hold `LowRank` nodes"):
        fj.rewards.truncate(fj.LowRank(b=np.ones((5, 2)), a=np.ones((4, 6))), np.ones(2))


def test_products_of_agents_are_never_made():
    # The largest intermediate result is one of [N r, N r] numbers, not N m n.
    stack = draw(0, 10, 512, 512, 4)
    made = jax.make_jaxpr(fj.contributions.cosine)(stack)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)
                for part in value if isinstance(value, tuple | list) else ():
                    if hasattr(getattr(part, "jaxpr", part), "eqns"):
                        yield from sizes(getattr(part, "jaxpr", part))

    assert max(sizes(made.jaxpr)) < 512 * 512


@pytest.mark.parametrize("low_rank", [True, False])
def test_a_truncated_reward_has_exactly_its_largest_triples(low_rank):
    aggregate = jax.jit(trees.weighted_sum)(jnp.ones(6) / 6, mixed())
    aggregate = aggregate if low_rank else lowrank.dense(aggregate)
    fractions = jnp.array([0.0, 0.13, 0.5, 0.77, 1.0])
    paid = products(jax.jit(fj.rewards.truncate)(aggregate, fractions))
    matrices, counts = [], []
    for name, leaf in products(aggregate).items():
        shape = leaf.shape
        own = leaf.reshape(-1, *shape[-2:]) if name == "batch" and low_rank else None
        own = leaf.reshape(1, -1, shape[-1] if shape else 1) if own is None else own
        matrices += [(name, place, one) for place, one in enumerate(own)]
        rank = {"one": 18, "wide": 72, "batch": 12}.get(name, 10**9) if low_rank else 10**9
        counts += [min(*one.shape, rank) for one in own]
    triples = []
    for (name, place, one), count in zip(matrices, counts, strict=True):
        u, s, v = np.linalg.svd(one, full_matrices=False)
        triples += [(s[k], name, place, np.outer(u[:, k] * s[k], v[k])) for k in range(count)]
    triples.sort(key=lambda triple: -triple[0])
    for agent, fraction in enumerate(np.asarray(fractions)):
        kept = triples[: int(np.floor(fraction * np.float32(len(triples))))]
        wanted = {(name, place): np.zeros_like(one) for name, place, one in matrices}
        for _, name, place, part in kept:
            wanted[name, place] = wanted[name, place] + part
        for (name, place), one in wanted.items():
            found = paid[name][agent].reshape(-1, *one.shape)[place]
            np.testing.assert_allclose(found, one, atol=2e-5)


def test_the_order_of_fractions_is_that_of_distance_and_cosine():
    aggregate = jax.jit(trees.weighted_sum)(jnp.ones(6) / 6, mixed(4))
    whole = rows(jax.tree.map(lambda leaf: leaf[None], aggregate))[0]
    paid = rows(fj.rewards.truncate(aggregate, jnp.linspace(0, 1, 12)))
    distances = np.linalg.norm(paid - whole, axis=1)
    lengths = np.linalg.norm(paid, axis=1)
    assert (np.diff(distances) <= 1e-4).all()
    assert (np.diff(lengths) >= -1e-4).all()
    cosines = paid @ whole / np.maximum(lengths, 1e-9) / np.linalg.norm(whole)
    np.testing.assert_allclose(cosines, lengths / np.linalg.norm(whole), atol=1e-5)
    np.testing.assert_allclose(paid[-1], whole, atol=2e-5)


def test_fractions_count_in_their_own_dtype():
    aggregate = np.random.default_rng(0).normal(size=(120, 100))
    for dtype, count in ((np.float64, 28), (np.float32, 29)):  # of .29 * 100
        paid = fj.rewards.truncate(aggregate, np.array([0.29], dtype))
        assert np.linalg.matrix_rank(np.asarray(paid[0], np.float64), tol=1e-3) == count


def test_columns_of_padding_are_no_triples():
    stack = draw(0, 1, 20, 30, 4)
    padded = fj.LowRank(
        b=jnp.pad(stack.b[0], ((0, 0), (0, 4))), a=jnp.pad(stack.a[0], ((0, 4), (0, 0)))
    )
    paid = fj.rewards.truncate(padded, jnp.array([0.5])).dense()[0]
    assert np.linalg.matrix_rank(np.asarray(paid), tol=1e-3) == 2


@pytest.mark.slow
def test_no_matrix_of_that_rank_found_by_descent_is_closer():
    total = trees.weighted_sum(jnp.ones(6) / 6, draw(0, 6, 12, 10, 2))
    paid = fj.rewards.truncate(total, jnp.array([0.5])).dense()[0]
    rank = np.linalg.matrix_rank(np.asarray(paid), tol=1e-4)
    whole = total.dense()

    def loss(factors):
        return jnp.square(factors[0] @ factors[1] - whole).sum()

    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed))
        factors = (jax.random.normal(keys[0], (12, rank)), jax.random.normal(keys[1], (rank, 10)))

        def step(factors, _):
            slope = jax.grad(loss)(factors)
            return jax.tree.map(lambda one, by: one - 0.02 * by, factors, slope), None

        found = jax.lax.scan(step, factors, length=4000)[0]
        assert jnp.square(paid - whole).sum() <= loss(found) * (1 + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cgsv", {"beta": 2.0}),
        ("cgsv", {"mask": "leaf"}),
        ("cgsv_released", {}),
        ("fedavg", {}),
        ("standalone", {}),
        ("accounts", {}),
        ("proportional", {}),
        ("flora", {}),
    ],
)
def test_mechanisms_answer_as_for_the_products(name, options):
    tree = {"w": draw(1, 5, 30, 40, 3), "bias": mixed(num=5)["bias"]}
    dense = jax.tree.map(jnp.asarray, lowrank.dense(tree))
    mechanism = getattr(fj.mechanisms, name)(**options)
    assert mechanism.low_rank
    one = jax.tree.map(lambda leaf: leaf[0], dense)
    context = Context(shard_sizes=jnp.array([10, 20, 30, 40, 50]))
    found, wanted = (
        lowrank.dense(mechanism.update(given, mechanism.init(5, one), context)[0])
        for given in (tree, dense)
    )
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, atol=3e-5 * max(1, float(jnp.abs(right).max())))


@pytest.mark.slow
def test_ranks_are_rewards_in_cgsv():
    tree = {"w": draw(1, 5, 30, 40, 3), "bias": mixed(num=5)["bias"]}
    mechanism = fj.mechanisms.cgsv(mask="rank", beta=2.0)
    context = Context(shard_sizes=jnp.array([10, 20, 30, 40, 50]))
    outcome, _ = mechanism.update(tree, mechanism.init(5), context)
    kept = (np.abs(np.asarray(outcome.rewards["w"].b)) > 0).any(1).sum(1)
    total = kept + (np.asarray(outcome.rewards["bias"]) != 0).any(1)
    assert (total == np.floor(np.asarray(outcome.fractions) * np.float32(16))).all()
    assert (np.diff(total[np.argsort(outcome.importance)]) >= 0).all()


def shares_of(context):
    sizes = np.asarray(context.shard_sizes, np.float64)
    return sizes / sizes.sum()


def test_flora_adds_products_exactly_and_averaged_factors_do_not():
    stack, context = draw(0, 4, 32, 24, 3), Context(shard_sizes=jnp.array([10, 20, 30, 40]))
    wanted = np.tensordot(shares_of(context), products(stack), 1)
    found = {}
    for name in ("flora", "fedit", "zero_padding"):
        mechanism = getattr(fj.mechanisms, name)()
        outcome, _ = mechanism.update(stack, mechanism.init(4), context)
        found[name] = np.abs(np.asarray(outcome.aggregate.dense()) - wanted).max()
    assert found["flora"] < 1e-6 * np.abs(wanted).max()
    assert found["fedit"] > 0.1 * np.abs(wanted).max()
    shares = shares_of(context)
    b, a = (np.tensordot(shares, np.asarray(part, np.float64), 1) for part in stack)
    outcome, _ = fj.mechanisms.fedit().update(stack, (), context)
    np.testing.assert_allclose(outcome.aggregate.dense(), b @ a, atol=1e-5)


def test_one_agent_alone_is_the_same_under_all_three():
    stack, context = draw(0, 1, 16, 24, 3), Context(shard_sizes=jnp.array([10]))
    for name in ("flora", "fedit", "zero_padding"):
        outcome, _ = getattr(fj.mechanisms, name)().update(stack, (), context)
        np.testing.assert_allclose(outcome.aggregate.dense(), products(stack)[0], atol=1e-5)


@pytest.mark.parametrize("side", ["b", "a"])
def test_a_product_is_small_if_no_entry_can_exceed_the_bound(side):
    """Entries of 3 and 4 at rank 2: every entry of the product is 24; the other one's is 24 / 4."""
    factors = {"b": jnp.full((2, 5, 2), 3.0), "a": jnp.full((2, 2, 6), 4.0)}
    factors[side] = factors[side] * jnp.array([1.0, 0.25])[:, None, None]
    for most, found in ((24, [True, True]), (23, [False, True]), (5, [False, False])):
        assert lowrank.small(lowrank.LowRank(**factors), most).tolist() == found
