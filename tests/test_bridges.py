"""Bridges: updates that other libraries hold are judged and paid as in fairjax, without a copy."""

import os
import subprocess
import sys
from pathlib import Path

import flower_simulation as simulation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twin

import fairjax as fj
from fairjax import trees
from fairjax.bridges import dlpack, judging
from fairjax.mechanisms.base import Context

NODES = (11, 12, 13)
EXAMPLES = {11: 10, 12: 30, 13: 20}
FIRST = {"bias": np.zeros(2, np.float32), "kernel": np.ones((2, 3), np.float32)}


class Grid:
    """A stand-in for Flower's grid: it only lists nodes."""

    def __init__(self, *nodes):
        self.nodes = nodes

    def get_node_ids(self):
        return self.nodes


def updates_of(seed, num_agents=3):
    """Returns updates `[N, ...]` around a common direction, of the shapes of FIRST."""
    rng = np.random.default_rng(seed)
    common = {name: rng.normal(size=leaf.shape) for name, leaf in FIRST.items()}
    return {
        name: (leaf + rng.normal(size=(num_agents, *leaf.shape))).astype(np.float32)
        for name, leaf in common.items()
    }


@pytest.fixture
def flower(monkeypatch):
    pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")
    from flwr.supercore.task_identity import TaskIdentity

    from fairjax.bridges import flower

    # Flower sets this in the process of a server.
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return flower


def first_record(flower):
    return flower.ArrayRecord({name: flower.Array(leaf) for name, leaf in FIRST.items()})


def sent(flower, strategy, server_round=1, nodes=NODES):
    """Returns the training messages of a round, by node."""
    config = flower.ConfigRecord()
    messages = strategy.configure_train(server_round, first_record(flower), config, Grid(*nodes))
    assert all(message.content["config"]["server-round"] == server_round for message in messages)
    return {message.metadata.dst_node_id: message for message in messages}


def arrays_of(message):
    return {name: array.numpy() for name, array in message.content["arrays"].items()}


def reply(flower, message, update, num_examples=None):
    """Returns what a client answers whose training changed its model by an update."""
    node = message.metadata.dst_node_id
    trained = {k: np.asarray(array + update[k]) for k, array in arrays_of(message).items()}
    num_examples = EXAMPLES[node] if num_examples is None else num_examples
    content = flower.RecordDict(
        {
            "arrays": flower.ArrayRecord({k: flower.Array(v) for k, v in trained.items()}),
            "metrics": flower.MetricRecord({"num-examples": num_examples, "loss": float(node)}),
        }
    )
    return flower.Message(content, reply_to=message)


def replies(flower, messages, updates, without=()):
    return [
        reply(flower, message, {k: leaf[NODES.index(node)] for k, leaf in updates.items()})
        for node, message in messages.items()
        if node not in without
    ]


def test_a_round_of_remote_agents_by_hand():
    def update(updates, state, context):
        total = updates["w"].sum(0)
        seen = context.round * jnp.ones(3), context.shard_sizes, context.num_rounds * jnp.ones(3)
        rewards = {"w": jnp.array([[1.0], [2.0], [4.0]])}
        return fj.mechanisms.Outcome({"w": total}, rewards, *seen), state

    mechanism = fj.mechanisms.Mechanism(lambda num_agents: (), update)
    state = judging.first_state({"w": np.float32([10])}, mechanism, 3)
    state = state._replace(num_examples=np.float32([3, 2, 5]))
    trained = {"w": np.float32([[13], [np.nan], [10]])}  # the last did not reply
    present = np.array([True, True, False])
    state, judged = judging.play(mechanism, state, trained, present, 2, 7)
    np.testing.assert_array_equal(judged.rounds, 2)
    np.testing.assert_array_equal(judged.contributions, [1, 1, np.nan])  # rounds count from 0
    np.testing.assert_array_equal(judged.importance, [3, 2, 5])
    np.testing.assert_array_equal(judged.fractions, [7, 7, np.nan])
    np.testing.assert_array_equal(judged.excluded, [False, True, True])
    np.testing.assert_array_equal(state.agents["w"], [[11], [12], [10]])
    np.testing.assert_array_equal(state.server["w"], [13])


def test_remote_agents_are_judged_and_paid_by_the_mechanism(flower):
    mechanism = fj.mechanisms.cgsv(beta=2.0)
    strategy = flower.CGSV(mechanism, num_agents=3)
    agents = {name: np.stack([leaf] * 3) for name, leaf in FIRST.items()}
    server, state = FIRST, mechanism.init(3)
    sizes = np.array([EXAMPLES[node] for node in NODES])
    for number in (1, 2):
        messages = sent(flower, strategy, number)
        for row, node in enumerate(NODES):
            for name, array in arrays_of(messages[node]).items():
                np.testing.assert_allclose(array, agents[name][row], atol=1e-6)
        updates = updates_of(number)
        # Replies come in any order.
        found = strategy.aggregate_train(number, replies(flower, messages, updates)[::-1])
        outcome, state = mechanism.update(updates, state, Context(shard_sizes=sizes))
        agents = jax.tree.map(np.add, agents, outcome.rewards)
        server = jax.tree.map(np.add, server, outcome.aggregate)
        arrays, metrics = found
        for name in ("contributions", "importance", "fractions"):
            expected = getattr(outcome, name)
            np.testing.assert_allclose(metrics[name], expected, atol=1e-6)
            np.testing.assert_allclose(getattr(strategy.history, name)[-1], expected, atol=1e-6)
        assert metrics["node-ids"] == list(NODES)
        assert metrics["loss"] == pytest.approx((11 * 10 + 12 * 30 + 13 * 20) / 60)
        for name, leaf in server.items():
            np.testing.assert_allclose(arrays[name].numpy(), leaf, atol=1e-6)
            np.testing.assert_allclose(strategy.agents[name], agents[name], atol=1e-6)
    assert strategy.history.importance.shape == (2, 3)
    assert strategy.history.rounds.tolist() == [1, 2]


def wrong_arrays(flower, message):
    arrays = flower.ArrayRecord({"bias": flower.Array(np.zeros(3, np.float32))})
    metrics = flower.MetricRecord({"num-examples": 30})
    return flower.Message(
        flower.RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message
    )


def failure(flower, message):
    from flwr.app import Error

    return flower.Message(Error(code=0, reason="out of memory"), reply_to=message)


def no_examples(flower, message):
    zero = jax.tree.map(np.zeros_like, FIRST)
    return reply(flower, message, zero, num_examples=0)


def no_records(flower, message):
    return flower.Message(flower.RecordDict(), reply_to=message)


@pytest.mark.parametrize(
    "answer",
    [None, failure, wrong_arrays, no_examples, no_records],
    ids=lambda answer: answer.__name__ if answer else "no_reply",
)
def test_an_agent_without_a_reply_is_absent_and_is_paid_nothing(flower, answer):
    mechanism = fj.mechanisms.cgsv()
    strategy = flower.CGSV(mechanism, num_agents=3)
    messages = sent(flower, strategy)
    strategy.aggregate_train(1, replies(flower, messages, updates_of(0)))
    before, importance = strategy.agents, strategy.history.importance[-1]
    messages = sent(flower, strategy, 2)
    updates = updates_of(1)
    heard = replies(flower, messages, updates, without=[12])
    if answer is not None:
        heard.append(answer(flower, messages[12]))
    strategy.aggregate_train(2, heard)
    absent = trees.scaled(np.array([1, 0, 1]), updates)
    there = np.array([True, False, True])
    context = Context(np.array([EXAMPLES[node] for node in NODES]), present=there)
    outcome, _ = mechanism.update(absent, jnp.asarray(importance), context)
    history = strategy.history
    for name in ("contributions", "fractions"):
        found, expected = getattr(history, name)[-1], getattr(outcome, name)
        np.testing.assert_allclose(found[there], expected[there], atol=1e-6)
        assert np.isnan(found[1])
    np.testing.assert_allclose(history.importance[-1], outcome.importance, atol=1e-6)
    assert history.importance[-1, 1] == importance[1]
    assert history.excluded.tolist() == [[False] * 3, [False, True, False]]
    for name, leaf in strategy.agents.items():
        np.testing.assert_array_equal(leaf[1], before[name][1])
        assert (leaf[0] != before[name][0]).any()
    # Its model is kept for it.
    jax.tree.map(np.testing.assert_array_equal, arrays_of(sent(flower, strategy, 3)[12]),
                 {name: leaf[1] for name, leaf in before.items()})  # fmt: skip


def test_a_broken_reply_counts_as_zero_but_is_paid(flower):
    strategy = flower.CGSV(num_agents=3)
    updates = updates_of(0)
    updates["bias"][1, 0] = np.nan
    strategy.aggregate_train(1, replies(flower, sent(flower, strategy), updates))
    history = strategy.history
    assert history.replied[0].all()
    assert history.excluded[0].tolist() == [False, True, False]
    assert history.contributions[0, 1] == 0
    assert history.fractions[0, 1] > 0
    assert all(np.isfinite(leaf).all() for leaf in strategy.agents.values())


def test_an_agent_that_never_replied_has_no_share_of_the_first_aggregate(flower):
    strategy = flower.CGSV(num_agents=3)
    updates = updates_of(0)
    messages = sent(flower, strategy)
    arrays, _ = strategy.aggregate_train(1, replies(flower, messages, updates, without=[11]))
    flat = np.concatenate([leaf.reshape(3, -1) for leaf in updates.values()], 1)
    units = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    expected = 0.5 * (30 * units[1] + 20 * units[2]) / 50
    found = np.concatenate([(arrays[k].numpy() - FIRST[k]).reshape(-1) for k in updates])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_round_without_replies_changes_nothing(flower):
    strategy = flower.CGSV(num_agents=3)
    messages = sent(flower, strategy)
    errors = [failure(flower, message) for message in messages.values()]
    assert strategy.aggregate_train(1, errors) == (None, None)
    assert strategy.aggregate_train(1, []) == (None, None)
    assert strategy.history.importance.shape == (0, 3)
    messages = sent(flower, strategy, 2)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(messages[13]), FIRST)


def test_the_agents_are_those_of_the_first_round(flower):
    strategy = flower.CGSV(num_agents=3)
    assert list(sent(flower, strategy, nodes=(13, 12, 11))) == list(NODES)
    assert list(sent(flower, strategy, 2, nodes=(7, 11, 13))) == [11, 13]


def test_every_agent_evaluates_its_own_model(flower):
    strategy = flower.CGSV(fj.mechanisms.cgsv(beta=0.01), num_agents=3)
    strategy.aggregate_train(1, replies(flower, sent(flower, strategy), updates_of(0)))
    config = flower.ConfigRecord()
    messages = strategy.configure_evaluate(1, first_record(flower), config, Grid(*NODES, 7))
    found = {message.metadata.dst_node_id: arrays_of(message) for message in messages}
    assert set(found) == set(NODES)
    for row, node in enumerate(NODES):
        for name, leaf in strategy.agents.items():
            np.testing.assert_array_equal(found[node][name], leaf[row])
    assert (found[11]["kernel"] != found[12]["kernel"]).any()


def begin(flower, first, **options):
    """Returns a strategy and its first training messages, for given first arrays."""
    strategy = flower.CGSV(num_agents=3, **options)
    config = flower.ConfigRecord()
    return strategy, list(strategy.configure_train(1, first, config, Grid(*NODES)))


def test_arrays_keep_their_order_and_their_axes(flower):
    listed = flower.ArrayRecord([np.full(2, place, np.float32) for place in range(12)])
    named = flower.ArrayRecord(
        {
            "weight": flower.Array(np.ones(3, np.float32)),
            "bias": flower.Array(np.zeros(3, np.float32)),
            "scale": flower.Array(np.array(2.0, np.float32)),
        }
    )
    for first in (listed, named):
        strategy, messages = begin(flower, first)
        answers = []
        for message in messages:
            assert list(message.content["arrays"]) == list(first)
            sent = arrays_of(message)
            update = {name: np.ones_like(leaf) for name, leaf in sent.items()}
            answers.append(reply(flower, message, update))
        server, _ = strategy.aggregate_train(1, answers)
        assert list(server) == list(first)
        for name, array in first.items():
            changed = server[name].numpy() - array.numpy()
            assert changed.shape == array.numpy().shape
            assert (changed > 0).all()


@pytest.mark.parametrize("odd", [None, [1.0, 2.0]])
def test_metrics_that_not_all_replies_have_are_left_out(flower, odd):
    strategy = flower.CGSV(num_agents=3)
    answers = replies(flower, sent(flower, strategy), updates_of(0))
    metrics = answers[0].content["metrics"]
    del metrics["loss"]
    if odd is not None:
        metrics["loss"] = odd
    _, found = strategy.aggregate_train(1, answers)
    assert "loss" not in found
    assert strategy.history.replied[0].all()


def test_a_mechanism_that_needs_more_than_flower_gives_is_refused_before_anybody_trains(flower):
    with pytest.raises(ValueError, match="`mechanism` must need only updates, .*got 'cffl'"):
        begin(flower, first_record(flower), mechanism=fj.mechanisms.cffl())
    broken = flower.ArrayRecord([np.full(2, np.nan, np.float32)])
    with pytest.raises(ValueError, match="`initial_arrays` must be finite"):
        begin(flower, broken)
    with pytest.raises(ValueError, match="`initial_arrays` must hold trained parameters, got none"):
        begin(flower, flower.ArrayRecord([]))


def test_the_strategy_says_what_it_cannot_do(flower):
    with pytest.raises(ValueError, match="'fair_yet_equal', which plans"):
        flower.CGSV(fj.mechanisms.fair_yet_equal(), num_agents=3)
    with pytest.raises(ValueError, match="`min_available_nodes` must be at most 3"):
        flower.CGSV(num_agents=3, min_available_nodes=4)
    for arguments, message in (
        ({"mechanism": "cgsv"}, "`mechanism` must be a Mechanism"),
        ({"num_agents": 3.0}, "`num_agents` must be a whole number"),
        ({"fraction_evaluate": 2}, "`fraction_evaluate` must be a finite number in"),
        ({"weighted_by_key": 3}, "`weighted_by_key` must be a text, got 3"),
        ({"train_metrics_aggr_fn": 3}, "`train_metrics_aggr_fn` must be a function or None"),
    ):
        with pytest.raises(ValueError, match=message):
            flower.CGSV(**{"num_agents": 3, **arguments})
    strategy = flower.CGSV(num_agents=3)
    with pytest.raises(ValueError, match="`node_id` must be one of `node_ids`, got 3"):
        strategy.model_of(3)
    counters = flower.ArrayRecord([np.zeros(2, np.int64)])
    with pytest.raises(ValueError, match="trained parameters in float32 .* got int64 in '0'"):
        strategy.configure_train(1, counters, flower.ConfigRecord(), Grid(*NODES))


def test_a_simulation_of_flower_judges_as_the_simulator(tmp_path):
    pytest.importorskip("flwr", reason="Flower is not installed: pip install '.[flower]'")
    pytest.importorskip("ray", reason="Flower's simulation is not installed: pip install ray")
    path = tmp_path / "judged.npz"
    environment = os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(fj.__file__).parent.parent),
    }
    command = [sys.executable, simulation.__file__, str(path)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    found = np.load(path)

    shards, test, params = simulation.federation_data()
    federation = fj.federation(
        model=fj.models.Model(init=lambda key: params, apply=simulation.logits),
        mechanism=fj.mechanisms.cgsv(),
        optimizer=optax.sgd(simulation.LEARNING_RATE),
        batch_size=int(max(shards.sizes)),
    )
    state, history = fj.run(
        jax.random.key(0), federation, shards, test,
        num_rounds=simulation.NUM_ROUNDS, params=params,
    )  # fmt: skip
    for name in ("contributions", "importance", "fractions"):
        np.testing.assert_allclose(found[name], getattr(history, name), atol=1e-6)
    assert not found["excluded"].any()
    for whose in ("agents", "server"):
        for name, leaf in getattr(state, whose).items():
            np.testing.assert_allclose(found[f"{whose}/{name}"], leaf, atol=1e-6)


@pytest.fixture
def games():
    pytest.importorskip("shapiq", reason="shapiq is not installed: pip install '.[shapiq]'")
    from fairjax.bridges import shapiq

    return shapiq


def exact(game, index="SV"):
    from shapiq.game_theory import ExactComputer

    return ExactComputer(game)(index, 1).get_n_order_values(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", twin.KINDS)
@pytest.mark.parametrize("num_agents", [2, 7, 10])
def test_shapiq_finds_the_exact_values_of_the_cosine_game(games, kind, num_agents):
    updates = twin.uploads(kind, num_agents, 200, seed=1)
    weights = np.random.default_rng(2).uniform(0.1, 1, size=num_agents)
    with jax.enable_x64(True):
        found = exact(games.cosine_game(updates, weights))
        expected = fj.contributions.cosine_shapley(updates, weights)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_shapiq_finds_the_exact_values_in_single_precision(games):
    updates = twin.uploads("common", 9, 500, seed=1)
    expected = fj.contributions.cosine_shapley(updates)
    np.testing.assert_allclose(exact(games.cosine_game(updates)), expected, atol=1e-6)


def test_the_cosine_game_is_zero_for_nobody_and_one_for_all(games):
    game = games.cosine_game(twin.uploads("reversed", 40, 100, seed=0))
    assert game.normalization_value == 0
    assert game([(), tuple(range(40))]).tolist() == [0, 1]


@pytest.mark.slow
def test_shapiq_samples_games_of_more_agents_than_can_be_enumerated(games):
    from shapiq import PermutationSamplingSV

    updates = twin.uploads("common", 30, 200, seed=0)
    sampler = PermutationSamplingSV(30, random_state=0)
    found = sampler.approximate(budget=12000, game=games.cosine_game(updates))
    expected = fj.contributions.mean_field_cosine_shapley(updates)
    np.testing.assert_allclose(found.get_n_order_values(1), expected, atol=0.02)


@pytest.mark.parametrize("nobody", [0.0, 0.7])
def test_shapiq_and_fairjax_agree_on_any_utilities(games, nobody):
    utilities = np.random.default_rng(0).uniform(size=2**6)
    utilities[0] = nobody
    game = games.utility_game(utilities)
    assert game.normalization_value == nobody
    assert game([(1, 3)])[0] == pytest.approx(utilities[0b1010] - nobody)
    np.testing.assert_allclose(exact(game), fj.contributions.shapley(utilities), atol=1e-6)
    np.testing.assert_allclose(exact(game, "BV"), fj.contributions.banzhaf(utilities), atol=1e-6)


def test_utilities_that_are_no_table_are_refused(games):
    with pytest.raises(ValueError, match=r"`utilities` must hold .* got shape \(3,\)"):
        games.utility_game([1.0, 2.0, 3.0])


def aligned(shape, dtype=np.float32, offset=0):
    """Returns zeros that start `offset` bytes after a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.zeros(size + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    return buffer[start : start + size].view(dtype).reshape(shape)


def test_arrays_of_numpy_are_judged_in_their_own_memory():
    updates = {"kernel": aligned((4, 3, 2)), "biases": [aligned((4, 2))]}
    arrays = dlpack.shared(updates)
    for ours, theirs in zip(jax.tree.leaves(arrays), jax.tree.leaves(updates), strict=True):
        assert ours.unsafe_buffer_pointer() == theirs.ctypes.data
        assert ours.shape == theirs.shape
    updates["kernel"][:] = np.random.default_rng(0).normal(size=(4, 3, 2))
    found = fj.contributions.cosine_shapley(arrays)
    np.testing.assert_allclose(found, fj.contributions.cosine_shapley(updates), atol=1e-6)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (aligned((4, 2), offset=4), "64 bytes"),
        (aligned((4, 4))[:, ::2], "without gaps"),
        (aligned((4, 2), np.float64), "got float64"),
        (
            np.broadcast_to(aligned(2), (4, 2)),
            "(without gaps|cannot be shared)",
        ),
        (1.0, "with `__dlpack__`"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_the_reason(tensor, message):
    with pytest.raises(ValueError, match=rf"`tensors\['kernel'\]` .*{message}"):
        dlpack.shared({"kernel": tensor})


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")


def test_tensors_of_pytorch_are_judged_and_paid_in_their_own_memory(torch):
    tensors = {"kernel": torch.randn(4, 3, 2), "bias": torch.randn(4, 2)}
    arrays = dlpack.shared(tensors)
    for name, tensor in tensors.items():
        assert arrays[name].unsafe_buffer_pointer() == tensor.data_ptr()
    contributions = fj.contributions.cosine(arrays)
    expected = fj.contributions.cosine({name: tensor.numpy() for name, tensor in tensors.items()})
    np.testing.assert_allclose(contributions, expected, atol=1e-6)
    aggregate = {name: array.mean(0) for name, array in arrays.items()}
    rewards = fj.rewards.sparsify(aggregate, jnp.linspace(0, 1, 4))
    for name, tensor in dlpack.to_torch(rewards).items():
        assert tensor.data_ptr() == rewards[name].unsafe_buffer_pointer()
        torch.testing.assert_close(tensor[3], tensors[name].mean(0))


def test_parameters_of_pytorch_are_shared_detached(torch):
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"`tensors\['weight'\]` .* share its `.detach\(\)`"):
        dlpack.shared({"weight": layer.weight})
    assert dlpack.shared(layer.state_dict())["weight"].shape == (2, 3)


JUDGE_A_LARGE_TENSOR = """
import resource, sys, jax, torch
import fairjax as fj
from fairjax.bridges import dlpack

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

measure = getattr(fj.contributions, sys.argv[1])
tensor = torch.empty(100, 1_000_000).normal_()
jax.block_until_ready(measure(dlpack.shared(tensor[:, :16].contiguous())))  # what compiling takes
before = peak()
jax.block_until_ready(measure(dlpack.shared(tensor)))
assert peak() - before < tensor.nbytes / 2, (before, peak())
"""


@pytest.mark.parametrize("measure", ["cosine", "mean_field_cosine_shapley"])
def test_a_large_tensor_is_judged_without_a_copy(torch, measure):
    root = str(Path(fj.__file__).parent.parent)
    command = [sys.executable, "-c", JUDGE_A_LARGE_TENSOR, measure]
    environment = os.environ | {"PYTHONPATH": root}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
