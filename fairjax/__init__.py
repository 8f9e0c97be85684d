"""fairjax: fair collaborative learning in JAX."""

from fairjax import contributions, data, devices, figures, mechanisms, metrics, models, rewards
from fairjax.experiment import Experiment, load_run
from fairjax.federations import Federation, federation
from fairjax.results import Result
from fairjax.simulation import History, run
from fairjax.states import Record, State
from fairjax.sweeps import Sweep, compare, sweep
from fairjax.terminal import ProgressBar

__all__ = [
    "Experiment",
    "Federation",
    "History",
    "ProgressBar",
    "Record",
    "Result",
    "State",
    "Sweep",
    "compare",
    "contributions",
    "data",
    "devices",
    "federation",
    "figures",
    "load_run",
    "mechanisms",
    "metrics",
    "models",
    "rewards",
    "run",
    "sweep",
]
