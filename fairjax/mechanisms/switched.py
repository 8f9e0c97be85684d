"""Switched: several mechanisms as one, of which a traced number says which one acts.

One compiled program then runs all mechanisms. It contains local training and evaluation only once.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairjax.mechanisms.base import Mechanism, Outcome, Plan, checked_answer
from fairjax.mechanisms.context import Context
from fairjax.types import Params, PerAgent, Scalar, Stacked


def switched(number: Scalar, mechanisms: Sequence[Mechanism]) -> Mechanism:
    """Returns a mechanism that acts as one of several; its state holds the states of all.

    Args:
      number: which of the mechanisms acts, from 0. May be traced.
      mechanisms: the mechanisms, at least one.

    Examples:
      >>> import fairjax as fj
      >>> both = switched(1, [fj.mechanisms.fedavg(), fj.mechanisms.standalone()])
      >>> context = Context(shard_sizes=jnp.array([30, 10]))
      >>> outcome, _ = both.update(jnp.array([[4.0], [8.0]]), both.init(2, jnp.zeros(1)), context)
      >>> print(outcome.rewards.ravel())
      [4. 8.]
    """
    places = range(len(mechanisms))

    def init(
        num_agents: int,
        params: Params,
        units: Any = None,
        performance: Any = None,
        factors: Any = None,
    ) -> tuple[Any, ...]:
        def begin(place: int) -> Any:
            def measure(on: str) -> PerAgent:  # only for the one that acts
                zeros = jnp.zeros(num_agents)
                return lax.cond(number == place, lambda: performance(on), lambda: zeros)

            measured = None if performance is None else measure
            return mechanisms[place].init(num_agents, params, units, measured, factors)

        return tuple(jax.tree.map(jnp.asarray, begin(place)) for place in places)

    def update(
        updates: Stacked, states: tuple[Any, ...], context: Context
    ) -> tuple[Outcome, tuple[Any, ...]]:
        def act(place: int) -> tuple[Outcome, tuple[Any, ...]]:
            one, before = mechanisms[place], states[place]
            answer = one.update(updates, before, context)
            outcome, after = checked_answer(answer, updates, before, one.name)
            after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, before)
            return outcome, (*states[:place], after, *states[place + 1 :])

        return lax.switch(number, [functools.partial(act, place) for place in places])

    def plan(states: tuple[Any, ...], context: Context) -> Plan:
        def plan_of(place: int) -> Plan:
            of_one = mechanisms[place].plan
            return Plan() if of_one is None else of_one(states[place], context)

        plans = [jax.eval_shape(functools.partial(plan_of, place)) for place in places]
        if not jax.tree.leaves([one._replace(frozen=None) for one in plans]):
            return Plan()

        def fill(place: int) -> Plan:
            participants, start, factors, _ = plan_of(place)
            if factors is not None:
                raise ValueError(
                    "`mechanisms` that act in turn must not plan `factors`, got "
                    f"{mechanisms[place].name!r}."
                )
            everybody = jnp.ones(len(context.shard_sizes), bool)
            return Plan(
                everybody if participants is None else participants,
                context.agents if start is None else start,
            )

        acting = lax.switch(number, [functools.partial(fill, place) for place in places])
        return acting._replace(frozen=False)

    return Mechanism(init, update, plan)
