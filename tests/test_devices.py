"""Agents spread over devices and processes get the same as on one device, up to rounding."""

import dataclasses
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

import fairjax as fj
from fairjax import devices
from fairjax.simulation import training

pytestmark = pytest.mark.slow

LONG = fj.Experiment(rounds=600, eval_every=600, gamma=0.5, learning_rate_decay=0.999)


def digits(num_agents, mesh=None, **options):
    train, test = fj.data.load("digits")
    shards = fj.data.power_law(train, num_agents=num_agents, seed=0)
    federation = fj.federation(
        model=fj.models.mlp(train),
        mechanism=fj.mechanisms.cgsv(**options),
        optimizer=optax.adam(1e-3),
        local_epochs=2,
        mesh=mesh,
    )
    return federation, shards, test


def difference(one, other):
    return max(
        jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), one, other))
    )


# Five agents on two devices are padded.
@pytest.mark.parametrize(
    ("num_agents", "contribution"), [(4, "cosine"), (5, "shapley"), (5, "mean_field")]
)
def test_a_mesh_changes_nothing_but_rounding(num_agents, contribution):
    results = []
    for mesh in (None, devices.mesh(2)):
        federation, shards, test = digits(num_agents, mesh, contribution=contribution)
        results.append(
            fj.run(jax.random.key(0), federation, shards, test, num_rounds=3, record_updates=True)
        )
    (state, history), (spread_state, spread) = results
    assert difference(history.importance[0], spread.importance[0]) < 1e-5
    first = [jax.tree.map(lambda leaf: leaf[0], one.updates) for one in (history, spread)]
    assert difference(*first) < 1e-5
    apart = np.concatenate(
        [
            np.abs(a - np.asarray(b)).ravel() > 1e-5
            for a, b in zip(*map(jax.tree.leaves, (state.agents, spread_state.agents)), strict=True)
        ]
    )
    assert apart.mean() < 0.001
    assert difference(history.accuracies, spread.accuracies) <= 2 / len(test) + 1e-6


def test_every_device_holds_its_own_agents_only():
    federation, shards, test = digits(4, devices.mesh(2))
    state, _ = fj.run(jax.random.key(0), federation, shards, test, num_rounds=1)
    for leaf in jax.tree.leaves((state.agents, state.optimizer)):
        assert [part.data.shape[0] for part in leaf.addressable_shards] == [2, 2]
    for leaf in jax.tree.leaves(state.server):
        assert leaf.sharding.is_fully_replicated


@pytest.mark.parametrize("num_agents", [4, 5])
def test_local_training_sends_nothing(num_agents):
    mesh = devices.mesh(2)
    federation, shards, _ = digits(num_agents, mesh)
    state = federation.init(jax.random.key(0), shards)
    local = training.LocalTraining(
        fj.models.mlp(shards.data), fj.tasks.CLASSIFICATION, lambda count, agent: optax.adam(1e-3),
        local_epochs=1, batch_size=32,
    )  # fmt: skip

    def train(state, shards):
        keys = jax.random.split(state.key, num_agents)
        own = training.Own(state.agents, state.optimizer)
        return training.train_agents(local, keys, own, shards, 0, agents_at_once=1, mesh=mesh)

    text = jax.jit(train).lower(state, devices.everywhere(mesh, shards)).compile().as_text()
    loops = text[: text.index("ENTRY")]
    sent = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert " while(" in text
    assert not any(f"{name}(" in loops for name in sent)
    if num_agents == 4:
        assert not any(f"{name}(" in text for name in sent)


def test_sums_over_agents_send_sums_not_uploads():
    federation, shards, _ = digits(4, devices.mesh(2))
    state = federation.init(jax.random.key(0), shards)
    text = jax.jit(federation.step).lower(state, shards).compile().as_text()
    assert "all-reduce(" in text
    uploads = [f"f32[4,{leaf.size // 4}" for leaf in jax.tree.leaves(state.agents)]
    gathers = [line for line in text.splitlines() if "all-gather(" in line]
    assert not any(shape in line for line in gathers for shape in uploads)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="`num_devices` must be at most the 2 devices"):
        devices.mesh(3)
    with pytest.raises(ValueError, match="`num_devices` must be a whole number"):
        devices.mesh(0)
    with pytest.raises(ValueError, match="need all of `coordinator`, .* got no `process_id`"):
        devices.start(coordinator="127.0.0.1:1", num_processes=2)
    with pytest.raises(ValueError, match=r"`process_id` must be in \[0, 2\), got 2"):
        devices.start(coordinator="127.0.0.1:1", num_processes=2, process_id=2)
    with pytest.raises(ValueError, match="`num_devices` must be at most 256, got num_devices=1000"):
        devices.start(1000)
    with pytest.raises(ValueError, match="`process_id` must be a whole number .* got True"):
        devices.start(coordinator="127.0.0.1:1", num_processes=2, process_id=True)
    two_axes = jax.make_mesh((2, 1), ("a", "b"))
    with pytest.raises(ValueError, match="`mesh` must be a .* one axis"):
        digits(4, two_axes)


@pytest.mark.parametrize(
    "coordinator",
    ["nonsense", "", ":80", "host:", "host:x", "host:0", "host:99999", "no.such:80", 3],
)
def test_an_address_that_cannot_be_used_is_refused_before_anybody_waits(coordinator):
    with pytest.raises(ValueError, match="`coordinator` must be .* got "):
        devices.start(coordinator=coordinator, num_processes=2, process_id=1)


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"got {address}: .*in use"):
            devices.start(coordinator=address, num_processes=2, process_id=0)


def test_processes_are_connected_before_jax_computes():
    jax.numpy.zeros(1)
    with pytest.raises(ValueError, match="before JAX computes anything"):
        devices.start(coordinator="127.0.0.1:1", num_processes=2, process_id=1)


@pytest.mark.parametrize("process_id", ["0", "1"])
def test_processes_that_do_not_come_end_the_command_with_a_sentence(process_id):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = "from fairjax import cli, devices; devices.CONNECT_SECONDS = 1; cli.main()"
    flags = ["--coordinator", address, "--num-processes", "2", "--process-id", process_id]
    command = [sys.executable, "-c", script, "run", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    said = f"fairjax: Not all 2 processes came together at {address} within 1 seconds."
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_two_processes_agree_with_one(tmp_path):
    experiment = fj.Experiment(rounds=3)
    alone = experiment.run()
    first, second = two_processes(experiment, tmp_path / "run")
    output, _ = first.communicate(timeout=300)
    assert first.returncode == second.wait(timeout=60) == 0, output
    together = fj.load_run(tmp_path / "run")
    assert together.experiment == alone.experiment
    assert difference(alone.history.importance, together.history.importance) < 1e-4
    assert difference(alone.accuracies, together.accuracies) <= 2 / 360 + 1e-6


def test_a_lost_process_ends_the_run_which_goes_on_on_other_devices(tmp_path):
    first, second = two_processes(LONG, tmp_path / "run")
    checkpoint = tmp_path / "run" / "standalone" / "checkpoint"
    deadline = time.monotonic() + 300
    while not (checkpoint.exists() and any(entry.name.isdigit() for entry in checkpoint.iterdir())):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    second.wait()
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 1, output[:3000]
    assert "another process of this run was lost" in output
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = LONG.run(tmp_path / "run", mesh=devices.mesh(2))
    assert resumed.history.importance.shape == (LONG.rounds, LONG.num_agents)
    assert np.isfinite(resumed.accuracies).all()
    beginning = dataclasses.replace(LONG, rounds=20).run(mesh=devices.mesh(2))
    assert difference(beginning.history.importance, resumed.history.importance[:20]) < 1e-3


def two_processes(experiment, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-c", "from fairjax.cli import main; main()", "run", "--out", str(out),
        "--rounds", str(experiment.rounds), "--eval-every", str(experiment.eval_every or 1),
        "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2",
    ]  # fmt: skip
    for name in ("gamma", "learning_rate_decay"):
        if getattr(experiment, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(experiment, name))]
    return [
        subprocess.Popen(
            [*command, "--process-id", str(number)],
            stdout=subprocess.PIPE if number == 0 else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
