"""How long does a first result take?  `python benchmarks/first_result.py --before OTHER/CHECKOUT`

    empty cache   `fairjax run` in a fresh process, with the defaults and no compiled programs
    kept cache    the same once more, in another process, with the programs that the first kept

Python's start, imports, data, compilation, figures and the page are included. Packages of other
folders, such as a checkout of an earlier commit, are run in turn with this one.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from measure import report

HERE = Path(__file__).parent.parent
RUN = [sys.executable, "-c", "from fairjax.cli import main; main()", "run"]


def main(
    before: tuple[Path, ...] = (),
    rounds: int = 80,
    repeats: int = 5,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Time `fairjax run` in processes of its own.

    Args:
      before: folders with a package `fairjax` to compare with.
      rounds: the number of rounds.
      repeats: how often each package is run with an empty cache, and then with the kept one.
      tiny: one round, once.
      seed: of the run.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    rounds, repeats = (1, 1) if tiny else (rounds, repeats)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for place in (*before, HERE):
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("empty", "kept"):
                    seconds = time_run(place.resolve(), Path(cache), rounds, seed)
                    found.setdefault((str(place), kind), []).append(seconds)
    rows: list[dict[str, Any]] = []
    for (place, kind), seconds in found.items():
        middle, first = map(statistics.median, (seconds, found[next(iter(found))[0], kind]))
        extremes = {"least s": min(seconds), "most s": max(seconds)}
        rows.append({"package": place, "cache": kind, "s": middle, **extremes})
        rows[-1]["share of the first package's"] = middle / first
    report("first result: `fairjax run`", rows, json_path=json, seed=seed, rounds=rounds)


def time_run(package: Path, cache: Path, rounds: int, seed: int) -> float:
    """Returns the seconds of a run whose process keeps compiled programs in a folder."""
    kept = {
        name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    }
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        subprocess.run(
            [*RUN, "--rounds", str(rounds), "--seed", str(seed), "--out", str(Path(out) / "run")],
            env={**kept, "PYTHONPATH": str(package), "XDG_CACHE_HOME": str(cache)},
            cwd=out, check=True, capture_output=True,
        )  # fmt: skip
        return time.perf_counter() - start


if __name__ == "__main__":
    tyro.cli(main)
