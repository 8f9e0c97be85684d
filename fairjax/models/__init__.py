"""Models, which agents train: ready-made, from a Flax module, or from any pair of functions."""

from fairjax.models.base import Model, computing_in, evaluator, initial, initial_params
from fairjax.models.modules import as_model, from_flax
from fairjax.models.named import REGISTRY, cifar_cnn, logistic, mlp, mnist_cnn, text_cnn
from fairjax.models.saving import load_params, save_params
from fairjax.models.units import chain

__all__ = [
    "REGISTRY",
    "Model",
    "as_model",
    "chain",
    "cifar_cnn",
    "computing_in",
    "from_flax",
    "evaluator",
    "initial",
    "initial_params",
    "load_params",
    "logistic",
    "mlp",
    "mnist_cnn",
    "save_params",
    "text_cnn",
]
