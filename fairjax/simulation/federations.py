"""Federations: rounds of training, judging and paying, as a pair of pure functions.

Federation.init(key, shards)   -> State      what the next round needs
Federation.step(state, shards) -> State, Record   what a person wants to see

A federation is a value: two that were made from the same parts are equal and share one program.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fairjax import checks, trees
from fairjax.data import Dataset, Shards
from fairjax.fingerprint import ByContents
from fairjax.mechanisms import Context, Mechanism, Outcome, Plan, checked_plan, standalone
from fairjax.simulation import each
from fairjax.simulation.adapting import with_products
from fairjax.simulation.behaviours import Behaviour, changing_uploads
from fairjax.simulation.evaluation import measure_agents
from fairjax.simulation.looking import make_context, own_losses, reached_alone, scores
from fairjax.simulation.memory import pick_agents_at_once
from fairjax.simulation.participation import Participation, draw_present
from fairjax.simulation.round import Paid, Trained, Uploads, judge, pay, serve, train, upload
from fairjax.simulation.states import Record, State, check_same_kind, first_state, placed
from fairjax.simulation.training import LocalTraining
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
      server_optimizer: an optax optimizer that makes the server's step from the aggregate; None:
        the aggregate is the step.
      participation: who takes part in a round, see `fairjax.simulation.participation`.
      group_size: the largest number of agents to vectorise; None: chosen for the device.
      mesh: the devices over which agents are spread, if there is more than one.
    """

    training: LocalTraining
    mechanism: Mechanism
    rate_at: Callable[[Scalar], Any]
    behaviours: tuple[Behaviour, ...] = ()
    participation: Participation = None
    server_optimizer: Any = None
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
        self,
        key: Key,
        shards: Shards,
        params: Params | None = None,
        num_rounds: Scalar = 0,
        test: Dataset | None = None,
        measured: bool = True,
    ) -> State:
        """Returns the state before the first round.

        Args:
          key: PRNG key; everything random follows from it.
          shards: who holds which data.
          params: first parameters, as in `fairjax.run`; None: drawn by the model from the key.
          num_rounds: how many rounds the run will have; 0: unknown.
          test: the test data, for mechanisms that were told to look at them.
          measured: whether a mechanism that asks what agents reach alone is told, which takes a run
            without sharing; False: it gets zeros.

        Raises:
          ValueError: an argument is of the wrong kind, or model, optimizer and data do not fit
            each other, or a device cannot hold them; or the mechanism needs a number of rounds,
            held-out data or a model's units that are not there.
        """
        checks.kind("shards", shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
        each.check_fit(
            shards.num_agents,
            local_epochs=self.training.local_epochs,
            batch_size=self.training.batch_size,
            learning_rate=self.rate_at(0),
            ranks=self.training.ranks or 0,
        )
        state = first_state(
            key,
            self.training,
            self.mechanism,
            shards,
            params,
            num_rounds,
            remember=bool(self.behaviours),
            server_optimizer=self.server_optimizer,
            mesh=self.mesh,
        )
        state = placed(self.mesh, state)

        def alone(on: str) -> PerAgent:
            if not measured:
                return jnp.zeros(shards.num_agents)
            return reached_alone(self, state, shards, test, on)

        return placed(self.mesh, state._replace(mechanism=self.first_of_mechanism(state, alone)))

    def first_of_mechanism(self, state: State, alone: Callable[[str], PerAgent]) -> Any:
        """Returns the mechanism's first state, where `alone` says what agents reach alone."""
        units, ranked = self.training.model.units, self.training.ranked
        first = self.mechanism.init(
            trees.num_agents(state.agents),
            state.server,
            None if units is None else units(state.server),
            alone,
            None if ranked is None else ranked.common(state.key, state.server),
        )
        # A number of Python is weakly typed, but not in a checkpoint.
        return jax.tree.map(lambda part: jnp.asarray(part, jnp.result_type(part)), first)

    def go_on(self, state: State, shards: Shards, num_rounds: int) -> State:
        """Returns a state of an earlier run as the first of `num_rounds` more rounds.

        Raises:
          ValueError: the state is not one of this federation and these shards.
        """
        first = functools.partial(self.init, measured=False)
        check_same_kind(state, jax.eval_shape(first, state.key, shards))
        return placed(self.mesh, state._replace(num_rounds=state.round + num_rounds))

    def step(self, state: State, shards: Shards) -> tuple[State, Record]:
        """Returns the state after one more round, and the record of that round."""
        checks.kind("state", state, State, "`federation.init(key, shards)`")
        checks.kind("shards", shards, Shards, "`fairjax.data.power_law(train, num_agents=5)`")
        train_key, mechanism_key = jax.random.split(jax.random.fold_in(state.key, state.round))
        upload_key, presence_key = (jax.random.fold_in(train_key, number) for number in (1, 2))
        present = draw_present(
            self.participation, presence_key, state.round, state.num_rounds, shards.num_agents
        )
        context = self.context(state, shards, mechanism_key, present)
        plan = self.plan(state, context)
        at_once = self.agents_at_once(shards)
        trained = train(
            self.training, train_key, state, plan, shards, agents_at_once=at_once, mesh=self.mesh
        )
        uploads = upload(upload_key, state, trained, self.behaviours, plan.participants)
        context, joined = self._after_training(context, state, plan, trained, shards)
        outcome, mechanism = judge(self.mechanism, uploads.updates, state.mechanism, context)
        outcome, server_optimizer = serve(self.server_optimizer, state, outcome)
        paid = pay(state, plan, trained, outcome, present)
        memory = uploads.memory
        after = state._replace(
            round=state.round + 1,
            agents=paid.agents,
            server=paid.server,
            optimizer=trained.optimizer,
            mechanism=mechanism,
            memory=None if memory is None else memory.after(*outcome[:2], present),
            server_optimizer=server_optimizer,
            statistics=trained.statistics,
            joined=joined,
        )
        return placed(self.mesh, after), self._record(plan, trained, uploads, outcome, paid)

    def _after_training(
        self, context: Context, state: State, plan: Plan, trained: Trained, shards: Shards
    ) -> tuple[Context, PerAgent | None]:
        """Returns what the mechanism may look at when it judges, and who has trained so far."""
        if plan.start is not None or plan.factors is not None:
            start = state.agents if plan.start is None else plan.start
            start = start if plan.factors is None else with_products(start, plan.factors)
            losses = own_losses(self, start, state.statistics, shards, context.present)
            context = context._replace(losses=losses)
        if state.joined is None:
            return context, None
        # Score uploads with statistics that belong to them.
        joined = state.joined | (trained.finite & plan.trains(shards.num_agents))
        return context._replace(**scores(self, trained.statistics, joined, shards)), joined

    def _record(
        self, plan: Plan, trained: Trained, uploads: Uploads, outcome: Outcome, paid: Paid
    ) -> Record:
        num_agents, ranked = len(outcome.fractions), self.training.ranked
        took_part = plan.trains(num_agents)
        communicated = {}
        if ranked:
            shares = took_part & (self.mechanism.name != standalone.__name__)
            communicated = ranked.communicated(
                uploads.updates, outcome.rewards, plan.frozen, shares
            )
        return Record(
            trained=trained.params,
            updates=trained.updates,
            uploads=uploads.updates,
            contributions=outcome.contributions,
            importance=outcome.importance,
            fractions=outcome.fractions,
            participants=took_part,
            excluded=~uploads.usable,
            broken=paid.broken,
            unchanged=trained.unchanged & ~changing_uploads(self.behaviours, num_agents),
            **communicated,
        )

    def plan(self, state: State, context: Context) -> Plan:
        """Returns what the mechanism decides before training; absent agents never take part."""
        plan = Plan()
        if self.mechanism.plan is not None:
            answer = self.mechanism.plan(state.mechanism, context)
            plan = checked_plan(answer, state.agents, self.mechanism.name, context.factors)
        if context.present is None:
            return plan
        chosen = True if plan.participants is None else plan.participants
        start = plan.start  # absent agents keep their own parameters
        start = None if start is None else trees.where(context.present, start, state.agents)
        return plan._replace(participants=context.present & chosen, start=start)

    def context(
        self, state: State, shards: Shards, key: Key, present: PerAgent | None = None
    ) -> Context:
        """Returns what the mechanism may look at."""
        return make_context(self, state, shards, key, present)

    def rates(self, round: Scalar) -> Any:
        """Returns the learning rate at a round's start, `[N]` where agents differ, or None."""
        training = self.training
        if training.decay_per == "round" or np.ndim(training.local_epochs) == 0:
            passes = 1 if training.decay_per == "round" else training.local_epochs
            return self.rate_at(round * passes)
        rates = jax.vmap(self.rate_at)(round * jnp.asarray(training.local_epochs))
        return jnp.diagonal(rates) if np.ndim(rates) == 2 else rates

    def evaluate(self, params: Stacked, data: Dataset, statistics: Any = None) -> PerAgent:
        """Returns `[N]` values of the task's main metric for agents' models."""
        return self.measure(params, data, statistics)[self.training.task.main]

    def measure(
        self, params: Stacked, data: Dataset, statistics: Any = None
    ) -> dict[str, PerAgent]:
        """Returns all metrics of the task by name, each `[N]`, for agents' models.

        Args:
          params: leaves `[N, ...]`.
          data: the data set.
          statistics: those of the networks, leaves `[N, ...]`; None if they have none.
        """
        checks.kind("data", data, Dataset, "`fairjax.data.load`")
        training, own, at_once = self.training, (params, statistics), self.group_size or 1
        return measure_agents(training.task, training.model, own, data, at_once, self.mesh)

    def agents_at_once(self, shards: Shards) -> int:
        """Returns how many agents are vectorised."""
        if self.group_size is not None:
            return min(self.group_size, shards.num_agents)
        return pick_agents_at_once(self.training, shards, self.num_devices)
