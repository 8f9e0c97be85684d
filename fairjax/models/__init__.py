"""Models, which agents train: ready-made, from a Flax module, or from any pair of functions."""

from fairjax.models.base import Model, computing_in, initial_params
from fairjax.models.modules import from_flax
from fairjax.models.named import REGISTRY, cifar_cnn, logistic, mlp, mnist_cnn, text_cnn

__all__ = [
    "REGISTRY",
    "Model",
    "cifar_cnn",
    "computing_in",
    "from_flax",
    "initial_params",
    "logistic",
    "mlp",
    "mnist_cnn",
    "text_cnn",
]
