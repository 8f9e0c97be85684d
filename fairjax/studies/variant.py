"""Variant: CGSV with one link changed, for the study `when_fair`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fairjax import lowrank, trees
from fairjax.experiments import Experiment
from fairjax.mechanisms import Context, Mechanism, Outcome, Plan
from fairjax.types import Stacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant(Experiment):
    """CGSV with one link changed.

    Attributes:
      start: importance before the first round: "zero", as published, or "equal".
      measured: the models from which agents train: "own", the paid models; or "server", the
        server's model, which a deployment could not give to agents.
      keep_own: whether agents add their own update to the reward instead of discarding it.
    """

    start: str = "zero"
    measured: str = "own"
    keep_own: bool = False

    def make_mechanism(self) -> Mechanism:
        """Returns the mechanism with the changes."""
        mechanism = super().make_mechanism()
        if self.start == "equal":
            equal = lambda num_agents: jnp.full(num_agents, 1 / num_agents)  # noqa: E731
            mechanism = Mechanism(equal, *mechanism[1:])
        if self.measured == "server":
            mechanism = _train_from_server(mechanism)
        if self.keep_own:
            mechanism = _keep_own(mechanism)
        return mechanism

    def alone(self) -> Experiment:
        """Returns the experiment without sharing and without the changes."""
        alone = super().alone()
        fields = {
            field.name: getattr(alone, field.name) for field in dataclasses.fields(Experiment)
        }
        return Experiment(**fields)


def _train_from_server(mechanism: Mechanism) -> Mechanism:
    def plan(state: Any, context: Context) -> Plan:
        held: Any = context.agents
        return Plan(start=trees.broadcast(trees.num_agents(held), context.server))

    def update(updates: Stacked, state: Any, context: Context) -> tuple[Outcome, Any]:
        outcome, state = mechanism.update(updates, state, context)
        # The federation adds rewards to the server's model, from which agents trained. Here
        # they belong to the agents' own models, so correct for the difference.
        paid = jax.tree.map(
            lambda reward, held, server: reward + held - server,
            outcome.rewards,
            context.agents,
            context.server,
        )
        return outcome._replace(rewards=paid), state

    return Mechanism(mechanism.init, update, plan)


def _keep_own(mechanism: Mechanism) -> Mechanism:
    def update(updates: Stacked, state: Any, context: Context) -> tuple[Outcome, Any]:
        outcome, state = mechanism.update(updates, state, context)
        # Products have no factors that add up.
        paid = jax.tree.map(jnp.add, *map(lowrank.dense, (outcome.rewards, updates)))
        return outcome._replace(rewards=paid), state

    return mechanism._replace(update=update)
