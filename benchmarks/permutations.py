"""What are cosine Shapley values of a hundred agents?  `python benchmarks/permutations.py`

Agents join in ten million random orders, in float64 and without any of fairjax's estimates, for
each of the four kinds of uploads of `fairjax.studies.approximation`. The study of that name and a
test hold estimates against the file that this writes. It takes about a quarter of an hour.
"""

import csv
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from fairjax.studies.approximation import MANY, REFERENCE

CHUNK = 4000  # orders at once


def main(permutations: int = 10_000_000, seed: int = 0, out: Path = REFERENCE) -> None:
    """Write values and standard errors of the Shapley values of 100 agents.

    Args:
      permutations: how many random orders, a multiple of 4000.
      seed: the orders follow from it; uploads are those of seed 0.
      out: the CSV file.
    """
    if permutations < CHUNK or permutations % CHUNK:
        raise ValueError(f"`permutations` must be a multiple of {CHUNK}, got {permutations}.")
    jax.config.update("jax_enable_x64", True)
    rows = []
    for kind, drawn in enumerate(MANY):
        uploads = drawn.uploads(0).astype(np.float32).astype(np.float64)
        key = jax.random.fold_in(jax.random.key(seed), kind)
        values, errors = sample(key, jnp.asarray(uploads @ uploads.T), permutations // CHUNK)
        print(f"{drawn.kind}: sum of standard errors {errors.sum():.1e}", flush=True)
        rows += [
            {"uploads": drawn.kind, "agent": agent, "value": value, "standard_error": error}
            for agent, (value, error) in enumerate(zip(values, errors, strict=True))
        ]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@functools.partial(jax.jit, static_argnames="chunks")
def sample(key: jax.Array, gram: jax.Array, chunks: int) -> tuple[jax.Array, jax.Array]:
    """Returns `[N]` mean gains of agents in the cosine, and their standard errors."""
    num_agents = len(gram)
    with_aggregate, squares, total = gram.sum(1), jnp.diag(gram), gram.sum()
    order = jnp.arange(CHUNK)

    def join(state: Any, agent: jax.Array) -> tuple[Any, None]:
        with_members, square, inner, cosine, gains = state
        square = square + squares[agent] + 2 * with_members[order, agent]
        inner = inner + with_aggregate[agent]
        joined = inner / jnp.sqrt(square * total)
        gains = gains.at[order, agent].set(joined - cosine)
        return (with_members + gram[agent], square, inner, joined, gains), None

    def chunk(sums: Any, key: jax.Array) -> tuple[Any, None]:
        places = jax.random.uniform(key, (CHUNK, num_agents))
        table, column = jnp.zeros((CHUNK, num_agents)), jnp.zeros(CHUNK)
        start = (table, column, column, column, table)
        (*_, gains), _ = jax.lax.scan(join, start, jnp.argsort(places, 1).T)
        return (sums[0] + gains.sum(0), sums[1] + jnp.square(gains).sum(0)), None

    start = (jnp.zeros(num_agents), jnp.zeros(num_agents))
    (first, second), _ = jax.lax.scan(chunk, start, jax.random.split(key, chunks))
    mean = first / (chunks * CHUNK)
    return mean, jnp.sqrt((second / (chunks * CHUNK) - mean**2) / (chunks * CHUNK - 1))


if __name__ == "__main__":
    tyro.cli(main)
