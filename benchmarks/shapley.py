"""What do Shapley values of the cosine cost, exact and estimated?  `python benchmarks/shapley.py`

    time    the median of a compiled call on Gaussian uploads [N, D]; all methods in turn
    error   sum_i |estimate_i / sum estimate - phi_i / sum phi|, mean over draws of four kinds of
            uploads (those of `fairjax.studies.approximation`)

Two further tables: the same exact values by shapiq, if it is installed; and how much longer the
mean-field estimate takes than psi, the paper's approximation, for a hundred models of a million
parameters. The comparison favours shapiq: its game reads a Gram matrix that was made before, while
our time includes making it.
"""

import functools
import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measure import REPEATS, print_table, report, times_in_turn

import fairjax as fj
from fairjax.studies.approximation import KINDS, Drawn

PAPER_SIZE = (10, 104_242)
SHAPIQ_AGENTS = (10, 16)
AGREEMENT = 1e-4
SHORT = 4  # times as many calls of functions that take milliseconds
LARGE = (100, 1_000_000)

Row = dict[str, Any]
Method = Callable[[jax.Array, jax.Array], jax.Array]  # key, uploads [N, D] -> values [N]


def main(
    num_agents: tuple[int, ...] = (5, 10, 16, 20),
    num_parameters: tuple[int, ...] = (10_000, 100_000),
    draws: int = 8,
    repeats: int = REPEATS,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Time Shapley values of the cosine, and measure the errors of estimates.

    Args:
      num_agents: how many agents.
      num_parameters: how many parameters, with every number of agents.
      draws: number of uploads of each kind and size; errors are means over them.
      repeats: how many calls count, after one that compiles.
      tiny: one small size, in seconds.
      seed: uploads and permutations follow from it.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    sizes = sorted({*itertools.product(num_agents, num_parameters), PAPER_SIZE})
    against = [(number, PAPER_SIZE[1]) for number in SHAPIQ_AGENTS]
    large = LARGE
    if tiny:
        sizes, against, large, draws, repeats = [(4, 1000)], [(4, 1000)], (8, 1000), 1, 2
    known = methods()
    rows = [row for size in sizes for row in rows_of(known, size, draws, repeats, seed)]
    shapiq = [row for size in against for row in shapiq_rows(size, repeats, seed)]
    print_table("the same exact values by shapiq, from a Gram matrix made before", shapiq)
    passes = large_rows(large, repeats, seed)
    print_table("mean-field against psi", passes)
    more = {"draws": draws, "repeats": repeats, "shapiq": shapiq, "large": passes}
    report("shapley: time of a call, and errors", rows, json_path=json, seed=seed, **more)


def methods() -> dict[str, Method]:
    """Returns the compiled functions from a key and uploads to values, by name."""
    known: dict[str, Method] = {
        "exact": lambda key, uploads: fj.contributions.cosine_shapley(uploads),
        "mean-field": lambda key, uploads: fj.contributions.mean_field_cosine_shapley(uploads),
        "gram": lambda key, uploads: fj.contributions.gram_cosine_shapley(key, uploads).values,
        "150 permutations": functools.partial(sampled, num_permutations=150),
        "1000 permutations": functools.partial(sampled, num_permutations=1000),
        "psi": lambda key, uploads: fj.contributions.cosine(uploads),
    }
    return {name: jax.jit(function) for name, function in known.items()}


def sampled(key: jax.Array, uploads: jax.Array, num_permutations: int) -> jax.Array:
    """Returns values from antithetic permutations: half are drawn, half are these reversed."""
    return fj.contributions.sampled_cosine_shapley(
        key, uploads, num_permutations=num_permutations
    ).values


def drawn(kind: str, size: tuple[int, int], seed: int) -> jax.Array:
    """Returns uploads `[N, D]` of a kind."""
    return jnp.asarray(Drawn("kind", kind, *size).uploads(seed), jnp.float32)


def rows_of(
    known: dict[str, Method], size: tuple[int, int], draws: int, repeats: int, seed: int
) -> list[Row]:
    """Returns a row per method: its time, and its error for every kind of uploads."""
    uploads = drawn("gaussian", size, seed)
    key = jax.random.key(seed)
    calls = {name: functools.partial(method, key, uploads) for name, method in known.items()}
    taken = times_in_turn(calls, SHORT * repeats)
    seeds = range(seed, seed + draws)
    errors = {kind: mean_errors(known, kind, size, seeds) for kind in KINDS}
    rows = []
    for name in known:
        row: Row = {"method": name, "N": size[0], "D": size[1]}
        row |= {"ms": 1000 * taken[name].median, "first call ms": 1000 * taken[name].first}
        if name != "exact":
            row |= {f"error, {kind}": errors[kind][name] for kind in KINDS}
        rows.append(row)
    return rows


def mean_errors(
    known: dict[str, Method], kind: str, size: tuple[int, int], seeds: range
) -> dict[str, float]:
    """Returns the error of every method, the mean over draws of uploads and permutations."""
    draws = [(jax.random.key(seed), drawn(kind, size, seed)) for seed in seeds]

    def shares(name: str) -> np.ndarray:
        values = np.stack([np.asarray(known[name](*draw), np.float64) for draw in draws])
        return values / values.sum(1, keepdims=True)

    exact = shares("exact")
    return {name: float(abs(shares(name) - exact).sum(1).mean()) for name in known}


def shapiq_rows(size: tuple[int, int], repeats: int, seed: int) -> list[Row]:
    """Returns our time and shapiq's time for the exact values of the same game."""
    uploads = drawn("gaussian", size, seed)
    ours = functools.partial(jax.jit(fj.contributions.cosine_shapley), uploads)
    calls: dict[str, Callable[[], Any]] = {"fairjax": ours}
    if importlib.util.find_spec("shapiq"):
        game = cosine_game(np.asarray(uploads))
        calls["shapiq"] = functools.partial(shapiq_values, game, size[0])
    taken = times_in_turn(calls, repeats)
    rows: list[Row] = []
    for name in ("fairjax", "shapiq"):
        row: Row = {"exact by": name, "N": size[0], "D": size[1]}
        if name in calls:
            difference = abs(np.asarray(calls[name]()) - np.asarray(ours())).max()
            row |= {"ms": 1000 * taken[name].median}
            row |= {"ratio": taken[name].median / taken["fairjax"].median}
            row |= {"largest difference": float(difference)}
            note = "" if difference <= AGREEMENT else f"differs by more than {AGREEMENT}"
        else:
            note = "not installed: pip install shapiq"
        rows.append(row | {"note": note})
    return rows


def cosine_game(uploads: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the game: from coalitions `[num_coalitions, N]` to cosines with the aggregate."""
    gram = (uploads @ uploads.T).astype(np.float64)

    def utilities(coalitions: np.ndarray) -> np.ndarray:
        members = np.asarray(coalitions, np.float64)
        products = members @ gram
        squares = (products * members).sum(1) * gram.sum()
        # The empty coalition's utility is zero.
        return products.sum(1) / np.sqrt(np.where(squares > 0, squares, 1))

    return utilities


def shapiq_values(game: Callable[[np.ndarray], np.ndarray], num_agents: int) -> np.ndarray:
    """Returns `[N]` Shapley values of a game by shapiq's exact computer."""
    import shapiq

    return shapiq.ExactComputer(n_players=num_agents, game=game)("SV").get_n_order_values(1)


def large_rows(size: tuple[int, int], repeats: int, seed: int) -> list[Row]:
    """Returns the times of psi and the mean-field estimate, called in turn on large uploads."""
    uploads = jax.random.normal(jax.random.key(seed), size)
    functions = {
        "psi": jax.jit(fj.contributions.cosine),
        "mean-field": jax.jit(fj.contributions.mean_field_cosine_shapley),
    }
    taken = times_in_turn(
        {name: functools.partial(function, uploads) for name, function in functions.items()},
        SHORT * repeats,
    )
    rows: list[Row] = []
    for name in functions:
        row: Row = {"method": name, "N": size[0], "D": size[1]}
        row |= {"ms": 1000 * taken[name].median, "ratio": taken[name].median / taken["psi"].median}
        rows.append(row)
    return rows


if __name__ == "__main__":
    tyro.cli(main)
