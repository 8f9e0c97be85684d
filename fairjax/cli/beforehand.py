"""Beforehand: what the command line prepares and says before a run."""

import importlib
import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from fairjax import simulation
from fairjax.cli.terminal import output
from fairjax.experiments import Experiment

LARGE = 2**30  # bytes


def keep_programs() -> None:
    """Makes JAX cache compiled programs in the user's cache, unless another folder is set."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairjax"
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))


def import_report() -> None:
    """Imports what draws figures and pages, with matplotlib and scipy."""
    importlib.import_module("fairjax.report")


def say_memory(experiment: Experiment, mesh: Mesh | None) -> None:
    """Says how much memory a run takes on each device, if it is more than a gigabyte."""
    shards, _ = experiment.make_shards()
    num_devices = 1 if mesh is None else mesh.size
    needed = simulation.bytes_needed(experiment.federation(shards).training, shards, num_devices)
    if needed > LARGE:
        where = "" if mesh is None else f" on each of {num_devices} devices"
        text = f"The run takes about {needed / 2**30:.1f} GiB of memory{where}"
        output().print(text, highlight=False)
