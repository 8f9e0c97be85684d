"""Shown: how a metric is written in tables and figures."""

from typing import Any, NamedTuple

import numpy as np

from fairjax.tasks.base import LOWER, SHARES, Task


class Shown(NamedTuple):
    """How the main metric of a run is written, and which of its values is the best.

    Attributes:
      name: the metric's name.
      lower_is_better: whether the best value is the lowest.
    """

    name: str = "accuracy"
    lower_is_better: bool = False

    @classmethod
    def named(cls, name: str) -> "Shown":
        """Returns how a metric of `METRICS` is written."""
        return cls(name, name in LOWER)

    @classmethod
    def of(cls, task: Task) -> "Shown":
        """Returns how the main metric of a task is written."""
        return cls(task.main, task.sign < 0)

    @property
    def words(self) -> str:
        """The metric's name in a sentence.

        Examples:
          >>> Shown("macro_f1").words, Shown("r2").words
          ('macro F1', 'R2')
        """
        parts = (UPPER.get(part, part) for part in self.name.split("_"))
        return " ".join(parts)

    @property
    def unit(self) -> str:
        """What follows "best" or "final" in a heading: "%" for accuracy, else the metric's name."""
        return "%" if self.name == "accuracy" else self.words + " %" * self.in_percent

    @property
    def column(self) -> str:
        """The same in the name of a column: "%" or, for example, "macro_f1_%" or "auc"."""
        return "%" if self.name == "accuracy" else self.name + "_%" * self.in_percent

    @property
    def axis(self) -> str:
        """The metric's name on an axis, with its unit."""
        return f"{self.words} (%)" if self.in_percent else self.words

    @property
    def in_percent(self) -> bool:
        """Whether values are written in percent."""
        return self.name in SHARES

    def scaled(self, values: Any) -> Any:
        """Returns values as they are drawn: in percent, or as they are."""
        return 100 * values if self.in_percent else values

    def text(self, value: Any) -> str:
        """Returns a value as it is written in a table.

        Examples:
          >>> Shown().text(0.98765), Shown("mse").text(3012.5), Shown("auc").text(0.98765)
          ('98.77', '3012', '0.9877')
        """
        if np.isnan(value):
            return "–"
        return f"{100 * value:.2f}" if self.in_percent else f"{float(value):.4g}"

    def change(self, value: Any) -> str:
        """Returns a difference of two values as it is written, in points if they are in percent.

        Examples:
          >>> Shown().change(0.0123), Shown("mse", lower_is_better=True).change(-30.0)
          ('+1.23 points', '-30')
        """
        if np.isnan(value):
            return "–"
        return f"{100 * value:+.2f} points" if self.in_percent else f"{float(value):+.4g}"

    def ends(self, values: Any) -> tuple[Any, Any, Any]:
        """Returns the best, the mean and the worst of some values.

        Examples:
          >>> print(*Shown("mse", lower_is_better=True).ends(np.array([1.0, 3.0])))
          1.0 2.0 3.0
        """
        ends = (values.max(), values.mean(), values.min())
        return ends[::-1] if self.lower_is_better else ends


UPPER = {"f1": "F1", "auc": "AUC", "mse": "MSE", "mae": "MAE", "r2": "R2"}
