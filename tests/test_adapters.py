"""Adapters: low-rank changes of a frozen network, from local training to the report."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fairjax as fj
from fairjax import lowrank, trees
from fairjax.cli import main
from fairjax.mechanisms import Plan
from fairjax.simulation.adapting import Ranked
from fairjax.simulation.training import Own, Shard
from fairjax.studies import STUDIES

FOUR = fj.mechanisms.FOR_ADAPTERS


@pytest.fixture(scope="module")
def data():
    train, test = fj.data.load("digits")
    return fj.data.power_law(train, num_agents=4, seed=0, samples_per_agent=40), test


@pytest.fixture(scope="module")
def network(data):
    model = fj.models.mlp(data[0].data, hidden=(16,))
    return model, model.init(jax.random.key(5))


def federation(network, mechanism="flora", optimizer=None, rank=4, alpha=None, **given):
    if isinstance(mechanism, str):
        mechanism = getattr(fj.mechanisms, mechanism)()
    model = fj.models.lora(*network, rank=rank, alpha=alpha)
    optimizer = optax.sgd(0.5) if optimizer is None else optimizer
    return fj.federation(model=model, mechanism=mechanism, optimizer=optimizer, **given)


def step(federation, shards, rounds=1, key=0):
    state = federation.init(jax.random.key(key), shards)
    for _ in range(rounds):
        state, record = jax.jit(federation.step)(state, shards)
    return state, record


def test_an_adapted_model_begins_as_the_frozen_one(data, network):
    shards, test = data
    model, params = network
    adapted = fj.models.lora(model, params, rank=3)
    held = adapted.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, held) == {
        "Dense_0": {"kernel": (64, 16)},
        "head": {"kernel": (16, 10), "bias": (10,)},
    }
    np.testing.assert_array_equal(adapted.apply(held, test.x), model.apply(params, test.x))
    assert adapted.head == "head"


@pytest.mark.slow
def test_without_adapters_all_four_are_fedavg_and_no_study_repeats_it(data, network):
    shards, _ = data
    plain = {"model": network[0], "optimizer": optax.sgd(0.5)}
    ends = []
    for name in ("fedavg", *FOUR):
        made = fj.federation(mechanism=getattr(fj.mechanisms, name)(), **plain)
        ends.append(step(made, shards, rounds=2)[0].agents)
    for end in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, end, ends[0])
    for name, study in STUDIES.items():
        cells = [cell for quick in (True, False) for cell in study.cells(quick)]
        found = {cell.experiment.mechanism for cell in cells if cell.experiment is not None}
        assert name == "adapters" or not found & set(FOUR)


def test_any_pytree_of_parameters_can_be_adapted():
    def apply(params, x, key=None):
        return jnp.tanh(x @ params[0][0]) @ params[1]

    model = fj.models.Model(init=lambda key: [[jnp.ones((4, 6))], jnp.ones((6, 3))], apply=apply)
    adapted = fj.models.lora(model, model.init(None), rank=2, targets="^0/0$")
    held = adapted.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, held) == {"0": {"0": (4, 6)}}
    held = jax.tree.map(lambda leaf: leaf + 0.5, held)
    x = jnp.ones((2, 4))
    np.testing.assert_allclose(
        adapted.apply(held, x), apply([[jnp.full((4, 6), 1.5)], jnp.ones((6, 3))], x), rtol=1e-6
    )


def test_attention_is_adapted_by_default_and_as_matrices():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(x)
            return nn.Dense(3, name="head")(x.mean(1))

    x = jnp.ones((2, 5, 8))
    model = fj.models.from_flax(Net(), x, head="head")
    adapted = fj.models.lora(model, model.init(jax.random.key(0)), rank=2)
    shapes = jax.tree.map(jnp.shape, adapted.init(jax.random.key(0)))
    assert shapes["attention"] == {"query": {"kernel": (8, 8)}, "value": {"kernel": (8, 8)}}
    assert adapted.apply(adapted.init(None), x).shape == (2, 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rank": 0}, "`rank` must be"),
        ({"alpha": 0.0}, "`alpha` must be a finite number above 0"),
        ({"targets": "attention"}, "`targets` must match .* Paths: Dense_0/kernel, head/kernel"),
        ({"targets": "("}, "`targets` must be a regular expression"),
        ({"params": {"w": np.arange(3)}}, "`params` must hold arrays of floating numbers"),
        ({"params": {"w": np.ones(3)}}, "`params` must have the model's shapes"),
    ],
)
def test_wrong_arguments_are_refused(network, given, words):
    model, params = network
    with pytest.raises(ValueError, match=words):
        fj.models.lora(**{"model": model, "params": params, **given})


def test_ranks_need_adapters_and_one_number_each(data, network):
    model, _ = network
    parts = {"mechanism": fj.mechanisms.flora(), "optimizer": optax.sgd(0.1)}
    with pytest.raises(ValueError, match="`ranks` must be left out for a model without adapters"):
        fj.federation(model=model, ranks=(2, 2), **parts)
    with pytest.raises(ValueError, match=r"`ranks\[1\]` must be"):
        federation(network, ranks=(2, 0))
    with pytest.raises(ValueError, match="`ranks` must be one number, or one for each of the 4"):
        federation(network, ranks=(2, 1)).init(jax.random.key(0), data[0])
    with pytest.raises(ValueError, match="`server_optimizer` must be left out for a model with"):
        federation(network, server_optimizer=optax.sgd(1.0))
    with pytest.raises(ValueError, match="`ranks` must be equal for the mechanism 'fedit'"):
        step(federation(network, "fedit", ranks=(4, 4, 2, 2)), data[0])


@pytest.mark.slow
def test_local_training_is_that_of_the_factors(data, network):
    shards = data[0]
    model, params = network
    fed = federation(network, rank=4, alpha=6.0, ranks=(4, 3, 2, 1), batch_size=64)
    state, record = step(fed, shards)
    adapted = fed.training.model
    place = 1
    b, a = (np.asarray(part[place]) for part in record.updates["Dense_0"]["kernel"])
    scale = 6.0 / 3
    own = jnp.asarray(b / scale)
    rows = shards.indices[place, : int(shards.sizes[place])]
    assert len(rows) <= 64  # one local step of SGD on all examples

    def loss(factors, held):
        kernel = params["Dense_0"]["kernel"] + scale * factors[0] @ factors[1]
        whole = {**params, "Dense_0": {**params["Dense_0"], "kernel": kernel}, "head": held}
        logits = model.apply(whole, shards.data.x[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, shards.data.y[rows]).mean()

    # After one step from A = 0, B is what was drawn.
    slopes, head = jax.grad(loss, (0, 1))((own, jnp.zeros((4, 16))), params["head"])
    np.testing.assert_allclose(a, -0.5 * slopes[1], atol=2e-6)
    np.testing.assert_allclose(slopes[0], 0, atol=1e-7)
    np.testing.assert_allclose(
        record.updates["head"]["kernel"][place], -0.5 * head["kernel"], atol=2e-6
    )
    assert np.abs(own).max() <= 64**-0.5
    assert jax.tree.structure(state.agents) == jax.tree.structure(adapted.init(None))


OPTIMIZERS = [
    optax.sgd(0.5),
    pytest.param(optax.adamw(0.01), marks=pytest.mark.slow),
    optax.noisy_sgd(0.01, key=0),
]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_columns_beyond_an_agents_rank_stay_zero(data, network, optimizer):
    ranks = (4, 3, 2, 1)
    _, record = step(federation(network, optimizer=optimizer, ranks=ranks, local_epochs=2), data[0])
    update = record.updates["Dense_0"]["kernel"]
    for agent, rank in enumerate(ranks):
        assert not np.asarray(update.b[agent, :, rank:]).any()
        assert not np.asarray(update.a[agent, rank:]).any()
        assert (np.asarray(update.b[agent, :, :rank]) != 0).any(0).all()
        assert (np.asarray(update.a[agent, :rank]) != 0).any(1).all()


@pytest.mark.slow
def test_factors_and_optimizers_begin_anew_in_every_round(data, network):
    fed = federation(network, "standalone", optimizer=optax.adam(0.01))
    state = fed.init(jax.random.key(0), data[0])
    assert not jax.tree.leaves(state.optimizer)
    first, one = jax.jit(fed.step)(state, data[0])
    _, two = jax.jit(fed.step)(first, data[0])
    assert not np.allclose(
        one.updates["Dense_0"]["kernel"].b, two.updates["Dense_0"]["kernel"].b, atol=1e-3
    )


@pytest.mark.slow
def test_agents_hold_the_sum_of_what_they_were_paid(data, network):
    fed = federation(network, "flora", optimizer=optax.adam(0.01), ranks=(4, 3, 2, 1))
    state, total = fed.init(jax.random.key(0), data[0]), 0
    shares = np.asarray(data[0].sizes) / np.sum(data[0].sizes)
    for _ in range(3):
        state, record = jax.jit(fed.step)(state, data[0])
        dense = np.asarray(lowrank.dense(record.updates)["Dense_0"]["kernel"], np.float64)
        total = total + np.tensordot(shares, dense, 1)
    for agent in range(4):
        np.testing.assert_allclose(state.agents["Dense_0"]["kernel"][agent], total, atol=1e-5)


@pytest.mark.slow
def test_averaged_factors_go_on_from_round_to_round(data, network):
    fed = federation(network, "fedit", optimizer=optax.sgd(0.3))
    state = fed.init(jax.random.key(0), data[0])
    shares = jnp.asarray(data[0].sizes) / np.sum(data[0].sizes)
    for _ in range(2):
        state, record = jax.jit(fed.step)(state, data[0])
        b, a = (jnp.tensordot(shares, one, 1) for one in record.updates["Dense_0"]["kernel"])
        np.testing.assert_allclose(state.server["Dense_0"]["kernel"], b @ a, atol=1e-5)
        np.testing.assert_allclose(state.mechanism["Dense_0"]["kernel"].b, b, atol=1e-6)


@pytest.mark.parametrize("name", ["fedit", "zero_padding"])
@pytest.mark.parametrize("broken", [1, 2])
def test_an_excluded_agent_does_not_shrink_averaged_factors(name, broken):
    rng = np.random.default_rng(0)
    b, a, old_b, old_a = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 6, 2), (2, 2, 5), (6, 2), (2, 5))
    )
    mechanism = getattr(fj.mechanisms, name)()
    old = fj.LowRank(old_b, old_a)
    updates = fj.LowRank(b.at[:broken].set(jnp.nan), a)
    context = fj.mechanisms.Context(shard_sizes=jnp.array([30, 10]), ranks=(2, 2), factors=old)
    _, state = mechanism.update(updates, old, context)
    kept = 1.0 if broken == 2 else 0.75
    np.testing.assert_allclose(state.b, kept * old_b + (1 - kept) * b[1], atol=1e-6)
    np.testing.assert_allclose(state.a, kept * old_a + (1 - kept) * a[1], atol=1e-6)


@pytest.mark.slow
def test_ranks_that_a_mechanism_refuses_are_refused_before_agents_train_alone(capsys, tmp_path):
    played = []
    experiment = fj.Experiment(
        dataset="blobs", model="mlp", num_agents=3, rounds=2, ranks=(4, 2, 1), mechanism="fedit"
    )
    with pytest.raises(ValueError, match="`ranks` must be equal for the mechanism 'fedit'"):
        experiment.run(watch=lambda *call: played.append(call))
    assert not played
    command = "run --dataset blobs --model mlp --num-agents 3 --rounds 2 --mechanism fedit"
    with pytest.raises(SystemExit):
        main([*command.split(), "--ranks", "4,2,1", "--out", str(tmp_path)])
    assert "JAX" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_frozen_factor_is_the_same_for_all_and_ever(data, network):
    fed = federation(network, "ffa_lora", ranks=(4, 3, 2, 1))
    state = fed.init(jax.random.key(0), data[0])
    seen = []
    for _ in range(2):
        state, record = jax.jit(fed.step)(state, data[0])
        seen.append(np.asarray(record.updates["Dense_0"]["kernel"].b))
    for agents in seen:
        np.testing.assert_allclose(agents, np.broadcast_to(seen[0][0], agents.shape), rtol=1e-6)


@pytest.mark.slow
def test_what_is_communicated_is_counted(data, network):
    ranks, head = (4, 3, 2, 1), 16 * 10 + 10
    counts = {}
    for name in ("flora", "zero_padding", "ffa_lora", "standalone"):
        _, record = step(federation(network, name, ranks=ranks), data[0])
        counts[name] = np.asarray(record.uploaded), np.asarray(record.received)
    for name, width in (("flora", 64 + 16), ("zero_padding", 64 + 16), ("ffa_lora", 16)):
        np.testing.assert_array_equal(
            counts[name][0], [rank * width + head for rank in ranks], err_msg=name
        )
    down = {"flora": 10 * (64 + 16), "zero_padding": 4 * (64 + 16), "ffa_lora": 4 * 16}
    for name, numbers in down.items():
        # A product is sent as factors, or as a matrix where that is less.
        assert (counts[name][1] <= min(numbers, 64 * 16) + head).all()
        assert (counts[name][1] > min(numbers, 64 * 16)).all()
    assert not np.any(counts["standalone"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(fj.mechanisms.OURS))
def test_every_mechanism_plays_with_adapters(data, network, name):
    shards, test = data
    if name in ("fedsac", "fedrac"):  # sub-models of networks with units
        with pytest.raises(ValueError, match="`units` must be those of the"):
            step(federation(network, name, learning_rate=0.1, optimizer=optax.sgd), shards)
        return
    shards = dataclasses.replace(shards, validation=test)
    fed = federation(network, name, learning_rate=0.1, optimizer=optax.sgd)
    state, history = fj.run(jax.random.key(0), fed, shards, test, num_rounds=2, eval_every=2)
    assert np.isfinite(history.accuracies[-1]).all()
    assert np.shape(history.uploaded) == (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_absent_agents_keep_what_they_hold(data, network, name):
    shards, test = data
    table = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1]], bool)
    fed = federation(network, name, participation=table)
    state, seen = fed.init(jax.random.key(0), shards), []
    for row in table:
        before = state.agents
        state, record = jax.jit(fed.step)(state, shards)
        seen.append(record)
        for agent in np.flatnonzero(~row):
            for old, new in zip(*map(jax.tree.leaves, (before, state.agents)), strict=True):
                np.testing.assert_array_equal(old[agent], new[agent])
        assert (np.asarray(record.uploaded) > 0).tolist() == row.tolist()
        present = np.flatnonzero(row)
        for leaf in jax.tree.leaves(state.agents):
            for agent in present:
                np.testing.assert_allclose(leaf[agent], leaf[present[0]], atol=1e-6)


@pytest.mark.slow
def test_dishonest_uploads_change_products(data, network):
    shards, test = data
    behaviours = fj.simulation.assign({"sign_flip": 1}, num_agents=4, seed=1)
    fed = federation(network, "cgsv", behaviours=behaviours)
    _, record = step(fed, shards)
    cheat = behaviours[0].agent
    own = lowrank.dense(record.updates)["Dense_0"]["kernel"][cheat]
    np.testing.assert_allclose(record.uploads["Dense_0"]["kernel"][cheat], -own, atol=1e-6)
    with pytest.raises(ValueError, match="take `flora`"):
        step(federation(network, "fedit", behaviours=behaviours), shards)


def test_rewards_in_ranks_refuse_uploads_that_have_no_factors():
    experiment = fj.Experiment(
        num_agents=2, samples_per_agent=20, rounds=1, lora_rank=2, options={"mask": "rank"}
    )
    message = r"`updates` of the mechanism .*mask='rank'.* must hold `fairjax.LowRank` nodes"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(experiment, behaviours={"sign_flip": 1}).run()
    with pytest.raises(ValueError, match=message):
        fj.audit(experiment, ["sign_flip"], agents=[0], seeds=[0])


@pytest.mark.slow
def test_a_run_with_adapters_is_recorded_resumed_and_shown(tmp_path, capsys):
    flags = "run --num-agents 3 --samples-per-agent 30 --rounds 3 --ranks 4,2,1 --mechanism cgsv"
    out = str(tmp_path / "run")
    main([*flags.split(), "--options", "mask=rank", "--out", out])
    printed = capsys.readouterr().out
    assert "sent %" in printed
    assert "received %" in printed
    result = fj.load_run(out)
    assert result.experiment.ranks == (4, 2, 1)
    assert result.experiment.resolved().lora_rank == 4
    numbers = np.array([4, 2, 1]) * (64 + 64) + 650
    np.testing.assert_array_equal(result.history.uploaded, [numbers] * 3)
    np.testing.assert_allclose(result.communication["uploaded_share"], numbers / 4810)
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert summary["mean_uploaded"] == numbers.tolist()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Agents train low-rank adapters" in page
    assert "--ranks 4,2,1" in page
    assert result.agent(0)["Dense_0"]["kernel"].shape == (64, 64)


@pytest.mark.slow
def test_given_parameters_are_the_frozen_network():
    train, _ = fj.data.load("digits")
    params = fj.models.mlp(train).init(jax.random.key(9))
    fields = {"num_agents": 2, "samples_per_agent": 20, "rounds": 1, "lora_rank": 2}
    result = fj.Experiment(params=params, mechanism="flora", **fields).run()
    model = result.experiment.make_model(train)
    x = train.x[:3]
    np.testing.assert_array_equal(
        model.apply(model.init(None), x), fj.models.mlp(train).apply(params, x)
    )
    with pytest.raises(ValueError, match="`params` must have the model's shapes"):
        fj.Experiment(params={"w": np.ones(3)}, **fields).run()


@pytest.mark.slow
def test_many_seeds_of_adapters_are_one_table(tmp_path):
    experiment = fj.Experiment(num_agents=2, samples_per_agent=20, rounds=2, lora_rank=2)
    made = fj.compare(experiment, ["flora", "cgsv"], seeds=range(2), out=tmp_path)
    assert len(made.table().rows) == 2
    read = fj.compare(experiment, ["flora", "cgsv"], seeds=range(2), out=tmp_path)
    for name in made:
        ours, theirs = (one[name][1].communication for one in (made, read))
        assert set(ours) == {"uploaded", "received", "uploaded_share", "received_share"}
        for column, counts in ours.items():
            np.testing.assert_array_equal(theirs[column], counts)


@pytest.mark.slow
def test_a_sweep_freezes_the_given_network_as_a_run_does():
    train, _ = fj.data.load("digits")
    params = fj.models.mlp(train).init(jax.random.key(9))
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    fields = {"num_agents": 2, "samples_per_agent": 20, "rounds": 1, "lora_rank": 2}
    experiment = fj.Experiment(params=params, mechanism="flora", **fields)
    swept = fj.sweep(experiment, seeds=[0, 1])
    other = fj.sweep(dataclasses.replace(experiment, params=None), seeds=[0, 1])
    for seed in (0, 1):
        run = dataclasses.replace(experiment, seed=seed).run()
        np.testing.assert_allclose(swept[seed].accuracies, run.accuracies, atol=1e-6)
        assert not np.allclose(other[seed].accuracies, run.accuracies)


@pytest.mark.slow
def test_an_experiment_takes_a_model_that_has_adapters_already():
    train, _ = fj.data.load("digits")
    model = fj.models.mlp(train)
    adapted = fj.models.lora(model, model.init(jax.random.key(1)), rank=3)
    fields = {"num_agents": 2, "samples_per_agent": 20, "rounds": 2, "ranks": (3, 1)}
    experiment = fj.Experiment(model=adapted, mechanism="fedavg", **fields)
    assert experiment.run().history.uploaded[0].tolist() == [3 * 128 + 650, 128 + 650]
    names = ["zero_padding", "flora"]
    assert len(fj.compare(experiment, names, seeds=range(2)).table().rows) == 2


def test_wrong_ranks_of_an_experiment_are_refused():
    with pytest.raises(ValueError, match="`ranks` must be one number for each of the 5 agents"):
        fj.Experiment(ranks=(4, 2))
    with pytest.raises(ValueError, match=r"`ranks\[0\]` must be"):
        fj.Experiment(num_agents=1, ranks=(0,))
    with pytest.raises(ValueError, match="`lora_rank` must be"):
        fj.Experiment(lora_rank=0)


def adapted(mechanism, **options):
    train, _ = fj.data.load("digits")
    shards = fj.data.uniform(train.take(np.arange(90)), num_agents=3, seed=0)
    model = fj.models.lora(fj.models.mlp(train), fj.models.mlp(train).init(jax.random.key(1)), 4)
    fed = fj.federation(
        model=model, mechanism=mechanism, local_epochs=5,
        **{"optimizer": optax.sgd(0.1), **options},
    )  # fmt: skip
    return fed, shards


@pytest.mark.slow
def test_the_proximal_term_pulls_towards_the_start_of_the_round():
    """Not towards the frozen network, where a mechanism gives factors."""
    fed, shards = adapted(fj.mechanisms.fedit())
    state = fed.init(jax.random.key(0), shards)
    for _ in range(8):
        state, _ = jax.jit(fed.step)(state, shards)

    def moved(mu):
        one, _ = adapted(fj.mechanisms.fedit(), proximal=mu)
        after, _ = jax.jit(one.step)(state, shards)
        kernels = [after.server["Dense_0"]["kernel"], state.server["Dense_0"]["kernel"]]
        return float(jnp.linalg.norm(kernels[0] - kernels[1]))

    assert moved(1.0) < 0.7 * moved(0.0)


@pytest.mark.slow
def test_losses_are_those_of_the_models_from_which_agents_train():
    made = fj.mechanisms.fedit()

    def update(updates, state, context):
        outcome, state = made.update(updates, state, context)
        return outcome._replace(contributions=context.losses()), state

    fed, shards = adapted(fj.mechanisms.Mechanism(made.init, update, made.plan, low_rank=True))
    state = fed.init(jax.random.key(0), shards)
    for _ in range(4):
        state, record = fed.step(state, shards)
    before = state
    _, record = fed.step(state, shards)
    for agent in range(3):
        rows = shards.rows(agent)
        outputs = fed.training.model.apply(before.server, shards.data.x[rows], None)
        wanted = optax.softmax_cross_entropy_with_integer_labels(outputs, shards.data.y[rows])
        np.testing.assert_allclose(record.contributions[agent], wanted.mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda context: Plan(frozen=True), "`frozen` only with `factors`"),
        (lambda context: Plan(factors=context.factors), "`factors` of shapes"),
        (
            lambda context: Plan(factors=trees.broadcast(3, lowrank.dense(context.factors))),
            "`factors` of shapes",
        ),
    ],
)
def test_a_plan_of_factors_is_checked(plan, message):
    made = fj.mechanisms.flora()
    mechanism = fj.mechanisms.Mechanism(
        made.init, made.update, lambda state, context: plan(context), low_rank=True
    )
    fed, shards = adapted(mechanism)
    state = fed.init(jax.random.key(0), shards)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(fed.step, state, shards)


@pytest.mark.slow
def test_a_norm_of_all_slopes_leaves_out_those_that_an_agent_does_not_train():
    """An agent of rank one moves as far as others where the step's length is given."""
    clipped = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0))
    train, _ = fj.data.load("digits")
    shards = fj.data.uniform(train.take(np.arange(90)), num_agents=3, seed=0)
    model = fj.models.lora(fj.models.mlp(train), fj.models.mlp(train).init(jax.random.key(1)), 16)
    fed = fj.federation(
        model=model, mechanism=fj.mechanisms.zero_padding(), optimizer=clipped, local_epochs=1,
        batch_size=30, ranks=(1, 16, 16),
    )  # fmt: skip
    state = fed.init(jax.random.key(0), shards)
    context = fed.context(state, shards, state.key)
    plan = fed.plan(state, context)
    ranked = fed.training.ranked
    for agent in range(3):
        factors, held = jax.tree.map(lambda leaf, i=agent: leaf[i], (plan.factors, state.agents))
        first, _ = ranked.begin(state.key, held, agent, factors, False)
        shard = Shard(shards.data, shards.indices[agent], shards.sizes[agent], agent)
        after = fed.training(state.key, Own(held, ()), shard, 0, factors)
        change = jax.tree.map(jnp.subtract, after.params, first)
        np.testing.assert_allclose(optax.tree.norm(change), 0.01, rtol=1e-3)


def square_adapters(alpha=None):
    """Parameters with two square matrices, and their adapters of rank 4."""
    params = {"one": jnp.ones((4, 4)), "two": jnp.ones((4, 4))}
    model = fj.models.Model(init=lambda key: params, apply=lambda params, x, key=None: x)
    return params, fj.models.lora(model, params, rank=4, alpha=alpha, targets=".").adapters


def test_products_are_scaled_by_alpha_over_the_rank_of_the_agent():
    for alpha, scales in ((6.0, [1.5, 2, 3, 6]), (None, [2, 2, 2, 2])):
        ranked = Ranked(square_adapters(alpha)[1], (4, 3, 2, 1))
        assert [float(ranked.scale(agent)) for agent in range(4)] == scales


def test_every_target_has_factors_of_its_own():
    params, adapters = square_adapters()
    drawn = adapters.draw(jax.random.key(0), params, 4, 3)
    assert not (drawn["one"].b == drawn["two"].b)[:, :3].any()


def test_an_agent_begins_with_the_product_of_the_factors_that_it_is_given():
    params, adapters = square_adapters(alpha=6.0)
    factor = jnp.arange(16.0).reshape(4, 4).at[:, 2:].set(0)  # agent 1 has two columns
    given = dict.fromkeys(params, fj.LowRank(b=factor, a=factor.T))
    ranked = Ranked(adapters, (4, 2))
    variables, _ = ranked.begin(jax.random.key(0), params, 1, given, False)
    whole = ranked.whole(params, variables, 1)
    np.testing.assert_allclose(whole["two"], 1 + factor @ factor.T, rtol=1e-6)


def test_a_product_is_uploaded_as_a_matrix_where_that_is_less():
    _, adapters = square_adapters()
    update = {"one": fj.LowRank(b=jnp.zeros((2, 4, 4)), a=jnp.zeros((2, 4, 4)))}
    ranked = Ranked(adapters, (4, 1))
    assert ranked.num_uploaded(update, False).tolist() == [16, 8]
    assert ranked.num_uploaded(update, True).tolist() == [16, 4]
