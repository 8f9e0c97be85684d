"""Tables: rows of results as CSV, for programs, and Markdown, for people."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

UNDEFINED = "undefined"  # the word for seeds without a value, unless another is given


class Spread(NamedTuple):
    """A mean over seeds, with its standard deviation.

    Seeds with an undefined value (nan) are left out of the mean, counted, and named by `word`.
    """

    mean: float  # nan where `num` is 0
    std: float  # of a sample: divided by num - 1; nan for fewer than two
    num: int  # number of seeds in the mean
    of: int  # number of all seeds
    undefined: int = 0  # number of seeds with an undefined value
    word: str = UNDEFINED  # what an undefined value means

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        used: Sequence[bool] | None = None,
        word: str = UNDEFINED,
    ) -> "Spread":
        """Returns the spread of one value per seed.

        Args:
          values: one per seed; nan where undefined.
          used: whether each seed may enter the mean; None: all may.
          word: what an undefined value means.

        Examples:
          >>> print(Spread.over([1.0, 2.0, 3.0]))
          2.000 ± 1.000
          >>> print(Spread.over([1.0, 3.0, float("nan")], word="all equal"))
          2.000 ± 1.414 (2 of 3; 1 all equal)
          >>> print(Spread.over([float("nan")] * 3, word="all equal"))
          all equal (3 of 3)
        """
        numbers = np.array(values, np.float64)
        defined = np.isfinite(numbers)
        chosen = numbers[defined if used is None else defined & np.array(used, bool)]
        mean = chosen.mean() if len(chosen) else np.nan
        std = chosen.std(ddof=1) if len(chosen) > 1 else np.nan
        undefined = int((~defined).sum())
        return cls(float(mean), float(std), len(chosen), len(numbers), undefined, word)

    def __str__(self) -> str:
        if self.num == 0 and _has_no_mean(self.undefined, self.of):
            return f"{self.word} ({self.undefined} of {self.of})"
        if self.num == 0:
            few = f" ({self.undefined} of {self.of} {self.word})" if self.undefined else ""
            return f"no common seed{few}"
        decimals = 3 if abs(self.mean) < 10 else 2
        tiny = 0 < abs(self.mean) < 0.001
        mean, std = (f"{x:.1e}" if tiny else f"{x:.{decimals}f}" for x in (self.mean, self.std))
        few = f"; {self.undefined} {self.word}" if self.undefined else ""
        few = f" ({self.num} of {self.of}{few})" if self.num < self.of else ""
        return f"{mean} ± {std}{few}" if self.num > 1 else f"{mean}{few}"


class Table(NamedTuple):
    """Rows, as mappings from the names of columns to numbers, texts or `Spread`s.

    Examples:
      >>> table = Table([{"beta": 1.0, "fairness": Spread.over([0.9, 1.0])}])
      >>> print(table.markdown())
      | beta | fairness |
      |---|---|
      | 1 | 0.950 ± 0.071 |
      >>> print(table.csv().strip())
      beta,fairness,fairness_std,fairness_num,fairness_undefined
      1.0,0.95,0.07071067811865474,2,0
    """

    rows: list[dict[str, Any]]

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def pivot(self, down: str, across: Sequence[str], value: str) -> "Table":
        """Returns one row for every value of `down`, and one column for every value of `across`.

        Args:
          down: the column that names the rows.
          across: the columns whose values name the columns.
          value: the column that fills the cells.

        Examples:
          >>> rows = [{"a": 1, "b": "x", "c": 3.5}, {"a": 1, "b": "y", "c": 4.5}]
          >>> Table(rows).pivot("a", ["b"], "c").rows
          [{'a': 1, 'x': 3.5, 'y': 4.5}]
        """
        rows: dict[Any, dict[str, Any]] = {}
        for row in self.rows:
            name = ", ".join(_format_cell(row[column]) for column in across)
            rows.setdefault(row[down], {down: row[down]})[name] = row[value]
        return Table(list(rows.values()))

    def cells(self) -> list[list[str]]:
        """Returns the cells as texts; empty where a row lacks a column."""
        return [[_format_cell(row.get(name, "")) for name in self.columns] for row in self.rows]

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.cells()]
        first, rule, *rest = lines
        texts = [f"| {' | '.join(first)} |", f"|{'|'.join(rule)}|"]
        return "\n".join(texts + [f"| {' | '.join(row)} |" for row in rest])

    def csv(self) -> str:
        """Returns the table as CSV.

        A spread takes four columns: mean, standard deviation, number of seeds in the mean, and
        number of undefined seeds.
        """
        with_spread = {
            name for row in self.rows for name, cell in row.items() if isinstance(cell, Spread)
        }
        header = []
        for name in self.columns:
            header += _name_spread_columns(name) if name in with_spread else [name]
        file = io.StringIO()
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            flat = {}
            for name, cell in row.items():
                if isinstance(cell, Spread):
                    numbers = (cell.mean, cell.std, cell.num, cell.undefined)
                    flat |= dict(zip(_name_spread_columns(name), numbers, strict=True))
                else:
                    flat[name] = cell
            writer.writerow(flat)
        return file.getvalue()


def spreads(
    rows: Sequence[Mapping[str, Any]],
    by: Sequence[str],
    values: Sequence[str],
    *,
    apart: Sequence[str] = (),
    words: Mapping[str, str] = MappingProxyType({}),
) -> Table:
    """Returns one row per group: its number of seeds, and the spread of every value.

    Groups are compared, so their means are over the same seeds: if a value is undefined (nan)
    for a seed in one group, that seed is left out of the value's mean in all groups. A group
    with more than half of its seeds undefined has no mean, and its seeds stay in other means.

    Args:
      rows: one per seed, with the seed in the column "seed".
      by: the columns whose values define the groups.
      values: the columns to average; a column that a group lacks is left out of its row.
      apart: columns in `by` whose values are not compared: seeds are left out separately for
        each of their values.
      words: what an undefined value means, by column in `values`; default: "undefined".

    Examples:
      >>> nan = float("nan")
      >>> gains = {0.5: (1.0, 2.0, nan), 1: (2.0, 4.0, 6.0), 1e7: (nan, nan, 5.0)}
      >>> rows = [
      ...     {"beta": beta, "seed": seed, "gain": gain}
      ...     for beta, row in gains.items()
      ...     for seed, gain in enumerate(row)
      ... ]
      >>> for row in spreads(rows, by=["beta"], values=["gain"]).cells():
      ...     print(row)
      ['0.5', '3', '1.500 ± 0.707 (2 of 3; 1 undefined)']
      ['1', '3', '3.000 ± 1.414 (2 of 3)']
      ['1e+07', '3', 'undefined (2 of 3)']
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    undefined = {
        (group, name): {row["seed"] for row in members if not math.isfinite(row[name])}
        for group, members in groups.items()
        for name in values
        if name in members[0]
    }

    def block(group: tuple[Any, ...], name: str) -> tuple[Any, ...]:
        return name, *(value for column, value in zip(by, group, strict=True) if column in apart)

    left_out: dict[tuple[Any, ...], set[Any]] = {}
    for (group, name), seeds in undefined.items():
        if not _has_no_mean(len(seeds), len(groups[group])):
            left_out.setdefault(block(group, name), set()).update(seeds)

    def spread(group: tuple[Any, ...], name: str) -> Spread:
        members = groups[group]
        averaged = not _has_no_mean(len(undefined[group, name]), len(members))
        without = left_out.get(block(group, name), set())
        used = [averaged and row["seed"] not in without for row in members]
        return Spread.over([row[name] for row in members], used, words.get(name, UNDEFINED))

    return Table(
        [
            {
                **dict(zip(by, group, strict=True)),
                "seeds": len(members),
                **{name: spread(group, name) for name in values if name in members[0]},
            }
            for group, members in groups.items()
        ]
    )


def number(value: float) -> str:
    """Returns a number as tables show it; nan is a dash."""
    return "–" if value != value else f"{value:.3f}"


def first_line(function: Callable) -> str:
    """Returns a docstring's first sentence, without "Returns" and the full stop."""
    sentence = (function.__doc__ or "").splitlines()[0].partition(". ")[0]
    return sentence.removeprefix("Returns ").rstrip(".")


def _has_no_mean(num_undefined: int, num_seeds: int) -> bool:
    """Says whether too few seeds are defined for a mean."""
    return 2 * num_undefined > num_seeds


def _name_spread_columns(name: str) -> list[str]:
    return [name, f"{name}_std", f"{name}_num", f"{name}_undefined"]


def _format_cell(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
