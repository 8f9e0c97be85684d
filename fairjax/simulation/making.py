"""Making: checks the parts of a federation, and puts them together."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from fairjax import checks, devices
from fairjax.mechanisms import Mechanism
from fairjax.models import Model
from fairjax.simulation import each
from fairjax.simulation.behaviours import DATA, UPLOADS, Behaviour
from fairjax.simulation.behaviours import checked as checked_behaviours
from fairjax.simulation.federations import Federation
from fairjax.simulation.optimizers import COUNTS, by_rounds, check_server_optimizer
from fairjax.simulation.participation import check_participation
from fairjax.simulation.training import LocalTraining
from fairjax.tasks import CLASSIFICATION, Task
from fairjax.types import Scalar


def federation(
    *,
    model: Model,
    mechanism: Mechanism,
    optimizer: Any,
    learning_rate: Scalar | Callable[[Scalar], Scalar] | None = None,
    local_epochs: int = 1,
    batch_size: int = 32,
    decay_per: str = "round",
    local_steps: str = "all",
    agents_at_once: int | None = None,
    schedule_counts: str | None = None,
    proximal: float = 0.0,
    reset_optimizers: bool = False,
    ranks: Sequence[int] | None = None,
    server_optimizer: Any = None,
    task: Task | None = None,
    behaviours: Sequence[Behaviour] = (),
    participation: Any = None,
    mesh: Mesh | None = None,
) -> Federation:
    """Returns a federation of agents that train, are judged, and are paid.

    Args:
      model: the network that every agent trains.
      mechanism: judges the updates and pays the agents.
      optimizer: an optax optimizer, such as `optax.sgd(0.1)`; or, with `learning_rate`, a
        function that makes one from a learning rate, such as `optax.sgd`. Every agent keeps
        its own state.
      learning_rate: None; or a number, or those of all agents `[N]`; or a schedule, a function of
        the rounds played that returns one of both.
      local_epochs: passes over its shard that an agent makes per round; or those of all `[N]`.
      batch_size: examples per local step; the last batch of an epoch may be partial; or those of
        all agents `[N]`, whose steps then all compute with the largest.
      decay_per: "round", or "epoch": the learning rate's schedule counts local epochs.
      local_steps: "all", or "last_batch": one step per local epoch, on its last batch.
      agents_at_once: how many agents are vectorised; None: one on a CPU, as many as
        memory holds on an accelerator. Results depend on it by rounding.
      schedule_counts: what a schedule within `optimizer` counts, for example in
        `optax.sgd(optax.cosine_decay_schedule(0.1, 100))`: "steps" counts each agent's own
        local steps, so an agent with more data counts faster; "rounds" counts rounds (or local
        epochs, as `decay_per` says), the same for all agents. None: steps, with a warning. A
        schedule that an optimizer calls with a count of its own, as `optax.contrib.prodigy` does,
        is not seen: it counts steps.
      proximal: FedProx's mu, at least 0: mu / 2 |w - w_0|^2 is added to the loss, where w_0 are
        the parameters at the round's start (Li et al., MLSys 2020).
      reset_optimizers: every round begins with a fresh state of every agent's optimizer.
      ranks: the ranks of all agents' adapters `[N]`, for a model that `fairjax.models.lora`
        returns; None: that model's own rank. Agents with adapters begin every round with fresh
        factors and a fresh optimizer state.
      server_optimizer: an optax optimizer for which the aggregate, negated, is the gradient, such
        as optax.sgd(1.0, momentum=0.9) (FedAvgM) or optax.adam(0.01) (FedAdam); everybody is paid
        its step. Only for mechanisms that pay everybody the aggregate, such as fedavg. None:
        the aggregate is the step (Reddi et al., ICLR 2021).
      task: the loss and the metrics, such as `fairjax.tasks.regression(train)`; None: those of
        classification.
      behaviours: what dishonest agents upload. For dishonest data, call
        `fairjax.simulation.change_data(shards, behaviours)` beforehand.
      participation: who takes part in a round: a number of agents, or a share of them in (0, 1],
        drawn by the key of the run; or a table `[T, N]` of booleans; None: all. Absent agents
        train nothing, upload nothing, are not judged and receive nothing.
      mesh: devices over which agents are spread, such as `fairjax.devices.mesh()`; None: one.
        Results depend on their number by rounding.

    Returns:
      A `Federation`.

    Raises:
      ValueError: an argument has the wrong kind or is out of range.

    Examples:
      >>> import fairjax as fj
      >>> import jax, optax
      >>> train, test = fj.data.load("digits")
      >>> shards = fj.data.power_law(train, num_agents=3, seed=0)
      >>> fed = federation(model=fj.models.logistic(train), mechanism=fj.mechanisms.fedavg(),
      ...                  optimizer=optax.sgd, learning_rate=optax.exponential_decay(0.1, 1, 0.9))
      >>> state, record = jax.jit(fed.step)(fed.init(jax.random.key(0), shards), shards)
      >>> print(record.fractions)
      [1. 1. 1.]
    """
    makers = "`fairjax.models.mlp(train)` or `fairjax.models.from_flax(module)`"
    checks.kind("model", model, Model, makers)
    checks.kind("mechanism", mechanism, Mechanism, "`fairjax.mechanisms.cgsv()`")
    local_epochs = each.checked("local_epochs", local_epochs, checks.count)
    batch_size = each.checked("batch_size", batch_size, checks.count)
    checks.choice("decay_per", decay_per, ("round", "epoch"))
    checks.choice("local_steps", local_steps, ("all", "last_batch"))
    if agents_at_once is not None:
        checks.count("agents_at_once", agents_at_once)
    if schedule_counts is not None:
        checks.choice("schedule_counts", schedule_counts, COUNTS)
    checks.at_least("proximal", proximal, 0)
    checks.flag("reset_optimizers", reset_optimizers)
    ranks = _check_ranks(ranks, model)
    check_server_optimizer(server_optimizer, mechanism)
    if server_optimizer is not None and model.adapters is not None:
        raise ValueError(
            "`server_optimizer` must be left out for a model with adapters, whose aggregate is a "
            f"product, got {checks.shown(server_optimizer)}."
        )
    task = CLASSIFICATION if task is None else task
    checks.kind("task", task, Task, "`fairjax.tasks.regression(train)`")
    optimizer_at, rate_at = by_rounds(optimizer, learning_rate)
    training = LocalTraining(
        model=model,
        task=task,
        optimizer_at=optimizer_at,
        local_epochs=local_epochs,
        batch_size=batch_size,
        decay_per=decay_per,
        local_steps=local_steps,
        schedule_counts=schedule_counts,
        proximal=float(proximal),
        reset_optimizers=bool(reset_optimizers),
        ranks=ranks,
    )
    return Federation(
        training=training,
        mechanism=mechanism,
        rate_at=rate_at,
        behaviours=_check_upload_behaviours(behaviours),
        participation=check_participation(participation),
        server_optimizer=server_optimizer,
        group_size=agents_at_once,
        mesh=devices.checked(mesh),
    )


def _check_ranks(ranks: Any, model: Model) -> tuple[int, ...] | None:
    """Returns the ranks of agents' adapters, or raises."""
    if ranks is None:
        return None
    if model.adapters is None:
        raise ValueError(
            "`ranks` must be left out for a model without adapters; "
            f"`fairjax.models.lora(model, params)` gives it some. Got ranks={checks.shown(ranks)}."
        )
    if not checks.is_listing(ranks):
        raise ValueError(
            f"`ranks` must be one number for each agent, got ranks={checks.shown(ranks)}."
        )
    return each.checked("ranks", ranks, checks.count)


def _check_upload_behaviours(behaviours: Any) -> tuple[Behaviour, ...]:
    """Returns behaviours that change uploads, or raises if one changes data."""
    behaviours = checked_behaviours(behaviours)
    for one in behaviours:
        if one.name in DATA:
            raise ValueError(
                "`behaviours` of a federation must change uploads, one of "
                f"{', '.join(sorted(UPLOADS))}, got {one.name!r}, which changes an agent's data. "
                "Pass it to `shards = fairjax.simulation.change_data(shards, behaviours)` and "
                "leave it out here."
            )
    return behaviours
