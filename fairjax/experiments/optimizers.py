"""Optimizers: those that an experiment knows by name."""

import functools

import optax

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
# As in Reddi et al., Adaptive federated optimization, ICLR 2021.
SERVER_OPTIMIZERS = {
    "fedavgm": functools.partial(optax.sgd, momentum=0.9),
    "fedadam": functools.partial(optax.adam, b1=0.9, b2=0.99, eps=1e-3),
    "fedyogi": functools.partial(optax.yogi, b1=0.9, b2=0.99, eps=1e-3),
}
SERVER_RATES = {"fedavgm": 1.0, "fedadam": 0.01, "fedyogi": 0.01}
