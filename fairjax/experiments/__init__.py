"""Experiments: runs that are described, recorded, resumed, repeated and compared.

description  the fields of an experiment, each with its rule, group and help (`fields`)
presets      what a description leaves open, chosen for its data set
objects      what a field may hold in place of a name; `factories` make mechanisms of it
setup        what follows from a description: data, shards, federation
experiment   a description that can be run
playing      rounds with checkpoints, watched and tracked
results      what a run came to; `loading` reads it from disk
sweeps       many runs as one program, which is in `points`
comparison   several mechanisms on the same shards
records, histories, checkpoints, tracking     what is on disk, and who else is told
"""

from fairjax.experiments import factories, objects, records
from fairjax.experiments.bar import ProgressBar
from fairjax.experiments.comparison import compare, load_comparison
from fairjax.experiments.description import COEFFICIENTS, ONLY_PYTHON, OPTIMIZERS
from fairjax.experiments.experiment import Experiment, load_run
from fairjax.experiments.presets import PRESETS
from fairjax.experiments.results import Result
from fairjax.experiments.sweeps import WORDS, Sweep, sweep

__all__ = [
    "COEFFICIENTS", "ONLY_PYTHON", "OPTIMIZERS", "PRESETS", "WORDS", "Experiment", "ProgressBar",
    "Result", "Sweep", "compare", "factories", "load_comparison", "load_run", "objects", "records",
    "sweep",
]  # fmt: skip
