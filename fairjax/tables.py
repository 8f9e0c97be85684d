"""Tables: rows of results as CSV, for programs, and Markdown, for people."""

import csv
import io
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from fairjax.cells import UNDEFINED, Cell, Spread, has_no_mean

LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$"},
}


class Table(NamedTuple):
    """Rows, as mappings from the names of columns to numbers, texts, `Spread`s or `Difference`s.

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

    def __str__(self) -> str:
        return self.markdown()

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
        first, *rest = (f"| {' | '.join(row)} |" for row in (self.columns, *self.cells()))
        rule = f"|{'|'.join(['---'] * len(self.columns))}|"
        return "\n".join([first, rule, *rest])

    def latex(self) -> str:
        r"""Returns the table as a LaTeX tabular, which needs `\usepackage{booktabs}`.

        Examples:
          >>> print(Table([{"best_%": 97.5, "mean": Spread.over([0.5, 0.7])}]).latex())
          \begin{tabular}{rl}
          \toprule
          best\_\% & mean \\
          \midrule
          97.5 & 0.600 $\pm$ 0.141 \\
          \bottomrule
          \end{tabular}
        """
        numeric = [
            all(isinstance(row.get(name, 0), int | float) for row in self.rows)
            for name in self.columns
        ]
        first, *rest = (
            " & ".join(map(_escape_latex, row)) + r" \\" for row in (self.columns, *self.cells())
        )
        lines = [
            rf"\begin{{tabular}}{{{''.join('lr'[one] for one in numeric)}}}",
            *(r"\toprule", first, r"\midrule", *rest, r"\bottomrule"),
            r"\end{tabular}",
        ]
        return "\n".join(lines)

    def plain(self) -> list[dict[str, Any]]:
        """Returns the rows with one number or text per column. Pass them to `pandas.DataFrame`.

        A spread takes four columns: mean, standard deviation, number of seeds in the mean, and
        number of undefined seeds; a difference takes mean, ends of its interval and number.
        """
        return [
            {
                column: value
                for name in self.columns
                if name in row
                for column, value in _plain_cell(name, row[name]).items()
            }
            for row in self.rows
        ]

    def csv(self) -> str:
        """Returns the table as CSV, with the columns of `plain`."""
        rows = self.plain()
        header = list(dict.fromkeys(name for row in rows for name in row))
        file = io.StringIO()
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
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
        if not has_no_mean(len(seeds), len(groups[group])):
            left_out.setdefault(block(group, name), set()).update(seeds)

    def spread(group: tuple[Any, ...], name: str) -> Spread:
        members = groups[group]
        averaged = not has_no_mean(len(undefined[group, name]), len(members))
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
    sentence = (function.__doc__ or "").partition("\n")[0].partition(". ")[0]
    return sentence.removeprefix("Returns ").rstrip(".")


def listed(numbers: Sequence[int]) -> str:
    """Returns whole numbers as the command line takes them.

    Examples:
      >>> listed([3, 4, 5]), listed([0, 4_000_000_000])
      ('3:6', '0,4000000000')
    """
    whole = range(numbers[0], numbers[-1] + 1) if len(numbers) > 1 else range(0)
    follow = len(numbers) == len(whole) > 0 and all(map(operator.eq, numbers, whole))
    return f"{whole.start}:{whole.stop}" if follow else ",".join(map(str, numbers))


def _plain_cell(name: str, cell: Any) -> dict[str, Any]:
    return cell.plain(name) if isinstance(cell, Cell) else {name: cell}


def _escape_latex(text: str) -> str:
    """Returns text that LaTeX sets as it is, with minus signs of numbers."""
    escaped = "".join(LATEX.get(sign, sign) for sign in text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)


def _format_cell(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
