"""fairjax: fair collaborative learning in JAX."""

from fairjax import contributions, data, figures, mechanisms, metrics, models, rewards
from fairjax.experiment import Experiment, compare, load_run
from fairjax.results import Result
from fairjax.simulation import Federation, History, Record, State, federation, run

__all__ = [
    "Experiment",
    "Federation",
    "History",
    "Record",
    "Result",
    "State",
    "compare",
    "contributions",
    "data",
    "federation",
    "figures",
    "load_run",
    "mechanisms",
    "metrics",
    "models",
    "rewards",
    "run",
]
