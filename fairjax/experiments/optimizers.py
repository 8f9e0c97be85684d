"""Optimizers: those that an experiment knows by name."""

import functools
from typing import Any

import optax

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}


def _yogi(learning_rate: Any) -> optax.GradientTransformation:
    """Returns `optax.yogi`, but with moments that begin at 0: a dead parameter does not move."""
    scale = optax.scale_by_yogi(**MOMENTS, initial_accumulator_value=0.0)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


# The constants are of Reddi et al., Adaptive federated optimization, ICLR 2021. As most programs,
# and unlike its algorithm 2, optax corrects the bias of moments that begin at 0.
MOMENTS = {"b1": 0.9, "b2": 0.99, "eps": 1e-3}
SERVER_OPTIMIZERS = {
    "fedavgm": functools.partial(optax.sgd, momentum=0.9),
    "fedadam": functools.partial(optax.adam, **MOMENTS),
    "fedyogi": _yogi,
}
SERVER_RATES = {"fedavgm": 1.0, "fedadam": 0.01, "fedyogi": 0.01}
