"""Each: numbers that may differ between agents.

one      3              of every agent
each     (5, 3, 3)      of agents 0, 1 and 2, as `[N]`
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fairjax import checks
from fairjax.types import Scalar


def checked(name: str, value: Any, check: Callable[[str, Any], object]) -> Any:
    """Returns a number, or a tuple of the numbers `[N]` of agents; raises if `check` does."""
    if isinstance(value, Mapping):
        raise ValueError(
            f"`{name}` must be one number, or one for each agent [N], got {checks.shown(value)}: "
            "only `fairjax.Experiment` takes those of some agents."
        )
    if not checks.is_listing(value):
        check(name, value)
        return value
    numbers = checks.numbers(name, value, "one number, or one for each agent", num_axes=1)
    if not len(numbers):
        raise ValueError(f"`{name}` must hold a number for each agent, got none.")
    for agent, number in enumerate(numbers.tolist()):
        check(f"{name}[{agent}]", number)
    return tuple(numbers.tolist())


def of_agent(value: Any, agent: Scalar) -> Any:
    """Returns the number of an agent, whose place may be traced.

    Examples:
      >>> print(of_agent(3, 1), of_agent((5, 4, 4), 1))
      3 4
    """
    return value if np.ndim(value) == 0 else jnp.asarray(value)[agent]


def check_fit(num_agents: int, **values: Any) -> None:
    """Raises unless every value is one number, or one for each of N agents."""
    for name, value in values.items():
        if np.shape(value) not in ((), (num_agents,)):
            raise ValueError(
                f"`{name}` must be one number, or one for each of the {num_agents} agents, "
                f"got {len(value)}."
            )
