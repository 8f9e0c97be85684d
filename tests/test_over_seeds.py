"""Over seeds: several mechanisms with several seeds, one table, and what is kept on disk."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import seen
from flax import linen as nn

import fairjax as fj
from fairjax import figures, report
from fairjax.cli.flags import parse_seeds
from fairjax.experiments import load_comparison
from fairjax.mechanisms import REGISTRY, Context, switched

SMALL = fj.Experiment(dataset="blobs", num_agents=3, rounds=3, model="logistic")
NAMES, SEEDS = ["cgsv", "fedavg", "rr"], (0, 4, 7)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("seeds") / "out"
    return fj.compare(SMALL, NAMES, out, seeds=SEEDS), out


@pytest.mark.slow
def test_a_row_of_the_table_is_a_mean_over_single_runs(compared):
    comparison, _ = compared
    row = comparison.table().rows[0]
    runs = [dataclasses.replace(SMALL, seed=seed).run() for seed in SEEDS]
    best = [100 * one.accuracies.max() for one in runs]
    assert row["best_%"].mean == pytest.approx(np.mean(best), abs=0.5)
    assert row["best_%"].std == pytest.approx(np.std(best, ddof=1), abs=0.5)
    for seed, one in zip(SEEDS, runs, strict=True):
        swept = comparison["cgsv"][SEEDS.index(seed)]
        np.testing.assert_allclose(swept.history.importance, one.history.importance, rtol=1e-3)
        np.testing.assert_allclose(
            swept.standalone_accuracies, one.standalone_accuracies, atol=0.003
        )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [None, (0, 1)])
def test_a_comparison_with_a_server_optimizer_grows_and_has_a_page(tmp_path, seeds):
    experiment = dataclasses.replace(
        SMALL, mechanism="fedavg", server_optimizer="fedavgm", rounds=1, local_epochs=1
    )
    fj.compare(experiment, ["fedavg", "standalone"], tmp_path, seeds=seeds)
    fj.compare(experiment, ["qffl"], tmp_path, seeds=seeds)
    found = load_comparison(tmp_path)
    assert list(found) == ["fedavg", "standalone", "qffl"]
    write = report.write_comparison if seeds is None else report.write_over_seeds
    assert "fedavgm" in write(found, tmp_path).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["rr", "fair_yet_equal"])
def test_mechanisms_with_dishonest_agents_share_a_program(mechanism):
    experiment = dataclasses.replace(
        SMALL, behaviours={"free_rider_stale": 1}, samples_per_agent=20
    )
    found = fj.compare(experiment, ["cgsv", mechanism], seeds=[0])[mechanism][0]
    alone = experiment.with_mechanism(mechanism).run()
    np.testing.assert_allclose(found.history.importance, alone.history.importance, rtol=1e-3)
    np.testing.assert_array_equal(found.history.participants, alone.history.participants)


@pytest.mark.slow
def test_first_parameters_may_depend_on_the_first_example():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(x - self.param("centre", lambda key: x[0]))

    experiment = dataclasses.replace(
        SMALL, model=Net(), samples_per_agent=20, rounds=1, mechanism="standalone"
    )
    swept = fj.sweep(experiment, seeds=[0, 1])[0]
    np.testing.assert_allclose(swept.accuracies, experiment.run().accuracies, atol=0.003)


@pytest.mark.slow
def test_a_function_of_the_data_sees_all_training_data_in_runs_and_in_sweeps():
    seen = []

    def model(train):
        seen.append((len(train), float(np.asarray(train.x).mean())))
        return fj.models.logistic(train)

    experiment = dataclasses.replace(SMALL, model=model, samples_per_agent=20, rounds=1)
    found = experiment.run().accuracies
    np.testing.assert_allclose(fj.sweep(experiment, seeds=[0, 1])[0].accuracies, found, atol=0.003)
    assert len(set(seen)) == 1


@pytest.mark.slow
def test_differences_are_paired_by_seed_and_undefined_fairness_is_said(compared):
    comparison, _ = compared
    first, fedavg, rr = comparison.table().rows
    assert "mean_%_vs_cgsv" not in first
    assert str(fedavg["fairness_vs_cgsv"]) == "undefined (3 of 3)"
    apart = [
        a["mean_%"] - b["mean_%"]
        for a, b in zip(*(comparison[n].rows() for n in ("rr", "cgsv")), strict=True)
    ]
    assert rr["mean_%_vs_cgsv"].mean == pytest.approx(np.mean(apart))
    assert [row["mechanism"] for row in comparison.rows()] == sorted(NAMES * 3)
    assert "all equal (3 of 3)" in comparison.table().latex()


@pytest.mark.slow
def test_what_is_finished_is_read_and_the_rest_is_run(compared, tmp_path):
    comparison, out = compared
    (out / "rr" / "result.json").unlink()
    played = []
    again = fj.compare(SMALL, NAMES, out, seeds=SEEDS, watch=lambda name, *_: played.append(name))
    assert set(played) == {"rr"}
    assert again.table().csv() == comparison.table().csv() == load_comparison(out).table().csv()


@pytest.mark.slow
def test_a_damaged_file_is_run_again(compared):
    comparison, out = compared
    path = out / "cgsv" / "history.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.warns(UserWarning, match="It is run again"):
        again = fj.compare(SMALL, NAMES, out, seeds=SEEDS)
    assert again.table().csv() == comparison.table().csv()


@pytest.mark.slow
def test_a_comparison_is_not_mistaken_for_another(compared):
    _, out = compared
    with pytest.raises(ValueError, match="must not belong to another experiment.*seed="):
        fj.compare(SMALL, NAMES, out, seeds=[0, 1])
    with pytest.raises(ValueError, match="a comparison over seeds"):
        fj.load_run(out / "cgsv")


@pytest.mark.parametrize("seeds", [[], [0, 0], [-1], 3, ["a"], [0.5]])
def test_wrong_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match="`seeds?` must"):
        fj.compare(SMALL, NAMES, seeds=seeds)


def test_uploads_of_many_seeds_are_not_recorded():
    with pytest.raises(ValueError, match="`record_updates` must be False"):
        fj.compare(dataclasses.replace(SMALL, record_updates=True), NAMES, seeds=SEEDS)


def test_seeds_of_a_command_line():
    assert [*parse_seeds("2:4"), *parse_seeds("7")] == [2, 3, 7]
    for wrong in ("a", "1:b", "1,,2", "1:2:3"):
        with pytest.raises(ValueError, match="`seeds` must be as 0:5"):
            parse_seeds(wrong)
    with pytest.raises(ValueError, match="`agents` must be at most 10,000 values, got '0:1000"):
        parse_seeds("0:100000000000000000000", "agents")


@pytest.mark.slow
def test_the_page_has_the_table_and_the_call(compared):
    comparison, out = compared
    text = report.write_over_seeds(comparison, out).read_text()
    assert "all equal (3 of 3)" in text
    assert "--seeds 0,4,7" in text
    assert "seeds=[0, 4, 7])" in text
    assert {path.name for path in out.glob("comparison.*")} >= {
        "comparison.md", "comparison.csv", "comparison.tex",
    }  # fmt: skip
    axes = figures.over_seeds(comparison)
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_a_switched_mechanism_acts_as_the_one_of_its_number(name):
    updates = {"head": {"kernel": jax.random.normal(jax.random.key(1), (3, 4, 2))}}
    updates["head"]["bias"] = updates["head"]["kernel"][:, 0]
    zeros = jax.tree.map(jnp.zeros_like, updates)
    context = Context(
        shard_sizes=jnp.array([10, 20, 30]), shard_classes=jnp.array([2, 3, 4]), num_rounds=9,
        key=jax.random.key(2), learning_rate=0.1, agents=zeros, head="head",
        server=jax.tree.map(lambda leaf: leaf[0], zeros), losses=lambda: jnp.arange(1.0, 4.0),
        utility=lambda params: params["head"]["kernel"].sum(),
        held_out_loss=lambda params: -params["head"]["kernel"].sum(),
        example_losses=seen.example_losses,
        units=seen.units(jax.tree.map(lambda leaf: leaf[0], zeros)),
    )  # fmt: skip
    alone = REGISTRY[name]()
    both = switched(1, [fj.mechanisms.fair_yet_equal(), alone])
    (outcome, states), (wanted, state) = (
        jax.jit(lambda *given, update=one.update: update(*given, context))(
            updates, seen.begin(one, 3, context.server)
        )
        for one in (both, alone)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (outcome, states[1]), (wanted, state))
    assert both.plan(states, context).participants.shape == (3,)


def standalone():  # an own mechanism that has the name of fairjax's
    return fj.mechanisms.fedavg()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [None, [0, 1]])
def test_variants_of_a_mechanism_have_names_of_their_own(seeds, tmp_path):
    experiment = fj.Experiment(dataset="blobs", num_agents=2, rounds=2, model="logistic")
    variants = {"steep": fj.mechanisms.cgsv(beta=0.2), "flat 5": fj.mechanisms.cgsv(beta=5.0)}
    found = fj.compare(experiment, {**variants, "fedavg": "fedavg"}, tmp_path, seeds=seeds)
    assert (tmp_path / "flat 5" / "result.json").exists()
    if seeds:
        assert [row["mechanism"] for row in found.table().rows] == ["steep", "flat 5", "fedavg"]
        fractions = [found[name].history.fractions[0, -1].min() for name in variants]
    else:
        assert list(found) == ["steep", "flat 5", "fedavg"]
        fractions = [found[name].history.fractions[-1].min() for name in variants]
    assert fractions[0] < fractions[1]
    with pytest.raises(ValueError, match="different names.*Give a mapping"):
        fj.compare(experiment, list(variants.values()))
    with pytest.raises(ValueError, match="'standalone' is fairjax's mechanism of that name"):
        fj.compare(experiment, [standalone, "fedavg"], seeds=seeds)
    for wrong in ("../up", "standalone", "", "comparison.json", "a ", 1, "n" * 101):
        with pytest.raises(ValueError, match="`mechanisms` must have names of up to"):
            fj.compare(experiment, {wrong: "cgsv"})
