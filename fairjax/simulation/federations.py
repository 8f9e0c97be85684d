"""Federations: rounds of training, judging and paying, as a pair of pure functions.

Federation.init(key, shards)   -> State      what the next round needs
Federation.step(state, shards) -> State, Record   what a person wants to see

A federation is a value: two that were made from the same parts are equal and share one program.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fairjax import checks, devices
from fairjax.data import Dataset, Shards
from fairjax.fingerprint import ByContents
from fairjax.mechanisms import Context, Mechanism, Plan
from fairjax.models import Model
from fairjax.simulation.behaviours import DATA, UPLOADS, Behaviour, changing_uploads
from fairjax.simulation.behaviours import checked as checked_behaviours
from fairjax.simulation.memory import bytes_per_agent, pick_agents_at_once
from fairjax.simulation.optimizers import COUNTS, by_rounds
from fairjax.simulation.round import judge, pay, train, upload
from fairjax.simulation.states import Record, State, first_state, placed
from fairjax.simulation.training import (
    LocalTraining,
    accuracies,
    accuracy,
    classes_held,
    mean_losses,
)
from fairjax.types import Key, Params, PerAgent, Scalar, Stacked


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Federation(ByContents):
    """Agents that train, are judged, and are paid; made by `fairjax.federation`.

    It is hashable, and equal to another one that was made from the same parts: functions with
    the same code and constants, and arrays with the same contents (`fairjax.fingerprint`). A
    federation that holds a traced value is equal only to itself.

    Attributes:
      training: what an agent does in a round: model, optimizer, local epochs, batches.
      mechanism: judges updates and pays agents.
      rate_at: maps the number of rounds (or local epochs) played to the learning rate, or to
        None where only optax knows it.
      behaviours: what dishonest agents upload.
      group_size: the largest number of agents to vectorise; None: chosen for the device.
      mesh: the devices over which agents are spread, if there is more than one.
    """

    training: LocalTraining
    mechanism: Mechanism
    rate_at: Callable[[Scalar], Any]
    behaviours: tuple[Behaviour, ...] = ()
    group_size: int | None = None
    mesh: Mesh | None = None

    def __repr__(self) -> str:
        training = self.training
        return (
            f"Federation(mechanism={self.mechanism.name!r}, local_epochs={training.local_epochs}, "
            f"batch_size={training.batch_size}, behaviours={len(self.behaviours)}, "
            f"devices={self.num_devices})"
        )

    @property
    def num_devices(self) -> int:
        """The number of devices over which agents are spread."""
        return 1 if self.mesh is None else self.mesh.size

    def init(
        self, key: Key, shards: Shards, params: Params | None = None, num_rounds: Scalar = 0
    ) -> State:
        """Returns the state before the first round.

        Args:
          key: PRNG key; everything random follows from it.
          shards: who holds which data.
          params: common first parameters; None: drawn by the model from the key.
          num_rounds: how many rounds the run will have; 0: unknown.

        Raises:
          ValueError: an argument is of the wrong kind, or model, optimizer and data do not fit
            each other, or a device cannot hold them.
        """
        return first_state(
            key,
            self.training,
            self.mechanism,
            shards,
            params,
            num_rounds,
            remember=bool(self.behaviours),
            mesh=self.mesh,
        )

    def step(self, state: State, shards: Shards) -> tuple[State, Record]:
        """Returns the state after one more round, and the record of that round."""
        checks.kind("state", state, State, "`federation.init(key, shards)`")
        checks.kind("shards", shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
        train_key, mechanism_key = jax.random.split(jax.random.fold_in(state.key, state.round))
        upload_key = jax.random.fold_in(train_key, 1)
        context = self.context(state, shards, mechanism_key)
        plan = self.plan(state, context)
        trained = train(
            self.training,
            train_key,
            plan,
            state.agents,
            state.optimizer,
            shards,
            state.round,
            agents_at_once=self.agents_at_once(shards),
            mesh=self.mesh,
        )
        uploads = upload(
            upload_key, trained, state.server, self.behaviours, state.memory, state.round
        )
        outcome, mechanism = judge(self.mechanism, uploads.updates, state.mechanism, context)
        paid = pay(trained, state.server, outcome)
        memory = uploads.memory
        after = State(
            round=state.round + 1,
            num_rounds=state.num_rounds,
            key=state.key,
            agents=paid.agents,
            server=paid.server,
            optimizer=trained.optimizer,
            mechanism=mechanism,
            memory=None if memory is None else memory._replace(aggregate=outcome.aggregate),
        )
        record = Record(
            trained=trained.params,
            updates=trained.updates,
            uploads=uploads.updates,
            contributions=outcome.contributions,
            importance=outcome.importance,
            fractions=outcome.fractions,
            excluded=~uploads.usable,
            broken=paid.broken,
            unchanged=trained.unchanged & ~changing_uploads(self.behaviours, shards.num_agents),
        )
        return placed(self.mesh, after), record

    def plan(self, state: State, context: Context) -> Plan:
        """Returns what the mechanism decides before training."""
        return (
            Plan() if self.mechanism.plan is None else self.mechanism.plan(state.mechanism, context)
        )

    def context(self, state: State, shards: Shards, key: Key) -> Context:
        """Returns what the mechanism may look at; unused fields are never computed."""
        training = self.training
        played = state.round * (training.local_epochs if training.decay_per == "epoch" else 1)
        utility = None
        if shards.validation is not None:
            utility = functools.partial(accuracy, training.model, data=shards.validation)
        return Context(
            shard_sizes=jnp.asarray(shards.sizes),
            shard_classes=classes_held(shards),
            round=state.round,
            num_rounds=state.num_rounds,
            key=key,
            learning_rate=self.rate_at(played),
            server=state.server,
            agents=state.agents,
            head=training.model.head,
            losses=lambda: mean_losses(
                training, state.agents, shards, self.agents_at_once(shards), self.mesh
            ),
            utility=utility,
        )

    def evaluate(self, params: Stacked, data: Dataset) -> PerAgent:
        """Returns `[N]` shares of the examples that each agent's model classifies correctly."""
        checks.kind("data", data, Dataset, "`fairjax.data.load`")
        return accuracies(self.training.model, params, data, self.group_size or 1, self.mesh)

    def agents_at_once(self, shards: Shards) -> int:
        """Returns how many agents are vectorised."""
        if self.group_size is not None:
            return min(self.group_size, shards.num_agents)
        return pick_agents_at_once(self.training, shards, self.num_devices)

    def bytes_per_agent(self, shards: Shards) -> int:
        """Returns how many bytes a local step of one agent needs."""
        return bytes_per_agent(self.training, shards)


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
    behaviours: Sequence[Behaviour] = (),
    mesh: Mesh | None = None,
) -> Federation:
    """Returns a federation of agents that train, are judged, and are paid.

    Args:
      model: the network that every agent trains.
      mechanism: judges the updates and pays the agents.
      optimizer: an optax optimizer, such as `optax.sgd(0.1)`; or, with `learning_rate`, a
        function that makes one from a learning rate, such as `optax.sgd`. Every agent keeps
        its own state.
      learning_rate: None; or a number; or a schedule, a function of the rounds played.
      local_epochs: passes over its shard that an agent makes per round.
      batch_size: examples per local step; the last batch of an epoch may be partial.
      decay_per: "round", or "epoch": the learning rate's schedule counts local epochs.
      local_steps: "all", or "last_batch": one step per local epoch, on its last batch.
      agents_at_once: how many agents are vectorised; None: one on a CPU, as many as
        memory holds on an accelerator. Results depend on it by rounding.
      schedule_counts: what a schedule within `optimizer` counts, for example in
        `optax.sgd(optax.cosine_decay_schedule(0.1, 100))`: "steps" counts each agent's own
        local steps, so an agent with more data counts faster; "rounds" counts rounds (or local
        epochs, as `decay_per` says), the same for all agents. None: steps, with a warning.
      behaviours: what dishonest agents upload. For dishonest data, call
        `fairjax.simulation.change_data(shards, behaviours)` beforehand.
      mesh: devices over which agents are spread, such as `fairjax.devices.mesh()`; None: one.
        Results depend on their number by rounding.

    Returns:
      A `Federation`.

    Raises:
      ValueError: an argument has the wrong kind or is out of range.

    Examples:
      >>> import fairjax as fj
      >>> import optax
      >>> train, test = fj.data.load("digits")
      >>> shards = fj.data.power_law(train, num_agents=3, seed=0)
      >>> fed = federation(model=fj.models.logistic(train), mechanism=fj.mechanisms.fedavg(),
      ...                  optimizer=optax.sgd, learning_rate=optax.exponential_decay(0.1, 1, 0.9))
      >>> state, record = jax.jit(fed.step)(fed.init(jax.random.key(0), shards), shards)
      >>> print(record.fractions)
      [1. 1. 1.]
    """
    checks.kind("model", model, Model, "`fairjax.models.mlp(train)`")
    checks.kind("mechanism", mechanism, Mechanism, "`fairjax.mechanisms.cgsv()`")
    checks.count("local_epochs", local_epochs)
    checks.count("batch_size", batch_size)
    checks.choice("decay_per", decay_per, ("round", "epoch"))
    checks.choice("local_steps", local_steps, ("all", "last_batch"))
    if agents_at_once is not None:
        checks.count("agents_at_once", agents_at_once)
    if schedule_counts is not None:
        checks.choice("schedule_counts", schedule_counts, COUNTS)
    optimizer_at, rate_at = by_rounds(optimizer, learning_rate)
    steps = (local_epochs, batch_size, decay_per, local_steps, schedule_counts)
    return Federation(
        training=LocalTraining(model, optimizer_at, *steps),
        mechanism=mechanism,
        rate_at=rate_at,
        behaviours=_check_upload_behaviours(behaviours),
        group_size=agents_at_once,
        mesh=devices.checked(mesh),
    )


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
