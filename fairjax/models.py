"""Models: what every agent trains, a pair of pure functions.

    init(key) -> params            apply(params, x, key=None) -> logits [B, C]

The ready-made ones are of the modules in `fairjax.networks`; `from_flax` makes a Model of any
Linen module.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError

from fairjax import checks
from fairjax.data import Dataset
from fairjax.layers import conv_general_dilated
from fairjax.networks import MLP, CifarCNN, MnistCNN, TextCNN
from fairjax.types import Array, Params


class Model(NamedTuple):
    """A network: `init(key) -> params` and `apply(params, x, key=None) -> logits`.

    `x` is a batch `[B, ...]` of examples as the data set stores them, logits are
    `[B, C]`. A key given to `apply` means training: dropout is on. `head` names
    the entry of `params` that is the output layer, for those who look at it.

    Examples:
      >>> def init(key):
      ...     return {"kernel": jnp.zeros((4, 3))}
      >>> def apply(params, x, key=None):
      ...     return x @ params["kernel"]
      >>> model = Model(init=init, apply=apply, head="kernel")
      >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
      (2, 3)
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    head: str | None = None


def from_flax(
    module: Any, example: Dataset | Array | None = None, head: str | None = None
) -> Model:
    """Returns a `Model` of a Flax Linen module.

    Where the module's `__call__` takes `train`, `training` or `deterministic`, it is told
    whether it is training; the key of a local step becomes its "dropout" stream.

    Args:
      module: a Linen module that maps `x [B, ...]` to logits `[B, C]`.
      example: a data set or a batch `[B, ...]`, from which shapes of parameters follow;
        None: the federation shows it the data of its agents.
      head: the name of the output layer in the parameters, if it matters.

    Returns:
      A `Model`.

    Raises:
      ValueError: the module is not a Linen module, or keeps state besides parameters,
        such as batch statistics, which averaging of updates would not cover.

    Examples:
      >>> model = from_flax(nn.Dense(3), example=jnp.ones((1, 4)))
      >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
      {'bias': (3,), 'kernel': (4, 3)}
    """
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"`module` must be a Flax Linen module, got {type(module).__name__}. For anything "
            "else, give a pair of functions: `fairjax.models.Model(init=..., apply=...)`."
        )
    takes = inspect.signature(type(module).__call__).parameters

    def flags(training: bool) -> dict[str, Any]:
        values = {"train": training, "training": training, "deterministic": not training}
        return {name: value for name, value in values.items() if name in takes}

    def init_from(x: Array, key: Array) -> Params:
        streams = {"params": key, "dropout": key}
        variables = module.init(streams, x, **flags(False))
        extra = sorted(set(variables) - {"params"})
        if extra:
            raise ValueError(
                f"`module` must hold parameters only, got the collections {extra} besides. Use a "
                "layer without running statistics, such as GroupNorm or LayerNorm."
            )
        return variables.get("params", {})

    def apply(params: Params, x: Array, key: Array | None = None) -> Array:
        streams = {} if key is None else {"dropout": key}
        logits: Any = module.apply({"params": params}, x, rngs=streams, **flags(key is not None))
        return logits

    if example is None:
        return Model(_NeedsExample(init_from), apply, head)
    x = example.x[:1] if isinstance(example, Dataset) else jnp.asarray(example)[:1]
    return Model(lambda key: init_from(x, key), apply, head)


class _NeedsExample(NamedTuple):
    """An `init` whose shapes follow from the data: `initial_params` gives it an example."""

    init_from: Callable[[Array, Array], Params]

    def __call__(self, key: Array) -> Params:
        raise ValueError(
            "This model's parameters follow from the data it sees: give `from_flax` an "
            "`example`, a data set or a batch [B, ...], to call `init` yourself."
        )


def initial_params(model: Model, key: Array, data: Dataset) -> Params:
    """Returns a model's first parameters, checked against the data it is to be trained on.

    Raises:
      ValueError: the model does not take the examples, or its logits are not `[B, C]`.
    """
    x = data.x[:1]
    try:
        if isinstance(model.init, _NeedsExample):
            params = model.init.init_from(x, key)
        else:
            params = model.init(key)
        logits = jax.eval_shape(model.apply, params, x)
    except (TypeError, FlaxError) as error:
        raise ValueError(
            f"The model does not take the data set's examples of shape {x.shape[1:]}: {error}"
        ) from error
    wanted = (1, data.num_classes)
    if getattr(logits, "shape", None) != wanted:
        raise ValueError(
            f"`model.apply` must return logits of shape {wanted} for one example of shape "
            f"{x.shape[1:]}, got {getattr(logits, 'shape', type(logits).__name__)}."
        )
    return params


def computing_in(model: Model, dtype: Any) -> Model:
    """Returns a model with the same parameters that computes in another dtype.

    Parameters and numbers in `x` are converted on the way in, logits back on the way out, so
    gradients, losses and updates keep the parameters' dtype.

    Args:
      model: any model.
      dtype: such as `jnp.bfloat16`, which accelerators multiply several times faster.

    Examples:
      >>> model = computing_in(from_flax(nn.Dense(2), jnp.ones((1, 4))), jnp.bfloat16)
      >>> params = model.init(jax.random.key(0))
      >>> print(params["kernel"].dtype, model.apply(params, jnp.ones((1, 4))).dtype)
      float32 float32
    """
    if jnp.dtype(dtype) == jnp.float32:
        return model

    def converted(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            tree,
        )

    def apply(params: Params, x: Array, key: Array | None = None) -> Array:
        return model.apply(converted(params), converted(jnp.asarray(x)), key).astype(jnp.float32)

    return Model(model.init, apply, model.head)


def mlp(train: Dataset, hidden: Sequence[int] = (64,)) -> Model:
    """Returns a perceptron with relu for the shapes of `train`.

    Args:
      train: the data set, whose examples are flattened.
      hidden: widths of the hidden layers.

    Raises:
      ValueError: a width is not a whole number above 0, or `train` holds tokens, whose
        numbers mean nothing to a perceptron.

    Examples:
      >>> train = Dataset(x=jnp.zeros((5, 2, 2)), y=range(5), num_classes=5)
      >>> model = mlp(train, hidden=(8,))
      >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))["head"]["kernel"]
      (8, 5)
    """
    for width in hidden:
        checks.count("hidden", width)
    if train.vocabulary_size is not None:
        raise ValueError(
            "`train` must hold numbers for a perceptron or logistic regression, got tokens "
            f"(vocabulary_size={train.vocabulary_size}). Take the text CNN."
        )
    return from_flax(MLP(tuple(hidden), train.num_classes), train, head="head")


def logistic(train: Dataset) -> Model:
    """Returns multinomial logistic regression for the shapes of `train`.

    Examples:
      >>> train = Dataset(x=jnp.zeros((5, 2, 2)), y=range(5), num_classes=5)
      >>> jax.tree.map(jnp.shape, logistic(train).init(jax.random.key(0)))
      {'head': {'bias': (5,), 'kernel': (4, 5)}}
    """
    return mlp(train, hidden=())


def mnist_cnn(
    train: Dataset | None = None, *, convolution: Callable[..., Array] = conv_general_dilated
) -> Model:
    """Returns the paper's MNIST network: conv 1-64 k3, conv 64-16 k7, dense 200, tanh.

    Args:
      train: gives the shapes; None: images `[32, 32, 1]` of ten classes, 104,242
        parameters.
      convolution: what convolves, with the arguments of `jax.lax.conv_general_dilated`.

    Raises:
      ValueError: the images are too small for the network.

    Examples:
      >>> params = mnist_cnn().init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      104242
    """
    return _image_model(MnistCNN, train, convolution, channels=1, smallest=20)


def cifar_cnn(
    train: Dataset | None = None, *, convolution: Callable[..., Array] = conv_general_dilated
) -> Model:
    """Returns the paper's CIFAR-10 network: conv 3-16 k5, 16-32 k5, dense 120 and 84, relu.

    Args:
      train: gives the shapes; None: images `[32, 32, 3]` of ten classes, 121,182
        parameters.
      convolution: what convolves, with the arguments of `jax.lax.conv_general_dilated`.

    Raises:
      ValueError: the images are too small for the network.

    Examples:
      >>> params = cifar_cnn().init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      121182
    """
    return _image_model(CifarCNN, train, convolution, channels=3, smallest=16)


def _image_model(
    module: Any,
    train: Dataset | None,
    convolution: Callable[..., Array],
    channels: int,
    smallest: int,
) -> Model:
    if train is None:
        example = jnp.zeros((1, 32, 32, channels))
        return from_flax(module(convolution=convolution), example, head="head")
    shape = train.x.shape[1:]
    if len(shape) != 3 or min(shape[:2]) < smallest:
        raise ValueError(
            f"`train` must hold images [height, width, channels] of at least {smallest} x "
            f"{smallest} for {module.__name__}, got examples of shape {shape}."
        )
    return from_flax(module(train.num_classes, convolution), train, head="head")


def text_cnn(vocabulary_size: int, num_classes: int) -> Model:
    """Returns Kim's text CNN: random embedding of 300, three branches of 128 filters of height 3.

    Each branch's filters meet whole embeddings of 3 words in sequence; then relu, the maximum
    over time, dropout of half, and a dense layer. Everything is trained.

    Args:
      vocabulary_size: how many tokens there are, at least 2.
      num_classes: how many classes there are, at least 2.

    Returns:
      A `Model` of tokens `[B, L]`, L at least 3, with 300 `vocabulary_size` + 346,754
      parameters for two classes. Without a key, `apply` drops nothing out.

    Raises:
      ValueError: a number is too small.

    References:
      Kim, Convolutional Neural Networks for Sentence Classification, EMNLP 2014
      ("CNN-rand"), there with filters of heights 3, 4 and 5.

    Examples:
      >>> params = text_cnn(vocabulary_size=1000, num_classes=2).init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params)) - 1000 * 300
      346754
    """
    checks.count("vocabulary_size", vocabulary_size, least=2)
    checks.count("num_classes", num_classes, least=2)
    module = TextCNN(vocabulary_size, num_classes)
    return from_flax(module, jnp.zeros((1, 3), jnp.int32), head="head")


def _text_cnn_for(train: Dataset) -> Model:
    """Returns Kim's text CNN for the tokens of `train`.

    Raises:
      ValueError: `train` does not hold tokens `[n, length]` with a vocabulary size.
    """
    if train.vocabulary_size is None or train.x.ndim != 2 or train.x.shape[1] < 3:
        raise ValueError(
            "`train` must hold tokens [n, length], of length 3 or more, and their "
            f"`vocabulary_size`, for the text CNN, got examples of shape {train.x.shape[1:]} "
            f"and vocabulary_size={train.vocabulary_size}."
        )
    return text_cnn(train.vocabulary_size, train.num_classes)


REGISTRY = {
    "mlp": mlp,
    "logistic": logistic,
    "mnist_cnn": mnist_cnn,
    "cifar_cnn": cifar_cnn,
    "text_cnn": _text_cnn_for,
}
