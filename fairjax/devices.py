"""Devices: agents spread over a mesh, along an axis of its own.

    agents     [N, ...]   each of K devices holds N / K of them, or all where K does not divide N
    the rest              every device holds all of it

On the command line, `fairjax run --devices 4` spreads agents over four devices, and
`--coordinator HOST:PORT --num-processes 2 --process-id 0` over two processes or machines.

What is done per agent runs under `shard_map`: a device works on its own agents, and sends
nothing. Sums over agents are products of arrays that are spread like this: XLA makes a partial
product per device and adds them up by one collective. What else a mechanism computes of all
uploads, such as their Gram matrix, XLA distributes as it sees fit, and may gather them for it.
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
CONNECT_SECONDS = 300  # that processes wait for each other


def start(
    num_devices: int | None = None,
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Mesh | None:
    """Makes JAX see the devices asked for, and returns a mesh of them, or None for just one.

    Call it before anything else uses JAX. Where several processes run, it waits for all.

    Args:
      num_devices: how many of each process; None: all there are, of a CPU one. A CPU is divided
        into as many as asked for.
      coordinator: HOST:PORT of the first process, the same for all; None: there is one process.
      num_processes: how many processes run.
      process_id: which of them this is, from 0.

    Raises:
      ValueError: a value breaks its rule, only some of the last three are given, or JAX runs
        already.
      TimeoutError: the processes are not all there within 300 seconds.
    """
    if num_devices is not None:
        checks.count("num_devices", num_devices)
        # JAX that runs already keeps the devices that it has; `mesh` says so if they are too few.
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
    """Raises where no process can be reached at an address, since JAX would abort this one."""
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
    """Connects the processes; raises where they are not all there in time.

    Where JAX itself waits in vain it aborts the process, so it waits in a thread, for longer.
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
            "`num_processes`, each with a `process_id` of its own."
        )
    if failures:
        raise ValueError(
            "Processes must be connected once, and before JAX computes anything: call "
            "`fairjax.devices.start` first."
        ) from failures[0]


def mesh(num_devices: int | None = None) -> Mesh:
    """Returns a mesh with one axis for agents, of the first devices of every process.

    Args:
      num_devices: how many of each process; None: all.

    Raises:
      ValueError: there are not as many.

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
                "To divide a CPU, call `fairjax.devices.start(num_devices)` before anything else."
            )
    processes = range(jax.process_count())
    chosen = [device for index in processes for device in jax.local_devices(index)[:num_devices]]
    return Mesh(np.array(chosen), (AXIS,))


def checked(mesh: Mesh | None) -> Mesh | None:
    """Returns a mesh whose only axis is named as here, or says what is wrong with it."""
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh) or mesh.devices.ndim != 1:
        shape = dict(mesh.shape) if isinstance(mesh, Mesh) else type(mesh).__name__
        raise ValueError(f"`mesh` must be a jax.sharding.Mesh with one axis, got {shape}.")
    return Mesh(mesh.devices, (AXIS,))


def by_agent(mesh: Mesh, num_agents: int) -> NamedSharding:
    """Returns how arrays `[N, ...]` lie on the devices."""
    spread = num_agents % mesh.size == 0
    return NamedSharding(mesh, PartitionSpec(AXIS) if spread else PartitionSpec())


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """Returns a pytree of which every device holds all; as it is, where there is no mesh."""
    if mesh is None:
        return tree
    return placed(tree, NamedSharding(mesh, PartitionSpec()))


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """Returns a pytree whose leaves lie on the devices as told, within a compiled function too."""
    if not checks.is_known(tree):
        return lax.with_sharding_constraint(tree, sharding)
    # Unlike `device_put`, this reaches the devices of other processes too.
    return jax.jit(lambda tree: tree, out_shardings=sharding)(tree)


def map_shards(
    mesh: Mesh | None, function: Callable[[Any, Any], Any], agents: Any, shared: Any
) -> Any:
    """Returns `function(agents, shared)`, of which every device computes its own agents' part.

    Args:
      mesh: None: one device, which computes all.
      function: maps leaves `[n, ...]`, for any n, and what is shared to leaves `[n, ...]`.
      agents: leaves `[N, ...]`; where N is no multiple of the number of devices, zeros (keys: the
        last) fill up, and what `function` makes of them is dropped.
      shared: what is on every device.
    """
    if mesh is None:
        return function(agents, shared)
    num_agents = len(jax.tree.leaves(agents)[0])
    missing = -num_agents % mesh.size

    def filled(leaf: Any) -> Any:
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
    answer = spread(jax.tree.map(filled, agents) if missing else agents, shared)
    return jax.tree.map(lambda leaf: leaf[:num_agents], answer)
