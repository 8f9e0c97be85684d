"""Data sets are checked once, shards are rows of them, and every agent gets a shard."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import sklearn.datasets
import sklearn.model_selection

from fairjax import data
from fairjax.data import Dataset, Shards

SPLITS = pytest.mark.parametrize("split", data.SPLITS.values(), ids=data.SPLITS)
WITHOUT_REPLACEMENT = pytest.mark.parametrize("name", ["uniform", "power_law", "dirichlet"])
AGENTS = pytest.mark.parametrize("num_agents", [1, 2, 5, 17, 100])
SEEDS = pytest.mark.parametrize("seed", [0, 1, 7])


def examples(num_examples: int = 100, num_classes: int = 10) -> Dataset:
    x = np.arange(num_examples * 3.0).reshape(num_examples, 3)
    return Dataset(x, np.arange(num_examples) % num_classes, num_classes)


def all_rows(shards: Shards) -> np.ndarray:
    return np.concatenate([shards.rows(agent) for agent in range(shards.num_agents)])


# Datasets


def test_digits_are_those_of_scikit_learn_split_by_it() -> None:
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    split = sklearn.model_selection.train_test_split(
        x.reshape(-1, 8, 8, 1) / 16, y, test_size=360, random_state=0, stratify=y
    )
    for part, x, y in zip(data.load("digits"), split[:2], split[2:], strict=True):
        expected = Dataset(x, y, 10)
        np.testing.assert_array_equal(part.x, expected.x)
        np.testing.assert_array_equal(part.y, expected.y)
        assert part.num_classes == 10


@pytest.mark.parametrize(
    ("x", "y", "num_classes", "message"),
    [
        (np.ones((0, 2)), [], 2, "at least one example"),
        (np.ones((3, 2)), [0, 1], 2, "equally long, got 3 and 2"),
        (np.ones((2, 2)), [0, 2], 2, r"in \[0, 2\), got 2 in row 1"),
        (np.ones((2, 2)), [-1, 0], 2, "got -1 in row 0"),
        (np.ones((2, 2)), [0, 0.5], 2, "got 0.5 in row 1"),
        (np.ones((2, 2)), [0, np.nan], 2, "got nan in row 1"),
        (np.ones((2, 2)), np.eye(2), 2, "argmax"),
        (np.ones((2, 2)), [[0], [1]], 2, r"got shape \(2, 1\). Pass y.ravel\(\)"),
        (np.ones((2, 2)), [[1, 1], [0, 0]], 2, "have several or none"),
        (np.ones((2, 2)), [[0.5, 0.5], [1, 0]], 2, r"got shape \(2, 2\).$"),
        (np.ones((2, 2)), ["a", "b"], 3, "`num_classes` must be the number of `class_names`, 2"),
        (np.ones((2, 2)), ["a", None], 2, "must be whole numbers"),
        (np.ones((2, 2)), ["a", np.nan], 2, "only names of classes, got nan"),
        (np.ones((2, 2)), [1, 2], 2, "got 2 in row 1. Classes count from 0: pass y - 1"),
        (np.ones((2, 2)), [0, None], 2, "whole numbers, got None in row 1"),
        (np.ones((2, 2)), [0j, 1], 2, "whole numbers, got dtype complex128"),
        (np.ones((2, 2)), np.array([0, 1], "m8[s]"), 2, "whole numbers, got dtype timedelta64"),
        (np.ones((2, 2)), [0, 2**70], 2, "whole numbers, got dtype object"),
        (np.ones((2, 2)), None, 2, "`y` must be an array, got None"),
        (np.array(["a", "b"]), [0, 1], 2, "must be numbers, got 'a' in row 0"),
        ([[1, "red"], [2, "blue"]], [0, 1], 2, "must be numbers, got 'red' in row 0 of column 1"),
        ([["1.5"], ["2"]], [0, 1], 2, "must be numbers, got dtype <U3"),
        ([[1, 2], [3]], [0, 1], 2, "`x` must be an array, got a list whose rows are not equally"),
        (np.ones((2, 2)) * 1j, [0, 1], 2, "must be numbers, got dtype complex128"),
        (np.array(["2020-01-01"] * 2, "M8[D]"), [0, 1], 2, "must be numbers, got dtype datetime64"),
        (np.ma.masked_array(np.ones(2), [0, 1]), [0, 1], 2, "must have no masked entries"),
        (scipy.sparse.csr_array(np.eye(2)), [0, 1], 2, r"must be dense.*toarray\(\)"),
        (
            jax.random.split(jax.random.key(0)),
            [0, 1],
            2,
            "`x` must be an array, got a PRNGKeyArray",
        ),
        ({"a": [1, 2]}, [0, 1], 2, "`x` must be an array, got {'a'"),
        (3, [0], 2, "at least one example, got shape"),
        (np.array([2**40, 0]), [0, 1], 2, "fit int32.*got 1099511627776"),
        (np.array([-(2**40), 0]), [0, 1], 2, "fit int32.*got -1099511627776"),
        (np.ones((2, 2)), [0, 0], 1, "`num_classes` must be a whole number of at least 2"),
        (np.ones((2, 2)), [0, 1], 2.0, "`num_classes` must be a whole number"),
        (
            np.ones((2, 2)),
            [0, 1],
            2**40,
            "`num_classes` must .* at most 16,777,216, got ",
        ),
    ],
)
def test_a_broken_dataset_is_refused_with_the_reason(x, y, num_classes, message):
    with pytest.raises(ValueError, match=message):
        Dataset(x, y, num_classes)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_floats_become_float32(dtype):
    assert Dataset(np.ones((2, 2), dtype), [0, 1], 2).x.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_tokens_stay_whole_numbers(dtype):
    assert Dataset(np.ones((2, 2), dtype), [0, 1], 2).x.dtype == np.int32


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (np.array([[1, 2.5], [3, True]], object), np.float32),
        (np.array([[True], [False]]), np.float32),
        (jnp.array([[1], [2]]), np.int32),
        (np.array([np.ones(2), np.ones(2)], object), np.float32),
    ],
)
def test_what_holds_numbers_is_taken_as_numbers(x, dtype):
    dataset = Dataset(x, np.array([0, 1], object), 2)
    np.testing.assert_array_equal(dataset.x, np.array(np.asarray(x).tolist()).astype(dtype))
    assert dataset.x.dtype == dtype


class Frame:
    """The parts of a DataFrame that are used: columns, and values as an array of objects."""

    def __init__(self, **columns):
        self.columns = list(columns)
        self.values = list(columns.values())

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, object).T


def test_the_values_of_a_frame_are_taken_and_a_column_of_text_is_named():
    dataset = Dataset(Frame(age=[20, 30], paid=[True, False]), [0, 1], 2)
    np.testing.assert_array_equal(dataset.x, [[20, 1], [30, 0]])
    with pytest.raises(ValueError, match="got 'red' in row 0 of column 'colour'"):
        Dataset(Frame(age=[20, 30], colour=["red", "blue"]), [0, 1], 2)
    with pytest.raises(ValueError, match=r"Pass y.to_numpy\(\).ravel\(\)"):
        Dataset(np.ones((2, 2)), Frame(label=[0, 1]), 2)


def test_a_tensor_that_numpy_cannot_read_is_answered_in_its_own_words():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("Use tensor.detach().numpy() instead.")

    with pytest.raises(ValueError, match=r"`x`.*got a Tensor.*Use tensor.detach\(\)"):
        Dataset(Tensor(), [0, 1], 2)


def test_data_and_shards_are_shown_in_two_lines():
    train = examples()
    assert repr(train) == "Dataset(x=float32[100, 3], y=int32[100], num_classes=10)"
    shards = data.power_law(train, num_agents=4)
    lines = str(dataclasses.replace(shards, validation=train)).splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) < 120
    assert f"sizes=int32[4] from {shards.sizes.min()} to {shards.sizes.max()}" in lines[1]
    assert "indices=int32[4," in repr(jax.eval_shape(lambda s: s, shards))
    assert "indices=None" in repr(jax.tree.map(lambda _: None, shards))


def test_broken_features_are_accepted():
    dataset = Dataset([[np.nan], [np.inf], [1e300]], [0, 1, 1], 2)
    assert np.isnan(dataset.x[0, 0])
    assert np.isinf(dataset.x[1:]).all()


def test_float32_features_are_not_copied():
    x = np.ones((4, 2), np.float32)
    assert Dataset(x, [0, 1, 0, 1], 2).x is x


def test_a_dataset_passes_through_jit_vmap_and_tree_map():
    dataset = examples(6, 3)
    doubled = jax.jit(lambda d: jax.tree.map(lambda leaf: 2 * leaf, d))(dataset)
    np.testing.assert_array_equal(doubled.x, 2 * dataset.x)
    assert doubled.num_classes == 3
    assert jax.vmap(lambda d: d.x.sum(), in_axes=(0,))(dataset).shape == (6,)
    assert jax.tree.map(lambda _: None, dataset).num_classes == 3
    assert jax.eval_shape(lambda d: d, dataset).x.shape == (6, 3)
    assert len(jax.tree.map(lambda leaf: leaf[:0], dataset)) == 0


def test_a_dataset_made_of_tracers_passes():
    dataset = examples(6, 3)
    flipped = jax.jit(lambda d: dataclasses.replace(d, y=2 - d.y))(dataset)
    np.testing.assert_array_equal(flipped.y, 2 - dataset.y)


def test_taking_rows_keeps_their_order():
    taken = examples().take([7, 3, 7])
    np.testing.assert_array_equal(taken.y, [7, 3, 7])


@pytest.mark.parametrize("rows", [[], [-1], [100], [0.0], [[0]], np.ones(100, bool)])
def test_rows_that_are_none_are_refused(rows):
    with pytest.raises(ValueError, match="`rows`|rows must"):
        examples().take(rows)


@SEEDS
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.25, 0.5, 0.999])
def test_holding_out_keeps_every_example_once_and_the_mixture(fraction, seed):
    dataset = examples(203, 4)
    rest, held = data.hold_out(dataset, fraction, seed)
    assert len(held) == min(max(round(fraction * 203), 1), 202)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest.x, held.x]), axis=0), dataset.x)
    quotas = np.bincount(dataset.y) * len(held) / 203
    assert np.abs(np.bincount(held.y, minlength=4) - quotas).max() <= 1


def test_every_example_of_a_class_is_held_out_equally_often():
    held = [data.hold_out(examples(20, 2), 0.2, seed)[1].x[:, 0] for seed in range(600)]
    times = np.unique(np.concatenate(held), return_counts=True)[1]
    # Binomial, 600 draws with probability .2: mean 120, standard deviation 9.8.
    assert len(times) == 20
    assert np.abs(times - 120).max() < 40


@pytest.mark.parametrize("fraction", [0, 1, -0.1, np.nan])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="`fraction`"):
        data.hold_out(examples(), fraction)


# Shards


def test_padding_repeats_an_agents_own_first_row():
    shards = Shards.from_indices(examples(), [[4, 5, 6], [9]])
    assert shards.indices.dtype == shards.sizes.dtype == np.int32
    np.testing.assert_array_equal(shards.indices, [[4, 5, 6], [9, 9, 9]])


def test_class_counts_leave_padding_out_and_count_rows_as_often_as_they_occur():
    shards = Shards.from_indices(examples(6, 3), [[0, 3, 3, 1], [5]])
    np.testing.assert_array_equal(shards.class_counts(), [[3, 1, 0], [0, 0, 1]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one agent"),
        ([[0], []], "agent 1 must hold at least one"),
        ([[0], [100]], r"agent 1 must be in \[0, 100\), got row 100"),
        ([[-1]], "agent 0 must be in"),
        ([[0.5]], "agent 0 must be whole numbers"),
        ([0, 1], "agent 0 must be one-dimensional"),
        ([[[0], [1, 2]]], "agent 0 must be an array, got a list whose rows are not equally long"),
        ([[True, False]], r"agent 0 must be whole numbers, got dtype bool. Pass np.flatnonzero"),
        ({0: [1]}, "`rows` must be a sequence"),
        (None, "`rows` must be a sequence.*got None"),
        ([[0] * 300, *([[0]] * 10**6)], r"at most 268,435,456.*got 1000001 \* 300"),
    ],
)
def test_rows_that_make_no_shards_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        Shards.from_indices(examples(), rows)


def by_hand(**changes):
    fields = {"indices": [[4, 5, 6], [9, 9, 9]], "sizes": [3, 1], "validation": None, **changes}
    return Shards(examples(), **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [[4, 5, 100], [9, 9, 9]]}, r"`indices`.*in \[0, 100\), got row 100"),
        ({"indices": [[4, 5, -1], [9, 9, 9]]}, "`indices`.*got row -1"),
        ({"indices": [[4, 5, 6], [9]]}, "`indices`.*rows are not equally long"),
        ({"indices": np.ones((2, 3))}, "`indices`.*whole numbers, got dtype float64"),
        ({"indices": np.ones((2, 100), bool)}, r"`indices`.*np.flatnonzero\(mask\)"),
        ({"indices": [4, 5, 6]}, r"`indices` must be \[N, M\].*got shape \(3,\)"),
        ({"indices": np.ones((2, 0), int)}, r"`indices` must be \[N, M\]"),
        ({"indices": None}, "`indices` must be an array, got None"),
        ({"sizes": [3, 0]}, r"`sizes` must be in \[1, 3\].*got 0 of agent 1"),
        ({"sizes": [4, 1]}, "`sizes`.*got 4 of agent 0"),
        ({"sizes": np.array([-1, 1])}, "`sizes`.*got -1 of agent 0"),
        ({"sizes": [3.0, 1.0]}, "`sizes` must be whole numbers, got dtype float64"),
        ({"sizes": [3]}, r"`sizes` must have shape \(2,\)"),
        ({"validation": [1]}, "`validation` must be a Dataset"),
        ({"validation": Dataset(np.ones((2, 4)), [0, 1], 10)}, r"`validation`.*\(3,\), got \(4,\)"),
        ({"validation": Dataset(np.ones((2, 3)), [0, 1], 2)}, "`validation`.*classes 10, got 2"),
        ({"validation": Dataset(np.ones((2, 3), int), [0, 1], 10)}, "dtype float32, got int32"),
    ],
)
def test_shards_made_by_hand_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        by_hand(**changes)


def test_shards_made_by_hand_are_those_made_from_rows():
    found, wanted = by_hand(), Shards.from_indices(examples(), [[4, 5, 6], [9]])
    for one in (found, by_hand(indices=jnp.array([[4, 5, 6], [9, 9, 9]]), sizes=jnp.array([3, 1]))):
        np.testing.assert_array_equal(one.indices, wanted.indices)
        assert one.indices.dtype == one.sizes.dtype == np.int32
    on_device = jax.device_put(found)
    again = dataclasses.replace(on_device, validation=on_device.data)
    assert again.indices is on_device.indices


def test_transformations_of_shards_are_not_checked():
    shards = by_hand()
    assert jax.tree.map(lambda leaf: -leaf, shards).sizes.tolist() == [-3, -1]
    traced = jax.jit(lambda s, sizes: dataclasses.replace(s, sizes=sizes).sizes)
    np.testing.assert_array_equal(traced(shards, np.array([9, 0])), [9, 0])
    two = data.stacked([shards, shards])
    assert jax.vmap(lambda s: s.sizes.sum())(two).tolist() == [4, 4]
    names = [str(path[-1]) for path, _ in jax.tree_util.tree_leaves_with_path(shards)]
    assert names == [".x", ".y", ".indices", ".sizes"]


def test_stacked_shards_keep_their_own_held_out_data():
    held = [examples().take(rows) for rows in ([1, 2], [8, 9])]
    both = data.stacked([by_hand(validation=one) for one in held])
    np.testing.assert_array_equal(both.validation.y, [[1, 2], [8, 9]])


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([], "sequence of at least one Shards"),
        (None, "sequence of at least one Shards, got None"),
        ([examples()], r"`shards\[0\]` must be a Shards"),
        ([by_hand(), data.uniform(examples(), num_agents=3)], r"`shards\[1\].sizes`.*\(2,\)"),
        ([by_hand(), by_hand(validation=examples())], r"`shards\[1\].validation`.*None, got 100"),
        (
            [by_hand(), data.uniform(Dataset(np.ones((9, 3), int), [0] * 9, 10), num_agents=2)],
            r"`shards\[1\]`.*dtype float32, got int32",
        ),
    ],
)
def test_shards_that_cannot_be_stacked_are_named(shards, message):
    with pytest.raises(ValueError, match=message):
        data.stacked(shards)


def test_shards_pass_through_jit():
    shards = data.uniform(examples(), num_agents=4)
    again = jax.jit(lambda s: s)(shards)
    np.testing.assert_array_equal(again.class_counts(), shards.class_counts())
    assert again.num_agents == 4


# Splits


@SPLITS
@AGENTS
@SEEDS
def test_nobody_gets_nothing_and_the_seed_decides(split, num_agents, seed):
    train = examples()
    shards = split(train, num_agents=num_agents, seed=seed)
    assert shards.num_agents == num_agents
    assert shards.sizes.min() >= 1
    again = split(train, num_agents=num_agents, seed=seed)
    np.testing.assert_array_equal(shards.indices, again.indices)
    other = split(train, num_agents=num_agents, seed=seed + 1)
    assert not np.array_equal(all_rows(shards), all_rows(other))


@WITHOUT_REPLACEMENT
@AGENTS
@SEEDS
def test_no_example_is_dealt_twice(name, num_agents, seed):
    rows = all_rows(data.SPLITS[name](examples(), num_agents=num_agents, seed=seed))
    assert len(np.unique(rows)) == len(rows)
    assert len(rows) == (100 // num_agents * num_agents if name == "uniform" else 100)


@WITHOUT_REPLACEMENT
def test_every_example_is_dealt_equally_often(name):
    split, train = data.SPLITS[name], examples(20, 2)
    dealt = [
        all_rows(split(train, num_agents=2, samples_per_agent=2, seed=seed)) for seed in range(600)
    ]
    times = np.bincount(np.concatenate(dealt), minlength=20)
    # Binomial, 600 draws of 4 of 20: mean 120, standard deviation 9.8.
    assert np.abs(times - 120).max() < 40


@SPLITS
@SEEDS
def test_samples_per_agent_fixes_the_total(split, seed):
    shards = split(examples(), num_agents=7, seed=seed, samples_per_agent=3)
    assert shards.sizes.sum() == 21


@SPLITS
@pytest.mark.parametrize(
    "options",
    [
        {"num_agents": 0},
        {"num_agents": 101},
        {"num_agents": 2.0},
        {"num_agents": 2, "seed": -1},
        {"num_agents": 2, "samples_per_agent": 0},
        {"num_agents": 10**9},
        {"num_agents": 2, "samples_per_agent": 10**9},
        {"num_agents": 10**9, "samples_per_agent": 10**9},
        {"num_agents": 10**9, "samples_per_agent": 1},
        {"num_agents": 2, "samples_per_agent": np.int32(2**30)},
        {"num_agents": 2, "seed": 2**64},
        {"num_agents": 2, "seed": 1.0},
    ],
)
def test_options_out_of_range_are_refused(split, options):
    with pytest.raises(ValueError, match="must be"):
        split(examples(), **options)


@SPLITS
@pytest.mark.parametrize("train", [None, (examples(), examples()), np.ones((9, 2)), "digits"])
def test_what_is_no_dataset_cannot_be_split(split, train):
    with pytest.raises(ValueError, match="`train` must be a Dataset"):
        split(train, num_agents=2)
    with pytest.raises(ValueError, match="`dataset` must be a Dataset"):
        data.hold_out(train)


@pytest.mark.parametrize(("name", "a"), [("dir3", 3), ("dir7", 7)])
def test_class_proportions_of_agents_are_drawn_around_those_of_the_data(name, a):
    y = np.repeat([0, 1, 3], [500, 300, 200])  # class 2 has no example
    train = data.Dataset(x=np.ones((1000, 1)), y=y, num_classes=4)
    shards = data.SPLITS[name](train, num_agents=3000, seed=0, samples_per_agent=200)
    assert set(shards.sizes) == {200}
    shares = shards.class_counts() / 200
    frequencies = np.array([0.5, 0.3, 0, 0.2])
    np.testing.assert_allclose(shares.mean(0), frequencies, atol=0.02)
    variances = frequencies * (1 - frequencies) / (a + 1)
    np.testing.assert_allclose(shares.var(0), variances, rtol=0.06)
    for agent in range(20):  # an example twice only where there are too few
        rows, counts = np.unique(shards.rows(agent), return_counts=True)
        of_class = shards.class_counts()[agent]
        assert counts.max() == 1 or (of_class > [500, 300, 0, 200]).any()
        assert len(rows) <= 200
    for wrong in (0, -1.0, "3", True, np.inf):
        with pytest.raises(ValueError, match="`concentration` must be a finite number above 0"):
            data.mixtures(train, num_agents=2, concentration=wrong)


@WITHOUT_REPLACEMENT
def test_more_examples_than_there_are_cannot_be_dealt(name):
    with pytest.raises(ValueError, match="10 \\* 11 = 110"):
        data.SPLITS[name](examples(), num_agents=11, samples_per_agent=10)


def test_a_power_law_has_the_published_sizes():
    sizes = data.power_law(examples(3000), num_agents=5).sizes
    assert np.abs(sizes - [71, 336, 600, 865, 1128]).max() <= 1


@pytest.mark.parametrize("num_agents", [1, 3, 10, 333, 1000])
def test_a_power_law_never_falls_and_loses_no_example(num_agents):
    sizes = data.power_law(examples(1000), num_agents=num_agents).sizes
    assert sizes.sum() == 1000
    assert (np.diff(sizes) >= 0).all()


def test_class_imbalance_adds_classes_from_the_first_on_and_spreads_evenly():
    counts = data.class_imbalance(examples(), num_agents=5, samples_per_agent=23).class_counts()
    np.testing.assert_array_equal((counts > 0).sum(1), [1, 3, 5, 7, 10])
    for row in counts:
        known = row[row > 0]
        assert known.max() - known.min() <= 1
        assert (row[: len(known)] > 0).all()


def test_class_imbalance_may_ask_for_more_than_there_is():
    shards = data.class_imbalance(examples(), num_agents=3, samples_per_agent=500)
    np.testing.assert_array_equal(shards.sizes, 500)


def test_class_imbalance_draws_with_replacement():
    rows = data.class_imbalance(examples(), num_agents=1, samples_per_agent=10).rows(0)
    assert set(rows) < set(range(0, 100, 10))  # of ten draws of ten, all differ once in 2,756


def test_class_imbalance_names_the_class_that_is_absent():
    train = Dataset(np.ones((4, 2)), [0, 1, 3, 3], 4)
    with pytest.raises(ValueError, match="none of class 2"):
        data.class_imbalance(train, num_agents=2)


@SEEDS
@pytest.mark.parametrize("concentration", [1e-310, 1e-6, 0.1, np.float16(0.5), 1, 50.0, 1e300])
def test_a_dirichlet_split_ends_and_is_whole_at_any_concentration(concentration, seed):
    shards = data.dirichlet(examples(), num_agents=9, seed=seed, concentration=concentration)
    assert shards.sizes.min() >= 1
    np.testing.assert_array_equal(np.sort(all_rows(shards)), np.arange(100))


def test_a_dirichlet_split_gives_a_class_to_one_agent_or_to_all_alike():
    train = examples(4000, 4)
    rough = data.dirichlet(train, num_agents=5, concentration=1e-6).class_counts()
    assert (rough.max(0) >= 990).all()
    even = data.dirichlet(train, num_agents=5, concentration=1e6).class_counts()
    assert np.abs(even - 200).max() <= 5


@pytest.mark.parametrize("a", [0.5, 2.0])
def test_shares_of_a_class_have_the_moments_of_a_dirichlet_distribution(a):
    counts = data.dirichlet(examples(50_000, 500), num_agents=4, concentration=a).class_counts()
    shares = counts / counts.sum(0)
    np.testing.assert_allclose(shares.mean(1), 1 / 4, atol=0.03)
    assert shares.var(1).mean() == pytest.approx(1 / 4 * 3 / 4 / (4 * a + 1), rel=0.1)


@pytest.mark.parametrize(
    "concentration", [0, -1, np.nan, np.inf, None, "1", True, [1.0], 1j, 10**400, np.ones(2)]
)
def test_a_concentration_not_above_zero_is_refused(concentration):
    with pytest.raises(ValueError, match="`concentration`"):
        data.dirichlet(examples(), num_agents=2, concentration=concentration)


def test_names_of_classes_are_kept_with_their_order():
    x = np.ones((3, 1))
    train = Dataset(x, ["dog", "cat", "dog"])
    assert train.class_names == ("cat", "dog")
    np.testing.assert_array_equal(train.y, [1, 0, 1])
    test = Dataset(x, np.array(["dog"] * 3), class_names=train.class_names)
    np.testing.assert_array_equal(test.y, [1, 1, 1])
    train.check_alike("test", test)
    assert test.take([0]).class_names == ("cat", "dog")
    assert Dataset(x, [2, 0, 1], class_names=[b"a", b"b", b"c"]).class_names == ("a", "b", "c")
    french = Dataset(x, np.char.encode(np.array(["thé", "café", "thé"]), "utf-8"))
    assert french.class_names == ("café", "thé")
    with pytest.raises(ValueError, match="`class_names` must hold text, or bytes in UTF-8"):
        Dataset(x, [1, 0, 1], class_names=[b"\xe9", b"b"])
    for wrong in ({"a", "b", "c"}, ["a", None, "c"], ["a", np.nan, "c"]):
        with pytest.raises(ValueError, match="`class_names` must hold at least two different"):
            Dataset(x, [1, 0, 1], class_names=wrong)
    with pytest.raises(ValueError, match="must be given where `y` lacks some of them, got y with"):
        Dataset(x, ["dog"] * 3, num_classes=2)
    with pytest.raises(ValueError, match="such as those of the training data, if `y` lacks some"):
        Dataset(x, ["dog", "cat", "cat"], num_classes=3)
    named = Dataset(x, [2, 0, 1], class_names=["a", "b", "c"])
    assert named.num_classes == 3
    with pytest.raises(ValueError, match=r"`y` must hold names of .*'cat'.*got 'cow'"):
        Dataset(x, ["dog", "cow", "cat"], class_names=train.class_names)
    with pytest.raises(ValueError, match="`test` must have the agents' `class_names`"):
        train.check_alike("test", Dataset(x, ["dog", "cow", "dog"]))


def test_numbers_to_predict_are_floats():
    x = np.ones((3, 1))
    assert Dataset(x, [0.5, 1, 2]).num_outputs == 1
    labels = Dataset(x, np.eye(3, dtype=bool)[:, :2])
    assert (labels.num_outputs, labels.y.dtype, labels.num_classes) == (2, np.float32, None)
    rest, held = data.hold_out(Dataset(np.ones((10, 1)), np.arange(10.0)), 0.3)
    assert sorted([*rest.y, *held.y]) == list(range(10))
    with pytest.raises(ValueError, match="`num_classes` must be given for classes"):
        Dataset(x, [0, 1, 2])
    with pytest.raises(ValueError, match="`y` must be finite"):
        Dataset(x, [0.5, np.nan, 2])
    with pytest.raises(ValueError, match=r"the agents' `y` of shape \(2,\), got \(\)"):
        labels.check_alike("test", Dataset(x, [0.5, 1, 2]))


def test_given_padding_is_replaced_by_an_agents_own_first_row():
    data = Dataset(x=np.eye(4), y=[0, 1, 0, 1], num_classes=2)
    shards = Shards(data, np.array([[1, 0, 0], [2, 3, 0], [3, 2, 1]]), np.array([1, 2, 3]))
    assert shards.indices.tolist() == [[1, 1, 1], [2, 3, 2], [3, 2, 1]]
