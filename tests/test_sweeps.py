"""A sweep equals its single runs, but in one program; its table has means and spreads."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

import fairjax as fj
from fairjax.experiments import points, sweeps

SMALL = fj.Experiment(num_agents=3, rounds=3, model="logistic", samples_per_agent=20)


@pytest.mark.slow
def test_runs_of_large_local_steps_take_turns_on_a_cpu_with_the_same_numbers(monkeypatch):
    together = fj.sweep(SMALL, seeds=[3, 4])
    monkeypatch.setattr(points, "CACHE_BYTES", 1)
    shards, _ = SMALL.make_shards()
    assert points._pick_points_at_once(SMALL.federation(shards), shards) == 1
    in_turn = fj.sweep(SMALL, seeds=[3, 4])
    for found, wanted in zip(in_turn, together, strict=True):
        np.testing.assert_allclose(found.accuracies, wanted.accuracies, atol=2e-3)
        np.testing.assert_allclose(found.history.importance, wanted.history.importance, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    [
        dataclasses.replace(SMALL, eval_examples=50, behaviours={"label_flip": 1, "sign_flip": 1}),
        dataclasses.replace(SMALL, mechanism="iafl"),
    ],
    ids=["dishonest agents", "a mechanism that draws"],
)
def test_a_point_of_a_sweep_is_the_run_of_its_fields(experiment):
    # In chunks of three, so that the last is padded.
    seeds, rates = (seed for seed in [3, 4]), np.array([0.001, 0.01])
    result = fj.sweep(experiment, seeds=seeds, learning_rate=rates, points_at_once=3)
    assert len(result) == 4
    assert len(repr(result)) < 300
    assert len(repr(result[0])) < 300
    assert len({one.behaviours for one in result}) == len(
        {one.experiment.assigned_behaviours() for one in result}
    )
    for one in (result[1], result[2]):
        alone = one.experiment.run()
        assert one.experiment == alone.experiment
        np.testing.assert_allclose(
            one.standalone_accuracies, alone.standalone_accuracies, atol=1e-6
        )
        for found, wanted in zip(*map(jax.tree.leaves, (one.history, alone.history)), strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-3)
        assert one.behaviours == alone.behaviours


@pytest.mark.slow
def test_a_sweep_has_every_combination_and_a_row_for_each_but_the_seeds():
    result = fj.sweep(
        SMALL, seeds=[0, 1], split=["uniform", "power_law"], beta=[0.5, 2.0], alpha=[0.9]
    )
    points = [(one.split, one.alpha, one.beta, one.seed) for one in result.experiments]
    assert len(set(points)) == len(points) == 8
    table = result.table()
    assert len(table.rows) == 4
    for row in table.rows:
        same = [
            one
            for one in result
            if (one.experiment.split, one.experiment.beta) == (row["split"], row["beta"])
        ]
        best = [100 * one.accuracies.max() for one in same]
        assert row["best_%"].mean == pytest.approx(np.mean(best), abs=1e-4)
        assert row["best_%"].std == pytest.approx(np.std(best, ddof=1), abs=1e-4)
        assert row["seeds"] == 2


def swept(ends, **axes):
    """A sweep of two agents with made-up accuracies: the second is better by `ends` / 10."""
    names = tuple(axes)
    points = [
        dataclasses.replace(SMALL, num_agents=2, **dict(zip(names, values, strict=True))).resolved()
        for values in itertools.product(*axes.values())
    ]
    accuracies = 0.5 + np.multiply.outer(np.ravel(ends), [0.0, 0.1])[:, None]  # [P, 1, 2]
    history = fj.History(
        accuracies, accuracies, *[accuracies] * 4, np.zeros(accuracies.shape, bool)
    )
    alone = np.tile([0.4, 0.5], (len(points), 1))
    order = (*(name for name in names if name != "seed"), "seed")
    return fj.Sweep(tuple(points), order, history, np.full(alone.shape, 20), alone)


def test_a_table_of_a_sweep_averages_points_of_one_split_over_the_same_seeds():
    # By split, seed and beta: all agents end equal where the number is 0.
    ends = [[[1, 1], [0, -1], [1, 1]], [[1, 0], [1, 0], [1, 0]]]
    result = swept(ends, split=["uniform", "power_law"], seed=[0, 1, 2], beta=[0.5, 1e7])
    assert [str(row["fairness"]) for row in result.table().rows] == [
        "1.000 ± 0.000 (2 of 3; 1 all equal)", "1.000 ± 0.000 (2 of 3)",
        "1.000 ± 0.000", "all equal (3 of 3)",
    ]  # fmt: skip


def test_a_table_of_a_sweep_over_splits_alone_compares_them():
    result = swept([[1, 0], [-1, 1]], split=["uniform", "power_law"], seed=[0, 1])
    assert [str(row["fairness"]) for row in result.table().rows] == [
        "1.000 (1 of 2; 1 all equal)", "-1.000 (1 of 2)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, r"`seeds` must be different values, a list of at least one, got \[\]"),
        ({"seeds": 3}, "`seeds` must be different values, a list .* got 3"),
        ({"seeds": None}, "`seeds` must be different values, a list .* got None"),
        ({"seeds": "12"}, "`seeds` must be different values, a list .* got '12'"),
        ({"seeds": [0, 2**32]}, "`seed` must be at most 4,294,967,295"),
        ({"seeds": itertools.count()}, "`seeds` must be at most 10,000 values"),
        ({"split": "uniform"}, "`split` must be different values, a list .* got 'uniform'"),
        ({"split": [3]}, "Unknown split 3"),
        ({"beta": 1.0}, "`beta` must be different values, a list .* got 1.0"),
        ({"beta": [None]}, "`beta` must be values of the field `beta`, got None"),
        ({"beta": [[1.0], "a"]}, "`beta` must be a finite number above 0"),
        ({"alpha": {0.5: 1}}, "`alpha` must be different values, a list"),
        ({"watch": 3}, "`watch` must be a function"),
        ({"standalone": 3}, "`standalone` must be a Sweep"),
        ({"experiment": "cgsv"}, "`experiment` must be an Experiment"),
        ({"beta": [1.0, 1.0]}, "`beta` must be different values"),
        ({"beta": [1.0, -1.0]}, "`beta` must be a finite number above 0"),
        ({"split": ["power"]}, "Did you mean 'power_law'"),
        ({"points_at_once": 0}, "`points_at_once`"),
    ],
)
def test_a_bad_axis_is_named_before_anything_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        fj.sweep(arguments.pop("experiment", SMALL), **arguments)


def test_points_have_the_sizes_and_the_standalone_run_of_their_own_data(monkeypatch):
    sizes = {"uniform": [20, 20, 20], "power_law": [2, 20, 38]}
    fields = list(itertools.product(("uniform", "power_law"), (0, 1), (0.1, 0.2)))
    runs = [
        dataclasses.replace(SMALL, split=split, seed=seed, learning_rate=rate).alone().resolved()
        for split, seed, rate in fields
    ]
    ends = np.arange(8.0)[:, None, None] * [[0.0], [0.0], [1.0]] * np.ones(3)  # [P, T, N]
    history = SimpleNamespace(accuracies=ends)
    alone = fj.Sweep(tuple(runs), ("split", "learning_rate", "seed"), history, None, None)
    monkeypatch.setattr(sweeps, "play_points", lambda *_: SimpleNamespace(accuracies=None))
    found = fj.sweep(
        SMALL,
        split=list(sizes),
        seeds=[1, 0],
        learning_rate=[0.2, 0.1],
        beta=[1, 2],
        standalone=alone,
    )
    assert len(found) == 16
    for point, one in enumerate(found.experiments):
        assert found.shard_sizes[point].tolist() == sizes[one.split]
        place = fields.index((one.split, one.seed, one.learning_rate))
        assert found.standalone_accuracies[point].tolist() == [place] * 3


def test_a_known_standalone_sweep_must_be_of_the_same_experiment(monkeypatch):
    monkeypatch.setattr(sweeps, "play_points", None)  # nothing is played
    alone = fj.Sweep(
        experiments=(dataclasses.replace(SMALL, num_agents=4).alone().resolved(),),
        axes=("seed",),
        history=SimpleNamespace(accuracies=np.zeros((1, 3, 4))),
        shard_sizes=np.ones((1, 4)),
        standalone_accuracies=np.zeros((1, 4)),
    )
    with pytest.raises(ValueError, match="`standalone` must hold a run of Experiment"):
        fj.sweep(SMALL, seeds=[0], standalone=alone)
    with pytest.raises(ValueError, match="`point` must be a whole number, got slice"):
        alone[0:1]


@pytest.mark.parametrize(
    ("experiment", "names", "message"),
    [
        (SMALL, "cgsv", "`mechanisms` must be different names, a list .* got 'cgsv'"),
        (SMALL, None, "`mechanisms` must be different names, a list .* got None"),
        (SMALL, {}, "`mechanisms` must be different names"),
        (SMALL, [], "`mechanisms` must be different names"),
        (SMALL, ["cgsv", "cgsv"], "`mechanisms` must be different names"),
        (SMALL, ["cgsv", 3], "`mechanism` must be one of .* got 3"),
        (SMALL, [["cgsv"]], r"got \['cgsv'\]"),
        ({}, ["cgsv"], "`experiment` must be an Experiment, .* got {}"),
    ],
)
def test_a_comparison_says_what_it_compares(experiment, names, message):
    with pytest.raises(ValueError, match=message):
        fj.compare(experiment, names)


def test_a_mechanism_that_lacks_a_coefficient_is_named():
    with pytest.raises(ValueError, match="'fedavg' does not take `beta`"):
        fj.sweep(dataclasses.replace(SMALL, mechanism="fedavg"), beta=[1.0])


@pytest.mark.slow
def test_a_sweep_sees_what_changed_since_the_last_one(monkeypatch):
    train, test = fj.data.load("blobs")
    x = np.array(train.x)
    held = {"scale": 1.0}

    def loss(outputs, targets):
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        return held["scale"] * cross_entropy

    own = dataclasses.replace(train, x=x), test
    experiment = fj.Experiment(
        dataset=own, num_agents=2, rounds=2, mechanism="fedavg", optimizer="sgd",
        learning_rate=0.01, model="logistic", task=fj.tasks.Task(loss, ["accuracy"]),
    )  # fmt: skip

    def final():
        return fj.sweep(experiment, seeds=[0])[0].accuracies, experiment.run().accuracies

    first = final()
    held["scale"] = 50.0
    second = final()
    own[0].x[:] = 0
    third = final()
    for swept, alone in (first, second, third):
        np.testing.assert_allclose(swept, alone, atol=1e-6)
    assert not np.array_equal(first[0], second[0])
    assert not np.array_equal(second[0], third[0])


@pytest.mark.slow
def test_a_module_without_a_hash_is_swept_and_compared():
    layers = [nn.Dense(4), nn.relu, nn.Dense(10)]
    experiment = fj.Experiment(
        dataset="blobs", num_agents=2, rounds=1, mechanism="fedavg", model=nn.Sequential(layers)
    )
    swept = fj.sweep(experiment, seeds=[0])
    np.testing.assert_allclose(swept[0].accuracies, experiment.run().accuracies, atol=1e-6)
    assert fj.compare(experiment, ["fedavg"], seeds=[0, 1]).table().rows


@pytest.mark.slow
def test_a_sweep_follows_one_with_agents_of_changed_data():
    one = fj.Experiment(num_agents=3, rounds=1, model="logistic")
    fj.sweep(dataclasses.replace(one, behaviours={"label_flip": 1}), seeds=range(2))
    found = fj.sweep(one, seeds=range(2))
    np.testing.assert_allclose(
        found[1].accuracies, dataclasses.replace(one, seed=1).run().accuracies
    )


@pytest.mark.slow
def test_tables_say_all_equal_only_where_agents_are():
    swept = fj.sweep(fj.Experiment(dataset="blobs", num_agents=2, rounds=1, mechanism="fedavg"))
    assert "all equal" in str(swept.table().cells())
    unknown = np.full_like(swept.standalone_accuracies, np.nan)
    other = dataclasses.replace(swept, standalone_accuracies=unknown)
    assert "all equal" not in str(other.table().cells())


@pytest.mark.slow
def test_what_a_comparison_returns_is_not_what_the_next_one_reads():
    one = fj.Experiment(num_agents=2, rounds=1, model="logistic")
    first = fj.compare(one, ["cgsv"], seeds=[0, 1])["cgsv"]
    sizes = first.shard_sizes.copy()
    first.shard_sizes[:] = 5
    again = fj.compare(one, ["cgsv"], seeds=[0, 1])["cgsv"]
    np.testing.assert_array_equal(again.shard_sizes, sizes)
    with pytest.raises(ValueError, match="read-only"):
        sweeps.load_shards(list(again.experiments))[0].data.x[:] = 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_any_kind_draw_the_same_for_an_agent_whoever_is_beside_it(kind):
    one = fj.Experiment(num_agents=3, rounds=2, model="logistic", batch_size=4, optimizer="sgd")
    jax.config.update("jax_default_prng_impl", kind)
    try:
        alone = dataclasses.replace(one, seed=1).run()
        beside = fj.sweep(one, seeds=[0, 1])[1]
        together = dataclasses.replace(one, seed=1, agents_at_once=3).run()
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")
    for found in (beside, together):
        np.testing.assert_allclose(found.history.importance, alone.history.importance, atol=1e-5)
