"""How much memory does a run take?  `python benchmarks/memory.py`

    peak     the largest resident memory of the process, less that during a small run before
    numbers  the same, in units of N D float32 numbers: one copy of all agents' parameters

Every way to run has a process of its own. The agents train a perceptron by CGSV, with SGD or
with Adam, whose moments are two more numbers in N D.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from measure import report

import fairjax as fj

WAYS = ("fj.run", "Experiment.run", "Experiment.run with checkpoints", "fj.run with Adam")


def main(
    num_agents: int = 40,
    hidden: tuple[int, ...] = (2048, 1330),
    rounds: int = 2,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Measure the peak memory of runs.

    Args:
      num_agents: how many agents.
      hidden: widths of the perceptron's hidden layers; with the default D is 4.35 million.
      rounds: how many rounds.
      tiny: a small network, in seconds.
      seed: data and runs follow from it.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    if tiny:
        num_agents, hidden = 4, (64,)
    rows = []
    for way in WAYS:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            rows.append(pool.submit(measure, way, num_agents, hidden, rounds, seed).result())
    report("memory: peak of a run", rows, json_path=json, seed=seed)


def measure(
    way: str, num_agents: int, hidden: tuple[int, ...], rounds: int, seed: int
) -> dict[str, Any]:
    """Returns a row: the peak of this process during a run, beyond that during a small run."""
    run(way, 2, (8,), rounds, seed)  # what JAX and its compiler take in any case
    before, start = _peak(), time.perf_counter()
    size = run(way, num_agents, hidden, rounds, seed)
    peak = _peak() - before
    return {
        "way": way,
        "agents": num_agents,
        "parameters": size,
        "peak MiB": peak / 2**20,
        "numbers": peak / (4 * num_agents * size),
        "seconds": time.perf_counter() - start,
    }


def run(way: str, num_agents: int, hidden: tuple[int, ...], rounds: int, seed: int) -> int:
    """Runs CGSV, and returns the number of parameters D."""
    optimizer, rate = (optax.adam, 0.001) if "Adam" in way else (optax.sgd, 0.1)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40 * num_agents, 784)).astype(np.float32)
    data = fj.data.Dataset(x=x, y=np.arange(len(x)) % 10, num_classes=10)
    experiment = fj.Experiment(
        dataset=(data, data), num_agents=num_agents, model=fj.models.mlp(data, hidden=hidden),
        optimizer=optimizer, learning_rate=rate, local_epochs=1, batch_size=32, rounds=rounds,
        eval_every=rounds, eval_examples=20, split="uniform", seed=seed,
    )  # fmt: skip
    if way.startswith("fj.run"):
        shards, test = experiment.make_shards()
        federation = experiment.federation(shards)
        state, _ = fj.run(jax.random.key(seed), federation, shards, test, num_rounds=rounds)
        return sum(leaf.size for leaf in jax.tree.leaves(state.server))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run" if "checkpoints" in way else None
        return sum(leaf.size for leaf in jax.tree.leaves(experiment.run(out).state.server))


def _peak() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    tyro.cli(main)
