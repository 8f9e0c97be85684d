"""Memory: what a round of agents needs of it, known from shapes before anything is compiled."""

import contextlib
import functools
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax import trees
from fairjax.data import Shards
from fairjax.models import initial_params
from fairjax.simulation.training import LocalTraining, examples

MOST_MAPS = 30_000  # Linux ends a process, without a word, that asks for more than 65,530


class Needs(NamedTuple):
    """What one agent needs.

    Attributes:
      parameters: how many parameters its model has.
      params: the bytes that they take.
      optimizer: the bytes that its optimizer's state takes.
      step: the bytes that a local step works on: what its backward pass keeps, its optimizer
        state, its parameters, gradient and change.
    """

    parameters: int
    params: int
    optimizer: int
    step: int


def shapes(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """Returns the structure and the shapes of a pytree, which are hashable."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)


def pick_agents_at_once(training: LocalTraining, shards: Shards, num_devices: int = 1) -> int:
    """Returns how many agents to vectorise: one on a CPU, else as many as memory holds.

    On a CPU the matrix products of one agent already use all cores, and an agent that
    trains alone takes only its own number of steps. On an accelerator half of the
    device's memory is left for data and uploads.
    """
    if jax.default_backend() == "cpu":
        return 1
    fitting = device_memory() / 2 // (2 * bytes_per_agent(training, shards))
    return int(max(1, min(math.ceil(shards.num_agents / num_devices), fitting)))


def bytes_per_agent(training: LocalTraining, shards: Shards) -> int:
    """Returns what a local step of one agent works on, in bytes."""
    return _needs(training, *shapes(shards)).step


def check_memory(training: LocalTraining, shards: Shards, num_devices: int = 1) -> None:
    """Raises where a device cannot hold a round of its agents.

    Raises:
      ValueError: says how much is needed, how much there is, and what to change.
    """
    needs = _needs(training, *shapes(shards))
    # Held, trained, uploaded and paid parameters; optimizer states before and after.
    per_agent = 4 * needs.params + 2 * needs.optimizer
    own = math.ceil(shards.num_agents / num_devices)
    needed = own * per_agent + needs.step + _num_bytes(shards)
    available = device_memory() / (num_devices if jax.default_backend() == "cpu" else 1)
    if needed > available:
        raise ValueError(
            f"`shards` must hold no more agents than fit into memory: {shards.num_agents} agents "
            f"of {needs.parameters:,} parameters need {needed / 2**30:.1f} GiB on each "
            f"of {num_devices} devices, which have {available / 2**30:.1f} GiB. Take fewer "
            "agents, a smaller model, or more devices (`mesh`)."
        )


def device_memory() -> int:
    """Returns the memory of a device in bytes; of a CPU, that of the machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def spare_maps() -> None:
    """Clears JAX's caches where compiled programs take up most memory maps of the process.

    What JAX compiles to draw first parameters, one small program for every new shape, it keeps
    for ever. All that is still needed is compiled again.
    """
    with contextlib.suppress(OSError):  # elsewhere than on Linux
        if Path("/proc/self/maps").read_bytes().count(b"\n") > MOST_MAPS:
            jax.clear_caches()


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@functools.lru_cache(maxsize=8)  # federations are made again and again of the same
def _needs(
    training: LocalTraining, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> Needs:
    def kept(leaves: Any) -> Any:
        shards = structure.unflatten(leaves)
        params = initial_params(training.model, jax.random.key(0), shards.data)
        batch_size = min(training.batch_size, shards.indices.shape[1])
        x, y = examples(shards.data, shards.indices[0, :batch_size])
        present = jnp.ones(batch_size, bool)
        residuals = jax.vjp(lambda params: training.loss(params, x, y, present), params)[1]
        return params, training.init(params), residuals

    params, optimizer, residuals = jax.eval_shape(kept, leaves)
    sizes = [_num_bytes(tree) for tree in (params, optimizer, residuals)]
    step = 3 * sizes[0] + sizes[1] + sizes[2]
    return Needs(trees.num_parameters(params), sizes[0], sizes[1], step)
