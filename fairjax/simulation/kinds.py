"""Kinds: what a dishonest behaviour does, and how strong it may be. One function, one entry.

`dishonest_data` and `dishonest_uploads` hold the functions; the first line of a docstring is what
people read of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fairjax.tables import first_line

RATE = 1.0  # the most that a share may be
ANY = 3.4e38  # the most that float32 holds


class Kind(NamedTuple):
    """One dishonest behaviour."""

    change: Callable[..., Any]
    strength: float  # by default
    most: float  # that the strength may be; 0: there is none

    @property
    def words(self) -> str:
        """What an agent does, as the docstring says first."""
        said = first_line(self.change)
        return said[0].lower() + said[1:]


def register(
    kinds: dict[str, Kind], strength: float = 0.0, most: float = 0.0
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds a function to a registry, under its name."""

    def add(change: Callable[..., Any]) -> Callable[..., Any]:
        kinds[change.__name__] = Kind(change, strength, most)
        return change

    return add
