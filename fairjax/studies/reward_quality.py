"""Rewards: how close are agents' rewards to the aggregate, round by round?

distance  |u_N - v_i| / |u_N|          cosine  <v_i, u_N> / (|v_i| |u_N|)
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax import lax
from matplotlib.figure import Figure

from fairjax import data, trees
from fairjax.data import Shards
from fairjax.experiments import Experiment
from fairjax.figures import styled
from fairjax.simulation import State
from fairjax.studies.base import SEEDS, Cell, Rows, Study, sweep_cell
from fairjax.tables import Table, spreads
from fairjax.types import Key, PerAgent, PerRound

WORDS = {"distance": "no aggregate", "cosine": "paid nothing"}  # what an undefined value means
MECHANISMS = ("cgsv", "cgsv_released", "rr", "dw", "proportional")


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every mechanism that pays with parts of the aggregate."""
    made = []
    for split in ("power_law", "class_imbalance"):
        for name in MECHANISMS:
            experiment = Experiment(
                dataset="digits" if quick else "mnist", split=split, rounds=20
            ).with_mechanism(name)
            run = functools.partial(_run, experiment)
            title = f"rewards-{experiment.dataset}-{split}-{name}"
            made.append(sweep_cell(title, experiment, run, SEEDS))
    return made


def _run(experiment: Experiment) -> Rows:
    runs = [dataclasses.replace(experiment, seed=seed) for seed in SEEDS]
    shards = data.stacked([run.make_shards()[0] for run in runs])
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    qualities = jax.jit(jax.vmap(functools.partial(_measure_quality, experiment)))
    distances, cosines = jax.device_get(qualities(shards, keys))
    where = {
        "dataset": experiment.dataset,
        "split": experiment.split,
        "mechanism": experiment.mechanism,
    }
    return [
        {
            **where,
            "round": number + 1,
            "agent": agent,
            "seed": seed,
            "distance": float(distances[place, number, agent]),
            "cosine": float(cosines[place, number, agent]),
        }
        for place, seed in enumerate(SEEDS)
        for number in range(experiment.rounds)
        for agent in range(experiment.num_agents)
    ]


def _measure_quality(experiment: Experiment, shards: Shards, key: Key) -> tuple[PerRound, PerRound]:
    """Returns `[T, N]` distances and cosines of rewards to the aggregate."""
    federation = experiment.federation(shards)

    def one_round(state: State, nothing: None) -> tuple[State, tuple[PerAgent, PerAgent]]:
        after, _ = federation.step(state, shards)
        rewards = jax.tree.map(jnp.subtract, after.agents, state.agents)
        aggregate = jax.tree.map(jnp.subtract, after.server, state.server)
        length = jnp.sqrt(trees.squared_norm(aggregate))
        missing = jax.tree.map(lambda whole, paid: whole[None] - paid, aggregate, rewards)
        lengths = jnp.sqrt(trees.squared_norms(rewards))
        cosines = trees.inner_products(rewards, aggregate) / (lengths * length)
        return after, (jnp.sqrt(trees.squared_norms(missing)) / length, cosines)

    state = federation.init(key, shards, None, experiment.rounds)
    return lax.scan(one_round, state, length=experiment.rounds)[1]


def tables(rows: Rows) -> dict[str, Table]:
    """Returns one row per mechanism, round and agent; tables of the last round are shown."""
    by = ("dataset", "split", "mechanism", "round", "agent")
    whole = spreads(rows, by, tuple(WORDS), apart=by[:2], words=WORDS)
    found = {"all": whole}
    last = max(row["round"] for row in whole.rows)
    for split in dict.fromkeys(row["split"] for row in whole.rows):
        for value in ("distance", "cosine"):
            table = Table(
                [
                    {**row, "agent": f"agent {row['agent']}"}
                    for row in whole.rows
                    if row["round"] == last and row["split"] == split
                ]
            )
            title = f"{split}, {value} of rewards to the aggregate in round {last}"
            found[title] = table.pivot("mechanism", ["agent"], value)
    return found


def draw(found: Mapping[str, Table]) -> Figure:
    """Draws distances (solid) and cosines (dotted) over rounds, with a panel per mechanism."""
    whole = found["all"]
    splits = list(dict.fromkeys(row["split"] for row in whole.rows))
    names = list(dict.fromkeys(row["mechanism"] for row in whole.rows))
    num_agents = 1 + max(row["agent"] for row in whole.rows)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.88, num_agents))
    with styled():
        figure, axes = plt.subplots(
            len(splits), len(names), figsize=(max(1.9 * len(names), 5), 2.0 * len(splits) + 0.5),
            sharex=True, sharey=True, squeeze=False, layout="constrained",
        )  # fmt: skip
        for line, split in zip(axes, splits, strict=True):
            for axis, name in zip(line, names, strict=True):
                for agent, colour in enumerate(colours):
                    mine = [
                        row
                        for row in whole.rows
                        if (row["split"], row["mechanism"], row["agent"]) == (split, name, agent)
                    ]
                    rounds = [row["round"] for row in mine]
                    for value, style in (("distance", "-"), ("cosine", ":")):
                        means = [row[value].mean for row in mine]
                        axis.plot(rounds, means, style, color=colour)
                    nothing = [row["round"] for row in mine if row["cosine"].undefined]
                    axis.plot(nothing, [0] * len(nothing), "x", color=colour, markersize=3)
                axis.set_title(f"{name}, {split.replace('_', ' ')}", fontsize=7)
        for axis in axes[-1]:
            axis.set_xlabel("round")
        for agent, colour in enumerate(colours):
            axes[0, 0].plot([], [], color=colour, label=f"agent {agent}")
        axes[0, 0].plot([], [], "-", color="0.4", label="distance / |aggregate|")
        axes[0, 0].plot([], [], ":", color="0.4", label="cosine")
        if any(row["cosine"].undefined for row in whole.rows):
            label = "paid nothing in some seed: no cosine"
            axes[0, 0].plot([], [], "x", color="0.4", markersize=3, label=label)
        figure.legend(loc="outside lower center", ncols=4)
    return figure


REWARDS = Study(
    question="How close are agents' rewards to the aggregate? The distance to it, relative to "
    "its length, and the cosine with it, for every agent and round.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks="Agents are numbered by their number of examples or classes; the last has the most. A "
    "reward with part of the entries has cosine |v|/|u|, and a small part of the entries can have "
    "most of the length. rr keeps agents' own updates, so their rewards may point elsewhere, "
    "with a distance above 1. Lines of one split are over the same seeds: (4 of 5) leaves out "
    "a seed in which some agent was paid nothing in some round and has no cosine there.",
)
