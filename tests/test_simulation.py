"""Local epochs, rounds, evaluation and history, on data small enough to check by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fairjax as fj
from fairjax import simulation
from fairjax.simulation import either, evaluation, loop, memory

SIZES = (1, 4, 5, 9)


def counting_data():
    """Every example is one-hot, so a gradient shows which examples a step saw."""
    num = sum(SIZES)
    data = fj.data.Dataset(x=np.eye(num), y=np.arange(num) % 2, num_classes=2)
    rows = np.split(np.arange(num), np.cumsum(SIZES)[:-1])
    return data, fj.data.Shards.from_indices(data, rows)


def linear_model(data):
    def init(key):
        return {"kernel": jnp.zeros((data.x[0].size, data.num_classes)), "steps": jnp.zeros(())}

    def apply(params, x, key=None):
        return x.reshape(len(x), -1) @ params["kernel"] + 0 * params["steps"]

    return fj.models.Model(init, apply)


def counting(learning_rate=1.0):
    """An optimizer that counts the steps, and the examples that the steps saw."""

    def update(gradient, state, params=None):
        return {
            "kernel": learning_rate * (gradient["kernel"] != 0),
            "steps": jnp.asarray(learning_rate, jnp.float32),
        }, state

    return optax.GradientTransformation(lambda params: (), update)


def changes(shards, data, rounds=1, **options):
    federation = fj.federation(
        model=linear_model(data), mechanism=fj.mechanisms.standalone(), **options
    )
    state = federation.init(jax.random.key(0), shards)
    for _ in range(rounds):
        state, record = jax.jit(federation.step)(state, shards)
    return jax.tree.map(np.asarray, record.updates)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("agents_at_once", [1, 2, 3, 4])
def test_local_epochs_see_every_example_once_and_no_padding(batch_size, agents_at_once):
    data, shards = counting_data()
    seen = changes(
        shards, data, optimizer=counting(), local_epochs=3,
        batch_size=batch_size, agents_at_once=agents_at_once,
    )  # fmt: skip
    for agent, size in enumerate(SIZES):
        owned = np.isin(np.arange(sum(SIZES)), shards.rows(agent))
        np.testing.assert_array_equal(seen["kernel"][agent, :, 0], 3 * owned)
        assert seen["steps"][agent] == 3 * np.ceil(size / batch_size)


def test_last_batch_means_one_step_per_local_epoch():
    data, shards = counting_data()
    seen = changes(
        shards, data, optimizer=counting(), local_epochs=3, batch_size=4, local_steps="last_batch"
    )
    np.testing.assert_array_equal(seen["steps"], 3)
    remainders = [3 * ((size - 1) % 4 + 1) for size in SIZES]
    np.testing.assert_array_equal(seen["kernel"][..., 0].sum(1), remainders)


@pytest.mark.slow
def test_every_local_epoch_has_an_order_of_its_own():
    data, _ = counting_data()
    shards = fj.data.Shards.from_indices(data, [np.arange(9), np.arange(10, 19)])

    def update(gradient, state, params=None):
        epoch, step = state // 9, state % 9
        seen = (step + 1) * 10.0**epoch * (gradient["kernel"] != 0)
        return {"kernel": seen, "steps": jnp.zeros(())}, state + 1

    optimizer = optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
    federation = fj.federation(
        model=linear_model(data), mechanism=fj.mechanisms.standalone(), optimizer=optimizer,
        local_epochs=2, batch_size=1, reset_optimizers=True,
    )  # fmt: skip
    state, orders = federation.init(jax.random.key(0), shards), []
    for _ in range(2):
        state, record = jax.jit(federation.step)(state, shards)
        for agent in range(2):
            seen = np.asarray(record.updates["kernel"])[agent, shards.rows(agent), 0].round()
            orders += [tuple(seen % 10), tuple(seen // 10)]  # the step that saw each example
    assert all(sorted(order) == list(range(1, 10)) for order in orders)
    assert len(set(orders)) == 8


@pytest.mark.slow
def test_every_local_step_has_a_key_of_its_own():
    data = fj.data.Dataset(x=np.eye(19), y=[0] * 19, num_classes=2)
    shards = fj.data.Shards.from_indices(data, np.split(np.arange(19), np.cumsum(SIZES)[:-1]))

    def apply(params, x, key=None):
        drawn = 1.0 if key is None else jax.random.uniform(key)
        return drawn * params["kernel"].sum() * jnp.ones((len(x), 2)) * jnp.array([1.0, 0.0])

    def update(gradient, state, params=None):
        drawn = 2 * jnp.abs(gradient["kernel"])  # all logits stay near zero
        return {"kernel": 1e-4 * jnp.where(jnp.arange(6) == state, drawn, 0)}, state + 1

    federation = fj.federation(
        model=fj.models.Model(lambda key: {"kernel": jnp.zeros(6)}, apply),
        mechanism=fj.mechanisms.standalone(), local_epochs=2, batch_size=3, reset_optimizers=True,
        optimizer=optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update),
    )  # fmt: skip
    state, drawn = federation.init(jax.random.key(0), shards), []
    for _ in range(2):
        state, record = jax.jit(federation.step)(state, shards)
        drawn += np.asarray(record.updates["kernel"]).ravel().tolist()
    drawn = [one for one in drawn if one]
    assert len(drawn) == 2 * 2 * (1 + 2 + 2 + 3)  # rounds, epochs, and steps of the four agents
    assert len({round(one, 9) for one in drawn}) == len(drawn)


def test_a_local_step_is_the_gradient_of_the_mean_cross_entropy():
    rng = np.random.default_rng(0)
    data = fj.data.Dataset(x=rng.normal(size=(6, 3)), y=[0, 1, 2, 1, 0, 2], num_classes=3)
    shards = fj.data.Shards.from_indices(data, [[0, 1, 2, 3], [4, 5]])
    first = {"kernel": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32), "steps": jnp.zeros(())}
    model = linear_model(data)._replace(init=lambda key: first)
    federation = fj.federation(
        model=model, mechanism=fj.mechanisms.fedavg(), optimizer=optax.sgd(0.1), batch_size=10
    )
    _, record = federation.step(federation.init(jax.random.key(0), shards), shards)
    for agent in range(2):
        x, y = data.x[shards.rows(agent)], data.y[shards.rows(agent)]
        logits = x @ np.asarray(first["kernel"])
        odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = x.T @ (odds - np.eye(3)[y]) / len(y)
        np.testing.assert_allclose(record.updates["kernel"][agent], -0.1 * gradient, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("decay_per", ["round", "epoch"])
def test_the_learning_rate_follows_its_schedule(decay_per):
    data, shards = counting_data()
    seen = changes(
        shards, data, rounds=3, optimizer=counting, learning_rate=lambda count: 0.5**count,
        local_epochs=2, batch_size=100, decay_per=decay_per,
    )  # fmt: skip
    expected = 2 * 0.25 if decay_per == "round" else 0.5**4 + 0.5**5
    np.testing.assert_allclose(seen["steps"], expected)


@pytest.fixture(scope="module")
def digits():
    train, test = fj.data.load("digits")
    return fj.data.power_law(train, num_agents=4, seed=0, samples_per_agent=40), test


def digits_federation(shards, mechanism=None, optimizer=None, **options):
    return fj.federation(
        model=options.pop("model", fj.models.mlp(shards.data, hidden=(16,))),
        mechanism=mechanism or fj.mechanisms.cgsv(),
        optimizer=optimizer or optax.adam(0.01),
        **options,
    )


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def without_key(state):
    return state._replace(key=jax.random.key_data(state.key))


def test_the_same_key_gives_the_same_bits_and_another_key_others(digits):
    shards, test = digits
    federation = digits_federation(shards)
    first, again, other = (
        fj.run(jax.random.key(seed), federation, shards, test, num_rounds=3) for seed in (1, 1, 2)
    )
    assert_equal(first[1], again[1])
    assert_equal(without_key(first[0]), without_key(again[0]))
    assert not np.array_equal(first[1].contributions, other[1].contributions)


@pytest.mark.slow
def test_a_longer_run_begins_like_a_shorter_one(digits):
    shards, test = digits
    federation = digits_federation(shards)
    _, short = fj.run(jax.random.key(0), federation, shards, test, num_rounds=3)
    _, long = fj.run(jax.random.key(0), federation, shards, test, num_rounds=30)
    assert_equal(short, jax.tree.map(lambda row: row[:3], long))


@pytest.mark.slow
def test_history_equals_rounds_played_one_by_one(digits):
    shards, test = digits
    federation = digits_federation(shards)
    _, history = fj.run(jax.random.key(0), federation, shards, test, num_rounds=3)
    state = federation.init(jax.random.key(0), shards)
    step, evaluate = jax.jit(federation.step), jax.jit(federation.evaluate)
    for row in range(4):
        before = state
        state, record = step(state, shards)
        if row:
            trained = jax.tree.map(jnp.add, before.agents, record.updates)
            np.testing.assert_allclose(
                history.trained_accuracies[row - 1], evaluate(trained, test), atol=1e-6
            )
        if row < 3:
            found = evaluate(state.agents, test)
            np.testing.assert_allclose(history.accuracies[row], found, atol=1e-6)
            np.testing.assert_allclose(history.importance[row], record.importance, atol=1e-6)


def test_a_mean_loss_is_over_an_agents_own_examples_whatever_the_batches():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 2)), rng.integers(2, size=300)
    data = fj.data.Dataset(x=x, y=y, num_classes=2)
    rows = [[7], np.arange(130), np.arange(50, 300)]
    shards = fj.data.Shards.from_indices(data, rows)
    kernels = rng.normal(size=(3, 2, 2))
    params = {"kernel": jnp.asarray(kernels, jnp.float32), "steps": jnp.zeros(3)}
    training = fj.federation(
        model=linear_model(data), mechanism=fj.mechanisms.fedavg(), optimizer=optax.sgd(0.1)
    ).training
    wanted = []
    for own, kernel in zip(rows, kernels, strict=True):
        logits = x[own] @ kernel
        totals = np.log(np.exp(logits).sum(1))
        wanted.append((totals - logits[np.arange(len(own)), y[own]]).mean())
    for present in (None, np.array([True, False, True])):
        found = evaluation.mean_losses(training, params, None, shards, present, 2)
        expected = wanted if present is None else wanted * present
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_statistics_of_the_server_are_a_mean_by_examples_of_those_who_trained():
    data, shards = counting_data()  # of 1, 4, 5 and 9 examples
    statistics = {"mean": jnp.array([1.0, 2.0, 3.0, 4.0])}
    for joined, mean in (([1, 0, 1, 0], 16 / 6), ([1, 1, 1, 1], 60 / 19), ([0] * 4, 60 / 19)):
        found = evaluation.mean_statistics(statistics, jnp.array(joined, bool), shards)
        np.testing.assert_allclose(found["mean"], mean, rtol=1e-6)


def test_accuracy_is_the_share_of_correct_answers_whatever_the_batches(digits, monkeypatch):
    shards, test = digits
    federation = digits_federation(shards)
    state = federation.init(jax.random.key(0), shards)
    params = jax.tree.map(lambda leaf: leaf[0], state.agents)
    model = fj.models.mlp(shards.data, hidden=(16,))
    expected = (np.asarray(model.apply(params, test.x)).argmax(1) == test.y).mean()
    for batch in (7, 100, 360, 1000):
        monkeypatch.setattr(
            "fairjax.simulation.evaluation.evaluation_batch", lambda size=batch: size
        )
        np.testing.assert_allclose(federation.evaluate(state.agents, test), expected, atol=1e-6)


def test_rounds_without_evaluation_are_nan_and_the_last_is_evaluated(digits):
    shards, test = digits
    federation = digits_federation(shards)
    _, history = fj.run(jax.random.key(0), federation, shards, test, num_rounds=5, eval_every=2)
    for rows in (history.accuracies, history.trained_accuracies):
        assert np.isfinite(rows).all(1).tolist() == [False, True, False, True, True]
    assert np.isfinite(history.server_accuracies).tolist() == [False, True, False, True, True]


@pytest.mark.slow
def test_a_run_goes_on_from_any_stage_in_the_same_bits(digits):
    shards, test = digits
    federation = digits_federation(shards)
    rounds = simulation.Rounds(jax.random.key(0), federation, shards, test, num_rounds=45)
    stages = list(rounds.stages())
    assert len(stages) > 10
    for start in (stages[0], stages[7], stages[-2]):
        *_, last = rounds.stages(start)
        assert_equal(without_key(last.state), without_key(stages[-1].state))
        assert_equal(last.rows, stages[-1].rows)


@pytest.mark.slow
@pytest.mark.parametrize("agents_at_once", [3, 4])
def test_vectorising_agents_changes_results_by_rounding_only(digits, agents_at_once):
    shards, test = digits
    one, many = (
        fj.run(
            jax.random.key(0), digits_federation(shards, agents_at_once=group), shards, test,
            num_rounds=2,
        )[1]
        for group in (1, agents_at_once)
    )  # fmt: skip
    np.testing.assert_allclose(many.contributions, one.contributions, atol=1e-4)


@pytest.mark.slow
def test_a_program_is_traced_once_for_all_rounds_and_runs(digits):
    shards, test = digits
    traces = []
    model = fj.models.mlp(shards.data, hidden=(16,))

    def apply(params, x, key=None):
        if key is not None:
            traces.append(x.shape)
        return model.apply(params, x, key)

    federation = digits_federation(shards, model=model._replace(apply=apply))
    fj.run(jax.random.key(0), federation, shards, test, num_rounds=41)
    once = len(traces)
    fj.run(jax.random.key(1), federation, shards, test, num_rounds=41, eval_every=5)
    assert once == len(traces) <= 2


def test_the_training_data_are_arguments_and_not_constants_of_the_program(digits):
    shards, test = digits
    federation = digits_federation(shards)
    state = federation.init(jax.random.key(0), shards)
    text = jax.jit(federation.step).lower(state, shards).as_text()
    assert "dense_resource" not in text
    assert len(text) < 400_000


def broken_shards(shards, agent, value):
    x = shards.data.x.copy()
    x[shards.rows(agent)] = value
    data = fj.data.Dataset(x=x, y=shards.data.y, num_classes=10)
    return fj.data.Shards(data, shards.indices, shards.sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, np.nan) for name in sorted(fj.mechanisms.REGISTRY)] + [("cgsv", np.inf)],
)
def test_an_agent_with_broken_data_is_excluded_and_harms_nobody(digits, name, value):
    shards, test = digits
    shards = broken_shards(shards, 1, value)
    shards = dataclasses.replace(shards, validation=test.take(np.arange(50)))
    mechanism = fj.mechanisms.REGISTRY[name]()
    federation = digits_federation(shards, mechanism, optax.adam, learning_rate=0.01)
    with pytest.warns(UserWarning, match="Agent 1 trained honestly in round 0 and its upload held"):
        state, history = fj.run(jax.random.key(0), federation, shards, test, num_rounds=4)
    # An agent that does not take part in a round uploads nothing.
    part = (history.fractions[:, 1] == 1) | (name != "fair_yet_equal")
    np.testing.assert_array_equal(history.excluded[:, 1], part)
    assert not history.excluded[:, [0, 2, 3]].any()
    for tree in (state.agents, state.server, state.optimizer):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
    if name == "cgsv":
        assert (history.contributions[:, 1] == 0).all()
        assert (history.fractions[-1, 1] < history.fractions[-1, [0, 2, 3]]).all()


@pytest.mark.slow
def test_dropout_is_on_in_training_and_off_in_evaluation(digits):
    shards, test = digits

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
            return nn.Dense(10)(x)

    model = fj.models.from_flax(Net())
    federation = digits_federation(shards, model=model)
    state, history = fj.run(jax.random.key(0), federation, shards, test, num_rounds=2)
    params = jax.tree.map(lambda leaf: leaf[0], state.agents)
    still = [model.apply(params, test.x[:8]) for _ in range(2)]
    noisy = [model.apply(params, test.x[:8], jax.random.key(seed)) for seed in range(2)]
    np.testing.assert_array_equal(*still)
    assert not np.allclose(*noisy)


def test_given_first_parameters_are_common_to_all(digits):
    shards, test = digits
    federation = digits_federation(shards)
    first = federation.init(jax.random.key(5), shards).server
    state = federation.init(jax.random.key(0), shards, first)
    for agent in range(4):
        assert_equal(jax.tree.map(lambda leaf, a=agent: leaf[a], state.agents), first)


def mistakes(shards, test):
    model, mechanism = fj.models.mlp(shards.data), fj.mechanisms.fedavg()
    sgd = optax.sgd(0.1)

    def federation(**options):
        given = {"model": model, "mechanism": mechanism, "optimizer": sgd, **options}
        return fj.federation(**given)

    def run(fed=None, data=test, **options):
        given = {"num_rounds": 1, **options}
        return fj.run(jax.random.key(0), fed or federation(), shards, data, **given)

    other = fj.data.Dataset(x=np.zeros((3, 5)), y=[0, 1, 2], num_classes=10)
    fewer = fj.data.Dataset(x=test.x[:3], y=[0, 1, 2], num_classes=3)
    short = model._replace(apply=lambda params, x, key=None: x.reshape(len(x), -1)[:, :4])
    broken = fj.mechanisms.Mechanism(lambda n: (), lambda updates, state, context: (updates, state))
    return [
        (lambda: federation(local_epochs=0), "`local_epochs`.*got 0"),
        (lambda: federation(batch_size=-1), "`batch_size`.*got -1"),
        (lambda: federation(batch_size=2.5), "`batch_size`.*got 2.5"),
        (lambda: federation(agents_at_once=0), "`agents_at_once`"),
        (lambda: federation(decay_per="step"), "Unknown decay_per 'step'"),
        (lambda: federation(local_steps="al"), "Did you mean 'all'"),
        (lambda: federation(optimizer=optax.sgd), "together with `learning_rate`"),
        (lambda: federation(learning_rate=0.1), "`optimizer` must be a function"),
        (lambda: federation(optimizer=optax.sgd, learning_rate=-0.1), "`learning_rate`.*-0.1"),
        (lambda: fj.run(0, federation(), shards, test, num_rounds=1), "`key`.*got 0"),
        (lambda: run(federation(model=fj.models.mlp(other))), "does not take the data set's"),
        (lambda: run(num_rounds=0), "`num_rounds`.*got 0"),
        (lambda: run(eval_every=0), "`eval_every`"),
        (lambda: run(data=other), "`test` must have the agents' examples of shape"),
        (lambda: run(data=fewer), "`test` must have the agents' number of classes 10, got 3"),
        (lambda: run(params={"a": np.zeros(3)}), "`params` must have the model's shapes"),
        (lambda: run(federation(model=short)), r"logits of shape \(1, 10\)"),
        (lambda: run(federation(mechanism=broken)), r"must return \(Outcome, state\)"),
        (lambda: fj.models.mnist_cnn(shards.data), "of at least 20 x 20"),
        (lambda: fj.models.mlp(shards.data, hidden=(0,)), "`hidden`"),
    ]


@pytest.mark.parametrize("number", range(20))
def test_a_mistake_is_named_with_its_rule(digits, number):
    call, message = mistakes(*digits)[number]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mechanism_that_pays_nan_is_named_with_the_round():
    def mine():
        def update(updates, state, context):
            outcome, state = fj.mechanisms.fedavg().update(updates, state, context)
            factor = jnp.where(context.round == 2, jnp.nan, 1.0)
            rewards = jax.tree.map(lambda leaf: factor * leaf, outcome.rewards)
            return outcome._replace(rewards=rewards), state

        return fj.mechanisms.Mechanism(lambda num_agents: (), update)

    data, shards = counting_data()
    federation = fj.federation(model=linear_model(data), mechanism=mine(), optimizer=optax.sgd(0.1))
    fj.run(jax.random.key(0), federation, shards, data, num_rounds=2)
    with pytest.raises(ValueError, match="'mine' must pay finite rewards.*in round 2"):
        fj.run(jax.random.key(0), federation, shards, data, num_rounds=4)
    state, _ = fj.run(jax.random.key(0), federation, shards, data, num_rounds=2)
    with pytest.raises(ValueError, match="in round 2"):  # of the state, not of the call
        fj.run(jax.random.key(0), federation, shards, data, num_rounds=2, state=state)


def test_an_honest_agent_whose_upload_is_dropped_is_named_once():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    x[4:] = np.nan
    data = fj.data.Dataset(x, np.arange(6) % 2, num_classes=2)
    shards = fj.data.Shards.from_indices(data, [[0, 1], [2, 3], [4, 5]])
    federation = fj.federation(
        model=linear_model(data), mechanism=fj.mechanisms.cgsv(), optimizer=optax.sgd(0.1)
    )
    test = data.take(np.arange(4))
    with pytest.warns(UserWarning, match="Agent 2 .* in round 0 and its upload held NaN") as caught:
        fj.run(jax.random.key(0), federation, shards, test, num_rounds=3)
    assert len(caught) == 1


def test_a_run_leaves_the_parameters_and_the_state_that_it_was_given(digits):
    shards, test = digits
    federation, key = digits_federation(shards), jax.random.key(0)
    params = federation.training.model.init(jax.random.key(3))
    state, _ = fj.run(key, federation, shards, test, num_rounds=2, params=params)
    before = jax.tree.map(np.array, (params, state.agents))
    for _ in range(2):
        fj.run(None, federation, shards, test, num_rounds=2, state=state)
    jax.tree.map(np.testing.assert_array_equal, (params, state.agents), before)


@pytest.mark.slow
def test_a_run_of_many_chunks_is_compiled_once(digits):
    shards, test = digits
    loop._compile_play.cache_clear()
    federation, key = digits_federation(shards), jax.random.key(0)
    rounds = simulation.Rounds(key, federation, shards, test, num_rounds=30, eval_every=7)
    chunks = list(rounds.stages())
    assert len(chunks) > 3
    program = loop._compile_play(federation, 2, False, False, memory.shapes((shards, test)))
    assert loop._compile_play.cache_info().misses == program._cache_size() == 1


@pytest.mark.slow
def test_a_run_plays_where_numbers_have_64_bits():
    with jax.enable_x64(True):
        result = fj.Experiment(num_agents=2, rounds=2, model="logistic", local_epochs=1).run()
    assert result.history.accuracies.dtype == np.float64
    assert (result.accuracies > 0.1).all()
    assert np.isfinite(result.history.contributions).all()


SETTING = {"num_agents": 3, "rounds": 3, "model": "logistic", "local_epochs": 1}


@pytest.mark.slow
def test_agents_alone_and_the_mechanism_have_one_program(digits):
    loop._compile_play.cache_clear()
    loop._compile_either.cache_clear()
    experiment = fj.Experiment(**SETTING, batch_size=17)
    result = experiment.run()
    assert loop._compile_either.cache_info().misses == 1
    assert loop._compile_play.cache_info().misses == 0
    # Each has its own program here.
    shards, test = experiment.make_shards()
    alone = experiment.alone().run()
    federation, key = experiment.federation(shards), jax.random.key(0)
    state, history = fj.run(key, federation, shards, test, num_rounds=3)
    assert loop._compile_play.cache_info().misses == 2
    np.testing.assert_array_equal(result.standalone_accuracies, alone.accuracies)
    for name in ("accuracies", "contributions", "importance", "trained_accuracies"):
        np.testing.assert_array_equal(getattr(result.history, name), getattr(history, name))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), result.state.agents, state.agents)
    assert all(jax.tree.leaves(same))
    assert result.state.mechanism.shape == state.mechanism.shape


def test_only_rounds_alone_share_the_program_of_a_mechanism(digits):
    shards, _ = digits
    made = [
        digits_federation(shards, mechanism())
        for mechanism in (fj.mechanisms.cgsv, fj.mechanisms.standalone, fj.mechanisms.rr)
    ]
    state = made[0].init(jax.random.key(0), shards)
    assert [either.fits(one, made[0], state) for one in made] == [True, True, False]


@pytest.mark.slow
def test_agents_train_alone_beside_a_mechanism_with_a_state_of_any_kind():
    first = (jax.random.key(7), 2, None, np.int64(3), jnp.ones(4))

    def update(updates, state, context):
        key, noise_key = jax.random.split(state[0])
        noise = jax.random.normal(noise_key, (len(context.shard_sizes),))
        outcome, _ = fj.mechanisms.fedavg().update(updates, (), context)
        return outcome._replace(contributions=noise), (key, *state[1:])

    mechanism = fj.mechanisms.Mechanism(lambda num_agents: first, update)
    result = fj.Experiment(**SETTING, mechanism=mechanism).run()
    again = fj.Experiment(**SETTING, mechanism=mechanism, record_updates=True).run()
    np.testing.assert_array_equal(result.history.contributions, again.history.contributions)
    assert len(np.unique(result.history.contributions)) == 9  # the key moves on
    np.testing.assert_array_equal(first[4], jnp.ones(4))  # it is not donated


@pytest.mark.parametrize(
    "other",
    [
        {"mechanism": "fair_yet_equal"},  # it plans
        {"mechanism": "fedavg", "participation": 0.5},
        {"behaviours": {"sign_flip": 1}},
        {"mechanism": "fedavg", "server_optimizer": "adam"},
        {"record_updates": True},
    ],
)
@pytest.mark.slow
def test_agents_alone_have_their_own_program_where_rounds_differ(other):
    loop._compile_either.cache_clear()
    experiment = fj.Experiment(**{**SETTING, "num_agents": 4}, **other)
    result = experiment.run()
    assert loop._compile_either.cache_info().misses == 0
    alone = experiment.alone().run()
    np.testing.assert_array_equal(result.standalone_accuracies, alone.accuracies)


def test_agents_that_do_not_fit_into_memory_are_counted(digits, monkeypatch):
    shards, _ = digits
    federation = digits_federation(shards)
    monkeypatch.setattr("fairjax.simulation.memory.device_memory", lambda: 2**10)
    with pytest.raises(ValueError, match=r"4 agents of [0-9,]+ parameters need .* have 0.0 GiB"):
        federation.init(jax.random.key(0), shards)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mechanism": "cgsv"}, "`mechanism` must be a Mechanism, .* got 'cgsv'"),
        ({"mechanism": fj.mechanisms.cgsv}, "`mechanism` must be a Mechanism"),
        ({"model": "mlp"}, "`model` must be a Model, .* got 'mlp'"),
    ],
)
def test_what_is_no_model_or_mechanism_is_refused(digits, wrong, message):
    given = {
        "model": fj.models.logistic(digits[0].data),
        "mechanism": fj.mechanisms.fedavg(),
        "optimizer": optax.sgd(0.1),
    }
    with pytest.raises(ValueError, match=message):
        fj.federation(**{**given, **wrong})


def test_what_is_no_shards_or_dataset_is_refused(digits):
    shards, test = digits
    federation = digits_federation(shards)
    with pytest.raises(ValueError, match="`shards` must be a Shards"):
        fj.run(jax.random.key(0), federation, shards.data, test, num_rounds=1)
    with pytest.raises(ValueError, match="`test` must be a Dataset"):
        fj.run(jax.random.key(0), federation, shards, (test.x, test.y), num_rounds=1)


def test_a_mechanism_that_answers_whole_numbers_is_named(digits):
    def mine():
        def update(updates, state, context):
            outcome, state = fj.mechanisms.fedavg().update(updates, state, context)
            return outcome._replace(fractions=jnp.ones(4, jnp.int32)), state

        return fj.mechanisms.Mechanism(lambda num_agents: (), update)

    shards, test = digits
    federation = digits_federation(shards, mine())
    with pytest.raises(ValueError, match=r"'mine' must return `fractions` .*int32\[4\]"):
        fj.run(jax.random.key(0), federation, shards, test, num_rounds=1)


@pytest.mark.slow
def test_a_run_and_a_sweep_work_where_jax_looks_for_nan():
    one = fj.Experiment(dataset="blobs", num_agents=2, rounds=2, model="logistic", eval_every=2)
    with jax.debug_nans(True):
        result, swept = one.run(), fj.sweep(one, seeds=[0])
    np.testing.assert_allclose(swept[0].accuracies, result.accuracies, atol=0.01)
