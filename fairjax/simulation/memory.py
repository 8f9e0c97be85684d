"""Memory: how much a round needs, computed from shapes before anything is compiled."""

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
from fairjax.models import initial
from fairjax.programs import shapes
from fairjax.simulation.agents import examples
from fairjax.simulation.training import LocalTraining

MOST_MAPS = 30_000  # Linux silently kills a process that asks for more than 65,530


class Needs(NamedTuple):
    """How much memory one agent needs.

    Attributes:
      parameters: the number of parameters of its model.
      params: the bytes of these parameters.
      optimizer: the bytes of its optimizer's state.
      step: the bytes that a local step needs: for the values kept for the backward pass, the
        optimizer's state, the parameters, their gradient and their change.
    """

    parameters: int
    params: int
    optimizer: int
    step: int


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
    """Returns how many bytes a local step of one agent needs."""
    return _compute_needs(training, *shapes(shards)).step


def bytes_needed(training: LocalTraining, shards: Shards, num_devices: int = 1) -> int:
    """Returns about how many bytes a round of all agents needs on each device."""
    needs = _compute_needs(training, *shapes(shards))
    # Parameters are kept as held, trained, uploaded and paid; optimizer states before and after.
    per_agent = 4 * needs.params + 2 * needs.optimizer
    own = math.ceil(shards.num_agents / num_devices)
    return own * per_agent + needs.step + _num_bytes(shards)


def check_memory(training: LocalTraining, shards: Shards, num_devices: int = 1) -> None:
    """Raises if a device cannot hold a round of its agents.

    Raises:
      ValueError: it cannot. The message says how much memory is needed, how much there is,
        and what to change.
    """
    size = _compute_needs(training, *shapes(shards)).parameters
    needed = bytes_needed(training, shards, num_devices)
    available = device_memory() / (num_devices if jax.default_backend() == "cpu" else 1)
    if needed > available:
        raise ValueError(
            f"`shards` must hold no more agents than fit into memory: {shards.num_agents} agents "
            f"of {size:,} parameters need {needed / 2**30:.1f} GiB on each of "
            f"{num_devices} devices, which have {available / 2**30:.1f} GiB. Take fewer "
            "agents, a smaller model, or more devices (`mesh`)."
        )


def device_memory() -> int:
    """Returns the memory of a device in bytes; a CPU has the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def spare_maps() -> None:
    """Clears JAX's caches if compiled programs use up most memory maps of the process.

    To draw first parameters JAX compiles a small program for every new shape, and keeps it for
    ever. Cleared programs that are still needed are compiled again.
    """
    with contextlib.suppress(OSError):  # only Linux has this file
        if Path("/proc/self/maps").read_bytes().count(b"\n") > MOST_MAPS:
            jax.clear_caches()


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@functools.lru_cache(maxsize=8)  # users often make several federations from the same parts
def _compute_needs(
    training: LocalTraining, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> Needs:
    def allocate(leaves: Any) -> Any:
        shards = structure.unflatten(leaves)
        key = jax.random.key(0)
        params, statistics = initial(training.model, key, shards.data)
        batch_size = min(training.largest_batch, shards.indices.shape[1])
        x, y = examples(shards.data, shards.indices[0, :batch_size])
        present = jnp.ones(batch_size, bool)
        residuals = jax.vjp(
            lambda params: training.loss(params, x, y, present, key, statistics)[0], params
        )[1]
        return params, training.init(params), residuals

    params, optimizer, residuals = jax.eval_shape(allocate, leaves)
    sizes = [_num_bytes(tree) for tree in (params, optimizer, residuals)]
    step = 3 * sizes[0] + sizes[1] + sizes[2]
    return Needs(trees.num_parameters(params), sizes[0], sizes[1], step)
