"""What does it cost to judge low-rank updates?  `python benchmarks/adapters.py`

factors    inner products, psi and exact values by the factors of `fairjax.LowRank`
products   the same of the products, which are made first; both in turn
peak       the largest resident memory of a process that judges many large matrices
"""

import functools
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from measure import REPEATS, print_table, report, times_in_turn

import fairjax as fj
from fairjax import lowrank, trees

JUDGES = {
    "inner products": trees.gram,
    "psi": fj.contributions.cosine,
    "exact": fj.contributions.cosine_shapley,
}


def main(
    num_agents: int = 20,
    size: int = 384,
    rank: int = 8,
    num_matrices: int = 12,
    repeats: int = REPEATS,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Time contributions of low-rank updates, by factors and by products.

    Args:
      num_agents: how many agents.
      size: rows and columns of a matrix.
      rank: the rank of an agent's update of a matrix.
      num_matrices: how many matrices an agent adapts.
      repeats: how many calls count, after one that compiles.
      tiny: small matrices, in seconds.
      seed: the updates follow from it.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    large = (10, 4096, 16, 32)
    if tiny:
        num_agents, size, rank, num_matrices, repeats, large = 4, 32, 2, 2, 2, (4, 64, 2, 2)
    updates = draw(num_agents, size, rank, num_matrices, seed)
    rows = []
    for name, judge in JUDGES.items():
        by_products = functools.partial(lambda judge, tree: judge(lowrank.dense(tree)), judge)
        calls = {
            way: functools.partial(jax.jit(function), updates)
            for way, function in (("factors", judge), ("products", by_products))
        }
        taken = times_in_turn(calls, 4 * repeats)
        row = {f"{way} ms": 1000 * taken[way].median for way in calls}
        rows.append({"what": name, **row, "ratio": row["products ms"] / row["factors ms"]})
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(judge_large, large, seed).result()
    print_table("peak memory", [peak])
    report("adapters: factors against products", rows, json_path=json, seed=seed, peak=peak)


def draw(num_agents: int, size: int, rank: int, num_matrices: int, seed: int) -> dict[str, Any]:
    """Returns random updates, one leaf for every matrix."""
    rng = np.random.default_rng(seed)

    def factor(*shape: int) -> np.ndarray:
        return rng.standard_normal((num_agents, *shape), np.float32)

    return {
        str(number): fj.LowRank(b=factor(size, rank), a=factor(rank, size))
        for number in range(num_matrices)
    }


def judge_large(sizes: tuple[int, int, int, int], seed: int) -> dict[str, Any]:
    """Returns the peak memory of this process after psi and exact values of large updates."""
    updates = draw(*sizes, seed)
    jax.block_until_ready(fj.contributions.cosine(updates))
    jax.block_until_ready(fj.contributions.cosine_shapley(updates))
    names = ("agents", "size", "rank", "matrices")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**dict(zip(names, sizes, strict=True)), "peak GiB": peak}


if __name__ == "__main__":
    tyro.cli(main)
