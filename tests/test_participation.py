"""Participation: who takes part in a round, and what happens to those who do not."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seen

import fairjax as fj
from fairjax import devices, trees
from fairjax.mechanisms import REGISTRY, Context, Outcome, Plan
from fairjax.simulation import (
    Behaviour,
    History,
    Memory,
    Rounds,
    change_uploads,
    check_participation,
)
from fairjax.simulation.participation import draw_present
from fairjax.simulation.round import Trained, pay

EXPERIMENT = fj.Experiment(dataset="blobs", num_agents=5, rounds=4, model="logistic")
LATE = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
each_mechanism = pytest.mark.parametrize("name", sorted(REGISTRY))


def run(**fields):
    return dataclasses.replace(EXPERIMENT, **fields).run()


@functools.lru_cache
def run_late(name):
    return dataclasses.replace(EXPERIMENT, mechanism=name, participation=LATE).run()


def same(left, right):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b, True), left, right)))


@pytest.mark.parametrize(
    "wrong", [0, -1, 0.0, 1.5, True, "abc", [], [[1, 0], [0, 0]], [[2, 0]], [1, 0], np.nan]
)
def test_what_is_no_participation_is_refused(wrong):
    with pytest.raises(ValueError, match="`participation` must"):
        check_participation(wrong)


@pytest.mark.parametrize("wrong", [6, LATE[:3], LATE[:, :4]])
def test_a_participation_must_fit_agents_and_rounds(wrong):
    with pytest.raises(ValueError, match="`participation` must"):
        dataclasses.replace(EXPERIMENT, participation=wrong)


@pytest.mark.parametrize("everybody", [1.0, 5])
def test_all_agents_of_every_round_are_a_run_without_participation(everybody):
    with_all, without = run(participation=everybody), run()
    assert same(with_all.history, without.history)
    assert same(with_all.state.agents, without.state.agents)


@pytest.mark.parametrize(("asked", "number"), [(2, 2), (0.4, 2), (0.35, 2), (0.01, 1)])
def test_so_many_agents_take_part_and_the_key_draws_others(asked, number):
    rows = [draw_present(asked, jax.random.key(key), 0, 4, 5) for key in range(9)]
    assert {int(row.sum()) for row in rows} == {number}
    assert len({tuple(row.tolist()) for row in rows}) > 1
    assert draw_present(asked, jax.random.key(0), 3, 4, 5).sum() == number  # the last round
    assert draw_present(asked, jax.random.key(0), 4, 4, 5).all()  # the round after the last


@pytest.mark.slow
@each_mechanism
def test_absent_agents_keep_everything_and_receive_nothing(name):
    full = dataclasses.replace(
        EXPERIMENT, mechanism=name, participation=LATE, optimizer="adam", model="mlp"
    )
    shards, _ = full.make_shards()
    federation = full.federation(shards)
    before = federation.init(jax.random.key(0), shards, num_rounds=4)
    step = jax.jit(federation.step)
    for row in LATE:
        after, record = step(before, shards)
        kept = [
            jax.tree.map(lambda leaf, absent=~row: leaf[absent], (state.agents, state.optimizer))
            for state in (before, after)
        ]
        assert same(*kept)
        assert np.isnan(record.contributions[~row]).all()
        assert np.isnan(record.fractions[~row]).all()
        assert not any(leaf[~row].any() for leaf in jax.tree.leaves(record.uploads))
        assert not record.participants[~row].any()
        before = after


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cgsv", "cgsv_released", "eci", "proportional", "rr", "cffl"])
def test_importance_of_absent_agents_is_kept_to_the_bit(name):
    history = run_late(name).history
    absent = ~LATE[1:]
    assert np.array_equal(history.importance[1:][absent], history.importance[:-1][absent])
    seen = np.maximum.accumulate(LATE).mean(1)  # each agent holds 1 / N from its first round on
    np.testing.assert_allclose(history.importance.sum(1), seen, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*REGISTRY} - {"iafl"}))  # its draws depend on N
def test_a_first_round_is_that_of_the_present_agents_alone(name):
    """An absent agent changes nothing for the others: they are judged and paid among themselves."""
    present = np.array([True, False, True, True, False])
    updates = jax.random.normal(jax.random.key(1), (5, 40)) + jnp.arange(40) / 20
    updates = jnp.where(present[:, None], updates, 0)
    exact = {"contribution": "shapley"} if name == "proportional" else {}
    mechanism = REGISTRY[name](**exact)
    if name == "shapfed":
        updates = {"head": {"kernel": updates.reshape(5, 10, 4), "bias": updates[:, :4]}}

    def play(rows, present):
        mine = jax.tree.map(lambda leaf: leaf[rows], updates)
        zeros = jax.tree.map(jnp.zeros_like, mine)
        server = jax.tree.map(lambda leaf: leaf[0], zeros)
        context = Context(
            shard_sizes=jnp.array([10, 20, 30, 40, 50])[rows], present=present,
            shard_classes=jnp.array([2, 3, 4, 2, 3])[rows], num_rounds=9, key=jax.random.key(2),
            learning_rate=0.1, server=server, agents=zeros, head="head",
            losses=lambda: jnp.array([1.0, 0.0, 2.0, 3.0, 0.0])[rows],
            utility=lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(params)),
            held_out_loss=lambda params: -sum(leaf.sum() for leaf in jax.tree.leaves(params)),
            example_losses=seen.example_losses, units=seen.units(server),
        )  # fmt: skip
        state = seen.begin(mechanism, len(rows), server, (jnp.asarray(rows) + 1) / 10)
        return jax.jit(lambda *given: mechanism.update(*given, context)[0])(mine, state)

    alone = play(np.flatnonzero(present), None)
    among = play(np.arange(5), jnp.array(present))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, among.aggregate, alone.aggregate)
    jax.tree.map(lambda a, b: close(a[present], b), among.rewards, alone.rewards)
    close(among.contributions[present], alone.contributions)
    close(among.fractions[present], alone.fractions)


@pytest.mark.slow
def test_agents_of_fedavg_that_return_train_the_server_s_model():
    shards, _ = EXPERIMENT.make_shards()
    federation = fj.federation(
        model=fj.models.logistic(shards.data), mechanism=fj.mechanisms.fedavg(),
        optimizer=optax.sgd(0.1), participation=[[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]],
    )  # fmt: skip
    state = federation.init(jax.random.key(0), shards)
    for agent in (0, 1):
        state, record = jax.jit(federation.step)(state, shards)
        jax.tree.map(
            lambda paid, server, agent=agent: np.testing.assert_allclose(paid[agent], server, 1e-6),
            state.agents, state.server,
        )  # fmt: skip
        assert np.flatnonzero(record.participants).tolist() == [agent]


@pytest.mark.slow
def test_a_late_agent_has_no_importance_before_it_joins():
    history = run_late("cgsv").history
    assert not history.importance[0, 3:].any()
    assert history.importance[1, 3] > 0 == history.importance[1, 4]


def test_a_late_agent_s_first_importance_follows_from_its_first_contribution():
    previous, present = jnp.array([0.2, 0.2, 0.2, 0.2, 0.0]), jnp.ones(5, bool)
    judged = jnp.array([0.5, 0.5, 0.5, 0.5, 0.5])
    for alpha in (0.0, 0.5, 0.95):
        after = fj.rewards.importance(previous, judged, alpha, present=present)
        np.testing.assert_allclose(after, 0.2, rtol=1e-6)


@pytest.mark.slow
def test_the_last_round_trains_all_once_more():
    result = run(mechanism="fedavg", participation=1)
    assert np.isfinite(result.trained_accuracies).all()
    assert np.ptp(result.trained_accuracies) > 0


@pytest.mark.parametrize("behaviour", ["free_rider_stale", "collude"])
def test_dishonest_agents_that_are_absent_at_first(behaviour):
    updates = jnp.arange(1.0, 5.0)[:, None] * jnp.ones(3)
    memory = Memory(
        jnp.zeros((4, 3)), jnp.zeros(3), jnp.zeros((4, 3)), jnp.array([True, True, True, False])
    )
    agents = [Behaviour(1, behaviour), Behaviour(3, behaviour)]
    present = jnp.array([True, False, True, True])
    memory = memory.with_first(updates, 7, present)
    uploads = change_uploads(jax.random.key(0), updates, memory, 7, agents, present)
    assert memory.joined.all()
    np.testing.assert_array_equal(memory.first[:3], 0)  # those that had joined keep their first
    np.testing.assert_array_equal(uploads[3], updates[3])  # its first update, or that of a leader


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_numbers():
    shards, test = EXPERIMENT.make_shards()
    behaviours = {"free_rider_stale": 1, "free_rider_copy": 1}
    full = dataclasses.replace(EXPERIMENT, participation=2, behaviours=behaviours, rounds=40)
    rounds = Rounds(jax.random.key(0), full.federation(shards), shards, test, 40)
    stages = list(rounds.stages())
    *_, again = rounds.stages(stages[4])
    assert same(stages[-1].rows, again.rows)
    assert same(stages[-1].state.agents, again.state.agents)


@pytest.mark.slow
def test_two_devices_have_the_same_participants():
    full = dataclasses.replace(EXPERIMENT, participation=2)
    one, two = full.run(), full.run(mesh=devices.mesh(2))
    assert np.array_equal(one.participants, two.participants)
    np.testing.assert_allclose(one.history.importance, two.history.importance, rtol=1e-3)


@pytest.mark.slow
def test_a_sweep_has_the_same_participants_as_single_runs():
    swept = fj.sweep(dataclasses.replace(EXPERIMENT, participation=0.4), seeds=[0, 3])
    for one in swept:
        alone = run(participation=0.4, seed=one.experiment.seed)
        assert np.array_equal(one.participants, alone.participants)
        np.testing.assert_allclose(one.history.importance, alone.history.importance, rtol=1e-3)


@pytest.mark.slow
def test_a_run_with_participation_is_not_one_without(tmp_path):
    part = dataclasses.replace(EXPERIMENT, participation=2)
    part.run(tmp_path)
    for read in (EXPERIMENT.run, lambda out: fj.load_run(out, EXPERIMENT)):
        with pytest.raises(ValueError, match="differs: participation=2 there, None here"):
            read(tmp_path)


@pytest.mark.slow
def test_a_table_is_kept_in_the_records(tmp_path):
    result = dataclasses.replace(EXPERIMENT, participation=LATE).run(tmp_path)
    again = fj.load_run(tmp_path)
    assert again.experiment == result.experiment
    assert np.array_equal(again.participants, LATE)
    assert np.isfinite(again.latest("contributions")).all()


@pytest.mark.slow
def test_federated_shapley_reads_who_took_part():
    result = run(mechanism="fedavg", participation=LATE, record_updates=True)
    history = result.history
    values = fj.contributions.federated_shapley(
        result.experiment.utility(), history.servers, history.updates, history.participants,
        result.shard_sizes,
    )  # fmt: skip
    masked = fj.contributions.multi_round_shapley(
        result.experiment.utility(), history.servers, history.updates,
        history.participants * result.shard_sizes,
    )  # fmt: skip
    np.testing.assert_array_equal(values, masked)
    assert values[4] != 0


@pytest.mark.slow
def test_an_absent_agent_receives_nothing_from_a_plan():
    """A plan may let all train the server's model; who is absent keeps its own."""

    def plan(state, context):
        return Plan(start=trees.broadcast(3, context.server))

    fedavg = fj.mechanisms.fedavg()
    mechanism = fj.mechanisms.Mechanism(fedavg.init, fedavg.update, plan)
    train, _ = fj.data.load("blobs")
    shards = fj.data.uniform(train, num_agents=3, seed=0)
    there = np.array([[True, True, False]] * 2)
    fed = fj.federation(
        model=fj.models.logistic(train), mechanism=mechanism, optimizer=optax.sgd(0.1),
        participation=there,
    )  # fmt: skip
    state = fed.init(jax.random.key(0), shards, num_rounds=2)
    step = jax.jit(fed.step)
    after = step(step(state, shards)[0], shards)[0]
    for first, last in zip(*map(jax.tree.leaves, (state.agents, after.agents)), strict=True):
        np.testing.assert_array_equal(first[2], last[2])
        assert not np.array_equal(first[0], last[0])


def test_rewards_of_absent_agents_are_remembered():
    memory = Memory(jnp.zeros((3, 2)), jnp.zeros(2), jnp.array([[1.0, 1], [2, 2], [3, 3]]))
    after = memory.after(jnp.ones(2), jnp.full((3, 2), 9.0), jnp.array([True, False, True]))
    np.testing.assert_array_equal(after.rewards[:, 0], [9, 2, 9])
    np.testing.assert_array_equal(after.aggregate, [1, 1])


def test_the_latest_numbers_are_those_of_the_last_round_with_the_agent():
    nan = np.nan
    values = np.array([[1.0, 2.0, nan], [3.0, nan, nan], [nan, 4.0, nan], [5.0, nan, nan]])
    none = np.zeros_like(values)
    empty = History(*[none] * len(History._fields))._replace(metrics=None)
    history = empty._replace(contributions=values, participants=~np.isnan(values))
    result = fj.Result(EXPERIMENT, history, None, np.ones(3), np.ones(3), ("honest",) * 3)
    np.testing.assert_array_equal(result.latest("contributions"), [5, 4, nan])


def test_only_those_present_are_paid():
    held = {"w": jnp.array([[1.0], [2.0], [3.0]])}
    state: Any = types.SimpleNamespace(agents=held, server={"w": jnp.array([10.0])})
    trained = Trained(held, held, held, (), None, jnp.ones(3, bool), jnp.zeros(3, bool))
    five = {"w": jnp.full((3, 1), 5.0)}
    outcome = Outcome({"w": jnp.array([7.0])}, five, *[jnp.ones(3)] * 3)
    for present, ends in ((None, [6, 7, 8]), (jnp.array([True, False, True]), [6, 2, 8])):
        paid = pay(state, Plan(), trained, outcome, present)
        assert paid.agents["w"].ravel().tolist() == ends
        assert paid.server["w"].tolist() == [17]
        assert not paid.broken
