"""Fields: what all fields of a description have in common.

described  a default, a group, a rule and words  ->  a field; flags, checks and help read them

given    numbers of numpy, mappings, lists  ->  plain values: hashable, and JSON can hold them
listed   values of one field                ->  a tuple, if all differ
written  fields by name                     ->  Python, on one line where they fit
"""

import dataclasses
import functools
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import checks

Described = TypeVar("Described")
LINE = 88  # characters of a line of Python
MOST_VALUES = 10_000  # that an argument lists


def by_name(described: type[Described]) -> type[Described]:
    """Has a dataclass say which field is meant where a name is wrong.

    Examples:
      >>> @by_name
      ... @dataclasses.dataclass(kw_only=True)
      ... class Point:
      ...     left: int = 0
      >>> Point(lft=1)
      Traceback (most recent call last):
      ValueError: Unknown field 'lft'. Did you mean 'left'? Known: left.
    """
    fields: Any = dataclasses.fields(described)  # pyright: ignore[reportArgumentType]
    names, made = [field.name for field in fields], described.__init__

    @functools.wraps(made)
    def init(self: Any, *values: Any, **given: Any) -> None:
        if values:
            raise ValueError(
                f"`{described.__name__}` must be given its fields by name, as {names[0]}=..., "
                f"got {checks.shown(values[0])}."
            )
        for name in given:
            checks.choice("field", name, names)
        made(self, **given)

    described.__init__ = init
    return described


def described(
    default: Any, group: str, check: Callable[[str, Any], object] | None, words: str
) -> Any:
    """Returns a dataclass field that knows all that is said of it, and in what group.

    Args:
      default: its default; where that is None, None is allowed and means what `words` say.
      group: of flags.
      check: raises, with the field's name and value, where a value breaks its rule; None: what
        holds it together with other fields is checked elsewhere.
      words: its help, up to "; None: ", and after it what None means.
    """
    return dataclasses.field(
        default=default, metadata={"group": group, "check": check, "words": words}
    )


def documented(described: type[Described]) -> type[Described]:
    """Puts what fields say of themselves into the docstring, at its line "Attributes: ..."."""
    lines = ["Attributes:"]
    for field in dataclasses.fields(described):  # pyright: ignore[reportArgumentType]
        text = f"{field.name}: {field.metadata['words']}"
        lines += textwrap.wrap(text, 96, initial_indent=" " * 6, subsequent_indent=" " * 8)
    described.__doc__ = re.sub("Attributes: .*", "\n".join(lines), str(described.__doc__))
    return described


def one_of(names: Iterable[str]) -> Callable[[str, Any], object]:
    """Returns the check of a field that is one of some names; `names` of it are those."""

    def check(name: str, value: Any) -> None:
        checks.choice(name, value, names)

    check.names = tuple(names)  # pyright: ignore[reportFunctionMemberAccess]
    return check


def of_kind(kind: type, made_by: str) -> Callable[[str, Any], object]:
    """Returns the check of a field that is an object of a kind; `made_by` makes such a one."""
    return lambda name, value: checks.kind(name, value, kind, made_by)


def positive(name: str, value: Any) -> None:
    """Raises unless a field is above 0."""
    checks.above(name, value, 0)


def share(name: str, value: Any) -> None:
    """Raises unless a field is in [0, 1]."""
    checks.between(name, value, 0, 1)


def factor(name: str, value: Any) -> None:
    """Raises unless a field is in (0, 1]."""
    checks.above(name, value, 0)
    checks.between(name, value, 0, 1)


def not_negative(name: str, value: Any) -> None:
    """Raises unless a field is a whole number that is not negative."""
    checks.count(name, value, least=0)


def plain(value: Any) -> Any:
    """Returns a field as a hashable Python value: numbers of numpy and mappings are converted.

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
    """Returns a field that is a mapping as pairs in the order of their names, which are hashable.

    Raises:
      ValueError: it is no mapping of names to what JSON can hold, or has a name twice.

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
    """Returns what an argument lists as a tuple; raises unless all differ and pass a check.

    Args:
      name: of the argument.
      given: a list, a range, an array, a generator or another iterable.
      kind: what it lists, "values" for example.
      check: raises where one of them is wrong.

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


class Written(str):
    """A text that `written` shows without quotes."""

    __repr__ = str.__str__


def written(kind: str, fields: Mapping[str, Any]) -> str:
    """Returns an object as Python writes it, a field per line where one is too short.

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
    """Returns what a schedule gives in each round, or says that it is no schedule."""
    try:
        return tuple(float(schedule(round)) for round in range(num_rounds))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a number, or a function of the round that returns one, got "
            f"{checks.shown(schedule)}, which fails: {error}."
        ) from error


def entry(table: tuple[float, ...], round: Any) -> Any:
    """Returns a schedule's value in a round; after the last one, the last."""
    return jnp.asarray(table)[jnp.minimum(round, len(table) - 1)]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
