"""Data: data sets by name, and splits that deal them out to agents."""

from fairjax.data.dataset import Dataset, hold_out
from fairjax.data.mixtures import dirichlet, mixtures
from fairjax.data.shards import MOST_AGENTS, Shards, stacked
from fairjax.data.sources import DATASETS, load, register
from fairjax.data.splits import SPLITS, class_imbalance, power_law, uniform
from fairjax.data.tfds_images import DataUnavailableError

__all__ = [
    "DATASETS",
    "MOST_AGENTS",
    "SPLITS",
    "DataUnavailableError",
    "Dataset",
    "Shards",
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
