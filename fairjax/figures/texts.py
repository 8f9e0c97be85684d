"""Texts of figures: names as users wrote them, cut where they are long."""

from typing import Any

from fairjax.experiments import Result

MOST = 28  # characters of a name


def plain(name: str, most: int = MOST) -> str:
    r"""Returns a name for a figure: cut to `most` characters, and without TeX.

    Examples:
      >>> print(plain("$10_k"))
      \$10_k
    """
    cut = name if len(name) <= most else f"{name[: most - 1]}…"
    return cut.replace("$", r"\$")


def title(result: Result) -> str:
    """Returns a title with a result's mechanism, data set and split."""
    experiment = result.experiment
    return "" if experiment is None else f"{mechanism(experiment)}, {where(experiment)}"


def mechanism(experiment: Any) -> str:
    """Returns the mechanism's name."""
    return plain(experiment.label("mechanism"))


def where(experiment: Any) -> str:
    """Returns the data set, and how it was shared out."""
    split = experiment.label("split").replace("_", " ")
    return f"{plain(experiment.label('dataset'))}, {plain(split)}"
