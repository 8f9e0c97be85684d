"""Protocol: what the study `referee` runs: data sets, splits, mechanisms and cheats.

The protocol of the field (10 agents, a perceptron with 200 and 200 hidden units, SGD with rate .03
on gradients of at most length 1, batches of 32) is that of the programs of FedSAC and FedRAC.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optax

from fairjax import models
from fairjax.data import Dataset
from fairjax.studies.base import compared_mechanisms

SPLITS = ("power_law", "class_imbalance")
READINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "cffl, all entries": ("cffl", {"theta": 1.0}),
    "fedrac, test oracle": ("fedrac", {"performance": "test"}),
    "fedsac, b 3": ("fedsac", {"b": 3.0}),
    "iafl, held-out": ("iafl", {"performance": "held_out"}),
}
VARIANTS = {name: (name, {}) for name in compared_mechanisms()} | READINGS
BY_CLASSES = {"threshold": 1 / 6, "richness": "classes"}  # CFFL as published, class imbalance
# Coefficients as published, where a preset would choose CGSV's.
PUBLISHED = {"fedave": {"alpha": 0.95, "gamma": 0.5}}
AUDIT_SEEDS = 3
CHEATS = (
    "stretch", "free_rider_zero", "free_rider_noise", "free_rider_copy", "sign_flip", "label_flip",
    "idle", "sybil",
)  # fmt: skip


def field_perceptron(train: Dataset) -> models.Model:
    """Returns the perceptron of the field's common protocol."""
    return models.mlp(train, hidden=(200, 200))


def clipped_sgd(learning_rate: Any) -> optax.GradientTransformation:
    """Returns SGD on gradients of at most length 1."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate))


class Setting(NamedTuple):
    """A data set, how it is split and trained, and what is audited."""

    name: str
    splits: Sequence[str]
    seeds: Sequence[int]
    fields: Mapping[str, Any]
    cheats: Sequence[str] = ()
    audited: Sequence[str] = ()  # splits
    cheating: Sequence[int] = (1, 4)  # agents: a weak and the strongest of the splits
    without: Sequence[str] = ()  # mechanisms that score a model per coalition


DIGITS = {"dataset": "digits", "num_agents": 5, "rounds": 60, "eval_every": 3}
MNIST = {"dataset": "mnist", "num_agents": 10, "samples_per_agent": 600, "eval_every": 4}
CIFAR = {
    "dataset": "cifar10", "num_agents": 10, "samples_per_agent": 1800, "rounds": 40,
    "model": field_perceptron, "optimizer": clipped_sgd, "learning_rate": 0.03,
    "learning_rate_decay": 1.0, "batch_size": 32, "local_epochs": 1, "eval_every": 4,
}  # fmt: skip
QUICK = (
    Setting(
        "digits, 5 agents", SPLITS, range(3), {**DIGITS, "rounds": 30},
        ("stretch", "sign_flip"), SPLITS[:1], (1,),
    ),
    Setting(
        "MNIST, perceptron, 5 agents", SPLITS, range(3),
        {**MNIST, "num_agents": 5, "model": "mlp", "rounds": 10, "eval_examples": 2000},
    ),
)  # fmt: skip
FULL = (
    Setting("digits, 5 agents", SPLITS, range(5), DIGITS, CHEATS, SPLITS),
    Setting(
        "MNIST, perceptron, 10 agents", SPLITS, range(5),
        {**MNIST, "model": "mlp", "rounds": 40}, without=("eci",),
    ),
    Setting(
        "CIFAR-10 (JPEG copy), 10 agents", (*SPLITS, "dir3", "dir7"), range(5), CIFAR,
        without=("eci",),
    ),
    Setting(
        "MNIST, the paper's network, 10 agents", SPLITS, range(1),
        {**MNIST, "rounds": 60, "eval_every": 12}, without=("eci",),
    ),
)  # fmt: skip
