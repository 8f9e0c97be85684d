"""Lengths to which mechanisms rescale uploads: Gamma, a number or a schedule over the run.

    constant    a number
    schedule    a function of the round, such as an optax schedule
    "cosine"    Gamma_t = Gamma_T + (Gamma_0 - Gamma_T) (1 + cos(pi t / T)) / 2
    "median"    the median length of the round's uploads

With uploads of fixed length a model never settles. The median follows the scale of what agents
train, and shrinks with their learning rate.
"""

from collections.abc import Callable

import jax.numpy as jnp

from fairjax import checks, trees
from fairjax.mechanisms.base import Context
from fairjax.types import PerAgent, Scalar, Stacked

GAMMA = 0.5  # the length of uploads on MNIST in the paper
Length = Scalar | Callable[[Scalar], Scalar] | str  # see `length_at`


def check_length(name: str, length: Length) -> None:
    """Raises unless a length is a number above 0, a function, a cosine or the median."""
    if isinstance(length, str):
        if length != "median":
            _parse_cosine(name, length)
    elif not callable(length):
        checks.above(name, length, 0)


def length_at(length: Length, context: Context, updates: Stacked | None = None) -> Scalar:
    """Returns the length of uploads in the context's round.

    Args:
      length: a number; a function of the round, such as an optax schedule; "cosine",
        "cosine:START" or "cosine:START:END", half a cosine over the run from its start (`GAMMA`,
        or the number) to its end (0, or the number); or "median", of the lengths of uploads that
        are not zero. If the number of rounds is unknown, a cosine stays at its start.
      context: the round's context.
      updates: the round's uploads, leaves `[N, ...]`; needed for the median only.

    Raises:
      ValueError: the length is the median of updates that are not given.
    """
    if callable(length):
        return length(context.round)
    if not isinstance(length, str):
        return length
    if length == "median":
        if updates is None:
            raise ValueError('`updates` must be the uploads for the length "median", got None.')
        return median_length(upload_lengths(updates))
    played = context.round / jnp.maximum(context.num_rounds, 1)
    played = jnp.where(jnp.asarray(context.num_rounds) > 0, jnp.minimum(played, 1), 0)
    start, end = _parse_cosine("gamma", length)
    return end + (start - end) * (1 + jnp.cos(jnp.pi * played)) / 2


def upload_lengths(updates: Stacked) -> PerAgent:
    """Returns the lengths `[N]` of uploads, at most a quarter of the largest number."""
    lengths = trees.in_safe_units(lambda rows, units, norms: units * norms, updates)
    return jnp.minimum(lengths, jnp.finfo(lengths.dtype).max / 4)


def median_length(lengths: PerAgent) -> Scalar:
    """Returns the median of the lengths `[N]` that are not zero; 0 if all are."""
    median = jnp.nanmedian(jnp.where(lengths > 0, lengths, jnp.nan))
    return jnp.where(jnp.isnan(median), 0, median)


def _parse_cosine(name: str, text: str) -> tuple[float, float]:
    """Returns the start and end of a cosine, or raises if `text` does not name one."""
    shape, *given = text.split(":")
    try:
        start, end = [*map(float, given), *(GAMMA, 0.0)[len(given) :]]
    except ValueError:  # no numbers, or more than two
        start, end = -1.0, -1.0
    if shape != "cosine" or not (start > 0 and end >= 0):
        raise ValueError(
            f'`{name}` must be a number above 0, a function of the round, "median", "cosine", '
            f'"cosine:START" or "cosine:START:END" with START above 0 and END at least 0, '
            f"got {name}={text!r}."
        )
    checks.above(name, start, 0)
    checks.at_least(name, end, 0)
    return start, end
