"""Devices: agents are spread over the single axis of a mesh.

    agents     [N, ...]   each of K devices holds N / K agents, or all if K does not divide N
    others                every device holds a whole copy

On the command line, `fairjax run --devices 4` spreads agents over four devices, and
`--coordinator HOST:PORT --num-processes 2 --process-id 0` over two processes or machines.

Work per agent runs under `shard_map`: a device works on its own agents and sends nothing. Sums
over agents are matrix products of spread arrays: XLA computes a partial product per device and
adds these with one collective. Other functions of all uploads, such as their Gram matrix, are
distributed by XLA, which may gather the uploads for them.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fairjax import checks

AXIS = "agents"
CONNECT_SECONDS = 300  # how long processes wait for each other


def start(
    num_devices: int | None = None,
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Mesh | None:
    """Prepares JAX's devices and returns a mesh of them, or None for a single device.

    Call it before anything else uses JAX. With several processes, it waits for all of them.

    Args:
      num_devices: devices per process; None: one, or among several processes all that each has.
        A CPU is split into that many devices; on accelerators the first ones are used.
      coordinator: HOST:PORT of the first process, the same for all; None: a single process.
      num_processes: how many processes run.
      process_id: the number of this process, from 0.

    Raises:
      ValueError: `num_devices` or `num_processes` is below 1, there are fewer devices,
        `process_id` is outside [0, num_processes), `coordinator` is not a usable address, only
        some of the last three arguments are given, or JAX is already running.
      TimeoutError: not all processes connect within 300 seconds.
    """
    if num_devices is not None:
        checks.count("num_devices", num_devices)
        # If JAX is already running, it keeps its devices; `mesh` raises if they are too few.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", int(num_devices))
    together = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if num_processes is not None:
        checks.count("num_processes", num_processes)
    if process_id is not None:
        checks.count("process_id", process_id, least=0)
    missing = [name for name, value in together.items() if value is None]
    if len(missing) == 3:
        return None if num_devices in (None, 1) else mesh(num_devices)
    if missing:
        raise ValueError(
            f"Several processes need all of `{'`, `'.join(together)}`, got no `{missing[0]}`."
        )
    if int(process_id or 0) >= int(num_processes or 0):
        raise ValueError(f"`process_id` must be in [0, {num_processes}), got {process_id}.")
    _check_address(coordinator, process_id == 0)
    _connect(str(coordinator), int(num_processes or 0), int(process_id or 0))
    return mesh(num_devices)


def _check_address(coordinator: Any, is_first: bool) -> None:
    """Raises if an address cannot be used, since JAX would abort the process."""
    host, _, port = coordinator.rpartition(":") if isinstance(coordinator, str) else ("", "", "")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(
            "`coordinator` must be HOST:PORT of the first process, such as 192.168.0.7:5678, "
            f"got {checks.shown(coordinator)}."
        )
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
        if is_first:
            socket.create_server(("", int(port))).close()
    except OSError as error:
        raise ValueError(
            f"`coordinator` must be an address that can be used, got {coordinator}: {error}."
        ) from error


def _connect(coordinator: str, num_processes: int, process_id: int) -> None:
    """Connects the processes; raises if not all connect in time.

    JAX aborts the process when its own wait times out, so let it wait longer, in a thread.
    """
    failures: list[RuntimeError] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                coordinator, num_processes, process_id, initialization_timeout=10**6
            )
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if thread.is_alive():
        raise TimeoutError(
            f"Not all {num_processes} processes came together at {coordinator} within "
            f"{CONNECT_SECONDS} seconds. Start all of them with the same `coordinator` and "
            "`num_processes`, each with its own `process_id`."
        )
    if failures:
        raise ValueError(
            "Processes must be connected once, and before JAX computes anything: call "
            "`fairjax.devices.start` first."
        ) from failures[0]


def mesh(num_devices: int | None = None) -> Mesh:
    """Returns a mesh with one axis for agents, made of the first devices of every process.

    Args:
      num_devices: devices per process; None: all.

    Raises:
      ValueError: there are fewer devices.

    Examples:
      >>> dict(mesh(1).shape)
      {'agents': 1}
    """
    if num_devices is not None:
        checks.count("num_devices", num_devices)
        if num_devices > jax.local_device_count():
            raise ValueError(
                f"`num_devices` must be at most the {jax.local_device_count()} devices "
                f"({jax.default_backend()}) that JAX sees, got num_devices={num_devices}. "
                "To split a CPU, call `fairjax.devices.start(num_devices)` before anything else."
            )
    processes = range(jax.process_count())
    chosen = [device for index in processes for device in jax.local_devices(index)[:num_devices]]
    return Mesh(np.array(chosen), (AXIS,))


def checked(mesh: Mesh | None) -> Mesh | None:
    """Returns a mesh with its only axis renamed to `AXIS`, or raises if it has several."""
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh) or mesh.devices.ndim != 1:
        shape = dict(mesh.shape) if isinstance(mesh, Mesh) else type(mesh).__name__
        raise ValueError(f"`mesh` must be a jax.sharding.Mesh with one axis, got {shape}.")
    return Mesh(mesh.devices, (AXIS,))


def by_agent(mesh: Mesh, num_agents: int) -> NamedSharding:
    """Returns the sharding of arrays `[N, ...]` over the devices."""
    spread = num_agents % mesh.size == 0
    return NamedSharding(mesh, PartitionSpec(AXIS) if spread else PartitionSpec())


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """Returns a pytree with a whole copy on every device; unchanged if there is no mesh."""
    if mesh is None:
        return tree
    return placed(tree, NamedSharding(mesh, PartitionSpec()))


def placed(tree: Any, sharding: Any) -> Any:
    """Returns a pytree with a sharding, or with those of its parts, also in a compiled function."""
    if not checks.is_known(tree):
        return lax.with_sharding_constraint(tree, sharding)
    # Unlike `device_put`, this reaches the devices of other processes too.
    return jax.jit(lambda tree: tree, out_shardings=sharding)(tree)


def map_shards(
    mesh: Mesh | None, function: Callable[[Any, Any], Any], agents: Any, shared: Any
) -> Any:
    """Returns `function(agents, shared)`; every device computes the part of its own agents.

    Args:
      mesh: the devices; None: a single one, which computes all.
      function: maps leaves `[n, ...]`, for any n, and `shared` to leaves `[n, ...]`.
      agents: leaves `[N, ...]`. If N is not a multiple of the number of devices, they are padded
        by zeros (keys by the last key), and the results of the padding are dropped.
      shared: a pytree that every device holds.
    """
    if mesh is None:
        return function(agents, shared)
    num_agents = len(jax.tree.leaves(agents)[0])
    missing = -num_agents % mesh.size

    def pad(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])
        return jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))

    spread = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(AXIS), PartitionSpec()),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    answer = spread(jax.tree.map(pad, agents) if missing else agents, shared)
    return jax.tree.map(lambda leaf: leaf[:num_agents], answer)
