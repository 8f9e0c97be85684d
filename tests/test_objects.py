"""Experiments with objects in place of names: own data, network, mechanism and optimizer."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import fairjax as fj
from fairjax import report
from fairjax.experiments import load_comparison, records
from fairjax.mechanisms import Mechanism


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def table(num_examples, seed):
    """Returns a data set of six numbers per example, in three classes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_examples, 6)).astype(np.float32)
    y = (x @ np.random.default_rng(0).normal(size=(6, 3))).argmax(1)
    return fj.data.Dataset(x=x, y=y, num_classes=3)


def own_experiment(rounds=3, **fields):
    schedule = optax.cosine_decay_schedule(1e-2, rounds)
    return fj.Experiment(
        dataset=(table(200, seed=1), table(50, seed=2)),
        model=fj.models.from_flax(Net, head="head"),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule)),
        schedule_counts="rounds",
        num_agents=4,
        rounds=rounds,
        **fields,
    )


def mine(scale=1.0):
    """Pays every agent the mean of the updates, times a scale."""

    def update(updates, state, context):
        outcome, _ = fj.mechanisms.fedavg().update(updates, (), context)
        paid = jax.tree.map(lambda leaf: scale * leaf, outcome.rewards)
        return outcome._replace(rewards=paid), state

    return Mechanism(lambda num_agents: (), update)


def test_an_experiment_shows_the_labels_of_its_objects():
    experiment = own_experiment(mechanism=fj.mechanisms.rr())
    shown = repr(experiment)
    for part in ("dataset=<own data>", "model=<Net>", "optimizer=<chain>", "mechanism=<rr>"):
        assert part in shown
    assert experiment.name.startswith("own_data-power_law-4-rr-")
    assert experiment.name == own_experiment(mechanism=fj.mechanisms.rr()).name
    assert experiment.name != own_experiment(mechanism=fj.mechanisms.rr(), seed=1).name


@pytest.mark.slow
def test_objects_give_the_bits_that_their_names_give():
    train, test = fj.data.load("digits")
    shared = {"num_agents": 3, "rounds": 2}
    named = fj.Experiment(
        **shared, model="logistic", optimizer="sgd", mechanism="fedavg", learning_rate=0.1,
        learning_rate_decay=1.0,
    )  # fmt: skip
    own = fj.Experiment(
        **shared, dataset=(train, test), model=fj.models.logistic(train),
        mechanism=fj.mechanisms.fedavg(), optimizer=optax.sgd(0.1),
    )  # fmt: skip
    wanted = named.run().history.accuracies
    np.testing.assert_array_equal(own.run().history.accuracies, wanted)


@pytest.mark.slow
def test_a_finished_run_is_opened_with_its_objects_and_refused_with_others(tmp_path):
    experiment = own_experiment(mechanism="fedavg")
    result = experiment.run(tmp_path, track="csv")
    again = fj.load_run(tmp_path, own_experiment(mechanism="fedavg"))
    np.testing.assert_array_equal(again.history.accuracies, result.history.accuracies)
    with pytest.raises(ValueError, match=r"holds a run with objects.*dataset=own data.*model=Net"):
        fj.load_run(tmp_path)
    train, test = experiment.dataset
    x = train.x.copy()
    x[0, 0] += 1
    other = dataclasses.replace(experiment, dataset=(dataclasses.replace(train, x=x), test))
    for open_with in (lambda: fj.load_run(tmp_path, other), lambda: other.run(tmp_path)):
        with pytest.raises(ValueError, match="differs: dataset=own data .* there, own data"):
            open_with()
    train.x[0, 0] += 1  # the same object, changed
    with pytest.raises(ValueError, match="differs: dataset="):
        experiment.run(tmp_path)


@pytest.mark.slow
def test_the_report_names_objects_and_how_to_run_them_again(tmp_path):
    result = own_experiment(mechanism="fedavg").run(tmp_path)
    page = report.write_run(result, tmp_path).read_text()
    assert "fedavg on own data, split power_law" in page
    assert "Net (an object, fingerprint " in page
    assert "dataset=dataset" in page
    assert "model=model" in page
    assert "# Your own objects: dataset, model, optimizer." in page
    assert "fairjax run" not in page


@pytest.mark.slow
def test_own_shards_replace_the_split():
    train, test = table(200, seed=1), table(50, seed=2)
    shards = fj.data.Shards.from_indices(train, [range(10), range(10, 60), range(60, 200)])
    experiment = fj.Experiment(
        dataset=(train, test), shards=shards, rounds=2, mechanism="fedavg", model="logistic"
    )
    result = experiment.run()
    assert result.shard_sizes.tolist() == [10, 50, 140]
    assert experiment.num_agents == 3
    assert experiment.where == "own data, own shards"
    for fields, message in (
        ({"split": "uniform"}, "`split` must be left out where `shards` is an object"),
        ({"num_agents": 4}, "`num_agents` must be left out, or be the 3 agents"),
        ({"samples_per_agent": 9}, "`samples_per_agent` must be left out"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(experiment, **fields)
    with pytest.raises(ValueError, match="`dataset` must have the agents' examples of shape"):
        fj.Experiment(shards=shards, rounds=1).run()


@pytest.mark.slow
def test_a_sweep_varies_what_objects_do_not_hold():
    # What `fairjax.mechanisms` made can be made again, with other coefficients.
    experiment = own_experiment(mechanism=fj.mechanisms.cgsv(alpha=0.5, gamma=0.4))
    swept = fj.sweep(experiment, seeds=range(3), beta=[0.5, 2.0])
    assert len(swept) == 6
    for one in swept:
        history = one.history
        fractions = fj.rewards.reward_fractions(history.importance[-1], one.experiment.beta)
        np.testing.assert_allclose(history.fractions[-1], fractions, rtol=1e-5)


def test_standalone_is_the_same_as_a_name_a_function_and_an_object():
    named = fj.Experiment(mechanism="standalone", behaviours={"sign_flip": 1})
    for mechanism in (fj.mechanisms.standalone, fj.mechanisms.standalone()):
        assert fj.Experiment(mechanism=mechanism, behaviours={"sign_flip": 1}) == named


def test_a_factory_may_take_any_options():
    def mine(beta=1.0, **options):
        return fj.mechanisms.cgsv(beta=beta, **options)

    made = fj.Experiment(mechanism=mine, beta=2.0, options={"mask": "leaf"}).make_mechanism()
    assert made.name == "cgsv"
    with pytest.raises(TypeError, match="missks"):
        fj.Experiment(mechanism=mine, options={"missks": "leaf"})


def test_a_mechanism_that_is_made_of_another_has_no_factory():
    made = fj.mechanisms.cgsv(alpha=0.5)
    assert made.factory(beta=2.0).factory is not None

    @functools.wraps(made.update)
    def twice(updates, state, context):
        return made.update(jax.tree.map(lambda leaf: 2 * leaf, updates), state, context)

    def plan(state, context):
        return fj.mechanisms.Plan()

    for other in (Mechanism(made.init, twice), made._replace(plan=plan)):
        assert other.factory is None
        with pytest.raises(ValueError, match="does not take `beta`.*object that holds"):
            fj.Experiment(mechanism=other, beta=2.0)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"beta": [1.0]}, "does not take `beta`.*object that holds its coefficients already"),
        ({"learning_rate": [0.1]}, "`learning_rate` must be left out where `optimizer` is an obj"),
    ],
)
def test_a_sweep_refuses_fields_that_an_object_sets(axes, message):
    with pytest.raises(ValueError, match=message):
        fj.sweep(own_experiment(mechanism=mine()), seeds=[0], **axes)


@pytest.mark.slow
def test_a_comparison_takes_names_and_objects(tmp_path):
    experiment = own_experiment()
    results = fj.compare(experiment, ["fedavg", mine(), fj.mechanisms.rr], tmp_path)
    assert list(results) == ["fedavg", "mine", "rr"]
    assert "fj.compare(" in report.write_comparison(results, tmp_path).read_text()
    again = fj.compare(own_experiment(), ["fedavg", mine(), fj.mechanisms.rr], tmp_path)
    np.testing.assert_array_equal(again["mine"].accuracies, results["mine"].accuracies)
    with pytest.raises(ValueError, match="holds a run with objects"):
        load_comparison(tmp_path)
    with pytest.raises(ValueError, match="`mechanisms` must have different names"):
        fj.compare(experiment, ["cgsv", fj.mechanisms.cgsv()])


@pytest.mark.slow
def test_an_object_without_a_fingerprint_runs_but_is_not_recorded(tmp_path):
    numbers = (number for number in [0.1])

    def apply(params, x, key=None, scale=numbers):
        return x @ params

    model = fj.models.Model(lambda key: np.zeros((6, 3), np.float32), apply)
    experiment = dataclasses.replace(own_experiment(mechanism="fedavg"), model=model)
    assert experiment.run().accuracies.shape == (4,)
    with pytest.raises(ValueError, match=r"`model\.apply.*` must have a fingerprint.*gen"):
        experiment.run(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": table(9, seed=0)}, r"`dataset` must be a name .* or a pair \(train, test\)"),
        ({"model": 3}, "`model` must be one of .* or a Model, a Flax module, or a function"),
        ({"mechanism": print}, "`mechanism` must be a function that makes a Mechanism"),
        ({"mechanism": lambda x: x}, "`options` must hold what the function .* got no x"),
        ({"optimizer": 0.1}, "`optimizer` must be one of adam, sgd, or an optax optimizer"),
        ({"shards": [[0]]}, "`shards` must be a Shards"),
        (
            {"optimizer": optax.sgd(0.1), "learning_rate": 0.1},
            "`learning_rate` must be left out where `optimizer` is an object",
        ),
    ],
)
def test_an_object_of_the_wrong_kind_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        fj.Experiment(**fields)


SCRIPT = """
import sys
import fairjax.experiments.playing
import test_objects
fairjax.experiments.playing.CHECKPOINT_SECONDS = 0.0, 0.0
test_objects.own_experiment(rounds=200, mechanism="rr").run(sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_run_with_objects_goes_on_and_ends_in_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}

    def saved():
        return [*(killed / "checkpoint").glob("[0-9]*")]

    with subprocess.Popen([*command, killed], env=environment) as process:
        deadline = time.monotonic() + 300
        while not saved() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert saved()
    assert not (killed / records.RESULT).exists()
    for out in (killed, whole):
        subprocess.run([*command, out], env=environment, check=True)
    states = [
        fj.load_run(out, own_experiment(rounds=200, mechanism="rr")).state
        for out in (whole, killed)
    ]
    jax.tree.map(np.testing.assert_array_equal, *(state.agents for state in states))
