"""Experiments: runs that are described, recorded, resumed, repeated and compared.

presets      what a description leaves open, chosen for its data set
experiment   the description of a run, and the run
playing      rounds with checkpoints, watched and tracked
results      what a run came to
sweeps       many runs as one program
records, histories, checkpoints, tracking     what is on disk, and who else is told
"""

from fairjax.experiments import records
from fairjax.experiments.bar import ProgressBar
from fairjax.experiments.comparison import compare, load_comparison
from fairjax.experiments.description import COEFFICIENTS, OPTIMIZERS
from fairjax.experiments.experiment import Experiment, load_run
from fairjax.experiments.presets import PRESETS
from fairjax.experiments.results import Result
from fairjax.experiments.sweeps import WORDS, Sweep, sweep

__all__ = [
    "COEFFICIENTS", "OPTIMIZERS", "PRESETS", "WORDS", "Experiment", "ProgressBar", "Result",
    "Sweep", "compare", "load_comparison", "load_run", "records", "sweep",
]  # fmt: skip
