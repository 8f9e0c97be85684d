"""Errors that teach: every check names the argument, the rule and the value.

Only known values are checked. A value that is being traced by `jit`, `vmap` or
`grad` passes, and the function that takes it documents what happens then.
"""

import difflib
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import numpy as np


def is_known(value: Any) -> bool:
    """Says whether `value` has a concrete value, that is, is not being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def above(name: str, value: Any, bound: float) -> None:
    """Raises unless `value` is a finite number above `bound`, or is traced."""
    if is_known(value):
        _number(name, value, lambda x: x > bound, f"above {bound}")


def between(name: str, value: Any, low: float, high: float) -> None:
    """Raises unless `value` is a number in [low, high], or is traced."""
    if is_known(value):
        _number(name, value, lambda x: low <= x <= high, f"in [{low}, {high}]")


def at_least(name: str, value: Any, bound: float) -> None:
    """Raises unless `value` is a finite number not below `bound`, or is traced."""
    if is_known(value):
        _number(name, value, lambda x: x >= bound, f"at least {bound}")


def count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises unless `value` is a whole number not below `least`, and not above `most`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most:,}"
        raise ValueError(
            f"`{name}` must be a whole number of at least {least}{limit}, got {value!r:.100}."
        )


def finite(name: str, value: Any) -> None:
    """Raises where a known array or pytree holds NaN or infinity, and says how many."""
    for leaf in jax.tree.leaves(value):
        if is_known(leaf):
            broken = int(np.sum(~np.isfinite(np.asarray(leaf, dtype=np.float64))))
            if broken:
                raise ValueError(
                    f"`{name}` must be finite, got {broken} entries that are NaN or infinite "
                    f"in an array of shape {np.shape(leaf)}."
                )


def shape(name: str, value: Any, expected: tuple[int, ...]) -> None:
    """Raises unless the shape of `value` is `expected`."""
    if np.shape(value) != expected:
        raise ValueError(f"`{name}` must have shape {expected}, got shape {np.shape(value)}.")


def choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raises unless `value` is one of the `known` names; suggests the nearest one."""
    names = sorted(known)
    if value not in names:
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown {name} {value!r}.{hint} Known: {', '.join(names)}.")


def kind(name: str, value: Any, wanted: type, made_by: str) -> None:
    """Raises unless `value` is of a type; the message says what makes one."""
    if not isinstance(value, wanted):
        raise ValueError(
            f"`{name}` must be a {wanted.__name__}, as {made_by} makes one, got {value!r:.100}."
        )


def _number(name: str, value: Any, holds: Any, rule: str) -> None:
    number = np.asarray(value)
    is_real = number.ndim == 0 and number.dtype.kind in "iuf"
    if not is_real or not np.isfinite(number) or not holds(number):
        raise ValueError(f"`{name}` must be a finite number {rule}, got {name}={value!r}.")
