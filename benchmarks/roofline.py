"""How long would a round take on an accelerator?  `python benchmarks/roofline.py`

Nothing runs. A whole round of CGSV is traced with the forms that an accelerator gets, all agents in
one vectorised program, and its operations are counted:

    kernels     products, convolutions, gathers, scatters, sorts, sums and maxima; all that works
                entry by entry counts as a part of one of these
    FLOPs       2 x outputs x terms of products and convolutions
    bytes       what kernels read and write; of a gather only the rows that it takes
    intensity   FLOPs per byte
    time        max(FLOPs / peak, bytes / bandwidth), summed over kernels, with published peaks

**Reckoned, not measured.** The times know nothing of launches, of how full a small product leaves
the device, of caches, of entry-by-entry work that XLA does not fuse, or of kernels that it joins. A
round of many small kernels takes far longer, a few microseconds for each of them.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import optax
import tyro
from measure import report
from networks import BATCHES, is_text, model_of
from peer_programs.work import Work
from peers import shards_of

import fairjax as fj
from fairjax import checks


class Device(NamedTuple):
    """A device's published peaks."""

    flops: float  # per second, of the products that JAX chooses for float32
    bandwidth: float  # bytes per second


DEVICES = {
    "H100": Device(494.7e12, 3.35e12),  # SXM, TF32 without sparsity
    "TPU v5e": Device(197e12, 819e9),  # bfloat16
}
REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax")
KERNELS = (
    "dot_general", "conv_general_dilated", "gather", "scatter", "scatter-add", "sort", "cumsum",
    "dynamic_update_slice", *REDUCTIONS,
)  # fmt: skip


def main(
    networks: tuple[str, ...] = tuple(BATCHES),
    num_agents: tuple[int, ...] = (10, 100),
    samples: int = 600,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Count the operations of a round, and reckon its time on accelerators.

    Args:
      networks: names, as in `fairjax.models.REGISTRY`.
      num_agents: how many agents, a row for each.
      samples: examples per agent; a round is one epoch.
      tiny: two networks and two agents, in seconds.
      seed: examples follow from it.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    for network in networks:
        checks.choice("network", network, BATCHES)
    if tiny:
        networks, num_agents, samples = ("logistic", "text_cnn"), (2,), 40
    rows = []
    for network in networks:
        for number in num_agents:
            work = Work(number, 1, seed, samples, 1, BATCHES[network][0], network=network)
            rows.append(row_of(work))
    report("roofline: a round, reckoned and not measured", rows, json_path=json, seed=seed)


def row_of(work: Work) -> dict[str, Any]:
    """Returns the counts of a round, and its reckoned time on every device."""
    kernels = list(kernels_of(traced(work).jaxpr, work.local_steps // work.num_agents))
    flops = sum(kernel.times * kernel.flops for kernel in kernels)
    moved = sum(kernel.times * kernel.bytes for kernel in kernels)
    number = sum(kernel.times for kernel in kernels)
    row: dict[str, Any] = {"network": work.network, "N": work.num_agents, "batch": work.batch_size}
    row |= {"GFLOPs": flops / 1e9, "GB": moved / 1e9, "kernels": number, "intensity": flops / moved}
    for name, device in DEVICES.items():
        seconds = sum(
            kernel.times * max(kernel.flops / device.flops, kernel.bytes / device.bandwidth)
            for kernel in kernels
        )
        row[f"{name} ms"] = 1e3 * seconds
    return row


def traced(work: Work) -> Any:
    """Returns the jaxpr of a round of CGSV in an accelerator's forms, all agents at once."""
    shards = shards_of(work)
    federation = fj.federation(
        model=model_of(work.network),
        mechanism=fj.mechanisms.cgsv(),
        optimizer=(optax.adam if is_text(work.network) else optax.sgd)(work.learning_rate),
        local_epochs=work.local_epochs,
        batch_size=work.batch_size,
        agents_at_once=work.num_agents,
    )
    state = federation.init(jax.random.key(work.seed), shards, None, 1)
    with mock.patch("jax.default_backend", return_value="gpu"):
        return jax.make_jaxpr(federation.step)(state, shards)


class Kernel(NamedTuple):
    """One operation of the program."""

    times: int  # how often it runs in a round
    flops: float
    bytes: float


def kernels_of(jaxpr: Any, local_steps: int, times: int = 1) -> Iterator[Kernel]:
    """Yields the kernels of a program.

    Args:
      jaxpr: the program.
      local_steps: how often the body of a loop of unknown length runs: the loop over batches.
      times: how often the program itself runs.
    """
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "cond":  # one of the ways runs: count the longest that is not for CPUs alone
            platforms = parameters.get("branches_platforms") or [None] * len(parameters["branches"])
            pairs = zip(parameters["branches"], platforms, strict=True)
            inner = [way.jaxpr for way, platform in pairs if platform != ("cpu",)]
            ways = [list(kernels_of(way, local_steps, times)) for way in inner]
            yield from max(ways, key=lambda way: sum(kernel.bytes for kernel in way))
        elif name == "while":
            yield from kernels_of(parameters["body_jaxpr"].jaxpr, local_steps, times * local_steps)
        elif name == "scan":
            inner = parameters["jaxpr"].jaxpr
            yield from kernels_of(inner, local_steps, times * parameters["length"])
        elif name in KERNELS:
            yield Kernel(times, *costs(equation))
        else:
            for value in parameters.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from kernels_of(inner, local_steps, times)


def costs(equation: Any) -> tuple[float, float]:
    """Returns the FLOPs and the bytes of one kernel."""
    name = equation.primitive.name
    read, written = (
        [one.aval for one in ends if hasattr(one.aval, "shape")]
        for ends in (equation.invars, equation.outvars)
    )
    outputs = sum(map(num_bytes, written))
    if name == "gather":
        return 0.0, 2 * outputs + num_bytes(read[1])
    if name.startswith("scatter") or name == "dynamic_update_slice":
        changed = read[2] if name.startswith("scatter") else read[1]
        return 0.0, 3 * num_bytes(changed)
    flops = 0.0
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(read[0].shape[axis] for axis in contracted)
        flops = 2.0 * written[0].size * terms
    if name == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        features = read[1].shape[numbers.rhs_spec[0]]
        flops = 2.0 * written[0].size * read[1].size / features
    return flops, outputs + sum(map(num_bytes, read))


def num_bytes(aval: Any) -> int:
    """Returns the size of an array; a PRNG key has two words."""
    itemsize = 8 if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key) else aval.dtype.itemsize
    return int(np.prod(aval.shape)) * itemsize


if __name__ == "__main__":
    tyro.cli(main)
