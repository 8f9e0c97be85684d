"""Kinds: registries of dishonest behaviours. Each entry has a function and a range of strengths.

`dishonest_data` and `dishonest_uploads` hold the functions. `fairjax list` shows the first line
of their docstrings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fairjax.checks import GREATEST
from fairjax.tables import first_line

RATE = 1.0  # the largest rate
ANY = GREATEST


class Kind(NamedTuple):
    """One dishonest behaviour."""

    change: Callable[..., Any]
    strength: float  # the default strength
    most: float  # the largest strength; 0: the behaviour takes no strength

    @property
    def words(self) -> str:
        """What an agent does: the first line of the docstring."""
        line = first_line(self.change)
        return line[0].lower() + line[1:]


def register(
    kinds: dict[str, Kind], strength: float = 0.0, most: float = 0.0
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that adds a function to a registry, under its name."""

    def add(change: Callable[..., Any]) -> Callable[..., Any]:
        kinds[change.__name__] = Kind(change, strength, most)
        return change

    return add
