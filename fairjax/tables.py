"""Tables: rows of results as CSV, for programs, and Markdown, for people."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Spread(NamedTuple):
    """A mean over seeds and how far single ones are from it.

    Seeds for which a figure is undefined (nan) do not enter; `num` says how many did.
    """

    mean: float
    std: float  # of a sample: divided by num - 1; nan for fewer than two
    num: int
    of: int  # how many seeds there were

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of one value per seed.

        Examples:
          >>> print(Spread.over([1.0, 2.0, 3.0]))
          2.000 ± 1.000
          >>> print(Spread.over([1.0, float("nan")]))
          1.000 (1 of 2)
        """
        known = np.array([value for value in values if np.isfinite(value)], np.float64)
        mean = known.mean() if len(known) else np.nan
        std = known.std(ddof=1) if len(known) > 1 else np.nan
        return cls(float(mean), float(std), len(known), len(values))

    def __str__(self) -> str:
        if self.num == 0:
            return "–"
        decimals = 3 if abs(self.mean) < 10 else 2
        tiny = 0 < abs(self.mean) < 0.001
        mean, std = (f"{x:.1e}" if tiny else f"{x:.{decimals}f}" for x in (self.mean, self.std))
        few = f" ({self.num} of {self.of})" if self.num < self.of else ""
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
      beta,fairness,fairness_std,fairness_num
      1.0,0.95,0.07071067811865474,2
    """

    rows: list[dict[str, Any]]

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order in which rows bring them."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def pivot(self, down: str, across: Sequence[str], value: str) -> "Table":
        """Returns one row for every value of a column, and one column for those of others.

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
            name = ", ".join(_text(row[column]) for column in across)
            rows.setdefault(row[down], {down: row[down]})[name] = row[value]
        return Table(list(rows.values()))

    def cells(self) -> list[list[str]]:
        """Returns the rows as texts for people; empty where a row lacks a column."""
        return [[_text(row.get(name, "")) for name in self.columns] for row in self.rows]

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.cells()]
        first, rule, *rest = lines
        texts = [f"| {' | '.join(first)} |", f"|{'|'.join(rule)}|"]
        return "\n".join(texts + [f"| {' | '.join(row)} |" for row in rest])

    def csv(self) -> str:
        """Returns the table as CSV; a spread is three columns: mean, std and number of seeds."""
        with_spread = {
            name for row in self.rows for name, cell in row.items() if isinstance(cell, Spread)
        }
        header = []
        for name in self.columns:
            header += [name, f"{name}_std", f"{name}_num"] if name in with_spread else [name]
        file = io.StringIO()
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            flat = {}
            for name, cell in row.items():
                if isinstance(cell, Spread):
                    flat |= {name: cell.mean, f"{name}_std": cell.std, f"{name}_num": cell.num}
                else:
                    flat[name] = cell
            writer.writerow(flat)
        return file.getvalue()


def spreads(rows: Sequence[Mapping[str, Any]], by: Sequence[str], values: Sequence[str]) -> Table:
    """Returns one row per group: its number of seeds, and the spread of every value.

    Args:
      rows: one per seed.
      by: the columns that tell groups apart.
      values: the columns to average; one that a group has nowhere is left out of its row.

    Examples:
      >>> rows = [{"beta": 1, "seed": 0, "gain": 2.0}, {"beta": 1, "seed": 1, "gain": 4.0}]
      >>> print(spreads(rows, by=["beta"], values=["gain"]).cells())
      [['1', '2', '3.000 ± 1.414']]
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return Table(
        [
            {
                **dict(zip(by, group, strict=True)),
                "seeds": len(members),
                **{
                    name: Spread.over([row[name] for row in members])
                    for name in values
                    if name in members[0]
                },
            }
            for group, members in groups.items()
        ]
    )


def _text(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
