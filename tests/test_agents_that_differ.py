"""Agents that differ, FedProx, and optimizers of the server and of rounds."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fairjax as fj
from fairjax.experiments.optimizers import SERVER_OPTIMIZERS

SMALL = {
    "num_agents": 3, "rounds": 3, "model": "logistic", "samples_per_agent": 40, "optimizer": "sgd",
}  # fmt: skip
EACH = {"local_epochs": (1, 3, 2), "batch_size": (8, 32, 16), "learning_rate": (0.05, 0.1, 0.2)}


def experiment(**fields):
    return fj.Experiment(**{**SMALL, **fields})


def rows(tree, agent):
    return [np.asarray(leaf)[agent] for leaf in jax.tree.leaves(tree)]


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def own_params():
    """Parameters of three agents that were drawn by three keys."""
    shards, _ = experiment().make_shards()
    model = fj.models.logistic(shards.data)
    drawn = [
        fj.simulation.first_params(jax.random.key(key), model, shards.data) for key in (0, 5, 6)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)


@pytest.mark.parametrize("agents_at_once", [1, 3])
@pytest.mark.slow
def test_an_agent_trains_as_in_a_run_where_all_have_its_numbers(agents_at_once):
    common = {"mechanism": "standalone", "agents_at_once": agents_at_once, "decay_per": "epoch"}
    common["learning_rate_decay"] = 0.9
    mixed = experiment(**common, **EACH).run()
    for agent in range(3):
        alike = experiment(**common, **{name: values[agent] for name, values in EACH.items()}).run()
        for one, other in zip(
            rows(mixed.state.agents, agent), rows(alike.state.agents, agent), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_mapping_leaves_the_others_at_the_default():
    one = experiment(local_epochs={1: 5}, batch_size={0: 8}, learning_rate={2: 0.3})
    full = one.resolved()
    assert full.local_epochs == (3, 5, 3)
    assert full.batch_size == (8, 32, 32)
    assert full.learning_rate == (0.001, 0.001, 0.3)
    assert one.name == experiment(**{name: getattr(full, name) for name in EACH}).name
    assert fj.Experiment(**one.description()) == full


@pytest.mark.slow
def test_mechanisms_see_the_learning_rates_of_agents():
    def rates(round, **fields):
        one = experiment(learning_rate_decay=0.5, **fields)
        shards, _ = one.make_shards()
        return one.federation(shards).rates(round)

    np.testing.assert_allclose(rates(1, learning_rate=[0.1, 0.2, 0.4]), [0.05, 0.1, 0.2])
    by_epoch = {"decay_per": "epoch", "local_epochs": [1, 2, 3]}
    np.testing.assert_allclose(rates(1, learning_rate=0.8, **by_epoch), [0.4, 0.2, 0.1])
    np.testing.assert_allclose(rates(1, learning_rate=[0.8, 0.4, 0.8], **by_epoch), [0.4, 0.1, 0.1])
    assert experiment(mechanism="qffl", learning_rate=[0.1, 0.2, 0.4]).run().accuracies.min() > 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"local_epochs": {3: 1}}, "`local_epochs` must name agents 0 to 2, got 3"),
        ({"batch_size": [8, 8]}, "`batch_size` must be one number, one for each of the 3 agents"),
        (
            {"learning_rate": [0.1, -1, 0.2]},
            r"`learning_rate\[1\]` must be a finite number above 0",
        ),
        ({"local_epochs": [1, 2.5, 3]}, r"`local_epochs\[1\]` must be a whole number"),
        ({"proximal": -1}, "`proximal` must be a finite number at least 0"),
        ({"reset_optimizers": 1}, "`reset_optimizers` must be True or False"),
        ({"server_optimizer": "fedadam"}, "`server_optimizer` must be left out .* 'cgsv'"),
        ({"server_learning_rate": 1}, "must be left out without a `server_optimizer`"),
        (
            {
                "mechanism": "fedavg",
                "server_optimizer": optax.sgd(1.0),
                "server_learning_rate": 1.0,
            },
            "`server_learning_rate` must be left out where `server_optimizer` is an object",
        ),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        experiment(**fields)


def test_a_federation_needs_a_number_for_each_agent():
    shards, test = experiment().make_shards()
    fed = fj.federation(
        model=fj.models.logistic(shards.data), mechanism=fj.mechanisms.cgsv(),
        optimizer=optax.sgd, learning_rate=[0.1, 0.2],
    )  # fmt: skip
    with pytest.raises(ValueError, match="`learning_rate` must be one number, or one for each of"):
        fj.run(jax.random.key(0), fed, shards, test, num_rounds=1)


@pytest.mark.slow
def test_a_federation_takes_learning_rates_of_agents():
    shards, test = experiment().make_shards()
    fed = fj.federation(
        model=fj.models.logistic(shards.data), mechanism=fj.mechanisms.qffl(),
        optimizer=optax.sgd, learning_rate=[0.1, 0.2, 0.4], local_epochs=[1, 2, 3],
        decay_per="epoch",
    )  # fmt: skip
    np.testing.assert_allclose(fed.rates(2), [0.1, 0.2, 0.4])
    _, history = fj.run(jax.random.key(0), fed, shards, test, num_rounds=2)
    assert np.isfinite(history.accuracies).all()
    for gamma in ("median", lambda round: 1.0):
        with pytest.raises(ValueError, match="`gamma` must be numbers in a sweep"):
            fj.sweep(fj.Experiment(), gamma=[gamma])
    with pytest.raises(ValueError, match="`learning_rate` must be numbers in a sweep"):
        fj.sweep(experiment(), learning_rate=[(0.1, 0.2, 0.3)])


@pytest.mark.slow
def test_given_first_parameters_are_those_of_agents(own_params, tmp_path):
    first = jax.tree.map(lambda leaf: leaf[0], own_params)
    common = experiment(params=first).run()
    np.testing.assert_array_equal(common.accuracies, experiment().run().accuracies)
    stacked = experiment(params=own_params)
    by_agent = {agent: jax.tree.map(operator.itemgetter(agent), own_params) for agent in (1, 2)}
    result = stacked.run(tmp_path / "own")
    same(result.state.agents, experiment(params=by_agent).run().state.agents)
    assert not (result.accuracies == common.accuracies).all()
    assert fj.load_run(tmp_path / "own", stacked).accuracies.tolist() == result.accuracies.tolist()
    with pytest.raises(ValueError, match="params"):
        experiment(params=first).run(tmp_path / "own")
    swept = fj.sweep(stacked, seeds=[0, 1])
    np.testing.assert_allclose(swept[0].accuracies, result.accuracies, atol=0.01)
    shards, _ = stacked.make_shards()
    start = stacked.federation(shards).init(jax.random.key(0), shards, own_params)
    weights = np.asarray(shards.sizes) / np.sum(shards.sizes)
    jax.tree.map(
        lambda server, own: np.testing.assert_allclose(
            server, np.tensordot(weights, own, 1), rtol=1e-5, atol=1e-6
        ),
        start.server, own_params,
    )  # fmt: skip


def test_first_parameters_that_do_not_fit_are_named(own_params):
    def run(params, **fields):
        return experiment(params=params, **fields).run()

    with pytest.raises(ValueError, match="or those after an axis of 3 agents"):
        run(jax.tree.map(lambda leaf: leaf[:2], own_params))
    with pytest.raises(ValueError, match=r"`params\[1\]` must have the model's shapes"):
        run({1: own_params})
    with pytest.raises(ValueError, match="`params` must be the same for all .* 'fedavg'"):
        run(own_params, mechanism="fedavg")
    with pytest.raises(ValueError, match="`params` must be finite"):
        run(jax.tree.map(lambda leaf: leaf + jnp.nan, own_params))


def by_hand(mu=0.0, steps=3, rate=0.5, seed=0):
    """Returns the first parameters, those after full-batch steps of FedProx, and the run's."""
    one = experiment(
        num_agents=1, rounds=1, mechanism="standalone", batch_size=1000, local_epochs=steps,
        learning_rate=rate, proximal=mu, seed=seed,
    )  # fmt: skip
    shards, _ = one.make_shards()
    model = fj.models.logistic(shards.data)
    first = params = fj.simulation.first_params(jax.random.key(seed), model, shards.data)
    mine = shards.data.take(shards.indices[0, : shards.sizes[0]])

    def loss(params):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            model.apply(params, mine.x), mine.y
        )
        far = optax.tree.norm(optax.tree.sub(params, first), squared=True)
        return losses.mean() + mu / 2 * far

    for _ in range(steps):
        params = jax.tree.map(lambda own, slope: own - rate * slope, params, jax.grad(loss)(params))
    return params, jax.tree.map(lambda leaf: leaf[0], one.run().state.agents)


@pytest.mark.slow
def test_the_proximal_term_is_fedprox():
    expected, found = by_hand(mu=1.0)
    jax.tree.map(lambda one, own: np.testing.assert_allclose(own, one, atol=2e-6), expected, found)


@pytest.mark.slow
def test_reset_optimizers_begin_every_round_afresh():
    """With one step a round, momentum has nothing to remember."""
    one_step = {"batch_size": 1000, "local_epochs": 1, "learning_rate_decay": 1.0}
    rate = {"learning_rate": 0.1}
    plain = experiment(**one_step, **rate).run()
    momentum = {"optimizer": lambda rate: optax.sgd(rate, momentum=0.9)}
    fresh = experiment(**one_step, **rate, **momentum, reset_optimizers=True).run()
    kept = experiment(**one_step, **rate, **momentum).run()
    same(plain.state.agents, fresh.state.agents)
    assert not (kept.accuracies == plain.accuracies).all()


@pytest.mark.slow
def test_the_server_optimizer_steps_along_the_aggregate():
    fields = {"mechanism": "fedavg", "record_updates": True, "rounds": 4}
    momentum = experiment(server_optimizer="fedavgm", **fields).run()
    servers, updates = momentum.history.servers, momentum.history.updates
    sizes = np.asarray(momentum.shard_sizes, np.float64)
    for server, uploads in zip(jax.tree.leaves(servers), jax.tree.leaves(updates), strict=True):
        steps = np.diff(server, axis=0)
        aggregate = np.tensordot(sizes / sizes.sum(), np.asarray(uploads)[2], 1)
        np.testing.assert_allclose(steps[2], aggregate + 0.9 * steps[1], atol=2e-6)
    one, other = (
        experiment(**fields, **more).run() for more in ({}, {"server_optimizer": optax.sgd(1.0)})
    )
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, atol=1e-5),
        one.state.agents, other.state.agents,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_with_a_server_optimizer_goes_on(tmp_path):
    fields = {
        "mechanism": "fedavg", "server_optimizer": "fedadam", "learning_rate_decay": 0.9,
        "participation": 2, "local_epochs": {0: 1}, "proximal": 0.1,
    }  # fmt: skip
    experiment(**fields, rounds=2).run(tmp_path)
    longer = experiment(**fields, rounds=4).run(tmp_path)
    whole = experiment(**fields, rounds=4).run()
    same(longer.state._replace(key=0), whole.state._replace(key=0))
    again = fj.load_run(tmp_path)
    np.testing.assert_array_equal(again.accuracies, whole.accuracies)
    np.testing.assert_array_equal(longer.history.accuracies, whole.history.accuracies)


@pytest.mark.slow
def test_agents_differ_on_the_command_line(tmp_path, capsys):
    from fairjax.cli import main

    words = "run --num-agents 3 --rounds 1 --model logistic --local-epochs 2,1,1 --batch-size 0=8"
    words = [*words.split(), "--learning-rate", "0=0.1,2=0.2", "--out", str(tmp_path)]
    words += [
        "--mechanism",
        "fedavg",
        "--server-optimizer",
        "fedadam",
        "--server-learning-rate",
        "0.1",
    ]
    main([*words, "--proximal", "0.1", "--reset-optimizers"])
    kept = fj.load_run(tmp_path).experiment
    assert kept.local_epochs == (2, 1, 1)
    assert kept.batch_size == (8, 32, 32)
    assert kept.learning_rate == (0.1, 0.001, 0.2)
    assert (kept.server_optimizer, kept.server_learning_rate) == ("fedadam", 0.1)
    assert (kept.proximal, kept.reset_optimizers) == (0.1, True)


def test_fedyogi_moves_no_parameter_without_an_aggregate():
    optimizer = SERVER_OPTIMIZERS["fedyogi"](0.01)
    params = np.zeros(2, np.float32)
    state, first, second = optimizer.init(params), 0.0, 0.0
    for number in range(1, 4):
        steps, state = optimizer.update(-np.array([0.0, 0.5], np.float32), state, params)
        first, square = 0.9 * first + 0.1 * 0.5, 0.25
        second -= 0.01 * np.sign(second - square) * square
        moments = first / (1 - 0.9**number), second / (1 - 0.99**number)
        expected = 0.01 * moments[0] / (np.sqrt(moments[1]) + 1e-3)
        np.testing.assert_allclose(steps, [0, expected], rtol=1e-5)


def test_standalone_as_an_object_needs_no_server_optimizer_either():
    shared = experiment(mechanism="fedavg", server_optimizer="fedadam")
    for standalone in ("standalone", fj.mechanisms.standalone, fj.mechanisms.standalone()):
        found = shared.with_mechanism(standalone)
        assert (found.mechanism, found.server_optimizer) == ("standalone", None)
