"""Models, which agents train: ready-made, from a Flax module, or from any pair of functions."""

from fairjax.models.adapters import Adapters, changes, joined, lora, with_factors
from fairjax.models.base import Model, computing_in, evaluator, initial, initial_params
from fairjax.models.minilm import FOLDER, minilm, minilm_tokenizer
from fairjax.models.modules import as_model, from_flax, looks_at_data
from fairjax.models.named import (
    REGISTRY,
    TOKENIZERS,
    cifar_cnn,
    logistic,
    mlp,
    mnist_cnn,
    text_cnn,
)
from fairjax.models.saving import load_params, save_params
from fairjax.models.units import chain

__all__ = [
    "FOLDER",
    "REGISTRY",
    "TOKENIZERS",
    "Adapters",
    "Model",
    "as_model",
    "chain",
    "changes",
    "cifar_cnn",
    "computing_in",
    "from_flax",
    "evaluator",
    "initial",
    "initial_params",
    "joined",
    "load_params",
    "logistic",
    "looks_at_data",
    "lora",
    "minilm",
    "minilm_tokenizer",
    "mlp",
    "mnist_cnn",
    "save_params",
    "text_cnn",
    "with_factors",
]
