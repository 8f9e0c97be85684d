"""Evaluation: the metrics of models on whole data sets.

model, params, x [M, ...] -> batches -> outputs [M, ...] -> the task's metrics of outputs and y
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fairjax import blocks, trees
from fairjax.data import Dataset, Shards
from fairjax.models import Model, evaluator
from fairjax.simulation.agents import evaluation_batch, examples, map_agents
from fairjax.simulation.training import LocalTraining
from fairjax.tasks import Task
from fairjax.types import Array, Params, PerAgent, Scalar, Stacked


def outputs(model: Model, params: Params, data: Dataset, statistics: Any = None) -> Array:
    """Returns a model's outputs `[M, ...]` for all examples of a data set."""
    num_examples = len(data.y)
    batch_size = min(evaluation_batch(), num_examples)
    starts = jnp.arange(0, num_examples, batch_size)

    def batch(start: Scalar) -> Array:
        # The last batch is moved back to be full.
        first = jnp.minimum(start, num_examples - batch_size)
        x = lax.dynamic_slice_in_dim(data.x, first, batch_size)
        return evaluator(model)(params, x, statistics)

    found = lax.map(batch, starts)
    last = num_examples - (len(starts) - 1) * batch_size
    whole = found[:-1].reshape(-1, *found.shape[2:])
    return jnp.concatenate([whole, found[-1, batch_size - last :]])


def measure(
    task: Task, model: Model, params: Params, data: Dataset, statistics: Any = None
) -> dict[str, Scalar]:
    """Returns all metrics of one model."""
    found = outputs(model, params, data, statistics)
    y = jnp.asarray(data.y)
    return {name: jnp.asarray(metric(found, y), jnp.float32) for name, metric in task.metrics}


def measure_agents(
    task: Task,
    model: Model,
    own: tuple[Stacked, Any],
    data: Dataset,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> dict[str, PerAgent]:
    """Returns all metrics, each `[N]`, of agents' parameters and statistics, or None for these.

    Models that equal the last one, such as the server's, have its metrics. Where agents take
    turns, they are not evaluated again.
    """
    own = jax.tree.map(jnp.asarray, own)
    equal = [blocks.rows(leaf == leaf[-1]).all(1) for leaf in jax.tree.leaves(own)]
    again = functools.reduce(jnp.logical_and, equal).at[-1].set(False)
    unknown = dict.fromkeys(task.names, jnp.float32(0))

    def one(agent: tuple[Any, Scalar], data: Dataset) -> dict[str, Scalar]:
        (params, statistics), again = agent
        return lax.cond(
            again, lambda: unknown, lambda: measure(task, model, params, data, statistics)
        )

    found = map_agents(one, (own, again), data, agents_at_once, mesh)
    return jax.tree.map(lambda values: jnp.where(again, values[-1], values), found)


def mean_statistics(statistics: Any, joined: PerAgent | None, shards: Shards) -> Any:
    """Returns the mean of agents' statistics by their examples, for the server's model.

    Agents that have not trained yet do not count, unless nobody has.
    """
    if joined is None:
        return None
    sizes = jnp.where(joined | ~joined.any(), shards.sizes, 0)
    return trees.weighted_sum(sizes / sizes.sum(), statistics)


def losses(
    task: Task, model: Model, params: Params, data: Dataset, statistics: Any = None
) -> Array:
    """Returns the losses `[M]` of one model, of all examples."""
    return task.loss(outputs(model, params, data, statistics), jnp.asarray(data.y))


def loss(task: Task, model: Model, params: Params, data: Dataset, statistics: Any = None) -> Scalar:
    """Returns the mean loss of one model."""
    return losses(task, model, params, data, statistics).mean()


def utility(
    task: Task, model: Model, params: Params, data: Dataset, statistics: Any = None
) -> Scalar:
    """Returns the main metric of one model, negated if it is better when it is lower."""
    metric = dict(task.metrics)[task.main]
    found = outputs(model, params, data, statistics)
    return task.sign * jnp.asarray(metric(found, jnp.asarray(data.y)))


def mean_losses(
    training: LocalTraining,
    params: Stacked,
    statistics: Any,
    shards: Shards,
    present: PerAgent | None,
    agents_at_once: int,
    mesh: Mesh | None = None,
) -> PerAgent:
    """Returns `[N]` means of the task's loss for agents' models on their own shards.

    Agents that are not `present` have 0; None: all are.
    """
    batch_size = min(evaluation_batch(), shards.indices.shape[1])

    def mean_loss(agent: Any, data: Dataset) -> Scalar:
        own, statistics, rows, size = agent
        rows = jnp.pad(rows, (0, -len(rows) % batch_size), mode="edge").reshape(-1, batch_size)

        def batch_sum(number: Scalar, total: Scalar) -> Scalar:
            x, y = examples(data, rows[number])
            counted = number * batch_size + jnp.arange(batch_size) < size
            loss, _ = training.loss(own, x, y, counted, None, statistics)
            return total + loss * counted.sum()

        total = lax.fori_loop(0, (size + batch_size - 1) // batch_size, batch_sum, 0.0)
        return total / jnp.maximum(size, 1)

    sizes = shards.sizes if present is None else jnp.where(present, shards.sizes, 0)
    agents = (params, statistics, shards.indices, sizes)
    return map_agents(mean_loss, agents, shards.data, agents_at_once, mesh)
