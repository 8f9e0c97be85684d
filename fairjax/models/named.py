"""Named models: the networks for a data set, and the registry of their names."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from fairjax import checks
from fairjax.data import Dataset
from fairjax.models.base import Model
from fairjax.models.layers import conv_general_dilated
from fairjax.models.minilm import minilm, minilm_tokenizer
from fairjax.models.modules import from_flax
from fairjax.models.networks import MLP, CifarCNN, MnistCNN, TextCNN
from fairjax.models.units import chain
from fairjax.types import Array

MNIST_LAYERS = ("Conv_0", "Conv_1", "Dense_0", "head")
CIFAR_LAYERS = ("Conv_0", "Conv_1", "Dense_0", "Dense_1", "head")


def mlp(train: Dataset, hidden: Sequence[int] = (64,)) -> Model:
    """Returns a perceptron with relu and, by default, one hidden layer of 64.

    Args:
      train: the data set; its examples are flattened.
      hidden: widths of the hidden layers.

    Raises:
      ValueError: a width is not a whole number above 0, `train` is not a data set, or it
        holds tokens, which a perceptron cannot use as numbers.

    Examples:
      >>> import jax
      >>> train = Dataset(x=jnp.zeros((5, 2, 2)), y=range(5), num_classes=5)
      >>> model = mlp(train, hidden=(8,))
      >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))["head"]["kernel"]
      (8, 5)
    """
    checks.kind("train", train, Dataset, "`fairjax.data.load`")
    if not checks.is_listing(hidden):
        raise ValueError(f"`hidden` must be widths such as (64,), got hidden={hidden!r:.100}.")
    widths = tuple(hidden)
    for width in widths:
        checks.count("hidden", width)
    if train.vocabulary_size is not None:
        raise ValueError(
            "`train` must hold numbers for a perceptron or logistic regression, got tokens "
            f"(vocabulary_size={train.vocabulary_size}). Take the text CNN."
        )
    layers = [f"Dense_{number}" for number in range(len(widths))]
    units = chain([*layers, "head"]) if widths else None
    return from_flax(MLP(widths, train.num_outputs), train, "head", units)


def logistic(train: Dataset) -> Model:
    """Returns multinomial logistic regression, or linear regression.

    Examples:
      >>> import jax
      >>> train = Dataset(x=jnp.zeros((5, 2, 2)), y=range(5), num_classes=5)
      >>> jax.tree.map(jnp.shape, logistic(train).init(jax.random.key(0)))
      {'head': {'bias': (5,), 'kernel': (4, 5)}}
    """
    return mlp(train, hidden=())


def mnist_cnn(
    train: Dataset | None = None, *, convolution: Callable[..., Array] = conv_general_dilated
) -> Model:
    """Returns the paper's MNIST network: conv 64 k3, conv 16 k7, dense 200, tanh.

    Args:
      train: gives the shapes; None: images `[32, 32, 1]` of ten classes, 104,242
        parameters.
      convolution: a function with the arguments of `jax.lax.conv_general_dilated`.

    Raises:
      ValueError: `train` is not a data set, or its images are too small for the network.

    Examples:
      >>> import jax
      >>> params = mnist_cnn().init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      104242
    """
    return _image_model(MnistCNN, train, convolution, MNIST_LAYERS, channels=1, smallest=20)


def cifar_cnn(
    train: Dataset | None = None, *, convolution: Callable[..., Array] = conv_general_dilated
) -> Model:
    """Returns the paper's CIFAR-10 network: conv 16, 32 k5, dense 120, 84, relu.

    Args:
      train: gives the shapes; None: images `[32, 32, 3]` of ten classes, 121,182
        parameters.
      convolution: a function with the arguments of `jax.lax.conv_general_dilated`.

    Raises:
      ValueError: `train` is not a data set, or its images are too small for the network.

    Examples:
      >>> import jax
      >>> params = cifar_cnn().init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      121182
    """
    return _image_model(CifarCNN, train, convolution, CIFAR_LAYERS, channels=3, smallest=16)


def _image_model(
    module: Any,
    train: Dataset | None,
    convolution: Callable[..., Array],
    layers: Sequence[str],
    channels: int,
    smallest: int,
) -> Model:
    checks.function("convolution", convolution, "such as jax.lax.conv_general_dilated")
    if train is None:
        example = jnp.zeros((1, 32, 32, channels))
        return from_flax(module(convolution=convolution), example, "head", chain(layers))
    checks.kind("train", train, Dataset, "`fairjax.data.load`")
    shape = train.x.shape[1:]
    if len(shape) != 3 or min(shape[:2]) < smallest:
        raise ValueError(
            f"`train` must hold images [height, width, channels] of at least {smallest} x "
            f"{smallest} for {module.__name__}, got examples of shape {shape}."
        )
    made = module(train.num_outputs, convolution)
    return from_flax(made, train, "head", chain(layers))


def text_cnn(vocabulary_size: int, num_classes: int) -> Model:
    """Returns Kim's text CNN: random embedding of 300, three branches of 128 filters of height 3.

    Each branch's filters cover the whole embeddings of 3 consecutive words. Then follow relu,
    the maximum over time, dropout with rate 1/2, and a dense layer. All layers are trained.

    Args:
      vocabulary_size: the number of tokens, at least 2.
      num_classes: the number of outputs, at least 1.

    Returns:
      A `Model` of tokens `[B, L]`, L at least 3, with 300 `vocabulary_size` + 346,754
      parameters for two classes. Without a key, `apply` uses no dropout.

    Raises:
      ValueError: `vocabulary_size` is below 2, or `num_classes` below 1.

    References:
      Kim, Convolutional Neural Networks for Sentence Classification, EMNLP 2014
      ("CNN-rand"), where filters have heights 3, 4 and 5.

    Examples:
      >>> import jax
      >>> params = text_cnn(vocabulary_size=1000, num_classes=2).init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params)) - 1000 * 300
      346754
    """
    checks.count("vocabulary_size", vocabulary_size, least=2)
    checks.count("num_classes", num_classes)
    module = TextCNN(vocabulary_size, num_classes)
    units = chain([("branch_0", "branch_1", "branch_2"), "head"])
    return from_flax(module, jnp.zeros((1, 3), jnp.int32), "head", units)


def _text_cnn_for(train: Dataset) -> Model:
    """Returns Kim's text CNN: random embeddings of 300, three branches.

    Raises:
      ValueError: `train` does not hold tokens `[n, length]` with a vocabulary size.
    """
    checks.kind("train", train, Dataset, "`fairjax.data.load`")
    if train.vocabulary_size is None or train.x.ndim != 2 or train.x.shape[1] < 3:
        raise ValueError(
            "`train` must hold tokens [n, length], of length 3 or more, and their "
            f"`vocabulary_size`, for the text CNN, got examples of shape {train.x.shape[1:]} "
            f"and vocabulary_size={train.vocabulary_size}."
        )
    return text_cnn(train.vocabulary_size, train.num_outputs)


REGISTRY = {
    "mlp": mlp,
    "logistic": logistic,
    "mnist_cnn": mnist_cnn,
    "cifar_cnn": cifar_cnn,
    "text_cnn": _text_cnn_for,
    "minilm": minilm,
}
TOKENIZERS = {"minilm": minilm_tokenizer}  # of networks that read sentences in tokens of their own
