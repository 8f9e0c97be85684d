"""fairjax: fair collaborative learning in JAX."""

import contextlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from fairjax import contributions, data, devices, mechanisms, metrics, models, rewards, tasks
from fairjax.experiments import (
    Experiment,
    ProgressBar,
    Result,
    Sweep,
    audit,
    compare,
    load_run,
    run,
    sweep,
)
from fairjax.lowrank import LowRank
from fairjax.models import load_params, save_params
from fairjax.simulation import Federation, History, Record, State, federation

if TYPE_CHECKING:
    from fairjax import figures, report

    __version__: str

LATER = ("figures", "report")  # they import matplotlib, which takes a second

__all__ = [
    "Experiment",
    "Federation",
    "History",
    "LowRank",
    "ProgressBar",
    "Record",
    "Result",
    "State",
    "Sweep",
    "audit",
    "compare",
    "contributions",
    "data",
    "devices",
    "federation",
    "figures",
    "load_params",
    "load_run",
    "mechanisms",
    "metrics",
    "models",
    "report",
    "rewards",
    "run",
    "save_params",
    "sweep",
    "tasks",
]


def __getattr__(name: str) -> Any:
    """Imports `fairjax.figures` or `fairjax.report`, or looks up the version, on first use."""
    if name in LATER:
        return importlib.import_module(f"fairjax.{name}")
    if name == "__version__":
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not installed
            return importlib.metadata.version("fairjax")
    raise AttributeError(f"module 'fairjax' has no attribute {name!r}")
