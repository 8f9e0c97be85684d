"""Fields: how a field of a description is declared, checked, stored and shown.

describe_field   default, group, check, help     ->  a field
plain            numpy numbers, mappings, lists  ->  hashable values that JSON can hold
different        values of one field             ->  a tuple, if all differ
written          fields by name                  ->  Python source
"""

import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks

Class = TypeVar("Class")
LINE = 88  # characters of a line of Python source
MOST_VALUES = 10_000  # the longest list that an argument may be


def require_names(kind: type[Class]) -> type[Class]:
    """Makes a dataclass refuse positional values, and suggest a field for an unknown name.

    Examples:
      >>> @require_names
      ... @dataclasses.dataclass(kw_only=True)
      ... class Point:
      ...     left: int = 0
      >>> Point(lft=1)
      Traceback (most recent call last):
      ValueError: Unknown field 'lft'. Did you mean 'left'? Known: left.
    """
    fields: Any = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    names, made = [field.name for field in fields], kind.__init__

    @functools.wraps(made)
    def init(self: Any, *values: Any, **given: Any) -> None:
        if values:
            raise ValueError(
                f"`{kind.__name__}` must be given its fields by name, as {names[0]}=..., "
                f"got {checks.shown(values[0])}."
            )
        for name in given:
            checks.choice("field", name, names)
        made(self, **given)

    kind.__init__ = init
    return kind


def describe_field(
    default: Any, group: str, check: Callable[[str, Any], object] | None, words: str, **more: Any
) -> Any:
    """Returns a dataclass field with a group, a check and help text.

    Args:
      default: the default; if it is None, the field may be None.
      group: the title under which `--help` lists the flag.
      check: check(name, value) raises if a value is not allowed; None: it is checked elsewhere.
      words: the help text. The part after "; None: " says what None means.
      **more: as of `dataclasses.field`.
    """
    return dataclasses.field(
        default=default, metadata={"group": group, "check": check, "words": words}, **more
    )


def document_fields(kind: type[Class]) -> type[Class]:
    """Replaces the line "Attributes: ..." of a docstring by the help texts of the fields."""
    lines = ["Attributes:"]
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        text = f"{field.name}: {field.metadata['words']}"
        lines += textwrap.wrap(text, 92, initial_indent="  ", subsequent_indent="    ")
    # From Python 3.13 on, docstrings have no indentation.
    kind.__doc__ = re.sub("Attributes: .*", "\n".join(lines), inspect.cleandoc(f"{kind.__doc__}"))
    return kind


def one_of(names: Iterable[str]) -> Callable[[str, Any], object]:
    """Returns a check that a field is one of some names; its attribute `names` lists them."""

    def check(name: str, value: Any) -> None:
        checks.choice(name, value, names)

    check.names = tuple(names)  # pyright: ignore[reportFunctionMemberAccess]
    return check


def of_kind(kind: type, made_by: str) -> Callable[[str, Any], object]:
    """Returns a check that a field is an object of a kind, which `made_by` makes."""
    return lambda name, value: checks.kind(name, value, kind, made_by)


def arrays(name: str, value: Any) -> None:
    """Raises unless a field is a pytree of arrays of floating numbers."""
    leaves = jax.tree.leaves(getattr(value, "value", value))
    if not leaves or not all(
        isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        for leaf in leaves
    ):
        raise ValueError(
            f"`{name}` must be a pytree of arrays of floating numbers, got {checks.shown(value)}."
        )


def positive(name: str, value: Any) -> None:
    """Raises unless a field is above 0."""
    checks.above(name, value, 0)


def rate(name: str, value: Any) -> None:
    """Raises unless a value is a number above 0; a schedule belongs to the optimizer."""
    if callable(value):
        hint = 'Schedules go to `optimizer`: optax.sgd(schedule), schedule_counts="rounds".'
        raise ValueError(f"`{name}` must be a number, got {checks.shown(value)}. {hint}")
    positive(name, value)


def memory(name: str, value: Any) -> None:
    """Raises unless a field is in [0, 1]."""
    checks.between(name, value, 0, 1)


def each(check: Callable[[str, Any], object]) -> Callable[[str, Any], object]:
    """Returns a check of one number, or of those of all agents, of which None is left open."""

    def check_each(name: str, value: Any) -> None:
        if not isinstance(value, tuple):
            check(name, value)
            return
        for agent, number in enumerate(value):
            if number is not None:
                check(f"{name}[{agent}]", number)

    return check_each


def of_agents(name: str, value: Any, num_agents: int) -> Any:
    """Returns one number, or a tuple of those of N agents, None where a mapping names no number.

    Raises:
      ValueError: there are not N numbers, or the mapping names something else than agents.

    Examples:
      >>> of_agents("local_epochs", {1: 5}, 3), of_agents("local_epochs", [1, 2, 3], 3)
      ((None, 5, None), (1, 2, 3))
    """
    if isinstance(value, Mapping):
        for agent in value:
            is_number = isinstance(agent, int | np.integer) and not isinstance(agent, bool)
            if not is_number or not 0 <= agent < num_agents:
                raise ValueError(
                    f"`{name}` must name agents 0 to {num_agents - 1}, got {checks.shown(agent)}."
                )
        return tuple(plain(value.get(agent)) for agent in range(num_agents))
    if not checks.is_listing(value):
        return value
    numbers = plain(list(value))
    if len(numbers) != num_agents:
        raise ValueError(
            f"`{name}` must be one number, one for each of the {num_agents} agents, or a mapping "
            f"from agents to theirs, got {len(numbers)} numbers."
        )
    return numbers


def seed(name: str, value: Any) -> None:
    """Raises unless a field is a whole number that is not negative."""
    checks.count(name, value, least=0)


def plain(value: Any) -> Any:
    """Returns a value with numpy numbers, lists and mappings as hashable Python values.

    Examples:
      >>> plain({"second": np.float32(0.5), "first": [1, 2]})
      (('first', (1, 2)), ('second', 0.5))
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        is_number = isinstance(value.dtype, np.dtype) and checks.is_known(value)  # else: a key
        return value.item() if np.ndim(value) == 0 and is_number else value
    if isinstance(value, Mapping):
        pairs = sorted(value.items(), key=lambda pair: str(pair[0]))
        return tuple((name, plain(entry)) for name, entry in pairs)
    is_listed = isinstance(value, tuple | list) and not hasattr(value, "_fields")
    return tuple(map(plain, value)) if is_listed else value


def pairs(name: str, given: Any) -> tuple[tuple[str, Any], ...]:
    """Returns a mapping as hashable pairs, in the order of their names.

    Raises:
      ValueError: the field is no mapping of names to values that JSON can hold, or a name occurs
        twice.

    Examples:
      >>> pairs("options", {"mask": "leaf", "contribution": "shapley"})
      (('contribution', 'shapley'), ('mask', 'leaf'))
    """
    found = plain(given)
    if not isinstance(found, tuple) or not all(map(_is_pair, found)):
        raise ValueError(
            f"`{name}` must be a mapping of names to values, got {checks.shown(given)}."
        )
    names = [key for key, _ in found]
    for key, value in found:
        if names.count(key) > 1:
            raise ValueError(f"`{name}` must hold every name once, got {key!r} twice.")
        if not _is_plain(value):
            raise ValueError(
                f"`{name}` must hold numbers, texts and sequences of them, "
                f"got {key}={checks.shown(value)}."
            )
    return tuple(sorted(found))


def different(name: str, given: Any, kind: str, check: Callable[[Any], object]) -> tuple[Any, ...]:
    """Returns a list of values as a tuple; raises unless all differ and pass a check.

    Args:
      name: name of the argument, for messages.
      given: a list, a range, an array, a generator or another iterable.
      kind: noun for the listed values, for messages; for example "values".
      check: called with each value; raises if it is wrong.

    Examples:
      >>> different("seeds", range(3), "values", lambda seed: checks.count("seed", seed, least=0))
      (0, 1, 2)
    """
    many = checks.is_listing(given)
    values = tuple(itertools.islice(given, MOST_VALUES + 1)) if many else ()
    if len(values) > MOST_VALUES:
        raise ValueError(f"`{name}` must be at most {MOST_VALUES:,} {kind}, got more.")
    for value in values:
        check(value)
    values = plain(values)
    if not values or len(set(values)) < len(values):
        shown = checks.shown(list(values) if many else given)
        raise ValueError(f"`{name}` must be different {kind}, a list of at least one, got {shown}.")
    return values


def different_seeds(given: Any) -> tuple[int, ...]:
    """Returns a list of seeds as a tuple; raises unless all differ and are not negative."""
    return different("seeds", given, "values", lambda value: seed("seed", value))


class Written(str):
    """A text that `written` shows without quotes."""

    __repr__ = str.__str__


def written(kind: str, fields: Mapping[str, Any]) -> str:
    """Returns Python source of an object: one line if it fits, else one line per field.

    Examples:
      >>> print(written("Experiment", {"seed": 3, "options": {"mask": "leaf"}}))
      Experiment(seed=3, options={'mask': 'leaf'})
    """
    pieces = [f"{name}={value!r}" for name, value in fields.items()]
    line = f"{kind}({', '.join(pieces)})"
    if len(line) <= LINE:
        return line
    return "\n".join([f"{kind}(", *(f"    {piece}," for piece in pieces), ")"])


def table(name: str, schedule: Callable[[Any], Any], num_rounds: int) -> tuple[float, ...]:
    """Returns the value of a schedule in each round; raises if it is no schedule."""
    try:
        return tuple(float(schedule(round)) for round in range(num_rounds))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a number, or a function of the round that returns one, got "
            f"{checks.shown(schedule)}, which fails: {error}."
        ) from error


def entry(table: tuple[float, ...], round: Any) -> Any:
    """Returns a schedule's value in a round; later rounds have the last value."""
    return jnp.asarray(table)[jnp.minimum(round, len(table) - 1)]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
