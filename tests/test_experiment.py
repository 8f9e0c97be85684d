"""Experiments: descriptions, records, resuming, and results read again from disk."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairjax as fj
from fairjax import data, metrics
from fairjax.experiments import records

SMALL = fj.Experiment(num_agents=3, rounds=2, model="logistic", samples_per_agent=20)


def assert_same_result(first, second):
    assert first.experiment == second.experiment
    np.testing.assert_array_equal(first.standalone_accuracies, second.standalone_accuracies)
    jax.tree.map(np.testing.assert_array_equal, first.history, second.history)
    for part in ("agents", "server", "optimizer", "mechanism", "round"):
        one, other = getattr(first.state, part), getattr(second.state, part)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    keys = [jax.random.key_data(result.state.key) for result in (first, second)]
    np.testing.assert_array_equal(*keys)


def test_a_description_survives_json_and_is_hashable():
    experiment = fj.Experiment(mechanism="cgsv", options={"mask": "leaf"}, beta=2.0)
    again = fj.Experiment(**json.loads(json.dumps(experiment.description())))
    assert again == experiment.resolved()
    assert len({experiment, dataclasses.replace(experiment), again}) == 2
    assert experiment.name == fj.Experiment(**experiment.description()).name


def test_open_fields_are_the_papers_settings_where_it_has_some():
    mnist = fj.Experiment(dataset="mnist").resolved()
    assert (mnist.model, mnist.samples_per_agent, mnist.gamma, mnist.alpha) == (
        "mnist_cnn", 600, 0.5, 0.95,
    )  # fmt: skip
    assert fj.Experiment(dataset="mnist", gamma=1.0).resolved().gamma == 1.0
    assert fj.Experiment(dataset="mnist", mechanism="fedavg").resolved().gamma is None


def test_a_pre_trained_network_is_trained_for_few_rounds_unless_the_run_says_how_many():
    tuned = fj.Experiment(model="minilm", dataset="rt_polarity")
    assert (tuned.rounds, tuned.local_epochs) == (3, 1)
    assert dataclasses.replace(tuned, rounds=8, local_epochs=(2, 1, 1, 1, 1)).num_decays == 8
    assert fj.Experiment(model="minilm", local_epochs={1: 4}).resolved().local_epochs[:2] == (1, 4)
    assert (tuned.resolved().learning_rate, tuned.resolved().optimizer) == (3e-5, "adam")
    adapted = dataclasses.replace(tuned, lora_rank=8)
    assert (adapted.resolved().learning_rate, adapted.resolved().gamma) == (0.002, "median")
    assert dataclasses.replace(adapted, gamma="cosine").resolved().gamma == "cosine:2.5:0.3"
    assert (fj.Experiment().rounds, fj.Experiment().local_epochs) == (80, 3)


@pytest.mark.slow
def test_a_result_is_the_same_from_memory_from_a_run_and_from_disk(tmp_path):
    memory = SMALL.run()
    run = SMALL.run(tmp_path / "run")
    assert_same_result(memory, run)
    assert_same_result(memory, fj.load_run(tmp_path / "run"))
    assert run.fairness == pytest.approx(
        np.corrcoef(run.standalone_accuracies, run.accuracies)[0, 1], nan_ok=True
    )


@pytest.mark.slow
def test_the_result_of_another_experiment_is_no_standalone_result():
    experiment = fj.Experiment(num_agents=2, samples_per_agent=10, rounds=1, model="logistic")
    alone = experiment.alone().run()
    evaluated = dataclasses.replace(experiment, eval_every=1, mechanism="rr", gamma=None)
    assert evaluated.run(standalone=alone).standalone_accuracies is not None
    for other in (
        dataclasses.replace(experiment, seed=1),
        dataclasses.replace(experiment, rounds=2),
    ):
        with pytest.raises(ValueError, match="`standalone` must be the result of Experiment"):
            other.run(standalone=alone)
    with pytest.raises(ValueError, match="got that of Experiment"):
        experiment.run(standalone=evaluated.run())


def test_own_shards_keep_their_sizes_where_a_preset_has_some():
    train = fj.data.Dataset(np.zeros((6, 32, 32, 1), np.float32), np.arange(6), num_classes=10)
    own = fj.Experiment(dataset="mnist", shards=fj.data.uniform(train, num_agents=3))
    assert own.resolved().samples_per_agent is None


def test_starting_over_keeps_nothing_of_the_old_environment(tmp_path):
    small = dataclasses.replace(SMALL, rounds=1, mechanism="standalone")
    small.run(tmp_path)
    path = tmp_path / records.EXPERIMENT
    old = records.read_experiment(tmp_path)
    records.write_json(path, {**old, "environment": {"jax": "0.0.1"}, "agents_at_once": 1})
    small.run(tmp_path, resume=False)
    assert records.read_experiment(tmp_path) == old


@pytest.mark.slow
def test_the_standalone_run_has_the_same_shards_and_first_parameters(tmp_path):
    result = SMALL.run(tmp_path / "run")
    alone = fj.load_run(tmp_path / "run" / "standalone")
    np.testing.assert_array_equal(alone.accuracies, result.standalone_accuracies)
    np.testing.assert_array_equal(alone.shard_sizes, result.shard_sizes)
    assert alone.experiment.mechanism == "standalone"


def test_a_finished_run_returns_at_once(tmp_path, monkeypatch):
    first = SMALL.run(tmp_path)

    def never(*_, **__):
        raise AssertionError("a round was played")

    monkeypatch.setattr("fairjax.simulation.Rounds.stages", never)
    assert_same_result(first, SMALL.run(tmp_path))


def test_starting_over_replaces_what_is_there(tmp_path):
    first = SMALL.run(tmp_path)
    assert_same_result(first, SMALL.run(tmp_path, resume=False))


def test_the_directory_of_another_experiment_is_refused_and_kept(tmp_path):
    SMALL.run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="another experiment.*rounds=2 there, 3 here"):
        dataclasses.replace(SMALL, rounds=3).run(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds thesis.tex"):
        SMALL.run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`out` must be a directory that can be written"):
        SMALL.run(tmp_path / "file" / "below")


def test_a_run_that_is_not_finished_or_not_there_is_not_loaded(tmp_path):
    with pytest.raises(ValueError, match="holds none"):
        fj.load_run(tmp_path)
    records.write_json(tmp_path / records.EXPERIMENT, {"experiment": {}})
    with pytest.raises(ValueError, match="not finished"):
        fj.load_run(tmp_path)
    (tmp_path / records.EXPERIMENT).write_text("{")
    with pytest.raises(ValueError, match="not a record of fairjax"):
        SMALL.run(tmp_path)


SCRIPT = """
import sys, time, fairjax as fj
import fairjax.experiments.playing
fairjax.experiments.playing.CHECKPOINT_SECONDS = 0.0, 0.0
slow = float(sys.argv[2])
fj.Experiment(num_agents=3, rounds=200, model="logistic", samples_per_agent=20, eval_every=25).run(
    sys.argv[1], watch=lambda name, done, total: time.sleep(slow)
)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", SCRIPT]
    process = subprocess.Popen([*command, killed, "0.3"], env=environment)
    deadline = time.monotonic() + 600

    def saved():
        return [path for path in (killed / "checkpoint").glob("*") if path.name.isdecimal()]

    while not saved() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / records.RESULT).exists()
    assert 0 < max(int(path.name) for path in saved()) <= 200
    for out in (killed, whole):
        subprocess.run([*command, out, "0"], env=environment, check=True)
    assert_same_result(fj.load_run(whole), fj.load_run(killed))


def test_a_registered_mechanism_keeps_its_own_gamma(monkeypatch):
    def mine(gamma: float = 3.0):
        return fj.mechanisms.cgsv(gamma=gamma * 2)

    monkeypatch.setitem(fj.mechanisms.REGISTRY, "mine", mine)
    assert fj.Experiment(mechanism="mine").resolved().gamma is None
    assert fj.Experiment(mechanism="mine", gamma=1).resolved().gamma == 1
    assert fj.Experiment(mechanism="mine", dataset="mnist").resolved().gamma is None


def test_lengths_of_uploads_follow_the_length_of_the_run():
    found = [fj.Experiment(rounds=rounds).resolved().gamma for rounds in (5, 20, 160)]
    assert found == ["cosine:2.5:0.3", "cosine:2.5:0.3", "cosine:2.5:0.849"]
    assert fj.Experiment(gamma="cosine").resolved() == fj.Experiment().resolved()
    assert fj.Experiment(preset="paper").resolved().gamma == 0.5
    assert fj.Experiment(dataset="mnist", gamma="cosine").resolved().gamma == "cosine:0.5"
    table = fj.Experiment(rounds=4, gamma=lambda round: 1.0 - round / 4).gamma
    assert table == (1.0, 0.75, 0.5, 0.25)


@pytest.mark.slow
def test_the_default_experiment_shows_its_point_for_every_seed():
    for result in fj.sweep(fj.Experiment(), seeds=range(5)):
        assert result.fairness > 0
        assert np.ptp(result.accuracies) > 0.02


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_agents": 0}, "`num_agents`.*at least 1, got 0"),
        ({"rounds": 0}, "`rounds`.*at least 1, got 0"),
        ({"rounds": 2.0}, "`rounds` must be a whole number"),
        ({"local_epochs": -1}, "`local_epochs`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"eval_every": 0}, "`eval_every`"),
        ({"agents_at_once": 0}, "`agents_at_once`"),
        ({"samples_per_agent": 0}, "`samples_per_agent`"),
        ({"seed": -1}, "`seed`"),
        ({"beta": -1.0}, "`beta` must be a finite number above 0, got beta=-1.0"),
        ({"alpha": 2.0}, "`alpha`"),
        ({"gamma": float("nan")}, "`gamma`"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"learning_rate": abs}, "`learning_rate` must be a number.* Schedules go to `optimizer`"),
        ({"learning_rate_decay": 1.5}, "`learning_rate_decay`"),
        ({"mechanism": "cgvs"}, "Unknown mechanism 'cgvs'. Did you mean 'cgsv'"),
        ({"split": "powerlaw"}, "Did you mean 'power_law'"),
        ({"model": "cnn"}, "Unknown model 'cnn'"),
        ({"optimizer": "sdg"}, "Did you mean 'sgd'"),
        ({"decay_per": "step"}, "Unknown decay_per"),
        ({"local_steps": "some"}, "Unknown local_steps"),
        ({"mechanism": "fedavg", "beta": 1.0}, "'fedavg' does not take `beta`"),
        ({"options": {"masks": "leaf"}}, "'cgsv' does not take `masks`. It takes: alpha"),
        ({"options": {"mask": "leafs"}}, "Did you mean 'leaf'"),
    ],
)
def test_a_bad_field_is_named_with_its_rule(fields, message):
    with pytest.raises(ValueError, match=message):
        fj.Experiment(**fields)


def test_an_unknown_data_set_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="Unknown dataset 'digitss'. Did you mean 'digits'"):
        fj.Experiment(dataset="digitss").run(tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_fairness_is_a_correlation_and_says_why_it_is_undefined():
    alone, final = np.array([0.5, 0.7, 0.9]), np.array([0.6, 0.65, 0.9])
    assert metrics.fairness(alone, final) == pytest.approx(np.corrcoef(alone, final)[0, 1])
    assert metrics.why_undefined(alone, final) == ""
    for standalone, paid, reason in [
        (alone, np.ones(3), "all final accuracies are equal"),
        (np.ones(3), final, "all standalone accuracies are equal"),
        (alone[:1], final[:1], "fewer than two agents"),
        (alone, np.array([0.1, np.nan, 0.2]), "some final accuracies are not known"),
    ]:
        assert np.isnan(metrics.fairness(standalone, paid))
        assert reason in metrics.why_undefined(standalone, paid)
    with pytest.raises(ValueError, match=r"\[N\]"):
        metrics.fairness(alone, final[:2])


def test_the_interval_of_fairness_holds_it_and_narrows_with_more_agents():
    rng = np.random.default_rng(0)
    widths = []
    for num_agents in (4, 20, 500):
        alone = rng.random(num_agents)
        final = alone + rng.normal(0, 0.3, num_agents)
        low, high = metrics.fairness_interval(alone, final)
        assert -1 <= low < metrics.fairness(alone, final) < high <= 1
        # Fisher's interval: arctanh of the correlation, plus or minus 1.96 / sqrt(N - 3).
        width = 1.959964 / np.sqrt(num_agents - 3)
        assert np.arctanh([low, high]) == pytest.approx(
            np.arctanh(metrics.fairness(alone, final)) + np.array([-width, width]), rel=1e-4
        )
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert metrics.fairness_interval(alone, alone) == pytest.approx((1, 1))
    for standalone, paid in [
        (alone[:3], final[:3]),
        (alone, np.ones(500)),
        (alone, alone * np.nan),
    ]:
        assert np.isnan(metrics.fairness_interval(standalone, paid)).all()


def test_detection_is_the_chance_of_ranking_an_honest_agent_higher():
    importance = np.array([0.1, 0.3, 0.2, 0.4])
    assert metrics.detection_auc(importance, np.array([False, True, False, True])) == 1
    assert metrics.detection_auc(importance, np.array([True, False, True, True])) == 1 / 3
    assert np.isnan(metrics.detection_auc(importance, np.ones(4)))
    assert np.isnan(metrics.detection_auc(np.full(4, np.nan), np.array([0, 1, 1, 1])))


@pytest.mark.slow
def test_compared_mechanisms_share_one_standalone_run(tmp_path):
    results = fj.compare(SMALL, ["cgsv", "fedavg", "standalone"], tmp_path)
    names = ["cgsv", "comparison.json", "fedavg", "standalone"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for result in results.values():
        np.testing.assert_array_equal(
            result.standalone_accuracies, results["standalone"].accuracies
        )
    assert np.isnan(results["fedavg"].fairness)
    assert results["fedavg"].fairness_note == "all final accuracies are equal"
    with pytest.raises(ValueError, match="different names"):
        fj.compare(SMALL, ["cgsv", "cgsv"])


@pytest.mark.slow
def test_recorded_uploads_are_kept_loaded_and_valued(tmp_path):
    experiment = dataclasses.replace(SMALL, mechanism="fedavg", rounds=3, record_updates=True)
    result = experiment.run(tmp_path)
    again = fj.load_run(tmp_path)
    for history in (result.history, again.history):
        assert {leaf.shape[:2] for leaf in jax.tree.leaves(history.updates)} == {(3, 3)}
    jax.tree.map(np.testing.assert_array_equal, result.history, again.history)
    # A FedAvg server moves by the mean of the uploads, weighted by sizes.
    servers, updates = result.history.servers, result.history.updates
    shares = result.shard_sizes / result.shard_sizes.sum()
    moved = servers["head"]["bias"][1] - servers["head"]["bias"][0]
    np.testing.assert_allclose(moved, shares @ updates["head"]["bias"][0], atol=1e-6)
    values = fj.contributions.multi_round_shapley(
        experiment.utility(), servers, updates, result.shard_sizes
    )
    utility = experiment.utility()
    ends = [jax.tree.map(lambda leaf, t=t: leaf[t], servers) for t in (0, -1)]
    last = jax.tree.map(lambda w, dw: w + jnp.tensordot(shares, dw[-1], 1), ends[1], updates)
    assert float(values.sum()) == pytest.approx(float(utility(last) - utility(ends[0])), abs=1e-5)


def test_the_seed_draws_the_tenth_that_is_held_out_and_agents_have_the_rest():
    whole, _ = data.load("digits")
    made = [dataclasses.replace(SMALL, seed=seed).make_shards()[0] for seed in (0, 1)]
    for one in made:
        assert len(one.validation) == 144
        together = np.concatenate([one.data.x, one.validation.x]).reshape(1437, -1)
        np.testing.assert_array_equal(
            np.unique(together, axis=0), np.unique(whole.x.reshape(1437, -1), axis=0)
        )
    assert not np.array_equal(made[0].validation.x, made[1].validation.x)


def test_evaluation_on_a_subset_is_of_the_same_examples_for_every_seed():
    tests = [
        dataclasses.replace(SMALL, eval_examples=50, seed=seed).make_shards()[1] for seed in (0, 1)
    ]
    assert len(tests[0]) == 50
    np.testing.assert_array_equal(tests[0].x, tests[1].x)
    rows = [int((data.load("digits")[1].x == x).all((1, 2, 3)).argmax()) for x in tests[0].x]
    assert len(set(rows)) == 50
    assert 130 < np.mean(rows) < 230  # drawn from all 360: mean 179.5, standard deviation 14
    with pytest.raises(ValueError, match="`eval_examples` must be at most the 360 test examples"):
        dataclasses.replace(SMALL, eval_examples=361).make_shards()


@pytest.mark.slow
def test_half_precision_changes_accuracies_little_and_keeps_parameters_single():
    single = dataclasses.replace(SMALL, model="mlp", mechanism="fedavg", rounds=10)
    half = dataclasses.replace(single, compute_dtype="bfloat16")
    results = [single.run(), half.run()]
    assert {leaf.dtype for leaf in jax.tree.leaves(results[1].state.agents)} == {np.dtype("f4")}
    assert not np.array_equal(*(result.state.server["head"]["kernel"] for result in results))
    assert abs(results[0].accuracies.mean() - results[1].accuracies.mean()) < 0.05


def test_a_run_that_was_stopped_while_agents_trained_alone_goes_on(tmp_path):
    def stop(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SMALL.run(tmp_path / "run", watch=stop)
    again = SMALL.run(tmp_path / "run")
    np.testing.assert_array_equal(again.accuracies, SMALL.run().accuracies)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts memory maps as Linux does")
def test_many_experiments_in_one_process_do_not_use_up_its_memory_maps():
    counts = []
    for seed in range(4):
        dataclasses.replace(SMALL, rounds=2, seed=seed, split="uniform").run()
        counts.append(len(Path("/proc/self/maps").read_text().splitlines()))
    assert counts[3] - counts[1] < 100


@pytest.mark.slow
def test_a_state_of_plain_numbers_is_kept_and_goes_on(tmp_path):
    def update(updates, state, context):
        answer, _ = fj.mechanisms.fedavg().update(updates, (), context)
        return answer, {"round": state["round"] + 1, "half": state["half"] / 2}

    mechanism = fj.mechanisms.Mechanism(lambda num_agents: {"round": 0, "half": 1.0}, update)
    experiment = fj.Experiment(num_agents=2, rounds=2, model="logistic", mechanism=mechanism)
    first, again = experiment.run(tmp_path), fj.load_run(tmp_path, experiment)
    assert int(again.state.mechanism["round"]) == int(first.state.mechanism["round"]) == 2
    longer = dataclasses.replace(experiment, rounds=4, learning_rate_decay=1.0)
    short = dataclasses.replace(longer, rounds=2)
    short.run(tmp_path / "longer")
    went_on = longer.run(tmp_path / "longer")
    np.testing.assert_array_equal(went_on.accuracies, longer.run().accuracies)


@pytest.mark.slow
def test_a_run_with_a_schedule_of_optax_is_opened_again(tmp_path):
    schedule = optax.cosine_decay_schedule(0.1, 100)
    experiment = fj.Experiment(
        dataset="blobs", num_agents=2, rounds=2, model="logistic", optimizer=optax.sgd(schedule),
        schedule_counts="rounds",
    )  # fmt: skip
    first = experiment.run(tmp_path)
    np.testing.assert_array_equal(fj.load_run(tmp_path, experiment).accuracies, first.accuracies)


def test_data_of_a_name_are_made_once_until_their_folder_changes(monkeypatch):
    first = fj.Experiment(num_agents=2)
    assert first.kept_shards() is first.alone().kept_shards()
    assert first.kept_shards() is not first.make_shards()
    before = first.kept_shards()
    monkeypatch.setenv("TFDS_DATA_DIR", "/elsewhere")
    assert first.kept_shards() is not before
    own = fj.Experiment(dataset=fj.data.load("blobs"), num_agents=2)
    assert own.kept_shards() is not own.kept_shards()
    for name in fj.data.DATASETS:
        hash(dataclasses.replace(first, dataset=name).data_source())
    blobs = fj.data.load("blobs")
    monkeypatch.setitem(fj.data.DATASETS, "own", data.sources.Source("", lambda *_: blobs))
    own = fj.Experiment(dataset="own", num_agents=2)
    assert own.kept_shards() is not own.kept_shards()  # its loader may read something else now


def ended(behaviours=("honest",) * 4, **fields):
    """A result of four agents, as if a run had ended so."""
    history = fj.simulation.History(*[np.zeros((2, 4))] * 7)
    rows = np.array([[1.0, 0.0, 1.0, 0.5], [0.5, 0.5, 0.25, 1.0]])  # the last is the end
    history = history._replace(
        accuracies=rows, trained_accuracies=-rows, importance=rows,
        excluded=rows == 1, metrics={"accuracy": rows, "auc": rows / 2},
    )  # fmt: skip
    experiment = dataclasses.replace(SMALL, num_agents=4, **fields)
    alone = np.array([0.25, 1.0, 0.5, 0.75])
    return fj.Result(experiment, history, None, np.ones(4), alone, behaviours)


def test_fairness_among_honest_agents_is_that_of_their_own_accuracies():
    result = ended(("honest", "idle", "idle", "honest"))
    assert result.honest_fairness == pytest.approx(1)
    assert result.fairness < 0.5


def test_who_gains_in_accuracy_loses_in_an_error():
    for metric, losses, mean in (
        ("accuracy", [0, 0.5, 0.25, 0], -0.0625),
        ("log_loss", [0.25, 0, 0, 0.25], 0.0625),
    ):
        result = ended(metric=metric)
        np.testing.assert_array_equal(result.shortfall, losses)
        assert result.collaboration_gain[0] == mean


def test_figures_are_of_the_last_round():
    found = ended(("honest", "idle", "honest", "honest")).figures()
    # Gains are .25, -.5, -.25 and .25. Honest agents' importance is .5, .25 and 1, the other's .5.
    fairness = 0.09375 / np.sqrt(0.3125 * 0.296875)
    assert found == pytest.approx(
        {
            "fairness": fairness, "fairness_trained": -fairness, "rank_fairness": 1 / 30**0.5,
            "best_%": 100, "mean_%": 56.25, "worst_%": 25,
            "gain_%": -6.25, "gain_spread_%": 100 * np.sqrt(0.109375 - 0.0625**2),
            "shortfall_%": 50, "mean_auc": 0.28125, "detection_auc": 0.5,
        }
    )  # fmt: skip
    lower = ended(metric="log_loss").figures()
    ends = {"best_log_loss": 0.25, "worst_log_loss": 1, "gain_log_loss": 0.0625}
    assert {name: lower[name] for name in ends} == ends
    assert lower["shortfall_log_loss"] == 0.25
    assert lower["mean_accuracy_%"] == 56.25
    assert "detection_auc" not in lower


def test_a_summary_counts_the_rounds_of_every_agent():
    summary = ended().summary()
    assert summary["rounds_present"] == [2, 2, 2, 2]
    assert summary["rounds_excluded"] == [1, 0, 1, 1]
    assert summary["accuracies"] == [0.5, 0.5, 0.25, 1.0]
    assert summary["shortfall"] == [0, 0.5, 0.25, 0]
