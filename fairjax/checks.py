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

# The most that a count may be, by name; others may be what compiled counters, int32, hold.
MOST = {
    "seed": 2**32 - 1,  # JAX's keys repeat after that
    "num_agents": 10**6,
    "samples_per_agent": 10**7,
    "rounds": 10**6,
    "num_rounds": 10**6,
    "num_devices": 256,
}


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
    """Raises unless `value` is a whole number from `least` to `most`; None: what `MOST` says."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"`{name}` must be a whole number of at least {least}, got {shown(value)}."
        )
    most = MOST.get(name, 2**31 - 1) if most is None else most
    if value > most:
        raise ValueError(f"`{name}` must be at most {most:,}, got {name}={shown(value)}.")


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
        hint = suggestion(value, names)
        raise ValueError(f"Unknown {name} {shown(value)}.{hint} Known: {', '.join(names)}.")


def kind(name: str, value: Any, wanted: type, made_by: str) -> None:
    """Raises unless `value` is of a type; the message says what makes one."""
    if not isinstance(value, wanted):
        article = "an" if wanted.__name__[0] in "AEIO" else "a"
        raise ValueError(
            f"`{name}` must be {article} {wanted.__name__}, as {made_by} makes one, "
            f"got {shown(value)}."
        )


def _number(name: str, value: Any, holds: Any, rule: str) -> None:
    # numpy would complain of ragged lists in its own words.
    number = np.asarray(value if np.isscalar(value) or hasattr(value, "dtype") else None)
    is_real = number.ndim == 0 and number.dtype.kind in "iuf"
    if not is_real or not np.isfinite(number) or not holds(number):
        raise ValueError(f"`{name}` must be a finite number {rule}, got {name}={shown(value)}.")


def path(name: str, value: Any) -> Path:
    """Returns a path, or raises where `value` is not one, or one that no file system takes."""
    is_path = isinstance(value, str | os.PathLike) and "\0" not in str(value)
    if not is_path or max(map(len, Path(value).parts), default=0) > 255:
        raise ValueError(f"`{name}` must be a path, got {shown(value)}.")
    return Path(value)


def text(name: str, value: Any) -> None:
    """Raises unless `value` is a text."""
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text, got {shown(value)}.")


def flag(name: str, value: Any) -> None:
    """Raises unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False, got {shown(value)}.")


def function(name: str, value: Any) -> None:
    """Raises unless `value` is a function or None."""
    if value is not None and not callable(value):
        raise ValueError(f"`{name}` must be a function or None, got {shown(value)}.")


def suggestion(value: Any, names: Iterable[str]) -> str:
    """Returns a question with the name nearest to `value`, or nothing where none is near."""
    near = difflib.get_close_matches(value if isinstance(value, str) else "", names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def shown(value: Any) -> str:
    """Returns a value as messages show it: on one line, and cut where it is long.

    Examples:
      >>> shown(np.eye(2))
      'array([[1., 0.], [0., 1.]])'
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
