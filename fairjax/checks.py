"""Errors that teach: every check names the argument, the rule and the value.

Only known values are checked. A value that is being traced by `jit`, `vmap` or
`grad` passes, and the function that takes it documents what happens then.
"""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
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


def count(name: str, value: Any, least: int = 1) -> None:
    """Raises unless `value` is a whole number not below `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")


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
    if not isinstance(value, str) or value not in names:
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown {name} {value!r:.100}.{hint} Known: {', '.join(names)}.")


def numbers(name: str, value: Any, rule: str, num_axes: int | None = None) -> np.ndarray:
    """Returns a known `value` as an array of real numbers, or raises: it must hold `rule`."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # of unequal lengths, or traced
        array = np.empty((), object)
    real = array.dtype.kind in "biuf" or jax.numpy.issubdtype(array.dtype, np.floating)
    if not real or (num_axes is not None and array.ndim != num_axes):
        raise ValueError(f"`{name}` must hold {rule}, got {name}={value!r:.100}.")
    return array


def function(name: str, value: Any, what: str) -> None:
    """Raises unless `value` can be called."""
    if not callable(value):
        raise ValueError(f"`{name}` must be a function, {what}, got {name}={value!r:.100}.")


def path(name: str, value: Any) -> Path:
    """Returns `value` as a path, or raises where it is none."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError(
            f"`{name}` must be a path such as 'runs/first', got {name}={value!r:.100}."
        )
    return Path(value)


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
