"""What share of a run's time is the host's?  `python benchmarks/host.py`

    the work   `fj.Experiment(...).run(out)` with a progress bar: the paper's MNIST network, random
               images, CGSV, evaluation in every round, records and checkpoints
    device     the main thread has called a compiled program, or waits for its numbers
    compiling  it traces or compiles
    host       it does anything else: data, shards, records, checkpoints, progress

A thread looks at the main thread's stack every few milliseconds. The run is played twice, with and
without compilation. Below the table are the functions of fairjax in which most of the host's time
passed, outermost first.
"""

import collections
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import tyro
from measure import print_table, report

import fairjax as fj
from fairjax.data import Dataset

Row = dict[str, Any]
OURS = str(Path(fj.__file__).parent)
# They call the program of a chunk of rounds, and read its events and rows.
WAITING = ("simulation/loop.py", "simulation/progress.py")
COMPILING = ("jax/_src/compiler.py", "jax/_src/interpreters/", "jax/_src/stages.py")


def main(
    num_agents: int = 10,
    samples: int = 600,
    evaluated: int = 1000,
    rounds: int = 20,
    interval: float = 0.002,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Sample where the main thread of a run is.

    Args:
      num_agents: how many agents.
      samples: images per agent.
      evaluated: images that models are evaluated on.
      rounds: the number of rounds.
      interval: seconds between two looks.
      tiny: a few images, in seconds.
      seed: images, labels and the run follow from it.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    if tiny:
        num_agents, samples, evaluated, rounds = 2, 32, 32, 2
    experiment = fj.Experiment(
        dataset=(images(2 * num_agents * samples, seed), images(evaluated, seed + 1)),
        model="mnist_cnn", num_agents=num_agents, samples_per_agent=samples, rounds=rounds,
        seed=seed,
    )  # fmt: skip
    rows, where = [], []
    for run in ("first", "second"):
        with (
            tempfile.TemporaryDirectory() as folder,
            Sampler(interval) as sampler,
            fj.ProgressBar() as bar,
        ):
            experiment.run(Path(folder) / "run", watch=bar)
        row: Row = {"run": run, "agents": num_agents, "rounds": rounds, "s": sampler.seconds}
        rows.append(row | {f"{kind} %": sampler.share(kind) for kind in sampler.kinds})
        where = [
            {"share %": 100 * count / sampler.looks, "function": name}
            for name, count in sampler.functions.most_common(8)
        ]
    report("host: where the main thread is", rows, json_path=json, seed=seed, functions=where)
    print_table("the host's time in the second run", where)


def images(number: int, seed: int) -> Dataset:
    """Returns random images."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, 32, 32, 1)).astype(np.float32)
    return Dataset(x=x, y=rng.integers(10, size=number), num_classes=10)


class Sampler:
    """Counts what the thread that enters it does, from another thread."""

    kinds = ("device", "compiling", "host")

    def __init__(self, interval: float):
        self.interval = interval
        self.counts: collections.Counter[str] = collections.Counter()
        self.functions: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> "Sampler":
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(threading.get_ident(),))
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()

    @property
    def looks(self) -> int:
        """How many times the thread was looked at."""
        return max(1, self.counts.total())

    def share(self, kind: str) -> float:
        """Returns the percentage of looks that found the thread doing this."""
        return 100 * self.counts[kind] / self.looks

    def _look(self, thread: int) -> None:
        while not self._done.wait(self.interval):
            frames = stack(sys._current_frames()[thread])
            kind = kind_of(frames)
            self.counts[kind] += 1
            if kind == "host":
                own = [frame for frame in frames if frame.f_code.co_filename.startswith(OURS)]
                self.functions[" > ".join(named(frame) for frame in own[-3:])] += 1


def stack(frame: FrameType | None) -> list[FrameType]:
    """Returns a thread's frames, the outermost first."""
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found[::-1]


def kind_of(frames: list[FrameType]) -> str:
    """Returns what a thread with these frames does."""
    files = [frame.f_code.co_filename for frame in frames]
    if any(part in file for file in files for part in COMPILING):
        return "compiling"
    own = [file for file in files if file.startswith(OURS)]
    return "device" if own and own[-1].endswith(WAITING) else "host"


def named(frame: FrameType) -> str:
    """Returns the file and function of a frame."""
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}"


if __name__ == "__main__":
    tyro.cli(main)
