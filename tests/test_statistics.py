"""Networks with statistics, such as BatchNorm: every agent's own, never uploaded or judged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import fairjax as fj

FIELDS = {"num_agents": 3, "rounds": 3, "samples_per_agent": 50}
OF_ONE_RUN = {
    **FIELDS, "learning_rate_decay": 0.9, "participation": 2, "mechanism": "standalone",
}  # fmt: skip


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(10, name="head")(nn.relu(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.first(x.reshape(len(x), -1)))
        return self.head(self.drop(nnx.relu(x)))


NETS = {"linen": LinenNet(), "nnx": NnxNet, "object": NnxNet(nnx.Rngs(0))}


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize(
    ("kind", "mechanism"),
    [("nnx", "cgsv"), ("linen", "fedavg")],
)
@pytest.mark.slow
def test_models_are_evaluated_with_their_own_statistics(kind, mechanism):
    one = fj.Experiment(model=NETS[kind], mechanism=mechanism, record_updates=True, **FIELDS)
    result = one.run()
    shards, test = one.make_shards()
    model, state = one.make_model(shards.data), result.state
    sizes = result.shard_sizes / result.shard_sizes.sum()
    mean = jax.tree.map(lambda leaf: np.tensordot(sizes, leaf, 1), state.statistics)
    held = [(result.agent(agent), result.statistics(agent)) for agent in range(3)]
    found = [*result.accuracies, result.history.server_accuracies[-1]]
    for (params, statistics), accuracy in zip([*held, (state.server, mean)], found, strict=True):
        logits = model.apply(params, test.x, None, statistics)
        assert (logits.argmax(-1) == test.y).mean() == pytest.approx(accuracy, abs=0.004)
    means = jax.tree.leaves(state.statistics)[0]
    assert not np.allclose(means[0], means[1])
    trained = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.agents)}
    assert not any("mean" in name or "var" in name for name in trained)
    same(
        jax.tree.map(lambda leaf: leaf.shape[1:], result.history.updates),
        jax.tree.map(jnp.shape, state.agents),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linen", "object"])
def test_a_local_step_is_one_of_the_network(kind):
    """Two full batches by hand."""
    one = fj.Experiment(
        model=NETS[kind], mechanism="standalone", num_agents=1, rounds=1, local_epochs=2,
        batch_size=1000, optimizer="sgd", learning_rate=0.1, samples_per_agent=40,
    )  # fmt: skip
    shards, _ = one.make_shards()
    mine = shards.data.take(shards.rows(0))
    model = one.make_model(shards.data)
    key = jax.random.key(one.seed)
    params = fj.simulation.first_params(key, model, shards.data)
    statistics = fj.simulation.first_statistics(key, model, shards.data)
    assert {float(leaf.mean()) for leaf in jax.tree.leaves(statistics)} == {0.0, 1.0}
    result = one.run()
    assert jax.tree.structure(result.statistics(0)) == jax.tree.structure(statistics)
    if kind != "linen":  # its dropout is not the one below
        pairs = zip(*map(jax.tree.leaves, (result.statistics(0), statistics)), strict=True)
        assert not any(np.allclose(after, before) for after, before in pairs)
        return

    def loss(params, statistics):
        logits, statistics = model.apply(params, mine.x, key, statistics)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, mine.y)
        return losses.mean(), statistics

    for _ in range(2):
        gradient, statistics = jax.grad(loss, has_aux=True)(params, statistics)
        params = jax.tree.map(lambda own, slope: own - 0.1 * slope, params, gradient)
    for expected, found in ((statistics, result.statistics(0)), (params, result.agent(0))):
        jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-5),
                     expected, found)  # fmt: skip


@pytest.mark.slow
def test_statistics_see_only_examples_of_the_agent():
    """Batches of 4 of 5 examples: padding would bring in rows of others, which are huge."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 64)).astype(np.float32)
    x[5:] *= 1e6
    data = fj.data.Dataset(x, np.arange(20) % 10, num_classes=10)
    shards = fj.data.Shards.from_indices(data, [range(5), range(5, 20)])
    one = fj.Experiment(
        dataset=(data, data), shards=shards, model=LinenNet(), mechanism="standalone", rounds=1,
        batch_size=4, optimizer="sgd", learning_rate=0.01,
    )  # fmt: skip
    variances = one.run().statistics(0)["batch_stats"]["BatchNorm_0"]["var"]
    assert variances.max() < 10


@pytest.mark.slow
def test_a_run_with_statistics_goes_on_with_the_same_bits(tmp_path):
    kind = "nnx"
    fj.Experiment(model=NETS[kind], **{**OF_ONE_RUN, "rounds": 2}).run(tmp_path)
    longer = fj.Experiment(model=NETS[kind], **OF_ONE_RUN).run(tmp_path)
    whole = fj.Experiment(model=NETS[kind], **OF_ONE_RUN).run()
    same(
        (longer.state.agents, longer.state.statistics), (whole.state.agents, whole.state.statistics)
    )
    again = fj.load_run(tmp_path, fj.Experiment(model=NETS[kind], **OF_ONE_RUN))
    same(again.state.statistics, whole.state.statistics)
    swept = fj.sweep(fj.Experiment(model=NETS[kind], **OF_ONE_RUN), seeds=[0, 1])
    np.testing.assert_allclose(swept[0].accuracies, whole.accuracies, atol=0.02)
    together = fj.Experiment(model=NETS[kind], agents_at_once=3, **OF_ONE_RUN).run()
    np.testing.assert_allclose(together.accuracies, whole.accuracies, atol=0.02)


@pytest.mark.slow
def test_two_devices_compute_the_same_statistics():
    one = fj.Experiment(model=LinenNet(), local_epochs=[1, 2, 3], mechanism="fedavg", **FIELDS)
    alone, spread = one.run(), one.run(mesh=fj.devices.mesh(2))
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, atol=5e-3),
        alone.state.statistics, spread.state.statistics,
    )  # fmt: skip
    np.testing.assert_allclose(alone.accuracies, spread.accuracies, atol=0.02)


@pytest.mark.slow
def test_absent_agents_keep_their_statistics():
    present = [[True, True, True], [True, False, True]]
    one = fj.Experiment(model=LinenNet(), **{**FIELDS, "rounds": 2, "participation": present})
    shards, _ = one.make_shards()
    federation = one.federation(shards)
    state = federation.init(jax.random.key(0), shards, num_rounds=2)
    step = jax.jit(federation.step)
    first, _ = step(state, shards)
    second, _ = step(first, shards)
    for before, after in zip(
        *map(jax.tree.leaves, (first.statistics, second.statistics)), strict=True
    ):
        np.testing.assert_array_equal(before[1], after[1])
        assert not np.array_equal(before[0], after[0])


@pytest.mark.slow
def test_statistics_of_a_model_of_ones_own():
    def init(key):
        return {"head": jax.random.normal(key, (64, 10)) / 8}

    def apply(params, x, key=None, statistics=None):
        outputs = x.reshape(len(x), -1) @ params["head"]
        return outputs if key is None else (outputs, {"steps": statistics["steps"] + 1})

    model = fj.models.Model(init, apply, "head", lambda key: {"steps": jnp.zeros((), int)})
    one = fj.Experiment(model=model, compute_dtype="bfloat16", **FIELDS, local_epochs=2)
    result = one.run()
    steps = 2 * np.ceil(result.shard_sizes / 32) * 4  # an extra round gives trained accuracies
    found = result.state.statistics["steps"]
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, steps * 3 / 4)
    with pytest.raises(ValueError, match="`utility` needs a network without statistics"):
        one.utility()
    with pytest.raises(ValueError, match="`statistics` must be a function or None"):
        fj.models.Model(init, apply, "head", {})


def test_a_partial_batch_is_filled_up_with_its_own_examples_in_turn():
    sizes = [1, 4, 6, 7]  # in batches of four
    data = fj.data.Dataset(np.eye(18), [0] * 18, num_classes=2)
    shards = fj.data.Shards.from_indices(data, np.split(np.arange(18), np.cumsum(sizes)[:-1]))

    def apply(params, x, key=None, statistics=None):
        outputs = x @ params["head"]
        return outputs if key is None else (outputs, {"seen": statistics["seen"] + x.sum(0)})

    federation = fj.federation(
        model=fj.models.Model(
            lambda key: {"head": jnp.zeros((18, 2))}, apply, "head",
            lambda key: {"seen": jnp.zeros(18)},
        ),
        mechanism=fj.mechanisms.standalone(), optimizer=optax.sgd(0.1), batch_size=4,
    )  # fmt: skip
    state, _ = jax.jit(federation.step)(federation.init(jax.random.key(0), shards), shards)
    seen = np.asarray(state.statistics["seen"])
    own = [seen[agent, shards.rows(agent)] for agent in range(4)]
    assert [sorted(times.tolist()) for times in own] == [
        [4], [1, 1, 1, 1], [1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1, 2],
    ]  # fmt: skip
    assert [times.sum() for times in own] == seen.sum(1).tolist()  # nobody sees another's


@pytest.mark.slow
def test_a_sweep_warns_where_its_batches_are_not_those_of_a_run_alone():
    one = fj.Experiment(
        model=NETS["linen"], mechanism="fedavg", split="dirichlet", num_agents=4, rounds=1,
        local_epochs=1, samples_per_agent=60, batch_size=128,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="largest shards .* have 84 to 107 examples .* is 128"):
        fj.sweep(one, seeds=(0, 1))
    fj.sweep(dataclasses.replace(one, batch_size=32), seeds=(0, 1))  # warnings are errors here
    fj.sweep(dataclasses.replace(one, model="mlp"), seeds=(0, 1))
