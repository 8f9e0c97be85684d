"""Arguments for the fuzz test, each drawn from an integer: `uploads(17, 5)` is the same anywhere.

A call is a text, and `evaluate` runs it, so a failure prints the call itself. To try it, paste
it after `from drawn import *` in this folder.
"""

import functools
import types
from decimal import Decimal  # noqa: F401, as for all names here that only texts of calls use
from fractions import Fraction  # noqa: F401
from pathlib import Path  # noqa: F401

import flax.linen  # noqa: F401
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt  # noqa: F401
import numpy as np
import optax
import scipy.sparse  # noqa: F401
import seen
import twin

import fairjax as fj
import fairjax.simulation
from fairjax.experiments import Audit, Comparison, Trial

LARGEST = 3e38  # about the largest float32


class Frame:
    """A table of numbers like one of pandas: numpy takes it for an array."""

    def __init__(self, values):
        self.values, self.columns, self.shape = values, range(values.shape[1]), values.shape

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.columns)


def evaluate(call):
    """Evaluates the text of a call, with the names of this file."""
    return eval(call, globals() | {name: getattr(things(), name) for name in NAMES if name in call})


def uploads(seed, num_agents, num_parameters=40):
    """Uploads [N, D] in float32: alike or opposed, of any scale, some zero, equal or broken."""
    rng = np.random.default_rng([seed, num_agents])
    rows = twin.uploads(rng.choice(twin.KINDS), num_agents, num_parameters, seed)
    rows /= np.abs(rows).max(1, keepdims=True)
    rows[np.abs(rows) < 2**-10] = 0  # the scales below would make it vanish in float32
    exponents = {
        "alike": np.zeros(num_agents),
        "apart": rng.uniform(-4, 4, num_agents),
        "all far": np.full(num_agents, rng.uniform(-34, 38)),
        "one far": np.where(np.arange(num_agents) == 0, rng.uniform(-34, 38), 0),
        "far apart": rng.choice(rng.uniform(-34, 38, 3), num_agents),
    }
    rows = (rows * 10 ** exponents[rng.choice(list(exponents))][:, None]).astype(np.float32)
    for agent in np.flatnonzero(rng.uniform(size=num_agents) < 0.15):
        other = rows[rng.integers(num_agents)]
        special = {"zero": 0 * rows[agent], "equal": other, "opposed": -other}
        rows[agent] = special.get(rng.choice(["zero", "equal", "opposed", "broken"]), rows[agent])
        if rng.uniform() < 0.25:
            rows[agent, rng.integers(num_parameters)] = rng.choice([np.nan, np.inf, -np.inf])
    return rows


def weights(seed, num_agents):
    """Weights [N] for `uploads(seed, num_agents)`, not negative; or None."""
    rng = np.random.default_rng([seed, num_agents, 1])
    lengths = np.linalg.norm(uploads(seed, num_agents).astype(np.float64), axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    kinds = {
        "none": None,
        "uniform": rng.uniform(size=num_agents),
        "some zero": rng.uniform(size=num_agents) * (rng.uniform(size=num_agents) < 0.6),
        "whole": rng.integers(1, 1000, num_agents),
        "apart": 10 ** rng.uniform(-5, 5, num_agents),
        "all far": 10 ** rng.uniform(-30, 30) * rng.uniform(0.5, 1, num_agents),
        "by length": np.divide(1, lengths, out=np.zeros(num_agents), where=usable),
    }
    drawn = kinds[rng.choice(list(kinds))]
    return drawn if drawn is None else drawn.astype(np.float32)


def whole(seed, num_agents, dtype):
    """Uploads [N, 40] of small whole numbers, which every dtype holds."""
    numbers = np.random.default_rng([seed, num_agents]).integers(0, 8, (num_agents, 40))
    return jnp.asarray(numbers, dtype)


def tree(rows):
    """The same uploads as a pytree with leaves [N, ...]."""
    cut = rows.shape[1] // 2
    return {"kernel": rows[:, :cut].reshape(len(rows), -1, 1), "rest": (rows[:, cut:],)}


def doubled(values):
    """The same rows, but the last agent is a copy of the first."""
    return None if values is None else np.append(values[:-1], values[:1], axis=0)


def backwards(values):
    return None if values is None else values[::-1]


def importances(seed):
    """Coefficients [N], not negative, not all zero, of any scale, with ties and zeros."""
    rng = np.random.default_rng([seed, 2])
    num_agents = int(rng.choice([1, 2, 5, 30]))
    values = {
        "shares": rng.dirichlet(np.ones(num_agents)),
        "ties": rng.integers(0, 3, num_agents) / 2,
        "one": np.eye(num_agents)[0],
        "apart": 10 ** rng.uniform(-30, 0, num_agents),
        "large": rng.uniform(0.5, 1, num_agents) * LARGEST,
        "small": rng.uniform(1, 2, num_agents) * 1e-37,
    }[rng.choice(["shares", "ties", "one", "apart", "large", "small"])]
    values[0] = max(values[0], values.max() / 2, 1e-37)
    return values.astype(np.float32)


def judged(seed):
    """Contributions [N] for `importances(seed)`, some negative or broken."""
    rng = np.random.default_rng([seed, 3])
    values = rng.uniform(-1, 1, len(importances(seed))) * rng.choice([1e-30, 1, LARGEST])
    values[rng.uniform(size=len(values)) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, 0])
    return values.astype(np.float32)


def aggregates(seed):
    """An aggregate [101] in float32, with ties and zeros, of any scale."""
    rng = np.random.default_rng([seed, 4])
    values = {
        "normal": rng.normal(size=101),
        "ties": rng.integers(-3, 4, 101),
        "equal": np.full(101, -2.0),
        "zero": np.zeros(101),
        "few": rng.normal(size=101) * (rng.uniform(size=101) < 0.1),
    }[rng.choice(["normal", "ties", "equal", "zero", "few"])]
    return (values * rng.choice([1e-30, 1, 1e30])).astype(np.float32)


def fractions(seed):
    """Fractions [7] in float32, with 0, 1 and a number next to 1 among them."""
    rng = np.random.default_rng([seed, 5])
    drawn = np.append(rng.uniform(size=3), [0, 1, rng.integers(102) / 101, 1 - 2**-24])
    return rng.permutation(drawn).astype(np.float32)


def games(seed):
    """Utilities [2^N] in float32, up to half of what it can hold."""
    rng = np.random.default_rng([seed, 6])
    table = rng.uniform(-1, 1, 2 ** rng.integers(1, 7)) * 10 ** rng.uniform(-30, 38.2)
    return np.clip(table, -LARGEST / 2, LARGEST / 2).astype(np.float32)


def datasets(seed):
    """A data set in which every class occurs."""
    rng = np.random.default_rng([seed, 7])
    num_classes = int(rng.integers(2, 11))
    extra = rng.choice(
        num_classes, int(rng.integers(0, 200)), p=rng.dirichlet(np.ones(num_classes))
    )
    labels = rng.permutation(np.append(np.arange(num_classes), extra))
    return fj.data.Dataset(x=np.ones((len(labels), 2)), y=labels, num_classes=num_classes)


def accuracies(seed):
    """Accuracies [N], some equal, close to each other, or not known."""
    rng = np.random.default_rng([seed, 8])
    size = int(rng.integers(1, 12))
    return {
        "any": rng.uniform(size=size),
        "ties": rng.integers(0, 4, size) / 4,
        "equal": np.full(size, 0.1),
        "close": 0.5 + 1e-16 * rng.integers(0, 4, size),
        "unknown": np.where(rng.uniform(size=size) < 0.2, np.nan, rng.uniform(size=size)),
    }[rng.choice(["any", "ties", "equal", "close", "unknown"])]


def spread(seed, num_agents):
    """Uploads whose lengths are all far apart: [N, 40] in float32."""
    rng = np.random.default_rng([seed, num_agents, 9])
    powers = rng.integers(-110, 120, (num_agents, 1))
    return np.ldexp(rng.integers(-8, 9, (num_agents, 40)), powers).astype(np.float32)


def layers(rows):
    """The same uploads [N, 40] as the layers of a model."""
    kernel, bias, rest = np.split(rows, [24, 28], axis=1)
    return {"head": {"kernel": kernel.reshape(-1, 6, 4), "bias": bias}, "rest": rest}


@functools.cache
def judge(mechanism):
    """Returns a function from the uploads of five agents to a mechanism's first outcome."""
    made = evaluate(f"fj.mechanisms.{mechanism}")
    one = jax.tree.map(lambda leaf: leaf[0], layers(np.zeros((1, 40), np.float32)))
    sizes = jnp.arange(1, 6)
    context = fj.mechanisms.Context(
        shard_sizes=sizes,
        shard_classes=jnp.ones(5),
        num_rounds=60,
        key=jax.random.key(7),
        learning_rate=0.1,
        server=one,
        agents=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (5, *leaf.shape)), one),
        head="head",
        losses=lambda: sizes / 15,
        utility=lambda params: 0.5 + 0.4 * jnp.tanh(params["head"]["kernel"].sum() / 10),
        held_out_loss=lambda params: 1 - jnp.tanh(params["head"]["kernel"].sum() / 10),
        example_losses=seen.example_losses,
        units=seen.units(one),
    )

    def update(rows):
        given = layers(rows)
        first = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), given)
        return made.update(given, seen.begin(made, 5, first), context)[0]

    return jax.jit(update)


NAMES = (
    "train",
    "test",
    "shards",
    "model",
    "federation",
    "experiment",
    "result",
    "audit",
    "comparison",
)


@functools.cache
def things():
    """Arguments for calls of the simulator, made once and without compiling."""
    rng = np.random.default_rng(0)
    train, test = (
        fj.data.Dataset(x=rng.normal(size=(size, 8, 8, 1)), y=np.arange(size) % 3, num_classes=3)
        for size in (24, 9)
    )
    model = fj.models.logistic(train)
    optimizer = optax.sgd(0.1)
    experiment = fj.Experiment(num_agents=3, rounds=1, local_epochs=1, model="logistic")
    rows = rng.uniform(size=(1, 3))
    history = fj.History(rows, rows, rows[:, 0], rows, rows, rows, excluded=rows > 1)
    one = jax.tree.map(lambda leaf: leaf[None], history)
    swept = fj.Sweep((experiment.resolved(),), ("seed",), one, np.array([[8, 8, 8]]), rows)
    return types.SimpleNamespace(
        train=train,
        test=test,
        shards=fj.data.uniform(train, num_agents=3),
        model=model,
        experiment=experiment,
        federation=fj.federation(model=model, mechanism=fj.mechanisms.cgsv(), optimizer=optimizer),
        result=fj.Result(
            experiment=experiment,
            history=history,
            state=None,
            shard_sizes=np.array([8, 8, 8]),
            standalone_accuracies=rows[0],
            behaviours=("honest",) * 3,
        ),
        comparison=Comparison({"cgsv": swept}),
        audit=Audit(
            experiment.resolved(),
            (0,),
            Trial("honest", 0.0, 0, rows, rows),
            (Trial("idle", 0.0, 1, rows, rows),),
        ),
    )
