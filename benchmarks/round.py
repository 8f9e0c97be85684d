"""Where does the time of a round go?  `python benchmarks/round.py`

    the work    the paper's MNIST network, 600 random images per agent, 3 local epochs in batches
                of 32, SGD with rate .1
    a part      a compiled function of its own, run on the state after the first round; the step
                is everything but the evaluation, compiled as one function
    update+add  the whole mechanism: contributions, rewards, and the new parameters
    extra       how much longer contributions take than cosines, in percent of the step; cgsv
                itself uses cosines, so its own number is noise

A mechanism is a name of `fairjax.mechanisms.REGISTRY`, or `cgsv:` with a contribution. Parts are
called in turn, so their differences hold on a busy machine too. On two CPU cores the defaults take
a quarter of an hour, `--num-agents 5 --evaluated 1000` three minutes.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from measure import REPEATS, flops_per_image, gemm_peak, print_table, report, times_in_turn

import fairjax as fj
from fairjax import arithmetic, checks, tasks, trees
from fairjax.contributions import measure
from fairjax.data import Dataset, Shards
from fairjax.simulation import training

MECHANISMS = ("cgsv", "cgsv:shapley", "cgsv:mean_field", "fedavg")
EPOCHS, BATCH, RATE = 3, 32, 0.1
SHORT = 4  # times as many calls of parts that take milliseconds

Row = dict[str, Any]
Call = Callable[[], Any]


def main(
    mechanisms: tuple[str, ...] = MECHANISMS,
    num_agents: tuple[int, ...] = (5, 20),
    samples: int = 600,
    evaluated: int = 10_000,
    repeats: int = REPEATS,
    tiny: bool = False,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Time a round and its parts.

    Args:
      mechanisms: names, such as fedavg or cgsv:mean_field.
      num_agents: how many agents, a comparison for each.
      samples: images per agent.
      evaluated: images that the agents' models are evaluated on.
      repeats: how many calls count, after one that compiles.
      tiny: one mechanism, two agents and few images, in seconds.
      seed: images, labels and parameters follow from it.
      json: the file for the numbers; by default one in runs/benchmarks/.
    """
    if tiny:
        mechanisms, num_agents, samples, evaluated, repeats = ("cgsv:mean_field",), (2,), 40, 100, 2
    # The best of several minutes: a peak from a busy minute would flatter the training.
    rows, training_rows, peak = [], [], gemm_peak()
    for number in num_agents:
        shards, test = drawn(number, samples, evaluated, seed)
        of_mechanisms, shared = rows_of(mechanisms, shards, test, repeats, seed)
        flops = flops_per_image() * samples * EPOCHS * number / shared["training s"]
        training_rows.append(shared | {"GFLOP/s": flops / 1e9})
        rows += of_mechanisms
        peak = max(peak, gemm_peak())
    for row in training_rows:
        row["% of peak"] = 1e11 * row["GFLOP/s"] / peak
    title = f"training alike for all mechanisms; the GEMM peak is {peak / 1e9:.0f} GFLOP/s"
    print_table(title, training_rows)
    more = {"samples": samples, "evaluated": evaluated, "repeats": repeats, "gemm_peak": peak}
    title = "round: the step and its mechanism"
    report(title, rows, json_path=json, seed=seed, training=training_rows, **more)


def drawn(num_agents: int, samples: int, evaluated: int, seed: int) -> tuple[Shards, Dataset]:
    """Returns shards of random images, and random test data, on the device."""
    rng = np.random.default_rng(seed)

    def images(number: int) -> Dataset:
        x = rng.normal(size=(number, 32, 32, 1))
        return Dataset(x=x, y=rng.integers(10, size=number), num_classes=10)

    rows = np.arange(num_agents * samples).reshape(num_agents, -1)
    shards = Shards.from_indices(images(rows.size), list(rows))
    # Some mechanisms score models on held-out data.
    shards = dataclasses.replace(shards, validation=images(samples))
    return jax.device_put((shards, images(evaluated)))


def rows_of(
    mechanisms: Sequence[str], shards: Shards, test: Dataset, repeats: int, seed: int
) -> tuple[list[Row], Row]:
    """Returns a row for every mechanism, and one for the parts that all of them share."""
    rounds = {name: second_round(name, shards, seed) for name in mechanisms}
    federation, state = rounds[mechanisms[0]].federation, rounds[mechanisms[0]].state
    long: dict[str, Call] = {name: one.step for name, one in rounds.items()}
    long["evaluation"] = functools.partial(jax.jit(federation.evaluate), state.agents, test)
    long["training"] = train(federation.agents_at_once(shards), state, shards)
    steps = times_in_turn(long, repeats)
    short = {(name, part): call for name, one in rounds.items() for part, call in one.parts.items()}
    parts: Any = times_in_turn(short, SHORT * repeats)
    rows = []
    for name, one in rounds.items():
        row: Row = {"mechanism": name, "N": shards.num_agents}
        row |= {f"{part} ms": 1000 * parts[name, part].median for part in one.parts}
        row |= {"step s": steps[name].median, "compiling the step s": one.compiling}
        if "cosines" in one.parts:
            row["extra %"] = (row["contributions ms"] - row["cosines ms"]) / 10 / row["step s"]
        rows.append(row)
    shared = {f"{part} s": steps[part].median for part in ("training", "evaluation")}
    return rows, {"N": shards.num_agents} | shared


def train(at_once: int, state: fj.State, shards: Shards) -> Call:
    """Returns a function that trains all agents as the step does."""
    model = fj.models.mnist_cnn()
    task, optimizer = tasks.CLASSIFICATION, optax.sgd(RATE)
    local = training.LocalTraining(model, task, lambda count, agent: optimizer, EPOCHS, BATCH)

    @jax.jit
    def trained(state: fj.State, shards: Shards) -> Any:
        keys = jax.random.split(state.key, shards.num_agents)
        own = training.Own(state.agents, state.optimizer)
        return training.train_agents(local, keys, own, shards, state.round, agents_at_once=at_once)

    return functools.partial(trained, state, shards)


class Round(NamedTuple):
    """The second round of a federation, compiled: the step, and the parts of its mechanism."""

    federation: fj.Federation
    state: fj.State
    step: Call
    compiling: float  # seconds
    parts: dict[str, Call]


def second_round(name: str, shards: Shards, seed: int) -> Round:
    """Returns the second round of a federation with a mechanism, ready to be timed."""
    mechanism, contribution = made(name)
    federation = fj.federation(
        model=fj.models.mnist_cnn(),
        mechanism=mechanism,
        optimizer=optax.sgd,
        learning_rate=RATE,
        local_epochs=EPOCHS,
        batch_size=BATCH,
    )
    first = federation.init(jax.random.key(seed), shards, None, 2)
    start = time.perf_counter()
    step = jax.jit(federation.step).lower(first, shards).compile()
    compiling = time.perf_counter() - start
    state, record = step(first, shards)

    @jax.jit
    def paid(uploads: Any, state: fj.State, shards: Shards) -> Any:
        context = federation.context(state, shards, state.key)
        outcome, after = mechanism.update(uploads, state.mechanism, context)
        agents = jax.tree.map(jnp.add, state.agents, outcome.rewards)
        server = jax.tree.map(jnp.add, state.server, outcome.aggregate)
        seen = (outcome.contributions, outcome.importance, outcome.fractions)
        return agents, server, after, seen

    parts: dict[str, Call] = {}
    if contribution:
        aggregate = jax.tree.map(jnp.subtract, state.server, first.server)
        lengths = jnp.sqrt(trees.squared_norms(record.uploads))
        judged = (record.uploads, arithmetic.ratio(state.mechanism, lengths))
        for part, name in (("cosines", "cosine"), ("contributions", contribution)):
            parts[part] = functools.partial(jax.jit(functools.partial(measure, name)), *judged)
        keep = jax.jit(fj.rewards.sparsify)
        parts["rewards"] = functools.partial(keep, aggregate, record.fractions)
    parts["update+add"] = functools.partial(paid, record.uploads, state, shards)
    return Round(federation, state, functools.partial(step, state, shards), compiling, parts)


def made(name: str) -> tuple[fj.mechanisms.Mechanism, str]:
    """Returns a mechanism by name, and the name of its contribution where it is cgsv."""
    rule, _, contribution = name.partition(":")
    checks.choice("mechanism", rule, fj.mechanisms.REGISTRY)
    if rule == "cgsv":
        return fj.mechanisms.cgsv(contribution=contribution or "cosine"), contribution or "cosine"
    if contribution:
        raise ValueError(f"`mechanisms` take a contribution after `cgsv:` only, got {name!r}.")
    return fj.mechanisms.REGISTRY[rule](), ""


if __name__ == "__main__":
    tyro.cli(main)
