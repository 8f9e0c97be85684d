"""Approximation: how far are estimates of the CGSV from the exact values?

    error    sum_i |estimate_i / sum estimate - phi_i / sum phi|
    uploads  drawn, of four kinds, or recorded in training

For a hundred agents the values of ten million permutations stand for the exact ones.

The four kinds are

    gaussian  normal noise z_i
    common    a common direction with random strength, plus z_i, at unit length
    clusters  three centres with strength 0 to 1, plus noise, at unit length
    reversed  a common direction, reversed for a quarter of the agents, plus z_i, at unit length
"""

import csv
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from fairjax import contributions, trees
from fairjax.experiments import Experiment, sweep
from fairjax.figures import draw_spread, name_series, styled
from fairjax.studies.base import Cell, Rows, Study
from fairjax.tables import Table, spreads
from fairjax.types import PerAgent, Stacked

ESTIMATES = {
    "cosine": "o",
    "mean_field": "s",
    "sampled": "^",
    "gram": "D",
}
NUM_PERMUTATIONS = {"agents": 150, "parameters": 150, "kind": 150, "many": 1000}  # of `sampled`
# Errors of `cosine` from files of the authors' program, corrected for their running means.
# Uploads are Gaussian: with 1,000 parameters for 5 to 10 agents, and with 10 agents for 2^10
# to 2^15 parameters.
AGENTS, PARAMETERS = range(5, 11), [2**power for power in range(10, 16)]
BY_AGENTS = (0.0092, 0.0082, 0.0113, 0.0120, 0.0100, 0.0101)
BY_PARAMETERS = (0.0114, 0.0078, 0.0058, 0.0041, 0.0027, 0.0018)
AUTHORS = {
    **{("agents", num): error for num, error in zip(AGENTS, BY_AGENTS, strict=True)},
    **{("parameters", num): error for num, error in zip(PARAMETERS, BY_PARAMETERS, strict=True)},
}
COLOURS = {"cosine": "#d55e00", "mean_field": "#0072b2", "sampled": "#999999", "gram": "#009e73"}


class Drawn(NamedTuple):
    """Drawn uploads of one kind and shape."""

    effect: str  # what varies in the panel: "agents", "parameters", or "kind" and "many" agents
    kind: str
    num_agents: int
    num_parameters: int

    def uploads(self, seed: int) -> np.ndarray:
        """Returns `[N, D]` uploads."""
        rng = np.random.default_rng(seed)
        num_agents, shape = self.num_agents, (self.num_agents, self.num_parameters)
        noise = rng.normal(size=shape)
        if self.kind == "gaussian":
            return noise
        if self.kind == "common":
            rows = rng.normal(size=shape[1]) * rng.uniform(size=(num_agents, 1)) + noise
        elif self.kind == "clusters":
            centres = rng.normal(size=(3, shape[1]))[rng.integers(3, size=num_agents)]
            rows = centres * np.linspace(0, 1, num_agents)[:, None] + 0.3 * noise
        else:
            signs = np.where(np.arange(num_agents) < num_agents // 4, -1, 1)[:, None]
            rows = signs * rng.normal(size=shape[1]) + noise
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


KINDS = ("gaussian", "common", "clusters", "reversed")
MANY = [Drawn("many", kind, 100, 1000) for kind in KINDS]
# Values of `MANY`, of seed 0, from ten million permutations; by benchmarks/permutations.py.
REFERENCE = Path(__file__).parent / "results" / "permutations.csv"
GRID = (
    *(Drawn("agents", "gaussian", num, 1000) for num in AGENTS),
    *(Drawn("parameters", "gaussian", 10, num) for num in PARAMETERS),
    *(Drawn("kind", kind, 14, 1000) for kind in KINDS),
)


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every kind and shape of uploads, and for every recorded run."""
    made = []
    for drawn in (*GRID, *MANY):
        seeds = range(20 if quick else 200)
        num_permutations = NUM_PERMUTATIONS[drawn.effect]
        made.append(
            Cell(
                name="-".join(["errors", *map(str, drawn)]),
                settings={**drawn._asdict(), "permutations": num_permutations, "seed": list(seeds)},
                run=functools.partial(_run_drawn, drawn, seeds),
                seconds=(0.1 if drawn in MANY else 0.02) * len(seeds),
            )
        )
    for split in ("power_law", "class_imbalance"):
        experiment = Experiment(
            split=split, num_agents=10, rounds=20, eval_every=20, record_updates=True
        )
        seeds = range(5)
        made.append(
            Cell(
                name=f"errors-digits-{split}",
                settings={
                    **experiment.description(),
                    "permutations": NUM_PERMUTATIONS["kind"],
                    "seed": list(seeds),
                },
                run=functools.partial(_run_recorded, experiment, seeds),
                experiment=experiment,
                num_runs=len(seeds),
            )
        )
    return made


def _run_drawn(drawn: Drawn, seeds: range) -> Rows:
    """Returns errors, one row per draw of uploads; or per key where the uploads have a reference.

    Uploads of 100 agents are always those of seed 0.
    """
    known = _read_reference(drawn.kind) if drawn in MANY else None
    return [
        {
            "effect": drawn.effect,
            "uploads": drawn.kind,
            "num_agents": drawn.num_agents,
            "num_parameters": drawn.num_parameters,
            "seed": seed,
            **_errors(
                seed,
                jnp.asarray(drawn.uploads(0 if drawn in MANY else seed), jnp.float32),
                num_permutations=NUM_PERMUTATIONS[drawn.effect],
                exact=known,
            ),
        }
        for seed in seeds
    ]


def _run_recorded(experiment: Experiment, seeds: range) -> Rows:
    """Returns mean errors over the rounds of a run, with equal weights and with importance."""
    rows = []
    for result in sweep(experiment, seeds=seeds):
        run, history = result.experiment, result.history
        for weights in ("equal", "importance"):
            errors = []
            for number in range(1, run.rounds):
                uploads = jax.tree.map(lambda leaf, t=number: jnp.asarray(leaf[t]), history.updates)
                given = None if weights == "equal" else jnp.asarray(history.importance[number - 1])
                errors.append(_errors(number, trees.with_length(uploads, 1.0), given))
            rows.append(
                {
                    "effect": "kind",
                    "uploads": f"digits, {run.split}, {weights}",
                    "num_agents": run.num_agents,
                    "num_parameters": trees.num_parameters(history.servers) // run.rounds,
                    "seed": run.seed,
                    **{name: float(np.mean([one[name] for one in errors])) for name in errors[0]},
                }
            )
    return rows


def _read_reference(kind: str) -> np.ndarray:
    with REFERENCE.open() as file:
        rows = csv.DictReader(file)
        return np.array([float(row["value"]) for row in rows if row["uploads"] == kind])


def _errors(
    seed: int,
    updates: Stacked,
    weights: PerAgent | None = None,
    num_permutations: int = NUM_PERMUTATIONS["kind"],
    exact: np.ndarray | None = None,
) -> dict[str, float]:
    """Returns the error of every estimate, and the correlation of `cosine` with exact values."""
    exact = _shares(contributions.cosine_shapley(updates, weights) if exact is None else exact)
    key = jax.random.key(seed)
    found = {
        "cosine": contributions.cosine(updates, weights),
        "mean_field": contributions.mean_field_cosine_shapley(updates, weights),
        "sampled": contributions.sampled_cosine_shapley(
            key, updates, weights, num_permutations=num_permutations
        ).values,
        "gram": contributions.gram_cosine_shapley(key, updates, weights).values,
    }
    errors = {name: float(np.abs(_shares(values) - exact).sum()) for name, values in found.items()}
    return {**errors, "correlation": float(np.corrcoef(exact, found["cosine"])[0, 1])}


def _shares(values: PerAgent) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values / values.sum()


def tables(rows: Rows) -> dict[str, Table]:
    """Returns one row for every kind and shape of uploads."""
    by = ("effect", "uploads", "num_agents", "num_parameters")
    # Seeds of drawn and of recorded uploads cannot be compared.
    table = spreads(rows, by, (*ESTIMATES, "correlation"), apart=by)
    for row in table.rows:
        number = row.get(f"num_{row['effect']}")
        if (row["effect"], number) in AUTHORS:
            row["authors_cosine"] = AUTHORS[row["effect"], number]
    return {"L1 distance to the exact values": table}


def draw(found: Mapping[str, Table]) -> Figure:
    """Draws errors over the number of agents, of parameters, and by kind of uploads."""
    (table,) = found.values()
    labels = {"agents": "agents (1,000 parameters)", "parameters": "parameters (10 agents)"}
    with styled():
        figure, axes = plt.subplots(
            1, 4, figsize=(10.4, 3.2), width_ratios=(1, 1, 1.6, 1), sharey=True,
            layout="constrained",
        )  # fmt: skip
        for axis, effect in zip(axes, NUM_PERMUTATIONS, strict=True):
            rows = [row for row in table.rows if row["effect"] == effect]
            lines = effect in labels
            places = [row[f"num_{effect}"] for row in rows] if lines else np.arange(len(rows))
            # "gram" is exact where agents are few.
            names = [name for name in ESTIMATES if name != "gram" or effect == "many"]
            for name in names:
                how = {"color": COLOURS[name], "marker": ESTIMATES[name], "markersize": 4}
                for place, row in zip(places, rows, strict=True):
                    # On a logarithmic axis a bar cannot reach zero.
                    limits = (row[name].mean / 10, np.inf)
                    draw_spread(axis, row[name], place, upright=True, limits=limits, **how)
                if lines:
                    axis.plot(places, [row[name].mean for row in rows], color=COLOURS[name])
                if effect == "many":  # it has all estimates
                    axis.plot([], [], label=name.replace("_", " "), **how)
            axis.set_yscale("log")
            if lines:
                authors = [row["authors_cosine"] for row in rows]
                axis.plot(places, authors, "kx", zorder=3, label="cosine, authors' files")
                axis.set_xlabel(labels[effect])
            else:
                kinds = [row["uploads"].replace("_", " ") for row in rows]
                axis.set_xticks(places, kinds, rotation=25, ha="right", fontsize=7)
                axis.set_xlabel("100 agents" if effect == "many" else "14 agents; digits: 10")
        if axes[1].has_data():  # `--only` may have left it out
            axes[1].set_xscale("log", base=2)
        axes[0].set_ylabel("L1 distance to exact values")
        name_series(figure, ncols=6)
    return figure


APPROXIMATION = Study(
    question="How far are estimates from exact Shapley values? Cosine and mean-field cost one "
    "pass over the uploads, gram and sampled a Gram matrix.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks="Estimates and exact values are normalised to sum one. Sampled has 150 permutations. "
    "With 100 agents (`many`) it has 1,000, which take about as long as gram; errors are against "
    "ten million permutations, and vary over keys, not over uploads. With up to 16 agents gram is "
    "exact. `correlation` is Pearson's "
    "correlation of cosine and exact values over agents. `authors_cosine` comes from files of the "
    "authors' program, corrected for their running means. With equal weights cosine is close; with "
    "importance as weights it is not, since exact values grow with an agent's weight and the "
    "cosine does not.",
)
