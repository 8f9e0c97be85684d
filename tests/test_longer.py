"""Longer: runs that go on, from a directory, from a state, and after a kill."""

import ast
import dataclasses
import re

import jax
import numpy as np
import optax
import pytest

import fairjax as fj

BASE = fj.Experiment(
    dataset="blobs", num_agents=3, rounds=5, model="logistic", gamma=1.0, learning_rate_decay=0.99
)


def averaging():
    """Returns FedAvg of two agents on blobs: a federation, its shards and the test data."""
    train, test = fj.data.load("blobs")
    shards = fj.data.uniform(train, num_agents=2, seed=0)
    model, mechanism = fj.models.logistic(train), fj.mechanisms.fedavg()
    made = fj.federation(model=model, mechanism=mechanism, optimizer=optax.sgd(0.1))
    return made, shards, test


def same(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"eval_every": 3, "metric": "auc"},
        {"participation": 2, "behaviours": {"free_rider_stale": 1}},
        {"mechanism": "standalone", "gamma": None},
        {"mechanism": "fedit", "gamma": None, "model": "mlp", "lora_rank": 2},
        {"gamma": "median"},
        {"gamma": lambda round: 1 / (1 + round)},
    ],
)
def test_a_longer_run_ends_as_one_long_run(tmp_path, fields):
    short = dataclasses.replace(BASE, **fields)
    longer = dataclasses.replace(BASE, **{**fields, "rounds": 24})
    short.run(tmp_path)
    went_on, whole = longer.run(tmp_path), longer.run()
    assert same(went_on.history, whole.history)
    assert same(went_on.state.agents, whole.state.agents)
    assert same(went_on.standalone_accuracies, whole.standalone_accuracies)
    assert same(fj.load_run(tmp_path).history, whole.history)


@pytest.mark.slow
def test_a_run_that_follows_the_advice_may_be_lengthened(tmp_path):
    """What the message about another length says, works with every field at its default."""
    default = fj.Experiment(dataset="blobs", num_agents=2, rounds=2, model="logistic")
    default.run(tmp_path / "first")
    with pytest.raises(ValueError, match="A longer run goes on only with") as refused:
        dataclasses.replace(default, rounds=4).run(tmp_path / "first")
    given = re.findall(r"(\w+)=('\w+'|[\d.]+)", str(refused.value).rpartition("such as ")[2])
    fields = {name: ast.literal_eval(value) for name, value in given}
    assert set(fields) == {"gamma", "learning_rate_decay"}
    advised = dataclasses.replace(default, **fields)
    advised.run(tmp_path / "second")
    longer = dataclasses.replace(advised, rounds=4)
    assert same(longer.run(tmp_path / "second").history, longer.run().history)


@pytest.mark.slow
def test_a_watcher_is_called_where_nothing_is_kept():
    fed, shards, test = averaging()
    calls = []
    fj.run(
        jax.random.key(0), fed, shards, test, num_rounds=3, watch=lambda *told: calls.append(told)
    )
    assert calls == [("fedavg", played, 3) for played in range(4)]


@pytest.mark.slow
def test_a_run_of_one_round_alone_goes_on(tmp_path):
    alone = dataclasses.replace(BASE, mechanism="standalone", gamma=None, rounds=1)
    longer = dataclasses.replace(alone, rounds=3)
    assert alone.eval_every is None
    alone.run(tmp_path)
    assert same(longer.run(tmp_path).history, longer.run().history)


@pytest.mark.slow
def test_a_state_with_a_key_of_another_kind_goes_on():
    fed, shards, test = averaging()
    key = jax.random.key(0, impl="rbg")
    state, first = fj.run(key, fed, shards, test, num_rounds=1)
    _, second = fj.run(None, fed, shards, test, num_rounds=1, state=state)
    _, whole = fj.run(key, fed, shards, test, num_rounds=2)
    np.testing.assert_array_equal(
        np.concatenate([first.accuracies, second.accuracies]), whole.accuracies
    )


@pytest.mark.slow
def test_a_longer_run_that_is_stopped_goes_on(tmp_path):
    BASE.run(tmp_path)
    longer = dataclasses.replace(BASE, rounds=24)

    def stop(name, played, of):
        if name == "cgsv" and played > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        longer.run(tmp_path, watch=stop)
    assert same(longer.run(tmp_path).history, longer.run().history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mechanism": "cffl", "gamma": None}, "mechanism 'cffl' depends on the number of rounds"),
        ({"gamma": "cosine:1:0.1"}, "mechanism 'cgsv' depends on the number of rounds"),
        ({"learning_rate_decay": None}, "such as learning_rate_decay=0.8"),
        ({"seed": 1}, None),
    ],
)
def test_a_run_that_would_differ_is_refused_and_nothing_is_lost(tmp_path, fields, why):
    short = dataclasses.replace(BASE, **fields)
    first = short.run(tmp_path)
    longer = dataclasses.replace(BASE, **{"rounds": 9, **(fields if why else {})})
    with pytest.raises(ValueError, match=why or "differs: .*seed=1 there, 0 here"):
        longer.run(tmp_path)
    assert same(fj.load_run(tmp_path).history, first.history)


def parts(**options):
    train, test = fj.data.load("blobs")
    federation = fj.federation(
        model=fj.models.logistic(train), mechanism=fj.mechanisms.cgsv(), optimizer=optax.adam(1e-2),
        **options,
    )  # fmt: skip
    return federation, fj.data.power_law(train, num_agents=3, seed=0), test


@pytest.mark.slow
def test_calls_that_pass_on_the_state_are_one_long_run():
    key, given = jax.random.key(0), parts(participation=2)
    state, first = fj.run(key, *given, num_rounds=3)
    state, second = fj.run(None, *given, num_rounds=4, state=state)
    whole_state, whole = fj.run(key, *given, num_rounds=7)
    assert same(state.agents, whole_state.agents)
    assert same([first.importance, second.importance], [whole.importance[:3], whole.importance[3:]])
    assert same(first.trained_accuracies[:2], whole.trained_accuracies[:2])


@pytest.mark.slow
def test_rounds_after_a_state_are_counted_on_and_told_once(tmp_path):
    key, given, told = jax.random.key(0), parts(), []
    state, _ = fj.run(key, *given, num_rounds=2)
    fj.run(
        None, *given, num_rounds=2, state=state, out=tmp_path, track="csv",
        watch=lambda name, played, of: told.append(played),
    )  # fmt: skip
    rounds = [line.split(",")[0] for line in (tmp_path / "rounds.csv").read_text().splitlines()]
    assert rounds == ["round", *["3"] * 3, *["4"] * 3]
    assert told == sorted(set(told))


@pytest.mark.slow
def test_a_run_of_objects_keeps_records_and_goes_on(tmp_path):
    key, given = jax.random.key(0), parts()

    def stop(name, played, of):
        if played > 20:
            raise KeyboardInterrupt

    arguments = {"num_rounds": 50, "out": tmp_path / "run", "track": "csv"}
    with pytest.raises(KeyboardInterrupt):
        fj.run(key, *given, **arguments, watch=stop)
    state, history = fj.run(key, *given, **arguments)
    whole_state, whole = fj.run(key, *given, num_rounds=50)
    assert same(history, whole)
    assert same(state.agents, whole_state.agents)
    again, read = fj.run(key, *given, **arguments)
    assert same((again.agents, read), (whole_state.agents, whole))
    assert len((tmp_path / "run" / "rounds.csv").read_text().splitlines()) == 1 + 50 * 3
    with pytest.raises(ValueError, match="differs: num_rounds=50 there, 60 here"):
        fj.run(key, *given, **{**arguments, "num_rounds": 60})
    with pytest.raises(ValueError, match="holds a run of `fairjax.run`"):
        fj.load_run(tmp_path / "run")


@pytest.mark.slow
def test_a_state_of_another_federation_is_refused():
    key, given = jax.random.key(0), parts()
    state, _ = fj.run(key, *given, num_rounds=1)
    federation, shards, test = given
    other = dataclasses.replace(federation, mechanism=fj.mechanisms.rr())
    with pytest.raises(ValueError, match="`state` must be one that this federation gives"):
        fj.run(None, other, shards, test, num_rounds=1, state=state)
    with pytest.raises(ValueError, match="`params` must be left out"):
        fj.run(None, *given, num_rounds=1, state=state, params=state.server)
    with pytest.raises(ValueError, match="`state` must be a State"):
        fj.run(None, *given, num_rounds=1, state=state.agents)


@pytest.mark.slow
def test_a_mechanism_may_look_at_the_numbers_of_its_first_state():
    train, test = fj.data.load("blobs")
    shards = fj.data.uniform(train, num_agents=2, seed=0)

    def init(num_agents, params):
        return 1 + float(np.linalg.norm(np.asarray(jax.tree.leaves(params)[0])))

    def update(updates, state, context):
        return fj.mechanisms.fedavg().update(updates, (), context)[0], state

    fed = fj.federation(
        model=fj.models.logistic(train), optimizer=optax.sgd(0.1),
        mechanism=fj.mechanisms.Mechanism(init, update),
    )  # fmt: skip
    state, _ = fj.run(jax.random.key(0), fed, shards, test, num_rounds=1)
    assert state.mechanism > 0
