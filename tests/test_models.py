"""Models of modules: Flax Linen and NNX, Equinox, and what is refused."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import fairjax as fj
from fairjax import simulation
from fairjax.experiments.checkpoints import Checkpoints
from fairjax.models import layers
from fairjax.models.networks import MLP


class NnxMLP(nnx.Module):
    def __init__(self, *, rngs, rate=0.0):
        self.hidden = nnx.List([nnx.Linear(64, 16, rngs=rngs)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.hidden[0](x.reshape(len(x), -1)))))


class NnxCNN(nnx.Module):
    def __init__(self, rngs, **options):
        self.conv = nnx.Conv(1, 8, (3, 3), padding="VALID", rngs=rngs, **options)
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.head = nnx.Linear(8 * 9, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(layers.max_pool(self.conv(x))))
        return self.head(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def digits():
    train, test = fj.data.load("digits")
    return fj.data.power_law(train, num_agents=3, seed=0, samples_per_agent=40), test.take(
        np.arange(100)
    )


def played(model, digits, params=None, num_rounds=2, **options):
    shards, test = digits
    options = {"agents_at_once": 1, "optimizer": optax.sgd(0.1), **options}
    federation = fj.federation(model=model, mechanism=fj.mechanisms.fedavg(), **options)
    return fj.run(jax.random.key(0), federation, shards, test, num_rounds=num_rounds, params=params)


def of_agent(tree, agent):
    return leaves(jax.tree.map(lambda leaf: leaf[agent], tree))


def leaves(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
def test_an_nnx_module_ends_where_the_linen_module_with_its_parameters_ends(digits):
    model = fj.models.from_flax(NnxMLP)
    first = model.init(jax.random.key(3))
    linen = fj.models.from_flax(MLP((16,), 10))
    state, history = played(model, digits, first)
    same = {"Dense_0": first["hidden"]["0"], "head": first["head"]}
    linen_state, linen_history = played(linen, digits, same)
    np.testing.assert_allclose(history.accuracies, linen_history.accuracies, atol=1e-6)
    for ours, theirs in (("head", "head"), ("hidden", "Dense_0")):
        assert np.abs(leaves(state.agents[ours]) - leaves(linen_state.agents[theirs])).max() < 1e-6


def test_a_function_of_rngs_draws_parameters_and_a_module_keeps_its_own():
    keys = jax.random.key(0), jax.random.key(1)
    drawn = fj.models.from_flax(lambda rngs: NnxMLP(rngs=rngs))
    assert not np.array_equal(*(leaves(drawn.init(key)) for key in keys))
    np.testing.assert_array_equal(*(leaves(drawn.init(keys[0])) for _ in range(2)))
    module = NnxMLP(rngs=nnx.Rngs(7))
    own = fj.models.from_flax(module)
    kernel = np.asarray(module.head.kernel[...])
    module.head.kernel[...] = jnp.zeros_like(kernel)
    for key in keys:
        np.testing.assert_array_equal(own.init(key)["head"]["kernel"], kernel)


def test_a_module_is_applied_as_flax_applies_it(digits):
    x = digits[1].x[:4]
    module = NnxMLP(rngs=nnx.Rngs(7))
    model = fj.models.from_flax(module)
    np.testing.assert_array_equal(model.apply(model.init(jax.random.key(0)), x), module(x))


class TakesDropoutKeys(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(64, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, deterministic, rngs=None):
        x = x.reshape(len(x), -1)
        return self.linear(self.dropout(x, deterministic=deterministic, rngs=rngs))


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1)))


class LinenNoise(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=False):
        x = x.reshape(len(x), -1)
        if is_training:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(10)(x)


DROPOUT = {
    "nnx": functools.partial(NnxMLP, rate=0.5),
    "nnx, rngs in the call": TakesDropoutKeys,
    "linen": LinenDropout(),
    "linen, a stream of its own": LinenNoise(),
}


@pytest.mark.parametrize("name", DROPOUT)
def test_a_key_turns_dropout_on_and_decides_what_drops(name, digits):
    x = digits[1].x[:8]
    model = fj.models.from_flax(DROPOUT[name], example=x)
    params = model.init(jax.random.key(0))
    apply = jax.jit(model.apply)
    still = [apply(params, x) for _ in range(2)]
    noisy = [apply(params, x, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(*still)
    np.testing.assert_array_equal(*noisy[:2])
    assert not np.allclose(noisy[0], noisy[2])
    assert not np.allclose(noisy[0], still[0])


@pytest.mark.slow
@pytest.mark.parametrize("agents_at_once", [1, 3])
def test_dropout_differs_between_agents_and_between_steps(agents_at_once):
    """All agents hold the same examples in one batch, so only dropout can make updates differ."""
    x = np.ones((4, 8, 8), np.float32)
    train = fj.data.Dataset(x=np.tile(x, (3, 1, 1)), y=np.arange(12) % 4, num_classes=10)
    shards = fj.data.Shards.from_indices(train, np.arange(12).reshape(3, 4))
    model = fj.models.from_flax(DROPOUT["nnx"])
    federation = fj.federation(
        model=model,
        mechanism=fj.mechanisms.standalone(),
        optimizer=optax.sgd(0.1),
        batch_size=4,
        agents_at_once=agents_at_once,
    )
    state = federation.init(jax.random.key(0), shards)
    step = jax.jit(federation.step)
    (_, first), (_, second) = (
        step(state, shards),
        step(state._replace(round=state.round + 1), shards),
    )
    updates = np.stack([of_agent(first.updates, agent) for agent in range(3)])
    later = of_agent(second.updates, 0)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.allclose(updates[one], updates[other])
    assert not np.allclose(updates[0], later)


@pytest.mark.slow
def test_agents_together_end_where_agents_in_turn_do(digits):
    model = fj.models.from_flax(DROPOUT["nnx"])
    together, in_turn = (played(model, digits, agents_at_once=size)[0] for size in (3, 1))
    np.testing.assert_allclose(leaves(together.agents), leaves(in_turn.agents), atol=1e-5)


@pytest.mark.slow
def test_an_nnx_convolution_may_be_ours(digits):
    theirs = fj.models.from_flax(NnxCNN)
    ours = fj.models.from_flax(
        functools.partial(NnxCNN, conv_general_dilated=layers.conv_general_dilated)
    )
    states = [played(model, digits, num_rounds=1)[0] for model in (theirs, ours)]
    np.testing.assert_allclose(*(leaves(state.server) for state in states), atol=1e-5)


@pytest.mark.slow
def test_progress_with_an_nnx_module_survives_a_checkpoint(digits, tmp_path):
    shards, test = digits
    federation = fj.federation(
        model=fj.models.from_flax(NnxMLP, head="head"),
        mechanism=fj.mechanisms.shapfed(),
        optimizer=optax.adam(0.01),
    )
    rounds = simulation.Rounds(jax.random.key(0), federation, shards, test, num_rounds=1)
    *_, last = rounds.stages()
    like = rounds.beginning()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(last)
    loaded = checkpoints.load(like)
    for saved, found in ((last.state.agents, loaded.state.agents), (last.rows, loaded.rows)):
        assert jax.tree.structure(saved) == jax.tree.structure(found)
        np.testing.assert_array_equal(leaves(saved), leaves(found))


class Tied(nnx.Module):
    """A module that uses one table twice, and holds one array that is no variable."""

    def __init__(self, rngs):
        self.table = nnx.Embed(12, 4, rngs=rngs)
        self.again = self.table
        self.scale = jnp.full(12, 2.0)

    def __call__(self, x):
        return self.scale * self.again.attend(self.table(x).mean(1))


def test_a_shared_layer_is_one_parameter_and_a_plain_array_a_constant():
    model = fj.models.from_flax(Tied)
    params = model.init(jax.random.key(0))
    [table] = jax.tree.leaves(params)
    x = jnp.array([[0, 1], [2, 3]])
    wanted = 2 * table[x].mean(1) @ table.T
    np.testing.assert_allclose(model.apply(params, x), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("mlp", "must be a Flax module, Linen or NNX, .*got str"),
        (NnxMLP.__call__, "a function of `rngs` that makes an NNX module, got __call__"),
        (lambda rngs: 3, "a function of `rngs` that makes an NNX module, got <lambda>"),
        (nn.Dense, "must be a Flax module"),
        ((lambda key: {}, lambda params, x: x), r"give a pair of functions: .*Model\(init"),
    ],
)
def test_what_is_no_model_is_refused(module, message):
    with pytest.raises(ValueError, match=message):
        fj.models.from_flax(module, example=jnp.ones((1, 4))).init(jax.random.key(0))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("equinox") is None, reason="needs equinox")
def test_an_equinox_module_is_a_model_in_five_lines(digits):
    import equinox as eqx

    def net(key):
        return eqx.nn.MLP(in_size=64, out_size=10, width_size=16, depth=1, key=key)

    _, static = eqx.partition(net(jax.random.key(0)), eqx.is_inexact_array)

    def init(key):
        return eqx.partition(net(key), eqx.is_inexact_array)[0]

    def apply(params, x, key=None):
        return jax.vmap(eqx.combine(params, static))(x.reshape(len(x), -1))

    state, history = played(fj.models.Model(init, apply), digits, local_epochs=20)
    assert history.accuracies[-1].max() > history.accuracies[0].max()
    kernel = state.server.layers[0].weight
    assert kernel.shape == (16, 64)


NO_DATA = (None, True, 3, 0.5, "digits", [1, 2], np.ones((2, 4)), {}, object(), len)


@pytest.mark.parametrize("name", sorted(fj.models.REGISTRY))
def test_a_model_of_no_data_set_is_refused(name):
    for value in NO_DATA[1:] if name.endswith("st_cnn") or name == "cifar_cnn" else NO_DATA:
        with pytest.raises(ValueError, match="`train` must be a Dataset, as `fairjax.data.load`"):
            fj.models.REGISTRY[name](value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda train: fj.models.mlp(train, hidden=64), r"`hidden` must be widths.*hidden=64"),
        (lambda train: fj.models.mlp(train, hidden="64"), "`hidden` must be widths.*'64'"),
        (lambda train: fj.models.mlp(train, hidden=None), "`hidden` must be widths"),
        (lambda train: fj.models.mlp(train, hidden=(8, 0)), "`hidden` must be a whole number"),
        (lambda train: fj.models.mlp(train, hidden=(8.0,)), "`hidden` must be a whole number"),
        (lambda train: fj.models.text_cnn("a", 2), "`vocabulary_size`"),
        (lambda train: fj.models.text_cnn(9, 2.0), "`num_classes`"),
        (lambda train: fj.models.mnist_cnn(convolution=3), "`convolution` must be a function"),
        (lambda train: fj.models.Model(init=3, apply=len), r"`init` must be a function, init\(key"),
        (lambda train: fj.models.Model(init=len, apply=None), "`apply` must be a function"),
        (lambda train: fj.models.Model(len, max, head=0), "`head` must be a str"),
        (lambda train: fj.models.from_flax(nn.Dense(3), 5), "`example` must hold a data set, or"),
        (lambda train: fj.models.from_flax(nn.Dense(3), "x"), "`example` must hold a data set, or"),
        (lambda train: fj.models.from_flax(nn.Dense(3), [[1], [1, 2]]), "`example`"),
        (lambda train: fj.models.from_flax(nn.Dense(3), np.ones((0, 4))), r"`example`.*\(0, 4\)"),
        (lambda train: fj.models.computing_in(None, "bfloat16"), "`model` must be a Model"),
        (lambda train: fj.models.computing_in(fj.models.logistic(train), 16), "Unknown dtype '16'"),
        (lambda train: fj.models.computing_in(fj.models.logistic(train), int), "Unknown dtype"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(call, message):
    train = fj.data.Dataset(x=np.ones((6, 4), np.float32), y=np.arange(6) % 3, num_classes=3)
    with pytest.raises(ValueError, match=message):
        call(train)


@pytest.mark.parametrize(
    ("init", "apply", "head", "message"),
    [
        (lambda: 0, lambda p, x, key=None: x, None, "`model.init` does not make parameters"),
        (lambda key: {}, lambda p, x, key=None: x, None, "`model.init` must return a pytree"),
        (lambda key: {"w": "a"}, lambda p, x, key=None: x, None, r"got leaves of \['str'\]"),
        (lambda key: jnp.ones(3, int), lambda p, x, key=None: x, None, r"leaves of \['int32'\]"),
        (lambda key: jnp.ones(3), lambda p, x, key=None: x, None, r"\(1, 3\).*float32\[1, 4\]"),
        (lambda key: jnp.ones(3), lambda p, x, key=None: p, None, r"logits of shape.*float32\[3\]"),
        (lambda key: jnp.ones(3), lambda p, x, key=None: 7, None, "logits of shape .*, got int"),
        (lambda key: jnp.ones(3), lambda p, x, key=None: x[:, :3].astype(int), None, "floating"),
        (lambda key: jnp.ones(3), lambda p, x, key=None: x + p, None, "does not take.*ValueError"),
        (lambda key: {"w": 1.0}, lambda p, x, key=None: p["v"] * x, None, "does not take.*'v'"),
        (lambda key: {"w": 1.0}, lambda p, x, key=None: x[:, :3], "v", "head='v'. Known: w"),
        (lambda key: jnp.ones(3), lambda p, x, key=None: x[:, :3], "v", "Known: no names"),
    ],
)  # fmt: skip
def test_a_pair_of_functions_that_is_no_model_of_the_data_is_told_why(init, apply, head, message):
    train = fj.data.Dataset(x=np.ones((6, 4), np.float32), y=np.arange(6) % 3, num_classes=3)
    model = fj.models.Model(init, apply, head)
    with pytest.raises(ValueError, match=message):
        fj.models.initial_params(model, jax.random.key(0), train)


def test_a_function_that_does_not_take_what_apply_is_given_is_refused():
    with pytest.raises(ValueError, match=r"`apply` must take params, x, key, .* got .*\(p, x\)"):
        fj.models.Model(lambda key: jnp.ones(3), lambda p, x: x)
    with pytest.raises(ValueError, match="`apply` must take params, x, key, statistics"):
        fj.models.Model(lambda key: 0, lambda p, x, key=None: x, statistics=lambda key: 0)


def test_parameters_may_be_python_numbers_and_numpy_arrays():
    train = fj.data.Dataset(x=np.ones((6, 4), np.float32), y=np.arange(6) % 3, num_classes=3)
    model = fj.models.Model(
        lambda key: {"scale": 2.0, "shift": np.zeros(3)},
        lambda p, x, key=None: p["scale"] * x[:, :3] + p["shift"],
    )
    params = fj.models.initial_params(model, jax.random.key(0), train)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert len(repr(model)) < 300
