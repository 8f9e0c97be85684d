"""Presets: what an experiment leaves open, chosen for its data set."""

from typing import NamedTuple


class Settings(NamedTuple):
    """What an experiment leaves open, for one data set."""

    model: str = "mlp"
    samples_per_agent: int | None = None
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    learning_rate_decay: float = 0.977
    batch_size: int = 32
    alpha: float = 0.8
    gamma: float = 1.5
    eval_every: int = 1


# The paper's settings for its data sets. For others a perceptron and Adam, whose steps are
# alike in all entries: what a small share of the entries leaves out is then worth something.
# Evaluating all agents on 10,000 images takes longer than a round of training, hence every 5.
MNIST = Settings("mnist_cnn", 600, "sgd", 0.15, alpha=0.95, gamma=0.5, eval_every=5)
CIFAR = Settings("cifar_cnn", 2000, "sgd", 0.015, 0.977, 128, alpha=0.95, gamma=0.15, eval_every=5)
MR = Settings("text_cnn", None, "adam", 5e-5, batch_size=128, alpha=0.95, gamma=1.0)
SST = Settings("text_cnn", None, "adam", 1e-4, batch_size=256, alpha=0.95, gamma=1.0)
SETTINGS = {
    "mnist": MNIST,
    "fashion_mnist": MNIST,
    "cifar10": CIFAR,
    "rt_polarity": MR,
    "sst_fine": SST,
}
