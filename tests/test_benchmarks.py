"""Every benchmark runs at a tiny size, and writes its numbers and where they were measured."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if "tiny: bool" in path.read_text())
UNITS = {"s", "ms", "seconds"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_runs_and_says_what_it_measured_and_where(script, tmp_path):
    path = tmp_path / "numbers.json"
    command = [sys.executable, str(script), "--tiny", "--json", str(path), "--seed", "1"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = json.loads(path.read_text())
    assert found["rows"]
    assert found["seed"] == 1
    assert found["versions"].keys() >= {"fairjax", "jax", "numpy"}
    assert found["device"]
    assert "commit" in found
    for row in found["rows"]:
        seconds = [value for name, value in row.items() if UNITS & set(name.split())]
        assert seconds, row
        assert all(math.isfinite(value) and value > 0 for value in seconds), row


def test_every_benchmark_is_tried():
    assert {path.stem for path in SCRIPTS} >= {"peers", "round", "scaling", "shapley", "sweep"}


def test_the_roofline_counts_every_turn_of_a_loop_and_no_way_of_cpus(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    roofline = importlib.import_module("roofline")

    def program(x, kernel, steps):
        x = lax.fori_loop(0, 3, lambda _, x: x @ kernel, x)  # a loop of known length
        x = lax.fori_loop(0, steps, lambda _, x: jnp.sin(x @ kernel), x)
        return lax.platform_dependent(x, cpu=lambda x: x @ kernel @ kernel, default=jnp.cos)

    traced = jax.make_jaxpr(program)(jnp.ones((4, 8)), jnp.ones((8, 8)), 2)
    found = list(roofline.kernels_of(traced.jaxpr, local_steps=5))
    assert [kernel.times for kernel in found] == [3, 5]
    for kernel in found:
        assert kernel.flops == 2 * 4 * 8 * 8
        assert kernel.bytes == 4 * (4 * 8 + 8 * 8 + 4 * 8)
