"""Errors that teach: every check names the argument, the rule and the value.

Only known values are checked. A value that is being traced by `jit`, `vmap` or
`grad` passes, and the function that takes it documents what happens then.
"""

import contextlib
import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.core
import numpy as np

LEAST, GREATEST = 1.2e-38, 3.4e38  # bounds of the positive normal numbers of float32
# Upper bounds of counts by name. The default bound is that of int32, for compiled counters.
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


def above(name: str, value: Any, bound: float, *, vanishing: bool = False) -> None:
    """Raises unless `value` is a number above `bound` that float32 holds, or is traced.

    Args:
      name: the argument's name.
      value: a number.
      bound: the bound that it must exceed.
      vanishing: whether it may be so small that float32 treats it as 0.
    """
    _number(name, value, lambda x: x > bound, f"above {bound}")
    if is_known(value) and not bound and not vanishing and float(value) < LEAST:
        raise ValueError(
            f"`{name}` must be at least {LEAST}, since float32 treats less as 0, "
            f"got {name}={value!r}."
        )


def share(name: str, value: Any) -> None:
    """Raises unless `value` is a number in (0, 1] that float32 can hold, or is traced."""
    _number(name, value, lambda x: 0 < x <= 1, "in (0, 1]")
    above(name, value, 0)


def between(name: str, value: Any, low: float, high: float) -> None:
    """Raises unless `value` is a number in [low, high], or is traced."""
    _number(name, value, lambda x: low <= x <= high, f"in [{low}, {high}]")


def at_least(name: str, value: Any, bound: float) -> None:
    """Raises unless `value` is a number not below `bound` that float32 holds, or is traced."""
    _number(name, value, lambda x: x >= bound, f"at least {bound}")


def count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises unless `value` is a whole number from `least` to `most`; None: as in `MOST`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"`{name}` must be a whole number of at least {least}, got {shown(value)}."
        )
    most = MOST.get(name, 2**31 - 1) if most is None else most
    if value > most:
        raise ValueError(f"`{name}` must be at most {most:,}, got {name}={shown(value)}.")


def key(name: str, value: Any) -> None:
    """Raises unless `value` is one PRNG key, from `jax.random.key` or the older `PRNGKey`."""
    is_array = isinstance(value, jax.Array | np.ndarray)
    is_new = is_array and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
    of_default = jax.random.key_data(jax.random.key(0)).shape
    is_old = is_array and value.dtype == "uint32" and value.shape == of_default
    if not is_old and not (is_new and value.shape == ()):
        got = f"an array of {value.shape}" if is_array else repr(value)[:100]
        raise ValueError(f"`{name}` must be one PRNG key such as jax.random.key(0), got {got}.")


def not_negative(name: str, value: Any) -> None:
    """Raises if a known array holds a negative number."""
    if is_known(value) and (np.asarray(value) < 0).any():
        raise ValueError(f"`{name}` must not be negative, got {name}={value!s:.200}.")


def rates(name: str, value: Any) -> None:
    """Raises unless `value` is a learning rate, or one for each agent `[N]`, or is traced."""
    if is_known(value):
        for rate in numbers(name, value, "one number, or one for each agent [N]").ravel():
            at_least(name, rate, 0)


def lengths(name: str, values: Any, num_rounds: int) -> None:
    """Raises unless `values` are one length per round, not negative and not all zero."""
    amounts(name, values, num_rounds, f"a length for each of {num_rounds} rounds")


def amounts(name: str, values: Any, num: int, what: str) -> np.ndarray:
    """Returns `[num]` finite numbers, not negative and not all zero, or raises; they are `what`."""
    rule = f"{what}, not negative and not all zero"
    array = numbers(name, values, rule, num_axes=1)
    if len(array) != num or not np.isfinite(array).all() or not array.any():
        raise ValueError(f"`{name}` must hold {rule}, got {shown(values)}.")
    not_negative(name, array)
    return array


def finite(name: str, value: Any) -> None:
    """Raises if a known array or pytree holds NaN or infinity, and says how many."""
    for leaf in jax.tree.leaves(value):
        if is_known(leaf):
            broken = int(np.sum(~np.isfinite(np.asarray(leaf, dtype=np.float64))))
            if broken:
                raise ValueError(
                    f"`{name}` must be finite, got {broken} entries that are NaN or infinite "
                    f"in an array of shape {np.shape(leaf)}."
                )


def is_listing(value: Any) -> bool:
    """Says whether `value` holds several values: a list, range, dense array or generator."""
    single = isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", 1) == 0
    return isinstance(value, Iterable) and not single and not hasattr(value, "toarray")


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


def new_name(name: str, value: Any, taken: Iterable[str]) -> None:
    """Raises unless `value` is a word of letters, digits and `_` that is not in `taken`."""
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError(
            f"`{name}` must be a word of letters, digits and _ that begins with no digit, "
            f"got {shown(value)}."
        )
    if value in taken:
        raise ValueError(f"`{name}` must be a new name, got {value!r}, which fairjax has itself.")


def numbers(name: str, value: Any, rule: str, num_axes: int | None = None) -> np.ndarray:
    """Returns a known `value` as an array of real numbers, or raises an error with `rule`."""
    array = np.empty((), object)
    # Lists of unequal lengths and traced values are no arrays, and NumPy would drop a mask.
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        array = array if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    real = array.dtype.kind in "biuf" or jax.numpy.issubdtype(array.dtype, np.floating)
    if not real or (num_axes is not None and array.ndim != num_axes):
        raise ValueError(f"`{name}` must hold {rule}, got {name}={shown(value)}.")
    return array


def function(name: str, value: Any, what: str, *, optional: bool = False) -> None:
    """Raises unless `value` can be called, or is optional and None."""
    if not callable(value) and not (optional and value is None):
        or_none = " or None" * optional
        raise ValueError(f"`{name}` must be a function{or_none}, {what}, got {shown(value)}.")


def takes(name: str, value: Callable[..., Any], given: Sequence[str]) -> None:
    """Raises unless a function takes the arguments `given`; passes if Python cannot tell."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # compiled functions
        return
    try:
        signature.bind(*given)
    except TypeError:
        wanted = f"{', '.join(given)}, in this order" if given else "no arguments"
        raise ValueError(
            f"`{name}` must take {wanted}, got a function that takes {signature}."
        ) from None


def kind(name: str, value: Any, wanted: type, made_by: str) -> None:
    """Raises unless `value` has the type `wanted`; the message says what makes one."""
    if not isinstance(value, wanted):
        article = "an" if wanted.__name__[0] in "AEIO" else "a"
        raise ValueError(
            f"`{name}` must be {article} {wanted.__name__}, as {made_by} makes one, "
            f"got {shown(value)}."
        )


def _number(name: str, value: Any, holds: Callable[[Any], bool], rule: str) -> None:
    """Raises unless `value` is a number for which `holds` is true, or is traced."""
    if not is_known(value):
        return
    # Do not pass lists to numpy, which raises its own error for ragged ones.
    known = np.isscalar(value) or hasattr(value, "dtype")
    known = known and not isinstance(value, np.ma.MaskedArray)
    try:
        number = np.asarray(value if known else None)
    except TypeError:  # JAX's random keys
        number = np.asarray(None)
    is_real = number.ndim == 0 and (
        jax.numpy.issubdtype(number.dtype, np.floating) or number.dtype.kind in "iu"
    )
    plain = float(number) if is_real else np.nan  # bounds overflow in float16
    if not np.isfinite(plain) or not holds(plain):
        raise ValueError(f"`{name}` must be a finite number {rule}, got {name}={shown(value)}.")
    if abs(plain) > GREATEST:
        raise ValueError(
            f"`{name}` must be at most {GREATEST}, what float32 holds, got {name}={shown(value)}."
        )


def path(name: str, value: Any) -> Path:
    """Returns a path, or raises if `value` is not one, or one that no file system accepts."""
    is_path = isinstance(value, str | os.PathLike) and "\0" not in str(value)
    if is_path and any("\ud800" <= char <= "\udfff" for char in str(value)):
        raise ValueError(f"`{name}` must be a path of Unicode characters, got {shown(value)}.")
    if not is_path or max(map(len, Path(value).parts), default=0) > 255:
        raise ValueError(f"`{name}` must be a path such as 'runs/first', got {shown(value)}.")
    return Path(value)


def text(name: str, value: Any) -> None:
    """Raises unless `value` is a text."""
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text, got {shown(value)}.")


def flag(name: str, value: Any) -> None:
    """Raises unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"`{name}` must be True or False, got {shown(value)}.")


def suggestion(value: Any, names: Iterable[str]) -> str:
    """Returns a question with the name nearest to `value`, or "" if no name is near."""
    near = difflib.get_close_matches(value if isinstance(value, str) else "", names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def shown(value: Any) -> str:
    """Returns a value as a text for messages: on one line, and cut if it is long.

    Examples:
      >>> shown(np.eye(2))
      'array([[1., 0.], [0., 1.]])'
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
