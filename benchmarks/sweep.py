"""How long do thirty runs take: as one program, as thirty processes?  `python benchmarks/sweep.py`

    one program    `fj.sweep`: every beta with every seed, vmapped
    Experiment.run a process per point, which plays the same rounds and writes nothing
    fairjax run    a process per point, which writes records and draws figures too

All are timed as whole processes, with imports and compilation, because a sweep saves these. They
run in turn. Only a sample of the points runs as processes; the total is the median process times
the number of points.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro
from measure import REPEATS, report

from fairjax import checks

BETAS = (0.5, 1.0, 1.2, 1.5, 2.0, 1e7)
PROGRAM, RUN, COMMAND = "fj.sweep, one program", "Experiment.run", "fairjax run"


def main(
    betas: tuple[float, ...] = BETAS,
    num_seeds: int = 5,
    rounds: int = 80,
    processes: int = REPEATS,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Time a sweep of the default experiment, on digits, and its points one by one.

    Args:
      betas: altruism degrees.
      num_seeds: seeds for each of them.
      rounds: rounds of every run.
      processes: how many points have a process of their own, and how often the sweep runs at
        most; the number of points: all, and nothing is scaled.
      tiny: two points of two rounds, one of them as a process, `fairjax run`.
      seed: the first seed.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    if tiny:
        betas, num_seeds, rounds, processes = (0.5, 2.0), 1, 2, 1
    seeds = list(range(seed, seed + num_seeds))
    points = [(beta, one) for one in seeds for beta in betas]
    checks.count("processes", processes)
    if processes > len(points):
        raise ValueError(
            f"`processes` must be at most {len(points)}, one a point, got {processes}."
        )
    ways = (PROGRAM, COMMAND) if tiny else (PROGRAM, RUN, COMMAND)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(processes):
        point = points[number * len(points) // processes]
        with tempfile.TemporaryDirectory() as out:
            called = commands(betas, seeds, rounds, point, out)
            for name in ways:
                if name != PROGRAM or number < REPEATS:
                    taken[name].append(seconds(called[name]))
    rows = rows_of(taken, len(points))
    title = f"sweep: {len(points)} points of {rounds} rounds, each with its standalone run"
    report(title, rows, json_path=json, seed=seed, betas=betas, rounds=rounds, seconds=taken)


def commands(
    betas: tuple[float, ...], seeds: list[int], rounds: int, point: tuple[float, int], out: str
) -> dict[str, list[str]]:
    """Returns the arguments of `python` for each: the sweep, and one of its points."""
    beta, seed = point
    imports = "import fairjax as fj"
    sweep = f"fj.sweep(fj.Experiment(rounds={rounds}), seeds={seeds}, beta={list(betas)})"
    run = f"fj.Experiment(beta={beta}, seed={seed}, rounds={rounds}).run()"
    flags = ["--beta", beta, "--seed", seed, "--rounds", rounds, "--out", out]
    return {
        PROGRAM: ["-c", f"{imports}; {sweep}"],
        RUN: ["-c", f"{imports}; {run}"],
        COMMAND: ["-c", "from fairjax.cli import main; main()", "run", *map(str, flags)],
    }


def seconds(arguments: list[str]) -> float:
    """Returns how long a Python process takes, or raises with its error message."""
    start = time.perf_counter()
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    taken = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"`python {' '.join(arguments)}` failed:\n{process.stderr[-2000:]}")
    return taken


def rows_of(taken: Mapping[str, list[float]], num_points: int) -> list[dict[str, Any]]:
    """Returns a row for the sweep, and one for each way to run its points one by one."""
    sweep = statistics.median(taken[PROGRAM])
    rows = []
    for name, all_seconds in taken.items():
        middle = statistics.median(all_seconds)
        total = middle if name == PROGRAM else middle * num_points
        rows.append(
            {
                "way": name,
                "processes": 1 if name == PROGRAM else num_points,
                "timed": len(all_seconds),
                "one process s": middle,
                "all points s": total,
                "s per point": total / num_points,
                "ratio": total / sweep,
            }
        )
    return rows


if __name__ == "__main__":
    tyro.cli(main)
