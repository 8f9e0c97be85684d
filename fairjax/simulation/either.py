"""Either: one program that plays the rounds of a federation, or those of its agents alone.

Both train and evaluate in the same way, which is most of a program; compiling it twice would take
half of the time of a short run. A long run gains nothing: its agents' rewards, N D numbers, then
exist on their own, which a program of the federation's rounds alone avoids.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from fairjax import trees
from fairjax.mechanisms import standalone, switched
from fairjax.simulation.federations import Federation
from fairjax.simulation.states import State
from fairjax.types import Scalar

SMALL = 2**24  # parameters of all agents


def federation_of(federation: Federation, alone: Scalar) -> Federation:
    """Returns the federation that plays its own mechanism, or `standalone` if `alone` is true.

    Its mechanism's state is that of the federation's mechanism, and that of `standalone`.
    """
    both = switched(jnp.asarray(alone, jnp.int32), [federation.mechanism, standalone()])
    return dataclasses.replace(federation, mechanism=both)


def fits(federation: Federation, within: Federation, state: State) -> bool:
    """Says whether a federation can play its rounds by the program that `within` has.

    Agents alone are honest and train their own parameters, and no server takes a step; only a
    federation that is alike in this shares the program.
    """
    one_model = within.mechanism.pays_one_model and within.participation is None
    return (
        trees.num_parameters(state.agents) <= SMALL
        and (one_model or within.mechanism.plan is None)
        and within.mechanism.name != standalone.__name__
        and within.training.ranked is None
        and not within.behaviours
        and within.server_optimizer is None
        and within.mesh is None
        and (
            federation is within
            or federation == dataclasses.replace(within, mechanism=standalone())
        )
    )


def first_of_mechanism(federation: Federation, state: State) -> Any:
    """Returns a first state of the federation's mechanism, for the rounds of its agents alone."""
    unknown = jnp.zeros(trees.num_agents(state.agents))
    return federation.first_of_mechanism(state, lambda on: unknown)
