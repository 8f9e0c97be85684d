"""Whole rounds are lowered for accelerators, though none is here: no host, no float64."""

import dataclasses
import functools
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import fairjax as fj
from fairjax.experiments import points
from fairjax.simulation import loop

BACKENDS = {"cuda": "gpu", "tpu": "tpu"}  # a platform's name in `jax.default_backend`
SMALL = fj.Experiment(num_agents=3, samples_per_agent=60, rounds=2, eval_every=2, model="mlp")


@pytest.fixture(params=BACKENDS)
def platform(request, monkeypatch):
    """A platform; fairjax chooses its programs as it would there."""
    monkeypatch.setattr(jax, "default_backend", lambda: BACKENDS[request.param])
    return request.param


def lower(function, platform, *arguments):
    """Returns the text of a program lowered for a platform."""
    text = export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()
    assert "f64" not in text
    assert "callback" not in text
    return text


def lower_round(experiment, platform):
    shards, _ = experiment.make_shards()
    federation = experiment.federation(shards)
    state = federation.init(jax.random.key(0), shards, None, 2, shards.data)
    return lower(federation.step, platform, state, shards)


@pytest.mark.parametrize(
    "mechanism",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name != "cgsv" else [])
        for name in fj.mechanisms.REGISTRY
    ],
)
def test_a_round_of_every_mechanism(mechanism, platform):
    text = lower_round(SMALL.with_mechanism(mechanism), platform)
    assert "stablehlo.dot_general" in text


@pytest.mark.slow
@pytest.mark.parametrize("contribution", fj.contributions.MEASURES)
@pytest.mark.parametrize("mask", ["model", "leaf"])
def test_every_way_to_judge_and_to_mask(contribution, mask, platform):
    options = {"contribution": contribution, "mask": mask}
    agents = 20 if contribution == "gram" else 3
    lower_round(dataclasses.replace(SMALL, options=options, num_agents=agents), platform)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["cgsv", "accounts", "flora", "fedit", "zero_padding"])
def test_a_round_with_adapters(mechanism, platform):
    ranks = (4, 4, 4) if mechanism == "fedit" else (2, 4, 8)
    options = {"mask": "rank"} if mechanism == "cgsv" else {}
    experiment = dataclasses.replace(SMALL.with_mechanism(mechanism), options=options, ranks=ranks)
    lower_round(experiment, platform)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mnist_cnn", "cifar_cnn", "text_cnn"])
def test_a_round_of_every_network_in_both_precisions(model, platform):
    rng = np.random.default_rng(0)
    shape = {"mnist_cnn": (28, 28, 1), "cifar_cnn": (32, 32, 3), "text_cnn": (20,)}[model]
    x = rng.uniform(0, 9, size=(100, *shape)).astype(np.float32)
    if model == "text_cnn":
        x = x.astype(np.int32)
    train = fj.data.Dataset(x=x, y=np.arange(100) % 10, num_classes=10)
    network = (
        fj.models.text_cnn(30, 10) if model == "text_cnn" else fj.models.REGISTRY[model](train)
    )
    for dtype in ("float32", "bfloat16"):
        experiment = dataclasses.replace(
            SMALL,
            dataset=(train, train),
            model=network,
            compute_dtype=dtype,
            samples_per_agent=20,
            batch_size=8,
        )
        text = lower_round(experiment, platform)
        products = re.findall(r"stablehlo\.(?:dot_general|convolution).*?: \((.*?)\)", text)
        assert products
        assert "fft" not in text  # the form for a CPU
        assert any("bf16" in operands for operands in products) == (dtype == "bfloat16")


@pytest.mark.slow
def test_a_sweep_with_its_evaluation(platform, monkeypatch):
    lowered = []

    def program(play, *_):
        def run(*arguments):
            lowered.append(lower(play.value, platform, *arguments))
            raise InterruptedError

        return run

    monkeypatch.setattr(points, "_program", program)
    with pytest.raises(InterruptedError):
        fj.sweep(SMALL, seeds=range(2), beta=[0.5, 2.0])
    assert "stablehlo.while" in lowered[0]


MESH = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import fairjax as fj, numpy as np, optax
from fairjax import devices
from fairjax.simulation import training
from jax import export

train, _ = fj.data.load("digits")
shards = fj.data.uniform(train, num_agents=16, seed=0)
local = training.LocalTraining(
    fj.models.mlp(train), fj.tasks.CLASSIFICATION, lambda count, agent: optax.adam(1e-3),
    local_epochs=1, batch_size=32,
)
mesh = devices.mesh(8)
federation = fj.federation(
    model=fj.models.mlp(train), mechanism=fj.mechanisms.cgsv(), optimizer=optax.adam(1e-3),
    mesh=mesh,
)
state = federation.init(jax.random.key(0), shards)
shards = devices.everywhere(mesh, shards)

def train(state, shards):
    own = training.Own(state.agents, state.optimizer)
    keys = jax.random.split(state.key, 16)
    return training.train_agents(local, keys, own, shards, 0, agents_at_once=2, mesh=mesh)

sent = ("all_gather", "all_reduce", "all_to_all", "collective_permute")
for platform in ("cuda", "tpu"):
    text = export.export(jax.jit(train), platforms=[platform])(state, shards).mlir_module()
    assert "while" in text
    assert not any(name in text for name in sent), platform
compiled = jax.jit(train).lower(state, shards).compile().as_text()
assert not any(name.replace("_", "-") + "(" in compiled for name in sent)
print("nothing is sent")
"""


@pytest.mark.slow
def test_a_run_evaluates_all_agents_together(platform):
    shards, test = SMALL.make_shards()
    federation = fj.federation(
        model=fj.models.mlp(test), mechanism=fj.mechanisms.cgsv(), optimizer=optax.sgd(0.1)
    )
    state = federation.init(jax.random.key(0), shards, None, 2, test)
    play = functools.partial(loop.play, federation, 3)
    text = lower(play, platform, state, shards, test, 2, 2)
    assert f"tensor<3x{len(test.y)}x10xf32>" in text


@pytest.mark.slow
def test_local_training_on_a_mesh_of_eight_sends_nothing():
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MESH)], capture_output=True, text=True, check=False
    )
    assert ended.stdout == "nothing is sent\n", ended.stderr


def test_float64_would_be_found():
    with jax.enable_x64(True), pytest.raises(AssertionError):
        lower(lambda x: x * 2, "cuda", jnp.ones(3, jnp.float64))
