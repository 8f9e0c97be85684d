"""Beforehand: what the command line prepares and says before a run."""

import atexit
import contextlib
import gc
import importlib
import threading
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from fairjax import files, simulation
from fairjax.cli.terminal import output
from fairjax.experiments import Experiment

LARGE = 2**30  # bytes


def keep_programs() -> None:
    """Makes JAX cache compiled programs in the user's cache, unless another folder is set."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_folder() / "programs"))
        # By default JAX leaves out those that take less than a second: in a short run, most.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def keep_objects() -> None:
    """Takes what has been imported out of garbage collection, here and when Python ends.

    Nothing of it is freed before the end, and to search it takes half a second of a short run.
    """
    gc.freeze()
    atexit.register(gc.freeze)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Imports what writes checkpoints and draws figures in a thread, beside the block.

    Most of the beginning of a run is compiling, which needs no Python.
    """

    def run() -> None:
        with contextlib.suppress(Exception):  # it is raised again where the module is needed
            for name in ("orbax.checkpoint", "fairjax.report"):
                importlib.import_module(name)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def say_memory(experiment: Experiment, mesh: Mesh | None) -> None:
    """Says how much memory a run takes on each device, if it is more than a gigabyte."""
    shards, _ = experiment.kept_shards()
    num_devices = 1 if mesh is None else mesh.size
    needed = simulation.bytes_needed(experiment.federation(shards).training, shards, num_devices)
    if needed > LARGE:
        where = "" if mesh is None else f" on each of {num_devices} devices"
        text = f"The run takes about {needed / 2**30:.1f} GiB of memory{where}"
        output().print(text, highlight=False)
