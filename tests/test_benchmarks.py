"""Every benchmark runs at a tiny size, and writes its numbers and where they were measured."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

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
