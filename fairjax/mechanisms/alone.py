"""Alone: what agents reach without the others, for mechanisms that pay by it.

"held_out"  their accuracy on held-out data at the end of a run of as many rounds
"test"      the same on the test data, an oracle
numbers     [N], what somebody measured
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from fairjax import checks
from fairjax.types import PerAgent

WORDS = ("held_out", "test")
Performance = str | PerAgent  # see the module's first lines
Measure = Callable[[str], PerAgent] | None  # what a mechanism's `init` is given


def check_performance(performance: Any, words: tuple[str, ...] = WORDS) -> Any:
    """Returns a word as it is, and numbers `[N]` as float64; raises if it is neither."""
    if isinstance(performance, str):
        checks.choice("performance", performance, words)
        return performance
    rule = "a number per agent [N], finite, not negative and not all zero"
    known = checks.numbers("performance", performance, rule, num_axes=1).astype(np.float64)
    if not np.isfinite(known).all() or (known < 0).any() or not known.any():
        raise ValueError(f"`performance` must hold {rule}, got {performance!r:.100}.")
    return known


def performance_of(performance: Any, num_agents: int, measure: Measure) -> PerAgent:
    """Returns `[N]` what agents reach alone; who has no defined metric counts as the worst."""
    if isinstance(performance, str):
        if measure is None:
            raise ValueError(
                f"`performance` must be numbers [N], got {performance!r}, where nobody measures "
                "what agents reach alone."
            )
        found = measure(performance)
        known = jnp.isfinite(found)
        worst = jnp.where(known.any(), jnp.where(known, found, jnp.inf).min(), 0)
        return jnp.where(known, found, worst)
    checks.shape("performance", performance, (num_agents,))
    if performance.max() > np.finfo(np.float32).max:
        raise ValueError(f"`performance` must fit into float32, got {performance!r:.100}.")
    return jnp.asarray(performance, jnp.float32)
