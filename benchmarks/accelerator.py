"""What should a person with a GPU or TPU run once?  `python benchmarks/accelerator.py`

Runs the other benchmarks one after the other, each in a process of its own, with sizes for the
device that is here. It takes about ten minutes: a part that would not end in time is stopped, and
its row says so. All numbers go to one JSON file, and all tables to one Markdown file beside it.
Please send both back.
"""

import json as jsons
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from measure import report

HERE = Path(__file__).parent


class Part(NamedTuple):
    """A benchmark's flags on a CPU and on an accelerator."""

    cpu: str
    accelerator: str


PARTS = {
    "roofline": Part("", ""),
    "networks": Part("--no-torch --samples 256 --rounds 2", "--no-torch --num-agents 100"),
    "round": Part(
        "--num-agents 5 --samples 120 --evaluated 1000 --repeats 3", "--num-agents 10 100"
    ),
    "scaling": Part(
        "--cnn-agents 10 --mlp-agents 100 1000 --parameters 10x100000 100x1000000 --devices 1",
        "--cnn-agents 10 100 1000 --devices 1",
    ),
    "shapley": Part("--draws 2", ""),
    "sweep": Part("--betas 1 2 --num-seeds 3 --processes 1", "--processes 1"),
}


def main(
    minutes: float = 10.0,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Run all benchmarks that a device's numbers need.

    Args:
      minutes: after this time no part goes on.
      tiny: two parts at their tiny size, in seconds.
      seed: passed to every part.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    end = time.monotonic() + 60 * minutes
    # This process must not take the device's memory before its parts have run.
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    rows, parts = [], {}
    for name in ("roofline", "networks") if tiny else PARTS:
        flags = PARTS[name].cpu if backend == "cpu" else PARTS[name].accelerator
        flags = "--tiny" if tiny else flags
        start = time.monotonic()
        found, error = run(name, flags, seed, end - start)
        row = {"part": name, "s": time.monotonic() - start, "flags": flags}
        rows.append(row | ({"error": error} if error else {}))
        parts[name] = found
    path = json or Path("runs/benchmarks") / f"accelerator-{backend}.json"
    report(f"accelerator: all parts on {backend}", rows, json_path=path, seed=seed, parts=parts)
    page = path.with_suffix(".md")
    page.write_text("\n".join(markdown(name, found) for name, found in parts.items() if found))
    print(f"tables written to {page}")


def run(name: str, flags: str, seed: int, seconds: float) -> tuple[dict[str, Any], str]:
    """Returns what a benchmark wrote, or nothing and the reason."""
    if seconds < 1:
        return {}, "not started: no time was left"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        script = [sys.executable, str(HERE / f"{name}.py"), *flags.split()]
        where = ["--json", str(path), "--seed", str(seed)]
        # In a session of its own, so that the processes that it starts end with it.
        process = subprocess.Popen(
            [*script, *where], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {}, "stopped: it did not end in time"
        if process.returncode:
            return {}, (errors.strip().splitlines() or ["it ended without a word"])[-1][:100]
        return jsons.loads(path.read_text()), ""


def markdown(name: str, found: dict[str, Any]) -> str:
    """Returns a benchmark's rows as a Markdown table, below where they were measured."""
    columns = list(dict.fromkeys(column for row in found["rows"] for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[shown(row.get(column, "")) for column in columns] for row in found["rows"]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    where = f"{found['device']}; {versions}; commit {found['commit']}"
    return f"## {name}\n\n{found['title']}\n\n{where}\n\n{table}\n"


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    tyro.cli(main)
