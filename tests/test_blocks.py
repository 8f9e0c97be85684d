"""Blocks: products of stacked rows without another copy of the stack."""

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fairjax as fj
from fairjax import blocks, rowwise, trees


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 64)


@pytest.mark.parametrize("columns", [1, 22, 150, 0])
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param(ml_dtypes.bfloat16, marks=pytest.mark.slow)]
)
def test_products_of_blocks_are_those_of_the_whole(small_blocks, columns, dtype):
    rng = np.random.default_rng(columns)
    x = rng.normal(size=(3, columns, 1)).astype(dtype)
    units = np.array([1.0, 0.25, 4.0], np.float32)
    weights = rng.normal(size=(2, 3)).astype(np.float32)
    one = rng.normal(size=columns).astype(np.float32)
    scaled = blocks.InUnits(jnp.asarray(x), jnp.asarray(units))
    whole = x.reshape(3, -1).astype(np.float64)
    error = {"rtol": 1e-2 if dtype != "float32" else 1e-5, "atol": 1e-4}
    for leaf, rows in ((jnp.asarray(x), whole), (scaled, whole / units[:, None])):
        np.testing.assert_allclose(blocks.squared_norms(leaf), (rows**2).sum(1), **error)
        np.testing.assert_allclose(blocks.gram(leaf), rows @ rows.T, **error)
        np.testing.assert_allclose(blocks.inner_products(leaf, one), rows @ one, **error)
        sums = blocks.weighted_sum(weights, leaf)
        assert sums.dtype == x.dtype
        np.testing.assert_allclose(
            np.asarray(sums, np.float64), weights @ rows, **error | {"atol": 0.1}
        )


@pytest.mark.parametrize(
    "judge",
    [
        fj.contributions.cosine,
        fj.contributions.cosine_shapley,
        fj.contributions.mean_field_cosine_shapley,
        lambda updates: trees.weighted_sum(jnp.ones(8), updates)[:1],
        lambda updates: fj.mechanisms.cgsv().update(
            updates, jnp.ones(8) / 8, fj.mechanisms.Context(shard_sizes=jnp.ones(8))
        )[1],
    ],
)
def test_judging_makes_no_second_copy_of_the_uploads(judge):
    uploads = jax.ShapeDtypeStruct((8, 2**20), "float32")
    plan = jax.jit(judge).lower(uploads).compile().memory_analysis()
    assert plan.temp_size_in_bytes < 0.5 * 4 * 8 * 2**20


def test_rows_of_extraordinary_length_are_judged_in_blocks(small_blocks):
    x = np.random.default_rng(0).normal(size=(4, 90)).astype(np.float32)
    powers = np.array([-100.0, 70.0, 0.0, 30.0])
    scaled = x * np.exp2(powers)[:, None].astype(np.float32)
    weights = np.exp2(-powers.astype(np.float32))
    np.testing.assert_allclose(
        fj.contributions.cosine_shapley(scaled, weights), fj.contributions.cosine_shapley(x), 1e-5
    )


@pytest.mark.parametrize("block", [0, 2**18])
@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_rows_are_told_apart_as_by_looking_at_every_entry(monkeypatch, block, dtype):
    monkeypatch.setattr(blocks, "CPU_BLOCK", block)
    limits = ml_dtypes.finfo(dtype)
    ends = [
        1,
        0,
        -0.0,
        np.nan,
        np.inf,
        -np.inf,
        float(limits.max),
        2 * float(limits.smallest_normal),
    ]
    each = float(limits.max) / 8 / len(ends)
    ends += [each * 0.9, -each * 1.1]
    each = float(limits.max) / 8 / len(ends)
    x = np.zeros((len(ends), 3), np.float64)
    x[:, 1] = ends
    x = {"a": x.astype(dtype), "b": np.zeros((len(ends), 2, 2), dtype)}
    wide = x["a"].astype(np.float64)
    np.testing.assert_array_equal(jax.jit(rowwise.finite_rows)(x), np.isfinite(wide).all(1))
    np.testing.assert_array_equal(jax.jit(rowwise.zero_rows)(x), (wide == 0).all(1))
    addable = (np.abs(wide) <= each).all(1)
    for held, room in ((1.0, True), (np.nan, True), (limits.max / 2, False)):
        held = {"w": np.full((2, 2), held, dtype), "scale": np.ones((), dtype)}
        found = jax.jit(rowwise.addable_rows)(x, held)
        np.testing.assert_array_equal(found, addable & room)
    fine = {"a": np.ones((4, 3), dtype)}
    for function in (rowwise.finite_rows, lambda rows: ~rowwise.zero_rows(rows)):
        assert jax.jit(function)(fine).all()


@pytest.mark.slow
def test_blocks_are_judged_within_a_shard_map():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("groups",))
    spec = jax.sharding.PartitionSpec("groups")

    def judge(group):
        return fj.contributions.cosine_shapley(group[0])[None]

    x = jax.random.normal(jax.random.key(0), (1, 5, 70_001))
    for scale in (1.0, 1e-30):
        found = jax.jit(jax.shard_map(judge, mesh=mesh, in_specs=spec, out_specs=spec))(scale * x)
        np.testing.assert_allclose(found[0], fj.contributions.cosine_shapley(x[0]), 1e-4)


@pytest.mark.slow
def test_contributions_are_exported_for_any_number_of_parameters():
    (size,) = jax.export.symbolic_shape("d")
    like = jax.ShapeDtypeStruct((5, size), np.float32)
    for judge in (fj.contributions.cosine, fj.contributions.cosine_shapley):
        exported = jax.export.export(jax.jit(judge))(like)
        x = jax.random.normal(jax.random.key(0), (5, 300))
        np.testing.assert_allclose(exported.call(x), judge(x), 1e-5)


def test_held_parameters_may_have_no_entries(small_blocks):
    held = {"none": jnp.zeros((0, 5)), "some": jnp.ones((8, 20))}
    assert rowwise.addable_rows({"w": jnp.ones((3, 2))}, held).all()


def test_the_smallest_dtype_says_which_rows_can_be_added():
    narrow = jnp.array([[1e4, 1], [2, 2]], jnp.float16)
    stacked = {"narrow": narrow, "wide": jnp.ones((2, 3), jnp.float32)}
    found = rowwise.addable_rows(stacked, {"narrow": jnp.zeros((2, 2), jnp.float16)})
    assert found.tolist() == [False, True]  # two rows, of at most an eighth of 65504 together
    with jax.numpy_dtype_promotion("strict"):
        assert rowwise.finite_rows(stacked).all()


def test_whole_numbers_are_summed():
    counts = {"count": jnp.array([[2, 4], [4, 8]])}
    total = trees.weighted_sum(jnp.array([0.5, 0.5]), counts)["count"]
    assert (total.dtype, total.tolist()) == (jnp.int32, [3, 6])
