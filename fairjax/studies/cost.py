"""Cost: how much time of a round judging and paying take, per mechanism."""

import functools
import statistics
import time
from collections.abc import Mapping

import jax
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fairjax.experiments import Experiment
from fairjax.figures import name_lines, styled
from fairjax.mechanisms import MAX_SCORED_AGENTS
from fairjax.studies.base import Cell, Rows, Study, compared_mechanisms
from fairjax.tables import Table, spreads

REPEATS = 5


def cells(quick: bool) -> list[Cell]:
    """Returns a cell for every mechanism and number of agents."""
    made = []
    for num_agents in (5,) if quick else (5, 10, 20):
        for name in compared_mechanisms():
            experiment = Experiment(
                dataset="digits" if quick else "mnist", num_agents=num_agents
            ).with_mechanism(name)
            made.append(
                Cell(
                    name=f"time-{experiment.dataset}-{num_agents}-{name}",
                    settings={**experiment.description(), "repeats": REPEATS},
                    run=functools.partial(_run, experiment),
                )
            )
    return made


def _run(experiment: Experiment) -> Rows:
    shards, _ = experiment.make_shards()
    shards = jax.device_put(shards)
    federation = experiment.federation(shards)
    mechanism = experiment.make_mechanism()
    state = federation.init(jax.random.key(experiment.seed), shards, None, experiment.rounds)
    step = jax.jit(federation.step)
    state, record = step(state, shards)  # all timings are of the second round

    @jax.jit
    def judge(uploads, state, shards):
        context = federation.context(state, shards, state.key)
        return mechanism.update(uploads, state.mechanism, context)[0]

    rows = []
    jax.block_until_ready((judge(record.uploads, state, shards), step(state, shards)))
    for repeat in range(REPEATS):
        rows.append(
            {
                "dataset": experiment.dataset,
                "num_agents": experiment.num_agents,
                "mechanism": experiment.mechanism,
                "seed": repeat,
                "judging_ms": _measure_milliseconds(judge, record.uploads, state, shards),
                "round_ms": _measure_milliseconds(step, state, shards),
            }
        )
    middle = statistics.median(row["judging_ms"] for row in rows)
    whole = statistics.median(row["round_ms"] for row in rows)
    return [{**row, "share_%": 100 * middle / whole} for row in rows]


def _measure_milliseconds(function, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return 1000 * (time.perf_counter() - start)


def tables(rows: Rows) -> dict[str, Table]:
    """Returns one row for every mechanism and number of agents."""
    by = ("dataset", "num_agents", "mechanism")
    return {"Time per round": spreads(rows, by, ("judging_ms", "round_ms", "share_%"))}


def draw(found: Mapping[str, Table]) -> Figure:
    """Draws milliseconds for judging and for the whole round, per mechanism."""
    (table,) = found.values()
    names = list(dict.fromkeys(row["mechanism"] for row in table.rows))
    counts = list(dict.fromkeys(row["num_agents"] for row in table.rows))
    with styled():
        figure, axes = plt.subplots(
            1, len(counts), figsize=(1.2 + 2.4 * len(counts), 0.25 * len(names) + 1.2),
            sharey=True, sharex=True, squeeze=False, layout="constrained",
        )  # fmt: skip
        for axis, num_agents in zip(axes[0], counts, strict=True):
            rows = [row for row in table.rows if row["num_agents"] == num_agents]
            for row in rows:
                place = names.index(row["mechanism"])
                axis.plot(row["judging_ms"].mean, place, "o", color="#d55e00", ms=4)
                axis.plot(row["round_ms"].mean, place, "|", color="0.3", ms=9)
            axis.set(title=f"{rows[0]['dataset']}, {num_agents} agents", xscale="log")
            axis.set_xlabel("milliseconds")
            name_lines(axis, names)
        axes[0, 0].plot([], [], "o", color="#d55e00", ms=4, label="contributions and rewards")
        axes[0, 0].plot([], [], "|", color="0.3", ms=9, label="whole round")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


TIME = Study(
    question="How much time do contributions and rewards take? Time of a mechanism's part in a "
    "round, and of the whole round with local training, compiled, on the device that runs the "
    "study.",
    cells=cells,
    tables=tables,
    draw=draw,
    remarks=f"Means over {REPEATS} repeats of one compiled round; `share_%` is the ratio of the "
    f"medians. Up to {MAX_SCORED_AGENTS} agents eci scores the models of all 2^N coalitions.",
)
