"""Data: data sets by name, and splits that deal them out to agents."""

from fairjax.data.dataset import MOST_SEED, Dataset, hold_out
from fairjax.data.mixtures import dirichlet, mixtures
from fairjax.data.shards import Shards, stacked
from fairjax.data.sources import DATASETS, OURS, SENTENCES, load, register
from fairjax.data.splits import SPLITS, class_imbalance, power_law, uniform
from fairjax.data.text import Tokenizer
from fairjax.data.tfds_images import DataUnavailableError

__all__ = [
    "DATASETS",
    "MOST_SEED",
    "OURS",
    "SENTENCES",
    "SPLITS",
    "DataUnavailableError",
    "Dataset",
    "Shards",
    "Tokenizer",
    "class_imbalance",
    "dirichlet",
    "hold_out",
    "load",
    "mixtures",
    "power_law",
    "register",
    "stacked",
    "uniform",
]
