"""Shared by the benchmarks: times of calls without compilation, one table, one JSON file.

    first call                 traces, compiles and runs
    median of the later calls  is reported; `block_until_ready` waits for each

Functions that are compared are called in turn, so that a slow minute of the machine slows all of
them.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

PACKAGES = ("fairjax", "jax", "jaxlib", "flax", "optax", "numpy")
REPEATS = 5


class Times(NamedTuple):
    """Seconds of one function's calls."""

    first: float  # with tracing and compilation
    later: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.later)


def times(function: Callable[[], Any], repeats: int = REPEATS) -> Times:
    """Returns the times of a function that takes nothing and returns arrays."""
    return times_in_turn({"": function}, repeats)[""]


def times_in_turn(
    functions: Mapping[str, Callable[[], Any]], repeats: int = REPEATS
) -> dict[str, Times]:
    """Returns the times of several functions, called one after the other in every repetition."""
    first = {name: _seconds(function) for name, function in functions.items()}
    later: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            later[name].append(_seconds(function))
    return {name: Times(first[name], tuple(later[name])) for name in functions}


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def gemm_peak(size: int = 2048) -> float:
    """Returns the FLOP/s of a square product of float32 matrices, the best of five."""
    product = jax.jit(jax.numpy.matmul)
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    return 2 * size**3 / min(times(lambda: product(matrix, matrix)).later)


def stream_rate(size: int = 2**26) -> float:
    """Returns the bytes per second of x + 1 on a large array, read and written; best of five."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.numpy.zeros(size)

    def call() -> jax.Array:
        nonlocal x
        x = add(x)
        return x

    return 8 * size / min(times(call).later)


def flops_per_image() -> int:
    """Returns the useful FLOPs of the paper's MNIST network, forward and backward, for one image.

    Useful are multiply-adds of outputs that reach the loss, without the gradient with respect to
    the image. The second convolution has 9 rows, of which pooling reads 8. They need 14 rows after
    the first pooling, and these need 28 of the first convolution's 30.
    """
    first = 2 * 28 * 28 * 64 * 9
    second = 2 * 8 * 8 * 16 * 7 * 7 * 64
    dense = 2 * (256 * 200 + 200 * 10)
    return 3 * (first + second + dense) - first


def report(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    json_path: Path | None,
    seed: int = 0,
    **more: Any,
) -> None:
    """Prints rows as one aligned table, and writes them as JSON with where they were measured.

    Args:
      title: what was measured.
      rows: one mapping per row, from column to a number or a word; columns are those of all
        rows, in the order of their first appearance.
      json_path: the file; None: one named by the title's first word, in `runs/benchmarks/`.
      seed: what random inputs follow from.
      **more: further entries of the JSON file.
    """
    print_table(title, rows)
    path = json_path or Path("runs/benchmarks") / f"{title.split()[0].strip(':,')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "rows": list(rows), "seed": seed, **more, **where()}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as one aligned table, as `report` does."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_shown(row.get(column, "")) for column in columns))
    console = Console()
    # In a narrower terminal, the table's numbers would break.
    unbounded = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)


def where() -> dict[str, Any]:
    """Returns the versions, the device and the commit of this run."""
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True
    )
    device = jax.devices()[0]
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": f"{len(jax.devices())} x {device.platform} {device.device_kind}",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "commit": git.stdout.strip() or None,
    }


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
