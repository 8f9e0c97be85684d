"""Experiments: runs that are described, recorded, resumed, repeated and compared.

description  the fields of an experiment, each with its check, group and help (`fields`)
resolved     a description that is checked when it is made; values for its open fields, its name
presets      values for fields that are left open, by data set
objects      objects that a field may hold instead of a name
references   objects in files of one's own, such as "mine.py:factory"
factories    makes a mechanism from a name, a function or an object
setup        makes data, shards, task, model and the federation from a description
experiment   a description that can be run
playing      plays the rounds of a run, with checkpoints, progress and tracking
results      the result of a run and its figures; `loading` reads a result from disk
running      `fairjax.run`: the rounds of a federation from Python objects
sweeps       many runs as one program, which `points` compiles and plays
audit        what cheating pays; `trials` plays every manipulation
comparison   several mechanisms on the same shards; `over_seeds`, with several seeds
run_folder   the files of a run: records, histories, checkpoints; `folders`, whether one may be used
longer       a run with more rounds goes on where a shorter one stopped
tracking     sends the scalars of each round to other tools
"""

from fairjax.experiments import factories, folders, objects, records, references
from fairjax.experiments.audit import Audit, audit
from fairjax.experiments.bar import ProgressBar
from fairjax.experiments.comparison import compare, load_comparison
from fairjax.experiments.description import COEFFICIENTS, EACH, ONLY_PYTHON
from fairjax.experiments.experiment import Experiment, load_run
from fairjax.experiments.fields import MOST_VALUES
from fairjax.experiments.optimizers import OPTIMIZERS
from fairjax.experiments.over_seeds import Comparison
from fairjax.experiments.presets import PRESETS
from fairjax.experiments.results import Result
from fairjax.experiments.running import run
from fairjax.experiments.sweeps import WORDS, Sweep, sweep
from fairjax.experiments.trials import MANIPULATIONS, Trial

__all__ = [
    "COEFFICIENTS", "EACH", "MANIPULATIONS", "MOST_VALUES", "ONLY_PYTHON", "OPTIMIZERS", "PRESETS",
    "WORDS",
    "Audit", "Comparison", "Experiment", "ProgressBar", "Result", "Sweep", "Trial", "audit",
    "compare", "factories", "folders", "load_comparison", "load_run", "objects", "records",
    "references", "run", "sweep",
]  # fmt: skip
