"""How do time and memory grow with agents, parameters, devices?  `python benchmarks/scaling.py`

    agents       rounds of CGSV, 60 random examples per agent, one local epoch: the paper's MNIST
                 network to 1,000 agents, a perceptron to 10,000, and one of 4.2 million parameters,
                 whose updates take longer to check, judge and pay than to train
    parameters   the server step alone: judge N uploads of D numbers, pay, add. "Floor" is its time
                 over that of one read of the uploads and one read and write of the agents'
                 parameters at the rate of x + 1; "beside" is its peak memory beyond both, in N D
    devices      the paper's network and a perceptron, 600 examples per agent; a CPU is split

Every row is measured in a process of its own. It gives the peak memory: of the process on a CPU,
otherwise of the device.
"""

import functools
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from measure import report, stream_rate, times

import fairjax as fj
from fairjax import devices as meshes
from fairjax import trees
from fairjax.data import Dataset, Shards
from fairjax.mechanisms.base import Context

QUESTIONS = ("agents", "parameters", "devices")
EXACT = 25  # most agents that are judged by exact values
SERVERS = ("10x100000", "20x10000000", "100x1000000", "100x10000000", "1000x100000")
NETWORKS = fj.models.REGISTRY | {"wide": functools.partial(fj.models.mlp, hidden=(2048, 1024))}
Row = dict[str, Any]


def main(
    questions: tuple[str, ...] = QUESTIONS,
    cnn_agents: tuple[int, ...] = (1, 10, 50, 200, 1000),
    mlp_agents: tuple[int, ...] = (10, 100, 1000, 10_000),
    wide_agents: tuple[int, ...] = (10, 40),
    parameters: tuple[str, ...] = SERVERS,
    devices: tuple[int, ...] = (1, 2),
    rounds: int = 3,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Time rounds and server steps of many sizes.

    Args:
      questions: any of agents, parameters and devices.
      cnn_agents: numbers of agents with the paper's network.
      mlp_agents: numbers of agents with a perceptron.
      wide_agents: numbers of agents with a wide one.
      parameters: numbers of agents and sizes of an upload, each as "NxD".
      devices: numbers of devices.
      rounds: how many count, after one that compiles.
      tiny: the smallest sizes, in seconds.
      seed: examples, labels and parameters follow from it.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    if tiny:
        cnn_agents, mlp_agents, wide_agents = (1,), (2,), ()
        parameters, devices, rounds = ("2x1000",), (2,), 2
    examples = 32 if tiny else 600
    work = {
        "agents": [
            (agents_row, model, number, 60, 1, rounds, seed)
            for model, numbers in (
                ("mnist_cnn", cnn_agents),
                ("mlp", mlp_agents),
                ("wide", wide_agents),
            )
            for number in numbers
        ],
        "parameters": [
            (server_row, contribution, *map(int, sizes.split("x")), seed)
            for sizes in parameters
            for contribution in ("cosine", "mean_field", "shapley")
            if contribution != "shapley" or int(sizes.split("x")[0]) <= EXACT
        ],
        "devices": [
            (agents_row, model, 8, examples, number, rounds, seed)
            for model in ("mnist_cnn", "mlp")
            for number in devices
        ],
    }
    rows = []
    for question in questions:
        for function, *arguments in work[question]:
            rows.append({"question": question} | in_own_process(function, *arguments))
    report("scaling: every row in a process of its own", rows, json_path=json, seed=seed)


def in_own_process(function: Any, *arguments: Any) -> Row:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def agents_row(
    model: str, num_agents: int, examples: int, num_devices: int, rounds: int, seed: int
) -> Row:
    """Returns the times of rounds of CGSV, and the peak memory."""
    mesh = meshes.start(num_devices)
    shards = drawn(num_agents, examples, seed)
    federation = fj.federation(
        model=NETWORKS[model](shards.data),
        mechanism=fj.mechanisms.cgsv(),
        optimizer=optax.sgd(0.1),
        mesh=mesh,
    )
    shards = meshes.everywhere(mesh, jax.device_put(shards))
    state = federation.init(jax.random.key(seed), shards)
    step = jax.jit(lambda state, shards: federation.step(state, shards)[0], donate_argnums=0)
    taken = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        state = jax.block_until_ready(step(state, shards))
        taken.append(time.perf_counter() - start)
    seconds = statistics.median(taken[1:])
    return {
        "model": model,
        "N": num_agents,
        "D": trees.num_parameters(state.server),
        "devices": num_devices,
        "seconds": seconds,
        "ms per agent": 1e3 * seconds / num_agents,
        "first s": taken[0],
        "peak GiB": peak_memory(),
    }


def server_row(contribution: str, num_agents: int, size: int, seed: int) -> Row:
    """Returns the time and the peak memory of the server step on random uploads."""
    mechanism = fj.mechanisms.cgsv(contribution=contribution)
    draw = jax.jit(lambda keys: jax.lax.map(lambda key: jax.random.normal(key, (size,)), keys))
    uploads = jax.block_until_ready(draw(jax.random.split(jax.random.key(seed), num_agents)))
    agents, importance = jax.numpy.zeros((num_agents, size)), mechanism.init(num_agents)
    context = Context(shard_sizes=np.arange(1, num_agents + 1))
    before, numbers = peak_memory(), num_agents * size

    def server_step(agents: Any, uploads: Any, importance: Any) -> tuple[Any, Any]:
        outcome, importance = mechanism.update(uploads, importance, context)
        return agents + outcome.rewards, importance

    compiled = jax.jit(server_step, donate_argnums=0)

    def call() -> Any:
        nonlocal agents, importance
        agents, importance = compiled(agents, uploads, importance)
        return agents

    taken = times(call)
    peak = peak_memory()
    return {
        "model": contribution,
        "N": num_agents,
        "D": size,
        "devices": 1,
        "seconds": taken.median,
        "ms per agent": 1e3 * taken.median / num_agents,
        "first s": taken.first,
        "peak GiB": peak,
        "beside": (peak - before) * 2**30 / (4 * numbers),
        "floor": taken.median * stream_rate() / (12 * numbers),
    }


def drawn(num_agents: int, examples: int, seed: int) -> Shards:
    """Returns random images, the same number for each agent."""
    rng = np.random.default_rng(seed)
    total = num_agents * examples
    x = rng.normal(size=(total, 32, 32, 1)).astype(np.float32)
    data = Dataset(x=x, y=rng.integers(0, 10, total), num_classes=10)
    return Shards.from_indices(data, np.arange(total).reshape(num_agents, examples))


def peak_memory() -> float:
    """Returns the peak memory of the device, or of this process on a CPU, in GiB."""
    on_device = jax.local_devices()[0].memory_stats() or {}
    own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return on_device.get("peak_bytes_in_use", own) / 2**30


if __name__ == "__main__":
    tyro.cli(main)
