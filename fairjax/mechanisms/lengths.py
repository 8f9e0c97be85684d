"""Lengths that mechanisms rescale uploads to: Gamma, a number or a schedule over the run.

    constant    a number
    schedule    a function of the round, such as an optax schedule
    "cosine"    Gamma_t = Gamma_T + (Gamma_0 - Gamma_T) (1 + cos(pi t / T)) / 2

A step of fixed length never settles; see `fairjax.experiments.presets`.
"""

from collections.abc import Callable

import jax.numpy as jnp

from fairjax import checks
from fairjax.mechanisms.base import Context
from fairjax.types import Scalar

GAMMA = 0.5  # the length of uploads on MNIST in the paper
Length = Scalar | Callable[[Scalar], Scalar] | str  # of uploads; see `length_at`


def check_length(name: str, length: Length) -> None:
    """Raises unless a length is above 0, a function of the round, or the name of a shape."""
    if isinstance(length, str):
        _ends_of_cosine(name, length)
    elif not callable(length):
        checks.above(name, length, 0)


def length_at(length: Length, context: Context) -> Scalar:
    """Returns the length of uploads in the context's round.

    Args:
      length: a number; a function of the round, such as an optax schedule; or "cosine",
        "cosine:START" or "cosine:START:END", half a cosine over the run from its start (`GAMMA`,
        or the number) to its end (0, or the number).
        Where the number of rounds is not known it stays at its start.
      context: of the round.
    """
    if callable(length):
        return length(context.round)
    if not isinstance(length, str):
        return length
    played = context.round / jnp.maximum(context.num_rounds, 1)
    played = jnp.where(jnp.asarray(context.num_rounds) > 0, jnp.minimum(played, 1), 0)
    start, end = _ends_of_cosine("gamma", length)
    return end + (start - end) * (1 + jnp.cos(jnp.pi * played)) / 2


def _ends_of_cosine(name: str, text: str) -> tuple[float, float]:
    """Returns where a cosine starts and ends, or says what is wrong with its name."""
    shape, *given = text.split(":")
    try:
        start, end = [*map(float, given), *(GAMMA, 0.0)[len(given) :]]
    except ValueError:  # no numbers, or more than two
        start, end = -1.0, -1.0
    if shape != "cosine" or not (start > 0 and end >= 0):
        raise ValueError(
            f'`{name}` must be a number above 0, a function of the round, "cosine", "cosine:START" '
            f'or "cosine:START:END" with START above 0 and END at least 0, got {name}={text!r}.'
        )
    checks.above(name, start, 0)
    checks.at_least(name, end, 0)
    return start, end
