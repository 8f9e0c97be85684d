"""Sub-models: FedRAC and FedSAC against slow twins in numpy, unit by unit, and what units are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairjax as fj
from fairjax import rewards
from fairjax.mechanisms import Context
from fairjax.simulation import federations, follows_length

N, INPUTS, HIDDEN, OUTPUTS = 4, 3, 6, 2
ALONE = [0.5, 0.05, 0.3, 0.15]
UNITS = fj.models.chain(["hidden", "head"])
TARGET = np.random.default_rng(9).normal(size=(HIDDEN, OUTPUTS))


def shapes():
    return {"hidden": {"kernel": (INPUTS, HIDDEN), "bias": (HIDDEN,)},
            "head": {"kernel": (HIDDEN, OUTPUTS), "bias": (OUTPUTS,)}}  # fmt: skip


def drawn(random, *lead):
    make = lambda shape: random.normal(size=(*lead, *shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(make, shapes(), is_leaf=lambda one: isinstance(one, tuple))


def loss(params, xp=jnp):
    """A smooth loss of all entries."""
    inner = params["hidden"]["kernel"].sum(0) + params["hidden"]["bias"]
    return 0.05 * xp.sum((params["head"]["kernel"] * inner[:, None] - TARGET) ** 2)


def utility(params, xp=jnp):
    return 1 / (1 + loss(params, xp))


def without(params, held):
    """The parameters without the hidden units that are not held, unit by unit."""
    made = jax.tree.map(np.array, params)
    for unit in range(HIDDEN):
        if not held[unit]:
            made["hidden"]["kernel"][:, unit] = 0
            made["hidden"]["bias"][unit] = 0
            made["head"]["kernel"][unit] = 0
    return made


def row(tree, place):
    return jax.tree.map(lambda leaf: np.array(leaf[place]), tree)


def mean_over(updates, server, belongs):
    """The server's model after a round: entry by entry, over the agents for whom it counts."""
    after = jax.tree.map(np.array, server)
    for layer, name in (
        ("hidden", "kernel"),
        ("hidden", "bias"),
        ("head", "kernel"),
        ("head", "bias"),
    ):
        for place in np.ndindex(after[layer][name].shape):
            entries = [row(updates, agent)[layer][name][place] for agent in range(N)]
            kept = [
                one for agent, one in enumerate(entries) if belongs(agent, layer, name, place, one)
            ]
            after[layer][name][place] += np.mean(kept) if kept else 0
    return after


def holds(held, layer, name, place):
    """Whether an agent holds an entry."""
    if layer == "head" and name == "bias":
        return True
    return held[place[-1] if layer == "hidden" else place[0]]


def play(mechanism, twin, rounds):
    """Plays a mechanism beside its twin; agents hold what they were paid."""
    random = np.random.default_rng(0)
    server = drawn(random)
    units = UNITS(server)
    state = mechanism.init(N, units=units)
    agents = jax.tree.map(lambda leaf: np.stack([leaf] * N), server)
    held = np.ones((N, HIDDEN), bool)
    for number in range(rounds):
        # Momentum moves entries that agents do not hold; these must not count.
        updates = jax.tree.map(lambda leaf: 0.3 * leaf, drawn(random, N))
        updates["hidden"]["bias"][:, 2] = 0  # an entry that nobody changes
        updates["head"]["bias"][0] = 0  # and one that only some do
        context = Context(
            shard_sizes=jnp.full(N, 10), round=number, server=server, agents=agents, units=units,
            utility=utility, held_out_loss=loss,
        )  # fmt: skip
        outcome, state = mechanism.update(updates, state, context)
        server, held = twin(updates, server, held, number)
        models = jax.tree.map(lambda old, paid: old + np.asarray(paid), agents, outcome.rewards)
        for agent in range(N):
            expected = without(server, held[agent])
            jax.tree.map(
                lambda leaf, want: np.testing.assert_allclose(leaf, want, atol=1e-5),
                row(models, agent), expected,
            )  # fmt: skip
        np.testing.assert_allclose(outcome.fractions, held.mean(1), rtol=1e-6)
        agents = models
    return held


@pytest.mark.slow
def test_fedrac_equals_its_rule():
    counts = np.zeros(HIDDEN)

    def twin(updates, server, held, number):
        changed = lambda agent, layer, name, place, one: (  # noqa: E731
            one != 0 and holds(held[agent], layer, name, place)
        )
        after = mean_over(updates, server, changed)
        order = np.argsort(counts, kind="stable")
        accuracy = []
        for size in (2, 4, 6):
            kept = np.isin(np.arange(HIDDEN), order[:size])
            accuracy.append(utility(without(after, kept), np))
        discount = 0.2 * (1 - 1 / np.log(0.3 * (number + 1) + 3))
        pointer, following = 0, np.zeros((N, HIDDEN), bool)
        for agent in np.argsort(ALONE):
            better = np.exp(80 * (ALONE[agent] - max(ALONE)))
            target = ALONE[agent] + utility(after, np) * (1 - discount) * better
            fitting = [k for k in range(pointer + 1, 4) if accuracy[k - 1] <= target]
            pointer = max(fitting) if fitting else min(pointer + 1, 3)
            pointer = 3 if ALONE[agent] == max(ALONE) else pointer
            following[agent, order[: 2 * pointer]] = True
        counts[:] += following.sum(0)
        return after, following

    held = play(fj.mechanisms.fedrac(block=2, performance=ALONE), twin, rounds=4)
    assert not held.all()
    assert held[0].all()


@pytest.mark.slow
def test_fedsac_equals_its_rule():
    importance = np.zeros(HIDDEN)

    def twin(updates, server, held, number):
        after = mean_over(updates, server, lambda agent, *where: holds(held[agent], *where[:3]))
        if number % 2 == 0:
            whole = loss(after, np)
            rises = [
                max(0, loss(without(after, np.arange(HIDDEN) != unit), np) - whole)
                for unit in range(HIDDEN)
            ]
            importance[:] = 100 * np.array(rises) / sum(rises)
        following = np.zeros((N, HIDDEN), bool)
        for agent in range(N):
            reputation = 100 * np.exp(3 * ALONE[agent]) / np.exp(3 * max(ALONE))
            total = 0.0
            for unit in np.argsort(importance, kind="stable"):
                if total >= reputation and agent != 0:
                    break
                following[agent, unit] = True
                total += importance[unit]
        return after, following

    held = play(fj.mechanisms.fedsac(b=3.0, every=2, performance=ALONE), twin, rounds=4)
    assert not held.all()
    assert held[0].all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedrac", "iafl"])
def test_performance_is_what_the_standalone_run_reaches(name):
    experiment = fj.Experiment(
        num_agents=3, rounds=2, model="mlp", mechanism=name, options={"performance": "test"}
    )
    result = experiment.run()
    importance = result.standalone_accuracies / result.standalone_accuracies.sum()
    np.testing.assert_allclose(result.history.importance[-1], importance, atol=1e-6)
    swept = fj.sweep(experiment, seeds=[0, 1])[0]
    importance = swept.standalone_accuracies
    np.testing.assert_allclose(
        swept.history.importance[-1], importance / importance.sum(), atol=1e-6
    )


@pytest.mark.slow
def test_a_run_is_opened_without_measuring_again_who_reaches_what_alone(tmp_path, monkeypatch):
    experiment = fj.Experiment(
        num_agents=3, rounds=2, participation=2, model="mlp", mechanism="fedrac"
    )
    first = experiment.run(tmp_path)
    absent = ~first.history.participants
    held = first.history.fractions
    assert np.isnan(held[absent]).all()
    assert (held[~absent] > 0).all()
    shards, test = experiment.make_shards()
    assert follows_length(experiment.federation(shards), shards, test)
    monkeypatch.setattr(federations, "reached_alone", None)
    again = fj.load_run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.state.mechanism, first.state.mechanism)


@pytest.mark.slow
def test_two_devices_find_the_same_submodels():
    experiment = fj.Experiment(num_agents=4, rounds=2, model="mlp", mechanism="fedrac")
    alone, spread = experiment.run(), experiment.run(mesh=fj.devices.mesh(2))
    np.testing.assert_allclose(alone.history.importance, spread.history.importance, atol=1e-2)
    np.testing.assert_allclose(alone.accuracies, spread.accuracies, atol=0.05)


@pytest.mark.slow
def test_errors_are_measured_alone_with_the_sign_of_a_utility():
    experiment = fj.Experiment(
        num_agents=3, rounds=2, metric="log_loss", mechanism="fedsac", model="mlp"
    )
    result = experiment.run()
    assert (result.state.mechanism[0] < 0).all()
    assert result.history.fractions[-1].max() == 1


def test_units_of_another_network_are_refused_by_name():
    units = UNITS(drawn(np.random.default_rng(0)))
    context = Context(shard_sizes=[1, 1], server=jnp.zeros(3), units=units)
    mechanism = fj.mechanisms.fedsac(performance=[0.5, 0.6])
    with pytest.raises(ValueError, match=r"`units.makes` must hold arrays that broadcast"):
        mechanism.update(jnp.ones((2, 3)), mechanism.init(2, units=units), context)
    with pytest.raises(ValueError, match="different names"):
        fj.models.chain(["hidden", "hidden"])
    with pytest.raises(ValueError, match=r"`kernel \[..., inputs, outputs\]`"):
        fj.models.chain(["hidden/kernel", "head"])(drawn(np.random.default_rng(0)))


@pytest.mark.slow
def test_agents_stay_within_their_submodels():
    """What an agent holds of a smaller network has zeros, also after local training with SGD."""
    train, _ = fj.data.load("digits")
    model = fj.models.mlp(train, hidden=(8, 4))
    params = model.init(jax.random.key(0))
    units = model.units(params)
    held = jnp.arange(units.num)[None] % 3 == 0
    mask = rewards.entries_held(units, held)
    small = row(rewards.submodels(params, units, held), 0)

    def objective(params):
        return (model.apply(params, train.x[:20]) ** 2).mean()

    moved = jax.tree.map(lambda leaf, slope: leaf - slope, small, jax.grad(objective)(small))
    for kept, leaf in zip(jax.tree.leaves(mask), jax.tree.leaves(moved), strict=True):
        assert not np.asarray(jnp.where(kept[0], 0, leaf)).any()
    assert np.abs(moved["head"]["kernel"] - small["head"]["kernel"]).any()


@pytest.mark.parametrize(
    ("name", "num"),
    [
        ("mlp", 64),
        ("mnist_cnn", 64 + 16 + 200),
        pytest.param("cifar_cnn", 16 + 32 + 120 + 84, marks=pytest.mark.slow),
    ],
)
def test_our_networks_say_what_their_units_are(name, num):
    train = fj.data.Dataset(x=np.ones((2, 32, 32, 1)), y=[0, 1], num_classes=2)
    model = fj.models.REGISTRY[name](train)
    params = model.init(jax.random.key(0))
    units = model.units(params)
    assert units.num == num
    held = np.ones((1, num), bool)
    held[0, 3] = False  # a unit of the first layer
    small = row(rewards.submodels(params, units, jnp.asarray(held)), 0)
    first, second, *_ = [*params] if name == "mlp" else ["Conv_0", "Conv_1"]
    assert not small[first]["kernel"][..., 3].any()
    assert not small[second]["kernel"][..., 3, :].any()
    assert small[second]["kernel"][..., 4, :].any()


def test_layers_that_do_not_fit_are_refused_by_name():
    params = drawn(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"`layers` must be in the parameters, got 'tail'"):
        fj.models.chain(["hidden", "tail"])(params)
    with pytest.raises(ValueError, match="no multiple of the 2 units"):
        fj.models.chain(["head", "hidden"])(params)
    with pytest.raises(ValueError, match="at least two layers"):
        fj.models.chain(["hidden"])
    with pytest.raises(ValueError, match="`units`"):
        fj.Experiment(model="logistic", mechanism="fedrac", rounds=1).run()


def test_unknown_lengths_and_missing_data_are_refused():
    train, test = fj.data.load("blobs")
    shards = fj.data.uniform(train, num_agents=2, seed=0)
    fed = fj.federation(
        model=fj.models.mlp(train), optimizer=optax.sgd(0.1), mechanism=fj.mechanisms.fedrac()
    )
    with pytest.raises(ValueError, match="`validation` of the shards"):
        fj.run(jax.random.key(0), fed, shards, test, num_rounds=1)
    held_out = dataclasses.replace(shards, validation=test)
    with pytest.raises(ValueError, match="`num_rounds` must be given"):
        fed.init(jax.random.key(0), held_out)


@pytest.mark.parametrize(("number", "sizes"), [(99, [4, 6]), (100, [2, 6])])
def test_fedrac_asks_less_of_a_submodel_from_its_hundred_and_first_round_on(number, sizes):
    """Its target is .43 of the accuracy of all units from then on, and .86 before."""
    units = fj.rewards.Units(6, jnp.arange(6), jnp.full(6, -1))
    mechanism = fj.mechanisms.fedrac(b=0.0, block=2, performance=[1e-9, 1.0])
    state = mechanism.init(2, units=units)
    accuracies = jnp.array([0.0, 0.3, 0.6, 1.0])  # of none, two, four and all units
    context = Context(
        shard_sizes=jnp.ones(2), round=number, server=jnp.ones(6), agents=jnp.ones((2, 6)),
        units=units, utility=lambda params: accuracies[(params > 0).sum() // 2],
    )  # fmt: skip
    update = jax.jit(lambda rows: mechanism.update(rows, state, context)[0].fractions)
    np.testing.assert_allclose(update(jnp.zeros((2, 6))), np.array(sizes) / 6, rtol=1e-6)
