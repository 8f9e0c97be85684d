"""Cells of tables that hold more than one number: a mean over seeds, or a paired difference."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

UNDEFINED = "undefined"  # the word for seeds without a value, unless another is given
LEVEL = 0.95  # of the interval of a `Difference`


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

    def plain(self, name: str) -> dict[str, float]:
        """Returns the columns of the spread in CSV, for the name of its column."""
        return {
            name: self.mean,
            f"{name}_std": self.std,
            f"{name}_num": self.num,
            f"{name}_undefined": self.undefined,
        }

    def __str__(self) -> str:
        if self.num == 0 and has_no_mean(self.undefined, self.of):
            return f"{self.word} ({self.undefined} of {self.of})"
        if self.num == 0:
            few = f" ({self.undefined} of {self.of} {self.word})" if self.undefined else ""
            return f"no common seed{few}"
        decimals = 3 if abs(self.mean) < 10 else 2
        # Three decimals would not show such a mean, or such a deviation beside it.
        tiny = 0 < abs(self.mean) < 0.001 or (abs(self.mean) < 0.01 and 0 < self.std < 0.0005)
        huge = max(abs(self.mean), self.std if self.std == self.std else 0) >= 1e6
        written = f".{1 if tiny else 3}e" if tiny or huge else f".{decimals}f"
        mean, std = (f"{x:{written}}" for x in (self.mean, self.std))
        few = f"; {self.undefined} {self.word}" if self.undefined else ""
        few = f" ({self.num} of {self.of}{few})" if self.num < self.of else ""
        return f"{mean} ± {std}{few}" if self.num > 1 else f"{mean}{few}"


class Difference(NamedTuple):
    """A mean difference of two groups over the same seeds, with its 95% interval.

    The interval is Student's for paired values; it is over seeds. Seeds with an undefined value
    in one of the groups are left out and counted.
    """

    mean: float  # nan where `num` is 0
    low: float  # nan for fewer than two seeds
    high: float
    num: int  # number of seeds in the mean
    of: int  # number of all seeds

    @classmethod
    def over(cls, values: Sequence[float], first: Sequence[float]) -> "Difference":
        """Returns the difference of values to those of the first group, one per seed.

        Examples:
          >>> print(Difference.over([1.0, 2.0, 4.0], [0.5, 1.0, 2.0]))
          +1.167 [-0.731, +3.064]
          >>> print(Difference.over([float("nan"), 2.0], [1.0, 1.5]))
          +0.500 (1 of 2)
        """
        apart = np.asarray(values, np.float64) - np.asarray(first, np.float64)
        apart = apart[np.isfinite(apart)]
        low, high = np.nan, np.nan
        if len(apart) > 1:
            from scipy import stats

            error = apart.std(ddof=1) / np.sqrt(len(apart))
            half = error * stats.t.ppf((1 + LEVEL) / 2, len(apart) - 1)
            low, high = apart.mean() - half, apart.mean() + half
        mean = apart.mean() if len(apart) else np.nan
        return cls(float(mean), float(low), float(high), len(apart), len(values))

    def plain(self, name: str) -> dict[str, float]:
        """Returns the columns of the difference in CSV, for the name of its column."""
        return {
            name: self.mean,
            f"{name}_low": self.low,
            f"{name}_high": self.high,
            f"{name}_num": self.num,
        }

    def __str__(self) -> str:
        if not self.num:
            return f"{UNDEFINED} ({self.of} of {self.of})"
        few = f" ({self.num} of {self.of})" if self.num < self.of else ""
        ends = (self.low, self.high) if self.num > 1 else ()
        tiny = 0 < max(map(abs, (self.mean, *ends))) < 0.001
        mean, *interval = (f"{x:+.1e}" if tiny else f"{x:+.3f}" for x in (self.mean, *ends))
        return f"{mean} [{', '.join(interval)}]{few}" if interval else f"{mean}{few}"


Cell = Spread | Difference


def has_no_mean(num_undefined: int, num_seeds: int) -> bool:
    """Says whether too few seeds are defined for a mean."""
    return 2 * num_undefined > num_seeds
